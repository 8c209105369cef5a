"""Learning by predictive coding beside backpropagation: which modes are the same, and how nudged outputs come near it."""

import pytest
import torch
from torch import nn
from torch.autograd.functional import jacobian

import zoo
from inference.backpropagation import (
    agreement,
    backpropagated_gradients,
    clamped,
    exact_gradients,
    fixed_prediction_gradients,
    forward_pass,
    strict_gradients,
)
from inference.local_learning import local_gradients
from inference.nudging import nudged_gradients, settled
from zoo.density import log_joint

N, DEPTH = 6, 4


def network(levels=(5, 5, 5, 4), outputs=3, seed=0, **options):
    """A tanh network with unit variances (or others), its inputs and targets, float64; weights start as N(0, 1 / (3 K))."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        settings = {"activation": "tanh", "gain": 3**-0.5, "scale": 1.0} | options
        model = zoo.build("predictive_coding", (outputs,), levels=levels, **settings).double()
        targets = torch.randn(N, outputs, dtype=torch.double)
        if options.get("likelihood") == "categorical":
            targets = nn.functional.one_hot(targets.argmax(-1), outputs).double()
        return model, torch.randn(N, levels[-1], dtype=torch.double), targets


def off(found, truth):
    return agreement(found, truth)[0]


@pytest.mark.parametrize("likelihood", ["normal", "categorical"])
def test_the_truth_is_that_of_an_ordinary_network(likelihood):
    model, inputs, targets = network(likelihood=likelihood)
    layers = [nn.Linear(mapping.weight.shape[1], mapping.weight.shape[0]).double() for mapping in model.maps]
    for layer, mapping in zip(layers, model.maps, strict=True):
        layer.load_state_dict(mapping.state_dict())
    outputs = nn.Sequential(*[part for layer in reversed(layers) for part in (nn.Tanh(), layer)])(inputs)
    losses = {"normal": lambda: 0.5 * (outputs - targets).square().sum(-1).mean(),
              "categorical": lambda: nn.functional.cross_entropy(outputs, targets)}
    losses[likelihood]().backward()
    found = backpropagated_gradients(model, inputs, targets)
    for number, layer in enumerate(layers):
        torch.testing.assert_close(found[f"maps.{number}.weight"], -layer.weight.grad, rtol=0.0, atol=1e-14)
        torch.testing.assert_close(found[f"maps.{number}.bias"], -layer.bias.grad, rtol=0.0, atol=1e-14)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("likelihood", ["normal", "categorical"])
def test_which_modes_are_backpropagation(likelihood):
    """The relative errors that Rosenbaum 2022 tells of, in kind: a network of four predictions, tanh."""
    case = network(likelihood=likelihood)
    truth = backpropagated_gradients(*case)
    assert off(exact_gradients(*case), truth) < 1e-14
    assert off(fixed_prediction_gradients(*case), truth) < 1e-14
    assert off(fixed_prediction_gradients(*case, eta=1.0, steps=DEPTH + 3), truth) < 1e-14
    assert off(fixed_prediction_gradients(*case, eta=1.0, steps=DEPTH - 1), truth) > 0.05
    assert 0.05 < off(fixed_prediction_gradients(*case, eta=0.1, steps=20), truth) < 0.5
    assert 1e-12 < off(fixed_prediction_gradients(*case, eta=0.1, steps=200), truth) < 1e-5
    assert off(strict_gradients(*case, eta=0.1, steps=20), truth) > 0.05
    moved = strict_gradients(*case, eta=0.1, steps=400)
    assert off(moved, truth) > 0.05 and agreement(moved, truth)[1] > 0.5


def test_too_few_steps_leave_the_highest_prediction_as_it_is():
    case = network()
    found, truth = fixed_prediction_gradients(*case, steps=DEPTH - 1), backpropagated_gradients(*case)
    assert found[f"maps.{DEPTH - 1}.weight"].abs().max() == 0.0
    torch.testing.assert_close(found[f"maps.{DEPTH - 2}.weight"], truth[f"maps.{DEPTH - 2}.weight"], rtol=0.0, atol=1e-15)


def test_with_other_variances_held_predictions_take_time():
    case = network(level_scale=(0.8, 1.2, 1.1, 1.0), scale=0.7)
    truth = backpropagated_gradients(*case)
    assert off(fixed_prediction_gradients(*case, eta=0.5, steps=200), truth) < 1e-12
    assert off(fixed_prediction_gradients(*case, eta=1.0, steps=DEPTH), truth) > 0.05
    assert off(exact_gradients(*case), truth) < 1e-14


def test_strict_steps_are_gradient_ascent():
    model, inputs, targets = network()
    supervised = clamped(model, inputs, targets)
    values = {name: value.requires_grad_(True) for name, value in forward_pass(supervised).items()}
    slopes = torch.autograd.grad(log_joint(supervised, values, targets).sum(), list(values.values()))
    moved = {name: (value + 0.1 * slope).detach() for (name, value), slope in zip(values.items(), slopes, strict=True)}
    expected = local_gradients(supervised, moved, targets)
    for name, gradient in strict_gradients(model, inputs, targets, eta=0.1, steps=1).items():
        torch.testing.assert_close(gradient, expected[f"model.{name}"], rtol=0.0, atol=1e-14)


def test_settled_activities_are_at_rest():
    model, inputs, targets = network()
    supervised = clamped(model, inputs, targets)
    for power in (1.0, -0.1):
        values = {name: value.requires_grad_(True) for name, value in settled(supervised, targets, power=power).items()}
        prior = log_joint(supervised, values, targets) + (power - 1.0) * model.observation(supervised.decode(values)).log_prob(targets)
        assert max(part.abs().max().item() for part in torch.autograd.grad(prior.sum(), list(values.values()))) < 1e-7


BETAS = (0.02, 0.01)


@pytest.mark.parametrize(("likelihood", "sign", "power"), [("normal", "positive", 1), ("normal", "negative", 1), ("normal", "centred", 2),
                                                           ("categorical", "centred", 2)])
def test_weak_nudges_come_near_backpropagation(likelihood, sign, power):
    """Linearly in β from one side, quadratically if centred."""
    case = network((4, 3), likelihood=likelihood)
    truth = backpropagated_gradients(*case)
    wrong = [off(nudged_gradients(*case, beta=beta, sign=sign), truth) for beta in BETAS]
    assert wrong[0] / wrong[1] == pytest.approx(2.0**power, rel=0.04), wrong
    assert wrong[1] < (0.05 if power == 1 else 5e-4)


def weighted_by_all_noise(model, inputs, targets):
    """Backpropagation of the output error S⁻¹ (y − u), S = Σ₀ + Σ P_l Σ_l P_lᵀ with the output's slopes P_l in each level's activities."""
    supervised = clamped(model, inputs, targets)
    values, shifted = forward_pass(supervised), targets.clone()
    predicted = supervised.predict()
    for n in range(len(inputs)):
        covariance = model.scale.square() * torch.eye(targets.shape[1])
        for number in range(1, len(model.units)):
            def output(z, number=number):
                for below in range(number - 1, -1, -1):
                    z = model.predict(below, z)
                return z
            slope = jacobian(output, values[f"z{number}"][n])
            covariance = covariance + model.levels[number - 1].scale.square() * slope @ slope.mT
        error = torch.linalg.solve(covariance, targets[n] - predicted[n])
        shifted[n] = predicted[n] + model.scale.square() * error
    return backpropagated_gradients(model, inputs, shifted.detach())


def test_a_weakly_nudged_output_comes_near_another_gradient():
    case = network((4, 3, 3), level_scale=(0.7, 0.9, 1.0), scale=0.8)
    limit, truth = weighted_by_all_noise(*case), backpropagated_gradients(*case)
    wrong = [off(nudged_gradients(*case, beta=beta, nudge="output"), limit) for beta in (0.2, 0.1)]
    assert wrong[0] / wrong[1] == pytest.approx(4.0, rel=0.08) and wrong[1] < 0.01, wrong
    assert off(limit, truth) > 0.1


def test_with_little_noise_inside_a_nudged_output_is_backpropagation():
    case = network((4, 3), level_scale=(0.02, 1.0), scale=1.0)
    assert off(nudged_gradients(*case, beta=0.1, nudge="output", tolerance=1e-6), backpropagated_gradients(*case)) < 1e-3


def test_a_whole_nudge_is_the_clamped_output():
    case = network((4, 3))
    supervised = clamped(*case)
    gradients = local_gradients(supervised, settled(supervised, case[2]), case[2])
    for nudge in ("likelihood", "output"):
        for name, found in nudged_gradients(*case, beta=1.0, sign="positive", nudge=nudge).items():
            torch.testing.assert_close(found, gradients[f"model.{name}"], rtol=0.0, atol=1e-7)


def test_agreement_of_known_vectors():
    truth = {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([[4.0]])}
    assert agreement({"a": torch.tensor([0.0, 0.0]), "b": torch.tensor([[4.0]])}, truth) == pytest.approx((0.6, 0.8))
    with pytest.raises(ValueError, match="of one alone are: b"):
        agreement({"a": truth["a"]}, truth)


def test_what_is_no_supervised_network_is_refused():
    model, inputs, targets = network()
    for call in (backpropagated_gradients, exact_gradients, fixed_prediction_gradients, strict_gradients):
        with pytest.raises(ValueError, match=r"inputs .* \(N, 4\)"):
            call(model, inputs[:, :2], targets)
        with pytest.raises(ValueError, match=r"targets .* \(6, 3\)"):
            call(model, inputs, targets[:1])
        with pytest.raises(TypeError, match="chain of levels"):
            call(zoo.build("gaussian", (3,), latents=4), inputs, targets)
    with pytest.raises(ValueError, match="z2 is Laplace"):
        exact_gradients(*network(family="gaussian,laplace,gaussian,gaussian"))
    with pytest.raises(ValueError, match="hidden=None"):
        exact_gradients(*network(hidden=3, activation="identity"))
    with pytest.raises(ValueError, match="highest latent"):
        exact_gradients(*network(levels=(4,)))
    with pytest.raises(ValueError, match="steps must be at least 1"):
        fixed_prediction_gradients(model, inputs, targets, steps=0)


def test_nudges_out_of_range_are_refused():
    case = network((4, 3))
    for options, told in (({"beta": 0.0}, "beta positive"), ({"beta": 0.1, "sign": "both"}, "unknown sign"),
                          ({"beta": 0.1, "nudge": "input"}, "nudge must be"), ({"beta": 0.1, "max_steps": 2}, "did not settle in 2 steps")):
        with pytest.raises(ValueError, match=told):
            nudged_gradients(*case, **options)
    with pytest.raises(ValueError, match="outputs between prediction and target are Normal"):
        nudged_gradients(*network((4, 3), likelihood="categorical"), beta=0.1, nudge="output")

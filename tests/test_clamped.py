"""A model whose highest latent is given: its density is the conditional one, and its forward pass that of a supervised network."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import MultivariateNormal

import guides
import inference
import zoo
from zoo.models.clamped import Clamped
from zoo.oracles import LinearChain, linear_chain, linear_gaussian

DOUBLE = torch.float64


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


@pytest.mark.parametrize("options", [{"levels": (4, 3)}, {"levels": (4, 3, 2), "activation": "tanh", "precision": "diagonal"},
                                     {"levels": (4, 3, 3), "family": "gaussian,laplace,poisson"},
                                     {"levels": (4, 3), "family": "gaussian,categorical"}], ids=str)
def test_the_density_is_the_joint_one_less_that_of_what_is_given(options):
    model = zoo.build("predictive_coding", (2, 3), **options).double()
    x = random(5, 2, 3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        values = {name: site[0] for name, site in zoo.density.drawn_latents(model, x, 1).items()}
    top = next(iter(values))
    clamped = Clamped(model, {top: values[top]})
    others = {name: value for name, value in values.items() if name != top}
    law = model.latents[top][0].distribution(model.levels[-1].prior(model.top))
    expected = inference.log_joint(model, values, x) - law.log_prob(values[top])
    torch.testing.assert_close(inference.log_joint(clamped, others, x), expected)
    assert list(clamped.latents) == list(others)
    stacked = {name: value.expand(2, 3, *value.shape) for name, value in others.items()}
    torch.testing.assert_close(inference.log_joint(clamped, stacked, x), expected.expand(2, 3, 5))


def test_what_is_inferred_is_the_conditional_law():
    """Of a linear network with Normal units: the other levels' law given the top and the image, from their joint posterior."""
    model = linear_chain((4, 3, 2), (1, 2, 3), 0.6, level_scale=(0.7, 0.9, 1.2), orthogonal=False, seed=1).double()
    x, top = random(5, 1, 2, 3), random(5, 2, seed=1)
    means, covariance = LinearChain.of(model).posterior(x)
    gain = torch.linalg.solve(covariance[:2, :2], covariance[:2, 2:]).T
    mean = torch.cat([means["z2"], means["z1"]], -1) + (top - means["z3"]) @ gain.T
    spread = covariance[2:, 2:] - gain @ covariance[:2, 2:]
    clamped = Clamped(model, {"z3": top})
    guide = guides.build("laplace_approximation", clamped, x)
    torch.testing.assert_close(guide.loc, mean)
    torch.testing.assert_close(guide.scale_tril @ guide.scale_tril.mT, spread.expand(5, 7, 7))
    joint = torch.cat([means["z3"], means["z2"], means["z1"]], -1)
    of_top = MultivariateNormal(joint[:, :2], covariance[:2, :2]).log_prob(top)  # p(top | x) p(x) = p(x | top) p(top)
    prior = torch.distributions.Normal(0.0, 1.2).log_prob(top).sum(-1)
    torch.testing.assert_close(guide.log_evidence, LinearChain.of(model).log_evidence(x) + of_top - prior)
    for space in ("states", "errors"):
        mode = inference.infer(clamped, x, "map", steps=300, space=space)
        torch.testing.assert_close(torch.cat([mode.samples["z2"], mode.samples["z1"]], -1)[0, 0], mean, atol=1e-4, rtol=0)


def test_the_prediction_is_the_forward_pass():
    for likelihood, output in (("normal", lambda drive: drive), ("bernoulli", torch.sigmoid), ("categorical", lambda d: d.softmax(-1))):
        model = zoo.build("predictive_coding", (4,), levels=(5, 3), activation="tanh", likelihood=likelihood).double()
        top = random(6, 3)
        hidden = top.tanh() @ model.maps[1].weight.T + model.maps[1].bias
        expected = output(hidden.tanh() @ model.maps[0].weight.T + model.maps[0].bias)
        predicted = Clamped(model, {"z2": top}).predict()
        torch.testing.assert_close(predicted, expected.detach())
        assert not predicted.requires_grad


def test_its_weights_are_the_models_and_its_values_move_with_it():
    model = zoo.build("predictive_coding", (2, 2), levels=(3, 2))
    clamped = Clamped(model, {"z2": torch.ones(4, 2)})
    assert {id(p) for p in clamped.parameters()} == {id(p) for p in model.parameters()}
    assert clamped.double().top.dtype == DOUBLE == model.top.dtype
    assert Clamped(zoo.build("predictive_coding", (2, 2), levels=(3, 2), precision="scalar"), {"z2": torch.ones(4, 2)}).floors["z1"] == 0.01
    drawn = clamped(None, size=4)
    assert drawn.shape == (4, 2, 2)


def test_refusals():
    model = zoo.build("predictive_coding", (2, 2), levels=(3, 2))
    for top, words in (({"z1": torch.ones(4, 3)}, "given was z1"), ({}, "given was nothing"),
                       ({"z2": torch.ones(4, 2), "z1": torch.ones(4, 3)}, "highest latent 'z2'")):
        with pytest.raises(ValueError, match=words):
            Clamped(model, top)
    with pytest.raises(ValueError, match="with others below it"):
        Clamped(linear_gaussian(), {"z": torch.ones(4, 8)})
    clamped = Clamped(model, {"z2": torch.ones(4, 2)})
    with pytest.raises(ValueError, match="for 4 images, not for 3"):
        clamped(None, size=3)


@pytest.mark.parametrize("shape", [(4,), (4, 1), (4, 9), (4, 1, 8)], ids=str)
def test_values_of_another_shape_are_refused(shape):
    model = zoo.build("predictive_coding", (1, 2, 2), levels=(5, 8))
    with pytest.raises(ValueError, match=r"values of 'z2' must be finite, of shape \(N, 8\)"):
        Clamped(model, {"z2": torch.zeros(shape)})
    with pytest.raises(ValueError, match="must be finite"):
        Clamped(model, {"z2": torch.full((4, 8), torch.nan)})

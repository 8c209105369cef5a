"""Learning from point estimates against closed forms of linear networks, autograd of them, and loops written out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import guides
import inference
import zoo
from inference.batches import batches_of
from inference.gradient_dynamics import ascend
from inference.map_learning import MapEM, without_floor
from inference.mcmc.target import Target
from inference.methods.point import first_values
from zoo.data import rofl
from zoo.density import counting, log_joint
from zoo.latents.student_t import StudentT
from zoo.models.clamped import Clamped
from zoo.oracles import LinearChain, linear_chain
from zoo.testing import check_model

DOUBLE = torch.float64
FIT = {"method": "map", "optimizer": "adam", "warmup": 0.0, "clip": None, "progress": False, "log_every": 1}
NORMALIZER = 0.5 * math.log(2 * math.pi)


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def linear(seed=2):
    return linear_chain((4, 3), (1, 2, 3), 0.6, level_scale=(0.8, 1.2), orthogonal=False, seed=seed).double()


def curved(event_shape=(1, 2, 2), seed=1, **options):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = zoo.build("predictive_coding", event_shape, **{"levels": (3, 2), "activation": "tanh", "scale": 0.7} | options)
    return model.double()


def fastest(model, space="states"):
    """The step size at which plain gradient steps settle soonest."""
    return 2.0 / sum(model.curvatures(space)).item()


def learner_of(model, x, guide=None, *, batch_size=None, seed=0, **options):
    return MapEM(model, guide, x, batch_size=batch_size or len(x), seed=seed, **options)


def gradients(model, learner, index):
    """What the weights ascend, ``{name: gradient}``, and the bound it is of."""
    bound = learner.bound(model, learner, index)
    found = torch.autograd.grad(bound.surrogate.mean(), list(model.parameters()), allow_unused=True)
    return dict(zip([name for name, _ in model.named_parameters()], found, strict=True)), bound


# -- what the weights ascend

@pytest.mark.parametrize("space", ["states", "errors"])
@pytest.mark.parametrize("rule", ["autograd", "local"])
def test_the_gradient_at_the_mode_is_that_of_the_lowest_energy(space, rule):
    """Where the latents are at their mode, their own motion with the weights does not matter: the total slope is the partial one."""
    model, x = linear(), random(5, 1, 2, 3)
    expected = torch.autograd.grad(-model.minimum_energy(x).mean(), list(model.parameters()))
    found, bound = gradients(model, learner_of(model, x, steps=150, lr=fastest(model, space), space=space, rule=rule), torch.arange(5))
    for slope, right in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(slope, right, rtol=1e-6, atol=1e-7)
    means, _ = model.posterior(x)
    by_hand = ((x.flatten(1) - means["z1"] @ model.maps[0].weight.T) / 0.36).T @ means["z1"] / 5
    torch.testing.assert_close(found["maps.0.weight"], by_hand, rtol=1e-6, atol=1e-7)
    by_hand = ((means["z1"] - means["z2"] @ model.maps[1].weight.T) / 0.64).T @ means["z2"] / 5
    torch.testing.assert_close(found["maps.1.weight"], by_hand, rtol=1e-6, atol=1e-7)
    assert min(slope.abs().max() for slope in found.values()) > 1e-2
    torch.testing.assert_close(bound.told["log_joint"], -model.minimum_energy(x).mean().detach())
    assert bound.told["slope"] < 1e-6 and bound.value.isnan().all() and bound.kl is None


def test_latents_are_at_their_mode_in_either_space():
    model, x = linear(), random(5, 1, 2, 3)
    means, _ = model.posterior(x)
    for space in ("states", "errors"):
        learner = learner_of(model, x, steps=150, lr=fastest(model, space), space=space, start="last")
        learner.bound(model, learner, torch.arange(5))
        values = learner._density().constrain(learner.kept)
        values = learner._density().model.values(values, x) if space == "errors" else values
        for name, mean in means.items():
            torch.testing.assert_close(values[name], mean, rtol=1e-6, atol=1e-7)


def test_learning_raises_the_highest_log_joint_at_every_small_step():
    model, x = linear(), random(40, 1, 2, 3, seed=3)
    energy = model.minimum_energy(x).mean().item()
    history = inference.fit(model, None, x, steps=10, batch_size=40, lr=7e-3, final_lr=7e-3,
                            dynamics={"steps": 80, "lr": fastest(model), "start": "last"}, **FIT)
    heights = history.column("log_joint")
    assert heights[0] == pytest.approx(-energy, abs=1e-6)
    assert all(after > before for before, after in zip(heights, heights[1:], strict=False))
    assert -model.minimum_energy(x).mean().item() > heights[-1] > heights[0] + 0.2
    assert all(math.isnan(value) for value in history.column("elbo"))


def test_a_point_estimate_learns_weights_that_are_too_large():
    """Without the posterior's width nothing holds the weights back: the lowest energy falls below, the evidence too."""
    truth = linear()
    with torch.random.fork_rng():
        torch.manual_seed(4)
        x = truth(None, size=300).detach()
    model = linear()
    inference.fit(model, None, x, steps=60, batch_size=300, lr=0.05,
                  dynamics={"steps": 8, "start": "last"}, **FIT)
    assert model.minimum_energy(x).mean() < truth.minimum_energy(x).mean() - 1.0
    assert model.log_evidence(x).mean() < truth.log_evidence(x).mean() - 0.2
    assert model.maps[0].weight.norm() > 1.2 * truth.maps[0].weight.norm()


# -- the two phases at once, by hand

def by_hand(model, batches, ticks, steps, latent_lr, lr, incremental):
    """Predictive coding of two tanh levels in plain PyTorch: z ← z + latent_lr · slope, and Adam on the weights."""
    w0, b0, w1, b1 = weights = [part.detach().clone().requires_grad_(True) for layer in model.maps for part in (layer.weight, layer.bias)]
    adam = torch.optim.Adam(weights, lr=lr)

    def height(z2, z1, x):
        e2, e1, e0 = z2, z1 - torch.tanh(z2) @ w1.T - b1, (x.flatten(1) - torch.tanh(z1) @ w0.T - b0) / 0.7
        return -0.5 * (e2.square().sum(1) + e1.square().sum(1) + e0.square().sum(1)) - 9 * NORMALIZER - 4 * math.log(0.7)

    for tick in range(ticks):
        x = batches(tick)
        if tick % steps == 0 or not incremental:
            z2 = torch.zeros(len(x), 2, dtype=DOUBLE)
            z1 = (torch.tanh(z2) @ w1.T + b1).detach()
        for _ in range(1 if incremental else steps):
            z2, z1 = z2.requires_grad_(True), z1.requires_grad_(True)
            s2, s1 = torch.autograd.grad(height(z2, z1, x).sum(), (z2, z1))
            z2, z1 = (z2 + latent_lr * s2).detach(), (z1 + latent_lr * s1).detach()
        adam.zero_grad()
        loss = -height(z2, z1, x).mean()
        loss.backward()
        adam.step()
    return weights, -loss.item()


@pytest.mark.parametrize("rule", ["autograd", "local"])
@pytest.mark.parametrize("incremental", [True, False])
def test_twelve_ticks_are_those_written_by_hand(incremental, rule):
    model, x, steps = curved(), random(9, 1, 2, 2, seed=5), 4
    order = batches_of(torch.arange(9), 3, seed=7, event_shape=None, device=None)
    seen = [order.at(tick // steps if incremental else tick) for tick in range(12)]
    expected, height = by_hand(model, lambda tick: x[seen[tick]], 12, steps, 0.05, 0.02, incremental)
    history = inference.fit(model, None, x, steps=12, batch_size=3, seed=7, lr=0.02, final_lr=0.02,
                            dynamics={"steps": steps, "lr": 0.05, "incremental": incremental, "rule": rule}, **FIT)
    for layer, (weight, bias) in zip(model.maps, (expected[:2], expected[2:]), strict=True):
        torch.testing.assert_close(layer.weight, weight)
        torch.testing.assert_close(layer.bias, bias)
    assert history.column("log_joint")[-1] == pytest.approx(height, abs=1e-7)
    assert len({tuple(batch.tolist()) for batch in seen}) >= 3


def test_an_incremental_epoch_is_as_many_ticks_longer():
    model, x = curved(), random(9, 1, 2, 2)
    history = inference.fit(model, None, x, epochs=1, batch_size=3, dynamics={"steps": 5, "incremental": True}, **FIT)
    assert history.rows[-1]["step"] == 15


@pytest.mark.parametrize("incremental", [True, False])
def test_local_rules_learn_as_autograd_does_step_by_step(incremental):
    x, ways = random(12, 1, 2, 2, seed=6), {}
    for rule in ("autograd", "local"):
        model = curved(levels=(3, 3, 2), precision="diagonal", learn_scale=True, learn_prior=True)
        heights = inference.fit(model, None, x, steps=10, batch_size=4, lr=0.03,
                                dynamics={"steps": 5, "rule": rule, "incremental": incremental}, **FIT).column("log_joint")
        ways[rule] = heights, model.state_dict()
    assert ways["local"][0] == pytest.approx(ways["autograd"][0], abs=1e-10)
    before = curved(levels=(3, 3, 2), precision="diagonal", learn_scale=True, learn_prior=True).state_dict()
    for name, value in ways["local"][1].items():
        torch.testing.assert_close(value, ways["autograd"][1][name])
        assert (value - before[name]).abs().max() > 1e-3, name  # every parameter has learned


# -- where latents start

def test_last_values_are_kept_by_image():
    model, x = curved(), random(6, 1, 2, 2)
    learner = learner_of(model, x, batch_size=3, steps=2, lr=0.05, start="last")
    learner.bound(model, learner, torch.tensor([4, 0, 2]))
    learner.bound(model, learner, torch.tensor([2, 5, 4]))
    learner.bound(model, learner, torch.tensor([1, 2, 5]))
    assert learner.seen.tolist() == [True, True, True, False, True, True]
    values = learner._density().constrain(learner.kept)
    for steps, images in ((2, [0, 1]), (4, [4, 5]), (6, [2])):
        alone = inference.infer(model, x[images], "map", optimizer="gradient", lr=0.05, steps=steps)
        for name, sample in alone.samples.items():
            torch.testing.assert_close(values[name][images], sample[0, 0])
    assert (learner.kept[3] == 0).all()


def test_the_step_size_is_half_of_what_is_stable_for_all_images_of_a_batch():
    model, x = linear(), random(5, 1, 2, 3)
    learner = learner_of(model, x, steps=1)
    learner.bound(model, learner, torch.arange(5))
    assert learner.step_size.item() == pytest.approx(0.5 / model.curvatures()[1].item(), rel=1e-4)


def test_the_step_size_is_looked_up_again_as_weights_change():
    model, x = linear(), random(5, 1, 2, 3)
    learner = learner_of(model, x, steps=1)
    sizes = []
    for visits in (0, 99, 100):
        learner.visits.fill_(visits)
        learner.bound(model, learner, torch.arange(5))
        sizes.append(learner.step_size.item())
        with torch.no_grad():
            model.maps[0].weight.mul_(2.0)
    assert sizes[0] == sizes[1] > 8 * sizes[2]  # curvature goes with the square of weights, four times as large by then


@pytest.mark.parametrize("space", ["states", "errors"])
def test_latents_start_at_the_guides_means_if_asked(space):
    model, x = curved(), random(5, 1, 2, 2)
    guide = guides.build("amortized", model, seed=3).double()
    told = {}
    for start in ("prior", "guide"):
        learner = learner_of(model, x, guide, steps=1, lr=1e-12, space=space, start=start)
        told[start] = learner.bound(model, learner, torch.arange(5)).told["log_joint"].item()
        values = first_values(model, x, guide, start)
        assert told[start] == pytest.approx(log_joint(model, values, x).mean().item(), abs=1e-6)
    assert abs(told["guide"] - told["prior"]) > 1e-3


def test_an_encoder_learns_to_start_and_the_model_does_not_adapt_to_it(unchanged_generator):
    truth = linear()
    with torch.random.fork_rng():
        torch.manual_seed(4)
        x = truth(None, size=260).detach()
    models = []
    for with_guide in (True, False):
        model = linear()
        guide = guides.build("amortized", model, seed=3).double() if with_guide else None
        with unchanged_generator():
            inference.fit(model, guide, x[:200], steps=4, batch_size=50, lr=0.01, dynamics={"steps": 4}, **FIT)
        models.append(model)
    assert all(torch.equal(one, other) for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True))

    guide = guides.build("amortized", truth, seed=3).double()
    before = [part.detach().clone() for part in truth.parameters()]
    inference.fit(truth, guide, x[:200], steps=80, batch_size=100, lr=0.04, freeze_model=True,
                  dynamics={"steps": 6, "lr": fastest(truth), "start": "guide"}, **FIT)
    assert all(map(torch.equal, before, truth.parameters()))
    held_out, needed = x[200:], {}
    lowest = truth.minimum_energy(held_out).detach()
    for start in ("prior", "guide"):
        values = first_values(truth, held_out, guide, start)
        target = Target(truth, held_out)
        way = ascend(target, target.unconstrain(values), steps=200, lr=0.5 / truth.curvatures()[1].item(), optimizer="gradient")
        needed[start] = next(step for step, moment in enumerate(way) if (-moment.value - lowest).mean() < 0.05)
    assert needed["guide"] <= 2 and needed["prior"] >= 10, needed


# -- supervised learning

@pytest.mark.parametrize("rule", ["autograd", "local"])
def test_with_its_top_clamped_a_network_learns_a_supervised_task(rule):
    inputs = random(80, 2, seed=8)
    x = torch.stack([torch.tanh(inputs[:, 0] - inputs[:, 1]), 0.5 * inputs[:, 1].sin()], 1).reshape(80, 1, 1, 2)
    model = curved((1, 1, 2), levels=(8, 2), scale=0.3)

    def loss():
        return (Clamped(model, {"z2": inputs[60:]}).predict() - x[60:]).square().sum((1, 2, 3)).mean().item()

    first = loss()
    inference.fit(model, None, x[:60], steps=150, batch_size=30, lr=0.02, clamped={"z2": inputs[:60]},
                  dynamics={"steps": 10, "rule": rule}, **FIT)
    variance = (x[60:] - x[:60].mean(0)).square().sum((1, 2, 3)).mean().item()
    assert loss() < 0.1 * first and loss() < 0.1 * variance


def test_clamped_values_go_with_their_images():
    """Of a linear network with its top given: the mode of z1 in closed form, at which the lower weights' slope is a product."""
    model, x, top = linear(), random(6, 1, 2, 3), random(6, 3, seed=9)
    index = torch.tensor([5, 1, 2])
    learner = learner_of(model, x, batch_size=3, steps=300, clamped={"z2": top})
    found, bound = gradients(model, learner, index)
    w0, w1 = (layer.weight.detach() for layer in model.maps)
    pull = x[index].flatten(1) @ w0 / 0.36 + top[index] @ w1.T / 0.64
    z1 = torch.linalg.solve(w0.T @ w0 / 0.36 + torch.eye(4, dtype=DOUBLE) / 0.64, pull.T).T
    e0, e1 = x[index].flatten(1) - z1 @ w0.T, z1 - top[index] @ w1.T
    torch.testing.assert_close(found["maps.0.weight"], (e0 / 0.36).T @ z1 / 3, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(found["maps.1.weight"], (e1 / 0.64).T @ top[index] / 3, rtol=1e-6, atol=1e-7)
    height = -0.5 * (e0.square().sum(1) / 0.36 + e1.square().sum(1) / 0.64).mean() - 10 * NORMALIZER - 6 * math.log(0.6) - 4 * math.log(0.8)
    torch.testing.assert_close(bound.told["log_joint"], height.detach())


# -- learned scales

@pytest.mark.parametrize(("precision", "names"), [("scalar", "z1, z2"), ("fixed,diagonal", "z2"), ("diagonal,fixed", "z1")])
def test_a_learned_scale_without_a_floor_is_refused(precision, names):
    model, x = curved(precision=precision, floor=0.0), random(6, 1, 2, 2)
    assert sorted(without_floor(model, x)) == names.split(", ")
    with pytest.raises(ValueError, match="has no floor: with point estimates log p.* has no upper bound") as refusal:
        inference.fit(model, None, x, steps=1, batch_size=3, **FIT)
    assert all(name in str(refusal.value).split(" has no floor")[0] for name in names.split(", "))
    floored = curved(precision=precision, floor=0.05)
    assert without_floor(floored, x) == []
    check_model(floored, x)
    assert len(inference.fit(floored, None, x, steps=1, batch_size=3, **FIT).rows) == 1


def test_learned_priors_of_other_models_are_refused_too():
    x = torch.randn(6, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    for name in ("gaussian", "laplace"):
        learned = zoo.build(name, (1, 2, 2), latents=3, learn_prior=True)
        with pytest.raises(ValueError, match="scale of z has no floor"):
            inference.fit(learned, None, x, steps=1, batch_size=3, **FIT)
        fixed = zoo.build(name, (1, 2, 2), latents=3, learn_prior=False)
        assert len(inference.fit(fixed, None, x, steps=1, batch_size=3, **FIT).rows) == 1


def test_a_learned_scale_collapses_to_its_floor():
    """Maximum likelihood would find a width near that of the truth, 1.5; a point estimate has a higher density the narrower it is."""
    truth = linear_chain((4, 3), (1, 2, 3), 0.6, level_scale=(1.5, 1.2), orthogonal=False, seed=2)
    with torch.random.fork_rng():
        torch.manual_seed(4)
        x = truth(None, size=60).detach().double()
    for floor in (0.1, 0.3):
        model = zoo.build("predictive_coding", (1, 2, 3), levels=(4, 3), scale=0.6, level_scale=(1.5, 1.2), precision="scalar,fixed",
                          floor=floor, bias=False).double()
        with torch.no_grad():
            for part, right in zip(model.maps, truth.maps, strict=True):
                part.weight.copy_(right.weight).requires_grad_(False)
        oracle = LinearChain.of(model)  # shares its memory
        at_first = oracle.log_evidence(x).mean()
        inference.fit(model, None, x, steps=60, batch_size=60, lr=0.15, final_lr=0.1,
                      dynamics={"steps": 4, "start": "last", "space": "errors"}, **FIT)
        assert floor < model.levels[0].scale.item() < 1.15 * floor
        assert oracle.log_evidence(x).mean() < at_first - 0.5  # not what the evidence asks for


# -- going on, repeating, counting

class Stop(Exception):
    pass


@pytest.mark.parametrize("dynamics", [{}, {"start": "last", "incremental": True}, {"start": "guide"},
                                      {"space": "errors", "optimizer": "adam"}, {"clamped": True, "incremental": True}],
                         ids=lambda options: "-".join(options) or "plain")
def test_an_interrupted_run_goes_on_to_the_same_bits(tmp_path, dynamics, unchanged_generator):
    x, top = random(12, 1, 2, 2).float(), random(12, 2, seed=3).float()
    settings = {**FIT, "steps": 14, "batch_size": 4, "lr": 0.02, "seed": 5}
    own = {"steps": 3} | {name: value for name, value in dynamics.items() if name != "clamped"}
    clamped = {"clamped": {"z2": top}} if "clamped" in dynamics else {}

    def training(stop=None, steps=3, **options):
        def progress(step, total, row):
            if step == stop:
                raise Stop

        model = curved().float()
        guide = guides.build("amortized", model, seed=2) if own.get("start") == "guide" else None
        history = None
        with unchanged_generator():
            try:
                history = inference.fit(model, guide, x, dynamics=own | {"steps": steps},
                                        **settings | clamped | options | {"progress": progress})
            except Stop:
                assert stop is not None
        return [*model.state_dict().values(), *(guide.state_dict().values() if guide else [])], history

    whole, rows = training()
    kept = {"checkpoint": tmp_path / "state", "checkpoint_every": 0.0}
    training(stop=9, **kept)  # the last state written is that after 8 steps: two ticks of a batch, if incremental
    resumed, again = training(**kept)
    assert all(map(torch.equal, whole, resumed))
    for column in ("log_joint", "slope"):
        assert rows.column(column) == again.column(column)
    with pytest.raises(ValueError, match="of a training with other settings"):
        training(steps=2, **kept)


def test_the_seed_decides_and_nothing_else(unchanged_generator):
    x, ends = random(12, 1, 2, 2), []
    for seed, noise in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(noise)
        model = curved()
        with unchanged_generator():
            inference.fit(model, None, x, steps=5, batch_size=4, seed=seed, dynamics={"steps": 3}, **FIT)
        ends.append(model.maps[0].weight.detach())
    assert torch.equal(ends[0], ends[1]) and not torch.equal(ends[0], ends[2])


@pytest.mark.parametrize(("options", "gradients_each", "evaluations_each"), [
    ({"steps": 7, "lr": 0.05}, 7 + 1 + 1, 7 + 1 + 1),  # the start, seven steps, and the weights
    ({"steps": 7, "lr": 0.05, "rule": "local"}, 7 + 1 + 1, 7 + 1 + 1 + 1),  # errors are slopes; log p(x, z) is told besides
    ({"steps": 7, "lr": 0.05, "incremental": True}, 1 + 1 + 1, 1 + 1 + 1),
    ({"steps": 7}, 7 + 1 + 1 + 61, 7 + 1 + 1 + 61),  # with the power iteration for the step size
    ({"steps": 7, "optimizer": "adam"}, 7 + 1 + 1, 7 + 1 + 1),
    ({"steps": 7, "lr": 0.05, "space": "errors"}, 7 + 1 + 1, 7 + 1 + 1),
])
def test_what_it_costs_is_counted(options, gradients_each, evaluations_each):
    model, x = curved(), random(6, 1, 2, 2)
    learner = learner_of(model, x, batch_size=3, **options)
    with counting() as cost:
        learner.bound(model, learner, torch.tensor([0, 1, 2]))
    assert cost.gradients == 3 * gradients_each and cost.evaluations == 3 * evaluations_each


def test_log_joint_and_slope_are_those_at_the_values_reached():
    model, x = curved(), random(6, 1, 2, 2)
    history = inference.fit(model, None, x, steps=1, batch_size=6, dynamics={"steps": 9, "lr": 0.04}, **FIT)
    first = curved()
    reached = inference.infer(first, x, "map", optimizer="gradient", lr=0.04, steps=9)
    values = {name: value[0, 0] for name, value in reached.samples.items()}
    assert history.column("log_joint")[0] == pytest.approx(log_joint(first, values, x).mean().item(), abs=1e-9)
    assert history.column("slope")[0] == pytest.approx(reached.stats["slope"].mean().item(), abs=1e-9)


# -- what is refused

def test_bad_input_is_refused_in_one_sentence():
    model, x = curved(), random(8, 1, 2, 2)
    cases = [({"dynamics": {"optimizer": "newton"}}, "optimizer must be 'adam', 'gradient', not 'newton'"),
             ({"dynamics": {"space": "volts"}}, "space must be 'states', 'errors'"),
             ({"dynamics": {"start": "zero"}}, "start must be 'prior', 'guide', 'last'"),
             ({"dynamics": {"rule": "hebb"}}, "rule must be 'autograd', 'local'"),
             ({"dynamics": {"steps": 0}}, "steps must be at least 1"), ({"dynamics": {"lr": 0.0}}, "lr positive"),
             ({"dynamics": {"lr": math.nan}}, "lr positive"),
             ({"dynamics": {"incremental": True, "optimizer": "adam"}}, "use optimizer='gradient'"),
             ({"dynamics": {"start": "guide"}}, "start='guide' needs a guide"),
             ({"objective": "iwae"}, "neither another objective"), ({"beta": 0.5}, "no KL term"),
             ({"freeze_model": True}, "nothing to train"), ({"precision": "bf16"}, "in float32"),
             ({"clamped": {"z2": random(7, 2)}}, "z2 is given for 7 images, but there are 8"),
             ({"clamped": {"z1": random(8, 3)}}, "what can be clamped is the highest latent 'z2'"),
             ({"clamped": {"y": random(8, 2)}}, "what can be clamped is the highest latent 'z2'")]
    for options, words in cases:
        with pytest.raises(ValueError, match=words):
            inference.fit(model, None, x, steps=2, batch_size=4, **FIT | options)
    with pytest.raises(ValueError, match="of which no image comes up twice"):
        inference.fit(curved((2, 17, 17)), None, rofl.Stream("fixate-0"), steps=2, batch_size=4, **FIT)
    with pytest.raises(ValueError, match="cannot learn from minibatches"):
        inference.fit(model, guides.build("local", model, x), x, steps=2, batch_size=4, **FIT)
    with pytest.raises(ValueError, match="of the method 'map' alone"):
        inference.fit(model, guides.build("amortized", model), x, steps=2, batch_size=4, dynamics={"steps": 3}, progress=False)
    counts = zoo.build("poisson", (1, 2, 2), latents=3)
    with pytest.raises(ValueError, match="latents that climb a gradient; discrete here are z"):
        inference.fit(counts, None, x.float(), steps=2, batch_size=4, **FIT)
    hidden = curved(hidden=4, activation="identity")
    with pytest.raises(ValueError, match="layers of its own"):
        inference.fit(hidden, None, x, steps=2, batch_size=4, dynamics={"rule": "local"}, **FIT)
    with pytest.raises(TypeError, match="local learning rules are of chains"):
        plain = zoo.build("gaussian", (1, 2, 2), latents=2).double()
        inference.fit(plain, None, x, steps=2, batch_size=4, dynamics={"rule": "local"}, **FIT)


def test_what_stands_in_for_a_guide_passes_its_temperature_on():
    model, x = curved(), random(6, 1, 2, 2)
    guide = guides.build("amortized", model).double()
    learner, alone = learner_of(model, x, guide), learner_of(model, x)
    learner.temperature, alone.temperature = 0.5, 0.5
    assert guide.temperature == 0.5 and learner.temperature == 0.5 and alone.temperature == 0.0
    assert isinstance(learner, nn.Module) and set(dict(learner.named_parameters())) == {f"guide.{n}" for n, _ in guide.named_parameters()}


@pytest.mark.parametrize(("options", "words"), [
    ({"clamped": {"z2": torch.zeros(12, 3)}, "guided": True}, "a guide infers all latents of a model, of which one is clamped"),
    ({"dynamics": {"iterations": 3}}, "the method 'map' has no iterations; its dynamics accept: clamped, steps, lr"),
    ({"particles": 5}, "the method 'map' has no particles"),
    ({"dynamics": {"rule": "local"}, "built": {"precision": "full,fixed"}}, "correlations of noise have no local rule"),
    ({"built": {"levels": (8, 3), "learn_scale": "image", "floor": 0.0}}, "the learned scale of x has no floor")],
    ids=lambda value: str(value)[:40])
def test_what_cannot_be_learned_is_refused(options, words):
    options = dict(options)
    model = zoo.build("predictive_coding", (1, 2, 2), **{"levels": (4, 3)} | options.pop("built", {}))
    guide = guides.build("amortized", model) if options.pop("guided", False) else None
    with pytest.raises(ValueError, match=words):
        inference.fit(model, guide, random(12, 1, 2, 2), steps=1, **FIT, **options)


def test_fewer_images_than_a_batch_and_laws_without_a_mean():
    model = zoo.build("predictive_coding", (1, 2, 2), levels=(4, 3), family=(StudentT(1.0), StudentT(1.0)))
    history = inference.fit(model, None, random(12, 1, 2, 2).float(), steps=3, dynamics={"steps": 2}, **FIT)
    assert all(math.isfinite(value) for value in history.column("log_joint"))


def test_scales_that_a_model_bounds_by_itself_are_floors():
    flow = zoo.build("cnvae_maps_s", (2, 17, 17))
    assert without_floor(flow, random(2, 2, 17, 17)) == [] and min(flow.floors.values()) == 0.0
    temporal = zoo.build("temporal", (4, 1, 2, 2), units=2, learn_state_scale=True)
    assert without_floor(temporal, random(2, 4, 1, 2, 2)) == []
    assert without_floor(zoo.build("gaussian", (1, 2, 2), latents=8, learn_scale="image"), random(2, 1, 2, 2)) == ["x"]

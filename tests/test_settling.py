"""Beliefs and errors while latents settle, against the equations of predictive coding and what the method 'map' comes to."""

from __future__ import annotations

import math

import pytest
import torch

import guides
import inference
import zoo
from inference.methods.amortized import means
from inference.settling import settling

DOUBLE = torch.float64


def images(n=5, seed=0):
    return torch.randn(n, 1, 3, 4, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def network(levels=(5, 4, 3), seed=0, **options):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = zoo.build("predictive_coding", event_shape=(1, 3, 4), levels=levels,
                          **{"activation": "tanh", "level_scale": 0.7, "scale": 0.5} | options)
    return model.double()


def test_energies_are_those_of_the_sites_by_hand():
    model, x = network(levels=(5, 4), level_scale=(0.7, 1.3)), images()
    told = settling(model, x, steps=30)
    assert list(told.energy) == ["z2", "z1", "x"] and all(value.shape == (len(told.step), 5) for value in told.energy.values())
    scales = {"z2": 1.3, "z1": 0.7, "x": 0.5}
    for name, energy in told.energy.items():
        value = told.beliefs[name] if name in told.beliefs else x.expand_as(told.predictions["x"])
        error = (value - told.predictions[name]).flatten(2)
        byhand = 0.5 * (error / scales[name]).square().sum(-1) + error.shape[-1] * math.log(scales[name] * math.sqrt(2 * math.pi))
        torch.testing.assert_close(energy, byhand)
        torch.testing.assert_close(told.errors[name].flatten(2), error / scales[name] ** 2)
        torch.testing.assert_close(told.error[name], (error / scales[name] ** 2).norm(dim=-1))
    torch.testing.assert_close(told.predictions["z1"], torch.tanh(told.beliefs["z2"]) @ model.maps[1].weight.T + model.maps[1].bias)


def test_they_sum_to_the_log_joint():
    model, x = network(), images()
    told = settling(model, x, steps=40, keep=5)
    for at in (0, 7, -1):
        joint = inference.log_joint(model, {name: values[at] for name, values in told.beliefs.items()}, x)
        torch.testing.assert_close(told.log_joint[at], joint.detach())


def test_they_never_rise_under_small_gradient_steps_and_end_at_a_fixed_point():
    model, x = network(), images()
    told = settling(model, x, steps=1000, lr=0.05)
    assert (told.log_joint.diff(dim=0) > -1e-10).all() and (told.log_joint[-1] > told.log_joint[0] + 1.0).all()
    assert told.slope[0].min() > 1.0 and told.slope[-1].max() < 1e-6
    # There, what comes up to a level is its own error: J' of the map below, whose input is tanh of the level.
    for level, below in ((1, "x"), (2, "z1"), (3, "z2")):
        z, error = told.beliefs[f"z{level}"][-1], told.errors[below][-1].flatten(1)
        up = (error @ model.maps[level - 1].weight) * (1.0 - torch.tanh(z).square())
        torch.testing.assert_close(up, told.errors[f"z{level}"][-1], atol=1e-6, rtol=0.0)
        assert up.norm() > 0.1


@pytest.mark.parametrize("space", ["states", "errors"])
@pytest.mark.parametrize(("optimizer", "lr"), [("gradient", 0.01), ("adam", None)])
def test_it_is_the_way_of_the_method_map(space, optimizer, lr):
    model, x = network(), images()
    told = settling(model, x, steps=25, space=space, optimizer=optimizer, lr=lr, keep=9)
    posterior = inference.infer(model, x, "map", steps=25, space=space, optimizer=optimizer, **({} if lr is None else {"lr": lr}))
    assert len(told) == 25 and set(told.beliefs) == set(posterior.samples)
    for name, values in told.beliefs.items():
        assert values.shape[1] == 5
        torch.testing.assert_close(values[-1], posterior.samples[name][0, 0])
    torch.testing.assert_close(told.log_joint[-1], posterior.stats["log_joint"])
    torch.testing.assert_close(told.slope[-1], posterior.stats["slope"])


def test_errors_move_all_levels_at_once_and_end_at_the_same_mode():
    model, x = network(activation="identity"), images()
    states, errors = (settling(model, x, steps=250, optimizer="adam", space=space) for space in ("states", "errors"))
    torch.testing.assert_close(states.log_joint[-1], errors.log_joint[-1])
    torch.testing.assert_close(states.beliefs["z3"][-1], errors.beliefs["z3"][-1], atol=1e-4, rtol=0.0)
    assert (states.beliefs["z3"][5] - errors.beliefs["z3"][5]).abs().max() > 1e-2
    states, errors = (settling(model, x, steps=1, space=space) for space in ("states", "errors"))
    # From the prior's means, where all errors but the image's are 0, one step moves z1 alone, or the errors of every level.
    assert states.error["z3"][1].max() == 0.0 and states.error["z1"][1].min() > 0.0
    assert errors.error["z3"][1].min() > 0.0


def test_it_looks_often_at_first_and_keeps_some_images():
    told = settling(network(), images(), steps=100, keep=2)
    step = told.step.tolist()
    assert step[:17] == list(range(17)) and step[-1] == 100 and len(step) < 50 and step == sorted(set(step))
    assert {values.shape[:2] for part in (told.beliefs, told.errors, told.predictions) for values in part.values()} == {(len(step), 2)}
    assert told.errors["x"].shape == (len(step), 2, 1, 3, 4) and told.slope.shape == (len(step), 5)
    assert (told.seconds.diff() >= 0).all() and told.seconds.shape == told.step.shape


def test_it_starts_at_the_prior_or_at_the_guide():
    model, x = network(), images()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        guide = guides.build("amortized", model, x).double()
    assert settling(model, x, steps=1).beliefs["z3"][0].abs().max() == 0.0
    told = settling(model, x, steps=1, start="guide", guide=guide)
    for name, mean in means(guide, x).samples.items():
        torch.testing.assert_close(told.beliefs[name][0], mean[0, 0])
        assert told.beliefs[name][0].abs().max() > 1e-3


def test_it_leaves_the_model_and_the_generator_alone(unchanged_generator):
    model, x = network(), images()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with unchanged_generator():
        settling(model, x, steps=3)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


@pytest.mark.parametrize(("options", "message"), [
    ({"space": "thoughts"}, "space must be 'states' or 'errors'"),
    ({"start": "above"}, "start must be"),
    ({"start": "guide"}, "needs a guide"),
    ({"optimizer": "newton"}, "unknown optimizer 'newton'"),
    ({"steps": -1}, "steps must not be negative"),
    ({"lr": 0.0}, "lr positive"),
])
def test_bad_settings_are_told(options, message):
    with pytest.raises(ValueError, match=message):
        settling(network(), images(), **options)

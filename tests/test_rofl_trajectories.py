"""Optic flow in time: velocities against their process and law, places against the equation of motion, frames against single ones."""

import math
import sys

import numpy as np
import pytest
import rofl_oracle as oracle
import torch
from scipy import special, stats
from scipy.integrate import solve_ivp

import zoo
from zoo.data.rofl import World, accepted, causes_of, factors, generate, render, sample, world_position
from zoo.data.rofl.sequences import rofl_sequences
from zoo.data.rofl.trajectories import trajectories

CATEGORIES = ["fixate-0", "transl-0", "obj-1", "fixate-1", "transl-2"]
FEW = {"n_train": 12, "n_validation": 10, "n_test": 8, "frames": 5}
STEADY = {"time_constant": 1e20}  # velocities that do not change


def flat(causes):
    return {name: value.flatten(0, 1) for name, value in causes.items()}


# Velocities


def test_velocities_have_the_law_of_single_frames_at_every_frame():
    causes = trajectories(World("transl-0"), 4000, frames=6, time_constant=3.0, seed=1)
    static = sample(World("transl-0"), 4000, generator=torch.Generator().manual_seed(2))
    for frame in (0, 3, 5):
        velocity = causes["self_velocity"][:, frame].double()
        speed = velocity.norm(dim=-1)
        assert speed.min() >= 0.01 - 1e-6 and speed.max() <= 1 + 1e-6
        assert stats.kstest(speed, stats.uniform(0.01, 0.99).cdf).pvalue > 1e-3
        assert stats.kstest(velocity[:, 2] / speed, stats.uniform(-1, 2).cdf).pvalue > 1e-3
        assert stats.kstest(torch.atan2(velocity[:, 1], velocity[:, 0]), stats.uniform(-math.pi, 2 * math.pi).cdf).pvalue > 1e-3
        assert stats.ks_2samp(causes["fixation"][:, frame, 0], static["fixation"][:, 0]).pvalue > 1e-3
    assert torch.equal(causes["fixation"], causes["fixation"][:, :1].expand(-1, 6, -1)), "who does not track keeps the gaze"


@pytest.mark.parametrize("time_constant", [2.0, 30.0])
def test_velocities_change_as_the_process_does(time_constant):
    velocity = trajectories(World("transl-0"), 4000, frames=8, time_constant=time_constant, seed=1, dtype=torch.float64)["self_velocity"]
    speed = velocity.norm(dim=-1, keepdim=True)
    behind = velocity / speed * np.sqrt(special.chdtri(3, 1 - (speed.numpy() - 0.01) / 0.99))  # the inverse of χ²'s distribution function
    for k in (1, 3, 7):
        correlation = (behind[:, k:] * behind[:, :-k]).mean().item()
        assert correlation == pytest.approx(math.exp(-k / time_constant), abs=0.03)
    assert behind.square().mean().item() == pytest.approx(1.0, abs=0.03)


# Places


@pytest.mark.parametrize("category", ["obj-2", "transl-1", "fixate-1"])
def test_places_solve_the_equation_of_motion(category):
    frames, dt = 7, 0.05
    causes = trajectories(World(category), 3, frames=frames, dt=dt, time_constant=3.0, seed=2, dtype=torch.float64)
    eye = causes.get("self_velocity", torch.zeros(3, frames, 3, dtype=torch.float64)).numpy()
    world = world_position(causes).numpy()
    for i in range(3):
        for disc in range(world.shape[2]):
            place = world[i, 0, disc]
            for t in range(frames - 1):
                u = causes["object_velocity"][i, t:t + 2, disc].mean(0).numpy()
                v = eye[i, t:t + 2].mean(0)
                place = solve_ivp(lambda _, x, u=u, v=v: u - v + v[2] * x, (0, dt), place, rtol=1e-10, atol=1e-12).y[:, -1]
                np.testing.assert_allclose(world[i, t + 1, disc], place, atol=1e-9)


def test_the_gaze_tracks_a_point_that_rests_on_the_wall():
    """In metres: an eye that starts 1 m from the wall at a constant speed in units of its distance comes exponentially nearer."""
    dt, frames = 0.04, 9
    causes = trajectories(World("fixate-0"), 200, frames=frames, dt=dt, seed=3, dtype=torch.float64, **STEADY)
    v, gaze = causes["self_velocity"][:, 0], causes["fixation"]
    torch.testing.assert_close(causes["self_velocity"], v.unsqueeze(1).expand(-1, frames, -1), atol=1e-9, rtol=0)
    t = dt * torch.arange(frames, dtype=torch.float64)
    distance = torch.exp(-v[:, 2:] * t)
    travelled = v[:, None, :2] * ((1 - distance) / v[:, 2:])[..., None]
    torch.testing.assert_close(gaze * distance[..., None] + travelled, gaze[:, :1].expand_as(gaze), atol=1e-6, rtol=0)
    assert (gaze[:, -1] - gaze[:, 0]).norm(dim=-1).median() > 0.05


@pytest.mark.parametrize("category", ["obj-1", "transl-1"])
def test_what_does_not_turn_moves_over_the_retina_as_the_flow_says(category):
    """The disc's centre, as the frames before and after have it, against the flow there by the oracle's way from velocity to angles."""
    dt = 1e-3
    causes = trajectories(World(category), 40, frames=3, dt=dt, seed=4, dtype=torch.float64, **STEADY)
    moved = (causes["object_position"][:, 2, 0, :2] - causes["object_position"][:, 0, 0, :2]) / (2 * dt)
    for i in range(40):
        fixation, place = causes["fixation"][i, 1].numpy(), causes["object_position"][i, 1, 0].numpy()
        turned = oracle.gaze_rotation(fixation)
        x = turned.T @ oracle.disc_centre(fixation, place)
        eye = causes["self_velocity"][i, 1].numpy() if "self_velocity" in causes else 0.0
        w = turned.T @ (causes["object_velocity"][i, 1, 0].numpy() - eye)
        expected = [(w[0] * x[2] - w[2] * x[0]) / (x[0] ** 2 + x[2] ** 2), (w[1] * x[2] - w[2] * x[1]) / (x[1] ** 2 + x[2] ** 2)]
        np.testing.assert_allclose(moved[i], expected, atol=1e-4 * (1 + np.abs(expected).max()) ** 3)


def test_flow_fills_the_frames_of_a_moving_disc():
    """Where the disc's place moves, its pixels move: the seen disc's centroid follows the angles."""
    world = World("obj-1", resolution=33)
    causes = trajectories(world, 200, frames=16, dt=0.03, seed=5, **STEADY)
    x = render(flat(causes), world).unflatten(0, (200, 16)).norm(dim=2)
    covered = (x > 0).float()
    columns = torch.linspace(-math.pi / 4, math.pi / 4, 33)
    centroid = (covered.sum(-2) * columns).sum(-1) / covered.sum((-2, -1))
    inner = (causes["object_position"][:, :, 0, :2].abs() < 0.35).all(-1).all(-1)
    assert inner.sum() > 10
    torch.testing.assert_close(centroid[inner], causes["object_position"][inner, :, 0, 0], atol=0.12, rtol=0)
    follows = np.corrcoef(centroid[inner].diff(dim=1).sum(1), causes["object_position"][inner, :, 0, 0].diff(dim=1).sum(1))[0, 1]
    assert follows > 0.97


def test_the_middle_frame_is_drawn_and_the_others_follow(monkeypatch):
    module = sys.modules[trajectories.__module__]
    monkeypatch.setattr(module, "_in_range", lambda causes, world: torch.ones(len(causes["fixation"]), dtype=torch.bool))
    outside = trajectories(World("fixate-0"), 300, frames=9, dt=0.1)["fixation"].abs().sum(-1) >= 1.0
    assert not outside[:, 4].any() and outside[:, 0].any() and outside[:, 8].any()


# Every frame


@pytest.mark.parametrize("category", CATEGORIES)
def test_every_frame_is_one_that_single_frames_could_be(category):
    world = World(category)
    causes = trajectories(world, 60, frames=12, seed=6)
    assert {name: tuple(value.shape[2:]) for name, value in causes.items()} == zoo.data.rofl.cause_shapes(world)
    assert all(value.shape[:2] == (60, 12) for value in causes.values())
    assert (causes["fixation"].abs().sum(-1) < 1).all()
    assert accepted(flat(causes), world).all()
    if world.objects:
        depth, angles = causes["object_position"][..., 2], causes["object_position"][..., :2].abs()
        assert depth.min() >= 0.5 and depth.max() <= 1.0 and angles.max() <= math.pi / 4


def test_frames_have_nearly_the_laws_of_single_frames():
    world = World("fixate-1")
    causes, static = trajectories(world, 2000, seed=7), generate(world, 8000, seed=8)
    for name, value in causes.items():
        spread, wanted = value.flatten(0, 1).std(0), static[name].std(0)
        assert ((spread / wanted - 1).abs() < 0.14).all() and value.flatten(0, 1)[:, ..., :2].mean(0).abs().max() < 0.06


# The data set


@pytest.mark.parametrize("category", CATEGORIES)
def test_frames_are_those_of_the_renderer_and_factors_those_of_the_frames(category):
    data = zoo.data.load(f"rofl_sequences/{category}", **FEW)
    world = World(category)
    assert data.name == f"rofl_sequences/{category}" and data.targets == world.cartesian_names
    for part, n in ((data.train, 12), (data.validation, 10), (data.test, 8)):
        assert part.x.shape == (n, 5, 2, 17, 17) and part.x.dtype == torch.float32
        tracks = {name.removesuffix("_track"): value for name, value in part.factors.items() if name.endswith("_track")}
        causes = causes_of(tracks, world)
        for frame in range(5):
            now = {name: value[:, frame].contiguous() for name, value in causes.items()}
            x = zoo.data.rofl.flow(now, world)
            near_a_rim = (part.x[:, frame] - x).abs() > 1e-4
            assert near_a_rim.double().mean() < 2e-4, "but for pixels within rounding of a rim"
            named = factors(now, world)
            for name in world.factor_names:
                torch.testing.assert_close(tracks[name][:, frame], named[name], atol=2e-5, rtol=1e-4)
        assert list(part.factors)[:len(world.factor_names)] == list(world.factor_names)
        assert all(torch.equal(part.factors[name], track[:, -1]) for name, track in tracks.items())


def test_the_seed_makes_the_data(unchanged_generator):
    with unchanged_generator():
        one, again, other = (rofl_sequences("fixate-1", **FEW, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.train.x, again.train.x) and torch.equal(one.test.x, again.test.x)
    assert not torch.equal(one.train.x, other.train.x)
    alike = rofl_sequences("transl-0", n_train=5, n_validation=5, n_test=5)
    assert not torch.equal(alike.train.x, alike.test.x) and not torch.equal(alike.validation.x, alike.test.x)


def test_noise_is_added_to_every_pixel():
    clear, noisy = (rofl_sequences("transl-0", **FEW | {"n_train": 60}, noise=noise) for noise in (0.0, 0.3))
    noise = (noisy.train.x - clear.train.x)
    assert noise.std().item() == pytest.approx(0.3, rel=0.01) and abs((noise[:, 1:] * noise[:, :-1]).mean()) < 2e-3
    assert torch.equal(noisy.train.factors["fix_x"], clear.train.factors["fix_x"]) and clear.noise == 0.1


@pytest.mark.parametrize(("category", "options", "message"), [
    ("fixate", {}, "unknown category 'fixate'"),
    ("pursuit-1", {}, "sequences of fixate-n, transl-n and obj-n, .*pursuit-1"),
    ("terrain-1", {}, "sequences of fixate-n, transl-n and obj-n"),
    ("fixate-0", {"frames": 1}, "frames must be a whole number of at least 2, not 1"),
    ("fixate-0", {"n_test": 0}, "n_test must be a whole number of at least 1, not 0"),
    ("fixate-0", {"dt": 0.0}, r"dt must be positive and finite \(seconds\), not 0.0"),
    ("fixate-0", {"time_constant": math.inf}, r"time_constant must be positive and finite \(frames\)"),
    ("fixate-0", {"noise": -1}, "noise must be a standard deviation"),
    ("obj-1", {"dt": 5.0, "n_train": 300}, "motions of obj-1 stay in range for 5 frames of 5 s"),
])
def test_bad_settings_are_refused(category, options, message):
    with pytest.raises(ValueError, match=message):
        rofl_sequences(category, **FEW | options)


@pytest.mark.parametrize("setting", ["grid", "residual"])
def test_worlds_in_which_nothing_follows_its_velocity_are_refused(setting):
    with pytest.raises(ValueError, match="without grid and residual"):
        trajectories(World("fixate-1", **{setting: True}), 5)

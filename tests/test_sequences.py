"""Sequences as data: paths of gaze against the stated process, interpolation against exact images, held-out pictures, models end to end."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage, stats

import guides
import inference
import zoo
from zoo.data import sequences
from zoo.data.base import Data, Dataset
from zoo.data.gaze import gaze
from zoo.data.ornstein_uhlenbeck import ornstein_uhlenbeck
from zoo.data.patches import TEST, TRAIN, photograph
from zoo.data.sequences import bilinear, moving_patches

SMALL = {"n_train": 60, "n_test": 40, "frames": 6, "size": 5}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def z_scored(picture):
    return (picture - picture.mean()) / picture.std()


def at_places(picture, places, size):
    """Patches by SciPy's interpolation, one after the other."""
    offsets = np.arange(size)
    rows, columns = places[:, 1, None, None] + offsets[:, None], places[:, 0, None, None] + offsets
    rows, columns = np.broadcast_arrays(rows, columns)
    return ndimage.map_coordinates(picture, [rows, columns], order=1)


@pytest.fixture
def pictures(monkeypatch):
    """Small pictures in the place of the photographs: smooth noise, of each name its own."""
    made = {name: ndimage.gaussian_filter(np.random.default_rng(i).standard_normal((30 + i, 41)), 2) for i, name in enumerate(TRAIN + TEST)}
    monkeypatch.setattr(sequences, "photograph", made.__getitem__)
    return {name: z_scored(picture) for name, picture in made.items()}


# Data


def test_data_takes_sequences():
    x = torch.arange(4 * 3 * 2 * 5 * 6.0).view(4, 3, 2, 5, 6)
    data = Data(x, factors={"speed": torch.arange(4.0), "speed_track": torch.arange(12.0).view(4, 3)})
    assert len(data) == 4 and data.event_shape == (3, 2, 5, 6)
    part = data[torch.tensor([2, 0])]
    assert torch.equal(part.x, x[[2, 0]]) and part.factors["speed_track"].tolist() == [[6, 7, 8], [0, 1, 2]]
    assert Dataset("d", data, part, "made").to("cpu").event_shape == (3, 2, 5, 6)


@pytest.mark.parametrize(("x", "options", "message"), [
    (torch.zeros(2, 3, 4), {}, r"sequences \(n, frames, channels, height, width\); not \(2, 3, 4\)"),
    (torch.zeros(1, 2, 3, 1, 4, 4), {}, r"not \(1, 2, 3, 1, 4, 4\)"),
    (torch.zeros(0, 3, 1, 4, 4), {}, "there are no images"),
    (torch.zeros(2, 3, 1, 4, 4).long(), {}, "floating-point"),
    (torch.zeros(2, 3, 1, 4, 4).index_fill(0, torch.tensor([1]), torch.nan), {}, "image 1 has values that are not finite"),
    (torch.zeros(2, 3, 1, 4, 4), {"factors": {"speed": torch.zeros(3)}}, r"speed has shape \(3,\) for 2 images"),
])
def test_data_refuses(x, options, message):
    with pytest.raises(ValueError, match=message):
        Data(x, **options)


def test_images_and_sequences_do_not_mix():
    with pytest.raises(ValueError, match=r"\(2, 1, 4, 4\) and held-out images \(1, 4, 4\) differ"):
        Dataset("d", Data(torch.zeros(3, 2, 1, 4, 4)), Data(torch.zeros(3, 1, 4, 4)), "made")


# The process


@pytest.mark.parametrize("time_constant", [0.5, 3.0, 20.0])
def test_the_process_is_stationary_with_the_stated_autocorrelation(time_constant):
    path = ornstein_uhlenbeck(20_000, 8, (2,), time_constant, generator=generator(), dtype=torch.float64)
    assert path.shape == (20_000, 8, 2)
    columns = path.flatten(1)
    lags = (torch.arange(8)[:, None] - torch.arange(8)).abs().double()
    expected = torch.kron(torch.exp(-lags / time_constant), torch.eye(2, dtype=torch.float64))
    torch.testing.assert_close(columns.T @ columns / len(columns), expected, atol=0.05, rtol=0)  # 5 standard errors of √(2 / 20,000)
    assert columns.mean(0).abs().max() < 0.04


def test_an_infinite_time_constant_keeps_values():
    path = ornstein_uhlenbeck(3, 5, (), math.inf, generator=generator())
    assert torch.equal(path, path[:, :1].expand(3, 5)) and path.std() > 0


@pytest.mark.parametrize(("arguments", "message"), [
    ((0, 5, (), 1.0), "n must be a whole number of at least 1, not 0"),
    ((3, 2.5, (), 1.0), "frames must be a whole number of at least 1, not 2.5"),
    ((3, 5, (), 0.0), "time constant must be positive"),
    ((3, 5, (), math.nan), "time constant must be positive"),
])
def test_the_process_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        ornstein_uhlenbeck(*arguments)


# Gaze


def test_the_gaze_moves_apart_as_an_integrated_velocity_does():
    speed, persistence = 0.7, 4.0
    places, drift = gaze(20_000, 25, (1e6, 1e6), speed=speed, persistence=persistence, generator=generator())
    torch.testing.assert_close(places.diff(dim=1), drift, atol=1e-8, rtol=0)
    assert drift.square().sum(-1).mean().sqrt().item() == pytest.approx(speed, rel=0.01)
    kept = math.exp(-1 / persistence)
    for k in (1, 4, 24):
        apart = (places[:, k] - places[:, 0]).square().sum(-1)
        expected = speed**2 * (k + 2 * sum((k - j) * kept**j for j in range(1, k)))
        assert apart.mean().item() == pytest.approx(expected, rel=0.04), "4 standard errors of the mean of an exponential law"


def test_the_gaze_is_reflected_at_the_border_and_anywhere_in_the_field():
    room = (9.0, 5.0)
    straight, moves = gaze(4000, 40, (1e9, 1e9), speed=0.8, generator=generator(1))
    places, drift = gaze(4000, 40, room, speed=0.8, generator=generator(1))
    for axis, extent in enumerate(room):
        assert places[..., axis].min() >= 0 and places[..., axis].max() <= extent
        for frame in (0, 20, 39):
            assert stats.kstest(places[:, frame, axis], stats.uniform(0, extent).cdf).pvalue > 1e-3
    steps = places.diff(dim=1).abs()
    assert torch.equal(drift.abs(), steps)
    assert (steps <= moves.abs() + 1e-6).all(), "no step is longer than without a border: nothing wraps around"
    same = (steps - moves.abs()).abs() < 1e-6
    assert 0.8 < same.double().mean() < 0.999, "but for those that meet it, they are as long"


def test_saccades_take_the_gaze_anywhere_and_are_no_drift():
    places, drift = gaze(3000, 12, (50.0, 80.0), speed=0.1, saccades=0.25, generator=generator())
    jumped = (drift == 0.0).all(-1)
    assert jumped.double().mean().item() == pytest.approx(0.25, abs=0.012)
    landed = places[:, 1:][jumped]
    for axis, extent in enumerate((50, 80)):
        assert stats.kstest(landed[:, axis], stats.uniform(0, extent).cdf).pvalue > 1e-3
    left = places[:, :-1][jumped]
    for before in (left, (left - torch.tensor([25.0, 40.0])).abs()):
        assert abs(np.corrcoef(before[:, 1], landed[:, 1])[0, 1]) < 0.05, "a saccade goes anywhere, wherever it comes from"
    assert places.diff(dim=1)[~jumped].abs().max() < 0.5


@pytest.mark.parametrize(("options", "message"), [
    ({"speed": -1.0}, "speed must be at least 0"), ({"speed": math.inf}, "speed must be"), ({"speed": "fast"}, "speed must be"),
    ({"persistence": 0}, "persistence must be positive"), ({"saccades": 1.5}, "saccades must be a probability"),
])
def test_gaze_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        gaze(2, 3, (10.0, 10.0), **options)
    with pytest.raises(ValueError, match="positive, finite extents"):
        gaze(2, 3, (10.0, 0.0))


# Interpolation


def test_a_ramp_is_shifted_exactly():
    y, x = torch.meshgrid(torch.arange(9.0, dtype=torch.float64), torch.arange(12.0, dtype=torch.float64), indexing="ij")
    places = torch.tensor([[0.0, 0.0], [2.25, 3.5], [8.0, 0.125], [0.7, 5.0], [8.0, 5.0]], dtype=torch.float64)
    patches = bilinear(1 + 2 * x - 3 * y + 0.5 * x * y, places, 4)
    for patch, (left, top) in zip(patches, places, strict=True):
        right, down = x[:4, :4] + left, y[:4, :4] + top
        torch.testing.assert_close(patch, 1 + 2 * right - 3 * down + 0.5 * right * down, atol=1e-12, rtol=0)


def test_whole_positions_are_cut_as_they_are_and_others_interpolated():
    image = torch.randn(10, 14, generator=generator(), dtype=torch.float64)
    places = torch.tensor([[[3, 2], [0, 0]], [[10, 6], [9, 1]]], dtype=torch.float64)
    patches = bilinear(image, places, 4)
    assert torch.equal(patches[0, 0], image[2:6, 3:7]) and torch.equal(patches[1, 0], image[6:10, 10:14])
    places, _ = gaze(20, 3, (10.0, 6.0), generator=generator())
    expected = at_places(image.numpy(), places.flatten(0, 1).numpy(), 4)
    np.testing.assert_allclose(bilinear(image, places, 4).flatten(0, 1), expected, atol=1e-12)


@pytest.mark.parametrize("place", [(-0.01, 0.0), (0.0, -1.0), (6.01, 0.0), (0.0, 4.5), (math.nan, 0.0)])
def test_nothing_is_seen_beyond_the_border(place):
    with pytest.raises(ValueError, match="beyond the border of an image of 10 × 8"):
        bilinear(torch.zeros(8, 10), torch.tensor([place]), 4)


def test_a_patch_must_have_room_to_move():
    with pytest.raises(ValueError, match="cannot move in an image of 10 × 4"):
        bilinear(torch.zeros(4, 10), torch.zeros(1, 2), 4)


# Moving patches


@pytest.mark.parametrize("whitened", [False, True])
def test_frames_are_what_the_gaze_sees_of_held_out_pictures(pictures, whitened):
    if whitened:
        pictures = {name: z_scored(sequences.whiten(picture)[8:-8, 8:-8]) for name, picture in pictures.items()}
    data = moving_patches(**SMALL, noise=0.0, saccades=0.1, whitened=whitened)
    for part, names in ((data.train, TRAIN), (data.test, TEST)):
        whose = part.factors["photograph"]
        counts = torch.bincount(whose, minlength=len(names))
        assert counts.max() - counts.min() <= 1
        tracks = torch.stack([part.factors["x_track"], part.factors["y_track"]], -1).double()
        for i, name in enumerate(names):
            expected = at_places(pictures[name], tracks[whose == i].flatten(0, 1).numpy(), SMALL["size"])
            np.testing.assert_allclose(part.x[whose == i].flatten(0, 2), expected, atol=1e-4)  # tracks are float32


def test_velocities_are_those_of_the_tracks_without_saccades(pictures):
    data = moving_patches(**SMALL, speed=0.3)
    for name in "xy":
        steps = data.train.factors[f"{name}_track"].diff(dim=1)
        torch.testing.assert_close(data.train.factors[f"v{name}"], steps.mean(1), atol=1e-5, rtol=0)
    jumpy = moving_patches(n_train=400, n_test=1, size=5, speed=0.3, saccades=0.3).train.factors
    steps = torch.stack([jumpy["x_track"], jumpy["y_track"]], -1).diff(dim=1)
    drifts = (steps.abs() < 2).all(-1, keepdim=True)  # a saccade that short is rare
    assert drifts.double().mean().item() == pytest.approx(0.7, abs=0.05)
    error = torch.stack([jumpy["vx"], jumpy["vy"]], -1) - (drifts * steps).sum(1) / drifts.sum(1)
    assert (error.abs() < 1e-4).double().mean() > 0.9
    assert moving_patches(**SMALL, speed=0.0).train.factors["vx"].abs().max() == 0.0


def test_patches_are_cut_up_to_the_borders(pictures):
    data = moving_patches(n_train=800, n_test=1, frames=8, size=5, saccades=1.0).train
    for i, name in enumerate(TRAIN):
        mine = data.factors["photograph"] == i
        for track, side in (("x_track", pictures[name].shape[1]), ("y_track", pictures[name].shape[0])):
            places = data.factors[track][mine]
            assert places.min() < 0.5 and places.max() > side - 5.5


def test_the_seed_makes_the_data_and_the_test_part_does_not_depend_on_the_training_part(pictures, unchanged_generator):
    with unchanged_generator():
        one, again, other = (moving_patches(**SMALL, seed=seed) for seed in (3, 3, 4))
        larger = moving_patches(**SMALL | {"n_train": 90}, seed=3)
    assert torch.equal(one.train.x, again.train.x) and torch.equal(one.test.x, again.test.x) and torch.equal(one.test.x, larger.test.x)
    assert not torch.equal(one.train.x, other.train.x)
    assert one.train.x.shape == (60, 6, 1, 5, 5) and one.event_shape == (6, 1, 5, 5) and one.train.x.dtype == torch.float32


def test_noise_is_independent_and_of_the_stated_size(pictures):
    clear, noisy = (moving_patches(n_train=400, n_test=1, frames=4, size=6, noise=noise).train.x for noise in (0.0, 0.5))
    noise = noisy - clear
    assert noise.std().item() == pytest.approx(0.5, rel=0.01)
    pixels = noise.flatten(1).double()
    covariance = pixels.T @ pixels / len(pixels)
    off = covariance - torch.diag(covariance.diagonal())
    assert off.abs().max() < 0.25 * 6 / math.sqrt(len(pixels))


def test_of_photographs_neighbouring_frames_are_alike():
    data = zoo.data.load("moving_patches", n_train=160, n_test=30, noise=0.0)
    x = data.train.x
    assert x.shape == (160, 16, 1, 12, 12) and data.name == "moving_patches" and set(TRAIN).isdisjoint(TEST)
    alike = [((x[:, :-k] * x[:, k:]).mean() / x.square().mean()).item() for k in (1, 4, 12)]
    assert alike[0] > 0.95 and alike[0] > alike[1] > alike[2]
    cat = z_scored(photograph("cat"))
    mine = data.test.factors["photograph"] == TEST.index("cat")
    places = torch.stack([data.test.factors["x_track"][mine], data.test.factors["y_track"][mine]], -1)
    np.testing.assert_allclose(data.test.x[mine].flatten(0, 2), at_places(cat, places.flatten(0, 1).double().numpy(), 12), atol=1e-3)


@pytest.mark.parametrize(("options", "message"), [
    ({"n_train": 0}, "n_train must be a whole number of at least 1, not 0"),
    ({"n_test": 1.5}, "n_test must be a whole number"),
    ({"frames": 1}, "frames must be a whole number of at least 2, not 1"),
    ({"size": True}, "size must be a whole number of at least 2"),
    ({"size": 30}, r"30 × 30 pixels cannot move in a photograph of 41 × 30"),
    ({"noise": -0.1}, "noise must be a standard deviation"),
    ({"speed": math.nan}, "speed must be at least 0 and finite"),
    ({"persistence": -2}, "persistence must be positive"),
    ({"saccades": -0.5}, "saccades must be a probability"),
])
def test_moving_patches_refuse(pictures, options, message):
    with pytest.raises(ValueError, match=message):
        moving_patches(**SMALL | options)


# Models


@pytest.mark.parametrize(("name", "encoder"), [("gaussian", "lin"), ("poisson", "mlp")])
def test_one_layer_models_learn_sequences(pictures, name, encoder):
    data = moving_patches(n_train=400, n_test=20, frames=4, size=4)
    model = zoo.build(name, data, latents=8, decoder="lin", seed=0)
    guide = guides.build("amortized", model, encoder=encoder, seed=0)
    x = data.test.x
    assert model.event_shape == (4, 1, 4, 4) and tuple(model.decode({"z": torch.zeros(3, 8)}).shape) == (3, 4, 1, 4, 4)

    def elbo():
        return inference.score(model, x, inference.infer(model, x, guide=guide, seed=0)).values["elbo"]

    before = elbo()
    inference.fit(model, guide, data, steps=60, batch_size=100, lr=1e-2, progress=False)
    assert elbo() > before + 3.0

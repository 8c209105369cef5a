"""Three patches side by side, and bars: places, filters and windows against other ways to the same numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import zoo
from zoo.data import three_patches as module
from zoo.data.patches import TEST, TRAIN
from zoo.data.three_patches import bars, difference_of_gaussians, three_patches
from zoo.data.whiten import whiten


@pytest.fixture(autouse=True)
def small_photographs(monkeypatch):
    """Of noise with a slow ramp; half of each is nearly flat."""
    def picture(name):
        image = np.random.default_rng([*TRAIN, *TEST].index(name)).normal(size=(70, 90))
        return np.where(np.arange(90) < 45, 0.02, 1.0) * image + 0.01 * np.arange(90)

    monkeypatch.setattr(module, "photograph", picture)
    return picture


def smoothed(image, sigma):
    """By a sampled Gaussian that wraps around, row by row and column by column."""
    for axis in (0, 1):
        at = np.arange(image.shape[axis])
        at = np.minimum(at, image.shape[axis] - at)
        kernel = np.exp(-0.5 * np.square(at / sigma))
        kernel /= kernel.sum()
        image = sum(weight * np.roll(image, shift, axis) for shift, weight in enumerate(kernel))
    return image


def test_a_difference_of_gaussians_is_that_of_two_convolutions():
    image = np.random.default_rng(0).normal(size=(40, 60))
    np.testing.assert_allclose(difference_of_gaussians(image), smoothed(image, 1.3) - smoothed(image, 2.6), atol=1e-3)
    np.testing.assert_allclose(difference_of_gaussians(image, 2.0, 5.0), smoothed(image, 2.0) - smoothed(image, 5.0), atol=1e-3)
    np.testing.assert_allclose(difference_of_gaussians(np.full((9, 9), 3.0)), 0.0, atol=1e-12)


@pytest.mark.parametrize("filtering", ["whiten", "dog", "none"])
def test_patches_are_cut_from_standardized_areas_of_filtered_photographs(small_photographs, filtering):
    data = three_patches(16, 6, size=8, offset=3, filtering=filtering)
    assert data.event_shape == (3, 8, 8) and len(data.train) == 16 and len(data.test) == 6 and data.train.x.dtype == torch.float32
    for part, names in ((data.train, TRAIN), (data.test, TEST)):
        found = []
        for name in names:
            image = small_photographs(name)
            image = (image - image.mean()) / image.std()
            image = {"whiten": whiten, "none": np.array, "dog": lambda i: smoothed(i, 1.3) - smoothed(i, 2.6)}[filtering](image)[8:-8, 8:-8]
            areas = np.lib.stride_tricks.sliding_window_view(image, (8, 14)).reshape(-1, 8, 14)
            areas = areas[areas.std((1, 2)) > 0.5 * image.std() * 0.999]
            areas = (areas - areas.mean((1, 2), keepdims=True)) / areas.std((1, 2), keepdims=True)
            triples = np.stack([areas[:, :, :8], areas[:, :, 3:11], areas[:, :, 6:]], 1)
            found.append([int(np.abs(triples - x).max((1, 2, 3)).min() < 0.02) for x in part.x.numpy()])
        assert (np.sum(found, 0) == 1).all(), "each triple is of exactly one photograph"
        assert set(np.sum(found, 1)) == {len(part) // len(names)}, "as many of each"


def test_a_window_weights_every_patch():
    plain, windowed = (three_patches(8, 3, window=window).train.x for window in (None, 0.4))
    down, across = np.mgrid[:16, :16] - 7.5
    np.testing.assert_allclose(windowed, plain * np.exp(-(down**2 + across**2) / (2 * 3.2**2)), rtol=1e-4, atol=1e-6)


def test_the_seed_chooses_and_no_part_depends_on_the_other():
    one, more, other = three_patches(16, 3), three_patches(16, 9), three_patches(16, 3, seed=1)
    assert torch.equal(one.train.x, more.train.x) and not torch.equal(one.train.x, other.train.x)
    assert torch.equal(one.train.x, zoo.data.load("three_patches", n_train=16, n_test=3).train.x)


def test_bars_lengthen_in_the_middle():
    for filtering, lit in (("none", 1.0), ("dog", None)):
        x = bars([2, 6, 16, 26], filtering=filtering)
        assert x.shape == (4, 3, 16, 16)
        torch.testing.assert_close(x[:, 0], x[:, 2].flip(-1), atol=1e-5, rtol=0.0)
        torch.testing.assert_close(x, x.flip(-2), atol=1e-5, rtol=0.0)
        torch.testing.assert_close(x[:, 0, :, 5:], x[:, 1, :, :-5])
        if lit:
            assert [(row != 0).sum(-1).amax(-1).tolist() for row in x] == [[2, 2, 2], [6, 6, 6], [11, 16, 11], [16, 16, 16]]
            assert ((x != 0).sum(-2).amax(-1) == 2).all()
    x = bars([6], height=4, shift=-3, filtering="none")[0, 1]
    assert (x != 0).nonzero().amin(0).tolist() == [3, 5] and (x != 0).nonzero().amax(0).tolist() == [6, 10]


def test_bars_are_filtered_as_photographs_and_have_one_contrast():
    canvas = np.zeros((120, 130))
    canvas[59:61, 62:68] = canvas[59:61, 52:78] = 1.0
    whole = smoothed(canvas, 1.3) - smoothed(canvas, 2.6)
    unit = np.sqrt(np.square(whole[52:68, 52:78]).mean())
    canvas[:, :62] = canvas[:, 68:] = 0.0
    short = (smoothed(canvas, 1.3) - smoothed(canvas, 2.6))[52:68, 57:73] / unit
    x = bars([6, 26], filtering="dog", contrast=2.0)
    np.testing.assert_allclose(x[0, 1], 2.0 * short, atol=0.02)
    np.testing.assert_allclose(x[1, :, :, :], 2.0 * np.stack([whole[52:68, i:i + 16] for i in (52, 57, 62)]) / unit, atol=0.02)
    torch.testing.assert_close(bars([6], filtering="dog", contrast=-2.0)[0], -x[0])
    area = torch.cat([bars([26])[0, 0], bars([26])[0, 2, :, 6:]], 1)
    assert abs(area.square().mean().item() - 1.0) < 1e-5
    assert torch.allclose(bars([6], window=0.4)[0, 1, 7:9, 7:9], bars([6])[0, 1, 7:9, 7:9] * np.exp(-0.5 / (2 * 3.2**2)), rtol=1e-4)


@pytest.mark.parametrize(("make", "message"), [
    (lambda: three_patches(0), "n_train must be a whole number of at least 1, not 0"),
    (lambda: three_patches(5, 2.0), "n_test must be a whole number"),
    (lambda: three_patches(8, 3, filtering="gabor"), "filtering must be 'whiten', 'dog', 'none', not 'gabor'"),
    (lambda: three_patches(8, 3, window=0.0), "window must be positive"),
    (lambda: three_patches(8, 3, offset=17), "patches must be at least 2 pixels wide"),
    (lambda: three_patches(8, 3, size=60), "areas of 60 × 70 pixels do not fit into a photograph of 54 × 74"),
    (lambda: bars([7]), "lengths must be of 1 to 26 pixels"),
    (lambda: bars([]), "at least one"),
    (lambda: bars([28]), "lengths must be of 1 to 26 pixels"),
    (lambda: bars([6], shift=8), "no part of an area of 16"),
    (lambda: bars([6], contrast=0.0), "contrast must be finite and not 0"),
    (lambda: difference_of_gaussians(np.zeros(5)), "expected a grey image"),
    (lambda: difference_of_gaussians(np.zeros((5, 5)), 2.0, 1.0), "surround must be wider"),
])
def test_bad_settings_are_told(make, message):
    with pytest.raises(ValueError, match=message):
        make()

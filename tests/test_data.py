"""Data sets: whitening against the published gain, patches against an independent pipeline, the split, bad input."""

import numpy as np
import pytest
import torch

import zoo.data
from zoo.data import cutting
from zoo.data.patches import TEST, TRAIN, photograph
from zoo.data.whiten import frequency_response, whiten


def noise(height, width, seed=0):
    return np.random.default_rng(seed).standard_normal((height, width))


def gain(f, f0=0.4):
    """The published gain at radial frequency f (Olshausen & Field 1997)."""
    return f * np.exp(-((f / f0) ** 4))


def whitened(photograph, f0=0.4, border=8):
    """A z-scored photograph, whitened on a shifted grid: another way to the same numbers."""
    image = (photograph - photograph.mean()) / photograph.std()
    fy, fx = (np.arange(n) / n - (n // 2) / n for n in image.shape)
    spectrum = np.fft.fftshift(np.fft.fft2(image)) * gain(np.sqrt(fy[:, None] ** 2 + fx**2), f0)
    return np.fft.ifft2(np.fft.ifftshift(spectrum)).real[border:-border, border:-border]


def positions(patch, image):
    """Where a patch lies in an image, as a list of (row, column)."""
    size = patch.shape[-1]
    rows, columns = (n - size + 1 for n in image.shape)
    found = np.argwhere(np.abs(image[:rows, :columns] - patch[0, 0]) < 1e-5)
    return [(r, c) for r, c in found if np.allclose(image[r:r + size, c:c + size], patch, atol=1e-5)]


def cut(train, test, **options):
    settings = {"n_train": 20, "n_test": 10, "size": 16, "seed": 0, "zscore": "patch", "f0": 0.4, "as_published": False}
    return cutting.patch_dataset("made", train, test, about="made", **(settings | options))


# Whitening


@pytest.mark.parametrize("shape", [(64, 64), (48, 80), (45, 63)])
def test_white_noise_comes_out_with_the_published_spectrum(shape):
    image = noise(*shape)
    measured = np.abs(np.fft.rfft2(whiten(image))) / np.abs(np.fft.rfft2(image))
    f = np.hypot(np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1]))
    np.testing.assert_allclose(measured, gain(f), atol=1e-10)


@pytest.mark.parametrize("f0", [0.2, 0.4])
@pytest.mark.parametrize(("cycles_down", "cycles_across"), [(0, 10), (6, 0), (6, 10), (-6, 10), (20, 3)])
def test_a_grating_keeps_its_phase_and_is_scaled_by_the_gain(cycles_down, cycles_across, f0):
    height, width = 48, 80
    y, x = np.mgrid[:height, :width]
    grating = np.cos(2 * np.pi * (cycles_down * y / height + cycles_across * x / width) + 0.3)
    f = np.sqrt((cycles_down / height) ** 2 + (cycles_across / width) ** 2)
    np.testing.assert_allclose(whiten(grating, f0), gain(f, f0) * grating, atol=1e-12)


def isotropy(as_published):
    """Spread of the gain, relative to its mean, over 16 directions at 5 and at √65 cycles per image of 32 × 32."""
    measured = np.abs(np.fft.fft2(whiten(noise(32, 32), as_published=as_published)) / np.fft.fft2(noise(32, 32)))
    rings = ([(3, 4), (4, 3), (5, 0), (0, 5)], [(1, 8), (8, 1), (4, 7), (7, 4)])
    values = [np.array([measured[s * u, t * v] for u, v in ring for s in (1, -1) for t in (1, -1)]) for ring in rings]
    return max(np.ptp(v) / v.mean() for v in values)


def test_the_filter_is_isotropic_and_the_published_code_is_not():
    assert isotropy(as_published=False) < 1e-6
    assert isotropy(as_published=True) > 0.3


def test_as_published_repeats_the_grid_of_the_public_code():
    response = frequency_response((1024, 1024), f0=0.5, as_published=True)
    assert response[0, 0] == pytest.approx(np.sqrt(0.5) * np.exp(-4.0))  # |f| = 0.707 where the mean grey is
    assert response[0, 0] == pytest.approx(0.013, abs=5e-4)
    assert response[0, 307] == pytest.approx(0.14, abs=0.005)  # 0.3 cycles per pixel along an axis; 0.18 by the formula
    assert frequency_response((1024, 1024), f0=0.5)[0, 307] == pytest.approx(gain(307 / 1024, 0.5))
    assert frequency_response((1024, 1024))[0, 0] == 0.0


def slope(image):
    """Slope of log amplitude over log frequency from 0.02 to 0.2 cycles per pixel."""
    f = np.hypot(np.fft.fftfreq(image.shape[0])[:, None], np.fft.fftfreq(image.shape[1]))
    window = np.hanning(image.shape[0])[:, None] * np.hanning(image.shape[1])
    amplitude = np.abs(np.fft.fft2((image - image.mean()) * window))
    edges = np.geomspace(0.02, 0.2, 12)
    middles = [np.sqrt(np.mean(amplitude[(f >= low) & (f < high)] ** 2)) for low, high in zip(edges[:-1], edges[1:], strict=True)]
    return np.polyfit(np.log(np.sqrt(edges[:-1] * edges[1:])), np.log(middles), 1)[0]


def test_whitening_adds_one_to_the_slope_of_a_photographs_spectrum():
    camera = photograph("camera")
    assert slope(camera) < -1.0
    assert slope(whiten(camera)) - slope(camera) == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("f0", [0.0, -0.4, float("nan")])
def test_whitening_refuses_a_cutoff_that_is_not_positive(f0):
    with pytest.raises(ValueError, match="f0 must be positive"):
        whiten(noise(16, 16), f0)
    with pytest.raises(ValueError, match="f0 must be positive"):
        frequency_response((16, 16), f0)


def test_whitening_refuses_a_stack():
    with pytest.raises(ValueError, match=r"grey image.*\(2, 16, 16\)"):
        whiten(np.zeros((2, 16, 16)))


# Patches of made photographs


def test_patches_are_windows_of_the_whitened_photograph():
    train, test = [noise(60, 70, 1), noise(64, 50, 2)], [noise(50, 50, 3)]
    data = cut(train, test, zscore=None, n_train=11, n_test=5)
    counts = [sum(len(positions(patch, whitened(image))) for patch in data.train.x[:, 0].numpy()) for image in train]
    assert counts == [6, 5]  # as many from each, to within one
    assert all(positions(patch, whitened(test[0])) for patch in data.test.x[:, 0].numpy())
    assert not any(positions(patch, whitened(image)) for patch in data.test.x[:, 0].numpy() for image in train)


def test_positions_are_uniform_over_all_that_fit():
    image = noise(40, 44)
    reference, counts = whitened(image), np.zeros((9, 13))
    for seed in range(20):
        for patch in cut([image], [image], zscore=None, n_train=100, n_test=1, seed=seed).train.x[:, 0].numpy():
            (place,) = positions(patch, reference)
            counts[place] += 1
    assert counts.sum() == 2000 and counts.min() > 0
    chi2 = ((counts - 2000 / 117) ** 2 / (2000 / 117)).sum()
    assert abs(chi2 - 116) < 4 * np.sqrt(2 * 116)  # four standard deviations of χ² with 116 degrees of freedom


def test_zscore_image_gives_every_photograph_the_same_contrast():
    smooth = np.add.outer(np.sin(np.arange(90) / 9.0), np.zeros(90)) + 0.01 * noise(90, 90)
    patches = cut([smooth, 50 * noise(90, 90)], [noise(90, 90)], zscore="image").train.x[:, 0].numpy()
    for image in (whitened(smooth), whitened(noise(90, 90))):
        assert sum(len(positions(patch, (image - image.mean()) / image.std())) for patch in patches) == 10


def test_zscored_patches_leave_out_what_is_blank():
    image = noise(80, 90)
    image[:, :50] = 0.0
    reference = whitened(image)
    windows = np.lib.stride_tricks.sliding_window_view(reference, (16, 16)).reshape(-1, 256)
    spread = windows.std(1)
    normal = (windows - windows.mean(1, keepdims=True)) / spread[:, None]
    assert (spread < 0.5 * reference.std()).mean() > 0.3
    patches = cut([image], [image], n_train=200).train.x.flatten(1).numpy()
    match = patches @ normal.T / 256
    assert match.max(1).min() > 0.9999
    kept = spread[match.argmax(1)] / reference.std()
    assert 0.5 < kept.min() < 0.7 < kept.max()


def test_zscored_patches_have_squared_norm_d():
    x = cut([noise(60, 60)], [noise(60, 60)], size=12).train.x
    assert x.shape == (20, 1, 12, 12) and x.dtype == torch.float32
    torch.testing.assert_close(x.flatten(1).square().sum(1), torch.full((20,), 144.0), rtol=1e-5, atol=0)
    assert x.flatten(1).mean(1).abs().max() < 1e-6


def test_as_published_and_f0_reach_the_filter():
    image = noise(60, 60)
    assert positions(cut([image], [image], zscore=None, f0=0.2).train.x[0, 0].numpy(), whitened(image, 0.2))
    assert not positions(cut([image], [image], zscore=None, as_published=True).train.x[0, 0].numpy(), whitened(image))


@pytest.mark.parametrize(("options", "message"), [
    ({"zscore": "pixel"}, "zscore must be 'patch', 'image' or None, not 'pixel'"),
    ({"n_train": 0}, "at least 1, not 0 and 10"),
    ({"n_test": -1}, "at least 1, not 20 and -1"),
    ({"size": 1}, "2 × 2 to 44 × 44 pixels here, not 1 × 1"),
    ({"size": 45}, "2 × 2 to 44 × 44 pixels here, not 45 × 45"),
    ({"n_train": 842}, "asked for 842 patches of 16 × 16 pixels in a photograph that has 841"),
    ({"f0": 0.0}, "f0 must be positive"),
])
def test_settings_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        cut([noise(60, 60)], [noise(60, 60)], **options)


def with_nan():
    image = noise(60, 60)
    image[3, 4] = np.nan
    return image


def with_a_dot():
    image = np.zeros((200, 200))
    image[100, 100] = 1.0
    return image


@pytest.mark.parametrize(("image", "options", "message"), [
    (with_nan(), {}, "1 values that are not finite"),
    (np.full((60, 60), 7.0), {}, "the same grey everywhere"),
    (noise(60, 16), {}, "more than 16 pixels high and wide"),
    (np.zeros((60, 60, 3)), {}, "must be grey"),
    (with_a_dot(), {"n_train": 20_000, "size": 2}, r"found only \d+ of 20000 patches with some contrast"),
])
def test_photographs_that_give_no_patches(image, options, message):
    with pytest.raises(ValueError, match=message):
        cut([image], [noise(60, 60)], **options)


# The embedded sets


def test_patches_take_training_and_test_from_different_photographs():
    data = zoo.data.load("patches", n_train=24, n_test=24, zscore="image")
    train, test = ([(w - w.mean()) / w.std() for w in map(whitened, map(photograph, names))] for names in (TRAIN, TEST))
    for part, own, other in ((data.train, train, test), (data.test, test, train)):
        for patch in part.x[:, 0].numpy():
            assert sum(len(positions(patch, image)) for image in own) == 1
            assert not any(positions(patch, image) for image in other)


def test_patches_default_to_the_published_protocol(unchanged_generator):
    state = np.random.get_state()[1].copy()
    with unchanged_generator():
        data = zoo.data.load("patches")
    np.testing.assert_array_equal(np.random.get_state()[1], state)
    assert (len(data.train), len(data.test), data.event_shape) == (40_000, 4_000, (1, 16, 16))
    for x in (data.train.x, data.test.x):
        assert x.dtype == torch.float32 and x.device.type == "cpu" and x.is_contiguous()
        torch.testing.assert_close(x.flatten(1).square().sum(1), torch.full((len(x),), 256.0), rtol=1e-4, atol=0)
        assert x.flatten(1).mean(1).abs().max() < 1e-5
    assert f"held-out pictures {', '.join(TEST)}" in data.about and len(TEST) >= 3 and not set(TRAIN) & set(TEST)


def test_patches_depend_on_the_seed_alone():
    first, again, other = (zoo.data.load("patches", n_train=50, n_test=20, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(first.train.x, again.train.x) and torch.equal(first.test.x, again.test.x)
    assert not torch.equal(first.train.x, other.train.x) and not torch.equal(first.test.x, other.test.x)


@pytest.mark.parametrize("name", ["coffee", "camera", "brick"])
def test_photographs_are_luminance_and_colour_and_grain_are_halved(name):
    from skimage import color, data, transform

    picture = getattr(data, name)()
    grey = picture if picture.ndim == 2 else 255 * color.rgb2gray(picture)
    expected = grey if name == "brick" else transform.downscale_local_mean(grey, (2, 2))
    np.testing.assert_allclose(photograph(name), expected, atol=0.3)  # rgb2gray rounds BT.709's weights


def test_a_photograph_that_is_not_embedded():
    with pytest.raises(ValueError, match=f"unknown photograph 'eagle'; known are: {TRAIN[0]}, "):
        photograph("eagle")


def test_box_average_cuts_incomplete_blocks():
    np.testing.assert_array_equal(cutting.box_average(np.arange(15.0).reshape(3, 5)), [[3.0, 5.0]])


@pytest.mark.parametrize("name", TRAIN + TEST)
def test_what_wraps_around_stays_small_beyond_the_border(name):
    image = photograph(name)
    image = (image - image.mean()) / image.std()
    wrapped = whiten(image)
    change = (wrapped - whiten(np.pad(image, 64, mode="symmetric"))[64:-64, 64:-64]) / wrapped.std()
    b = cutting.BORDER
    rows = [change[slice(b, b + 16)], change[slice(-b - 16, -b)], change[:, slice(b, b + 16)].T, change[:, slice(-b - 16, -b)].T]
    spread = [np.lib.stride_tricks.sliding_window_view(row[:, b:-b], 16, axis=1).std((0, 2)).max() for row in rows]
    assert max(spread) < 0.1  # a fifth of the contrast below which patches count as blank


def test_digits():
    from sklearn.datasets import load_digits

    data = zoo.data.load("digits")
    assert (len(data.train), len(data.test), data.event_shape) == (1437, 360, (1, 8, 8))
    both = torch.cat([data.train.x, data.test.x]).flatten(1)
    labels = torch.cat([data.train.labels, data.test.labels])
    assert both.dtype == torch.float32 and labels.dtype == torch.int64 and both.min() == 0 and both.max() == 1
    bunch = load_digits()
    rows = sorted((*map(float, image), int(label)) for image, label in zip(both * 16, labels, strict=True))
    assert rows == sorted((*map(float, image), int(label)) for image, label in zip(bunch.data, bunch.target, strict=True))
    assert torch.equal(data.train.x, zoo.data.load("digits", seed=0).train.x)
    assert not torch.equal(data.test.x, zoo.data.load("digits", seed=1).test.x)


@pytest.mark.parametrize("n_test", [0, 1797])
def test_digits_keep_something_on_both_sides(n_test):
    with pytest.raises(ValueError, match=f"n_test must be 1 to 1796, not {n_test}"):
        zoo.data.load("digits", n_test=n_test)

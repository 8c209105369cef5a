"""Loaders of fetched sets: on small made files everywhere, and on the real ones where ``ZOO_DATA`` has them."""

import gzip
import hashlib
import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_data import gain, positions, slope, whitened

import zoo.data
from zoo.data import digits, olshausen, omniglot, sources, van_hateren
from zoo.data.fetch import Source, fetch
from zoo.data.whiten import whiten


def put(folder, path, content):
    """Writes a made file and describes it."""
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_bytes(content)
    return Source(path, hashlib.sha256(content).hexdigest(), ())


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_DATA", str(tmp_path))
    return tmp_path


def idx(values):
    """The bytes of an IDX file: magic number, sizes, values (yann.lecun.com/exdb/mnist)."""
    sizes = b"".join(n.to_bytes(4, "big") for n in values.shape)
    return gzip.compress(bytes([0, 0, 8, values.ndim]) + sizes + values.astype(np.uint8).tobytes())


def test_mnist(folder, monkeypatch):
    generator = np.random.default_rng(0)
    images = {part: generator.integers(256, size=(n, 28, 28)) for part, n in (("train", 30), ("t10k", 12))}
    labels = {part: generator.integers(10, size=len(x)) for part, x in images.items()}
    made = {f"{part}-images": put(folder, f"mnist/{part}-images", idx(x)) for part, x in images.items()}
    made |= {f"{part}-labels": put(folder, f"mnist/{part}-labels", idx(y)) for part, y in labels.items()}
    monkeypatch.setattr(digits, "MNIST", made)
    data = zoo.data.load("mnist", n_train=20, n_test=12)
    for part, key, count in ((data.train, "train", 20), (data.test, "t10k", 12)):
        assert part.x.shape == (count, 1, 28, 28) and part.x.dtype == torch.float32 and part.labels.dtype == torch.int64
        np.testing.assert_allclose(part.x[:, 0].numpy() * 255, images[key][:count], atol=1e-4)
        assert part.labels.tolist() == labels[key][:count].tolist()


@pytest.mark.parametrize("counts", [(60_001, 10), (0, 10), (10, 10_001), (10, 0)])
def test_mnist_has_so_many(counts):
    with pytest.raises(ValueError, match=f"60,000 training and 10,000 test images; asked for {counts[0]} and {counts[1]}"):
        zoo.data.load("mnist", n_train=counts[0], n_test=counts[1])


def every_patch_from(patches, images):
    return all(any(positions(patch, image) for image in images) for patch in patches[:, 0].numpy())


def test_olshausen(folder, monkeypatch):
    pictures = [np.random.default_rng(seed).integers(256, size=(50, 60)).astype(np.uint8) for seed in range(4)]
    made = []
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(file := io.BytesIO(), format="TIFF")
        made.append(put(folder, f"olshausen/{number}.tif", file.getvalue()))
    monkeypatch.setattr(olshausen, "OLSHAUSEN", made)
    data = zoo.data.load("olshausen", n_train=20, n_test=20, zscore=None)
    images = [whitened(picture.astype(float)) for picture in pictures]  # linear in the pictures' values
    assert every_patch_from(data.train.x, images[:2]) and every_patch_from(data.test.x, images[2:])


def test_van_hateren(folder, monkeypatch):
    pictures = [np.random.default_rng(seed).integers(6000, size=(1024, 1536)) for seed in range(4)]
    made = [put(folder, f"van_hateren/{number}.iml", picture.astype(">u2").tobytes()) for number, picture in enumerate(pictures)]
    monkeypatch.setattr(van_hateren, "VAN_HATEREN", made)
    data = zoo.data.load("van_hateren", n_train=4, n_test=6, zscore=None)
    logs = [np.log1p(picture) for picture in pictures]
    images = [whitened((x[::2, ::2] + x[1::2, ::2] + x[::2, 1::2] + x[1::2, 1::2]) / 4) for x in logs]
    assert data.event_shape == (1, 16, 16)
    assert every_patch_from(data.train.x, images[:1]) and every_patch_from(data.test.x, images[1:])


def test_omniglot(folder, monkeypatch):
    strokes, generator = {}, np.random.default_rng(0)
    with zipfile.ZipFile(file := io.BytesIO(), "w") as archive:
        for alphabet in ("Tagalog", "Greek", "Braille"):  # not in alphabetical order
            for character in (2, 1):
                for drawer in (1, 2, 3):
                    name = f"images_background_small1/{alphabet}/character{character:02}/{character:04}_{drawer:02}.png"
                    picture = Image.fromarray(generator.random((105, 105)) < 0.9)  # ink is black
                    picture.save(png := io.BytesIO(), format="PNG")
                    archive.writestr(name, png.getvalue())
                    strokes[name] = 1.0 - np.asarray(picture.resize((28, 28), Image.Resampling.NEAREST), dtype=float)
        archive.writestr("__MACOSX/images_background_small1/Greek/character01/._0001_01.png", b"not a picture")
        archive.writestr("images_background_small1/.DS_Store", b"")
    monkeypatch.setattr(omniglot, "OMNIGLOT", put(folder, "omniglot/made.zip", file.getvalue()))

    for held_out, n_train in ((1, 12), (2, 6)):
        data = zoo.data.load("omniglot", held_out=held_out)
        both, expected = torch.cat([data.train.x, data.test.x]), [strokes[name] for name in sorted(strokes)]
        np.testing.assert_array_equal(both[:, 0].numpy(), expected)
        assert len(data.train) == n_train and both.dtype == torch.float32
        assert torch.cat([data.train.labels, data.test.labels]).tolist() == [number for number in range(6) for _ in range(3)]
    assert "held-out alphabets Greek, Tagalog, training alphabets Braille" in data.about
    for held_out in (0, 3):
        with pytest.raises(ValueError, match=f"held_out must be 1 to 2 of the 3 alphabets, not {held_out}"):
            zoo.data.load("omniglot", held_out=held_out)


# The real files, where they are


def real_mnist():
    data = zoo.data.load("mnist")
    assert data.train.x.shape == (60_000, 1, 28, 28) and data.test.x.shape == (10_000, 1, 28, 28)
    assert data.train.labels.bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert data.test.labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert data.train.x.mean() == pytest.approx(0.1307, abs=5e-5) and data.train.x.std() == pytest.approx(0.3081, abs=5e-5)


def real_olshausen():
    raw = np.asarray(Image.open(io.BytesIO(fetch(sources.OLSHAUSEN[0]))), dtype=float)
    assert raw.shape == (512, 512)
    white, (u, v) = whiten(raw), np.meshgrid(np.fft.fftfreq(512), np.fft.fftfreq(512))
    before, after = np.abs(np.fft.fft2(raw)), np.abs(np.fft.fft2(white))
    np.testing.assert_allclose(after / before, gain(np.hypot(u, v)), atol=1e-6)
    assert slope(raw) < -0.9 and abs(slope(white)) < 0.35
    patches_in_units(zoo.data.load("olshausen", n_train=800, n_test=200))


def real_van_hateren():
    luminance = np.frombuffer(fetch(sources.VAN_HATEREN[0]), ">u2")
    assert luminance.size == 1024 * 1536 and 0 < np.median(luminance) < 2**15
    patches_in_units(zoo.data.load("van_hateren", n_train=800, n_test=200))


def patches_in_units(data):
    assert (len(data.train), len(data.test), data.event_shape) == (800, 200, (1, 16, 16))
    x = data.train.x.flatten(1)
    torch.testing.assert_close(x.square().sum(1), torch.full((800,), 256.0), rtol=1e-4, atol=0)
    assert x.pow(4).mean() > 3.5  # sparser than a Gaussian, as whitened natural images are


def real_omniglot():
    data = zoo.data.load("omniglot")
    assert (len(data.train), len(data.test)) == (2200, 520) and "held-out alphabets Latin" in data.about
    counts = torch.cat([data.train.labels, data.test.labels]).bincount()
    assert counts.tolist() == [20] * 136 and not set(data.train.labels.tolist()) & set(data.test.labels.tolist())
    assert 0.02 < data.train.x.mean() < 0.2 and set(data.train.x.unique().tolist()) == {0.0, 1.0}


REAL = {"mnist": real_mnist, "olshausen": real_olshausen, "van_hateren": real_van_hateren, "omniglot": real_omniglot}
THERE = [name for name in REAL if os.environ.get("ZOO_DATA") and (Path(os.environ["ZOO_DATA"]) / name).is_dir()]
if THERE:

    @pytest.mark.parametrize("name", THERE)
    def test_the_real_files(name):
        REAL[name]()

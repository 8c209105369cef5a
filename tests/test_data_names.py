"""What a data set is, and how it is asked for by name."""

import subprocess
import sys

import pytest
import torch

import zoo.data
from zoo.data.base import Data, Dataset
from zoo.registry import Registry


def images(n=4, side=3):
    return torch.arange(float(n * side * side)).view(n, 1, side, side)


def test_data_keeps_what_belongs_together():
    data = Data(images(), torch.arange(4), {"angle": torch.arange(4.0) / 10})
    assert len(data) == 4 and data.event_shape == (1, 3, 3)
    for index, kept in ((slice(1, 3), [1, 2]), (torch.tensor([3, 0]), [3, 0]), (torch.tensor([True, False, False, True]), [0, 3])):
        part = data[index]
        assert part.labels.tolist() == kept
        assert torch.equal(part.x, images()[kept]) and torch.equal(part.factors["angle"], torch.tensor(kept) / 10)
    moved = Dataset("d", data, data[:2], "made").to("cpu")
    assert moved.event_shape == (1, 3, 3) and moved.about == "made" and moved.test.labels.tolist() == [0, 1]
    assert moved.train.factors["angle"].shape == (4,) and Data(images())[:2].labels is None


@pytest.mark.parametrize(("x", "options", "message"), [
    (images()[0], {}, r"must be \(n, channels, height, width\), sequences .*; not \(1, 3, 3\)"),
    (images()[:0], {}, "there are no images"),
    (images().long(), {}, "floating-point type, not torch.int64"),
    (images().index_fill(0, torch.tensor([2, 3]), torch.nan), {}, "image 2 has values that are not finite"),
    (images().index_fill(0, torch.tensor([1]), torch.inf), {}, "image 1 has values that are not finite"),
    (images(), {"labels": torch.arange(3)}, r"labels has shape \(3,\) for 4 images"),
    (images(), {"labels": torch.tensor(3)}, r"labels has shape \(\) for 4 images"),
    (images(), {"factors": {"angle": torch.arange(5.0)}}, r"angle has shape \(5,\) for 4 images"),
])
def test_data_refuses(x, options, message):
    with pytest.raises(ValueError, match=message):
        Data(x, **options)


def test_both_parts_have_images_of_one_shape():
    with pytest.raises(ValueError, match=r"\(1, 3, 3\) and held-out images \(1, 4, 4\) differ"):
        Dataset("d", Data(images()), Data(images(side=4)), "made")


def test_listing_names_imports_nothing_heavy():
    code = ("import sys, zoo.data; assert len(zoo.data.registry.lines()) >= 6; "
            "print(sorted({'torch', 'numpy', 'sklearn', 'skimage', 'rich'} & set(sys.modules)))")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_every_name_says_whether_it_is_fetched():
    lines = zoo.data.registry.lines()
    assert {"patches", "van_hateren", "olshausen", "mnist", "digits", "omniglot"} <= set(lines)
    assert {name for name in ("patches", "digits") if "ship" in lines[name]} == {"patches", "digits"}
    assert all("fetched" in lines[name] for name in ("van_hateren", "olshausen", "mnist", "omniglot"))
    assert all(callable(zoo.data.registry[name]) for name in lines)
    assert zoo.data.Dataset is Dataset and zoo.data.Data is Data


def test_a_name_with_a_slash_gives_the_loader_its_member(monkeypatch):
    monkeypatch.setattr(zoo.data, "registry", Registry("data", {}))

    @zoo.data.registry.register("made", "made here")
    def made(member: str, n: int = 2) -> tuple:
        return member, n

    assert zoo.data.load("made/fixate-1") == ("fixate-1", 2)
    assert zoo.data.load("made/fixate-1/deep", n=5) == ("fixate-1/deep", 5)


@pytest.mark.parametrize(("name", "message"), [
    ("pathces", "unknown data 'pathces'; known are: patches, van_hateren"),
    ("pathces/one", "unknown data 'pathces'"),
    ("patches/one", "'patches' has no member 'one'; ask for 'patches'"),
    ("omniglot/Greek", "'omniglot' has no member 'Greek'"),
])
def test_names_that_are_not_there(name, message):
    with pytest.raises(ValueError, match=message):
        zoo.data.load(name)


def test_an_attribute_that_is_not_there():
    with pytest.raises(AttributeError, match="no attribute 'Datum'"):
        _ = zoo.data.Datum

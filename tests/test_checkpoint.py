"""Models on disk: all of a model or nothing, and what comes back is what was saved."""

import errno
import json
from importlib.metadata import version

import pytest
import torch
from safetensors.torch import load_file, save_file

import guides
import inference
import zoo
from guides.bounds import elbo
from inference import checkpoint
from zoo.files import atomic_file, atomic_folder

X = torch.randn(8, 1, 3, 3, generator=torch.Generator().manual_seed(0))


def pair(latents=4):
    model = zoo.build("poisson", (1, 3, 3), latents=latents, seed=1)
    return model, guides.build("amortized", model, seed=2)


def weights(*modules):
    return [value.clone() for module in modules for value in module.state_dict().values()]


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(("name", "options"), [
    ("poisson", {"relaxation": "sigmoid", "log_rate_init": (-3.0, -2.0)}), ("gaussian", {"activation": "relu",
                                                                                         "learn_scale": "pixel"}),
    ("categorical", {"groups": 2, "decoder": "mlp"}), ("laplace", {"learn_prior": True, "scale": 0.3, "decoder_bias": True})])
def test_a_saved_model_comes_back_bit_for_bit(tmp_path, name, options):
    model = zoo.build(name, (1, 3, 3), latents=4, seed=7, **options)
    guide = guides.build("amortized", model, encoder="mlp", bias=False, seed=8)
    inference.fit(model, guide, X, steps=3, progress=False)
    folder = inference.save(tmp_path / "deep" / "model", model, guide, note="ten words", history=[{"step": 1}])
    loaded, its_guide, config = inference.load(folder)
    assert list(loaded.state_dict()) == list(model.state_dict()) and same(weights(loaded, its_guide), weights(model, guide))
    assert config["note"] == "ten words" and config["history"] == [{"step": 1}]
    assert config["model"]["name"] == name and config["guide"] == {"name": "amortized", "encoder": "mlp", "bias": False, "seed": 8}
    assert all(config["model"][key] == (list(value) if isinstance(value, tuple) else value) for key, value in options.items())
    torch.manual_seed(0)
    first = elbo(model, guide, X).value
    torch.manual_seed(0)
    assert torch.equal(elbo(loaded, its_guide, X).value, first)
    assert not loaded.training and not its_guide.training
    again = inference.save(tmp_path / "again", loaded, its_guide)  # what was loaded can be saved
    assert same(weights(*inference.load(again)[:2]), weights(model, guide))


def test_a_model_without_guide(tmp_path):
    model, _ = pair()
    loaded, guide, config = inference.load(inference.save(tmp_path / "m", model))
    assert guide is None and "guide" not in config and same(weights(loaded), weights(model))
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == ["config.json", "model.safetensors"]
    assert set(load_file(tmp_path / "m" / "model.safetensors")) == set(model.state_dict())


def test_saving_is_all_or_nothing(tmp_path, monkeypatch):
    model, guide = pair()
    folder = inference.save(tmp_path / "m", model, guide)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    other, its_guide = pair(latents=6)

    def full(tensors, path, metadata=None):
        if path.name == "guide.safetensors":
            raise OSError(errno.ENOSPC, "No space left on device")
        save_file(tensors, path)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(checkpoint, "save_file", full)
        inference.save(folder, other, its_guide)
    with pytest.raises(ValueError, match="cannot be written down .*JSON"):
        inference.save(folder, other, its_guide, about=object())
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
    inference.save(folder, other, its_guide)
    assert inference.load(folder)[0].units == 6 and [path.name for path in tmp_path.iterdir()] == ["m"]


def test_what_cannot_be_saved_or_loaded_is_refused(tmp_path):
    model, guide = pair()
    with pytest.raises(ValueError, match="zoo.build"):
        inference.save(tmp_path / "m", zoo.oracles.mixture())
    del guide.built_with
    with pytest.raises(ValueError, match="guides.build"):
        inference.save(tmp_path / "m", model, guide)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError, match="config.json is missing"):
        inference.load(tmp_path / "m")


@pytest.mark.parametrize("part", ["model", "guide"])
@pytest.mark.parametrize("damage", ["cut off", "of another size"])
def test_weights_that_do_not_fit_are_told_with_the_version_that_saved_them(tmp_path, part, damage):
    folder = inference.save(tmp_path / "m", *pair())
    assert json.loads((folder / "config.json").read_text())["version"] == version("perception-zoo")
    weights = folder / f"{part}.safetensors"
    if damage == "cut off":
        weights.write_bytes(weights.read_bytes()[:-9])
    else:
        weights.write_bytes((inference.save(tmp_path / "other", *pair(6)) / weights.name).read_bytes())
    with pytest.raises(ValueError, match=rf"{weights.name} are damaged, or not those of .* as version {version('perception-zoo')} builds"):
        inference.load(folder)


def test_saving_never_deletes_what_is_not_its_own(tmp_path):
    (tmp_path / "thesis.tex").write_text("ten years of work")
    with pytest.raises(ValueError, match="holds thesis.tex, which is not part of a saved model"):
        inference.save(tmp_path, pair()[0])
    assert (tmp_path / "thesis.tex").read_text() == "ten years of work"
    with pytest.raises(ValueError, match="is a file"):
        inference.save(tmp_path / "thesis.tex", pair()[0])


def test_atomic_files_and_folders(tmp_path):
    path, folder = tmp_path / "a.txt", tmp_path / "f"
    path.write_text("old")
    folder.mkdir()
    (folder / "old").write_text("old")
    for opened, name in ((atomic_file(path), None), (atomic_folder(folder), "new")):
        with pytest.raises(RuntimeError), opened as temporary:
            (temporary / name if name else temporary).write_text("new")
            raise RuntimeError
    assert path.read_text() == "old" and [p.name for p in folder.iterdir()] == ["old"]
    with atomic_file(path) as temporary:
        temporary.write_text("new")
    with atomic_folder(folder) as temporary:
        (temporary / "new").write_text(json.dumps(1))
    assert path.read_text() == "new" and [p.name for p in folder.iterdir()] == ["new"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.txt", "f"]


@pytest.mark.parametrize(("name", "options"), [
    ("rao_ballard", {"levels": (6, 4), "norm": 1.0}), ("linear_chain", {}),
    ("predictive_coding", {"levels": (6, 4), "family": "laplace,student_t"}),
    ("predictive_coding", {"levels": (6, 4), "precision": "full,diagonal"})], ids=str)
def test_chains_come_back_with_the_shape_of_their_images(tmp_path, name, options):
    shape = (3, 4, 4)
    model = zoo.build(name, shape, seed=3, **options)
    x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)).to(next(model.parameters()).dtype)
    values = {site: value[0, 0] for site, value in inference.infer(model, x, "map", steps=2).samples.items()}
    checkpoint.save(tmp_path / "chain", model)
    again = checkpoint.load(tmp_path / "chain")[0]
    assert torch.equal(inference.log_joint(again, values, x), inference.log_joint(model, values, x))

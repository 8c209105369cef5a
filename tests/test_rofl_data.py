"""Streams, splits and files of optic flow: the same frames whoever asks for them, and all or nothing on disk."""

from __future__ import annotations

import contextlib
import errno
import json
import resource
from dataclasses import asdict

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import guides
import inference
import zoo
from guides.bounds import OBJECTIVES
from zoo.data.base import Data, Dataset
from zoo.data.rofl import Stream, World, accepted, causes_of, flow, frames, generate, read, rofl, sample, splits, storage, streaming, write

WORLD = World("fixate-1", 5)
BLOCK = 256  # frames that a stream makes at once under `small_blocks`
SIZES = {"n_train": 30, "n_validation": 20, "n_test": 10, "resolution": 5}
TRAINING = {"batch_size": 100, "lr": 0.02, "log_every": 1, "progress": False}


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(streaming, "BLOCK_PIXELS", 0)
    assert Stream(WORLD).block == BLOCK


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@contextlib.contextmanager
def files_no_larger_than(size):
    """As on a disk with so many bytes left."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def same_data(first, second):
    assert list(first.factors) == list(second.factors)
    return torch.equal(first.x, second.x) and all(torch.equal(first.factors[name], second.factors[name]) for name in first.factors)


def assert_factors_belong(data, world):
    causes = causes_of(data.factors, world)
    torch.testing.assert_close(data.x, flow(causes, world), atol=1e-6, rtol=0)
    assert accepted(causes, world).all()


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


# Streams


@pytest.mark.usefixtures("small_blocks")
def test_a_frame_is_the_same_whichever_batch_asks_for_it():
    whole = Stream(WORLD, seed=3).frames(0, 3 * BLOCK - 60)
    one = Stream(WORLD, seed=3)
    for start, stop in [(600, 708), (0, 1), (250, 260), (255, 513), (3, 708), (256, 512), (255, 256), (256, 257), (100, 101)]:
        assert torch.equal(one.images(start, stop), whole.x[start:stop])
        assert same_data(one.frames(start, stop), whole[start:stop])
    assert len({tuple(row.tolist()) for row in whole.x.flatten(1)}) == len(whole)  # no frame twice


@pytest.mark.usefixtures("small_blocks")
def test_what_a_stream_gave_is_the_callers():
    stream = Stream(WORLD)
    first, kept = stream.frames(0, 9), Stream(WORLD).frames(0, 9)
    images = stream.images(0, 9)
    stream.images(BLOCK, BLOCK + 9)  # the next block
    assert same_data(first, kept) and torch.equal(images, kept.x)
    stream.images(0, 9).zero_()
    for part in (first.x, *first.factors.values()):
        part.zero_()
    assert same_data(stream.frames(0, 9), kept)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("category", ["fixate-0", "fixate-1", "transl-3", "obj-2", "terrain-2", "pursuit-1"])
def test_factors_belong_to_the_images(category):
    world = World(category, 7, residual=category == "transl-3")
    part = Stream(world, seed=1).frames(BLOCK - 20, BLOCK + 20)
    assert_factors_belong(part, world)
    assert set(world.factor_names) | set(world.cartesian_names) <= set(part.factors)
    assert part.x.shape == (40, 2, 7, 7) and part.x.dtype == torch.float32


def test_the_published_resolution_comes_in_blocks_of_its_own_size():
    stream = Stream("fixate-1")
    edge = stream.block
    part = stream.frames(edge - 5, edge + 5)
    assert_factors_belong(part, stream.world)
    assert torch.equal(Stream("fixate-1").images(edge, edge + 5), part.x[5:])


@pytest.mark.usefixtures("small_blocks")
def test_no_two_sequences_and_splits_share_frames(unchanged_generator):
    with unchanged_generator():
        split = rofl("fixate-1", **SIZES, cache=False)
        parts = [split.train, split.validation, split.test, frames(WORLD, 30)]
        parts += [Stream(WORLD, seed=seed).frames(0, 2 * BLOCK) for seed in (0, 1)]
        assert torch.equal(Stream(WORLD, seed=1).images(0, 9), parts[-1].x[:9])
    gaze = torch.cat([torch.stack([part.factors["fix_x"], part.factors["fix_y"]], 1) for part in parts])
    assert len(gaze.unique(dim=0)) == len(gaze) == 90 + 4 * BLOCK


@pytest.mark.usefixtures("small_blocks")
def test_images_alone_cost_no_factors(monkeypatch):
    def never(*arguments, **options):
        raise AssertionError("factors were computed")

    monkeypatch.setattr(streaming, "factors", never)
    assert Stream(WORLD).images(0, BLOCK + 3).shape == (BLOCK + 3, 2, 5, 5)


@pytest.mark.usefixtures("small_blocks")
def test_a_block_is_made_once_for_all_batches_in_it(monkeypatch):
    made = []

    def noting(*arguments, seed, **options):
        made.append(seed)
        return generate(*arguments, seed=seed, **options)

    monkeypatch.setattr(streaming, "generate", noting)
    stream = Stream(WORLD)
    for start in range(0, 2 * BLOCK, 64):
        stream.images(start, start + 64)
    assert len(made) == len(set(made)) == 2


@pytest.mark.usefixtures("small_blocks")
def test_a_stream_says_what_it_is_and_moves():
    stream = Stream(WORLD, seed=5, device="cpu")
    assert stream.event_shape == (2, 5, 5) and stream.device == torch.device("cpu")
    moved = stream.to(torch.device("cpu"))
    assert torch.equal(moved.images(0, 4), stream.images(0, 4)) and moved.world == WORLD and moved.seed == 5
    assert "seed=5" in repr(stream) and "fixate-1" in repr(stream) and repr(stream) == repr(moved)
    others = [Stream(WORLD, seed=6), Stream(World("fixate-1", 5, grid=True), seed=5), Stream(World("obj-1", 5), seed=5)]
    assert len({repr(each) for each in [stream, *others]}) == 4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_frames_are_made_on_the_device():
    stream = Stream(WORLD, device="cuda")
    part = stream.frames(0, 9)
    assert part.x.is_cuda and all(value.is_cuda for value in part.factors.values())
    assert torch.equal(Stream(WORLD).to("cuda").images(0, 9), part.x)
    assert_factors_belong(part, WORLD)


@pytest.mark.parametrize(("start", "stop"), [(-1, 3), (3, 3), (5, 2)])
def test_no_frames_are_refused(start, stop):
    for ask in (Stream(WORLD).images, Stream(WORLD).frames):
        with pytest.raises(ValueError, match=f"start ≥ 0 to stop > start, not from {start} to {stop}"):
            ask(start, stop)


@pytest.mark.parametrize("category", ["fixate", "fixate-9", "obj-0", "flight-1"])
def test_a_stream_of_an_unknown_category_is_refused(category):
    with pytest.raises(ValueError, match="unknown category"):
        Stream(category)


@pytest.mark.usefixtures("small_blocks")
def test_frames_are_right_after_their_making_was_interrupted(monkeypatch):
    """As by Ctrl-C in a notebook: what is asked for next must not be the block before, or half of one."""
    stream = Stream(WORLD)
    stream.images(0, 9)

    def interrupted(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(streaming, "render", interrupted)
        stream.images(BLOCK, BLOCK + 9)
    assert torch.equal(stream.images(BLOCK, BLOCK + 9), Stream(WORLD).images(BLOCK, BLOCK + 9))


@pytest.mark.usefixtures("small_blocks")
def test_a_stream_goes_on_after_inference_mode():
    stream = Stream(WORLD)
    with torch.inference_mode():
        stream.images(0, 9)
    assert torch.equal(stream.images(BLOCK, BLOCK + 9), Stream(WORLD).images(BLOCK, BLOCK + 9))


def test_gradients_can_be_had_after_inference_mode():
    """What is remembered of a field of view must serve those who need gradients, too."""
    world = World("fixate-1", 9, fov=31.0)  # a field that no other test looks at
    causes = sample(world, 3)
    with torch.inference_mode():
        flow(causes, world)
    causes["fixation"].requires_grad_()
    flow(causes, world, edge=0.02).square().sum().backward()
    assert causes["fixation"].grad.abs().sum() > 0


@pytest.mark.usefixtures("small_blocks")
def test_frames_are_of_one_type_whatever_the_default():
    torch.set_default_dtype(torch.float64)
    try:
        part, images = Stream(WORLD).frames(0, 3), Stream(WORLD).images(0, 3)
    finally:
        torch.set_default_dtype(torch.float32)
    assert part.x.dtype == images.dtype == part.factors["fix_x"].dtype == torch.float32


# Learning from a stream


def pair(data, latents=12):
    model = zoo.build("gaussian", data, latents=latents, seed=1)
    return model, guides.build("amortized", model, seed=2)


def weights(*modules):
    return [value.clone() for module in modules for value in module.state_dict().values()]


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def interrupted_at(monkeypatch, call):
    """An objective that stops the run when it is called for the ``call``-th time; returns the images it has seen."""
    seen, inner = [], OBJECTIVES["exact"]

    def objective(model, guide, x, **options):
        if len(seen) + 1 == call:
            raise KeyboardInterrupt
        seen.append(x)
        return inner(model, guide, x, **options)

    monkeypatch.setitem(OBJECTIVES, "exact", objective)
    return seen


@pytest.mark.usefixtures("small_blocks")
def test_a_model_learns_from_a_stream(unchanged_generator):
    stream, x = Stream(WORLD), Stream(WORLD, seed=1).images(0, 400)
    model, guide = pair(stream)
    assert model.event_shape == (2, 5, 5) and model.scale.item() == pytest.approx(Stream.noise) and Stream.noise == 0.1

    def error():
        return inference.score(model, x, inference.infer(model, x, guide=guide), k=2).values["mse"]

    before = error()
    with unchanged_generator():
        inference.fit(model, guide, stream, objective="exact", steps=150, **TRAINING | {"log_every": 50})
    assert error() < 0.5 * x.square().sum((1, 2, 3)).mean() and error() < 0.5 * before


@pytest.mark.usefixtures("small_blocks")
def test_each_step_takes_the_next_frames(monkeypatch):
    seen = interrupted_at(monkeypatch, None)
    inference.fit(*pair(Stream(WORLD)), Stream(WORLD), objective="exact", steps=5, seed=7, **TRAINING)
    assert torch.equal(torch.cat(seen), Stream(WORLD).images(0, 500))


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("stop", [2, 4])
def test_training_on_a_stream_goes_on_to_the_same_bits(tmp_path, monkeypatch, stop):
    settings = TRAINING | {"steps": 6, "seed": 5, "objective": "exact"}
    whole = pair(Stream(WORLD))
    inference.fit(*whole, Stream(WORLD), **settings)
    kept = {"checkpoint": tmp_path, "checkpoint_every": 0.0}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupted_at(patch, stop)
        inference.fit(*pair(Stream(WORLD)), Stream(WORLD), **settings, **kept)
    resumed = pair(Stream(WORLD))
    with monkeypatch.context() as patch:
        seen = interrupted_at(patch, None)
        inference.fit(*resumed, Stream(WORLD), **settings, **kept)
    assert same(weights(*resumed), weights(*whole))
    assert torch.equal(torch.cat(seen), Stream(WORLD).images(100 * (stop - 1), 600))  # from where it was


@pytest.mark.usefixtures("small_blocks")
def test_another_stream_cannot_go_on(tmp_path):
    settings = TRAINING | {"steps": 2, "objective": "exact", "checkpoint": tmp_path, "checkpoint_every": 0.0}
    inference.fit(*pair(Stream(WORLD)), Stream(WORLD), **settings)
    for other in (Stream(WORLD, seed=1), Stream(World("fixate-1", 5, grid=True)), Stream(World("transl-1", 5)),
                  Stream(WORLD).images(0, 200)):
        with pytest.raises(ValueError, match="other settings.*images .* there, .* here"):
            inference.fit(*pair(Stream(WORLD)), other, **settings)


def test_a_stream_has_no_epochs_and_no_images_of_another_shape():
    for length in ({"epochs": 2}, {"epochs": 2, "steps": 3}):
        with pytest.raises(ValueError, match="a stream has no epochs: give the length of training as steps"):
            inference.fit(*pair(Stream(WORLD)), Stream(WORLD), **length, **TRAINING)
    with pytest.raises(ValueError, match="steps or as epochs"):
        inference.fit(*pair(Stream(WORLD)), Stream(WORLD), **TRAINING)
    with pytest.raises(ValueError, match=r"images of shape \(2, 7, 7\) do not fit a model of images \(2, 5, 5\)"):
        inference.fit(*pair(Stream(WORLD)), Stream(World("fixate-1", 7)), steps=1, **TRAINING)
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        inference.fit(*pair(Stream(WORLD)), Stream(WORLD), steps=1, **TRAINING | {"batch_size": 0})


def test_a_guide_that_keeps_something_per_image_takes_no_stream():
    with pytest.raises(ValueError, match="as a tensor or a data set, not Stream"):
        guides.build("local", pair(Stream(WORLD))[0], Stream(WORLD))


@pytest.mark.usefixtures("small_blocks")
def test_a_plain_program_learns_from_a_stream(unchanged_generator):
    import pyro
    import pyro.distributions as dist

    def program(x=None):
        with pyro.plate("data", 1 if x is None else len(x)):
            speed = pyro.sample("speed", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            mean = speed[..., None, None].expand(*speed.shape, 5, 5)
            return pyro.sample("x", dist.Normal(mean, 0.3).to_event(3), obs=x)

    stream = Stream(WORLD)
    with unchanged_generator():
        guide = guides.build("amortized", program, stream)
        history = inference.fit(program, guide, stream, steps=30, **TRAINING | {"log_every": 10})
    assert history.column("elbo")[-1] > history.column("elbo")[0]


# Splits


def test_splits_are_reproducible_and_have_no_frame_in_common(unchanged_generator):
    with unchanged_generator():
        split, again, other = (rofl("fixate-1", **SIZES, seed=seed, cache=False) for seed in (4, 4, 5))
    assert isinstance(split, Dataset) and split.name == "rofl/fixate-1"
    assert (len(split.train), len(split.validation), len(split.test)) == (30, 20, 10) and split.event_shape == (2, 5, 5)
    assert split.targets == WORLD.cartesian_names and split.noise == Stream.noise
    gaze = []
    for part in ("train", "validation", "test"):
        mine, theirs = getattr(split, part), getattr(again, part)
        assert same_data(mine, theirs) and not torch.equal(mine.x, getattr(other, part).x)
        assert_factors_belong(mine, WORLD)
        gaze += [tuple(pair.tolist()) for pair in torch.stack([mine.factors["fix_x"], mine.factors["fix_y"]], 1)]
    assert len(set(gaze)) == 60


def test_a_part_does_not_depend_on_the_others_sizes():
    first, second = rofl("obj-1", **SIZES, cache=False), rofl("obj-1", **SIZES | {"n_test": 11, "n_validation": 1}, cache=False)
    assert same_data(first.train, second.train) and len(second.test) == 11


def test_a_second_load_reads_the_files(cache, monkeypatch):
    fresh = rofl("fixate-1", **SIZES, cache=False)
    assert not cache.exists()
    made = rofl("fixate-1", **SIZES)
    stored = files(cache)
    assert len(stored) == 3 and all(path.parent == cache / "rofl" and path.suffix == ".safetensors" for path in stored)
    assert [path.name.split("-")[2] for path in stored] == ["test", "train", "validation"]

    def never(*arguments, **options):
        raise AssertionError("generated again")

    monkeypatch.setattr(splits, "generate", never)
    loaded = rofl("fixate-1", **SIZES)
    for part in ("train", "validation", "test"):
        assert same_data(getattr(loaded, part), getattr(made, part)) and same_data(getattr(made, part), getattr(fresh, part))
    assert (loaded.name, loaded.targets, loaded.noise, loaded.about) == (made.name, made.targets, made.noise, made.about)
    loaded.train.x.zero_()  # what was loaded is the caller's
    assert same_data(rofl("fixate-1", **SIZES).train, fresh.train)
    assert files(cache) == stored


def test_every_setting_has_files_of_its_own(cache, monkeypatch):
    changes = [{}, {"grid": True}, {"residual": True}, {"seed": 1}, {"resolution": 7}, {"n_train": 31}, {"category": "transl-1"}]
    seen = []
    for change in changes:
        before = set(files(cache)) if cache.exists() else set()
        split = rofl(**{"category": "fixate-1"} | SIZES | {"n_validation": 1, "n_test": 1} | change)
        added = {path for path in set(files(cache)) - before if "-train-" in path.name}
        assert len(added) == 1
        world = World(change.get("category", "fixate-1"), change.get("resolution", 5), change.get("grid", False),
                      change.get("residual", False))
        assert_factors_belong(split.train, world)
        seen.append(split.train.x[:20].flatten().sum().item())
    assert len(set(seen)) >= len(seen) - 1  # a longer part may begin as the shorter one
    monkeypatch.setattr(splits, "GENERATION", splits.GENERATION + 1)
    stored = set(files(cache))
    rofl("fixate-1", **SIZES | {"n_validation": 1, "n_test": 1})
    assert len(set(files(cache)) - stored) == 3  # frames of an older generation are not read


def spoilt(path):
    """Bytes of several kinds that are no file of frames."""
    whole = path.read_bytes()
    x = read(path).x
    foreign = path.with_name("foreign.safetensors")
    column = torch.zeros(len(x), 1)
    for tensors, names in (({"a": x}, ["fix_x"]), ({"x": x, "factors": column}, ["fix_x", "fix_y"]),
                           ({"x": x, "factors": column[:3]}, ["fix_x"]), ({"x": x, "factors": column[:, 0]}, ["fix_x"]),
                           ({"x": x, "factors": column}, None)):
        save_file(tensors, foreign, names and {"names": json.dumps(names)})
        yield foreign.read_bytes()
    foreign.unlink()
    yield from (b"", b"not frames at all", whole[:100], whole[:-5])


@pytest.mark.parametrize("kind", range(9), ids=["other tensors", "more names", "fewer factors", "flat factors", "no names", "empty",
                                                "text", "header cut", "end cut"])
def test_a_damaged_file_is_an_error_to_read_and_is_made_anew(cache, kind):
    fresh = rofl("fixate-1", **SIZES)
    path = next(path for path in files(cache) if "-train-" in path.name)
    path.write_bytes(list(spoilt(path))[kind])
    with pytest.raises(OSError, match="damaged or not a file of flow frames") as caught:
        read(path)
    assert str(path) in str(caught.value)
    again = rofl("fixate-1", **SIZES)
    assert same_data(again.train, fresh.train) and same_data(read(path), fresh.train) and len(files(cache)) == 3


def test_a_cache_that_cannot_be_written_is_one_clear_error(cache):
    cache.write_text("a file where the folder should be")
    with pytest.raises(OSError, match=r"could not write .*ZOO_CACHE.*cache=False"):
        rofl("fixate-1", **SIZES)
    assert cache.read_text() == "a file where the folder should be"
    assert len(rofl("fixate-1", **SIZES, cache=False).train) == 30


def test_a_full_disk_leaves_nothing_in_the_cache(cache):
    with files_no_larger_than(3000), pytest.raises(OSError, match=r"could not write .*which takes 9,960 bytes.*ZOO_CACHE.*cache=False"):
        rofl("fixate-1", **SIZES)
    assert files(cache) == []
    assert len(rofl("fixate-1", **SIZES).train) == 30


def test_splits_by_name(cache):
    split = zoo.data.load("rofl/obj-1", **SIZES)
    assert split.name == "rofl/obj-1" and split.targets == World("obj-1").cartesian_names and len(split.targets) == 8
    assert same_data(split.test, rofl("obj-1", **SIZES, cache=False).test)
    assert zoo.data.load("rofl", **SIZES).name == "rofl/fixate-1"
    assert len(files(cache)) == 6


@pytest.mark.parametrize(("name", "options", "words"), [
    ("rofl/fixate-9", {}, "unknown category 'fixate-9'; there are fixate-0…8"), ("rofl/flight-1", {}, "unknown category 'flight-1'"),
    ("rofl/fixate-1", {"resolution": 16}, "resolution must be an odd number"),
    ("rofl/fixate-1", {"n_train": 0}, "n_train must be at least 1, not 0"),
    ("rofl/fixate-1", {"n_validation": -1}, "n_validation must be"), ("rofl/fixate-1", {"n_test": 0}, "n_test must be"),
    ("patches/fixate-1", {}, "'patches' has no member 'fixate-1'"), ("digits/fixate-1", {}, "'digits' has no member")])
def test_what_there_is_not_is_refused_before_anything_is_made(cache, name, options, words):
    with pytest.raises(ValueError, match=words):
        zoo.data.load(name, **options)
    assert not cache.exists()


# Files


@pytest.mark.parametrize("category", ["fixate-0", "fixate-1", "terrain-2"])
def test_a_file_gives_back_what_was_written(tmp_path, category):
    world = World(category, 7, grid=category == "fixate-1")
    data = frames(world, 6, seed=2)
    path = write(tmp_path / "new" / "flow.safetensors", data, world, seed=2)
    assert path == tmp_path / "new" / "flow.safetensors" and files(tmp_path) == [path]
    assert same_data(read(path), data) and same_data(read(str(path)), data)


def test_a_file_is_readable_by_safetensors_alone(tmp_path):
    world = World("fixate-1", 5, grid=True)
    data = frames(world, 6, seed=2)
    with safe_open(write(tmp_path / "flow.safetensors", data, world, seed=2), framework="pt") as file:
        assert sorted(file.keys()) == ["factors", "x"]
        about, x, factors = file.metadata(), file.get_tensor("x"), file.get_tensor("factors")
    names = json.loads(about["names"])
    assert names[:11] == list(world.factor_names) and set(world.cartesian_names) <= set(names)
    assert torch.equal(x, data.x) and factors.shape == (6, len(names)) and x.dtype == factors.dtype == torch.float32
    for name, column in zip(names, factors.T, strict=True):
        assert torch.equal(column, data.factors[name])
    assert about["seed"] == "2" and json.loads(about["world"]) == json.loads(json.dumps(asdict(world)))


def test_a_missing_file_is_said_to_be_missing(tmp_path):
    for path in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(FileNotFoundError, match="there is no file"):
            read(path)


@pytest.mark.parametrize("old", [None, b"what was there before"])
@pytest.mark.parametrize("how", ["full disk", "error", "interrupt"])
def test_what_cannot_be_written_whole_is_not_written(tmp_path, monkeypatch, old, how):
    path, data = tmp_path / "flow.safetensors", frames(WORLD, 30)
    if old is not None:
        path.write_bytes(old)

    def fails(tensors, temporary, metadata):
        temporary.write_bytes(b"some")
        raise OSError(errno.ENOSPC, "No space left on device") if how == "error" else KeyboardInterrupt

    if how == "full disk":
        with files_no_larger_than(3000), pytest.raises(OSError, match="could not write .*flow.safetensors, which takes 9,960 bytes"):
            write(path, data, WORLD, seed=0)
    else:
        monkeypatch.setattr(storage, "save_file", fails)
        error, words = (OSError, "No space left") if how == "error" else (KeyboardInterrupt, None)
        with pytest.raises(error, match=words):
            write(path, data, WORLD, seed=0)
    assert [each.name for each in tmp_path.iterdir()] == ([] if old is None else [path.name])
    assert old is None or path.read_bytes() == old


def test_a_place_that_is_a_folder_is_refused(tmp_path):
    (tmp_path / "flow.safetensors").mkdir()
    with pytest.raises(OSError, match="could not write"):
        write(tmp_path / "flow.safetensors", frames(WORLD, 2), WORLD, seed=0)
    assert files(tmp_path) == []


def test_images_without_factors_are_refused(tmp_path):
    with pytest.raises((ValueError, TypeError), match="factors"):
        write(tmp_path / "flow.safetensors", Data(torch.zeros(2, 2, 5, 5)), WORLD, seed=0)
    assert files(tmp_path) == []

"""Training: reproducible, resumable to the bit, and honest about bad input."""

import errno
import math
from inspect import signature

import pyro
import pytest
import torch
from safetensors.torch import save_file

import guides
import zoo
from guides.bounds import OBJECTIVES, elbo
from inference import checkpoint
from inference.recipes import recipe
from inference.schedules import cosine, ramp
from inference.training import fit

X = torch.randn(23, 1, 3, 3, generator=torch.Generator().manual_seed(0))
QUIET = {"batch_size": 5, "lr": 0.02, "log_every": 1, "progress": False}
DIVERGING = QUIET | {"lr": 1e25, "clip": None, "warmup": 0.0}


def pair(name="poisson", latents=4, **options):
    model = zoo.build(name, (1, 3, 3), latents=latents, seed=1, **options)
    return model, guides.build("amortized", model, seed=2)


def weights(*modules):
    return [value.clone() for module in modules for value in module.state_dict().values()]


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def timeless(history):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in history.rows]


class Spy:
    """An objective that notes what it is called with, and stops the run when its ``stop``-th call comes."""

    def __init__(self, monkeypatch, objective="elbo", stop=None):
        self.calls, self.inner, self.stop = [], OBJECTIVES[objective], stop
        monkeypatch.setitem(OBJECTIVES, objective, self)

    def __call__(self, model, guide, x, *, beta, particles):
        if len(self.calls) + 1 == self.stop:
            raise KeyboardInterrupt
        self.calls.append({"x": x, "beta": beta, "temperature": guide.temperature, "training": (model.training, guide.training)})
        return self.inner(model, guide, x, beta=beta, particles=particles)


@pytest.mark.parametrize("objective", ["elbo", "exact", "iwae", "rws"])
def test_the_same_seed_gives_the_same_bits(objective, unchanged_generator):
    results = []
    with unchanged_generator():
        for seed in (3, 3, 4):
            model, guide = pair()
            history = fit(model, guide, X, steps=9, seed=seed, objective=objective, particles=2, **QUIET)
            results.append((weights(model, guide), timeless(history)))
    assert same(results[0][0], results[1][0])
    assert str(results[0][1]) == str(results[1][1])  # as text, where nan equals nan
    assert not same(results[0][0], results[2][0])


@pytest.mark.parametrize(("name", "options"), [("poisson", {}), ("gaussian", {"decoder": "mlp"}), ("categorical", {})])
@pytest.mark.parametrize("stop", [2, 7, 12])
@pytest.mark.parametrize("log_every", [1, 3])
def test_an_interrupted_run_goes_on_to_the_same_bits(tmp_path, monkeypatch, name, options, stop, log_every):
    settings = QUIET | {"log_every": log_every, "steps": 14, "seed": 5, "optimizer": "adam" if stop == 7 else "adamax"}
    model, guide = pair(name, **options)
    whole = fit(model, guide, X, **settings)
    kept = {"checkpoint": tmp_path / "training", "checkpoint_every": 0.0}
    interrupted = pair(name, **options)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        Spy(patch, stop=stop)
        fit(*interrupted, X, **settings, **kept)
    assert not any(module.training for module in interrupted) and interrupted[1].temperature == 0.0
    assert checkpoint.exists(tmp_path / "training") == (stop > log_every)
    fresh = pair(name, **options)
    with monkeypatch.context() as patch:
        spy = Spy(patch)
        resumed = fit(*fresh, X, **settings, **kept)
    assert len(spy.calls) == 14 - (stop - 1) // log_every * log_every
    assert same(weights(*fresh), weights(model, guide))
    assert timeless(resumed) == timeless(whole)
    seconds = resumed.column("seconds")
    assert seconds == sorted(seconds)
    again = pair(name, **options)
    assert timeless(fit(*again, X, **settings, **kept)) == timeless(whole)  # a finished run is read, not run
    assert same(weights(*again), weights(model, guide))


def test_a_damaged_or_foreign_checkpoint_is_refused(tmp_path):
    settings = QUIET | {"steps": 6, "checkpoint": tmp_path, "checkpoint_every": 0.0}
    fit(*pair(), X, **settings)
    path = tmp_path / "training.safetensors"
    whole = path.read_bytes()
    for change, words in [({"steps": 7}, "steps 6 there, 7 here"), ({"lr": 0.5}, "lr 0.02 there, 0.5 here"),
                          ({"seed": 1}, "seed 0 there"), ({"optimizer": "adam"}, "optimizer adamax there")]:
        with pytest.raises(ValueError, match=words):
            fit(*pair(), X, **(settings | change))
    with pytest.raises(ValueError, match="images 23 there, 20 here"):
        fit(*pair(), X[:20], **settings)
    with pytest.raises(ValueError, match="another model or guide"):
        fit(*pair(latents=5), X, **settings)
    for content in (whole[:-7], whole[: len(whole) // 3], b"", b"not a checkpoint"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="damaged"):
            fit(*pair(), X, **settings)
        assert path.read_bytes() == content
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="no state of training"):
        fit(*pair(), X, **settings)


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    settings = QUIET | {"steps": 6, "checkpoint": tmp_path, "checkpoint_every": 0.0}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        Spy(patch, stop=4)
        fit(*pair(), X, **settings)
    old = (tmp_path / "training.safetensors").read_bytes()

    def full(tensors, path, metadata=None):
        path.write_bytes(old[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(checkpoint, "save_file", full)
        fit(*pair(), X, **settings)
    assert (tmp_path / "training.safetensors").read_bytes() == old
    assert [path.name for path in tmp_path.iterdir()] == ["training.safetensors"]
    assert len(fit(*pair(), X, **settings).rows) == 6


def test_a_frozen_model_is_left_as_it_is():
    model, guide = pair(learn_scale="pixel")
    model.prior.requires_grad_(False)  # what was frozen before stays so
    before, flags = weights(model), [p.requires_grad for p in model.parameters()]
    other = weights(guide)
    history = fit(model, guide, X, steps=8, freeze_model=True, **QUIET)
    assert same(weights(model), before) and not same(weights(guide), other)
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(p.grad is None for p in model.parameters())
    assert len(history.rows) == 8


def test_modes_and_batches(monkeypatch):
    spy = Spy(monkeypatch)
    model, guide = pair()
    fit(model, guide, X, epochs=2.5, **QUIET)
    assert len(spy.calls) == 10  # 23 images are 4 batches of 5
    for epoch in (spy.calls[:4], spy.calls[4:8]):
        seen = torch.cat([call["x"] for call in epoch]).flatten(1)
        assert all(len(call["x"]) == 5 for call in epoch)
        which = (seen.unsqueeze(1) == X.flatten(1)).all(-1)
        assert which.any(1).all() and len(which.int().argmax(1).unique()) == 20  # no image twice
    assert not torch.equal(spy.calls[0]["x"], spy.calls[4]["x"])
    assert {call["training"] for call in spy.calls} == {(True, True)}
    assert not model.training and not guide.training and guide.temperature == 0.0
    spy.calls.clear()
    fit(model, guide, X, steps=2, freeze_model=True, **QUIET | {"batch_size": 100})
    assert [(len(call["x"]), call["training"]) for call in spy.calls] == [(23, (False, True))] * 2


def test_schedules_in_training(monkeypatch):
    spy = Spy(monkeypatch)
    model, guide = pair()
    history = fit(model, guide, X, steps=40, **QUIET | {"lr": 0.01}, final_lr=1e-4, warmup=0.25, beta=2.0, beta_start=0.1,
                  beta_warmup=0.5, temperature=(0.8, 0.2), anneal=0.75)
    t = torch.arange(40, dtype=torch.float64) / 40
    rate = torch.where(t < 0.25, 0.01 * t / 0.25, 1e-4 + (0.01 - 1e-4) * torch.cos(math.pi * (t - 0.25) / 0.75 / 2).square())
    assert history.column("lr") == pytest.approx(rate.tolist())
    assert history.column("beta") == pytest.approx((0.1 + 1.9 * (t / 0.5).clamp(max=1)).tolist())
    temperature = (0.8 - 0.6 * (t / 0.75).clamp(max=1)).tolist()
    assert history.column("temperature") == pytest.approx(temperature)
    assert [call["temperature"] for call in spy.calls] == pytest.approx(temperature)
    assert [call["beta"] for call in spy.calls] == pytest.approx(history.column("beta"))
    assert history.column("step") == list(range(1, 41))
    without_kl = fit(*pair(), X, steps=4, beta=0.0, **QUIET)  # where beta is below its start, it stays
    assert without_kl.column("beta") == [0.0] * 4


def test_schedules():
    assert cosine(1.0, 0.5, 0.01, 0.1) == pytest.approx(0.01)
    assert cosine(0.1, 0.5, 0.01, 0.1) == pytest.approx(0.5)
    assert cosine(0.0, 0.5, 0.01, 0.0) == 0.5
    for restarts in (1, 2, 3):  # down, up and down again, ending low
        halves = 2 * restarts + 1
        turns = [cosine(0.2 + 0.8 * i / halves, 1.0, 0.0, 0.2, restarts) for i in range(halves + 1)]
        assert turns == pytest.approx([1.0, 0.0] * (restarts + 1))
    assert [ramp(t, 1.0, 3.0, 0.5) for t in (0.0, 0.25, 0.5, 0.9)] == [1.0, 2.0, 3.0, 3.0]
    assert ramp(0.0, 1.0, 3.0, 0.0) == 3.0


def test_default_temperatures_are_the_families_and_iwae_draws_exactly(monkeypatch):
    spy, exact = Spy(monkeypatch), Spy(monkeypatch, "iwae")
    fit(*pair("categorical"), X, steps=4, **QUIET)
    assert spy.calls[0]["temperature"] == 1.0 and spy.calls[-1]["temperature"] == 0.1
    fit(*pair(), X, steps=4, objective="iwae", particles=2, **QUIET)
    assert {(call["temperature"], call["beta"]) for call in exact.calls} == {(0.0, 1.0)}


def test_particles_are_the_objectives_own_by_default(monkeypatch):
    """One draw of an importance-weighted bound would be an ELBO under another name."""
    for objective, wanted in (("elbo", 1), ("exact", 1), ("iwae", 8), ("rws", 8)):
        drawn, inner = [], OBJECTIVES[objective]

        def noting(model, guide, x, *, beta=1.0, particles=wanted, inner=inner, drawn=drawn):
            drawn.append(particles)
            return inner(model, guide, x, beta=beta, particles=particles)

        assert signature(inner).parameters["particles"].default == wanted
        monkeypatch.setitem(OBJECTIVES, objective, noting)
        fit(*pair(), X, steps=1, objective=objective, **QUIET)
        fit(*pair(), X, steps=1, objective=objective, particles=3, **QUIET)
        assert drawn == [wanted, 3]


def test_history_averages_over_the_steps_since_the_last_row():
    fine = fit(*pair(), X, steps=10, **QUIET)
    coarse = fit(*pair(), X, steps=10, **QUIET | {"log_every": 4})
    assert coarse.column("step") == [4, 8, 10]
    for name in ("elbo", "kl"):
        values = fine.column(name)
        assert coarse.column(name) == pytest.approx([sum(values[a:b]) / (b - a) for a, b in ((0, 4), (4, 8), (8, 10))], rel=1e-5)


def test_history_holds_the_bound_with_the_whole_kl(monkeypatch):
    values = []

    def noting(*arguments, **options):
        bound = elbo(*arguments, **options)
        values.append((bound.log_likelihood - bound.kl).mean().item())
        return bound

    monkeypatch.setitem(OBJECTIVES, "elbo", noting)
    history = fit(*pair(), X, steps=3, beta=5.0, **QUIET)
    assert history.column("elbo") == pytest.approx(values)


def test_training_reaches_the_oracle():
    """Exact ELBO of linear Gaussian latents: what training finds for fixed weights is the best member, in closed form."""
    oracle = zoo.oracles.linear_gaussian(latents=3, event_shape=(1, 2, 2))
    torch.manual_seed(6)
    x = oracle(None, size=200).detach()
    guide = guides.build("amortized", oracle)
    fit(oracle, guide, x, steps=400, batch_size=200, objective="exact", freeze_model=True, beta_start=1.0, lr=0.05, progress=False)
    with torch.no_grad():
        found = guides.bounds.exact_elbo(oracle, guide, x).value.double()
    best = oracle.mean_field_elbo(x)
    assert (found <= best + 1e-4).all() and (best - found).max() < 1e-3


def test_a_diverging_run_says_so(tmp_path):
    with pytest.raises(FloatingPointError, match=r"around step \d+; try a smaller lr"):
        fit(*pair("gaussian"), X, steps=50, checkpoint=tmp_path / "state", **DIVERGING)
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(("options", "words"), [
    ({"objective": "elob"}, "unknown objective 'elob'; known are: elbo, exact, iwae"),
    ({"optimizer": "sgd"}, "unknown optimizer 'sgd'; known are: adamax, adam"),
    ({"batch_size": 0}, "batch_size must be at least 1"), ({"log_every": 0}, "log_every must be at least 1"),
    ({"steps": 0}, "at least one step"), ({"epochs": 2}, "one of the two"), ({"steps": None}, "one of the two"),
    ({"particles": 0}, "particles must be at least 1"), ({"compile": True}, "needs the objective 'exact'"),
    ({"objective": "iwae", "beta": 2.0, "particles": 2}, "no KL term"), ({"lr": -1.0}, "learning rate")])
def test_bad_options_are_refused(options, words):
    model, guide = pair()
    before = weights(model, guide)
    with pytest.raises(ValueError, match=words):
        fit(model, guide, X, **QUIET | {"steps": 3} | options)
    assert same(weights(model, guide), before) and guide.temperature == 0.0


@pytest.mark.parametrize(("images", "words"), [
    (X[:0], "at least one"), (X.clone().fill_(float("nan")), "finite"), (X.clone().index_fill_(0, torch.tensor([7]), math.inf),
                                                                         "finite"),
    (X[:, :, :2], r"images of shape \(1, 2, 3\) do not fit a model of images \(1, 3, 3\)"), ([1, 2],
                                                                                             "expected images as a tensor")])
def test_bad_images_are_refused(images, words):
    with pytest.raises(ValueError, match=words):
        fit(*pair(), images, steps=3, **QUIET)


def test_nothing_to_train_is_refused():
    oracle = zoo.oracles.mixture(event_shape=(1, 3, 3))
    guide = guides.build("amortized", oracle).requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to train"):
        fit(oracle, guide, X, steps=3, freeze_model=True, **QUIET)


def test_global_state_is_left(unchanged_generator):
    model, guide = pair("gaussian")
    flags = torch.distributions.Distribution._validate_args, pyro.distributions.is_validation_enabled()
    with unchanged_generator():
        fit(model, guide, X, steps=3, **QUIET)
        with pytest.raises(FloatingPointError):
            fit(model, guide, X, steps=50, **DIVERGING)
    assert flags == (torch.distributions.Distribution._validate_args, pyro.distributions.is_validation_enabled())
    assert len(pyro.get_param_store()) == 0 and torch.get_default_dtype() == torch.float32


def test_double_precision_models_train():
    model, guide = pair()
    history = fit(model.double(), guide.double(), X.double(), steps=4, **QUIET)
    assert model.prior.dtype == torch.float64 and len(history.rows) == 4


def test_progress_is_called_at_every_row():
    seen = []
    history = fit(*pair(), X, steps=5, **QUIET | {"log_every": 2, "progress": lambda step, steps, row: seen.append((step, steps,
                                                                                                                    row))})
    assert seen == [(row["step"], 5, row) for row in history.rows]


def test_the_published_settings():
    """Vafaii, Galor & Yates 2024, for patches and MNIST."""
    assert {name: recipe("paper", "patches")[name] for name in ("epochs", "batch_size", "lr", "clip")} == {
        "epochs": 3000, "batch_size": 1000, "lr": 0.005, "clip": 500.0}
    assert {name: recipe("paper", "mnist")[name] for name in ("epochs", "batch_size", "lr", "clip", "restarts", "weight_decay")} == {
        "epochs": 1200, "batch_size": 200, "lr": 0.002, "clip": 1000.0, "restarts": 2, "weight_decay": 3e-4}

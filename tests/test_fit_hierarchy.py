"""Training hierarchies as published: the recipe, exact resumption on a stream, saving, and the command line."""

import json
import math

import pytest
import torch
from typer.testing import CliRunner

import guides
import inference
import zoo
from guides.bounds import OBJECTIVES, elbo
from guides.objectives.relative import relative
from inference import recipes
from inference.ascended import lognorms
from inference.choices import choose_images, choose_options
from inference.cli import app
from inference.recipes import recipe
from inference.schedules import cosine, ramp
from inference.training import fit
from zoo.data import rofl
from zoo.data.base import Dataset
from zoo.networks.blocks import Conv, Expander

SHAPE = (2, 9, 9)
TINY = {"channels": 4, "groups": (1, 1), "pre": (1, 1), "up": (1, 1), "down": (1, 1), "units": 3}
STREAM = rofl.Stream(rofl.World("fixate-1", 9), seed=4)
QUIET = {"log_every": 1, "progress": False}


def pair(family="gaussian", **options):
    model = zoo.build("hierarchy", SHAPE, family=family, seed=1, **TINY | options)
    return model, guides.build("hierarchical", model, seed=2)


def weights(*modules):
    return torch.cat([value.flatten().clone() for module in modules for value in module.state_dict().values()])


def zoo_command(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.mark.parametrize(("objective", "family", "precision"),
                         [("elbo", ["gaussian", "poisson"], "float32"), ("relative", "gaussian", "bf16")])
def test_an_interrupted_run_on_a_stream_goes_on_to_the_same_bits(tmp_path, monkeypatch, objective, family, precision):
    settings = {"objective": objective, "steps": 8, "batch_size": 5, "norm_penalty": 0.1, "seed": 3, "precision": precision} | QUIET
    whole = pair(family)
    history = fit(*whole, STREAM, **settings)
    calls, inner = [], OBJECTIVES[objective]

    def stopping(model, guide, x, *, beta, particles=1, **options):
        calls.append(x)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return inner(model, guide, x, beta=beta, particles=particles, **options)

    monkeypatch.setitem(OBJECTIVES, objective, stopping)
    with pytest.raises(KeyboardInterrupt):
        fit(*pair(family), STREAM, checkpoint=tmp_path, checkpoint_every=0.0, **settings)
    resumed = pair(family)
    again = fit(*resumed, STREAM, checkpoint=tmp_path, checkpoint_every=0.0, **settings)
    assert len(calls) == 6 + 3 and torch.equal(calls[6], STREAM.images(25, 30))
    assert torch.equal(weights(*resumed), weights(*whole))
    assert again.column("elbo") == history.column("elbo") and again.column("kl") == history.column("kl")


@pytest.mark.parametrize("family", ["gaussian", ["gaussian", "poisson"]])
def test_scaled_like_this_the_published_loss_has_parallel_gradients(family):
    """EPE + β KL = b (EPE / b + KL) for b = β."""
    model, guide = pair(family, scale=0.3)
    guide.temperature, x = 0.5, STREAM.images(0, 6)
    parameters = [*model.parameters(), *guide.parameters()]
    with torch.random.fork_rng():
        torch.manual_seed(1)
        bound = elbo(model, guide, x)
        ours = torch.autograd.grad(-bound.surrogate.mean(), parameters, allow_unused=True)
        torch.manual_seed(1)
        bound = elbo(model, guide, x)
    pixels = 81 * (math.log(2 * math.pi) + 2 * math.log(0.3))
    error = -0.3 * (bound.log_likelihood + pixels)
    theirs = torch.autograd.grad((error + 0.3 * bound.kl).mean(), parameters, allow_unused=True)
    for one, other in zip(ours, theirs, strict=True):
        if one is not None:
            torch.testing.assert_close(0.3 * one, other, rtol=1e-4, atol=1e-5)


def test_the_paper_recipe_takes_the_published_steps(monkeypatch):
    """As many steps of the published loss, EPE + β KL + 10⁻⁴ mean(lognorm²), by hand, with the published numbers as they stand."""
    steps, batch, final = 40, 6, 0.4
    monkeypatch.setitem(recipes.HIERARCHIES, "paper", recipes.HIERARCHIES["paper"] | {"steps": steps, "batch_size": batch})
    model, guide = pair(scale=final)
    settings = recipe("paper", "rofl/fixate-1", model)
    assert settings["objective"] == "relative"
    fit(model, guide, STREAM, seed=7, **settings, **QUIET)

    theirs = pair(scale=final)
    parameters = [p for module in reversed(theirs) for p in module.parameters() if p.requires_grad]
    norms = [part.lognorm for module in theirs for part in module.modules() if isinstance(part, Conv | Expander)]
    optimizer = torch.optim.Adamax(parameters, lr=2e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=3e-4)
    clipped = 0
    with torch.random.fork_rng():
        torch.manual_seed(7)
        for step in range(steps):
            t = step / steps
            rate = 2e-3 * t / 0.0125 if t < 0.0125 else 1e-5 + (2e-3 - 1e-5) * (1 + math.cos(math.pi * (t - 0.0125) / 0.9875)) / 2
            beta = 1e-4 if t < 0.01 else min(1e-4 + (final - 1e-4) * (t - 0.01) / 0.5, final)
            bound = relative(*theirs, STREAM.images(step * batch, (step + 1) * batch), beta=beta / final)
            loss = final * -bound.surrogate.mean() + 1e-4 * torch.cat(norms).square().mean()
            optimizer.zero_grad()
            loss.backward()
            clipped += float(torch.nn.utils.clip_grad_norm_(parameters, 500.0 if t < 0.0125 else 250.0)) > 250.0
            optimizer.param_groups[0]["lr"] = rate
            optimizer.step()
    start = weights(*pair(scale=final))
    assert (weights(*theirs) - start).norm() > 0.1
    assert (weights(model, guide) - weights(*theirs)).norm() < 2e-3 * (weights(*theirs) - start).norm()


def test_the_published_numbers():
    model = zoo.build("cnvae_maps_s", (2, 17, 17))
    settings = recipe("paper", "rofl/fixate-1", model)
    b = 0.15
    for name, value in {"steps": 160_000, "batch_size": 600, "lr": 2e-3, "final_lr": 1e-5, "warmup": 0.0125, "beta_hold": 0.01,
                        "beta_warmup": 0.5, "beta_start": 1e-4 / b, "weight_decay": 3e-4 / b, "norm_penalty": 1e-4 / b,
                        "clip": 250 / b, "warmup_clip": 500 / b, "objective": "relative"}.items():
        assert settings.pop(name) == pytest.approx(value)
    assert settings == {}
    assert recipe("paper", "rofl/fixate-1", zoo.build("vae_maps_s", (2, 17, 17)))["clip"] == pytest.approx(250 / 1.5)
    of_digits = recipe("paper", "mnist", zoo.build("cnvae_maps_s", (1, 28, 28)))
    assert of_digits["clip"] == 250.0 and "objective" not in of_digits
    assert recipe("paper", "mnist", zoo.build("poisson", (1, 28, 28), latents=3)) == recipe("paper", "mnist")
    for budget in ("smoke", "default"):
        assert recipe(budget, "rofl/fixate-1", model) != recipe(budget, "rofl/fixate-1")


def test_schedules():
    ts = [0.0, 0.009, 0.01, 0.26, 0.51, 0.9]
    assert [ramp(t, 0.1, 1.0, 0.5, 0.01) for t in ts] == pytest.approx([0.1, 0.1, 0.1, 0.55, 1.0, 1.0])
    assert [ramp(t, 0.1, 1.0, 0.5) for t in (0.0, 0.25, 0.5)] == pytest.approx([0.1, 0.55, 1.0])
    assert ramp(0.0, 0.1, 1.0, 0.0) == 1.0
    assert cosine(1.0, 2e-3, 1e-5, 0.0125) == pytest.approx(1e-5)


def test_the_penalty_on_norms():
    """Its gradient is 2 λ lognorm / n, and all filters are in it, the transposed ones too."""
    model, guide = pair()
    found = lognorms(model, guide)
    names = [name for module in (model, guide) for name, _ in module.named_parameters() if name.endswith("lognorm")]
    assert len(found) == len(names) and any("spread" in name for name in names)
    count = sum(len(one) for one in found)
    frozen = {}
    for penalty in (0.0, 5.0):
        model, guide = pair()
        before = [one.detach().clone() for one in lognorms(guide)]
        with torch.random.fork_rng():
            torch.manual_seed(0)
            fit(model, guide, STREAM, steps=1, batch_size=4, norm_penalty=penalty, clip=None, freeze_model=True, **QUIET)
        frozen[penalty] = torch.cat([p.grad for p in lognorms(guide)])
    own = torch.cat(before)
    assert len(own) < count
    torch.testing.assert_close(frozen[5.0] - frozen[0.0], 10.0 * own / len(own), rtol=1e-2, atol=1e-3 * float(frozen[0.0].abs().max()))
    linear = zoo.build("gaussian", SHAPE, latents=3)
    with pytest.raises(ValueError, match="norm_penalty is of weight-normalized convolutions"):
        fit(linear, guides.build("amortized", linear), STREAM, steps=1, batch_size=4, norm_penalty=1e-4, progress=False)


def test_gradients_are_clipped_at_another_norm_during_the_warm_up(monkeypatch):
    limits, inner = [], torch.nn.utils.clip_grad_norm_
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda parameters, limit: limits.append(limit) or inner(parameters, limit))
    fit(*pair(), STREAM, steps=4, batch_size=2, warmup=0.5, clip=3.0, warmup_clip=7.0, **QUIET)
    fit(*pair(), STREAM, steps=2, batch_size=2, warmup=0.5, clip=3.0, **QUIET)
    assert limits == [7.0, 7.0, 3.0, 3.0, 3.0, 3.0]


@pytest.mark.parametrize("options", [{"family": ["gaussian", "poisson"]}, {"family": "poisson,gaussian", "spatial": True},
                                     {"likelihood": "endpoint", "scale": 0.2, "learn_scale": "image"}])
def test_hierarchies_are_saved_and_loaded(tmp_path, options):
    model, guide = pair(**options)
    fit(model, guide, STREAM, steps=2, batch_size=3, **QUIET)
    inference.save(tmp_path / "m", model, guide)
    loaded, its_guide, config = inference.load(tmp_path / "m")
    assert json.loads(json.dumps(config)) == config and config["guide"]["name"] == "hierarchical"
    assert torch.equal(weights(loaded, its_guide), weights(model, guide))
    assert [type(f) for f, _ in loaded.latents.values()] == [type(f) for f, _ in model.latents.values()]
    x = STREAM.images(0, 4)
    for site, params in guide.posterior(x).items():
        assert torch.equal(its_guide.posterior(x)[site], params)


def test_a_family_without_a_name_cannot_be_saved(tmp_path):
    model, guide = pair(zoo.latents.registry["gaussian"]())
    with pytest.raises(ValueError, match="names"):
        inference.save(tmp_path / "m", model, guide)


def test_what_is_chosen_where_nobody_said(monkeypatch):
    monkeypatch.setattr(zoo.data, "load", lambda name: name)
    stream = choose_images("rofl/transl-1", "cnvae_maps_s", seed=5)
    assert isinstance(stream, rofl.Stream) and stream.world.category == "transl-1" and stream.seed == 5
    assert choose_images("rofl", "hierarchy").world.category == "fixate-1"
    assert choose_images("rofl/fixate-1", "poisson") == "rofl/fixate-1" and choose_images("digits", "cnvae_maps_s") == "digits"
    nothing = {"latents": None, "decoder": None, "family": None}
    assert choose_options("cnvae_maps_s", nothing, "default", "rofl/fixate-1") == {}
    assert choose_options("poisson", nothing, "default", "rofl/fixate-1") == {"latents": 128}
    assert choose_options("sparse_coding", nothing | {"latents": 7}, "default", "patches") == {"latents": 7}
    with pytest.raises(ValueError, match="'cnvae_maps_s' has no option latents, decoder; it accepts: event_shape, family, units"):
        choose_options("cnvae_maps_s", {"latents": 512, "decoder": "lin"}, "smoke", "rofl")
    assert guides.default(pair()[0]) == "hierarchical" and guides.default(zoo.build("gaussian", SHAPE, latents=3)) == "amortized"


def test_a_hierarchy_from_the_command_line(tmp_path):
    words = ["fit", "cnvae_maps_s", "--data", "rofl/fixate-1", "--family", "gaussian,poisson,poisson", "--budget", "smoke", "--steps", 2,
             "--batch", 4, "--objective", "relative", "--precision", "bf16", "--seed", 3, "--device", "cpu", "--out", tmp_path / "m",
             "--quiet"]
    result = zoo_command(*words)
    assert result.exit_code == 0 and "after 2 steps" in result.stdout, result.output
    model, guide, config = inference.load(tmp_path / "m")
    assert [type(f).__name__ for f, _ in model.latents.values()] == ["Gaussian"] * 2 + ["Poisson"] * 4
    assert config["description"]["objective"] == "relative" and config["guide"] == {"name": "hierarchical", "seed": 3}
    assert config["history"][-1]["step"] == 2


@pytest.mark.parametrize(("words", "message"), [
    (["cnvae_maps_s", "--decoder", "lin"], "has no option decoder; it accepts: event_shape, family"),
    (["cnvae_maps_s", "--latents", 512], "has no option latents"),
    (["cnvae_maps_s", "--encoder", "lin"], "'hierarchical' has no option encoder"),
    (["cnvae_maps_s", "--family", "gaussian,poisson"], "one for each of 3 scales"),
    (["cnvae_maps_s", "--epochs", 1], "a stream has no epochs"),
    (["poisson", "--family", "gaussian"], "has no option family"), (["cnvae_maps_s", "--budget", "tiny"], "unknown budget 'tiny'"),
    (["cnvae_maps_s", "--precision", "half"], "unknown precision 'half'"),
    (["poisson", "--guide", "hierarchical"], "does not fit the model"),
    (["poisson", "--steps", 3, "--epochs", 2], "steps or as epochs, one of the two")])
def test_what_the_command_line_does_not_ignore(tmp_path, monkeypatch, words, message):
    images = zoo.data.base.Data(STREAM.images(0, 8))
    monkeypatch.setattr(zoo.data, "load", lambda name: Dataset(name, images, images, "frames"))
    result = zoo_command("fit", *words, "--data", "rofl/fixate-1", "--device", "cpu", "--out", tmp_path / "m", "--quiet")
    assert result.exit_code == 2 and result.stdout == "" and message in result.stderr, result.output
    assert len(result.stderr.strip().splitlines()) == 1 and not (tmp_path / "m").exists()

"""Semi-amortized inference: where it starts, that refining helps, and what learns from what."""

from __future__ import annotations

import pytest
import torch

import guides
import inference
import zoo
from guides.base import Fixed
from guides.bounds import OBJECTIVES, exact_elbo, over_steps
from guides.semi import REFINEMENTS, Ascent, Semi
from guides.stepwise import elbo_slope
from zoo.oracles import linear_gaussian

FAMILIES = [("gaussian", {}), ("gaussian", {"activation": "relu"}), ("laplace", {}), ("poisson", {"log_rate_init": (-1.0, 0.5)}),
            ("categorical", {}), ("categorical", {"groups": 2})]


def pair(name, options=None, n=20, **more):
    model = zoo.build(name, (1, 3, 3), latents=6, init_scale=0.6, seed=1, **(options or {}), **more)
    x = torch.randn(n, 1, 3, 3, generator=torch.Generator().manual_seed(2))
    return model, guides.build("amortized", model, init_scale=0.2, seed=3), x


def values_along(guide, x, steps=None):
    with torch.no_grad():
        return torch.stack([exact_elbo(guide.model, guide.at(deltas), x).value for deltas in guide.path(x, steps)])


@pytest.mark.parametrize(("name", "options"), FAMILIES)
@pytest.mark.parametrize("refine", REFINEMENTS)
def test_refining_starts_at_the_encoder_and_helps(name, options, refine):
    model, encoder, x = pair(name, options)
    guide = guides.build("semi", model, encoder=encoder, refine=refine, steps=20).eval()
    assert torch.equal(next(guide.path(x))["z"], encoder.delta(x)["z"])
    values = values_along(guide, x)
    if refine == "natural":
        rounding = 8 * torch.finfo(values.dtype).eps * (1 + values.abs())
        assert (values[1:] >= values[:-1] - rounding[1:]).all()
    assert (values[-1] > values[0]).all()
    best = inference.infer(model, x, "local", guide=encoder, steps=300, draws=1).stats["elbo_trace"][-1]
    assert best - values[-1].mean() < 0.35 * (best - values[0].mean())


def test_an_image_stays_where_no_guarded_step_helps():
    model, encoder, x = pair("poisson", {"log_rate_init": (-1.0, 0.5)})
    guide = guides.build("semi", model, encoder=encoder, halvings=0, step_size=1.5, steps=6).eval()
    values = values_along(guide, x)
    rounding = 8 * torch.finfo(values.dtype).eps * (1 + values.abs())
    assert (values[1:] >= values[:-1] - rounding[1:]).all() and (values[1:] == values[:-1]).any() and (values[-1] > values[0]).any()


def test_refining_from_an_encoder_of_its_own_is_seeded(unchanged_generator):
    model, _, x = pair("poisson")
    with unchanged_generator():
        first, again, other = (guides.build("semi", model, encoder="mlp", seed=seed).eval() for seed in (1, 1, 2))
    alone = guides.build("amortized", model, encoder="mlp", seed=1).eval()
    assert torch.equal(first.start(x)["z"], alone.delta(x)["z"]) and torch.equal(again.start(x)["z"], first.start(x)["z"])
    assert not torch.equal(other.start(x)["z"], first.start(x)["z"])


def test_steps_of_adam_are_those_of_pytorch():
    model, encoder, x = pair("gaussian")
    guide = Ascent(model, steps=6, lr=0.07)
    mine = [deltas["z"] for deltas in guide.path(x)]
    free = torch.zeros_like(mine[0]).requires_grad_(True)
    adam = torch.optim.Adam([free], lr=0.07)
    for step in range(7):
        torch.testing.assert_close(mine[step], free.detach(), rtol=1e-4, atol=1e-6)
        adam.zero_grad()
        (-exact_elbo(model, Fixed(model, {"z": free}), x).value.sum()).backward()
        adam.step()


def test_many_steps_arrive_at_the_best_factorized_posterior():
    oracle = linear_gaussian(latents=4, event_shape=(1, 3, 3), scale=0.5)
    with torch.random.fork_rng():
        torch.manual_seed(6)
        x = oracle(None, size=16).detach()
    encoder = guides.build("amortized", oracle, init_scale=0.2)
    for refine, steps, near in (("natural", 60, 2e-3), ("svi", 300, 2e-2)):
        params = inference.infer(oracle, x, "semi", guide=encoder, refine=refine, steps=steps, draws=1).params["z"]
        assert (params - oracle.mean_field(x)["z"]).abs().max() < near


def test_images_are_refined_one_by_one():
    model, encoder, x = pair("poisson", {"log_rate_init": (-1.0, 0.5)})
    for refine in REFINEMENTS:
        together, alone = (inference.infer(model, images, "semi", guide=encoder, refine=refine, steps=6, draws=1).params["z"]
                           for images in (x, x[3:5]))
        torch.testing.assert_close(alone, together[3:5], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("refine", REFINEMENTS)
def test_the_encoder_learns_from_its_own_output_and_the_model_from_the_end(refine):
    model, _, x = pair("gaussian")
    guide = guides.build("semi", model, refine=refine, steps=5, seed=2)
    bound = over_steps(exact_elbo)(model, guide, x)
    weight = next(guide.amortized.parameters())
    to_guide, to_model = torch.autograd.grad(bound.surrogate.mean(), [weight, model.decoder.weight])
    start, *_, end = guide.path(x)
    own = torch.autograd.grad(exact_elbo(model, guide.amortized, x).value.mean(), weight)[0]
    theirs = torch.autograd.grad(exact_elbo(model, Fixed(model, {"z": end["z"].detach()}), x).value.mean(), model.decoder.weight)[0]
    torch.testing.assert_close(to_guide, 0.5 * own)  # half: the bound is the mean over start and end
    torch.testing.assert_close(to_model, 0.5 * theirs)
    assert not end["z"].requires_grad and start["z"].requires_grad
    assert guide.scored == (0, 5)


@pytest.mark.parametrize("objective", ["online_exact", "online"])
def test_an_encoder_learns_from_online_objectives_by_the_first_divergence(objective):
    model, _, x = pair("gaussian")
    guide = guides.build("semi", model, refine="natural", steps=3, seed=2)
    bound = OBJECTIVES[objective](model, guide, x, beta=2.0)
    weight = next(guide.amortized.parameters())
    to_weight, = torch.autograd.grad(bound.value.mean(), weight)
    path = [guide.at(deltas).posterior(x)["z"] for deltas in guide.path(x)]
    kl = [model.family.unit_kl(after, before).sum(-1) for before, after in zip(path, path[1:], strict=False)]
    torch.testing.assert_close(bound.kl, sum(kl) / 3)
    torch.testing.assert_close(to_weight, torch.autograd.grad(-2.0 * kl[0].mean() / 3, weight)[0])
    with pytest.raises(ValueError, match="takes no burn_in"):
        guides.build("semi", model, burn_in=2)


@pytest.mark.parametrize(("name", "objective"), [("poisson", "exact"), ("laplace", "elbo")])
def test_model_and_encoder_train_together(name, objective):
    model, _, _ = pair(name)
    generator = torch.Generator().manual_seed(4)
    x = 2.0 * (torch.randn(60, 2, generator=generator) @ torch.randn(2, 9, generator=generator)).unflatten(-1, (1, 3, 3))
    guide = guides.build("semi", model, refine="svi", steps=4)
    before = {key: value.clone() for key, value in (model.state_dict() | guide.state_dict()).items()}
    history = inference.fit(model, guide, x, objective=objective, steps=60, batch_size=30, lr=2e-2, beta_start=1.0, warmup=0.0,
                            log_every=15, progress=False)
    assert history.rows[-1]["elbo"] > history.rows[0]["elbo"] + 1.0
    after = model.state_dict() | guide.state_dict()
    assert [key for key, value in before.items() if torch.equal(value, after[key])] == [
        key for key in before if key in ("log_scale",) or key == "prior" and name == "laplace"]


def test_infer_from_a_trained_encoder_and_from_a_trained_guide():
    model, encoder, x = pair("poisson", {"log_rate_init": (-1.0, 0.5)})
    semi = guides.build("semi", model, encoder=encoder, steps=5)
    for training in (True, False):
        encoder.train(training)
        for guide in (encoder, semi):
            posterior = inference.infer(model, x, "semi", guide=guide, draws=3)
            assert encoder.training == training and semi.training
    posterior = inference.infer(model, x, "semi", guide=encoder, draws=3)
    assert posterior.samples["z"].shape == (1, 3, 20, 6) and posterior.method == "semi"
    with torch.no_grad():
        path = [Fixed(model, deltas).posterior(x)["z"] for deltas in semi.path(x, 8)]
    torch.testing.assert_close(posterior.params["z"], path[8])
    for steps, there in ((None, 5), (0, 0), (3, 3)):
        params = inference.infer(model, x, "semi", guide=semi, draws=1, steps=steps).params["z"]
        torch.testing.assert_close(params, path[there])
    torch.testing.assert_close(inference.infer(model, x, "semi", guide=encoder, draws=1, steps=0).params["z"], encoder.posterior(x)["z"])
    adam = inference.infer(model, x, "semi", guide=encoder, draws=1, steps=4, refine="svi")
    assert not torch.allclose(adam.params["z"], path[4]) and adam.cost["gradient_evaluations"] == 4


def test_a_decoder_that_is_not_linear_is_refined_by_sampled_slopes():
    model, encoder, x = pair("gaussian", decoder="mlp")
    for refine, options in (("svi", {"lr": 0.05}), ("natural", {})):
        guide = guides.build("semi", model, encoder=encoder, refine=refine, steps=30, **options)
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(0)
            begun, *_, ended = guide.path(x)
            start, end = (elbo_slope(model, x, deltas, exact=False, particles=400)[0] for deltas in (begun, ended))
        assert (end - start).mean() > 0.5


def test_a_saved_guide_comes_back(tmp_path):
    model, _, x = pair("poisson")
    guide = guides.build("semi", model, encoder="mlp", refine="svi", steps=3, lr=0.2, seed=5).eval()
    inference.save(tmp_path / "saved", model, guide)
    _, other, _ = inference.load(tmp_path / "saved")
    with torch.no_grad():
        torch.testing.assert_close(other.delta(x), guide.delta(x))
    assert isinstance(other, Semi) and other.refinement.lr == 0.2


def test_bad_input():
    model, encoder, x = pair("poisson")
    stranger = zoo.build("gaussian", (1, 3, 3), latents=4)
    for options, message in (({"refine": "newton"}, "unknown refinement 'newton'; known are: natural, svi"),
                             ({"steps": 0}, "steps must be at least 1, not 0"),
                             ({"refine": "svi", "lr": 0.0}, "lr must be positive, not 0.0"),
                             ({"refine": "svi", "particles": 0}, "particles must be at least 1 and .* not 0 and 0.1"),
                             ({"refine": "svi", "temperature": 0.0}, "the temperature positive, not 4 and 0.0"),
                             ({"encoder": guides.build("amortized", stranger)},
                              r"the encoder infers z \(2 × 4 parameters\), the model has the latents z \(1 × 6 parameters\)")):
        with pytest.raises(ValueError, match=message):
            guides.build("semi", model, **options)
    with pytest.raises(ValueError, match="starts from a trained encoder, not from none"):
        inference.infer(model, x, "semi")
    with pytest.raises(ValueError, match="unknown refinement"):
        inference.infer(model, x, "semi", guide=encoder, refine="newton")
    with pytest.raises(ValueError, match="steps must not be negative"):
        inference.infer(model, x, "semi", guide=encoder, steps=-2)

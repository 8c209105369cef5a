"""Inference in steps, seen from outside: one posterior per run, the model that was asked about, images that stand alone."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.nn.functional import softplus

import guides
import inference
import zoo
from inference import comparison, recipes
from inference.methods import misfit
from inference.metrics.importance import importance
from inference.trajectory import path_of
from zoo.data.base import Data, Dataset
from zoo.data.binary import BinaryStream
from zoo.density import log_joint, log_terms
from zoo.models.one_layer import OneLayer
from zoo.networks.lin import LinearDecoder

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")  # ArviZ, of widely scattered weights


def curved(seed=0, latents=1, strength=2.0, **options):
    """A model with a nonlinear decoder, whose ELBO has no closed form: slopes of inference in steps are then sampled."""
    model = zoo.build(options.pop("family", "gaussian"), (1, 4, 4), latents=latents, decoder="elu", seed=seed, **options).eval()
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.mul_(strength)
    return model


def images(n=4, seed=0):
    return torch.randn(n, 1, 4, 4, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("seed", [0, 5])
def test_each_epoch_of_a_binary_stream_has_an_order_of_its_own(seed):
    stream = BinaryStream(Dataset("bits", Data(torch.eye(12).reshape(12, 1, 3, 4)), Data(torch.zeros(1, 1, 3, 4)), ""), seed=seed)
    orders = {tuple(stream.images(12 * epoch, 12 * epoch + 12).flatten(1).argmax(1).tolist()) for epoch in range(4)}
    assert len(orders) == 4, "two of 4 orders of 12 images are the same by a chance of 1e-8"


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_a_confident_error_about_a_binary_pixel_costs_what_it_costs_and_has_a_slope(sign):
    model = zoo.build("gaussian", (1, 2, 2), latents=1, likelihood="bernoulli")
    with torch.no_grad():
        model.decoder.weight.fill_(sign * 25.0)
    z = torch.ones(1, 1, requires_grad=True)
    value = log_terms(model, {"z": z}, torch.full((1, 1, 2, 2), float(sign < 0)))[1]
    slope, = torch.autograd.grad(value.sum(), z)
    assert value.item() == pytest.approx(-4 * softplus(torch.tensor(25.0)).item(), rel=1e-4)
    assert slope.item() == pytest.approx(-4 * 25.0, rel=1e-4)


@pytest.mark.parametrize("name", ["natural", "iterative", "semi"])
def test_samples_and_parameters_are_of_one_run_of_a_guide_whose_steps_are_sampled(name):
    model, x = curved(latents=3), images()
    guide = guides.build(name, model, steps=4, particles=1).eval()
    posterior = inference.infer(model, x, "amortized", guide=guide, draws=2000)
    loc, log_scale = posterior.params["z"].unbind(-2)
    standardized = (posterior.samples["z"][0] - loc) / log_scale.exp()
    assert standardized.mean(0).abs().max() < 6 / 2000**0.5


@pytest.mark.parametrize("name", ["natural", "iterative"])
def test_importance_weights_are_under_the_law_that_was_drawn_from(name):
    model, x = curved(), images()
    guide = guides.build(name, model, steps=6, particles=1).eval()
    grid = torch.linspace(-8, 8, 8001)
    with torch.no_grad():
        truth = log_joint(model, {"z": grid[:, None, None].expand(-1, len(x), 1)}, x).logsumexp(0) + (grid[1] - grid[0]).log()
    found = importance(model, x, guide, 4000)
    sure = found["reliable"]
    assert sure.any()
    assert ((found["log_px"] - truth).abs() < 5 * found["se"] + 0.05)[sure].all()


@pytest.mark.parametrize(("name", "options"), [("natural", {"steps": 30}), ("semi", {"steps": 8})])
def test_images_are_inferred_under_the_model_that_was_given_or_not_at_all(name, options):
    first, second = (zoo.build("gaussian", (1, 4, 4), latents=6, seed=seed, init_scale=0.5) for seed in (0, 1))
    x = images()

    def reached(model):
        guide = guides.build("natural" if name == "natural" else "amortized", model)
        return inference.score(second, x, inference.infer(second, x, name, guide=guide, draws=20, **options)).values["elbo"]

    try:
        foreign = reached(first)
    except ValueError:
        return
    assert foreign > reached(second) - 1.0


@pytest.mark.parametrize("name", ["natural", "iterative"])
def test_no_image_is_inferred_by_way_of_others_even_with_one_score_function_particle(name):
    model, x = curved(family="poisson", latents=5, strength=1.0, relaxation="score"), images(6)
    other = torch.cat([x[:3], 50 * x[3:]])
    guide = guides.build(name, model, steps=3, particles=1).eval()
    here, there = (inference.infer(model, y, name, guide=guide, draws=2).params["z"][:3] for y in (x, other))
    torch.testing.assert_close(here, there)


class StudentT(zoo.latents.Family):
    """A family without a closed-form KL divergence, hence without a Fisher information."""

    def distribution(self, params):
        loc, log_scale = params.unbind(-2)
        return dist.StudentT(4.0, loc, log_scale.exp()).to_event(1)


def test_the_method_semi_infers_what_it_says_it_fits():
    model = OneLayer(StudentT(), 3, LinearDecoder(3, (1, 4, 4)), (1, 4, 4), prior=torch.zeros(2, 3), learn_prior=False)
    if misfit("semi", model) is None:
        inference.infer(model, images(), "semi", guide=guides.build("amortized", model), draws=2)


def plain(x=None):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Poisson(x.new_full((len(x), 3), 0.5)).to_event(1))
        pyro.sample("x", dist.Normal(z @ torch.ones(3, 5), 0.7).to_event(1), obs=x)


@pytest.mark.parametrize("options", [{"prior": "online"}, {"floor": -8.0}])
def test_log_rates_of_a_plain_program_have_a_floor(options):
    x = torch.rand(4, 5)
    posterior = inference.infer(plain, x, "natural", guide=guides.build("natural", plain, x, steps=3, **options), draws=2)
    assert (posterior.params["z"] >= -8.0).all()


def test_a_guide_without_factorized_parameters_has_no_path_under_any_name():
    model, x = zoo.build("gaussian", (1, 4, 4), latents=3), images()
    assert path_of("amortized", model, x, guides.build("full", model)) is None


@pytest.mark.parametrize("method", ["flow", "full", "lowrank"])
def test_guides_of_a_comparison_have_the_encoder_that_was_asked_for(method):
    fitted = {"model": "gaussian", "data": "patches", "data_options": {}, "seed": 0, "device": "cpu", "encoder": "mlp"}
    described = comparison._inference(fitted, method, comparison.SIZES["smoke"])
    assert described["guide"]["options"].get("encoder") == "mlp"


def test_sparse_codes_can_be_compared_along_with_chains(tmp_path, monkeypatch):
    monkeypatch.setitem(recipes.BUDGETS, "smoke", {"steps": 2, "batch_size": 50, "lr": 1e-2})
    monkeypatch.setitem(comparison.SIZES, "smoke", {
        "data_options": {"n_train": 100, "n_validation": 20, "n_test": 8}, "images": 4, "draws": 10, "k": 4, "keep": 2, "local_steps": 2,
        "probe": 0, "mcmc": {"draws": 10, "chains": 2, "warmup": 2, "keep": 10}, "evidence": {"chains": 2, "temperatures": 2},
        "guide_steps": 2})
    result = comparison.compare("patches", ["laplace"], ["fista", "mcmc"], budget="smoke", latents=3, out=tmp_path, progress=False)
    assert [row["method"] for row in result.records] == ["fista", "mcmc"]

"""Numbers about posteriors against closed forms, hand computation and exact evidence."""

import math

import pytest
import torch

import guides
import zoo
from guides.bounds import exact_elbo
from inference import Posterior, infer, score
from inference.metrics import evidence
from inference.metrics.activity import active_curve
from inference.metrics.evidence import iwae_bound
from inference.metrics.memory import bytes_per_image, peak_bytes
from inference.metrics.scores import COLUMNS
from inference.metrics.sparsity import fraction_of_zeros, lifetime_sparsity, population_sparsity
from zoo.oracles import linear_gaussian, mixture, poisson_fixture


def pair(name, latents=6, n=24, pixels=(1, 3, 3), **options):
    model = zoo.build(name, pixels, latents=latents, init_scale=0.6, seed=1, **options)
    x = torch.randn(n, *pixels, generator=torch.Generator().manual_seed(2))
    guide = guides.build("amortized", model, init_scale=0.1, seed=3)
    return model.eval(), guide.eval(), x


def test_sparsity_in_closed_form():
    n = 7
    code = torch.zeros(n, 4)
    code[:, 1] = -3.0  # constant
    code[2, 2] = 5.0  # one image of n
    code[:3, 3] = 2.0  # three of n
    shared = (1 - 3 / n) / (1 - 1 / n)
    torch.testing.assert_close(lifetime_sparsity(code), torch.tensor([1.0, 0.0, 1.0, shared]))
    torch.testing.assert_close(population_sparsity(code.T), lifetime_sparsity(code))
    torch.testing.assert_close(lifetime_sparsity(9.0 * code), lifetime_sparsity(code))
    half_normal = torch.randn(400_000, 1, generator=torch.Generator().manual_seed(0))
    assert lifetime_sparsity(half_normal).item() == pytest.approx(1 - 2 / math.pi, abs=3e-3)
    assert fraction_of_zeros(code).item() == pytest.approx((7 + 0 + 6 + 4) / 28)
    with pytest.raises(ValueError, match="at least 2 along dimension 0"):
        lifetime_sparsity(code[:1])


def test_the_active_curve_falls_from_the_used_to_none():
    kl = torch.tensor([0.0, 1e-3, 0.02, 0.5, 3.0])
    thresholds, fractions = active_curve(kl)
    assert (fractions.diff() <= 0).all() and fractions[0] == 0.8 and fractions[-1] == 0.0
    assert active_curve(kl, torch.tensor([0.0, 0.02, 1.0]))[1].tolist() == pytest.approx([0.8, 0.4, 0.2])


CASES = [("gaussian", {}), ("gaussian", {"activation": "relu"}), ("gaussian", {"activation": "exp"}), ("laplace", {}),
         ("categorical", {}), ("categorical", {"groups": 2}), ("poisson", {"log_rate_init": (-1.0, 0.0)})]


@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.parametrize("decoder", ["lin", "mlp"])
def test_scores_against_draws(name, options, decoder):
    """Closed forms (linear decoder) or means over draws (mlp) against an independent, larger sample."""
    model, guide, x = pair(name, decoder=decoder, **options)
    with torch.no_grad():
        if options.get("activation") == "exp":
            guide.encoder.body[1].bias[6:] = -1.0
        posterior = infer(model, x, guide=guide, draws=4 if decoder == "lin" else 1000, seed=1)
        scores = score(model, x, posterior, k=4)
        family, params = model.family, posterior.params["z"]
        z = family.distribution(params).sample((4000,))
        code = family.code(z)
        means = model.decoder(code)
        errors = (x - means).square().flatten(2).sum(2)
        spread = errors.std(0) / math.sqrt(4000)
        assert (scores.per_image["mse"] - errors.mean(0)).abs().le((4.5 if decoder == "lin" else 10.0) * spread + 1e-5).all()

        mean, variance = family.moments(params)
        assert (mean - code.mean(0)).abs().le(5 * code.std(0) / math.sqrt(4000) + 1e-4).all()  # the code's mean, not the latent's
        by_mean = (x - model.decoder(mean)).square().flatten(1).sum(1).mean().item()
        assert scores.values["mse_mean"] == pytest.approx(by_mean, rel=1e-5)

        log_ratio = family.distribution(params).log_prob(z) - family.distribution(model.prior).log_prob(z)
        kl_spread = log_ratio.std(0) / math.sqrt(4000)
        assert (scores.per_image["kl"] - log_ratio.mean(0)).abs().le(4.5 * kl_spread + 1e-4).all()
    assert scores.unit_kl.shape == (6,) and (scores.unit_kl >= -1e-6).all()
    assert scores.unit_kl.sum().item() == pytest.approx(scores.values["kl"], rel=1e-4)
    assert scores.values["active"] == pytest.approx((scores.unit_kl > 1e-2).float().mean().item())
    torch.testing.assert_close(scores.per_image["distortion"], scores.per_image["mse"], rtol=1e-4, atol=1e-3)  # σ = √½
    torch.testing.assert_close(scores.per_image["nelbo"], scores.per_image["distortion"] + scores.per_image["kl"])
    constant = 9 / 2 * math.log(math.pi)  # σ = √½: −log N(x; y, ½) = ‖x − y‖² + (D/2) log π
    torch.testing.assert_close(scores.per_image["elbo"], -scores.per_image["nelbo"] - constant, rtol=1e-4, atol=1e-3)
    first = family.code(posterior.samples["z"][0, 0]).flatten(1)
    assert scores.values["lifetime_sparsity"] == pytest.approx(lifetime_sparsity(first).mean().item())
    assert scores.values["zeros"] == pytest.approx((first == 0).float().mean().item())
    assert list(scores.values) == list(COLUMNS)


def test_r2_by_hand():
    model, guide, x = pair("gaussian")
    scores = score(model, x, infer(model, x, guide=guide, draws=2), k=2)
    rows = []
    for image, error in zip(x, scores.per_image["mse"], strict=True):
        pixels = image.flatten().tolist()
        mean = sum(pixels) / 9
        rows.append(1 - error.item() / sum((pixel - mean) ** 2 for pixel in pixels))
    assert scores.per_image["r2"].tolist() == pytest.approx(rows, rel=1e-4)
    assert scores.values["r2"] == pytest.approx(sum(rows) / 24, rel=1e-4)
    nelbo = scores.per_image["nelbo"]
    assert scores.values["nelbo_se"] == pytest.approx(nelbo.std().item() / math.sqrt(24))


@pytest.mark.parametrize("learn_scale", ["image", "pixel"])
def test_a_learned_scale_enters_the_elbo_and_weighs_the_distortion(learn_scale):
    model, guide, x = pair("poisson", learn_scale=learn_scale)
    posterior = infer(model, x, guide=guide, draws=2)
    before = score(model, x, posterior, k=2)
    with torch.no_grad():
        model.log_scale += torch.linspace(-0.5, 0.5, model.log_scale.numel()).reshape(model.log_scale.shape)
        after, exact = score(model, x, posterior, k=2), exact_elbo(model, guide, x)
    constant = 4.5 * math.log(2.0 * math.pi) + model.log_scale.detach().expand(x.shape[1:]).sum()
    torch.testing.assert_close(after.per_image["nelbo"], -after.per_image["elbo"] - constant, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(after.per_image["mse"], before.per_image["mse"])
    assert (after.per_image["elbo"] - before.per_image["elbo"]).abs().max() > 0.05
    torch.testing.assert_close(after.per_image["elbo"], exact.value)


def test_a_point_estimate_has_no_bounds():
    model, guide, x = pair("poisson")
    posterior = infer(model, x, "map")
    scores = score(model, x, posterior)
    assert scores.unit_kl is None
    for name in ("kl", "nelbo", "elbo", "log_px_bound", "nelbo_se", "log_px_bound_se", "active"):
        assert math.isnan(scores.values[name])
    z = posterior.samples["z"][0, 0]
    error = (x - model.decode({"z": z})).square().flatten(1).sum(1)
    torch.testing.assert_close(scores.per_image["mse"], error.detach())
    assert scores.values["mse_mean"] == pytest.approx(scores.values["mse"], rel=1e-5)


def test_costs_are_passed_on():
    model, guide, x = pair("gaussian")
    posterior = Posterior("mine", infer(model, x, guide=guide, draws=1).samples,
                          cost={"gradient_evaluations": 12.0, "seconds": 0.6, "bytes_per_image": 2500.0})
    values = score(model, x, posterior).values
    assert (values["gradient_evaluations"], values["ms_per_image"], values["kb_per_image"]) == pytest.approx((12.0, 25.0, 2.5))


def test_scoring_leaves_the_generator_and_follows_the_seed(unchanged_generator):
    model, guide, x = pair("poisson")
    posterior = infer(model, x, guide=guide, draws=2)
    with unchanged_generator():
        first, again, other = (score(model, x, posterior, k=5, seed=seed).per_image["log_px_bound"] for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("oracle", [linear_gaussian(latents=3, event_shape=(1, 2, 2), scale=0.5), poisson_fixture(), mixture()],
                         ids=["gaussian", "poisson", "mixture"])
def test_the_importance_weighted_bound_against_exact_evidence(oracle):
    torch.manual_seed(4)
    x = oracle(None, size=4).detach()
    evidence_of_x = oracle.log_evidence(x)
    copies = x.repeat(500, 1, 1, 1)
    guide = guides.build("amortized", oracle, init_scale=0.1)
    params = {name: value.detach() for name, value in guide.posterior(copies).items()}
    with torch.no_grad():
        elbo = exact_elbo(oracle, guide, x).value
    means = []
    for k in (1, 8, 200):
        draws = iwae_bound(oracle, copies, params, k).reshape(500, 4)
        mean, error = draws.mean(0), draws.std(0) / math.sqrt(500)
        assert (mean < evidence_of_x + 4.5 * error).all()
        if k == 1:
            assert (mean - elbo).abs().le(4.5 * error).all()
        means.append(mean.mean())
    assert means[0] < means[1] < means[2]
    assert (evidence_of_x.mean() - means[2]) < 0.1 * (evidence_of_x.mean() - means[0]) + 0.02


def test_chunks_give_the_same_law(monkeypatch):
    """The bound of 12 draws, taken 12 and 5 at a time: equal means and variances over many copies of one image."""
    oracle = poisson_fixture()
    x = zoo.oracles.fixture_image().expand(4000, -1, -1, -1)
    params = {"z": oracle.prior.detach().expand(4000, 1, 2)}
    results = []
    for chunk in (2**24, 5 * 4000 * 2):
        monkeypatch.setattr(evidence, "CHUNK", chunk)
        results.append(iwae_bound(oracle, x, params, 12, seed=len(results)))
    (mean, other), (spread, its_spread) = (tuple(f(r) for r in results) for f in (torch.mean, torch.std))
    assert abs(mean - other) < 4.5 * math.sqrt((spread**2 + its_spread**2) / 4000)
    assert its_spread == pytest.approx(spread.item(), rel=0.1)
    monkeypatch.setattr(evidence, "CHUNK", 1)  # less than one draw of every image fits: still one at a time
    assert torch.isfinite(iwae_bound(oracle, x[:3], {"z": params["z"][:3]}, 4)).all()
    with pytest.raises(ValueError, match="k must be at least 1"):
        iwae_bound(oracle, x, params, 0)


def test_bounds_in_double_precision_stay_double():
    oracle = poisson_fixture().double()
    x = zoo.oracles.fixture_image().double()
    bound = iwae_bound(oracle, x, {"z": oracle.prior.detach().expand(1, 1, 2)}, 1000)
    assert bound.dtype == torch.float64 and abs(bound - oracle.log_evidence(x)).item() < 0.2


def test_peak_memory_is_what_was_alive_at_once():
    outside = torch.zeros(1000)

    def run():
        mine = outside.view(10, 100)  # a view of what was there before: nothing new
        a = torch.zeros(1000)  # 4 kB
        b = a + outside  # 8 kB
        del a
        c = b.reshape(10, 100).T  # a view: nothing new
        d = torch.zeros(500, dtype=torch.float64)  # 8 kB
        d += 1.0  # in place: nothing new
        del b, c
        return d.float(), mine  # 6 kB

    assert peak_bytes(run) == 8000
    assert peak_bytes(lambda: [torch.zeros(1000) for _ in range(5)]) == 20_000
    assert peak_bytes(lambda: [torch.zeros(1000).sum() for _ in range(5)][0] * 2) < 4100


def test_memory_per_image_grows_with_what_an_image_needs():
    model, guide, x = pair("gaussian")
    small = bytes_per_image(model, x, "amortized", guide=guide)
    large, its_guide, _ = pair("gaussian", latents=60)
    assert 0 < small < bytes_per_image(large, x, "amortized", guide=its_guide) < 60 * 4 * 40
    assert bytes_per_image(model, x, "local", guide=guide, steps=100_000) > 2 * 6 * 4 * 3  # delta, and Adam's two moments
    assert math.isnan(bytes_per_image(model, x[:8], "amortized", guide=guide))

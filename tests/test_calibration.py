"""Simulation-based calibration against posteriors that are known: what is right passes, what is wrong fails, as often as it should."""

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

import zoo
from inference import Posterior
from inference.metrics import calibration as calibration_module
from inference.metrics.calibration import Calibration, ranks_of, sbc, simulate
from inference.metrics.uniformity import ecdf_band, ecdf_p_values, holm
from inference.plots.calibration import plot_calibration
from zoo.oracles import linear_gaussian, mixture

DOUBLE = torch.float64


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


# -- are ranks uniform?

@pytest.mark.parametrize(("images", "levels"), [(3, 4), (5, 3), (1, 6), (7, 2)])
def test_p_values_are_exact_by_enumeration(images, levels):
    every = torch.tensor(list(itertools.product(range(levels), repeat=images))).T
    p_values = ecdf_p_values(every, levels)
    for p in p_values.unique():
        assert (p_values <= p + 1e-9).double().mean().item() == pytest.approx(p.item(), abs=1e-9)


@pytest.mark.parametrize(("images", "levels"), [(200, 20), (1000, 100), (60, 400)])
def test_p_values_of_uniform_ranks_are_uniform(images, levels):
    p_values = ecdf_p_values(torch.randint(levels, (images, 3000)), levels)
    for alpha in (0.01, 0.05, 0.2, 0.5):
        share = (p_values <= alpha).double().mean().item()
        error = math.sqrt(alpha * (1 - alpha) / 3000)
        assert 0.8 * alpha - 4 * error < share < alpha + 4 * error, (alpha, share)


def test_the_band_holds_whole_functions_as_often_as_it_says():
    ranks = torch.randint(50, (300, 4000))
    for level in (0.5, 0.95):
        at, low, high = ecdf_band(300, 50, level)
        below = torch.stack([(ranks < i).double().mean(0) for i in (at * 50).round()], 1)
        within = ((below >= low - 1e-9) & (below <= high + 1e-9)).all(1)
        error = math.sqrt(level * (1 - level) / 4000)
        assert level - 4 * error < within.double().mean() < level + 0.03 + 4 * error
        assert torch.equal(within, ecdf_p_values(ranks, 50) > 1 - level), "the band and the p-values are one test"


def test_ranks_that_are_not_uniform_are_found():
    normal = torch.randn(500, 1)
    for scale, shift in ((0.7, 0.0), (1.4, 0.0), (1.0, 0.3)):
        ranks = ((scale * torch.randn(99, 500, 1) + shift) < normal).sum(0)
        assert ecdf_p_values(ranks, 100) < 1e-4
    assert ecdf_p_values(torch.zeros(2000, 1, dtype=torch.long), 100) < 1e-15


def test_holms_method():
    p_values = torch.tensor([0.01, 0.04, 0.03, 0.005, 0.5], dtype=DOUBLE)
    torch.testing.assert_close(holm(p_values), torch.tensor([0.04, 0.09, 0.09, 0.025, 0.5], dtype=DOUBLE))
    assert holm(torch.tensor([0.9, 0.8])).max() == 1.0


# -- ranks

def test_ranks_count_what_is_below_and_ties_are_shared_out():
    def model(x=None, size=None):
        with pyro.plate("data", size if x is None else len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            return pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    truth, x = simulate(model, 5, seed=1)
    draws = {"z": torch.randn(9, 5, 2)}
    ranks = ranks_of(model, truth, draws, x, {"sum": lambda z, x: z["z"].sum(-1) + x.sum(-1), "both": lambda z, x: z["z"] ** 3})
    for n, k in itertools.product(range(5), range(2)):
        assert ranks["z"][n, k] == sum(draws["z"][i, n, k].item() < truth["z"][n, k].item() for i in range(9))
    joint = [dist.Normal(0.0, 1.0).log_prob(z).sum(-1) + dist.Normal(z, 1.0).log_prob(x).sum(-1) for z in (truth["z"], draws["z"])]
    assert torch.equal(ranks["log_joint"][:, 0], (joint[1] < joint[0]).sum(0)) and torch.equal(ranks["both"], ranks["z"])
    assert torch.equal(ranks["sum"][:, 0], (draws["z"].sum(-1) < truth["z"].sum(-1)).sum(0))
    same = {"z": truth["z"].expand(9, 5, 2).repeat(1, 1000, 1)}
    rounded = {"rounded": lambda z, x: 1.0 + 1e-7 * torch.arange(10.0)[:, None].expand(10, 5000)}  # of one number, but for rounding
    tied = ranks_of(model, {"z": truth["z"].repeat(1000, 1)}, same, x.repeat(1000, 1), rounded)
    for value in (*tied["z"].T, *tied["log_joint"].T, *tied["rounded"].T):
        assert stats.chisquare(torch.bincount(value, minlength=10).numpy()).pvalue > 1e-3
    for wrong, words in (({"z": lambda z, x: z["z"]}, "z is a latent"), ({"mean": lambda z, x: x.sum(-1)}, r"'mean' must give \(…, N\)")):
        with pytest.raises(ValueError, match=words):
            ranks_of(model, truth, draws, x, wrong)
    with pytest.raises(ValueError, match="draws the latents z, the method infers w"):
        ranks_of(model, truth, {"w": draws["z"]}, x)


def test_a_code_that_is_not_the_latent_has_ranks_too():
    model = zoo.build("gaussian", (1, 1, 3), latents=2, activation="relu")
    truth, x = simulate(model, 4)
    assert set(ranks_of(model, truth, {"z": torch.randn(5, 4, 2)}, x)) == {"z", "log_joint", "code"}
    plain = zoo.build("gaussian", (1, 1, 3), latents=2)
    assert set(ranks_of(plain, truth, {"z": torch.randn(5, 4, 2)}, x)) == {"z", "log_joint"}


# -- posteriors that are known

LINEAR = linear_gaussian(3, (1, 2, 2))


def normal_guide(scale=1.0, shift=0.0, correlated=True):
    """Draws from the exact posterior of LINEAR, or from what it is not."""

    def guide(x):
        mean, covariance = LINEAR.posterior(x)
        if not correlated:
            covariance = torch.diag(covariance.diagonal())
        mean = mean + shift * covariance.diagonal().sqrt()
        with pyro.plate("data", len(x)):
            return pyro.sample("z", dist.MultivariateNormal(mean.float(), scale**2 * covariance.float()))

    return guide


def prior_guide(x):
    with pyro.plate("data", len(x)):
        return pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))


def test_the_exact_posterior_passes_and_says_what_it_did(unchanged_generator):
    with unchanged_generator():
        found = sbc(LINEAR, "amortized", guide=normal_guide(), images=600, batch_size=250)
    assert found.levels == 100 and found.thin == 1 and found.method == "amortized"
    assert {name: tuple(value.shape) for name, value in found.ranks.items()} == {"z": (600, 3), "log_joint": (600, 1)}
    assert all(((value >= 0) & (value < 100)).all() for value in found.ranks.values())
    assert all(value.all() for value in found.passed().values())
    again, other = (sbc(LINEAR, "amortized", guide=normal_guide(), images=600, batch_size=250, seed=seed) for seed in (0, 1))
    assert torch.equal(again.ranks["z"], found.ranks["z"]) and not torch.equal(other.ranks["z"], found.ranks["z"])


@pytest.mark.parametrize(("wrong", "z", "joint"), [
    ({"scale": 0.7}, False, False), ({"scale": 1.4}, False, False), ({"shift": 0.4}, False, False), ({"correlated": False}, True, False)])
def test_wrong_posteriors_fail_where_they_are_wrong(wrong, z, joint):
    passed = sbc(LINEAR, "amortized", guide=normal_guide(**wrong), images=1000).passed()
    assert bool(passed["z"].all()) == z and bool(passed["z"].any()) == z and bool(passed["log_joint"]) == joint


def test_the_prior_in_the_place_of_the_posterior_is_found_by_the_log_joint_only():
    passed = sbc(LINEAR, "amortized", guide=prior_guide, images=1000).passed()
    assert passed["z"].all() and not passed["log_joint"]


def test_p_values_of_exact_posteriors_are_uniform():
    p_values = torch.cat([torch.cat(list(sbc(LINEAR, "amortized", guide=normal_guide(), images=60, draws=19, seed=seed).p_values.values()))
                          for seed in range(60)])
    assert stats.kstest(p_values.numpy(), "uniform").pvalue > 1e-3
    assert (p_values < 0.05).double().mean() < 0.05 + 4 * math.sqrt(0.05 * 0.95 / len(p_values))


def counts(x=None, size=None):
    with pyro.plate("data", size if x is None else len(x)):
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        return pyro.sample("x", dist.Poisson(rate[..., None]).to_event(1), obs=x)


@pytest.mark.parametrize("strength", [1.0, 1.5])
def test_a_plain_program_with_a_conjugate_posterior(strength):
    def guide(x):
        with pyro.plate("data", len(x)):
            return pyro.sample("rate", dist.Gamma(2.0 + strength * x[:, 0], torch.tensor(1.0 + strength)))

    found = sbc(counts, "amortized", guide=guide, images=1000, draws=63)
    assert bool(found.passed()["rate"]) == (strength == 1.0) and found.levels == 64


@pytest.mark.parametrize("flatness", [1.0, 0.5])
def test_one_hots_with_ties(flatness):
    model = mixture()

    def guide(x):
        with pyro.plate("data", len(x)):
            return pyro.sample("z", dist.OneHotCategorical(logits=flatness * model.responsibilities(x).log().float()))

    passed = sbc(model, "amortized", guide=guide, images=1000).passed()
    assert bool(passed["z"].all() and passed["log_joint"]) == (flatness == 1.0)


# -- Markov chains

@pytest.mark.parametrize(("family", "options"), [("gaussian", {"steps": 3.0}), ("laplace", {"steps": 3.0}), ("poisson", {}),
                                                 ("categorical", {})])
def test_markov_chains_are_calibrated(family, options):
    model = zoo.build(family, (1, 1, 3), latents=2 if family != "categorical" else 3, init_scale=1.0, seed=1)
    found = sbc(model, "mcmc", images=250, draws=23, warmup=60, **options)
    assert found.thin >= 1 and found.levels == 24
    assert all(value.all() for value in found.passed(0.01).values()), found.p_values


@pytest.mark.parametrize("broken", [False, True])
def test_chains_that_accept_every_step_are_not(broken, monkeypatch):
    if broken:
        monkeypatch.setattr(torch, "rand_like", torch.zeros_like)
    model = zoo.build("laplace", (1, 1, 3), latents=2, init_scale=1.0, seed=1)
    passed = sbc(model, "mcmc", images=250, draws=23, thin=3, warmup=60, steps=2.0, accept=0.5).passed(0.01)
    assert bool(passed["log_joint"]) != broken


def chains(autocorrelation):
    """Exact posteriors of LINEAR as chains whose draws are correlated."""

    def infer(model, x, method, *, guide, draws, seed, thin=1):
        generator = torch.Generator().manual_seed(seed)
        mean, covariance = LINEAR.posterior(x)
        state, states = torch.randn(4, len(x), 3, generator=generator, dtype=DOUBLE), []
        for _ in range(draws * thin):
            noise = torch.randn(state.shape, generator=generator, dtype=DOUBLE)
            state = autocorrelation * state + math.sqrt(1 - autocorrelation**2) * noise
            states.append(state)
        z = mean + torch.stack(states[thin - 1::thin], 1) @ torch.linalg.cholesky(covariance).T
        return Posterior(method, {"z": z.float()})

    return infer


def test_chains_are_thinned_to_near_independence(monkeypatch):
    monkeypatch.setattr(calibration_module, "infer", chains(0.8))
    found = sbc(LINEAR, "mcmc", images=2000, draws=10)  # of independent draws: (1 + .8) / (1 − .8) = 9 iterations for each
    assert 9 <= found.thin <= 25 and all(value.all() for value in found.passed().values())
    thick = sbc(LINEAR, "mcmc", images=2000, draws=10, thin=1)
    assert thick.thin == 1 and not thick.passed()["z"].any()
    monkeypatch.setattr(calibration_module, "infer", chains(0.0))
    assert sbc(LINEAR, "mcmc", images=100, draws=10).thin <= 3


def test_images_and_every_batch_have_random_numbers_of_their_own(monkeypatch):
    seeds, right, right_simulate = [], chains(0.0), simulate
    monkeypatch.setattr(calibration_module, "infer", lambda *args, **options: seeds.append(options["seed"]) or right(*args, **options))
    monkeypatch.setattr(calibration_module, "simulate", lambda *args: seeds.append(args[-1]) or right_simulate(*args))
    sbc(LINEAR, "mcmc", images=25, draws=5, batch_size=10)
    assert len(seeds) == len(set(seeds)) == 5, "images, pilot, three batches"  # with the images' seed, chains would start at the truth
    assert 0 not in seeds


def test_weighted_draws_are_resampled():
    weights = torch.full((2, 3, 4), -math.inf)
    weights[1, 2] = 0.0
    z = torch.randn(2, 3, 4, 5)
    flat = calibration_module._flat_draws(Posterior("some", {"z": z}, weights), 6)["z"]
    assert torch.equal(flat, z[1, 2].expand(6, 4, 5))
    plain = calibration_module._flat_draws(Posterior("some", {"z": z}), 5)["z"]
    assert torch.equal(plain, torch.stack([z[1, 0], z[0, 1], z[1, 1], z[0, 2], z[1, 2]]))


# -- the figure

def found(**shifts):
    ranks = {name: ((torch.randn(99, 400, 4) + torch.tensor(shift)) < torch.randn(400, 4)).sum(0) for name, shift in shifts.items()}
    return Calibration("some", ranks, 100, {name: ecdf_p_values(value, 100) for name, value in ranks.items()})


def test_the_figure_shows_functions_in_the_band_and_the_worst_histogram():
    calibration = found(z=[0.0, 0.0, 0.5, 0.0], w=[0.0] * 4)
    figure = plot_calibration(calibration, title="Chains", bins=10)
    assert len(figure.axes) == 4 and figure.get_suptitle() == "Chains"
    (left, right), (below, _) = figure.axes[:2], figure.axes[2:]
    assert left.get_title("left") == "z: 1 of 4 fail" and below.get_title("left") == "w: 0 of 4 fail"
    assert right.get_title("left").startswith("latent 2, the least uniform: p ")
    lines = [line for line in left.lines if len(line.get_xdata()) > 2]
    assert len(lines) == 4 and len({line.get_color() for line in lines}) == 2
    (wrong,) = [line for line in lines if line.get_color() == "#D55E00"]
    ranks = calibration.ranks["z"][:, 2]
    for x, y in zip(wrong.get_xdata(), wrong.get_ydata(), strict=True):
        assert y == pytest.approx((ranks < round(100 * x)).double().mean().item() - x, abs=1e-9)
    bars = [patch for patch in right.patches if hasattr(patch, "get_height")]
    heights = [bar.get_height() for bar in bars]
    assert heights == pytest.approx((torch.histc(ranks.double(), 10, 0, 100) / 40).tolist())
    assert figure.axes[2].get_xlabel() == "rank of the truth among 99 draws (fraction)"


def test_the_band_of_bars_is_the_binomials():
    (_, right) = plot_calibration(found(log_joint=[0.0] * 4), bins=10).axes
    band = next(patch for patch in right.patches if not hasattr(patch, "get_height"))
    low, high = (stats.binom.ppf(p, 400, 0.1) / 40 for p in (0.025, 0.975))
    data = band.get_data()
    assert max(data.values) == pytest.approx(high, abs=0.03) and min(data.baseline) == pytest.approx(low, abs=0.03)


def test_bad_input_is_refused():
    for wrong, words in (({"images": 1}, "images"), ({"draws": 0}, "draws"), ({"thin": 0}, "thin"), ({"batch_size": 0}, "batch_size"),
                         ({"method": "amortised"}, "unknown methods"), ({"method": "map", "images": 3}, "'map' gives 1 of 99 draws"),
                         ({"method": "amortized", "thin": 2}, "are independent: thin must be 1, not 2"), ({"walkers": 3}, "walkers")):
        with pytest.raises(ValueError, match=words):
            sbc(LINEAR, **({"images": 4} | wrong))
    for ranks in (torch.zeros(3, 2), torch.zeros(3, dtype=torch.long), torch.full((3, 2), 5), torch.full((3, 2), -1)):
        with pytest.raises(ValueError, match=r"whole numbers \(N, K\) from 0 to 4"):
            ecdf_p_values(ranks, 5)
    with pytest.raises(ValueError, match="at least 2 levels"):
        ecdf_p_values(torch.zeros(3, 2, dtype=torch.long), 1)
    with pytest.raises(ValueError, match="between 0 and 1"):
        ecdf_band(10, 10, 1.0)
    with pytest.raises(ValueError, match="no sample site 'x', but z"):
        simulate(lambda x=None, size=None: pyro.sample("z", dist.Normal(torch.zeros(size), 1.0)), 3)
    with pytest.raises(ValueError, match="no ranks"):
        plot_calibration(Calibration("some", {}, 10, {}))
    with pytest.raises(ValueError, match="bins must be"):
        plot_calibration(found(z=[0.0] * 4), bins=1)

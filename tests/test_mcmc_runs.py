"""Runs of chains: summaries without draws, progress, Ctrl-C, starts, and the samplers that are chosen by name."""

import math

import arviz
import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import mixed

import zoo
from inference import infer, log_joint
from inference.mcmc import diagnostics
from inference.mcmc.chains import check_moved, collect
from inference.mcmc.nuts import nuts
from inference.progress import sampling_bar
from zoo.oracles import linear_gaussian, poisson_fixture


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def unit(x=None, size=None):
    """Both halves of the posterior's precision are ½: it is N(x / 2, 1)."""
    with pyro.plate("data", size if x is None else len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(1), math.sqrt(2.0)).to_event(1))
        return pyro.sample("x", dist.Normal(z, math.sqrt(2.0)).to_event(1), obs=x)


def errors(values, expected):
    """Standard errors of the mean of draws ``(C, S, …)`` from what is expected, by effective samples or chains."""
    values = values.double()
    by_ess, by_chains = values.flatten(0, 1).std(0) / diagnostics.ess(values).sqrt(), values.mean(1).std(0) / math.sqrt(len(values))
    return (values.mean((0, 1)) - expected).abs() / torch.maximum(by_ess, by_chains)


# -- summaries

def collected(draws, **options):
    """What is gathered of given draws ``(C, S, …)``."""
    steps = iter(range(draws.shape[1]))
    at = []

    def move():
        at[:] = [next(steps)]
        return torch.ones(3)

    return collect(move, lambda: {"z": draws[:, at[0]]}, draws.shape[1], warmup=0, **options)


def autoregressive(rho, chains, draws, numbers):
    z = [torch.randn(chains, numbers)]
    for _ in range(draws - 1):
        z.append(rho * z[-1] + math.sqrt(1 - rho**2) * torch.randn(chains, numbers))
    return torch.stack(z, 1)


def split_rhat(draws):
    """Gelman et al. 2013, equations 11.1 to 11.4."""
    half = draws.shape[1] // 2
    halves = torch.cat([draws[:, :half], draws[:, half:2 * half]]).double()
    between, within = half * halves.mean(1).var(0), halves.var(1).mean(0)
    return (((half - 1) / half * within + between / half) / within).sqrt()


@pytest.mark.parametrize(("draws", "keep"), [(40, 40), (41, 7), (100, 1), (64, 64), (30, 99)])
def test_a_summary_says_what_all_draws_say(draws, keep):
    z = autoregressive(0.6, 3, draws, 5) * torch.tensor([1.0, 10.0, 0.1, 1.0, 1.0]) + torch.tensor([0.0, 100.0, -3.0, 0.0, 5.0])
    run = collected(z, keep=keep)
    summary = run.summary["z"]
    torch.testing.assert_close(summary.mean, z.mean((0, 1)))
    torch.testing.assert_close(summary.sd, z.flatten(0, 1).std(0), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(summary.rhat.double(), split_rhat(z), rtol=1e-4 if draws % 2 == 0 else 0.02, atol=0)
    places = min(keep, draws)
    last = [max(i for i in range(draws) if i * places // draws == place) for place in range(places)]
    assert torch.equal(run.kept["z"], z[:, last]) and run.made == draws
    assert collected(z).summary == {} and torch.equal(collected(z).kept["z"], z)


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
def test_effective_samples_of_an_autoregression(rho):
    found = collected(autoregressive(rho, 4, 4000, 300), keep=1).summary["z"].ess
    assert found.median().item() == pytest.approx(16_000 * (1 - rho) / (1 + rho), rel={0.0: 0.1, 0.5: 0.1, 0.9: 0.25}[rho])
    assert found.max() <= 16_000


@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_chains_that_are_stuck_apart_have_few_effective_samples(noise):
    z = noise * torch.randn(2, 400, 3) + torch.tensor([-5.0, 5.0])[:, None, None]
    summary = collected(z, keep=1).summary["z"]
    assert (summary.rhat > 5).all() and (diagnostics.ess(z) < 10).all() and (summary.ess < 50).all()


def test_a_summary_of_what_does_not_vary_or_hardly_began():
    z = torch.randn(2, 20, 2)
    z[..., 0] = 3.0
    summary = collected(z, keep=1).summary["z"]
    assert summary.rhat[0].isnan() and summary.ess[0].isnan() and summary.rhat[1].isfinite() and summary.sd[0] == 0
    short = collected(torch.randn(2, 3, 2), keep=1).summary["z"]
    assert short.rhat.isnan().all() and short.ess.isfinite().all()
    single = collected(torch.randn(1, 1, 2), keep=1).summary["z"]
    assert single.mean.isfinite().all() and single.ess.isnan().all()


def test_the_rhat_so_far_is_about_one_for_draws_that_are_independent():
    seen, z = [], torch.randn(4, 400, 500)
    steps = iter(range(400))
    at = []
    collect(lambda: at.append(next(steps)) or torch.ones(3), lambda: {"log_prob": z[:, at[-1]]}, 217, warmup=0,
            report=lambda done, total, chance, worst: seen.append(worst))
    assert all(worst < 1.1 for worst in seen if not math.isnan(worst)) and not math.isnan(seen[-1])


@pytest.mark.parametrize("program", ["gaussian", "counts"])
def test_keeping_a_part_changes_nothing_else(program, tmp_path):
    model = linear_gaussian(3, (1, 2, 2)) if program == "gaussian" else poisson_fixture()
    x = model(size=5).detach()
    options = {"draws": 60, "warmup": 40, "chains": 3, "thin": 2} | ({"steps": 3.0} if program == "gaussian" else {})
    whole, part = infer(model, x, "mcmc", **options), infer(model, x, "mcmc", keep=6, **options)
    z = whole.samples["z"]
    assert part.samples["z"].shape[:3] == (3, 6, 5) and torch.equal(part.samples["z"], z[:, 9::10]) and whole.summary is None
    summary = part.summary["z"]
    torch.testing.assert_close(part.mean["z"], z.mean((0, 1)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(summary["sd"], z.flatten(0, 1).std(0), rtol=1e-3, atol=1e-5)
    moving = z.flatten(0, 1).std(0) > 0
    torch.testing.assert_close(summary["rhat"].double()[moving], split_rhat(z)[moving], rtol=1e-3, atol=0)
    torch.testing.assert_close(part.stats["log_joint"], whole.stats["log_joint"], rtol=1e-4, atol=1e-4)
    worst = summary["rhat"].nan_to_num(nan=0.0).amax(-1)
    torch.testing.assert_close(part.stats["rhat"], torch.where(worst > 0, worst, torch.nan), equal_nan=True)
    assert torch.equal(part.stats["ess"].isnan(), part.stats["rhat"].isnan())

    first, moved = part.first(2), part.to("meta")
    assert torch.equal(first.mean["z"], part.mean["z"][:2]) and first.summary["z"]["ess"].shape[0] == 2 and len(first) == 2
    torch.testing.assert_close(first.stats["rhat"], part.stats["rhat"][:2], equal_nan=True)
    assert moved.summary["z"]["sd"].is_meta and moved.samples["z"].is_meta and moved.cost == part.cost
    read = arviz.from_netcdf(part.to_netcdf(tmp_path / "part.nc"))
    for what, value in summary.items():
        torch.testing.assert_close(torch.as_tensor(read.summary[f"z_{what}"].values), value, equal_nan=True)


@pytest.mark.parametrize("keep", [None, 2])
def test_sweeps_need_no_gradients(keep):
    model = zoo.build("poisson", (1, 2, 2), latents=3)  # its prior and decoder are learned
    posterior = infer(model, torch.randn(4, 1, 2, 2), "mcmc", draws=5, warmup=2, keep=keep)
    assert not any(value.requires_grad for value in posterior.stats.values())
    assert posterior.cost["gradient_evaluations"] == 0


# -- Ctrl-C, progress, chains that do not move

def interrupted(at, **options):
    """A run that is stopped by hand when the fraction ``at`` of it is done."""

    def stop(fraction):
        if fraction >= at:
            raise KeyboardInterrupt

    return infer(unit, torch.tensor([[0.0], [1.0]]), "mcmc", draws=20, warmup=10, thin=3, steps=1.0, progress=stop, **options)


def test_ctrl_c_keeps_the_draws_there_are():
    whole = infer(unit, torch.tensor([[0.0], [1.0]]), "mcmc", draws=20, warmup=10, thin=3, steps=1.0)
    with pytest.warns(RuntimeWarning, match="stopped by hand: 8 of 20 draws of each chain were made and are kept"):
        part = interrupted(34 / 70)
    assert torch.equal(part.samples["z"], whole.samples["z"][:, :8])
    torch.testing.assert_close(part.stats["log_joint"], log_joint(unit, part.samples, torch.tensor([[0.0], [1.0]])).mean((0, 1)))
    assert {"rhat", "ess", "accepted", "step_size"} <= set(part.stats)
    with pytest.warns(RuntimeWarning, match="8 of 20"):
        summed = interrupted(34 / 70, keep=5)
    assert torch.equal(summed.samples["z"], whole.samples["z"][:, [3, 7]])
    torch.testing.assert_close(summed.mean["z"], part.samples["z"].mean((0, 1)))


def test_ctrl_c_between_draws_does_not_make_more_moves_accepted_than_made():
    with pytest.warns(RuntimeWarning, match="1 of 20"):
        part = interrupted(15 / 70, step_size=0.01)
    assert part.stats["accepted"].max() <= 1.0


@pytest.mark.parametrize("at", [0.0, 12 / 70])
def test_ctrl_c_before_the_first_draw_is_one(at, unchanged_generator):
    with unchanged_generator(), pytest.raises(KeyboardInterrupt):
        interrupted(at)


@pytest.mark.parametrize(("program", "names"), [(unit, "latents z"), (mixed, "latents level")])
def test_chains_of_which_nothing_is_accepted_are_an_error(program, names, monkeypatch):
    monkeypatch.setattr(torch, "rand_like", torch.ones_like)
    with pytest.raises(ValueError, match=rf"no proposal was accepted for image 0 \(3 of 3 images; {names}\).*start='map'"):
        infer(program, torch.zeros(3, 1), "mcmc", draws=25, warmup=0, chains=2, steps=1.0)
    infer(program, torch.zeros(3, 1), "mcmc", draws=10, warmup=0, chains=2, steps=1.0)  # too few to say


def test_chains_that_never_move_are_told_of_and_an_image_without_others_is_refused():
    with pytest.raises(ValueError, match=r"image 1 \(1 of 3 images; latents a, b\)"):
        check_moved(torch.tensor([[0.0, 0.0, 9.0], [3.0, 0.0, 9.0]]), 60, ["a", "b"])
    with pytest.warns(RuntimeWarning, match=r"2 of 6 chains, of 2 images, never moved \(latents a\)"):
        check_moved(torch.tensor([[0.0, 4.0, 9.0], [3.0, 0.0, 9.0]]), 60, ["a"])
    check_moved(torch.tensor([[0.0, 4.0], [3.0, 0.0]]), 10, ["a"])  # too few to tell


@pytest.mark.parametrize("draws", [20, 201])
def test_progress_rises_to_one(draws):
    seen = []
    infer(unit, torch.zeros(1, 1), "mcmc", draws=draws, warmup=100, steps=1.0, progress=seen.append)
    assert seen == sorted(set(seen)) and seen[0] < 0.02 and len(seen) <= 202 and seen[-1] == 1.0


def test_the_bar_tells_acceptance_and_convergence(capsys):
    infer(unit, torch.zeros(2, 1), "mcmc", draws=40, warmup=10, steps=1.0, progress=True)
    shown = capsys.readouterr().err
    assert "sampling" in shown and "accepted 0." in shown and "R-hat" in shown
    with sampling_bar() as report:
        report(1, 2, torch.tensor([0.5]), math.nan)
        report(2, 2, torch.tensor([1.0]), 1.234)
    assert "accepted 0.75, R-hat 1.234 (90 % of images)" in " ".join(capsys.readouterr().err.split())


def test_chains_start_at_the_summit():
    model = linear_gaussian(3, (1, 2, 2), scale=0.5)
    x = model(size=4).detach()
    still = {"draws": 1, "warmup": 0, "steps": 1.0, "step_size": 1e-4, "chains": 5}
    summit = infer(model, x, "mcmc", start="map", **still).samples["z"]
    torch.testing.assert_close(summit, model.posterior(x)[0].float().expand_as(summit), atol=0.05, rtol=0)
    assert infer(model, x, "mcmc", start="prior", **still).samples["z"].std(0).mean() > 0.5


# -- samplers by name

@pytest.mark.parametrize(("sampler", "size", "variance"), [("mala", 1.2, 1.0), ("langevin", 1.2, 1 / (1 - 0.36)),
                                                           ("langevin", 0.4, 1 / (1 - 0.04))])
def test_langevin_moves_have_the_law_that_is_known(sampler, size, variance):
    x = torch.linspace(-2, 2, 10_000)[:, None]
    z = infer(unit, x, "mcmc", sampler=sampler, step_size=size, draws=6, warmup=40, thin=10, chains=2).samples["z"] - x / 2
    assert z.mean().abs() < 0.015 and z.square().mean().item() == pytest.approx(variance, rel=0.015)


def test_what_langevin_moves_are_tuned_for_is_near_the_truth():
    model = linear_gaussian(3, (1, 2, 2))
    x = model(size=10).detach()
    mean, covariance = model.posterior(x)
    mala, langevin = (infer(model, x, "mcmc", sampler=name, draws=100, warmup=120, thin=3, chains=16) for name in ("mala", "langevin"))
    assert errors(mala.samples["z"], mean).max() < 4.5 and (mala.stats["accepted"] - 0.574).abs().max() < 0.25
    variance = (langevin.samples["z"] - mean).square().mean((0, 1, 2)) / covariance.diagonal()
    assert (variance > 0.95).all() and (variance < 1.4).all()


def test_nuts_agrees_with_the_closed_form(unchanged_generator):
    model = linear_gaussian(2, (1, 1, 3), scale=0.4)
    x = model(size=2).detach()
    with unchanged_generator():
        posterior = infer(model, x, "mcmc", sampler="nuts", draws=60, warmup=50, chains=2)
    mean, covariance = model.posterior(x)
    z = posterior.samples["z"]
    assert z.shape == (2, 60, 2, 2) and errors(z, mean).max() < 4
    assert errors((z - mean).square(), covariance.diagonal().expand_as(mean)).max() < 4.5
    torch.testing.assert_close(posterior.stats["log_joint"], log_joint(model, posterior.samples, x).mean((0, 1)))
    assert posterior.cost["gradient_evaluations"] > 2 * 110 and (posterior.stats["divergences"] == 0).all()
    for options in ({"draws": 0}, {"warmup": -1}, {"thin": 0}, {"accept": 1.0}):
        with pytest.raises(ValueError, match="accept between 0 and 1, not"):
            nuts(model, x, {"z": torch.zeros(1, 2, 2)}, **{"draws": 4} | options)
    with pytest.raises(ValueError, match="'spikes' has the discrete support"):
        infer(mixed, torch.zeros(2, 1), "mcmc", sampler="nuts", draws=4)


def test_thinned_nuts_keeps_the_last_of_its_share():
    every, third = (infer(unit, torch.zeros(1, 1), "mcmc", sampler="nuts", draws=draws, thin=thin, warmup=5, chains=1).samples["z"]
                    for draws, thin in ((12, 1), (4, 3)))
    assert torch.equal(every[:, 2::3], third) and every.std() > 0


# -- moves on a lattice

def test_states_where_the_slope_is_not_finite_are_entered_and_left():
    def silent(x=None, size=None):
        with pyro.plate("data", size if x is None else len(x)):
            z = pyro.sample("z", dist.Poisson(torch.ones(1)).to_event(1))
            return pyro.sample("x", dist.Poisson(0.5 * z).to_event(1), obs=x)  # x log(z / 2) has no slope at 0

    z = infer(silent, torch.zeros(1, 1), "mcmc", draws=60, warmup=40, chains=400).samples["z"]
    assert errors(z, math.exp(-0.5)).max() < 4.5 and errors((z == 0).float(), math.exp(-math.exp(-0.5))).max() < 4.5

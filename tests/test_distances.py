"""Distances between posteriors against closed forms, another library's classifier, and the chance that two samples of one law leave."""

import math

import pyro.distributions as dist
import pytest
import torch
from scipy.stats import norm
from sklearn.kernel_ridge import KernelRidge

from inference import Posterior, infer
from inference.metrics import distances as module
from inference.metrics import paired
from inference.metrics.c2st import c2st
from inference.metrics.distances import distances, sliced_wasserstein, standardized_moments
from inference.resampling import resample
from zoo.oracles import linear_gaussian

DOUBLE = torch.float64


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def drawn(*shape, shift=0.0, scale=1.0):
    """Normal draws ``(C, S, N, K)`` as a posterior."""
    return Posterior("drawn", {"z": shift + scale * torch.randn(*shape)})


def chains(autocorrelation, *shape):
    """Stationary chains of a standard Normal."""
    noise = torch.randn(*shape)
    states = [noise[:, 0]]
    for i in range(1, shape[1]):
        states.append(autocorrelation * states[-1] + math.sqrt(1 - autocorrelation**2) * noise[:, i])
    return Posterior("chains", {"z": torch.stack(states, 1)})


# -- moments

def test_moments_are_in_units_of_the_reference():
    p, q = drawn(2, 30, 3, 4, scale=2.0), drawn(1, 50, 3, 4, shift=1.0)
    found = standardized_moments(q, p)
    a, b = (part.samples["z"].flatten(0, 1).double() for part in (q, p))
    torch.testing.assert_close(found["mean"], (a.mean(0) - b.mean(0)) / b.std(0))
    torch.testing.assert_close(found["log_sd"], (a.std(0) / b.std(0)).log())
    assert not found["degenerate"].any()
    both = distances(q, p)
    torch.testing.assert_close(both["mean"], found["mean"].square().mean(1).sqrt())
    torch.testing.assert_close(both["log_sd"], found["log_sd"].square().mean(1).sqrt())


@pytest.mark.parametrize(("make", "other"), [(lambda: drawn(4, 100, 300, 2), lambda: drawn(1, 150, 300, 2)),
                                             (lambda: chains(0.8, 4, 300, 300, 2), lambda: drawn(1, 100, 300, 2))])
def test_standard_errors_are_those_of_two_samples_of_one_law(make, other):
    found = standardized_moments(other(), make())
    for name in ("mean", "log_sd"):
        z = found[name] / found[f"{name}_se"]
        assert 0.85 < z.square().mean().sqrt() < 1.15 and abs(z.mean()) < 0.2, (name, z.square().mean().sqrt())
    assert 0.85 < z.square().mean().sqrt() < 1.15


def test_mean_field_of_a_correlated_posterior_is_as_narrow_as_theory_says():
    model = linear_gaussian(4, (1, 2, 2), scale=0.3)
    x = model(size=20).detach()
    mean, covariance = model.posterior(x)
    noise = torch.randn(2000, 20, 4, dtype=DOUBLE)
    exact = Posterior("exact", {"z": (mean + noise @ torch.linalg.cholesky(covariance).T)[None]})
    field = Posterior("field", {"z": infer(model, x, "local", draws=2000).samples["z"]})
    found = standardized_moments(field, exact)
    precision = torch.linalg.inv(covariance)
    expected = 0.5 * (1 / (precision.diagonal() * covariance.diagonal())).log()
    assert expected.abs().max() > 0.2
    torch.testing.assert_close(found["log_sd"].mean(0), expected, atol=0.03, rtol=0)
    assert found["mean"].abs().mean() < 0.1


def test_latents_that_do_not_vary():
    p, q = torch.randn(2, 20, 1, 4), torch.randn(1, 30, 1, 4)
    p[..., 1] = q[..., 1] = 3.0  # in neither
    p[..., 2] = 0.0  # in one only
    p[..., 3], q[..., 3] = 0.0, 7.0  # in neither, at different places
    found = distances(Posterior("q", {"z": q}), Posterior("p", {"z": p}))
    shift = standardized_moments(Posterior("q", {"z": q}), Posterior("p", {"z": p}))
    assert shift["mean"][0, 1] == 0 and shift["mean"][0, 3] == 2.0 and shift["mean"].abs().max() <= 2.0
    assert shift["degenerate"].tolist() == [[False, False, True, False]] and found["degenerate"].item() == 1
    assert shift["log_sd"].isnan().tolist() == [[False, True, True, True]]
    torch.testing.assert_close(found["log_sd"], shift["log_sd"][:, 0].abs())
    assert all(value.isfinite().all() for value in found.values()) and found["c2st"] > 0.95
    still = {"z": torch.ones(1, 10, 2, 3)}
    alike = distances(Posterior("q", still), Posterior("p", still))
    assert (alike["mean"] == 0).all() and (alike["sliced"] == 0).all() and (alike["c2st"] == 0.5).all() and alike["log_sd"].isnan().all()


# -- sliced Wasserstein

def test_samples_of_different_sizes_are_matched_exactly():
    a, b = torch.randn(4, 3, dtype=DOUBLE), torch.randn(6, 3, dtype=DOUBLE)
    expected = (a.sort(0).values.repeat_interleave(3, 0) - b.sort(0).values.repeat_interleave(2, 0)).square().mean()
    torch.testing.assert_close(module._squared_w2(a, b), expected)


def test_shifts_and_scales_have_their_distance():
    p = drawn(2, 100, 5, 3, scale=4.0)
    z = p.samples["z"]
    unit = z.flatten(0, 1).std(0)
    moved, _ = sliced_wasserstein(Posterior("q", {"z": z + 0.7 * unit}), p, directions=4000)
    torch.testing.assert_close(moved, torch.full((5,), 0.7, dtype=DOUBLE), rtol=0.05, atol=0)
    mean = z.flatten(0, 1).mean(0)
    wider, _ = sliced_wasserstein(Posterior("q", {"z": mean + 1.5 * (z - mean)}), p, directions=50)
    torch.testing.assert_close(wider, torch.full((5,), 0.5, dtype=DOUBLE), rtol=0.15, atol=0)
    one = Posterior("p", {"z": z[..., 0]})
    line, _ = sliced_wasserstein(Posterior("q", {"z": z[..., 0] - 0.2 * unit[:, 0]}), one, directions=1)
    torch.testing.assert_close(line, torch.full((5,), 0.2, dtype=DOUBLE), rtol=1e-4, atol=0)


@pytest.mark.parametrize(("reference", "other"), [((0.0, 4, 100), (1, 100)), ((0.0, 3, 100), (1, 400)), ((0.8, 4, 200), (1, 100)),
                                                  ((0.0, 1, 200), (2, 50))])
def test_the_floor_is_the_distance_of_two_samples_of_one_law(reference, other):
    p = chains(*reference, 200, 2) if reference[0] else drawn(*reference[1:], 200, 2)
    distance, floor = sliced_wasserstein(drawn(*other, 200, 2), p, directions=32)
    assert distance.square().mean().item() == pytest.approx(floor.square().mean().item(), rel=0.2)


# -- the classifier

def test_the_classifier_is_kernel_ridge_regression():
    q, p, n, folds = drawn(1, 33, 3, 4, shift=0.4), drawn(2, 20, 3, 4), 33, 4
    accuracy, _ = c2st(q, p, folds=folds)
    for image in range(3):
        thinned = p.samples["z"].flatten(0, 1)[torch.arange(n) * 40 // n, image]
        z = torch.cat([q.samples["z"][0, :, image], thinned]).double()
        z = ((z - z.mean(0)) / z.std(0)).numpy()
        gram = z @ z.T / 4
        kernel, label = 1 + gram + gram**2, torch.tensor([1.0] * n + [-1.0] * n).numpy()
        block = (torch.arange(n) * folds // n).repeat(2).numpy()
        right = 0
        for fold in range(folds):
            train, test = block != fold, block == fold
            fit = KernelRidge(alpha=1.0, kernel="precomputed").fit(kernel[train][:, train], label[train])
            right += (fit.predict(kernel[test][:, train]) * label[test] > 0).sum()
        assert accuracy[image].item() == pytest.approx(right / (2 * n))


@pytest.mark.parametrize("sizes", [((4, 25), (1, 100)), ((2, 100), (1, 50))])
def test_one_law_is_not_told_from_itself(sizes):
    accuracy, error = c2st(drawn(*sizes[1], 150, 3), drawn(*sizes[0], 150, 3))
    assert abs(accuracy.mean() - 0.5) < 4 * accuracy.std() / math.sqrt(150) + 0.002
    assert 0.7 < (accuracy - 0.5).square().mean().sqrt() / error.mean() < 1.5
    assert error.mean().item() == pytest.approx(1 / math.sqrt(8 * min(math.prod(size) for size in sizes)), rel=0.15)


def test_neighbours_in_a_chain_do_not_help():
    accuracy, error = c2st(drawn(1, 200, 100, 3), chains(0.9, 2, 100, 100, 3))
    assert abs(accuracy.mean() - 0.5) < 0.03 and error.mean() > 2 / math.sqrt(8 * 200)


def test_what_differs_is_told_as_well_as_it_can_be():
    p, shift = drawn(1, 150, 60, 2), 1.0 / math.sqrt(2)
    accuracy, _ = c2st(drawn(1, 150, 60, 2, shift=shift), p)
    assert accuracy.mean().item() == pytest.approx(norm.cdf(0.5), abs=0.015)  # of two Normals a standard deviation apart
    scale = 2.0
    cut = math.log(scale) * 4 * scale**2 / (scale**2 - 1)  # ‖z‖² where the densities are equal; in two dimensions it is exponential
    best = 0.5 * (1 - math.exp(-cut / 2) + math.exp(-cut / (2 * scale**2)))
    assert c2st(drawn(1, 150, 60, 2, scale=scale), p)[0].mean().item() == pytest.approx(best - 0.015, abs=0.015)
    factor = torch.linalg.cholesky(torch.tensor([[1.0, 0.9], [0.9, 1.0]]))
    correlated = Posterior("q", {"z": drawn(1, 150, 60, 2).samples["z"] @ factor.T})
    assert c2st(correlated, p)[0].mean() > 0.68
    assert c2st(drawn(1, 150, 20, 2, shift=50.0), drawn(1, 150, 20, 2))[0].min() == 1.0


# -- sites, weights, memory

def test_counts_and_one_hots_of_several_sites_in_any_order():
    def sample(rate, seed):
        torch.manual_seed(seed)
        parts = {"spikes": dist.Poisson(rate).sample((2, 100, 8, 3)), "what": dist.OneHotCategorical(torch.ones(2, 3)).sample((2, 100, 8)),
                 "level": torch.randn(2, 100, 8)}
        return Posterior("drawn", parts)

    p, q = sample(1.0, 1), sample(3.0, 2)
    back = Posterior("drawn", dict(reversed(q.samples.items())))
    for name, value in distances(q, p).items():
        assert value.shape == (8,) and torch.equal(value, distances(back, p)[name]), name
    assert standardized_moments(q, p)["mean"].shape == (8, 3 + 6 + 1)
    assert (distances(q, p)["c2st"] > 0.8).all() and (distances(sample(1.0, 3), p)["c2st"] < 0.62).all()


def test_weighted_draws_count_by_their_weights():
    wide = 1.5 * torch.randn(1, 1000, 30, 2)
    log_weights = (dist.Normal(0.0, 1.0).log_prob(wide) - dist.Normal(0.0, 1.5).log_prob(wide)).sum(-1)
    weighted, plain, exact = Posterior("q", {"z": wide}, log_weights), Posterior("q", {"z": wide}), drawn(4, 100, 30, 2)
    found, without = (distances(q, exact, directions=16) for q in (weighted, plain))
    assert found["log_sd"].mean() < 1.4 * found["log_sd_noise"].mean() and without["log_sd"].mean() > 0.3
    assert found["sliced"].mean() < 1.4 * found["sliced_floor"].mean() and without["sliced"].mean() > 0.4
    assert found["c2st"].mean() < 0.53 < 0.57 < without["c2st"].mean()
    reversed_ = standardized_moments(exact, weighted)
    assert 0.7 < (reversed_["mean"] / reversed_["mean_se"]).square().mean().sqrt() < 1.3


def test_systematic_resampling_is_fair(unchanged_generator):
    log_weights = torch.randn(20, 7)
    with unchanged_generator():
        chosen = resample(log_weights, seed=3)
    copies = torch.stack([torch.bincount(column, minlength=20) for column in chosen.T], 1)
    expected = 20 * log_weights.double().softmax(0)
    assert chosen.shape == (20, 7) and ((copies - expected).abs() < 1).all()
    mean = torch.stack([torch.bincount(resample(log_weights, seed=s)[:, 0], minlength=20) for s in range(2000)]).double().mean(0)
    torch.testing.assert_close(mean, expected[:, 0], atol=0.06, rtol=0)
    assert torch.equal(resample(torch.zeros(9, 2)), torch.arange(9)[:, None].expand(9, 2))


def test_images_in_parts_give_the_same(monkeypatch, unchanged_generator):
    p, q = drawn(2, 20, 7, 3), Posterior("q", {"z": torch.randn(1, 30, 7, 3)}, torch.randn(1, 30, 7))
    with unchanged_generator():
        at_once = distances(q, p)
    monkeypatch.setattr(paired, "CHUNK", 500)
    for name, value in distances(q, p).items():
        torch.testing.assert_close(value, at_once[name], msg=name)


def test_bad_input_is_refused():
    p = drawn(2, 20, 3, 4)
    for other in (drawn(2, 20, 2, 4), drawn(2, 20, 3, 5), Posterior("q", {"w": p.samples["z"]})):
        with pytest.raises(ValueError, match="same images and latents"):
            distances(other, p)
    with pytest.raises(ValueError, match="'z' have fewer dimensions"):
        distances(p, Posterior("flat", {"z": torch.zeros(5, 3)}))
    with pytest.raises(ValueError, match="'map' has 1 draws of each image; at least 4"):
        distances(Posterior("map", {"z": torch.zeros(1, 1, 3, 4)}), p)
    with pytest.raises(ValueError, match="has 9 draws of each image; at least 10"):
        c2st(drawn(1, 9, 3, 4), p)
    bad = drawn(2, 20, 3, 4)
    bad.samples["z"][1, 2, 1, 0] = math.nan
    with pytest.raises(ValueError, match="'z' of image 1 by 'drawn' are not finite"):
        distances(p, bad)
    with pytest.raises(ValueError, match="log weights of 'q'"):
        distances(Posterior("q", p.samples, torch.full((2, 20, 3), -math.inf)), p)
    with pytest.raises(ValueError, match="directions must be at least 1"):
        sliced_wasserstein(p, p, directions=0)
    with pytest.raises(ValueError, match="folds must be at least 2"):
        c2st(p, p, folds=1)

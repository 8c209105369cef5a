"""Coverage: intervals hold what they claim, of exact posteriors, of posteriors too sure or too vague, of few draws and of weighted ones."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
import torch

import guides
import zoo
from inference import Posterior, infer
from inference.metrics.coverage import coverage, intervals, scalars
from zoo.data.rofl import World, factors, generate

N = 4000


def conjugate(width=1.0, draws=99, chains=2, seed=0):
    """Truth z ~ N(0, 1) seen with unit noise, and draws of N(x/2, width²/2), for width 1 the exact posterior."""
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(N, generator=g, dtype=torch.double)
    x = z + torch.randn(N, generator=g, dtype=torch.double)
    return 0.5 * x + width * math.sqrt(0.5) * torch.randn(chains, draws, N, generator=g, dtype=torch.double), z, x


@pytest.mark.parametrize("width", [0.5, 1.0, 2.0])
def test_normal_posteriors_cover_as_they_must(width):
    draws, z, _ = conjugate(width, draws=499)
    for record in coverage({"z": draws}, {"z": z}):
        half = width * NormalDist().inv_cdf(0.5 + record["level"] / 2)  # in standard deviations of the exact posterior
        expected = math.erf(half / math.sqrt(2.0))
        assert abs(record["coverage"] - expected) < 4 * math.sqrt(expected * (1 - expected) / N) + 0.002
        assert record["standard_error"] == pytest.approx(math.sqrt(record["coverage"] * (1 - record["coverage"]) / N))
        assert record["width"] == pytest.approx(2 * half * math.sqrt(0.5), rel=0.01)
        assert record["factor"] == "z" and record["images"] == N
    assert [record["level"] for record in coverage({"z": draws}, {"z": z})] == [0.5, 0.8, 0.9, 0.95]


@pytest.mark.parametrize(("chains", "draws", "level"), [(1, 19, 0.9), (1, 9, 0.8), (3, 3, 0.8), (1, 39, 0.95), (1, 3, 0.5)])
def test_few_independent_draws_cover_no_less(chains, draws, level):
    samples, z, _ = conjugate(draws=draws, chains=chains)
    found = coverage({"z": samples}, {"z": z}, levels=[level])[0]["coverage"]
    assert abs(found - level) < 4 * math.sqrt(level * (1 - level) / N)  # numpy's default quantiles of 19 draws cover .81, not .9


def test_intervals_are_those_of_numpy():
    draws = torch.randn(2, 30, 5, generator=torch.Generator().manual_seed(0))
    lower, upper = intervals(draws, [0.3, 0.9])
    for i, level in enumerate((0.3, 0.9)):
        for end, q in ((lower, 0.5 - level / 2), (upper, 0.5 + level / 2)):
            expected = np.quantile(draws.flatten(0, 1).double().numpy(), q, axis=0, method="weibull")
            np.testing.assert_allclose(end[i].numpy(), expected, atol=1e-12)


def test_weights_stand_for_repeated_draws_and_move_a_proposal_to_its_target():
    draws, z, x = conjugate(draws=4000, chains=1, seed=1)
    target, wider = (torch.distributions.Normal(0.5 * x[:500], width * math.sqrt(0.5)) for width in (1.0, 1.5))
    proposal = wider.mean + 1.5 * (draws[..., :500] - 0.5 * x[:500])
    log_weights = target.log_prob(proposal) - wider.log_prob(proposal)
    lower, upper = intervals(proposal, [0.9], log_weights + 7.0)
    half = 1.6448536 * math.sqrt(0.5)
    assert (upper[0] - 0.5 * x[:500] - half).abs().max() < 0.25 and (lower[0] - 0.5 * x[:500] + half).abs().max() < 0.25
    assert (upper[0] - 0.5 * x[:500] - half).mean().abs() < 0.005 and (lower[0] - 0.5 * x[:500] + half).mean().abs() < 0.005
    some = torch.randn(1, 50, 3, generator=torch.Generator().manual_seed(3), dtype=torch.double)
    uneven = torch.zeros(1, 50, 3, dtype=torch.double)
    some[:, 25:], uneven[:, 25:] = 100.0, -80.0  # as good as absent
    for a, b in zip(intervals(some, [0.5], uneven), intervals(some[:, :25], [0.5]), strict=True):
        torch.testing.assert_close(a, b)
    for a, b in zip(intervals(-some, [0.5], uneven), intervals(some, [0.5], uneven)[::-1], strict=True):
        torch.testing.assert_close(a, -b)  # no side is preferred
    posterior = Posterior("iwae", {"z": proposal}, log_weights)
    weighted, plain = (coverage(p, {"z": z[:500]}, levels=[0.9])[0] for p in (posterior, Posterior("flat", {"z": proposal})))
    assert weighted["width"] == pytest.approx(2 * half, rel=0.01) and plain["width"] == pytest.approx(3 * half, rel=0.01)


def test_only_the_images_asked_for_count():
    draws, z, _ = conjugate(draws=99, chains=1)
    z = z.clone()
    z[1000:] += 50.0
    among = torch.arange(N) < 1000
    inside, everything = (coverage({"z": draws}, {"z": z}, levels=[0.9], among=a)[0] for a in (among, None))
    assert inside["images"] == 1000 and inside["coverage"] > 0.86 and everything["coverage"] == pytest.approx(inside["coverage"] / 4)


def test_vectors_come_apart_and_chains_are_pooled():
    value = torch.arange(2 * 3 * 4 * 2 * 2.0).reshape(2, 3, 4, 2, 2)
    apart = scalars({"a": value, "b": value[..., 0, 0]}, 3)
    assert list(apart) == ["a[0,0]", "a[0,1]", "a[1,0]", "a[1,1]", "b"] and torch.equal(apart["a[1,0]"], value[..., 1, 0])
    draws, z, _ = conjugate(draws=50, chains=2)
    both = torch.stack([draws, 10 + draws], -1)
    records = coverage({"z": both}, {"z": torch.stack([z, z], -1)}, levels=[0.8])
    assert [r["factor"] for r in records] == ["z[0]", "z[1]"] and records[1]["coverage"] == 0.0
    pooled = coverage({"z": draws.reshape(1, 100, N)}, {"z": z}, levels=[0.8])[0]
    assert pooled["coverage"] == records[0]["coverage"]


def test_every_method_and_the_factors_of_flow_are_covered():
    world, model = World("fixate-0"), zoo.build("optic_flow", category="fixate-0")
    causes = generate(world, 4, seed=0)
    posterior = infer(model, zoo.data.rofl.flow(causes, world), "mcmc", draws=20, chains=2, warmup=20, start="prior", steps=2.0)
    truth = {name: value for name, value in factors(causes, world).items() if name in world.cartesian_names}
    records = coverage(factors(posterior.samples, world), truth, levels=[0.5])
    assert [r["factor"] for r in records] == list(truth) and {"fix_x", "slf_v_z"} <= set(truth)
    exact = zoo.build("linear_gaussian")
    x = torch.zeros(3, *exact.event_shape)
    guide = guides.build("amortized", exact)
    assert coverage(infer(exact, x, "amortized", guide=guide), {"z": torch.zeros(3, exact.posterior(x)[0].shape[-1])}, levels=[0.5])


@pytest.mark.parametrize(("change", "words"), [
    ({"levels": [0.9, 1.0]}, "below 1"), ({"levels": []}, "one at least"), ({"levels": [0.99]}, "at least 199 draws, not 20"),
    ({"truth": {}}, "no true values"), ({"truth": {"y": torch.zeros(3)}}, "no draws of y; there are draws of z"),
    ({"truth": {"z": torch.zeros(4)}}, "true values of 4 images and draws of 3"),
    ({"truth": {"z": torch.tensor([0.0, math.nan, 0.0])}}, "finite"), ({"draws": {"z": torch.full((1, 20, 3), math.inf)}}, "finite"),
    ({"draws": {"z": torch.zeros(20, 3)}}, "at least 3 dim"), ({"log_weights": torch.zeros(20, 3)}, "same shape"),
    ({"among": torch.zeros(3, dtype=torch.bool)}, "at least that it does"), ({"among": torch.ones(3)}, "whether it counts")])
def test_what_cannot_be_covered_is_refused(change, words):
    settings = {"draws": {"z": torch.randn(1, 20, 3)}, "truth": {"z": torch.zeros(3)}} | change
    with pytest.raises(ValueError, match=words):
        coverage(settings.pop("draws"), settings.pop("truth"), **settings)

"""Mutual information against closed forms and scikit-learn's counts, its normalization, and the gap between latents."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import entropy
from sklearn.metrics import mutual_info_score

from inference.metrics import mutual_information as module
from inference.metrics.mutual_information import binned_mutual_information, mutual_information, mutual_information_gap


def draws(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)


def uniform(n, count, seed=0):
    return torch.rand(n, count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def named(g):
    return dict(zip("abcdef", g.unbind(1), strict=False))


# Nearest neighbours


def test_gaussian_pairs_have_the_closed_form():
    """Within four standard errors of the estimate, about 1.2 / √n."""
    n, rho = 3000, torch.tensor([0.0, -0.5, 0.9, 0.99], dtype=torch.float64)
    normal = draws()
    g, noise = normal(n, 1), normal(n, 4)
    z = rho * g + (1 - rho**2).sqrt() * noise
    found = mutual_information(z, {"g": g[:, 0]})
    assert found.shape == (1, 4) and found.dtype == torch.float64
    torch.testing.assert_close(found[0], -0.5 * torch.log(1 - rho**2), atol=4 * 1.2 / math.sqrt(n), rtol=0)


def test_it_sees_what_is_not_linear_and_not_the_units():
    normal = draws(1)
    g = normal(1500, 2)
    z = torch.stack([g[:, 0].square() + 0.1 * normal(1500), g[:, 1]], 1) * torch.tensor([-1e-3, 1e4]) + 7.0
    found = mutual_information(z.float(), named(g), seed=3)
    assert found[0, 0] > 0.8 and found[1, 1] > 3.0 and found[0, 1] < 0.05 and found[1, 0] < 0.05  # rows are factors
    exact = mutual_information(torch.exp(g[:, :1]), {"b": g[:, 0] + 0.5 * g[:, 1]})
    assert exact.item() == pytest.approx(0.5 * math.log(5), abs=0.12)


def test_seeds_processes_and_neighbours(unchanged_generator):
    before = np.random.get_state()[1].copy()
    g = uniform(200, 1, 2)
    z, factors = (g + 0.1 * uniform(200, 2, 3)).round(decimals=2), named(g.round(decimals=2))  # ties, which the seed's noise breaks
    with unchanged_generator():
        found = mutual_information(z, factors, seed=5)
        assert torch.equal(found, mutual_information(z, factors, seed=5)) and not torch.equal(found, mutual_information(z, factors, seed=6))
        assert not torch.equal(found, mutual_information(z, factors, seed=5, neighbors=8))
        assert torch.equal(found, mutual_information(z, factors, seed=5, jobs=1))
    assert (np.random.get_state()[1] == before).all()


def test_dead_latents_know_nothing():
    z, factors = torch.full((80, 3), 0.1), named(uniform(80, 2))
    assert torch.equal(mutual_information(z, factors), torch.zeros(2, 3, dtype=torch.float64))
    assert torch.equal(binned_mutual_information(z, factors), torch.zeros(2, 3, dtype=torch.float64))
    z = torch.stack([z[:, 0], factors["a"].float()], 1)
    assert mutual_information(z, factors)[0].tolist() == [0.0, pytest.approx(3.0, abs=1.5)]


# Counts


@pytest.mark.parametrize("bins", [2, 7, 20])
@pytest.mark.parametrize("chunk", [1, 8_000_000])
def test_counts_are_those_of_scikit_learn_and_numpy(bins, chunk, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", chunk)
    normal = draws(2)
    g, weights = normal(700, 3), normal(3, 5)
    z = g @ weights + 0.2 * normal(700, 5)

    def cut(values):
        return np.digitize(values, np.linspace(values.min(), values.max(), bins + 1)[1:-1])

    nats = binned_mutual_information(z, named(g), bins=bins, normalized=False)
    shares = binned_mutual_information(z, named(g), bins=bins)
    for j in range(3):
        factor = cut(g[:, j].numpy())
        truth = [mutual_info_score(factor, cut(z[:, k].numpy())) for k in range(5)]
        assert nats[j].tolist() == pytest.approx(truth, abs=1e-10)
        assert shares[j].tolist() == pytest.approx([value / entropy(np.bincount(factor)) for value in truth], abs=1e-10)


def test_a_factor_knows_itself_by_its_entropy_whatever_the_units():
    g = uniform(5000, 2)
    found = binned_mutual_information(torch.stack([-3.0 * g[:, 1] + 2.0, g[:, 0]], 1), named(g))
    bias = 19**2 / (2 * 5000) / math.log(20)
    torch.testing.assert_close(found, torch.tensor([[bias, 1.0], [1.0, bias]], dtype=torch.float64), atol=0.003, rtol=0)
    assert binned_mutual_information(g[:, :1], named(g), normalized=False)[0, 0].item() == pytest.approx(math.log(20), abs=0.01)


def test_uneven_counts_by_hand():
    g = torch.tensor([0, 0, 0, 1, 1, 1, 1, 1]).double()
    z = torch.tensor([[0, 0, 5, 0, 5, 5, 5, 5]]).double().T
    joint = torch.tensor([2, 1, 1, 4]) / 8
    truth = entropy([3, 5]) + entropy([3, 5]) - entropy(joint)
    assert binned_mutual_information(z, {"g": g}, bins=2, normalized=False).item() == pytest.approx(truth)
    assert binned_mutual_information(z, {"g": g.long()}).item() == pytest.approx(truth / entropy([3, 5]))


# The gap


def test_gap_is_between_the_best_and_the_second():
    gaps, mean = mutual_information_gap(torch.tensor([[0.1, 0.9, 0.3], [0.5, 0.2, 0.5]]))
    assert gaps.tolist() == pytest.approx([0.6, 0.0]) and mean == pytest.approx(0.3)
    gaps, mean = mutual_information_gap(torch.tensor([[0.2], [0.8]]))
    assert gaps.tolist() == pytest.approx([0.2, 0.8]) and mean == pytest.approx(0.5)


def test_gap_of_permuted_rotated_and_copied_codes():
    g = uniform(20_000, 4)
    turn = torch.linalg.qr(draws(3)(4, 4))[0]
    bias = 19**2 / (2 * 20_000) / math.log(20)

    def gap(code):
        return mutual_information_gap(binned_mutual_information(code, named(g)))

    gaps, mean = gap(g[:, [2, 0, 3, 1]] * torch.tensor([-1.0, 5.0, 1.0, 0.1]))
    assert gaps.tolist() == pytest.approx([1 - bias] * 4, abs=0.003) and mean == pytest.approx(1 - bias, abs=0.003)
    assert gap(g @ turn)[1] < 0.2
    gaps, mean = gap(torch.cat([g, -g[:, :1]], 1))  # of a copied latent no one is ahead
    assert gaps[0] < 0.001 and gaps[1:].tolist() == pytest.approx([1 - bias] * 3, abs=0.003)


# Bad input


def test_bad_input_is_refused():
    z, factors = uniform(30, 2), named(uniform(30, 2, 1))
    for function in (mutual_information, binned_mutual_information):
        for bad, words in (((z[:, 0], factors), "representations must be"), ((z, {}), "there must be factors"),
                           ((z, {"a": z[:-1, 0]}), "each of the 30"), ((z * math.nan, factors), "must be finite"),
                           ((z, {"a": z[:, 0] * math.inf}), "must be finite"),
                           ((z, {"a": torch.full((30,), 0.1)}), "factors a do not vary")):
            with pytest.raises(ValueError, match=words):
                function(*bad)
    for neighbors in (0, 30):
        with pytest.raises(ValueError, match="neighbors must be from 1 to 29"):
            mutual_information(z, factors, neighbors=neighbors)
    with pytest.raises(ValueError, match="at least 2 bins"):
        binned_mutual_information(z, factors, bins=1)
    for bad in (torch.ones(3), torch.ones(2, 0), torch.tensor([[math.nan]]), torch.tensor([[-0.1]])):
        with pytest.raises(ValueError, match="mutual information must be a matrix"):
            mutual_information_gap(bad)

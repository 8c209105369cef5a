"""Disentanglement, completeness and informativeness: codes of which they are known exactly, and scikit-learn's permutation importance."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import entropy
from sklearn.inspection import permutation_importance
from sklearn.linear_model import LinearRegression

from inference.metrics.dci import completeness, dci, disentanglement
from inference.metrics.decodability import linear_decodability

WAYS = ["regression", "permutation"]


def draws(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)


def white(n, count, seed=0):
    """Numbers ``(n, count)`` of mean 0, variance 1 and no correlation, exactly."""
    x = draws(seed)(n, count)
    return torch.linalg.qr(x - x.mean(0))[0] * math.sqrt(n)


def named(g, names="abcdefgh"):
    return dict(zip(names, g.unbind(1), strict=False))


def both(code, g):
    """DCI of a code that is fitted and scored on the same images."""
    return {way: dci(code, named(g), code, named(g), way) for way in WAYS}


def rotation(count, seed=0):
    return torch.linalg.qr(draws(seed)(count, count))[0]


# From importances to D and C


def test_concentration_is_one_minus_entropy_in_units_of_the_greatest():
    importances = draws(1)(5, 7).square()
    by_latent, d = disentanglement(importances)
    by_factor, c = completeness(importances)
    columns = [1 - entropy(importances[:, k].numpy(), base=5) for k in range(7)]
    rows = [1 - entropy(importances[j].numpy(), base=7) for j in range(5)]
    assert by_latent.tolist() == pytest.approx(columns) and by_factor.tolist() == pytest.approx(rows)
    shares = importances.sum(0) / importances.sum()
    assert d == pytest.approx(sum(share * each for share, each in zip(shares.tolist(), columns, strict=True)))
    assert c == pytest.approx(sum(rows) / 5)
    assert d != pytest.approx(sum(columns) / 7, abs=1e-3)  # the weights tell


@pytest.mark.parametrize(("importances", "latents", "d", "factors", "c"), [
    ([[1.0, 0.0], [0.0, 5.0]], [1.0, 1.0], 1.0, [1.0, 1.0], 1.0),
    ([[1.0, 1.0], [1.0, 1.0]], [0.0, 0.0], 0.0, [0.0, 0.0], 0.0),
    ([[1.0, 0.0], [1.0, 2.0]], [0.0, 1.0], 0.5, [1.0, 1 - (math.log(3) - math.log(4) / 3) / math.log(2)], None),
    ([[2.0, 0.0, 0.0], [0.0, 0.0, 1.0]], [1.0, 0.0, 1.0], 1.0, [1.0, 1.0], 1.0),  # a dead latent has no weight
    ([[2.0, 0.0], [0.0, 0.0]], [1.0, 0.0], 1.0, [1.0, 0.0], 0.5),  # a factor that is not coded counts
    ([[0.0, 0.0], [0.0, 0.0]], [0.0, 0.0], 0.0, [0.0, 0.0], 0.0),
    ([[3.0, 1.0]], [1.0, 1.0], 1.0, [1 - entropy([3, 1], base=2)], None),  # one factor
    ([[3.0], [1.0]], [1 - entropy([3, 1], base=2)], None, [1.0, 1.0], 1.0)])  # one latent
def test_known_tables(importances, latents, d, factors, c):
    by_latent, mean_d = disentanglement(torch.tensor(importances))
    by_factor, mean_c = completeness(torch.tensor(importances))
    assert by_latent.tolist() == pytest.approx(latents, abs=1e-12) and by_factor.tolist() == pytest.approx(factors, abs=1e-12)
    assert mean_d == pytest.approx(latents[0] if d is None else d, abs=1e-12)
    assert mean_c == pytest.approx(sum(factors) / len(factors) if c is None else c, abs=1e-12)


@pytest.mark.parametrize("importances", [torch.ones(3), torch.ones(0, 3), -torch.ones(2, 2), torch.tensor([[1.0, math.nan]])])
def test_what_is_no_importance_is_refused(importances):
    for function in (disentanglement, completeness):
        with pytest.raises(ValueError, match="importances must be a matrix"):
            function(importances)


# Codes whose layout is known


def test_a_permuted_and_rescaled_code_is_perfect():
    g = white(400, 5)
    code = g[:, [3, 0, 4, 1, 2]] * torch.tensor([2.0, -0.1, 7.0, 1.0, -30.0]) + 5.0
    for found in both(code, g * torch.tensor([1.0, 9.0, 0.2, 1.0, 3.0]) - 4.0).values():
        assert (found.disentanglement, found.completeness, found.informativeness) == pytest.approx((1.0, 1.0, 1.0), abs=1e-9)
        assert found.by_latent.tolist() == pytest.approx([1.0] * 5, abs=1e-9)
        assert found.importances.argmax(0).tolist() == [3, 0, 4, 1, 2] and found.r2 == pytest.approx(dict.fromkeys("abcde", 1.0))


def test_held_out_factors_that_are_independent_but_not_exactly_uncorrelated():
    normal = draws(3)
    g, held = normal(3000, 4), normal(3000, 4)
    for way in WAYS:
        found = dci(-2.0 * g.flip(1), named(g), -2.0 * held.flip(1), named(held), way)
        assert (found.disentanglement, found.completeness, found.informativeness) == pytest.approx((1.0, 1.0, 1.0), abs=1e-6)


def test_a_rotated_code_knows_as_much_but_is_entangled_by_a_known_amount():
    g, turn = white(500, 6), rotation(6, 2)
    found = both(g @ turn.T * 3.0, g)
    for way, truth in (("regression", turn.abs().T), ("permutation", 2.0 * turn.square().T)):
        torch.testing.assert_close(found[way].importances, truth, atol=1e-9, rtol=0)
        assert found[way].informativeness == pytest.approx(1.0) and found[way].importance == way
        shares = truth / truth.sum(0)
        assert found[way].disentanglement == pytest.approx(
            sum((truth[:, k].sum() / truth.sum() * (1 - entropy(shares[:, k], base=6))).item() for k in range(6)), abs=1e-9)
        assert found[way].completeness == pytest.approx(sum(1 - entropy(truth[j], base=6) for j in range(6)) / 6, abs=1e-9)
        assert found[way].disentanglement < 0.6
    assert found["regression"].disentanglement < found["permutation"].disentanglement


def test_units_of_latents_and_factors_do_not_count():
    normal = draws(4)
    g = normal(300, 3)
    code = torch.cat([g @ normal(3, 4) + 0.3 * normal(300, 4)], 1)
    units, scales = torch.tensor([1e-4, 2.0, -50.0, 1.0]), torch.tensor([1e3, -1.0, 0.01])
    for way in WAYS:
        one, other = dci(code, named(g), code, named(g), way), dci(code * units, named(g * scales), code * units, named(g * scales), way)
        torch.testing.assert_close(one.importances, other.importances, atol=1e-9, rtol=1e-7)


def test_copies_lower_completeness_by_a_known_amount_but_not_disentanglement():
    g = white(400, 3)
    for found in both(torch.cat([g, 2.0 * g[:, :2]], 1), g).values():
        assert found.disentanglement == pytest.approx(1.0, abs=1e-9)
        shared = 1 - math.log(2) / math.log(5)
        assert found.by_factor.tolist() == pytest.approx([shared, shared, 1.0], abs=1e-6)
        assert found.completeness == pytest.approx((2 * shared + 1) / 3, abs=1e-6)


def test_one_latent_for_two_factors_is_complete_but_entangled():
    g = white(400, 3)
    code = torch.stack([g[:, 0] + g[:, 1], g[:, 2]], 1)
    for found in both(code, g).values():
        assert found.by_latent.tolist() == pytest.approx([1 - math.log(2) / math.log(3), 1.0], abs=1e-9)
        assert found.by_factor.tolist() == pytest.approx([1.0, 1.0, 1.0], abs=1e-9)
        assert found.informativeness == pytest.approx((0.5 + 0.5 + 1.0) / 3)


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e6 / 3])
def test_dead_latents_and_unknown_factors_give_zeros_and_no_nan(constant):
    g = white(400, 3)
    code = torch.cat([torch.full((400, 1), constant), g[:, :2], torch.full((400, 2), constant)], 1)
    for found in both(code, g).values():
        assert torch.equal(found.importances[:, [0, 3, 4]], torch.zeros(3, 3, dtype=torch.float64))
        assert found.by_latent[[0, 3, 4]].tolist() == [0.0] * 3 and found.disentanglement == pytest.approx(1.0, abs=1e-9)
        assert found.by_factor[:2].tolist() == pytest.approx([1.0, 1.0], abs=1e-9)
        assert found.importances[2].sum() < 1e-9 and torch.isfinite(found.by_factor).all()
    for found in both(torch.full((400, 2), constant), g).values():
        assert (found.disentanglement, found.completeness) == (0.0, 0.0) and found.informativeness == pytest.approx(0.0, abs=1e-9)


# Importances


def unequal_sets(n=150, m=120, units=5):
    normal = draws(5)
    weights, parts = normal(units, 3), []
    for size, shift in ((n, 0.0), (m, 0.4)):
        z = normal(size, units) * torch.tensor([1.0, 3.0, 0.2, 1.0, 5.0]) + shift
        parts += [z, named(z @ weights * torch.tensor([1.0, 0.2, 0.0]) + 2.0 * normal(size, 3) + 1.0)]
    return parts


def test_permutation_importance_is_scikit_learns_in_expectation():
    z_fit, factors_fit, z_score, factors_score = unequal_sets()
    found = dci(z_fit, factors_fit, z_score, factors_score, "permutation")
    for row, name in zip(found.importances, factors_fit, strict=True):
        readout = LinearRegression().fit(z_fit.numpy(), factors_fit[name].numpy())
        drops = permutation_importance(readout, z_score.numpy(), factors_score[name].numpy(), scoring="r2", n_repeats=400, random_state=0)
        error = drops.importances_std / math.sqrt(400)
        kept = drops.importances_mean.clip(0.0)
        assert (abs(row.numpy() - kept) <= 4.5 * error + 1e-9).all()
        if name == "c":  # noise: what the readout has learned of it is wrong for some latents, and their drop is negative
            assert (drops.importances_mean < -3 * error).any() and (row == 0.0).any()


def test_regression_importance_is_the_standardized_coefficient():
    z_fit, factors_fit, z_score, factors_score = unequal_sets()
    found = dci(z_fit, factors_fit, z_score, factors_score)
    standard = (z_fit - z_fit.mean(0)) / z_fit.std(0)
    for row, truth in zip(found.importances, factors_fit.values(), strict=True):
        coefficients = LinearRegression().fit(standard.numpy(), ((truth - truth.mean()) / truth.std()).numpy()).coef_
        assert row.tolist() == pytest.approx(abs(coefficients).tolist(), rel=1e-9)
    assert found.importance == "regression"


def test_informativeness_is_the_mean_of_linear_decodability():
    given = unequal_sets()
    r2 = linear_decodability(*given)
    for way in WAYS:
        found = dci(*given, way)
        assert found.r2 == r2 and found.informativeness == pytest.approx(sum(r2.values()) / 3)
    single = [part.float() if isinstance(part, torch.Tensor) else part for part in given]
    assert dci(*single).disentanglement == pytest.approx(dci(*given).disentanglement, abs=1e-5)


def test_bad_input_is_refused():
    z_fit, factors_fit, z_score, factors_score = unequal_sets()
    with pytest.raises(ValueError, match="importance must be one of regression, permutation, not 'lasso'"):
        dci(z_fit, factors_fit, z_score, factors_score, "lasso")
    with pytest.raises(ValueError, match="at least 7 images"):
        dci(z_fit[:6], named(torch.ones(6, 3)), z_score, factors_score)

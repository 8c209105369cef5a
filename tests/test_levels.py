"""What levels know: additive factors, of which every R² is known in closed form."""

from __future__ import annotations

import math

import pytest
import torch

from inference.metrics.decodability import linear_decodability
from inference.metrics.levels import level_contributions


def white(n, count, seed=0):
    """Numbers ``(n, count)`` of mean 0, variance 1 and no correlation, exactly."""
    x = torch.randn(n, count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.linalg.qr(x - x.mean(0))[0] * math.sqrt(n)


def hierarchy(n=300):
    """Three levels; the third is partly a copy of the first. Factors are sums of what levels hold."""
    a, b, c, noise = (part.squeeze(1) for part in white(n, 4).split(1, 1))
    levels = {"top": torch.stack([a, 3.0 * b], 1), "mid": c.view(n, 1, 1), "low": torch.stack([-a, 2.0 * a, a], 1) + 5.0}
    return levels, {"a": a, "sum": a + 2.0 * c, "noisy": b + c + math.sqrt(2.0) * noise, "unknown": noise}


def test_additive_factors_have_the_closed_form():
    levels, factors = hierarchy()
    found = level_contributions(levels, factors, levels, factors)
    assert found.factors == ("a", "sum", "noisy", "unknown") and found.levels == ("top", "mid", "low")
    close = {"atol": 1e-9, "rtol": 0}
    truth = torch.tensor([[1.0, 0.0, 1.0], [0.2, 0.8, 0.2], [0.25, 0.25, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(found.alone, truth, **close)
    torch.testing.assert_close(found.together, torch.tensor([1.0, 1.0, 0.5, 0.0], dtype=torch.float64), **close)
    only = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.8, 0.0], [0.25, 0.25, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(found.unique, only, **close)  # what two levels know, no one knows alone
    torch.testing.assert_close(found.without, found.together[:, None] - only, **close)


def test_what_only_two_levels_together_know_is_unique_to_both():
    a, b = white(200, 2).unbind(1)
    levels = {"one": (a + b)[:, None], "two": b[:, None]}
    found = level_contributions(levels, {"a": a}, levels, {"a": a})
    assert found.alone[0].tolist() == pytest.approx([0.5, 0.0], abs=1e-9) and found.together.item() == pytest.approx(1.0)
    assert found.unique[0].tolist() == pytest.approx([1.0, 0.5], abs=1e-9)


def test_scored_on_other_images_as_linear_decodability_does():
    generator = torch.Generator().manual_seed(1)
    parts = []
    for n in (120, 90):
        levels = {name: torch.randn(n, width, generator=generator) for name, width in (("x", 2), ("y", 4))}
        parts += [levels, {"g": levels["x"][:, 0] + levels["y"][:, 1] + torch.randn(n, generator=generator)}]
    fit, factors_fit, score, factors_score = parts
    found = level_contributions(fit, factors_fit, dict(reversed(score.items())), factors_score)
    for k, name in enumerate(("x", "y")):
        alone = linear_decodability(fit[name], factors_fit, score[name], factors_score)["g"]
        assert found.alone[0, k].item() == found.without[0, 1 - k].item() == pytest.approx(alone, abs=1e-6)
    together = linear_decodability(torch.cat([fit["x"], fit["y"]], 1), factors_fit, torch.cat([score["x"], score["y"]], 1), factors_score)
    assert found.together.item() == pytest.approx(together["g"], abs=1e-6)


def test_without_its_only_level_the_mean_of_the_fitted_set_is_left():
    fit, score = white(100, 2, 1), white(100, 2, 2)
    factors = [{"g": part.sum(1) + shift} for part, shift in ((fit, 0.0), (score, 1.0))]
    found = level_contributions({"z": fit}, factors[0], {"z": score}, factors[1])
    assert found.without.item() == pytest.approx(-0.5)  # a mean that misses by 1 costs 1 / the variance of 2
    assert found.together.item() == pytest.approx(0.5) and found.alone.item() == pytest.approx(0.5)
    assert found.unique.item() == pytest.approx(1.0)


def test_bad_input_is_refused():
    levels, factors = hierarchy(40)
    for bad, words in ((({}, factors, {}, factors), "there must be levels"),
                       ((levels, factors, {"top": levels["top"]}, factors), "levels low, mid are missing"),
                       ((levels | {"mid": levels["mid"][1:]}, factors, levels, factors), r"same n images; got .*mid \(39, 1, 1\)"),
                       ((levels | {"mid": levels["mid"][:, :0]}, factors, levels, factors), "K at least 1"),
                       ((levels | {"mid": factors["a"]}, factors, levels, factors), "levels must be"),
                       ((levels, {}, levels, factors), "there must be factors"),
                       ((levels, factors, levels | {"mid": levels["top"]}, factors), "as many units in both sets")):
        with pytest.raises(ValueError, match=words):
            level_contributions(*bad)

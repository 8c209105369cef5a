"""The nonlinear probe: what a linear readout cannot see, what is not there, and what it leaves alone."""

from __future__ import annotations

import math

import pytest
import torch

from inference.metrics import probe
from inference.metrics.decodability import linear_decodability
from inference.metrics.probe import nonlinear_decodability

SMALL = {"epochs": 30, "hidden": (64, 64), "batch_size": 64, "lr": 3e-3}


def part(n, seed):
    """A code and factors that are linear in it, even functions of it, an angle's sine, or not in it."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(n, 4, generator=generator)
    noise = torch.randn(n, 2, generator=generator)
    angle = torch.atan2(z[:, 1], z[:, 0])
    factors = {"linear": 5.0 * z[:, 0] - z[:, 2] + 3.0, "square": z[:, 1].square(), "sine": (2 * angle).sin(),
               "half": z[:, 2].abs() + math.sqrt(1 - 2 / math.pi) * noise[:, 0], "noise": 100.0 * noise[:, 1]}
    return z, factors


@pytest.fixture(scope="module")
def readouts():
    given = *part(2000, 1), *part(1500, 2)
    return linear_decodability(*given), nonlinear_decodability(*given, **SMALL)


def test_it_reads_what_a_linear_readout_cannot(readouts):
    linear, found = readouts
    assert list(found) == list(linear) and all(isinstance(value, float) for value in found.values())
    for name in ("square", "sine"):
        assert linear[name] < 0.05 and 0.9 < found[name] <= 1.0
    assert found["linear"] > 0.998
    assert found["half"] == pytest.approx(0.5, abs=0.05)  # half of the variance is noise: no readout knows more


def test_it_reads_no_noise(readouts):
    assert readouts[1]["noise"] == pytest.approx(0.0, abs=0.01)


def test_it_is_no_worse_than_linear_where_the_network_is():
    """Many units and few images: the network overfits, the linear readout does not."""
    generator = torch.Generator().manual_seed(3)
    sets = []
    for n in (400, 2000):
        z = torch.randn(n, 60, generator=generator)
        sets += [z, {"g": z.sum(1) + 0.5 * torch.randn(n, generator=generator), "noise": torch.randn(n, generator=generator)}]
    linear, found = linear_decodability(*sets), nonlinear_decodability(*sets, epochs=2)
    assert found["g"] == pytest.approx(linear["g"], abs=1e-12) and linear["g"] > 0.99
    assert linear["noise"] < -0.05 and found["noise"] == pytest.approx(0.0, abs=0.01)


def test_seeds_and_global_state(unchanged_generator):
    given = *part(300, 4), *part(200, 5)
    options = SMALL | {"epochs": 3}
    with unchanged_generator():
        found = nonlinear_decodability(*given, **options, seed=1)
        assert found == nonlinear_decodability(*given, **options, seed=1)
        assert found != nonlinear_decodability(*given, **options, seed=2)
        assert not torch.equal(*(probe._network(4, (8,), 1, seed)[0].weight for seed in (1, 2)))
        with torch.no_grad():
            assert found == nonlinear_decodability(*given, **options, seed=1)


def test_scored_images_have_no_say_in_what_is_chosen():
    """Where they are nonsense, their R² is that of a good readout of the fitted factors, not the best that can be had."""
    z, factors = part(400, 6)
    other, _ = part(300, 7)
    nonsense = {name: torch.randn(300, generator=torch.Generator().manual_seed(8)) for name in factors}
    found = nonlinear_decodability(z, factors, other, nonsense, **SMALL | {"epochs": 10})
    assert found["linear"] < -10.0 and found["square"] < -1.0


def test_units_constants_and_shapes_do_not_count():
    (z, factors), (other, truth) = part(600, 9), part(400, 10)
    options = SMALL | {"epochs": 20}
    found = nonlinear_decodability(z, factors, other, truth, **options)
    assert found["square"] > 0.6

    def moved(code, values):
        dead = torch.full((len(code), 3), 0.1, dtype=torch.float64)
        code = torch.cat([code * torch.tensor([1e-5, 1e4, 1.0, 1.0]).double() + 7.0, dead], 1)
        return code.view(len(code), 7, 1), {name: 1e4 * value - 3.0 for name, value in values.items()}

    back = nonlinear_decodability(*moved(z, factors), *moved(other, truth), **options)
    assert back == pytest.approx(found, abs=0.15)  # other initial weights


def test_the_best_epoch_on_held_out_images_is_scored(monkeypatch):
    """A network that first learns and then overfits."""
    generator, sets = torch.Generator().manual_seed(1), []
    for n in (400, 1000):
        z = torch.randn(n, 10, generator=generator)
        sets += [z, {"bent": 2.0 * z[:, 0].abs() + torch.randn(n, generator=generator)}]
    seen, r2 = [], probe._r2

    def spy(prediction, truth):
        seen.append((len(truth), r2(prediction, truth).item()))
        return r2(prediction, truth)

    monkeypatch.setattr(probe, "_r2", spy)
    found = nonlinear_decodability(*sets, **SMALL | {"epochs": 60, "lr": 0.01}, patience=60)["bent"]
    held, scored = [value for n, value in seen if n == 60], [value for n, value in seen if n == 1000]
    assert len(held) == len(scored) == 61  # the mean, and every epoch
    assert found == scored[max(range(61), key=held.__getitem__)] > scored[-1] + 0.1


def test_the_mean_is_better_than_nonsense():
    """A network that diverges at once, and a linear readout of noise, are worse than the mean."""
    generator, sets = torch.Generator().manual_seed(3), []
    for n in (300, 2000):
        sets += [torch.randn(n, 60, generator=generator), {"noise": torch.randn(n, generator=generator)}]
    assert nonlinear_decodability(*sets, epochs=1, lr=0.3)["noise"] == pytest.approx(0.0, abs=0.01)


def test_it_stops_when_nothing_gets_better(monkeypatch):
    """On a factor that is not there, patience ends it long before the budget."""
    passes = []
    r2 = probe._r2
    monkeypatch.setattr(probe, "_r2", lambda *given: passes.append(1) or r2(*given))
    z, factors = part(300, 11)
    other, truth = part(200, 12)
    nonlinear_decodability(z, {"noise": factors["noise"]}, other, {"noise": truth["noise"]}, **SMALL | {"epochs": 200}, patience=4)
    assert 5 <= len(passes) < 60


@pytest.mark.parametrize(("change", "words"), [
    ({"epochs": 0}, "must be at least 1"), ({"hidden": ()}, "must be at least 1"), ({"hidden": (8, 0)}, "must be at least 1"),
    ({"lr": 0.0}, "lr above 0"), ({"held_out": 1.0}, "held_out between"), ({"patience": 0}, "at least 1"),
    ({"held_out": 0.9}, "36 of 40 images held out, 4 are too few to fit a readout of 4 units")])
def test_bad_options_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        nonlinear_decodability(*part(40, 1), *part(30, 2), **change)


def test_sets_that_cannot_be_read_out_are_refused():
    z, factors = part(40, 1)
    with pytest.raises(ValueError, match="must be finite"):
        nonlinear_decodability(z * math.nan, factors, z, factors)
    with pytest.raises(ValueError, match="there must be factors"):
        nonlinear_decodability(z, {}, z, factors)
    with pytest.raises(ValueError, match="factors g do not vary"):
        nonlinear_decodability(z, {"g": torch.full((40,), 0.1)}, z, {"g": z[:, 0]})

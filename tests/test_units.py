"""The few-pass densities of Normal and Laplace units against those of PyTorch, with all their derivatives."""

import pyro
import pytest
import torch
from torch.distributions import Independent, Laplace, Normal, kl_divergence

from zoo.distributions.units import LaplaceUnits, NormalUnits, laplace_units, normal_units

DOUBLE = torch.float64
KINDS = {"normal": (normal_units, NormalUnits, Normal), "laplace": (laplace_units, LaplaceUnits, Laplace)}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("batch", "expanded", "values"), [((), (), (4, 3)), ((3,), (3,), (4, 3)), ((), (3,), (4, 3)), ((), (2, 3), ()),
                                                           ((3,), (2, 3), (3,)), ((1,), (3,), (4, 1)), ((), (), ())])
def test_densities_and_their_first_and_second_derivatives_are_those_of_the_plain_law(kind, batch, expanded, values):
    make, _, plain = KINDS[kind]

    def by(law, *arguments):
        loc, log_scale, z = arguments
        return law(loc, log_scale.exp()).expand(expanded).log_prob(z)

    arguments = [torch.randn(*shape, 5, dtype=DOUBLE) for shape in (batch, batch, values)]
    ours = by(make, *arguments)
    laws = {"ours": make, "theirs": lambda loc, scale: Independent(plain(loc, scale), 1)}
    assert ours.shape == by(laws["theirs"], *arguments).shape
    torch.testing.assert_close(ours, by(laws["theirs"], *arguments))
    direction = [torch.randn_like(value) for value in arguments]

    def derivatives(law):
        leaves = [value.clone().requires_grad_(True) for value in arguments]
        value = by(law, *leaves)
        first = torch.autograd.grad((value * value.detach().cos()).sum(), leaves, create_graph=True)  # weights of both signs
        along = sum((a * b).sum() for a, b in zip(first, direction, strict=True))
        return *first, *torch.autograd.grad(along, leaves)

    torch.testing.assert_close(derivatives(laws["ours"]), derivatives(laws["theirs"]))


@pytest.mark.parametrize("kind", KINDS)
def test_they_stay_what_they_are_in_a_program_and_in_divergences(kind):
    make, units, plain = KINDS[kind]
    loc, scale, other = torch.randn(5), torch.rand(5) + 0.5, torch.rand(5) + 0.5

    def program():
        with pyro.plate("data", 3):
            return pyro.sample("z", make(loc, scale))

    site = pyro.poutine.trace(program).get_trace().nodes["z"]
    assert isinstance(site["fn"], units) and site["fn"].batch_shape == (3,) and site["value"].shape == (3, 5)
    reference = Independent(plain(loc, scale), 1)
    torch.testing.assert_close(site["fn"].log_prob(site["value"]), reference.log_prob(site["value"]))
    expected = kl_divergence(reference, Independent(plain(loc, other), 1))
    torch.testing.assert_close(kl_divergence(make(loc, scale), make(loc, other)), expected)
    assert site["fn"].has_rsample and torch.equal(make(loc, scale).mean, loc)


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_checked_as_ever(kind):
    make = KINDS[kind][0]
    with pyro.validation_enabled(True):
        law = make(torch.zeros(5), torch.ones(5))
        with pytest.raises(ValueError, match="within the support"):
            law.log_prob(torch.full((5,), torch.nan))
        with pytest.raises(ValueError, match="scale"):
            make(torch.zeros(5), -torch.ones(5))

"""Functions that are recorded and replayed: the same numbers, the same cost, and no record where a function takes another course."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.util import is_validation_enabled
from torch.distributions import Distribution

import zoo
from inference import infer, log_joint
from inference.mcmc import lattice as lattice_module
from inference.mcmc import target as target_module
from inference.mcmc.lattice import Landscape
from inference.mcmc.target import Target, annealed
from inference.mcmc.traced import traced
from zoo.density import counting, latent_sites, uncounted

ABOVE, BELOW = torch.tensor([1.0, 2.0]), torch.tensor([-1.0, -2.0])


def called(function):
    """The function, and a list that grows with each call that Python makes of it."""
    calls = []

    def counted(*inputs):
        calls.append(len(inputs))
        return function(*inputs)

    return counted, calls


def replayed(function, *inputs):
    """The function, traced, after as many calls as make a record."""
    replay = traced(function)
    for _ in range(6):
        replay(*inputs)
    return replay


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_record_gives_what_the_function_gives_without_calling_it(dtype):
    layer = torch.nn.Linear(3, 2, dtype=dtype)

    def values(u, beta):
        with torch.enable_grad():
            u = u.detach().requires_grad_(True)
            out = torch.zeros(len(u), 2, dtype=dtype)
            out[:, 0] = (layer(u).tanh() * beta).sum(-1)
            out[:, 1:] = u.square().sum(-1, keepdim=True)
            return out.detach(), torch.autograd.grad(out.sum(), u)[0]

    function, calls = called(values)
    replay, beta = traced(function), torch.tensor(0.7, dtype=dtype)
    for i in range(40):
        u = torch.randn(4, 3, dtype=dtype)
        found, expected = replay(u, beta + i), values(u, beta + i)
        torch.testing.assert_close(found, expected)
        assert not any(value.requires_grad for value in found)
    assert 3 <= len(calls) <= 10, "most calls were replays"


def test_replays_build_no_graph_of_inputs_or_parameters():
    layer = torch.nn.Linear(2, 1)
    replay = traced(lambda u: (layer(u),))
    assert replay(ABOVE)[0].requires_grad, "the first call is the function's own"
    for _ in range(5):
        replay(ABOVE)
    assert not any(replay(ABOVE.clone().requires_grad_(True))[0].requires_grad for _ in range(2))


def test_other_shapes_and_types_have_records_of_their_own():
    function, calls = called(lambda u, v: (u.sum(0) * len(u) + v,))
    replay = traced(function)
    for u in (torch.randn(3, 2), torch.randn(5, 2), torch.randn(3, 2).double(), torch.randn(3, 2)):
        before = len(calls)
        for _ in range(6):
            torch.testing.assert_close(replay(u, ABOVE.to(u.dtype)), (u.sum(0) * len(u) + ABOVE.to(u.dtype),))
        assert len(calls) > before or len(u) == 3, "a new shape is looked at by the function itself"
    assert not torch.equal(replay(torch.ones(3, 2), ABOVE)[0], replay(torch.ones(5, 2), ABOVE)[0])


BRANCHES = {
    "item": lambda u: (u if u.sum().item() > 0 else -3 * u,),
    "bool": lambda u: (u if (u > 0).all() else -3 * u,),
    "equal": lambda u: (u if torch.equal(u, u.abs()) else -3 * u,),
    "max": lambda u: (u if max(u) > 0 else -3 * u,),
    "each": lambda u: (torch.stack([v if v > 0 else -3 * v for v in u]),),
    "constants": lambda u: (torch.tensor([v.item() ** 2 for v in u]),),
}
# These leave the tracer without a word.
HIDDEN = {
    "numpy": lambda u: (u if u.detach().numpy().sum() > 0 else -3 * u,),
    "tolist": lambda u: (u if sum(u.tolist()) > 0 else -3 * u,),
    "length": lambda u: (u * (1 + len((u > 0).nonzero())),),
    "mask": lambda u: (u * (1 + u[u > 0].numel()),),
}


@pytest.mark.parametrize("name", BRANCHES)
def test_functions_that_branch_on_values_are_run_as_they_are(name):
    function, calls = called(BRANCHES[name])
    replay = replayed(function, ABOVE)
    before = len(calls)
    for u in (BELOW, ABOVE, BELOW):
        torch.testing.assert_close(replay(u), BRANCHES[name](u))
    assert len(calls) == before + 3


@pytest.mark.parametrize("name", HIDDEN)
def test_a_branch_that_the_tracer_does_not_see_shows_at_the_third_call(name):
    replay = traced(HIDDEN[name])
    for u in (ABOVE, ABOVE, BELOW, BELOW, ABOVE, BELOW):  # recorded at the second, compared at the third
        torch.testing.assert_close(replay(u), HIDDEN[name](u))


@pytest.mark.filterwarnings("ignore:the function takes another course")
@pytest.mark.parametrize("name", HIDDEN)
def test_a_branch_that_the_tracer_does_not_see_shows_later(name):
    replay = replayed(HIDDEN[name], ABOVE)
    for _ in range(50):
        replay(BELOW)
    torch.testing.assert_close(replay(BELOW), HIDDEN[name](BELOW))


def test_a_python_branch_of_the_same_shape_shows_at_the_third_call():
    calls = []

    def changes(u):  # its second call is recorded
        calls.append(None)
        return (u if len(calls) < 4 else -u,)

    replay = traced(changes)
    assert [replay(ABOVE)[0][0].item() for _ in range(6)] == [1.0, 1.0, -1.0, -1.0, -1.0, -1.0]


def test_values_that_are_not_numbers_do_not_stop_a_record():
    function, calls = called(lambda u: (u.log(), u / u))
    replay = replayed(function, torch.tensor([0.0, -1.0, 2.0]))
    before, u = len(calls), torch.tensor([3.0, 0.0, -1.0])
    for _ in range(3):
        torch.testing.assert_close(replay(u), (u.log(), torch.tensor([1.0, torch.nan, 1.0])), equal_nan=True)
    assert len(calls) <= before + 1


def test_errors_of_the_function_are_its_own():
    def fails(u):
        raise ValueError("no such latent")

    replay = traced(fails)
    for _ in range(4):
        with pytest.raises(ValueError, match="no such latent"):
            replay(ABOVE)


def test_parameters_that_change_in_place_are_seen():
    layer, offset = torch.nn.Linear(2, 1), torch.zeros(())

    def function(u):
        return (layer(u) + layer.weight.exp().sum() + offset.exp(),)

    replay = replayed(function, ABOVE)

    def same():
        return torch.allclose(replay(ABOVE)[0], function(ABOVE)[0])

    with torch.no_grad():
        layer.weight.add_(1.0)
        assert same()
        offset.fill_(2.0)
        assert same()
    layer.weight.data = torch.zeros(1, 2)
    assert same()
    layer.load_state_dict({"weight": torch.ones(1, 2), "bias": torch.ones(1)})
    assert same()


@pytest.mark.parametrize("validate", [True, False])
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("function", [BRANCHES["item"], lambda u: (dist.Normal(u, 1.0).log_prob(u),)])
def test_flags_stay_as_they_were(validate, grad, function):
    def flags():
        return Distribution._validate_args, dist.is_validation_enabled(), is_validation_enabled(), torch.is_grad_enabled()

    before = Distribution._validate_args
    try:
        Distribution.set_default_validate_args(validate)
        with torch.set_grad_enabled(grad):
            expected, replay = flags(), traced(function)
            for _ in range(6):
                replay(ABOVE)
                assert flags() == expected
    finally:
        Distribution.set_default_validate_args(before)


def test_compiling_does_not_turn_validation_off(monkeypatch):
    def compiler(graph):  # what torch.compile does when it is first called
        Distribution.set_default_validate_args(False)
        return graph

    monkeypatch.setattr(torch, "compile", compiler)
    before, replay = Distribution._validate_args, traced(lambda u: (u.exp(),), compiled=True)
    for _ in range(5):
        torch.testing.assert_close(replay(ABOVE), (ABOVE.exp(),))
        assert Distribution._validate_args == before


# -- densities

def switched(x=None, size=None):
    """A count that sets the level of a real number; the sites come in another order than blocks do."""
    with pyro.plate("data", size if x is None else len(x)):
        spikes = pyro.sample("spikes", dist.Poisson(2.0))
        other = pyro.sample("other", dist.Poisson(1.0))
        level = pyro.sample("level", dist.Normal(spikes - 0.5 * other, 1.0))
        return pyro.sample("x", dist.Normal(level[..., None] * torch.tensor([1.0, -1.0]), 0.5).to_event(1), obs=x)


def test_replays_see_the_temperature_and_the_other_latents():
    x = torch.randn(3, 2)
    start = {"spikes": torch.ones(2, 3), "other": torch.zeros(2, 3)}
    target = Target(switched, x, given=start)
    u = torch.randn(2, 3, 1)
    for _ in range(6):
        target.value_and_grad(u)
    target.beta, target.given = 0.25, {"spikes": torch.full((2, 3), 4.0), "other": torch.full((2, 3), 3.0)}
    u = torch.randn(2, 3, 1, requires_grad=True)
    expected = annealed(switched, None, target.given | {"level": u[..., 0]}, x, 0.25)
    gradient, = torch.autograd.grad(expected.sum(), u)
    torch.testing.assert_close(target.value_and_grad(u), (expected.detach(), gradient))
    landscape = Landscape(switched, x, "spikes", latent_sites(switched, x)["spikes"]["fn"],
                          {"other": torch.zeros(2, 3), "level": torch.zeros(2, 3)})
    for _ in range(6):
        landscape(torch.ones(2, 3))
    landscape.given = {"other": torch.full((2, 3), 2.0), "level": torch.randn(2, 3)}
    found = landscape(torch.full((2, 3), 3.0))
    torch.testing.assert_close(found.value, log_joint(switched, landscape.given | {"spikes": torch.full((2, 3), 3.0)}, x))


@pytest.mark.parametrize("program", ["gaussian", switched])
def test_chains_and_their_cost_are_the_same_with_and_without_records(program, monkeypatch):
    model = program if callable(program) else zoo.build(program, (1, 1, 2), latents=2)
    x = torch.randn(3, *getattr(model, "event_shape", (2,)))

    def run():
        return infer(model, x, "mcmc", draws=6, warmup=10, steps=3.0, chains=2)

    quick = run()
    for module in (target_module, lattice_module):
        monkeypatch.setattr(module, "traced", lambda function, compiled=False: function)
    plain = run()
    for name, value in plain.samples.items():
        torch.testing.assert_close(quick.samples[name], value, rtol=1e-3, atol=1e-4)
    kinds = ("evaluations", "gradient_evaluations")
    assert [quick.cost[kind] for kind in kinds] == [plain.cost[kind] for kind in kinds] and quick.cost["gradient_evaluations"] > 0


def test_every_replay_counts_as_a_gradient():
    model, x = zoo.build("gaussian", (1, 1, 2), latents=2), torch.randn(3, 1, 1, 2)
    target = Target(model, x)
    with counting() as cost:
        for i in range(1, 9):
            target.value_and_grad(torch.randn(4, 3, 2))
            assert (cost.evaluations, cost.gradients) == (12 * i, 12 * i)
        with uncounted():
            target.value_and_grad(torch.randn(4, 3, 2))
        assert (cost.evaluations, cost.gradients) == (96, 96)


def test_counts_inside_counts():
    model, x = zoo.build("gaussian", (1, 1, 2), latents=2), torch.randn(3, 1, 1, 2)
    z = torch.randn(3, 2)
    with counting() as outer:
        with counting() as inner:
            log_joint(model, {"z": z}, x)
        log_joint(model, {"z": z}, x)
    assert (outer.evaluations, inner.evaluations) == (6, 3)

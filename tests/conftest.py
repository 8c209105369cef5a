"""What every test runs under: one thread per worker, no display, and a guard over global state."""

import os
from contextlib import contextmanager

os.environ.setdefault("MPLBACKEND", "Agg")

import pyro  # noqa: E402
import pyro.distributions as dist  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from pyro.infer.util import is_validation_enabled  # noqa: E402

if "PYTEST_XDIST_WORKER" in os.environ or "OMP_NUM_THREADS" not in os.environ:
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    """Tutorials first: run last, the longest tests would leave all workers but one idle."""
    items.sort(key=lambda item: "test_tutorials" not in item.nodeid)


def global_state():
    """What a function must leave as it found it, by name; the random generator has a fixture of its own."""
    return {
        "Pyro's parameter store": sorted(pyro.get_param_store().keys()),
        "the validation flag of torch.distributions": torch.distributions.Distribution._validate_args,
        "the validation flag of pyro.distributions": dist.is_validation_enabled(),
        "the validation flag of pyro.infer": is_validation_enabled(),
        "the default dtype": torch.get_default_dtype(),
        "grad mode": torch.is_grad_enabled(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "Pyro's stack of handlers": len(pyro.poutine.runtime._PYRO_STACK),
    }


def put_back(state):
    pyro.clear_param_store()
    torch.distributions.Distribution.set_default_validate_args(state["the validation flag of torch.distributions"])
    dist.enable_validation(state["the validation flag of pyro.distributions"])
    pyro.infer.util.enable_validation(state["the validation flag of pyro.infer"])
    torch.set_default_dtype(state["the default dtype"])
    torch.set_grad_enabled(state["grad mode"])
    torch.use_deterministic_algorithms(state["deterministic algorithms"])
    del pyro.poutine.runtime._PYRO_STACK[state["Pyro's stack of handlers"]:]


@pytest.fixture(autouse=True)
def _same_global_state():
    """Fails a test that leaves global state changed, and puts it back for the next one."""
    before = global_state()
    yield
    after = global_state()
    changed = [name for name in before if before[name] != after[name]]
    if changed:
        put_back(before)
        pytest.fail(f"the test changed {', '.join(changed)}")


@pytest.fixture
def unchanged_generator():
    """A context in which torch's global generator must end where it started: for functions that take a seed."""

    @contextmanager
    def check():
        before = torch.get_rng_state()
        yield
        assert torch.equal(torch.get_rng_state(), before), "the global random generator was left changed"

    return check

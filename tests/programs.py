"""Pyro programs that more than one file of tests infers."""

import pyro
import pyro.distributions as dist


def mixed(x=None, size=None):
    """A count, a level around it, and a noisy view of the level."""
    with pyro.plate("data", size if x is None else len(x)):
        spikes = pyro.sample("spikes", dist.Poisson(2.0))
        level = pyro.sample("level", dist.Normal(spikes, 1.0))
        return pyro.sample("x", dist.Normal(level[..., None], 1.0).to_event(1), obs=x)

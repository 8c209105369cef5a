"""Ways of inferring: each takes a program and images and returns a :class:`~inference.posterior.Posterior`."""

from zoo.registry import Registry

__all__ = ["registry"]

registry = Registry("methods", {
    "amortized": ("inference.methods.amortized:amortized", "one pass of the encoder; samples from its posterior"),
    "local": ("inference.methods.local:local", "variational parameters optimized for each image, from the encoder or the prior"),
    "map": ("inference.methods.point:point", "the most probable latents: gradient ascent, or ascent on the lattice of counts"),
    "mcmc": ("inference.methods.mcmc:mcmc", "Markov chains for every image at once: HMC, Gibbs sweeps, moves on the lattice of counts"),
})

"""Distributions that Pyro does not have: over velocities, points of a diamond, and fields of vectors."""

from zoo.distributions.diamond import UniformDiamond
from zoo.distributions.endpoint import EndpointError
from zoo.distributions.isotropic import Isotropic

__all__ = ["EndpointError", "Isotropic", "UniformDiamond"]

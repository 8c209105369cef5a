"""Small models whose posterior and evidence are known exactly: what an inference method must get right before it is believed.

Each is a model of the zoo like any other, so every guide and method runs on it. Its exact answers are methods; they
follow the model's present parameters, are computed in float64, and can be differentiated.
"""

from zoo.oracles.chain import LinearChain, linear_chain
from zoo.oracles.enumerable import Enumerable, Mixture, enumerable_poisson, fixture_image, mixture, poisson_fixture
from zoo.oracles.likelihood import likelihood_constant
from zoo.oracles.linear import LinearGaussian, linear_gaussian

__all__ = ["Enumerable", "LinearChain", "LinearGaussian", "Mixture", "enumerable_poisson", "fixture_image", "likelihood_constant",
           "linear_chain", "linear_gaussian", "mixture", "poisson_fixture"]

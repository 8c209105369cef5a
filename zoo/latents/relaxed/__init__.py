"""Reparameterized twins of discrete distributions: counts and one-hot vectors with pathwise gradients."""

"""Markov chains for many images at once: targets, samplers, tuning, annealing, and what says whether they have converged."""

"""Generative programs, one a file; ``registry`` names those that are built without a latent family's name."""

from zoo.registry import Registry

__all__ = ["registry"]

registry = Registry("models", {
    "linear_gaussian": ("zoo.oracles:linear_gaussian", "oracle: Normal latents, linear decoder; exact posterior and log p(x)"),
    "linear_chain": ("zoo.oracles:linear_chain", "oracle: a linear predictive-coding network; exact posterior, energy, log p(x)"),
    "poisson_fixture": ("zoo.oracles:poisson_fixture", "oracle: two Poisson latents; posterior and log p(x) by enumeration"),
    "sparse_coding": ("zoo.models.sparse_coding:SparseCoding", "Laplace latents, linear decoder with atoms of length 1: sparse coding"),
    "predictive_coding": ("zoo.models.chains:predictive_coding", "a chain of levels, each predicting the one below: predictive coding"),
    "rao_ballard": ("zoo.models.chains:rao_ballard", "predictive coding of three patches by two levels, a sparse prior at the top"),
    "cnvae": ("zoo.models.hierarchies:cnvae", "compressed hierarchical VAE as published: 21 groups, 420 latents, any latent families"),
    "nvae": ("zoo.models.hierarchies:nvae", "the same with spatial latents: 17,520 of them"),
    "vae": ("zoo.models.hierarchies:vae", "its flat rival: one group of 420 latents"),
    "cnae": ("zoo.models.hierarchies:cnae", "cnvae made deterministic"),
    "ae": ("zoo.models.hierarchies:ae", "vae made deterministic: an autoencoder"),
    "cnvae_s": ("zoo.models.hierarchies:cnvae_s", "a small hierarchy for a CPU: 420 latents, 412 of them gains of the last 8"),
    "vae_s": ("zoo.models.hierarchies:vae_s", "a flat VAE as large as cnvae_s"),
    "cnvae_maps_s": ("zoo.models.hierarchies:cnvae_maps_s", "a small cnvae on maps: 6 groups, 60 latents"),
    "nvae_s": ("zoo.models.hierarchies:nvae_s", "the same with spatial latents"),
    "vae_maps_s": ("zoo.models.hierarchies:vae_maps_s", "a flat VAE as large as cnvae_maps_s"),
    "hierarchy": ("zoo.models.hierarchies:hierarchy", "a hierarchy of your own: groups, scales, cells (conv, mlp, lin), families"),
    "optic_flow": ("zoo.models.optic_flow:OpticFlow", "retinal optic flow from its causes: gaze, self motion, discs (data rofl/…)"),
    "temporal": ("zoo.models.temporal:TemporalPredictiveCoding", "temporal predictive coding: a state that foretells its next value"),
    "linear_dynamical_system": ("zoo.oracles.kalman:linear_dynamical_system",
                                "oracle: the same, linear: Kalman filter, RTS smoother, log p(x)"),
    "transformed": ("zoo.models.transformed:transformed", "a one-layer model of the image that a flow has whitened: zca, ar, conv, …"),
    "mixture": ("zoo.oracles:mixture", "oracle: mixture of Gaussians; exact responsibilities and log p(x)"),
})

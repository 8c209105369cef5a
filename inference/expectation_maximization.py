r"""Monte Carlo EM: the model learns from samples of the posterior itself, with no guide between (Wei & Tanner 1990).

E-step: the Markov chains of a minibatch's images, which are kept from one visit to the next, make a few transitions under the model as it
is now. M-step: the model ascends :math:`\log p(x, z)` at their states. This is stochastic approximation of maximum likelihood, with an
error for as long as the chains lag behind the model (Gu & Kong 1998; Tieleman 2008). A guide that comes along descends
:math:`KL(p(z | x) \| q(z | x))` on the same states, and the model does not adapt to it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from guides.bounds import Bound, elbo
from guides.objectives.base import exact_draws, without_kl
from guides.objectives.wake_sleep import log_posterior
from inference.learner import Learner
from inference.mcmc.persistent import PersistentChains
from zoo.density import log_joint
from zoo.frozen import frozen

__all__ = ["MonteCarloEM"]


class MonteCarloEM(Learner):
    """Chains of all training images, and what training ascends at their states.

    It stands where training has a guide: its parameters are those of the guide that learns alongside, if there is one, and its state is
    that guide's and the chains', so that training resumes exactly from a checkpoint (which is as large as the chains then).

    Arguments:
        model: The model.
        guide: A guide that learns from the chains, and from whose draws they start; they start at the prior's if None.
        x: Training images ``(n, *event_shape)``.
        batch_size: Images of a minibatch.
        seed: Seed of the minibatches.
        options: Of :class:`inference.mcmc.persistent.PersistentChains`: ``chains``, ``transitions``, ``sampler``.

    Attributes:
        batches: Indices of images by training step.

    Raises:
        ValueError: for a guide that keeps something for each image, or options that the chains refuse.
    """

    def __init__(self, model: nn.Module, guide: nn.Module | None, x: Tensor, *, batch_size: int, seed: int = 0, **options: object) -> None:
        super().__init__(guide, x, batch_size=batch_size, seed=seed)
        self.chains = PersistentChains(model, x, batch_size=batch_size, **options)

    def bound(self, model: nn.Module, _: nn.Module, index: Tensor, *, beta: float = 1.0, particles: int = 1) -> Bound:
        """One E-step, and what the M-step ascends: an objective like others, but of images by their index.

        Arguments:
            index: Which images, ``(B,)``.
            beta: 1, as there is no KL term.
            particles: Not used: there are as many chains as there are.

        Returns:
            A bound whose value is the guide's ELBO (one exact draw, which nothing ascends), or NaN without a guide. ``told`` has
            ``log_joint``, the mean log p(x, z) at the chains' states, in nats per image, and ``accepted``, their mean acceptance
            probability.
        """
        without_kl("Monte Carlo EM", beta, particles)
        if self.chains.visits == 0:
            self.chains.start(model if self.guide is None else self.guide, index)
        accepted = self.chains.move(index).mean()
        x, latents = self.chains.x[index], self.chains.states(index)
        joint = log_joint(model, latents, x).mean(0)
        surrogate, value = joint, torch.full_like(joint, torch.nan)
        if self.guide is not None:
            with frozen(model):
                surrogate = surrogate + log_posterior(self.guide, latents, x).mean(0)
            value = _elbo(model, self.guide, x)
        return Bound(value, None, None, surrogate, {"log_joint": joint.detach().mean(), "accepted": accepted})


@torch.no_grad()
def _elbo(model: Callable, guide: nn.Module, x: Tensor) -> Tensor:
    with exact_draws(guide):
        return elbo(model, guide, x).value

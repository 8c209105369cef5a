r"""Learning from point estimates: predictive coding's two phases, and the form in which they run at once.

The latents of a batch climb :math:`\log p(x, z)`, then the weights do, at the latents' values; or both move a little at every tick
(incremental predictive coding; Salvatori et al. 2024). This is EM with a posterior of point masses (Friston 2005; Marino 2022): the missing
width biases what is learned, learned scales of latents above all, which it drives to zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from guides.base import center
from guides.bounds import Bound
from guides.objectives.base import exact_draws, without_kl
from guides.objectives.wake_sleep import log_posterior
from inference.batches import Batches
from inference.gradient_dynamics import OPTIMIZERS, ascend, stable_step
from inference.learner import Learner
from inference.local_learning import local_gradients
from inference.mcmc.target import Target
from inference.methods.point import first_values
from inference.spaces import SPACES, Space
from zoo.density import latent_sites, log_joint
from zoo.frozen import frozen
from zoo.latents.base import Family
from zoo.latents.correlated import Correlations
from zoo.latents.support import support_kind
from zoo.models.clamped import Clamped

__all__ = ["MapEM", "without_floor"]

STARTS = ("prior", "guide", "last")
RULES = ("autograd", "local")
AFRESH = 100  # visits after which a stable step size is looked for again, as the weights have changed


class MapEM(Learner):
    """The latents of all training images, and what training ascends at their most probable values.

    It stands where training has a guide. Its parameters are those of the guide that learns alongside, if there is one: an encoder that is
    taught the values that were reached, by log q(z | x); the model does not adapt to it (hybrid predictive coding; Tschantz et al. 2023).

    Arguments:
        model: The model, with real-valued latents.
        guide: An encoder that learns to start, or None.
        x: Training images ``(n, *event_shape)``.
        batch_size: Images of a minibatch.
        seed: Seed of the minibatches.
        clamped: ``{site: (n, K)}``, values of the model's highest latent that are given: inputs of a supervised network, or labels.
        steps: Steps of the latents for each batch.
        lr, optimizer: Of these steps (:func:`inference.gradient_dynamics.ascend`). With ``"gradient"`` and no ``lr``, half of what is
            stable for all images of a batch, looked up every 100 batches.
        space: ``"states"`` or ``"errors"`` (:class:`zoo.error_space.ErrorSpace`).
        start: Where the latents of a batch start: at the ``"prior"``'s means, the ``"guide"``'s, or the ``"last"`` values of the image,
            which are kept (n × K numbers).
        incremental: Whether the weights move after every step of the latents, ``steps`` times for each batch, not after the last alone.
        rule: What the weights ascend: the gradient by ``"autograd"``, or ``"local"``, error × presynaptic activity
            (:func:`inference.local_learning.local_gradients`), which is the same for maps of one layer of synapses.

    Attributes:
        batches: Indices of images by training step.

    Raises:
        ValueError: for settings out of range; latents that are not real-valued; a learned scale of a latent without a floor, as log p(x, z)
            then has no upper bound; or a guide that keeps something for each image.
    """

    def __init__(self, model: nn.Module, guide: nn.Module | None, x: Tensor, *, batch_size: int, seed: int = 0,
                 clamped: Mapping[str, Tensor] | None = None, steps: int = 50, lr: float | None = None, optimizer: str = "gradient",
                 space: str = "states", start: str = "prior", incremental: bool = False, rule: str = "autograd") -> None:
        batch_size = min(batch_size, len(x))
        super().__init__(guide, x, batch_size=batch_size, seed=seed)
        if guide is not None and clamped:
            raise ValueError("a guide infers all latents of a model, of which one is clamped here: learn without a guide")
        _check(guide, steps=steps, lr=lr, optimizer=optimizer, space=space, start=start, incremental=incremental, rule=rule)
        batches, ticks = self.batches, steps if incremental else 1
        self.batches = Batches(lambda step: batches.at(step // ticks), batches.per_epoch * ticks, batches.source, batches.device)
        self.steps, self.lr, self.optimizer, self.start, self.rule = steps, lr, optimizer, start, rule
        self.incremental, self.space = incremental, space
        self._place: Space | None = None
        self.register_buffer("x", x.detach(), persistent=False)
        self.register_buffer("batch", x[:batch_size].detach().clone(), persistent=False)  # one place: densities are recorded with it
        self._clamp(model, clamped, batch_size)
        for name in ("visits", "tick"):
            self.register_buffer(name, torch.zeros((), dtype=torch.int64, device=x.device))
        self.register_buffer("step_size", x.new_zeros(()))
        kinds = {name: support_kind(site["fn"].support) for name, site in latent_sites(self.program, self.batch).items()}
        if set(kinds.values()) != {"real"}:
            raise ValueError("the method 'map' learns from latents that climb a gradient; discrete here are "
                             f"{', '.join(name for name, kind in kinds.items() if kind != 'real')}")
        loose = without_floor(self.program, self.batch)
        if loose:
            raise ValueError(f"the learned scale of {', '.join(loose)} has no floor: with point estimates log p(x, z) has no upper bound, "
                             "as the scale goes to 0; give it a floor, fix it (precision='fixed', learn_prior=False), or learn it with a "
                             "guide that has a width")
        if rule == "local" and any(isinstance(part, Correlations) for part in model.modules()):
            raise ValueError("correlations of noise have no local rule: use rule='autograd', or the precisions 'scalar' or 'diagonal'")
        self.register_buffer("u", x.new_zeros(batch_size, self._density().size))
        self.register_buffer("kept", x.new_zeros(len(x) if start == "last" else 0, self.u.shape[1]))
        self.register_buffer("seen", torch.zeros(len(self.kept), dtype=torch.bool, device=x.device))

    def _clamp(self, model: nn.Module, clamped: Mapping[str, Tensor] | None, batch_size: int) -> None:
        clamped = dict(clamped or {})
        for name, values in clamped.items():
            if len(values) != len(self.x):
                raise ValueError(f"{name} is given for {len(values)} images, but there are {len(self.x)}")
        self.site = next(iter(clamped), None)
        self.register_buffer("top", clamped[self.site].detach().to(self.x) if clamped else None, persistent=False)
        program = Clamped(model, {name: values[:batch_size].to(self.x).clone() for name, values in clamped.items()}) if clamped else model
        self._program = (program,)  # in a tuple, which nn.Module does not register

    @property
    def program(self) -> nn.Module:
        """The model, its highest latent clamped if that is given."""
        return self._program[0]

    def bound(self, model: nn.Module, _: nn.Module, index: Tensor, *, beta: float = 1.0, particles: int = 1) -> Bound:
        """Inference for a batch (one step of it, if incremental), and what the weights ascend then: an objective like others, but of
        images by their index.

        Arguments:
            index: Which images, ``(B,)``.
            beta, particles: 1: there is no KL term, and one point for each image.

        Returns:
            A bound without a value (NaN): point estimates have no ELBO. ``told`` has ``log_joint``, the mean log p(x, z) at the values
            reached, in nats per image, and ``slope``, the mean length of the gradient that is left.
        """
        without_kl("learning from point estimates", beta, particles)
        values, slope = self._settle(index)
        with frozen(self.program) if self.rule == "local" else nullcontext():
            joint = log_joint(self.program, values, self.batch)
        surrogate = joint
        if self.rule == "local":
            weights = dict(self.program.named_parameters())
            steps = local_gradients(self.program, values, self.batch)
            surrogate = sum((weights[name] * step).sum() for name, step in steps.items()).expand_as(joint)
        if self.guide is not None:
            with frozen(model):
                surrogate = surrogate + log_posterior(self.guide, {name: value.unsqueeze(0) for name, value in values.items()},
                                                      self.batch).mean(0)
        told = {"log_joint": joint.detach().mean(), "slope": slope.mean()}
        return Bound(torch.full_like(joint.detach(), torch.nan), None, None, surrogate, told)

    @torch.no_grad()
    def _settle(self, index: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Values of the batch's latents after this visit's steps, and the slope before the last of them, ``(B,)``."""
        with frozen(self.program), exact_draws(self.guide):
            place = self._space()
            self.batch.copy_(self.x[index])  # at every tick: a resumed training may begin in the middle of a batch
            if self.site is not None:
                self.program.top.copy_(self.top[index])
            if not self.incremental or int(self.tick) == 0:
                self.u.copy_(self._first(place, index))
                self._look_up_step(place.target)
            lr = self.lr if self.lr is not None or self.optimizer == "adam" else self.step_size.reshape(1, 1)
            for moment in ascend(place.target, self.u, steps=1 if self.incremental else self.steps, lr=lr, optimizer=self.optimizer):
                self.u.copy_(moment.u)
            if self.incremental:
                self.tick.copy_((self.tick + 1) % self.steps)
            if len(self.kept):
                self.kept[index], self.seen[index] = self.u, True
            return place.leave(self.u), moment.slope

    def _density(self) -> Target:
        return self._space().target

    def _space(self) -> Space:
        if self._place is None:
            self._place = Space(self.program, self.batch, self.space)
        return self._place

    def _first(self, place: Space, index: Tensor) -> Tensor:
        u = place.enter(first_values(self.program, self.batch, self.guide, "guide" if self.start == "guide" else "prior"))
        return torch.where(self.seen[index].unsqueeze(-1), self.kept[index], u) if len(self.kept) else u

    def _look_up_step(self, target: Target) -> None:
        if self.lr is None and self.optimizer == "gradient" and int(self.visits) % AFRESH == 0:
            self.step_size.copy_(0.5 * stable_step(target, self.u).amin())
        self.visits += 1


def without_floor(model: nn.Module, x: Tensor) -> list[str]:
    """The sites of a model whose learned scale a point estimate could let vanish: latents, and the image if there are as many latents as
    pixels, with no floor (the attribute ``floors`` of a model, by site). Programs from outside the zoo do not tell."""
    floors, found = getattr(model, "floors", {}), []
    learned = [p for p in model.parameters() if p.requires_grad]

    def look(name: str, family: Family, prior: Tensor, above: Tensor | None = None) -> Tensor:
        if "log_scale" in family.parameters and not floors.get(name, 0.0) and prior.requires_grad:
            row = prior.select(-2, family.parameters.index("log_scale"))
            slopes = torch.autograd.grad(row.sum(), learned, allow_unused=True, retain_graph=True)
            if any(slope is not None and bool((slope != 0).any()) for slope in slopes):
                found.append(name)
        law = family.distribution(prior)
        return center(law).expand(len(x), *law.event_shape)

    if hasattr(model, "descend") and hasattr(model, "observation"):
        with torch.enable_grad():
            model.descend(look, x)
    image = getattr(model, "log_scale", None)
    many = sum(units for _, units in getattr(model, "latents", {}).values()) >= x[0].numel()
    if isinstance(image, nn.Parameter) and image.requires_grad and many and not floors.get("x", 0.0):
        found.append("x")
    return found


def _check(guide: nn.Module | None, *, steps: int, lr: float | None, optimizer: str, space: str, start: str, incremental: bool,
           rule: str) -> None:
    for what, value, known in (("optimizer", optimizer, OPTIMIZERS), ("space", space, SPACES), ("start", start, STARTS),
                               ("rule", rule, RULES)):
        if value not in known:
            raise ValueError(f"{what} must be {', '.join(map(repr, known))}, not {value!r}")
    if steps < 1 or (lr is not None and not 0.0 < lr < float("inf")):
        raise ValueError(f"steps must be at least 1 and lr positive; got {steps} and {lr}")
    if incremental and optimizer != "gradient":
        raise ValueError("incremental learning moves latents by plain gradient steps: use optimizer='gradient'")
    if guide is None and start == "guide":
        raise ValueError("start='guide' needs a guide, an encoder that learns where to start")

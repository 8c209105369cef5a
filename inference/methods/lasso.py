r"""The most probable sparse code as a convex problem, for whatever solves it: :math:`\min_z \tfrac12\|r - Wz\|^2 + \sum_k |z_k| / b_k`.

For a program with one latent site, Laplace around 0 with scales :math:`b_k`, and Normal pixels of mean :math:`\Phi z + c` and standard
deviations σ, it is what :math:`\max_z \log p(x, z)` comes to, with :math:`W = \Phi / \sigma` and :math:`r = (x - c) / \sigma`: the lasso
(Tibshirani 1996; basis pursuit denoising, Chen, Donoho & Saunders 1998). It is optimal just if it meets the Karush–Kuhn–Tucker conditions:
:math:`g = W^\top (r - Wz)` is :math:`\mathrm{sign}(z_k) / b_k` where :math:`z_k \ne 0`, and no larger than :math:`1 / b_k` elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain

import torch
from pyro.distributions import Independent, Laplace, Normal
from torch import Tensor, nn
from torch.distributions import Distribution

from inference.posterior import Posterior
from zoo.density import latent_sites, observation

__all__ = ["Lasso", "Start", "first_codes", "read", "shrink"]

Start = str | Tensor | Posterior | None
LINEAR = 1e-3  # relative deviation from a linear map that is put down to rounding


@dataclass(frozen=True)
class Lasso:
    """The problems of ``N`` images that share everything but the image.

    Attributes:
        weight: W, the decoder's matrix in units of the noise, ``(D, K)``.
        target: r, the images less the decoder's bias in the same units, ``(N, D)``.
        slope: 1 / b, of the prior, ``(K,)``.
        offset, noise: c and σ of the pixels, each ``(D,)``.
    """

    weight: Tensor
    target: Tensor
    slope: Tensor
    offset: Tensor
    noise: Tensor

    def decode(self, code: Tensor) -> Tensor:
        """W z, ``(N, D)``, of codes ``(N, K)``."""
        return code @ self.weight.T

    def objective(self, target: Tensor, code: Tensor, mean: Tensor) -> Tensor:
        """−log p(x, z) less its constants, nats, ``(N,)``; ``mean`` is :meth:`decode` of the code."""
        return 0.5 * (target - mean).square().sum(-1) + code.abs() @ self.slope

    def kkt(self, target: Tensor, code: Tensor, mean: Tensor) -> Tensor:
        """Largest violation of the optimality conditions, relative to the slope 1 / b of its unit, ``(N,)``; 0 at the optimum."""
        pull = (target - mean) @ self.weight / self.slope
        violation = torch.where(code == 0, (pull.abs() - 1.0).clamp(min=0.0), (pull - code.sign()).abs())
        return violation.amax(-1)

    def curvature(self, weight: Tensor | None = None) -> float:
        """Largest eigenvalue of WᵀW: the Lipschitz constant of the smooth term's gradient."""
        weight = self.weight if weight is None else weight
        gram = weight @ weight.T if weight.shape[0] < weight.shape[1] else weight.T @ weight
        return max(float(torch.linalg.eigvalsh(gram)[-1]), torch.finfo(gram.dtype).eps)


def shrink(value: Tensor, threshold: Tensor) -> Tensor:
    """Soft threshold, ``sign(v) max(|v| − t, 0)``, with exact zeros; thresholds ``(K,)``."""
    return value - torch.clamp(value, -threshold, threshold)


@torch.no_grad()
def read(model: Callable, x: Tensor) -> Lasso:
    """The problem that a program poses for images ``(N, *event_shape)``, read off the program's own sites.

    The matrix is what the mean of the site ``"x"`` says of single atoms; random codes are then decoded to see that it is linear.

    Raises:
        ValueError: for a program with other latents, another prior or likelihood, or a mean that is not linear in the code.
    """
    sites = latent_sites(model, x)
    if list(sites) != ["z"]:
        raise _refused(f"the latent sites are {', '.join(sites) or 'none'}")
    scale = _prior_scale(sites["z"]["fn"])
    basis = torch.eye(len(scale), dtype=scale.dtype, device=scale.device)
    generator = torch.Generator().manual_seed(0)
    some = torch.randn(4, len(scale), generator=generator).to(scale) * scale * scale.new_tensor([0.1, 1.0, 1.0, 10.0])[:, None]
    law = observation(model, {"z": torch.cat([torch.zeros_like(basis[:1]), basis, some]).unsqueeze(1)}, x[:1])
    noise = _noise(law, x)
    mean = law.mean.flatten(2).squeeze(1)
    offset, matrix, seen = mean[0], (mean[1:-4] - mean[0]).T, mean[-4:]
    expected = offset + some @ matrix.T
    if not ((seen - expected).norm(dim=1) <= LINEAR * (expected.norm(dim=1) + (some.abs() @ matrix.norm(dim=0)))).all():
        raise _refused("the mean of the site 'x' is not linear in the code")
    return Lasso(matrix / noise[:, None], (x.flatten(1) - offset) / noise, scale.reciprocal(), offset, noise)


def misfit(model: nn.Module, x: Tensor | None = None) -> str | None:
    """Why a program poses no such problem, or None if it does; ``x`` is only needed for programs without an ``event_shape``."""
    if x is None:
        like = next(chain(model.parameters(), model.buffers()), torch.zeros(()))
        x = like.new_zeros(1, *model.event_shape)
    try:
        read(model, x[:1])
    except ValueError as error:
        return str(error)
    return None


def first_codes(problem: Lasso, x: Tensor, guide: nn.Module | None, start: Start) -> Tensor:
    """Codes ``(N, K)`` to start from: zeros for None, the mean of the ``"guide"``, of a posterior, or the codes themselves.

    Raises:
        ValueError: for any other start, a guide without a mean, or codes of another shape or not finite.
    """
    shape = (len(problem.target), len(problem.slope))
    if start is None:
        return problem.target.new_zeros(shape)
    if isinstance(start, str):
        if start != "guide" or not hasattr(guide, "posterior"):
            raise ValueError(f"start={start!r} needs a guide with a posterior mean" if start == "guide" else
                             f"start must be None, 'guide', codes (N, K) or a posterior of these images, not {start!r}")
        family, _ = guide.model.latents["z"]
        with torch.no_grad():
            start = family.moments(guide.posterior(x)["z"])[0]
    codes = (start.mean["z"] if isinstance(start, Posterior) else start).detach().to(problem.target)
    if tuple(codes.shape) != shape or not torch.isfinite(codes).all():
        raise ValueError(f"codes to start from must be finite and {shape}, not {tuple(codes.shape)}")
    return codes


def _prior_scale(law: Distribution) -> Tensor:
    base = law.base_dist if isinstance(law, Independent) and len(law.event_shape) == 1 else law
    if base is law or not isinstance(base, Laplace):
        raise _refused(f"the site 'z' has the law {type(base).__name__} with event shape {tuple(law.event_shape)}")
    if (base.loc != 0).any():
        raise _refused("the prior is centred elsewhere")
    scale = base.scale.reshape(-1, base.scale.shape[-1])
    if (scale != scale[0]).any():
        raise _refused("the prior's scale differs between images")
    return scale[0].detach()


def _noise(law: Distribution, x: Tensor) -> Tensor:
    base = law.base_dist if isinstance(law, Independent) else law
    if not isinstance(base, Normal) or tuple(law.event_shape) != tuple(x.shape[1:]):
        raise _refused(f"the site 'x' has the law {type(base).__name__} with event shape {tuple(law.event_shape)}")
    noise = base.scale.expand(*law.batch_shape, *law.event_shape).reshape(-1, law.event_shape.numel())
    if (noise != noise[0]).any():
        raise _refused("the noise of the pixels depends on the code")
    return noise[0].detach()


def _refused(reason: str) -> ValueError:
    return ValueError("sparse codes are inferred for programs whose one latent site 'z' is Laplace around 0 (to_event(1), a scale for each "
                      f"unit) and whose site 'x' is Normal around a mean linear in z; here {reason}")

r"""Olshausen–Field whitening: the gain :math:`f\,e^{-(f/f_0)^4}` at radial spatial frequency f, in cycles per pixel.

It flattens the 1/f amplitude spectrum of natural images and cuts the corners of the frequency plane, where sampling on a square
grid and noise dominate (Olshausen & Field 1997).
"""

from __future__ import annotations

import numpy as np

__all__ = ["frequency_response", "whiten"]


def frequency_response(shape: tuple[int, int], f0: float = 0.4, as_published: bool = False) -> np.ndarray:
    """The gain at every coefficient of ``numpy.fft.fft2`` of an image of this shape.

    Arguments:
        shape: Height and width in pixels.
        f0: Cut-off in cycles per pixel.
        as_published: Repeats a defect of the Poisson VAE's public code, for comparison with its data only: the frequency grid has
            its zero in the middle but meets an unshifted transform, so that the filter is band-pass but neither isotropic nor
            this one.

    Raises:
        ValueError: if ``f0`` is not positive.
    """
    if not f0 > 0:
        raise ValueError(f"f0 must be positive, in cycles per pixel; got {f0}")
    if as_published:
        fy, fx = (np.linspace(-0.5, 0.5, n) for n in shape)
    else:
        fy, fx = (np.fft.fftfreq(n) for n in shape)
    f = np.hypot(fy[:, None], fx[None, :])
    return f * np.exp(-((f / f0) ** 4))


def whiten(image: np.ndarray, f0: float = 0.4, as_published: bool = False) -> np.ndarray:
    """A grey image ``(height, width)``, filtered; its edges wrap around.

    Raises:
        ValueError: if the image is not two-dimensional, or ``f0`` is not positive.
    """
    if image.ndim != 2:
        raise ValueError(f"expected a grey image (height, width), not an array of shape {image.shape}")
    gain = frequency_response(image.shape, f0, as_published)
    return np.fft.ifft2(np.fft.fft2(image) * gain).real

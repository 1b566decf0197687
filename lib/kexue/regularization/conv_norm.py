r"""The spectral norm of a convolution: exact on a torus, certified on every image, and the reshaped matrix that is neither.

A convolution with kernel :math:`K\in\mathbb R^{c_o\times c_i\times k_1\times k_2}` on an :math:`n\times n` image with wrap-around
borders is diagonalized by the Fourier transform: its singular values are those of the :math:`n^2` matrices

.. math:: \hat K(\omega)=\sum_{a,b}K_{\cdot\cdot ab}\,e^{-i(a\omega_1+b\omega_2)}\in\mathbb C^{c_o\times c_i},
   \qquad\omega\in\tfrac{2\pi}n\{0,\dots,n-1\}^2 .

With stride :math:`s` the :math:`s^2` frequencies that subsampling confuses stand side by side in one block
:math:`\frac1s[\hat K(\omega),\dots]` of :math:`s^2c_i` columns. Zero padding cuts a window out of a larger torus, so for every image size
and both paddings the norm is at most :math:`\sup_\omega\|\hat K(\omega)\|_2`, and that bound is approached by large images.

The supremum follows from a grid. At its place :math:`\omega^*`, with unit vectors :math:`u,v`, the function
:math:`\varphi(t)=\mathrm{Re}\,u^*\hat K(\omega^*+t\delta)v` has its maximum :math:`\varphi(0)=\sup`. Once the kernel is centered, its
frequencies are at most :math:`\tau=\frac{k_1-1}2|\delta_1|+\frac{k_2-1}2|\delta_2|`, and then :math:`\varphi(1)\ge\sup\cos\tau` by the
inequality of Bernstein and Szego. The nearest of :math:`m\times m` grid points has :math:`|\delta_j|\le\pi/m`.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from kexue.numerics import safe_sqrt, spectral_norm

__all__ = ["conv2d_bound", "conv2d_norm", "conv2d_singular_values", "four_reshapes_bound", "reshape_norm"]


def conv2d_singular_values(
    kernel: Float[Tensor, "*batch out channels height width"], size: int, *, stride: int = 1
) -> Float[Tensor, "*batch rows cols rank"]:
    r"""All singular values of the convolution with wrap-around borders on ``size`` x ``size`` images, frequency by frequency.

    Entry (p, q) belongs to frequency :math:`\frac{2\pi}n(p,q)`, with p and q below size / stride; its min(out, stride^2 channels)
    values fall. Together they are the singular values of the (out n^2 / stride^2) x (channels n^2) matrix of the layer. Cost: one FFT
    of the kernel and n^2 small SVDs instead of one SVD with n^2 times their sides. Computed in float64 for float64, else in float32.

    :raises ValueError: if the kernel is empty, not finite or larger than the image, or ``stride`` does not divide ``size``.
        Source: Sedghi, Gupta and Long (2019), arXiv 1805.10408; the blocks for strides are ours.
    """
    return torch.linalg.svdvals(_blocks(_checked(kernel), _size(kernel, size, stride), stride, half=False))


def conv2d_norm(kernel: Float[Tensor, "*batch out channels height width"], size: int, *, stride: int = 1) -> Float[Tensor, "*batch"]:
    r"""Spectral norm of the convolution with wrap-around borders on ``size`` x ``size`` images: :math:`\max_\omega\|\hat K(\omega)\|_2`.

    Exact to rounding. Uses that :math:`\hat K(-\omega)` is the conjugate of :math:`\hat K(\omega)`, and only the largest eigenvalue of the
    smaller Gram matrix. Differentiable where the maximum is attained at one pair of frequencies by a simple singular value.

    :raises ValueError: as :func:`conv2d_singular_values`.
    """
    return _largest(kernel, _size(kernel, size, stride), stride)


def conv2d_bound(
    kernel: Float[Tensor, "*batch out channels height width"], *, stride: int = 1, grid: int | None = None
) -> Float[Tensor, "*batch"]:
    r"""Upper bound of the convolution's spectral norm on images of every size, with wrap-around borders or zero padding.

    The maximum over an m x m grid of frequencies divided by :math:`\cos\frac{\pi(k_1+k_2-2)}{2m}`, which is at least
    :math:`\sup_\omega\|\hat K(\omega)\|_2` and exceeds it by at most the same factor: below 2 % at the default m, sixteen times the
    longer side of the kernel, and falling like :math:`m^{-2}`. Dilation does not change it. Differentiable as :func:`conv2d_norm`. With a
    stride it holds for zero padding and for wrap-around borders of a size that is a multiple of the stride.

    :param grid: m, more than :math:`k_1+k_2-2` and at least both sides of the kernel; rounded up to a multiple of ``stride``.
    :raises ValueError: if the kernel is empty or not finite, or ``stride`` or ``grid`` is out of range.
    """
    height, width = kernel.shape[-2:]
    if stride < 1:
        raise ValueError(f"stride must be at least 1, got {stride}")
    m = 16 * max(height, width) if grid is None else grid
    if m <= height + width - 2 or m < max(height, width):
        raise ValueError(f"grid must exceed {height + width - 2} and reach {max(height, width)} for this kernel, got {m}")
    m += -m % stride
    return _largest(kernel, m, stride) / math.cos(math.pi * (height + width - 2) / (2 * m))


def reshape_norm(kernel: Float[Tensor, "*batch out channels height width"]) -> Float[Tensor, "*batch"]:
    r"""Spectral norm of the kernel reshaped to an out x (channels height width) matrix, which is *not* the norm of the convolution.

    With stride 1 the convolution's norm lies between this number and :math:`\sqrt{k_1k_2}` times it, and both ends occur. This is what
    "spectral normalization" divides by, in Miyato et al. (2018) and in ``torch.nn.utils.parametrizations.spectral_norm``.

    :raises ValueError: if the kernel is empty or not finite.
    """
    return spectral_norm(kernel.flatten(-3))


def four_reshapes_bound(kernel: Float[Tensor, "*batch out channels height width"]) -> Float[Tensor, "*batch"]:
    r"""Upper bound :math:`\sqrt{k_1k_2}\min_i\|R_i\|_2` of the norm of the convolution with stride 1 by four reshaped kernels.

    Rows hold the outputs alone, outputs and height, outputs and width, or all but the inputs; no Fourier transform is needed.

    :raises ValueError: if the kernel is empty or not finite. Source: Singla and Feizi (2021), arXiv 1911.10258, theorem 2.
    """
    out, channels, height, width = range(-4, 0)
    batch = range(kernel.ndim - 4)
    rows_first = [
        (out, channels, height, width),
        (out, height, channels, width),
        (out, width, channels, height),
        (out, height, width, channels),
    ]
    rows = [1, 2, 2, 3]
    norms = []
    for order, count in zip(rows_first, rows, strict=True):
        moved = kernel.permute(*batch, *(kernel.ndim + axis for axis in order))
        norms.append(spectral_norm(moved.flatten(count - 4).flatten(-1 - count, -2)))
    return math.sqrt(kernel.shape[-2] * kernel.shape[-1]) * torch.stack(norms).amin(0)


def _checked(kernel: Tensor) -> Tensor:
    if 0 in kernel.shape[-4:]:
        raise ValueError(f"kernel must have no empty axis, got shape {tuple(kernel.shape)}")
    if not torch.isfinite(kernel).all():
        raise ValueError("kernel must have finite entries, got inf or nan")
    return kernel if kernel.dtype in (torch.float32, torch.float64) else kernel.float()


def _size(kernel: Tensor, size: int, stride: int) -> int:
    if stride < 1 or size % stride:
        raise ValueError(f"stride must be at least 1 and divide size = {size}, got {stride}")
    if size < max(kernel.shape[-2:]):
        raise ValueError(f"size must be at least that of the kernel, {tuple(kernel.shape[-2:])}, got {size}")
    return size


def _blocks(kernel: Tensor, m: int, stride: int, *, half: bool) -> Complex[Tensor, "*batch rows cols out confused"]:
    """The matrices whose singular values are those of the layer, at all frequencies or at one of each conjugate pair."""
    transform = torch.fft.rfft2 if half and stride == 1 else torch.fft.fft2
    symbol = transform(kernel, s=(m, m)).movedim((-4, -3), (-2, -1))
    if stride == 1:
        return symbol
    apart = symbol.unflatten(-4, (stride, m // stride)).unflatten(-3, (stride, m // stride))  # ... alias row alias col out channels
    beside = apart.movedim((-6, -4), (-3, -2)).flatten(-3) / stride  # ... row col out (alias alias channels)
    return beside[..., : m // stride // 2 + 1, :, :] if half else beside


def _largest(kernel: Tensor, m: int, stride: int) -> Tensor:
    """Largest singular value over all blocks; the graph holds the block that attains it and no other."""
    checked = _checked(kernel)
    scale = checked.detach().abs().amax(dim=(-4, -3, -2, -1), keepdim=True)
    scaled = checked / torch.where(scale > 0, scale, torch.ones_like(scale))  # squares neither over- nor underflow
    blocks = _blocks(scaled, m, stride, half=True).flatten(-4, -3).contiguous()  # batched products of strided matrices are slow
    with torch.no_grad():
        where = torch.linalg.eigvalsh(_gram(blocks))[..., -1].argmax(-1)
    index = where[..., None, None, None].expand(*where.shape, 1, *blocks.shape[-2:])
    top = torch.linalg.eigvalsh(_gram(blocks.gather(-3, index).squeeze(-3)))[..., -1]
    return (safe_sqrt(top.clamp_min(0)) * scale[..., 0, 0, 0, 0]).to(kernel.dtype)


def _gram(a: Tensor) -> Tensor:
    """The smaller of the two Gram matrices."""
    return a @ a.mH if a.shape[-2] <= a.shape[-1] else a.mH @ a

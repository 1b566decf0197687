r"""How hard a linear layer is to train by gradient descent, read off the spectrum of its inputs.

The Hessian of a loss of :math:`\langle x,w\rangle+b` is at most a constant times the second moment :math:`M=\frac1n\sum_i\tilde
x_i\tilde x_i^\top` of the inputs with a 1 appended. Its largest eigenvalue bounds the learning rate, and its condition number the progress
of the slowest direction at that rate. Centering the inputs improves both ends of the spectrum; dividing by the standard deviations brings
the condition number within a factor d of the best diagonal scaling.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["Curvature", "curvature", "curvature_report", "second_moment"]


def second_moment(X: Float[Tensor, "examples features"], *, bias: bool = True) -> Float[Tensor, "size size"]:
    r"""Second moment :math:`M=\frac1n\tilde X^\top\tilde X` of the rows, with a column of ones appended to X if ``bias`` (float64).

    :math:`K M` bounds the Hessian of every loss of :math:`\langle x,w\rangle+b` whose second derivative is at most K, and is that Hessian
    if the loss is quadratic. Raises ValueError if X is empty or has an entry that is not finite.
    """
    X = _design(X, bias)
    return X.mT @ X / len(X)


def _design(X: Tensor, bias: bool) -> Tensor:
    if 0 in X.shape:
        raise ValueError(f"X must have at least one row and one column, got shape {tuple(X.shape)}")
    if not torch.isfinite(X).all():
        raise ValueError("X must have finite entries, got inf or nan")
    X = X.to(torch.float64)
    return torch.cat([X, X.new_ones(len(X), 1)], 1) if bias else X


class Curvature(NamedTuple):
    """Extreme eigenvalues, trace and condition number of a second moment; ``kappa`` is infinite if it is singular to working precision."""

    lambda_max: float
    lambda_min: float
    trace: float
    kappa: float


def curvature(X: Float[Tensor, "examples features"], *, bias: bool = True) -> Curvature:
    r"""Spectrum of :func:`second_moment` in four numbers, from the singular values of :math:`\tilde X/\sqrt n`.

    The matrix itself is not formed: its eigenvalues would be good to :math:`10^{-16}\lambda_{\max}` only, and a condition number of
    :math:`10^{12}`, as raw measurements have, to three digits. Raises ValueError as :func:`second_moment` does. Cost O(n d^2).
    """
    X = _design(X, bias)
    singular = torch.linalg.svdvals(X) / math.sqrt(len(X))
    top, low = singular[0].item(), singular[-1].item() if len(X) >= X.shape[1] else 0.0
    regular = low > max(X.shape) * torch.finfo(X.dtype).eps * top
    return Curvature(top**2, low**2, singular.square().sum().item(), (top / low) ** 2 if regular else math.inf)


def curvature_report(X: Float[Tensor, "examples features"], *, bias: bool = True) -> dict[str, Curvature]:
    """:func:`curvature` of X ``"raw"``, with its column means subtracted (``"centered"``), and also divided by its column standard
    deviations (``"standardized"``).

    Raises ValueError if a column is constant: it cannot be standardized, and beside a bias it is redundant.
    """
    centered = X.to(torch.float64) - X.to(torch.float64).mean(0)
    deviation = centered.square().mean(0).sqrt()
    constant = deviation <= torch.finfo(torch.float64).eps * X.to(torch.float64).abs().amax(0)
    if bool(constant.any()):
        raise ValueError(f"X must have no constant column, got {int(constant.sum())} of them; the first is {int(constant.nonzero()[0])}")
    versions = {"raw": X, "centered": centered, "standardized": centered / deviation}
    return {name: curvature(version, bias=bias) for name, version in versions.items()}

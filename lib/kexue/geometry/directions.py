r"""Directions of given vectors: the cosines of their pairs, and the dimension in which random vectors would have such cosines.

For isotropic vectors in n dimensions the squared cosine of a pair has mean :math:`1/n`. For any vectors, the reciprocal of the
mean squared cosine is therefore an *effective dimension*: with unit vectors :math:`u` and :math:`S=\mathbb E[uu^\top]` it is
:math:`1/\mathrm{tr}\,S^2`, between 1 and n, and n exactly if :math:`S=I/n`. The angles themselves also estimate a dimension, by
maximum likelihood under the law of :mod:`kexue.geometry.sphere`.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from kexue.numerics import polygamma

__all__ = ["Dimension", "EffectiveDimension", "effective_dimension", "fit_dimension", "pairwise_cosines"]

_BLOCK = 1 << 22  # numbers gathered at a time: bounds the memory of sampled pairs


def pairwise_cosines(
    X: Float[Tensor, "count dimension"],
    Y: Float[Tensor, "others dimension"] | None = None,
    *,
    n_pairs: int | None = None,
    generator: torch.Generator | None = None,
) -> Float[Tensor, " pairs"]:
    """Cosines between rows: of all pairs i < j of X, or of all pairs of a row of X with a row of Y, row by row.

    With ``n_pairs``, of that many pairs drawn with replacement instead (never a row with itself); the memory is then O(n_pairs)
    and not O(count^2).

    :raises ValueError: if a row is zero or not finite (it has no direction), if ``n_pairs`` is below 1, or if there is no pair.
    """
    U, V = _directions(X, "X"), None if Y is None else _directions(Y, "Y")
    if U.shape[0] < (2 if V is None else 1) or (V is not None and V.shape[0] < 1):
        raise ValueError(f"X must have at least two rows, or X and Y one each, got {U.shape[0]} and {0 if V is None else V.shape[0]}")
    if n_pairs is None:
        if V is not None:
            return (U @ V.T).flatten()
        return (U @ U.T)[*torch.triu_indices(len(U), len(U), 1, device=U.device)]
    if n_pairs < 1:
        raise ValueError(f"n_pairs must be at least 1, got {n_pairs}")
    i = torch.randint(len(U), (n_pairs,), generator=generator)
    if V is None:
        j = torch.randint(len(U) - 1, (n_pairs,), generator=generator)
        j, V = j + (j >= i), U  # the shift skips the row itself
    else:
        j = torch.randint(len(V), (n_pairs,), generator=generator)
    block = max(1, _BLOCK // X.shape[1])
    return torch.cat([torch.linalg.vecdot(U[a], V[b]) for a, b in zip(i.split(block), j.split(block), strict=True)])


def _directions(X: Tensor, name: str) -> Tensor:
    length = torch.linalg.vector_norm(X, dim=1, keepdim=True)
    refused = ~((length > 0) & torch.isfinite(length)).squeeze(1)
    if bool(refused.any()):
        row = int(refused.nonzero()[0])
        raise ValueError(
            f"{name} must have finite, nonzero rows, because a zero row has no direction; row {row} has length {length[row].item():g}"
        )
    return X / length


class EffectiveDimension(NamedTuple):
    """Dimension of an isotropic law with the same mean squared cosine, its standard error, and its norm-weighted version."""

    unit: Float[Tensor, ""]
    standard_error: Float[Tensor, ""]
    participation: Float[Tensor, ""]


def effective_dimension(X: Float[Tensor, "count dimension"], *, center: bool = False) -> EffectiveDimension:
    r"""Effective dimension :math:`1/\overline{t^2}` of the rows of X, with the mean over all pairs of different rows.

    ``unit`` weighs all pairs alike: :math:`N(N-1)/\sum_{i\ne j}\cos^2\theta_{ij}`. ``participation`` weighs them by squared
    lengths, :math:`\sum_{i\ne j}|x_i|^2|x_j|^2/\sum_{i\ne j}\langle x_i,x_j\rangle^2`, which estimates the participation ratio
    :math:`(\mathrm{tr}\,S)^2/\mathrm{tr}\,S^2`. Leaving out :math:`i=j` matters: with it, N isotropic vectors in many more than N
    dimensions would seem to have dimension N. The standard error is that of a mean over pairs of independent rows. All pairs at the
    price of one Gram matrix, O(N d min(N, d)). With ``center``, the mean row is subtracted first. Infinite if all rows are
    orthogonal; may exceed d by sampling error. Float64 results.

    :raises ValueError: if there are fewer than two rows or a (centred) row is zero.

    Source: Hoeffding (1948), Annals of Mathematical Statistics 19, 293-325, for the standard error.
    """
    count = X.shape[0]
    if count < 2:
        raise ValueError(f"X must have at least two rows, got {count}")
    if center:
        X = X - X.mean(0)
    U = _directions(X, "centred X" if center else "X")
    per_row = _squares_with_others(U) / (count - 1)  # mean squared cosine of each row with the others
    unit = per_row.mean().reciprocal()
    length2 = X.to(torch.float64).square().sum(1)
    participation = (length2.sum() ** 2 - length2.square().sum()) / _squares_with_others(X).sum()
    return EffectiveDimension(unit, 2 * unit**2 * per_row.std() / math.sqrt(count), participation)


def _squares_with_others(X: Tensor) -> Tensor:
    """For each row the sum of its squared inner products with all others, through the smaller of the two Gram matrices."""
    X = X.to(torch.float64)
    own = X.square().sum(1).square()
    if X.shape[0] >= X.shape[1]:
        return (torch.linalg.vecdot(X @ (X.T @ X), X) - own).clamp_min(0.0)
    return ((X @ X.T).square().sum(1) - own).clamp_min(0.0)


class Dimension(NamedTuple):
    """A maximum-likelihood dimension and its standard error."""

    estimate: float
    standard_error: float


def fit_dimension(angles: Float[Tensor, "..."]) -> Dimension:
    r"""Estimate the dimension from angles between random directions, by maximum likelihood.

    Solves :math:`\tfrac12[\psi(\tfrac n2)-\psi(\tfrac{n-1}2)]=-\overline{\log\sin\theta}`. The left side falls from infinity to
    0, so the solution is unique; it lies above 1 and is not confined to :math:`n\ge2`. The standard error :math:`1/\sqrt{N
    I(n)}` uses the Fisher information :math:`I(n)=\tfrac14[\psi'(\tfrac{n-1}2)-\psi'(\tfrac n2)]` of one angle and takes the N
    angles as independent.

    :raises ValueError: if an angle is not strictly between 0 and :math:`\pi`, if there is none, or if all are right angles
        (then no finite n is best).
    """
    angles = angles.to(torch.float64)
    allowed = (angles > 0) & (angles < math.pi)
    if angles.numel() == 0 or not bool(allowed.all()):
        what = "none" if angles.numel() == 0 else f"{angles[~allowed].flatten()[0].item():g}"
        raise ValueError(f"angles must be at least one number strictly between 0 and pi, got {what}")
    cosine, sine = torch.cos(angles), torch.sin(angles)
    depth = -torch.where(cosine.abs() < 0.5, torch.log1p(-(cosine**2)) / 2, torch.log(sine)).mean()
    if depth < 1e-17:
        raise ValueError("angles must not all be right angles: the likelihood then grows with n for ever")
    # Newton in log(n - 1), where the score is nearly a straight line in logarithms; 1/(2 depth) + 1 is exact for large n
    excess = 0.5 / depth
    for _ in range(50):
        score = (torch.digamma((excess + 1) / 2) - torch.digamma(excess / 2)) / 2
        information = (polygamma(1, excess / 2) - polygamma(1, (excess + 1) / 2)) / 4
        step = torch.log(score / depth) * score / (excess * information)
        excess = excess * torch.exp(step)
        if abs(step) < 1e-13:
            break
    return Dimension((excess + 1).item(), torch.rsqrt(information * angles.numel()).item())

r"""What depth makes of norms, angles and spectra at initialization.

Through L layers with independent Gaussian matrices of variance 1/n, :math:`\log\|x_L\|^2` is a random walk with exactly known drift, the
singular values of the product separate at exactly known rates (Lyapunov exponents), and its second moments have a closed form. With a
nonlinearity and large width the angle between two inputs obeys a deterministic recursion. Logarithms are natural, angles are in radians.
"""

import math
from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from scipy.special import gammaln, polygamma, psi
from torch import Tensor, nn

from kexue.observe import capture

__all__ = ["Reading", "angle_map", "lyapunov", "lyapunov_gaussian", "norm_drift", "participation_gaussian", "propagate"]

NODES = 96  # of the Gauss-Hermite rule, per axis: exact for polynomials of degree 191


def norm_drift(n: int, depth: int, activation: Literal["identity", "relu"] = "identity") -> tuple[float, float]:
    r"""Mean and variance of :math:`\log(\|x_L\|^2/\|x_0\|^2)` after L = ``depth`` Gaussian layers of width n, exact at every n.

    ``identity`` (variance 1/n): :math:`L[\psi(\frac n2)-\log\frac n2]` and :math:`L\psi'(\frac n2)`, about -L/n and 2L/n. ``relu``
    (variance 2/n): the factor of a layer is :math:`\frac2n\chi^2_K` with K binomial(n, 1/2), and we condition on K > 0 in each layer, since
    with probability :math:`2^{-n}` a layer is dead and the logarithm is minus infinity; about -5L/(2n) and 5L/n.

    Raises ValueError if n < 1, depth < 0 or the activation is another one. Cost O(1), and O(n) for ``relu``.
    """
    if activation not in ("identity", "relu"):
        raise ValueError(f"activation must be 'identity' or 'relu', the two with a closed form, got {activation!r}")
    if n < 1 or depth < 0:
        raise ValueError(f"n must be at least 1 and depth at least 0, got n={n}, depth={depth}")
    if activation == "identity":
        return depth * _psi_minus_log(n / 2), depth * float(polygamma(1, n / 2))
    k = np.arange(1, n + 1)
    weight = np.exp(gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1) - n * math.log(2)) / -math.expm1(-n * math.log(2))
    given_k = psi(k / 2) - math.log(n / 4)
    mean = float(weight @ given_k)
    return depth * mean, depth * float(weight @ (polygamma(1, k / 2) + (given_k - mean) ** 2))


def _psi_minus_log(z: float) -> float:
    if z < 100:
        return float(psi(z)) - math.log(z)
    return -1 / (2 * z) - 1 / (12 * z**2) + 1 / (120 * z**4) - 1 / (252 * z**6)  # the difference of large numbers would cancel


def lyapunov_gaussian(n: int) -> Float[Tensor, "{n}"]:
    r"""Lyapunov exponents of products of n x n Gaussian matrices with entries of variance 1/n, largest first (float64).

    :math:`\lambda_i=\frac12[\psi(\frac{n-i+1}2)-\log\frac n2]`: the i-th singular value of a product of L matrices is
    :math:`e^{L\lambda_i+o(L)}`. Raises ValueError if n < 1. Source: Newman (1986), Commun. Math. Phys. 103, 121-126.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    degrees = torch.arange(n, 0, -1, dtype=torch.float64)
    return (torch.special.digamma(degrees / 2) - math.log(n / 2)) / 2


def lyapunov(matrices: Iterable[Tensor], *, every: int = 1) -> Float[Tensor, " n"]:
    r"""Lyapunov exponents of the product ... W_3 W_2 W_1 of square matrices, given in the order in which they act (float64).

    The product itself is never formed, it would underflow: a frame Q is carried along, :math:`W_lQ_{l-1}=Q_lR_l`, and the exponents are the
    means of :math:`\log|\operatorname{diag}R_l|`. ``every`` factors are multiplied between two factorizations (faster, and exact as long as
    they keep the frame well conditioned). A direction that is mapped to exactly 0
    gives -inf; one that is lost up to rounding adds about -36 in that factorization.

    Raises ValueError if there is no matrix, if one is not square or of another size than the first, or if ``every`` < 1.
    Source: Benettin, Galgani, Giorgilli and Strelcyn (1980).
    """
    if every < 1:
        raise ValueError(f"every must be at least 1, got {every}")
    frame = total = None
    count = 0
    for count, w in enumerate(matrices, 1):
        if frame is None or total is None:
            if w.ndim != 2 or w.shape[0] != w.shape[1]:
                raise ValueError(f"matrices must be square, got shape {tuple(w.shape)}")
            frame = torch.eye(len(w), dtype=torch.float64, device=w.device)
            total = torch.zeros(len(w), dtype=torch.float64, device=w.device)
        if w.shape != frame.shape:
            raise ValueError(f"matrices must all have shape {tuple(frame.shape)}, got {tuple(w.shape)} at position {count - 1}")
        frame = w.double() @ frame
        if count % every == 0:
            frame, r = torch.linalg.qr(frame)
            total += r.diagonal().abs().log()
    if frame is None or total is None:
        raise ValueError("matrices must contain at least one matrix, got none")
    if count % every:
        total += torch.linalg.qr(frame)[1].diagonal().abs().log()
    return total / count


def participation_gaussian(n: int, depth: int) -> float:
    r"""Effective rank of a product P of L = ``depth`` Gaussian n x n matrices of variance 1/n, in closed form.

    The ratio :math:`E(\operatorname{tr}P^\top P)^2/E\operatorname{tr}(P^\top P)^2`, a participation number of the squared singular values,
    is

    .. math:: 1+\frac3{(1+\frac3{n-1})^{L+1}-1}.

    It falls from n at L = 0 to 1, as n/(L+1) while L is small against n, as :math:`1+3/(e^{3L/n}-1)` when L and n grow together.
    Raises ValueError if n < 1 or depth < 0.
    """
    if n < 1 or depth < 0:
        raise ValueError(f"n must be at least 1 and depth at least 0, got n={n}, depth={depth}")
    if n == 1:
        return 1.0
    exponent = (depth + 1) * math.log1p(3 / (n - 1))
    return 1 + 3 / math.expm1(exponent) if exponent < 700 else 1.0  # beyond 700 the exponential overflows and the second term is 0


Activation = Literal["identity", "relu", "erf", "tanh"] | Callable[[Tensor], Tensor]


def angle_map(
    theta: Float[Tensor, "*shape"], activation: Activation, *, variance: float = 1.0, slope: float = 0.0
) -> Float[Tensor, "*shape"]:
    r"""Angle between two activations whose pre-activations are Gaussian vectors at angle theta, as the width goes to infinity.

    With (u, v) normal, each of the given ``variance`` and of correlation :math:`\cos\theta`, the result is
    :math:`\arccos(E\phi(u)\phi(v)/E\phi(u)^2)` in [0, pi]. ``relu`` with negative slope a (leaky if ``slope`` is not 0) is exact,

    .. math:: \cos\theta'=\cos\theta+\frac{(1-a)^2}{1+a^2}\cdot\frac{\sin\theta-\theta\cos\theta}\pi,

    and so is ``erf``; other activations, a callable included, use a Gauss-Hermite rule on the chords,
    :math:`\tan^2\frac{\theta'}2=E(\phi(u)-\phi(v))^2/E(\phi(u)+\phi(v))^2`: exact to rounding for ``torch.erf`` at
    variance 1 and to 2e-6 at variance 4, to 0.003 for a function with a kink. No form takes the arccosine of a number near 1, so small
    angles keep their relative accuracy. The result is differentiable for ``relu`` and ``identity`` on all of [0, pi].

    Raises ValueError if an angle is outside [0, pi], if ``variance`` is not positive, if ``slope`` is given to anything but ``relu``, or if
    :math:`E\phi^2` is 0 or not finite. Source: Cho and Saul (2009) for ``relu``; Williams (1997) for ``erf``.
    """
    if not ((theta >= 0) & (theta <= math.pi * (1 + 1e-6))).all():  # the float32 nearest to pi is above pi
        raise ValueError(f"theta must lie in [0, pi], got values from {theta.min().item()} to {theta.max().item()}")
    if not (variance > 0 and math.isfinite(variance)):
        raise ValueError(f"variance must be positive and finite, got {variance}")
    if slope != 0 and activation != "relu":
        raise ValueError(f"slope belongs to activation 'relu' alone, got slope={slope} with {activation!r}")
    if activation == "identity":
        return theta.clone()
    if activation == "relu":
        return _relu_map(theta, (1 - slope) ** 2 / (1 + slope**2))
    if activation == "erf":
        return _erf_map(theta, 2 * variance / (1 + 2 * variance))
    if isinstance(activation, str) and activation != "tanh":
        raise ValueError(f"activation must be 'identity', 'relu', 'erf', 'tanh' or a function of a tensor, got {activation!r}")
    return _quadrature_map(theta, torch.tanh if activation == "tanh" else activation, math.sqrt(variance))


def _relu_map(theta: Tensor, bend: float) -> Tensor:
    # sin^2(theta'/2) = sin^2(theta/2) (1 - shrink), shrink = bend (sin t - t cos t) / (2 pi sin^2(t/2)), about 2 bend t / (3 pi) near 0.
    small = theta < 0.3
    t = torch.where(small, 1.0, theta)
    direct = (t.sin() - t * t.cos()) / (t / 2).sin() ** 2
    t = torch.where(small, theta, 0.0)
    square = t**2
    numerator = 1 / 3 - square * (1 / 30 - square * (1 / 840 - square * (1 / 45360 - square / 3991680)))
    series = t * numerator / (torch.sinc(t / (2 * math.pi)) / 2) ** 2
    shrink = torch.where(small, series, direct) * (bend / (2 * math.pi))
    return 2 * torch.asin((theta / 2).sin() * (1 - shrink).clamp(min=0).sqrt())


def _erf_map(theta: Tensor, a: float) -> Tensor:
    # E phi phi is asin(a cos theta) up to a factor. The map is odd about 90 degrees, so fold, and use
    # asin a - asin b = asin((a^2 - b^2) / (a sqrt(1 - b^2) + b sqrt(1 - a^2))), which does not cancel.
    folded = torch.minimum(theta, math.pi - theta).clamp(min=0)
    b = a * folded.cos()
    gap = (a * folded.sin()) ** 2 / (a * (1 - b**2).sqrt() + b * math.sqrt(1 - a**2))
    image = 2 * torch.asin((gap.asin() / (2 * math.asin(a))).sqrt())
    return torch.where(theta <= math.pi / 2, image, math.pi - image)


def _quadrature_map(theta: Tensor, phi: Callable[[Tensor], Tensor], sigma: float) -> Tensor:
    nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
    g = sigma * torch.as_tensor(nodes, device=theta.device)
    w = torch.as_tensor(weights / weights.sum(), device=theta.device)
    second = (w * phi(g) ** 2).sum()
    if not (0 < second < math.inf):
        raise ValueError(f"activation must have a positive, finite mean square under the normal law, got {second.item()}")
    half = theta.double().flatten()[:, None, None] / 2
    common, apart = half.cos() * g[:, None], half.sin() * g
    left, right, area = phi(common + apart), phi(common - apart), w[:, None] * w
    minus, plus = ((left - right) ** 2 * area).sum((-2, -1)), ((left + right) ** 2 * area).sum((-2, -1))
    return 2 * torch.atan2(minus.sqrt(), plus.sqrt()).reshape(theta.shape).to(theta.dtype)


class Reading(NamedTuple):
    """State of a batch at one place of a model: the name of the module, Euclidean norms (b,), pairwise angles (b, b) in radians."""

    name: str
    norm: Float[Tensor, " b"]
    angle: Float[Tensor, "b b"]


@torch.no_grad()
def propagate(model: nn.Module, x: Float[Tensor, "b *features"]) -> list[Reading]:
    """Norms and pairwise angles of a batch at the input and behind every leaf module, in the order of the calls.

    The angle is :math:`2\\operatorname{atan2}(|\\hat x-\\hat y|,|\\hat x+\\hat y|)`, accurate at 0 and at pi, where the arccosine is not.
    It is NaN where one of the two vectors is zero. The model is run once, in the mode in which it is. Raises ValueError for an empty batch.
    """
    if len(x) == 0:
        raise ValueError("x must hold at least one example, got an empty batch")
    with capture(model) as seen:
        model(x)
    return [_reading("input", x), *(_reading(name, value) for name, values in seen.items() for value in values)]


def _reading(name: str, value: Tensor) -> Reading:
    flat = value.flatten(1)
    norm = torch.linalg.vector_norm(flat, dim=1)
    unit = flat / norm[:, None]  # a zero vector becomes NaN, and so do its angles
    apart = (unit[:, None] - unit).norm(dim=-1)
    return Reading(name, norm, 2 * torch.atan2(apart, (unit[:, None] + unit).norm(dim=-1)))

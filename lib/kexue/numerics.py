r"""Numerical ground floor: functions that several parts need and that go wrong quietly when written in one line.

*Spectral norms.* :math:`\|A\|_2=\max_{\|v\|=1}\|Av\|` is the largest singular value. For a matrix that fits in memory it is the root
of the largest eigenvalue of the smaller Gram matrix, :math:`\|A\|_2^2=\lambda_{\max}(A^\top A)=\lambda_{\max}(AA^\top)`: squaring
costs the *small* singular values their digits, never the largest one. For an operator of which only products are known - the
Jacobian of a network, through one Jacobian-vector and one vector-Jacobian product - it is the limit of power iteration.

*Hessians.* A network's Hessian is too large to write down and its product with a vector costs about two gradients. Lanczos's method finds
the largest eigenvalue from a few products.

*Beta functions.* Both are needed as logarithms: a probability below 1e-308 still has one, and a difference of two log-gammas of size
1e10 keeps few digits of a result of size 10.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = [
    "Eigen",
    "Singular",
    "hessian_operator",
    "log_beta",
    "log_betainc",
    "polygamma",
    "power_iteration",
    "safe_sqrt",
    "spectral_norm",
    "top_eigenvalue",
]

_STIRLING_FROM = 20.0  # from here on five terms of Stirling's series leave less than 1e-15
_FRACTION_STEPS = 20_000  # the fraction needs O(sqrt(max(a, b))) steps at worst; far fewer when b is small


class Singular(NamedTuple):
    r"""Leading singular triple of an operator: :math:`Av=\sigma u` with unit vectors :math:`u, v`."""

    value: Float[Tensor, "*batch"]
    left: Float[Tensor, "*batch rows"]
    right: Float[Tensor, "*batch cols"]
    steps: Int[Tensor, ""]


def safe_sqrt(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    r"""Square root whose derivative at 0 is 0.

    :math:`\sqrt x` has slope :math:`\infty` at 0, which turns the gradient of every norm into NaN where the norm vanishes; 0 is the
    subgradient of smallest norm of :math:`\|v\|` at :math:`v=0`. Negative values give NaN, as in :func:`torch.sqrt`.
    """
    zero = x == 0
    return torch.where(zero, torch.zeros_like(x), torch.where(zero, torch.ones_like(x), x).sqrt())


def spectral_norm(matrix: Float[Tensor, "*batch rows cols"]) -> Float[Tensor, "*batch"]:
    r"""Largest singular value of each matrix of a batch.

    Computes :math:`\sqrt{\lambda_{\max}(AA^\top)}` of the matrix divided by its largest entry, so nothing over- or underflows; relative
    error of a few ulps. Several times faster than all singular values, and batched. Differentiable where the largest singular value
    is simple; at a zero matrix the gradient is 0. Half precision is computed in float32.

    :param matrix: finite entries, at least one row and one column.
    :raises ValueError: if a side is empty or an entry is not finite.
    """
    if 0 in matrix.shape[-2:]:
        raise ValueError(f"matrix must have at least one row and one column, got shape {tuple(matrix.shape)}")
    if not torch.isfinite(matrix).all():
        raise ValueError("matrix must have finite entries, got inf or nan")
    a = matrix if matrix.dtype in (torch.float32, torch.float64) else matrix.float()
    scale = a.detach().abs().amax(dim=(-2, -1))
    a = a / torch.where(scale > 0, scale, torch.ones_like(scale))[..., None, None]
    gram = a @ a.mT if a.shape[-2] <= a.shape[-1] else a.mT @ a
    top = gram[..., 0, 0] if gram.shape[-1] == 1 else torch.linalg.eigvalsh(gram)[..., -1]
    return (safe_sqrt(torch.where(scale > 0, top, torch.zeros_like(top))) * scale).to(matrix.dtype)


def power_iteration(
    matvec: Callable[[Tensor], Tensor],
    rmatvec: Callable[[Tensor], Tensor],
    start: Float[Tensor, "*batch cols"],
    *,
    rtol: float = 1e-6,
    max_steps: int = 1000,
) -> Singular:
    r"""Leading singular triple of a batch of linear operators given by their products.

    Iterates :math:`v\leftarrow A^\top Av/\|A^\top Av\|`. The estimate :math:`\sigma=\|Av\|` never exceeds :math:`\|A\|_2` and grows at
    every step, its error falling by :math:`(\sigma_2/\sigma_1)^4` a step. Stops when
    :math:`\|A^\top Av-\sigma^2v\|\le\text{rtol}\,\sigma^2` for every operator of the batch: then some singular value lies within
    :math:`\text{rtol}\,\sigma` of :math:`\sigma`, and for a random start it is the leading one unless two are that close. For the
    Jacobian of a network pass ``jvp`` and ``vjp``: the matrix is never formed.

    :param matvec: :math:`v\mapsto Av`, from (\*batch, cols) to (\*batch, rows).
    :param rmatvec: :math:`u\mapsto A^\top u`, from (\*batch, rows) to (\*batch, cols).
    :param start: any vectors that are not orthogonal to the leading one; random normal ones will do.
    :param rtol: relative residual at which to stop, positive.
    :param max_steps: largest number of pairs of products, at least 1.
    :returns: value, left and right vector and the number of steps. A zero operator has value 0 and left vector 0.
    :raises ValueError: if rtol or max_steps is out of range, or a start vector is zero.
    """
    if not rtol > 0:
        raise ValueError(f"rtol must be positive, got {rtol}")
    if max_steps < 1:
        raise ValueError(f"max_steps must be at least 1, got {max_steps}")
    length = start.norm(dim=-1, keepdim=True)
    if not (length > 0).all():
        raise ValueError("start must have no zero vector: power iteration would stay there")
    right = start / length
    for step in range(1, max_steps + 1):
        image = matvec(right)
        value = image.norm(dim=-1)
        back = rmatvec(image)
        residual = (back - value[..., None] ** 2 * right).norm(dim=-1)
        if step == max_steps or (residual <= rtol * value**2).all():
            break
        size = back.norm(dim=-1, keepdim=True)
        right = torch.where(size > 0, back / size, right)
    left = torch.where(value[..., None] > 0, image / value[..., None], torch.zeros_like(image))
    return Singular(value, left, right, torch.tensor(step))


class Eigen(NamedTuple):
    r"""An eigenvalue with its unit vector and the residual :math:`\|Ax-\theta x\|`: some eigenvalue lies within it of the value."""

    value: Float[Tensor, ""]
    vector: Float[Tensor, " size"]
    residual: Float[Tensor, ""]
    steps: Int[Tensor, ""]


def hessian_operator(loss: Callable[[], Tensor], parameters: Sequence[Tensor]) -> Callable[[Tensor], Tensor]:
    r"""The map :math:`v\mapsto Hv` of the Hessian of a scalar ``loss()`` in its parameters, flattened one after the other.

    The graph of the gradient is built once; a product is one backward pass through it, about two gradients. The closure must read the very
    tensors in ``parameters``: ``hessian_operator(lambda: loss(model(x), y), list(model.parameters()))``. Where the loss is piecewise
    linear, as a ReLU network is between its kinks, the kinks count as flat.

    Raises ValueError if there is no parameter, one does not require a gradient, the loss is not one number, or v has another length.
    """
    parameters = tuple(parameters)
    if not parameters or not all(p.requires_grad for p in parameters):
        raise ValueError(f"parameters must be at least one tensor, all requiring gradients, got {len(parameters)}")
    with torch.enable_grad():
        value = loss()
        if value.numel() != 1:
            raise ValueError(f"loss must return one number, got shape {tuple(value.shape)}")
        gradients = torch.autograd.grad(value, parameters, create_graph=True, materialize_grads=True)
        flat = torch.cat([g.reshape(-1) for g in gradients])

    def product(v: Tensor) -> Tensor:
        if v.shape != flat.shape:
            raise ValueError(f"v must have shape {tuple(flat.shape)}, one entry per parameter, got {tuple(v.shape)}")
        if not flat.requires_grad:
            return torch.zeros_like(v)
        parts = torch.autograd.grad(flat, parameters, v, retain_graph=True, materialize_grads=True)
        return torch.cat([part.reshape(-1) for part in parts])

    return product


def top_eigenvalue(matvec: Callable[[Tensor], Tensor], start: Float[Tensor, " size"], *, rtol: float = 1e-3, max_steps: int = 100) -> Eigen:
    r"""Largest (not largest in absolute value) eigenvalue of a symmetric operator, by Lanczos's method.

    After k products the estimate is the maximum of :math:`x^\top Ax` over unit vectors of the Krylov space of ``start``: never above the
    true value, and at least as good as k steps of power iteration. Every new vector is orthogonalized against all earlier ones, twice,
    which keeps the method stable and costs k vectors of memory. Stops when the residual is at most ``rtol`` times the largest absolute
    eigenvalue seen; the error of the value is of the order of the residual's square.

    :param matvec: :math:`v\mapsto Av`; :func:`hessian_operator` makes one.
    :param start: any vector that is not orthogonal to the leading one; a random normal one will do.
    :raises ValueError: if rtol or max_steps is out of range, the start vector is zero, or a product is not finite.
    """
    if not rtol > 0:
        raise ValueError(f"rtol must be positive, got {rtol}")
    if max_steps < 1:
        raise ValueError(f"max_steps must be at least 1, got {max_steps}")
    if not start.norm() > 0:
        raise ValueError("start must not be the zero vector, which spans no Krylov space")
    basis, diagonal, beside = [start / start.norm()], [], []
    for step in range(1, min(max_steps, start.numel()) + 1):
        image = matvec(basis[-1])
        if not torch.isfinite(image).all():
            raise ValueError(f"matvec must return finite vectors, and product {step} is not")
        diagonal.append(torch.dot(basis[-1], image).item())
        frame = torch.stack(basis)
        for _ in range(2):
            image = image - frame.mT @ (frame @ image)
        small = torch.diag(torch.tensor(diagonal, dtype=torch.float64)) + torch.diag(torch.tensor(beside, dtype=torch.float64), 1)
        values, vectors = torch.linalg.eigh(small, UPLO="U")
        residual = image.norm().item() * vectors[-1, -1].abs()
        if residual <= rtol * values.abs().max():
            break
        beside.append(image.norm().item())
        basis.append(image / beside[-1])
    vector = frame.mT @ vectors[:, -1].to(frame)
    return Eigen(values[-1].to(start), vector, residual.to(start), torch.tensor(step))


def log_beta(a: Float[Tensor, "*#shape"], b: Float[Tensor, "*#shape"]) -> Float[Tensor, "*#shape"]:
    r"""Logarithm of Euler's beta function, :math:`\log B(a,b)=\log\Gamma(a)+\log\Gamma(b)-\log\Gamma(a+b)`.

    Broadcasts over positive ``a`` and ``b``; differentiable in both. The difference of the two large terms is taken between their
    Stirling series, so that nothing cancels: relative error about 1e-15 up to 1e9, where the plain difference of log-gammas has
    lost half of its digits.

    Source: the arrangement of Didonato and Morris (1992), ACM TOMS 18, 360-373.
    """
    a, b = torch.broadcast_tensors(a, b)
    small, large = torch.minimum(a, b), torch.maximum(a, b)
    plain = torch.lgamma(small) + torch.lgamma(large) - torch.lgamma(small + large)
    safe = large.clamp_min(_STIRLING_FROM)  # keeps the branch that is not taken finite, and with it the gradient
    total = safe + small
    series = torch.lgamma(small) + small - small * torch.log(total) - (safe - 0.5) * torch.log1p(small / safe)
    return torch.where(large < _STIRLING_FROM, plain, series + _stirling_rest(safe) - _stirling_rest(total))


def _stirling_rest(x: Tensor) -> Tensor:
    """log Gamma(x) minus its leading part (x - 1/2) log x - x + log(2 pi) / 2."""
    r = x.reciprocal() ** 2
    return (1 / 12 - r * (1 / 360 - r * (1 / 1260 - r * (1 / 1680 - r / 1188)))) / x


def log_betainc(
    a: Float[Tensor, "*#shape"],
    b: Float[Tensor, "*#shape"],
    x: Float[Tensor, "*#shape"],
    *,
    complement: Float[Tensor, "*#shape"] | None = None,
) -> Float[Tensor, "*#shape"]:
    r"""Logarithm of the regularized incomplete beta function :math:`I_x(a,b)=\int_0^x s^{a-1}(1-s)^{b-1}\,ds/B(a,b)`.

    Stays finite where :math:`I_x` underflows. ``complement`` is :math:`1-x`; pass it when it is known more precisely than ``1 - x``
    can be, which is the case for :math:`x` near one. Computed by the continued fraction of :math:`I_x(a,b)` or, on the far side of
    the mean, of :math:`1-I_{1-x}(b,a)`. All arguments broadcast. Float64 error: a few ulps of
    :math:`a\log x+b\log(1-x)` or of the result, whichever is larger.

    :raises ValueError: if ``a`` or ``b`` is not positive or ``x`` not in [0, 1].
    :raises RuntimeError: if the fraction has not converged, which needs ``a`` and ``b`` both enormous and ``x`` near the mean.

    Source: DLMF 8.17.22, contracted as in Didonato and Morris (1992); Lentz's method in the form of Thompson and Barnett (1986).
    """
    y = 1 - x if complement is None else complement
    a, b, x, y = torch.broadcast_tensors(a, b, x, y)
    refused = ~((a > 0) & (b > 0) & (x >= 0) & (y >= 0))
    if bool(refused.any()):
        first = [v[refused][0].item() for v in (a, b, x)]
        raise ValueError("a and b must be positive and x in [0, 1], got a = {}, b = {}, x = {}".format(*first))
    far = x * (a + b + 2) > a + 1  # there the fraction of the other tail converges fast
    p, q = torch.where(far, b, a), torch.where(far, a, b)
    u, v = torch.where(far, y, x), torch.where(far, x, y)
    log_u = torch.where(u < 0.5, torch.log(u), torch.log1p(-torch.where(u < 0.5, 0, v)))
    log_v = torch.where(v < 0.5, torch.log(v), torch.log1p(-torch.where(v < 0.5, 0, u)))
    near = p * log_u + q * log_v - log_beta(p, q) - torch.log(_beta_fraction(p, q, u, v))
    return torch.where(far, torch.log1p(-torch.exp(torch.where(far, near, -1.0))), near)


def _beta_fraction(a: Tensor, b: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The fraction beta_0 + alpha_1 / (beta_1 + alpha_2 / (beta_2 + ...)) with I_x(a, b) = x^a y^b / B(a, b) divided by it."""
    excess = 1 + a * y - b * x  # where x is near 1, no other arrangement keeps the digits of y
    value = a * excess / (a + 1)
    c, d = value, torch.zeros_like(value)
    for m in range(1, _FRACTION_STEPS):
        s = a + 2 * m
        alpha = m * (b - m) * (a + m - 1) * (a + b + m - 1) * (x / (s - 1)) ** 2
        beta = m + m * (b - m) * x / (s - 1) + (a + m) * (excess + m * (1 + y)) / (s + 1)
        d = (beta + alpha * d).reciprocal()
        c = beta + alpha / c
        value = value * (c * d)
        if bool(((c * d - 1).abs() <= 2 * torch.finfo(x.dtype).eps).all()):
            return value
    raise RuntimeError(f"I_x(a, b) has not converged in {_FRACTION_STEPS} steps, a up to {a.max():g}, b up to {b.max():g}")


def polygamma(order: int, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    r"""Derivative :math:`\psi^{(k)}(x)=(-1)^{k+1}k!\,\zeta(k+1,x)` of the digamma function, of order k >= 1, for positive ``x``.

    As :func:`torch.special.polygamma`, whose trigamma function (k = 1) is off by 5e-10 for x below 20 even in float64; the Hurwitz
    zeta function gives every order to a few ulps. Differentiable.

    :raises ValueError: if ``order`` is below 1 or an ``x`` is not positive.
    """
    if order < 1:
        raise ValueError(f"order must be an integer >= 1, got {order}")
    if not bool((x > 0).all()):
        raise ValueError(f"x must be positive, got {x[~(x > 0)][0].item():g}")
    return (-1) ** (order + 1) * math.factorial(order) * torch.special.zeta(order + 1.0, x)

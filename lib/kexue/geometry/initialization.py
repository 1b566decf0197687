r"""Initialization of weights, and how far a matrix is from an isometry.

A layer :math:`W\in\mathbb R^{m\times n}` with independent entries of variance :math:`s^2` satisfies :math:`E\|Wx\|^2=ms^2\|x\|^2` and
:math:`E\|W^\top g\|^2=ns^2\|g\|^2`. The choice :math:`s^2=1/n` (``fan_in``) keeps the root mean square of the coordinates forward and the
norm backward, :math:`s^2=1/m` (``fan_out``) the norm forward and the root mean square backward, and :math:`s^2=2/(m+n)` (``xavier``) is the
harmonic mean of the two. Only an orthogonal matrix keeps every norm; :func:`orthogonal` draws it from the Haar measure.
"""

import math
from typing import Literal, get_args

import torch
from jaxtyping import Float
from scipy.special import gammainc
from torch import Tensor

__all__ = ["init_", "isometry_report", "orthogonal", "trunc_normal_", "truncated_std"]

Kind = Literal["fan_in", "fan_out", "xavier", "orthogonal", "delta"]
Law = Literal["normal", "uniform", "truncated", "rademacher"]

CUT = 2.0  # where the law "truncated" is cut, in standard deviations of the normal law before the cut


@torch.no_grad()
def init_(
    weight: Tensor, kind: Kind = "fan_in", law: Law = "normal", *, gain: float = 1.0, generator: torch.Generator | None = None
) -> Tensor:
    r"""Fill the weight of a linear layer (m, n) or of a convolution (m, n, \*k) in place and return it.

    ``kind`` fixes the variance of the entries to ``gain**2`` over fan_in :math:`=n\prod k`, fan_out :math:`=m\prod k`, or their mean
    (``xavier``); ``law`` their distribution, each with *exactly* this variance, the truncated one included. ``orthogonal`` fills the
    m x (n prod k) matrix with ``gain`` times a Haar (semi-)orthogonal one; ``delta`` puts an m x n orthogonal matrix at the centre of the
    kernel and zeros elsewhere, which makes the convolution with circular padding and m = n an exact isometry.

    Raises TypeError for a weight that is not real floating point, and ValueError for an unknown kind or law, fewer than two dimensions, an
    empty weight, a gain that is not positive and finite, a law beside ``orthogonal`` or ``delta``, and ``delta`` without a kernel that has
    a centre. Source: Glorot and Bengio (2010); He et al. (2015); Saxe et al. (2014).
    """
    if kind not in get_args(Kind) or law not in get_args(Law):
        raise ValueError(f"kind must be one of {get_args(Kind)} and law one of {get_args(Law)}, got kind={kind!r}, law={law!r}")
    if not weight.is_floating_point():
        raise TypeError(f"weight must be of a floating-point type, got {weight.dtype}")
    if weight.ndim < 2 or weight.numel() == 0:
        raise ValueError(f"weight must have at least 2 dimensions (m, n, *kernel), none of them 0, got shape {tuple(weight.shape)}")
    if not (gain > 0 and math.isfinite(gain)):
        raise ValueError(f"gain must be positive and finite, got {gain}")
    if kind in ("orthogonal", "delta"):
        if law != "normal":
            raise ValueError(f"law has no meaning for kind={kind!r}, whose entries are not independent; got {law!r}")
        return _orthogonal_(weight, kind, gain, generator)
    fan_out, fan_in = weight.shape[0] * weight[0, 0].numel(), weight[0].numel()
    fan = {"fan_in": fan_in, "fan_out": fan_out, "xavier": (fan_in + fan_out) / 2}[kind]
    return _fill_(weight, law, gain / math.sqrt(fan), generator)


def _fill_(weight: Tensor, law: str, std: float, generator: torch.Generator | None) -> Tensor:
    if law == "normal":
        return weight.normal_(0.0, std, generator=generator)
    if law == "uniform":
        return weight.uniform_(-math.sqrt(3) * std, math.sqrt(3) * std, generator=generator)
    if law == "rademacher":
        return weight.bernoulli_(0.5, generator=generator).mul_(2).sub_(1).mul_(std)
    return trunc_normal_(weight, std, correct=True, generator=generator)


def _orthogonal_(weight: Tensor, kind: str, gain: float, generator: torch.Generator | None) -> Tensor:
    dtype = weight.dtype if weight.dtype == torch.float64 else torch.float32
    centre = weight.flatten(1)
    if kind == "delta":
        kernel = weight.shape[2:]
        if not kernel or any(size % 2 == 0 for size in kernel):
            raise ValueError(f"delta needs a convolution whose kernel sizes are all odd, got a weight of shape {tuple(weight.shape)}")
        weight.zero_()
        centre = weight[(..., *(size // 2 for size in kernel))]
    values = orthogonal(*centre.shape, generator=generator, dtype=dtype, device=weight.device).mul_(gain)
    if kind == "delta":
        centre.copy_(values)
        return weight
    return weight.copy_(values.view(weight.shape))


def orthogonal(
    m: int,
    n: int,
    batch: tuple[int, ...] = (),
    *,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Float[Tensor, "*batch m n"]:
    r"""Independent Haar-distributed (semi-)orthogonal matrices: orthonormal columns if m >= n, orthonormal rows if m <= n.

    The usual recipe, the Q of a Gaussian matrix with the signs of diag R, factorizes only to throw R away. Not needed: the k-th reflection
    of that factorization is the one of a standard normal vector of length m - k + 1, independent of the others (Stewart), so we draw
    these vectors and multiply their reflections out. That is half of the work, exactly Haar, and one call for all layers of a network.

    Cost O(m n min(m, n)) per matrix; :math:`\|Q^\top Q-I\|` of a few ulps. Works in float32 and float64; TypeError otherwise. Raises
    ValueError if m or n is not positive or an entry of ``batch`` is negative. Source: Stewart (1980), SIAM J. Numer. Anal. 17, 403-409.
    """
    if m < 1 or n < 1:
        raise ValueError(f"m and n must be positive, got m={m}, n={n}")
    if any(size < 0 for size in batch):
        raise ValueError(f"batch must contain no negative size, got {batch}")
    dtype = torch.get_default_dtype() if dtype is None else dtype
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(f"dtype must be torch.float32 or torch.float64, got {dtype}")
    if device is None and generator is not None:
        device = generator.device
    x = torch.randn(*batch, max(m, n), min(m, n), generator=generator, dtype=dtype, device=device)
    q = _from_reflections(x)  # column-major, so its transpose is contiguous; the Haar measure does not mind a transposition
    return (q if m > n else q.mT).contiguous()


def _from_reflections(x: Tensor) -> Tensor:
    """Q of the reflections whose k-th vector is the part of column k of ``x`` on and below the diagonal."""
    x = x.tril()
    head = x.diagonal(dim1=-2, dim2=-1)
    norm = torch.linalg.vector_norm(x, dim=-2)  # column 1 of Q will be column 1 of x over its norm: uniform on the sphere
    beta = -torch.copysign(norm, head)  # the reflection maps the vector to beta e_1; the opposite sign avoids cancellation
    drawn = norm > 0  # a float32 normal is exactly 0 about once in 2^24 draws, and the last vector of a square matrix is one number
    tau = torch.where(drawn, (beta - head) / torch.where(drawn, beta, 1.0), 2.0)
    v = x / torch.where(drawn, head - beta, 1.0).unsqueeze(-2)
    q = torch.linalg.householder_product(v, tau)
    return q.mul_(torch.copysign(torch.ones_like(beta), beta).unsqueeze(-2))


@torch.no_grad()
def trunc_normal_(weight: Tensor, std: float, a: float = CUT, *, correct: bool = False, generator: torch.Generator | None = None) -> Tensor:
    r"""Fill ``weight`` in place from the normal law of mean 0 and standard deviation ``std``, cut at ``a`` of its standard deviations.

    What is realized is ``std * truncated_std(a)``, for the usual a = 2 only 0.8796 of the nominal value; ``correct=True`` widens the law so
    that ``std`` itself is realized, with all entries within ``a * std / truncated_std(a)``. Not the same as
    ``torch.nn.init.trunc_normal_(w, std=std)``, whose bounds are -2 and 2 in absolute terms: for std = 0.02, a hundred standard deviations.

    Raises TypeError for a weight that is not real floating point, ValueError if ``std`` is negative or not finite or ``a`` not positive.
    """
    if not weight.is_floating_point():
        raise TypeError(f"weight must be of a floating-point type, got {weight.dtype}")
    if not 0 <= std < math.inf:
        raise ValueError(f"std must be finite and not negative, got {std}")
    realized = truncated_std(a)  # refuses an a that is not positive
    scale = std / realized if correct else std
    if a > 4:  # the inverse of the distribution function would meet the last float32 numbers below 1; redraw instead, it is rare
        weight.normal_(generator=generator)
        while (outside := weight.abs() > a).any():
            weight[outside] = weight[outside].normal_(generator=generator)
        return weight.mul_(scale)
    mass = math.erf(a / math.sqrt(2))  # the probability of [-a, a]
    return weight.uniform_(-mass, mass, generator=generator).erfinv_().mul_(math.sqrt(2)).clamp_(-a, a).mul_(scale)


def truncated_std(a: float) -> float:
    r"""Standard deviation of a standard normal variable conditioned on :math:`[-a,a]`.

    :math:`\sqrt{1-2a\varphi(a)/(2\Phi(a)-1)}`, computed as the square root of a ratio of incomplete gamma functions
    :math:`P(\frac32,\frac{a^2}2)/P(\frac12,\frac{a^2}2)`, which has no cancellation: relative error of a few ulps for every a > 0, from
    :math:`a/\sqrt3` for small a to 1 for infinite a. Raises ValueError if a is not positive.
    """
    if not a > 0:
        raise ValueError(f"a must be positive, in standard deviations, got {a}")
    if a < 1e-8:  # the next term, a^2/15 relative, is below half an ulp; a^2/2 would underflow for a < 1e-154
        return a / math.sqrt(3)
    return math.sqrt(gammainc(1.5, a * a / 2) / gammainc(0.5, a * a / 2))


def isometry_report(weight: Float[Tensor, "m n"]) -> dict[str, float]:
    r"""How far :math:`x\mapsto Wx` is from an isometry, in every usual sense.

    With :math:`D=W^\top W-I_n`: ``entry_mse`` :math:`=\|D\|_F^2/n^2`, ``diagonal_mse`` (mean square of the diagonal of D), ``frobenius``
    :math:`=\|D\|_F`, ``operator`` :math:`=\|D\|_{op}=\max_i|s_i^2-1|`, and ``s_min``, ``s_max``, the extremes of :math:`\|Wx\|/\|x\|` (so
    ``s_min`` is 0 if m < n, where no map is an isometry). Computed in float64. Raises ValueError if ``weight`` is empty or not finite.
    """
    if weight.numel() == 0 or not torch.isfinite(weight).all():
        raise ValueError(f"weight must be non-empty and finite, got shape {tuple(weight.shape)} with non-finite or no entries")
    m, n = weight.shape
    w = weight.detach().double()
    deviation = w.mT @ w - torch.eye(n, dtype=w.dtype, device=w.device)
    s = torch.linalg.svdvals(w)
    s_min, s_max = (s[-1].item() if m >= n else 0.0), s[0].item()
    return {
        "entry_mse": deviation.square().mean().item(),
        "diagonal_mse": deviation.diagonal().square().mean().item(),
        "frobenius": torch.linalg.matrix_norm(deviation).item(),
        "operator": max(s_max**2 - 1, 1 - s_min**2),
        "s_min": s_min,
        "s_max": s_max,
    }

r"""Differentiable stand-ins for the maximum, its position, and the scores that are built on it.

Every function here is a hard one with the temperature put back. With :math:`p=\mathrm{softmax}(x/T)` the maximum becomes
:math:`M_T(x)=T\log\sum_ie^{x_i/T}`, which is convex, exceeds the maximum by at most :math:`T\log n` and has the gradient p; p is the
smooth one-hot vector of the maximum, and :math:`\sum_iv_ip_i` its smooth position on a scale v. Accuracy and the F-score are made of
one-hot vectors, and become differentiable when probabilities take the place of decisions. Selecting k entries is in
:mod:`kexue.regularization.soft_topk`.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor, nn

__all__ = [
    "RunningFBeta",
    "Threshold",
    "optimal_fbeta_threshold",
    "soft_accuracy",
    "soft_argmax",
    "soft_fbeta",
    "soft_max",
    "soft_onehot",
]


def soft_max(
    x: Float[Tensor, "*shape"], dim: int = -1, *, temperature: float | int = 1.0, kind: Literal["lse", "mellow"] = "lse"
) -> Float[Tensor, "*reduced"]:
    r"""Smooth maximum along ``dim``: :math:`T\log\sum_ie^{x_i/T}` or, ``kind="mellow"``, :math:`T\log\frac1n\sum_ie^{x_i/T}`.

    The first lies in :math:`[\max x,\max x+T\log n]`, the second in :math:`[\max x-T\log n,\max x]`; both are convex, increase in every
    entry, move with a shift of ``x`` and have the gradient ``soft_onehot(x)``. No overflow at any size of ``x``. Entries of
    :math:`-\infty` are masked: they have no influence, get gradient 0 and are not counted in n.

    :param temperature: positive.
    :raises ValueError: if temperature or kind is out of range, ``x`` has a NaN or :math:`+\infty`, or a slice nothing but masked
        entries. Source for "mellow": Asadi and Littman (2017).
    """
    if kind not in ("lse", "mellow"):
        raise ValueError(f"kind must be 'lse' or 'mellow', got {kind!r}")
    rows, top = _scaled(x, dim, temperature)
    value = rows.logsumexp(-1)
    if kind == "mellow":
        value = value - (rows > -math.inf).sum(-1).to(rows.dtype).log()
    return (value * temperature + top).to(x.dtype)


def soft_onehot(x: Float[Tensor, "*shape"], dim: int = -1, *, temperature: float | int = 1.0) -> Float[Tensor, "*shape"]:
    r"""Smooth one-hot vector of the largest entry: :math:`\mathrm{softmax}(x/T)` along ``dim``.

    Tends to the one-hot vector as T falls if the largest entry is unique, and to equal shares on the largest entries if not. With a
    gap :math:`\Delta` to the second largest the distance in the 1-norm is at most :math:`2(n-1)e^{-\Delta/T}`. Differs from
    :func:`torch.softmax` of ``x / temperature`` in that nothing overflows however small T is. Masked entries and errors as in
    :func:`soft_max`.
    """
    rows, _ = _scaled(x, dim, temperature)
    return rows.softmax(-1).to(x.dtype).movedim(-1, dim)


def soft_argmax(
    x: Float[Tensor, "*shape"], dim: int = -1, *, values: Float[Tensor, " n"] | None = None, temperature: float | int = 1.0
) -> Float[Tensor, "*reduced"]:
    r"""Smooth position of the largest entry: the mean :math:`\sum_iv_ip_i` of ``values`` under ``soft_onehot(x)``.

    Without ``values`` the positions 0, 1, ..., n - 1 are used. The answer lies between the values, so it makes sense for positions
    on a line (a pixel, a time, a quantile), not for the numbers of categories, and for one clear maximum, not for two that are far
    apart.

    :raises ValueError: if ``values`` does not have one number per entry; otherwise as in :func:`soft_max`.
    """
    p = soft_onehot(x, dim, temperature=temperature).movedim(dim, -1)
    if values is None:
        values = torch.arange(p.shape[-1], dtype=p.dtype, device=p.device)
    if values.shape != p.shape[-1:]:
        raise ValueError(f"values must have one number for each of the {p.shape[-1]} entries, got shape {tuple(values.shape)}")
    return (p * values.to(p.dtype)).sum(-1)


def soft_accuracy(logits: Float[Tensor, "*batch classes"], target: Int64[Tensor, " *batch"]) -> Float[Tensor, ""]:
    r"""Mean probability of the right class: the accuracy of a classifier that draws its answer from its own probabilities.

    As a loss, :math:`1-p_y` is half the mean absolute error :math:`\sum_c|p_c-[c=y]|`. Its gradient in the logits is
    :math:`-p_y(e_y-p)`, that of cross-entropy times :math:`p_y`: it vanishes for examples that are surely right and surely wrong.

    :raises ValueError: if there is no example or a target names no class.
    """
    if not target.numel():
        raise ValueError("target must hold at least one example")
    if target.min() < 0 or target.max() >= logits.shape[-1]:
        raise ValueError(f"target must lie in 0..{logits.shape[-1] - 1}, got {target.min()}..{target.max()}")
    return soft_onehot(logits).gather(-1, target[..., None]).mean()


def soft_fbeta(
    probability: Float[Tensor, " examples *labels"],
    target: Float[Tensor, " examples *labels"] | Int[Tensor, " examples *labels"] | Bool[Tensor, " examples *labels"],
    *,
    beta: float | int = 1.0,
    average: Literal["macro", "micro"] = "macro",
) -> Float[Tensor, ""]:
    r"""F-score with probabilities in place of decisions, :math:`F_\beta=\frac{(1+\beta^2)\sum tp}{\beta^2\sum t+\sum p}`.

    For p in {0, 1} it is the F-score. For several labels per example it is the mean of the labels' scores (``"macro"``) or the score
    of all decisions together (``"micro"``). A label with neither targets nor probability scores 0. A batch gives a biased estimate,
    off by a multiple of one over its size; :class:`RunningFBeta` estimates over many batches.

    :param probability: in [0, 1].
    :param target: in [0, 1]; soft targets are allowed.
    :param beta: positive; weight of recall against precision.
    :raises ValueError: if a number is out of range or average is unknown. Source: Lipton, Elkan and Narayanaswamy (2014).
    """
    if average not in ("macro", "micro"):
        raise ValueError(f"average must be 'macro' or 'micro', got {average!r}")
    both, size = _counts(probability, target, beta)
    if average == "micro":
        both, size = both.sum(), size.sum()
    return _ratio(both, size).mean().to(probability.dtype)


class RunningFBeta(nn.Module):
    r"""Soft F-score from sums that run over batches, for training with batches too small for :func:`soft_fbeta`.

    Keeps :math:`N\leftarrow\rho N+\sum tp` and :math:`D\leftarrow\rho D+\beta^2\sum t+\sum p` for every label and returns the mean of
    :math:`(1+\beta^2)N/D`. What earlier batches left in the sums is a constant to the gradient, so that the bias falls as for a batch
    :math:`(1+\rho)/(1-\rho)` times as large. In evaluation mode the sums stay as they are.

    :param labels: how many labels an example has; nothing for one label without an axis of its own.
    :param beta: positive.
    :param decay: :math:`\rho` in [0, 1); 0 gives ``soft_fbeta`` of each batch.
    """

    def __init__(self, *labels: int, beta: float | int = 1.0, decay: float | int = 0.9) -> None:
        super().__init__()
        _positive("beta", beta)
        if not 0 <= decay < 1:
            raise ValueError(f"decay must lie in [0, 1), got {decay}")
        self.beta, self.decay = beta, decay
        self.register_buffer("sums", torch.zeros(2, *labels))

    def forward(
        self,
        probability: Float[Tensor, " examples *labels"],
        target: Float[Tensor, " examples *labels"] | Int[Tensor, " examples *labels"] | Bool[Tensor, " examples *labels"],
    ) -> Float[Tensor, ""]:
        """Score after this batch; arguments and errors as in :func:`soft_fbeta`."""
        now = torch.stack(_counts(probability, target, self.beta))
        if now.shape != self.sums.shape:
            raise ValueError(f"probability must have label axes {tuple(self.sums.shape[1:])}, got {tuple(now.shape[1:])}")
        sums = now + self.decay * self.sums
        if self.training:
            self.sums = sums.detach().to(self.sums.dtype)
        return _ratio(sums[0], sums[1]).mean().to(probability.dtype)


class Threshold(NamedTuple):
    """The best reachable score and the threshold on the posterior that reaches it."""

    score: Float[Tensor, ""]
    threshold: Float[Tensor, ""]


def optimal_fbeta_threshold(posterior: Float[Tensor, " examples"], *, beta: float | int = 1.0) -> Threshold:
    r"""Best F-score for given posteriors and the threshold that reaches it.

    The score is the largest :math:`F^*` of :math:`\frac{(1+\beta^2)\sum_iq_ih_i}{\beta^2\sum_iq_i+\sum_ih_i}` over decisions h in {0, 1}.

    With q the posterior of each example this is the ratio of expectations, the F-score of a population in which each example stands for
    many. The best decisions are :math:`h_i=1` where :math:`q_i` exceeds :math:`F^*/(1+\beta^2)`, which is half the score for
    :math:`\beta=1`, not one half. O(N log N). If every posterior is 0, score and threshold are 0.

    :param posterior: probabilities in [0, 1], at least one.
    :raises ValueError: if a number is out of range. Source: Lipton, Elkan and Narayanaswamy (2014).
    """
    _positive("beta", beta)
    if not posterior.numel():
        raise ValueError("posterior must hold at least one example")
    _probabilities("posterior", posterior)
    q = posterior.double().sort(descending=True).values
    count = torch.arange(1, len(q) + 1, dtype=q.dtype, device=q.device)
    score = _ratio((1 + beta**2) * q.cumsum(0), beta**2 * q.sum() + count).max()
    return Threshold(score.to(posterior.dtype), (score / (1 + beta**2)).to(posterior.dtype))


def _scaled(x: Tensor, dim: int, temperature: float | int) -> tuple[Tensor, Tensor]:
    """(x - max) / T with ``dim`` last, in float32 at least, and the maximum, a constant to the gradient."""
    _positive("temperature", temperature)
    if x.ndim == 0 or x.shape[dim] == 0:
        raise ValueError(f"x must have at least one entry along dim {dim}, got shape {tuple(x.shape)}")
    rows = x.movedim(dim, -1)
    rows = rows if rows.dtype == torch.float64 else rows.float()
    if not (rows < math.inf).all():
        raise ValueError("x must be finite or -inf (masked), got nan or inf")
    top = rows.detach().amax(-1)
    if not (top > -math.inf).all():
        raise ValueError("x must have an entry that is not masked in every slice, got a slice of -inf")
    return (rows - top[..., None]) / temperature, top


def _counts(probability: Tensor, target: Tensor, beta: float | int) -> tuple[Tensor, Tensor]:
    """Numerator and denominator of the F-score for every label, in float32 at least."""
    _positive("beta", beta)
    if not len(probability):
        raise ValueError("probability must hold at least one example")
    p = probability if probability.dtype == torch.float64 else probability.float()
    t = target.to(p.dtype)
    _probabilities("probability", p)
    _probabilities("target", t)
    return (1 + beta**2) * (p * t).sum(0), beta**2 * t.sum(0) + p.sum(0)


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    return numerator / torch.where(denominator > 0, denominator, 1.0)


def _positive(name: str, value: float | int) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be positive and finite, got {value}")


def _probabilities(name: str, value: Tensor) -> None:
    if not ((value >= 0) & (value <= 1)).all():
        raise ValueError(f"{name} must lie in [0, 1], got values from {value.min():g} to {value.max():g}")

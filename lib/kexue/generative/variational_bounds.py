r"""Variational bounds on f-divergences from samples, and the losses of the games they define.

For every v, :math:`J_f(v)=E_P[T_f(v)]-E_Q[C_f(v)]\le D_f(P\|Q)` with the canonical link (T, C) of
:mod:`kexue.generative.divergences`, and whenever :math:`f''>0` the maximum is at the log density ratio :math:`v=\log p/q`. Maximizing in
v trains a critic, minimizing in Q a generator. The value on the sample that trained the critic is optimistic; only a held-out value
estimates a lower bound. Source: Nguyen, Wainwright and Jordan (2010); Nowozin, Cseke and Tomioka (2016).
"""

from __future__ import annotations

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kexue.generative.divergences import FDivergence

__all__ = ["RatioNetwork", "critic_loss", "fit_ratio", "generator_loss", "variational_bound"]


def variational_bound(
    div: FDivergence,
    v_p: Float[Tensor, "*batch real"],
    v_q: Float[Tensor, "*batch fake"],
    *,
    log_w_p: Float[Tensor, " real"] | None = None,
    log_w_q: Float[Tensor, " fake"] | None = None,
    smooth: bool = False,
) -> Float[Tensor, "*batch"]:
    r"""Lower bound :math:`J_f=\sum_i w^P_iT(v^P_i)-\sum_j w^Q_jC(v^Q_j)` from log ratios v at points of P and of Q.

    Without log weights the points count equally, which gives the estimate from two samples; quadrature nodes come with
    ``log_w_p = log p + log w``. A point of weight zero contributes nothing. ``smooth`` gives tv a link with a gradient.

    Raises ValueError for an empty sample or NaN at a point that counts (NaN is not looked for under ``torch.compile``).
    """
    expectations = []
    for name, v, log_w, link in (("v_p", v_p, log_w_p, div.link), ("v_q", v_q, log_w_q, div.conj_link)):
        if v.numel() == 0:
            raise ValueError(f"{name} must hold at least one value, got shape {tuple(v.shape)}")
        value = link(v, smooth=smooth)
        if log_w is None:
            expectation = value.mean(-1)
        else:
            weight = log_w.exp()
            expectation = (weight * torch.where(weight > 0, value, 0.0)).sum(-1)
        # a NaN in v that counts shows in the mean: look for it only there
        if not torch.compiler.is_compiling() and expectation.isnan().any() and v.isnan().any():
            raise ValueError(f"{name} must not contain NaN, got {int(v.isnan().sum())} of {v.numel()} values")
        expectations.append(expectation)
    return expectations[0] - expectations[1]


def critic_loss(div: FDivergence, v_real: Float[Tensor, "*batch real"], v_fake: Float[Tensor, "*batch fake"]) -> Float[Tensor, "*batch"]:
    r"""Loss of the critic, :math:`-J_f`; its minimizer over all functions is the log density ratio (for tv only the sign is)."""
    return -variational_bound(div, v_real, v_fake, smooth=True)


def generator_loss(div: FDivergence, v_fake: Float[Tensor, "*batch fake"], kind: str = "minimax") -> Float[Tensor, "*batch"]:
    r"""Loss of the generator at the critic's log ratios of generated points.

    ``"minimax"`` is :math:`-E_Q C_f(v)`: with an optimal critic it descends :math:`D_f`, with force :math:`e^vw_f(v)` on a sample.
    ``"nonsaturating"`` is :math:`-E_Q T_f(v)`, force :math:`w_f(v)`: it descends another divergence :math:`D_g`, :math:`g''(u)=f''(u)/u`.

    Raises ValueError for another kind or an empty sample.
    """
    if kind not in ("minimax", "nonsaturating"):
        raise ValueError(f"kind must be 'minimax' or 'nonsaturating', got {kind!r}")
    if v_fake.numel() == 0:
        raise ValueError(f"v_fake must hold at least one value, got shape {tuple(v_fake.shape)}")
    return -(div.conj_link if kind == "minimax" else div.link)(v_fake, smooth=True).mean(-1)


class RatioNetwork(nn.Module):
    r"""A stack of independent SiLU networks for log ratios, one for each fit, evaluated by batched matrix products.

    Maps ``(fits, batch, dim)`` to ``(fits, batch)``. Weights start uniform in :math:`\pm1/\sqrt{\text{fan-in}}`, drawn from
    ``generator``; because Adam acts on each number alone, training the stack equals training the networks one by one.
    """

    def __init__(self, fits: int, dim: int, *, width: int = 64, depth: int = 2, generator: torch.Generator | None = None) -> None:
        if min(fits, dim, width, depth) < 1:
            raise ValueError(f"fits, dim, width and depth must be at least 1, got {fits}, {dim}, {width}, {depth}")
        super().__init__()
        sizes = [dim, *[width] * depth, 1]
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        for rows, columns in pairwise(sizes):
            bound = rows**-0.5
            self.weights.append(nn.Parameter(torch.empty(fits, rows, columns).uniform_(-bound, bound, generator=generator)))
            self.biases.append(nn.Parameter(torch.empty(fits, 1, columns).uniform_(-bound, bound, generator=generator)))

    def forward(self, x: Float[Tensor, "fits batch dim"]) -> Float[Tensor, "fits batch"]:
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            x = nn.functional.silu(torch.baddbmm(bias, x, weight))
        return torch.baddbmm(self.biases[-1], x, self.weights[-1]).squeeze(-1)


def fit_ratio(
    divs: FDivergence | list[FDivergence],
    x_p: Float[Tensor, "fits real dim"],
    x_q: Float[Tensor, "fits fake dim"],
    model: nn.Module,
    *,
    steps: int = 600,
    batch_size: int | None = 512,
    lr: float = 3e-3,
    generator: torch.Generator | None = None,
) -> Float[Tensor, " fits"]:
    r"""Train a stack of critics, fit i on the pair of samples i by the bound of ``divs[i]``; return the bounds on the training samples.

    Adam with cosine decay to zero; every fit draws its own minibatches with replacement, ``batch_size=None`` takes the whole sample. One
    divergence serves all fits. The returned training values over-estimate: evaluate the model on fresh points for an honest bound.

    Raises ValueError if the numbers of fits differ, or steps or batch_size are not positive.
    """
    divs = [divs] * len(x_p) if isinstance(divs, FDivergence) else divs
    if not len(divs) == len(x_p) == len(x_q):
        raise ValueError(f"divs, x_p and x_q must agree on the number of fits, got {len(divs)}, {len(x_p)} and {len(x_q)}")
    if steps < 1 or (batch_size is not None and batch_size < 1):
        raise ValueError(f"steps and batch_size must be at least 1, got {steps} and {batch_size}")
    groups = {div: torch.tensor([i for i, other in enumerate(divs) if other is div], device=x_p.device) for div in dict.fromkeys(divs)}

    def loss(v_p: Tensor, v_q: Tensor) -> Tensor:
        return torch.stack([critic_loss(div, v_p[rows], v_q[rows]).sum() for div, rows in groups.items()]).sum()

    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        batch_p, batch_q = (x if batch_size is None else _minibatch(x, batch_size, generator) for x in (x_p, x_q))
        optimizer.zero_grad(set_to_none=True)
        loss(model(batch_p), model(batch_q)).backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        v_p, v_q = model(x_p), model(x_q)
        return torch.stack([-critic_loss(div, v_p[i], v_q[i]) for i, div in enumerate(divs)])


def _minibatch(x: Tensor, size: int, generator: torch.Generator | None) -> Tensor:
    rows = torch.randint(x.shape[1], (x.shape[0], size), generator=generator).to(x.device)
    return x.gather(1, rows[..., None].expand(-1, -1, x.shape[2]))

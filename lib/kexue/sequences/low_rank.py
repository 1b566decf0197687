r"""A chain with very many tags: the exact normalizer from a low-rank transition kernel.

Low-rank transition *scores* :math:`g=LR^\top` save parameters, but the normalizer of a CRF needs :math:`e^g`, entry by entry, and the
exponential destroys the rank. What helps is a low-rank *kernel* :math:`e^{g}=UV^\top` with nonnegative :math:`U,V`, K rows and d columns: a
step of the forward recursion then passes through d numbers instead of K².
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from kexue.sequences.memm import _log_sums, _prepare

__all__ = ["log_partition_low_rank"]


def log_partition_low_rank(
    emissions: Float[Tensor, "batch time tags"],
    log_u: Float[Tensor, "tags rank"],
    log_v: Float[Tensor, "tags rank"],
    *,
    mask: Bool[Tensor, "batch time"] | None = None,
) -> Float[Tensor, " batch"]:
    r"""Log partition of a linear-chain CRF whose transitions are :math:`g_{ij}=\log\sum_re^{\texttt{log\_u}_{ir}+\texttt{log\_v}_{jr}}`.

    The recursion :math:`s_r=\log\sum_ie^{\alpha(i)+u_{ir}}`, :math:`\alpha'(j)=f(j)+\log\sum_re^{v_{jr}+s_r}` is exact and in log space:
    entries of :math:`-\infty` and scores of any finite size are safe. Time O(TKd) against O(TK²) of the dense recursion; memory per
    step O(Kd). Half precision is computed in float32.

    :raises ValueError: if shapes or mask do not fit.

    Source: Chiu, Deng and Rush, arXiv:2201.02715.
    """
    emissions, _, _, mask = _prepare(emissions, None, mask)
    for name, factor in (("log_u", log_u), ("log_v", log_v)):
        if factor.ndim != 2 or len(factor) != emissions.shape[2] or factor.shape[1] != log_u.shape[1] or not factor.shape[1]:
            raise ValueError(
                f"{name} must have {emissions.shape[2]} rows, one per tag of emissions, and as many columns as log_u (at least one), "
                f"got shape {tuple(factor.shape)}"
            )
    dtype = torch.promote_types(emissions.dtype, torch.promote_types(log_u.dtype, log_v.dtype))
    emissions, log_u, into = emissions.to(dtype), log_u.to(dtype), log_v.to(dtype).mT
    emissions = emissions.masked_fill(~mask[..., None], 0.0)
    alpha = emissions[:, :1]
    for k in range(1, emissions.shape[1]):
        step = emissions[:, k : k + 1] + _log_sums(_log_sums(alpha, log_u), into)
        alpha = torch.where(mask[:, k, None, None], step, alpha)
    return _log_sums(alpha, torch.zeros_like(log_u[:, :1]))[:, 0, 0]

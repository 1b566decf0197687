"""What the public functions of a CRF do first: bring all scores to one dtype, refuse what does not fit, and lay out the lattice."""

from __future__ import annotations

import torch
from torch import Tensor

from kexue.sequences._lattice import Lattice, count_active

__all__: list[str] = []


def prepare(emissions: Tensor, transitions: Tensor, start: Tensor | None, end: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The scores in one dtype of at least single precision; absent start and end scores are zeros."""
    given = [x for x in (emissions, transitions, start, end) if x is not None]
    dtype = torch.float32
    for x in given:
        dtype = torch.promote_types(dtype, x.dtype)
    size = emissions.shape[-1]
    for name, x in (("start", start), ("end", end)):
        if x is not None and x.shape != (size,):
            raise ValueError(f"{name} must have one score for each of the {size} tags of emissions, got shape {tuple(x.shape)}")
    zero = emissions.new_zeros(size, dtype=dtype)
    s, e = (zero if x is None else x.to(dtype) for x in (start, end))
    return emissions.to(dtype), transitions.to(dtype), s, e


def check_lengths(f: Tensor, g: Tensor, mask: Tensor | None) -> Tensor:
    """Number of steps of each sequence, after a check of everything that has a shape."""
    if f.dim() != 3 or 0 in f.shape:
        raise ValueError(f"emissions must have shape (batch, time, tags), none of them 0, got {tuple(f.shape)}")
    batch, time, size = f.shape
    if g.shape not in ((size, size), (batch, time - 1, size, size)):
        raise ValueError(
            f"transitions must be square over the {size} tags of emissions, or one such matrix for each of the {batch} x {time - 1} steps, "
            f"got shape {tuple(g.shape)}"
        )
    if mask is None:
        return torch.full((batch,), time, device=f.device)
    if mask.shape != (batch, time) or mask.dtype != torch.bool:
        raise ValueError(f"mask must be boolean with shape {(batch, time)}, got {mask.dtype} with shape {tuple(mask.shape)}")
    if not mask[:, 0].all():
        raise ValueError("mask must be true in its first column: a sequence without a step has no tags")
    if (mask[:, 1:] & ~mask[:, :-1]).any():
        raise ValueError("mask must be true up to the end of each sequence and false after it (padding on the right)")
    return mask.sum(1)


def check_tags(tags: Tensor, mask: Tensor, size: int) -> Tensor:
    """The tags as int64, with 0 under padding."""
    if tags.shape != mask.shape:
        raise ValueError(f"tags must have shape {tuple(mask.shape)} like the emissions, got {tuple(tags.shape)}")
    y = torch.where(mask, tags.long(), 0)
    if int(y.min()) < 0 or int(y.max()) >= size:
        raise ValueError(f"tags must be in 0..{size - 1} where mask is true, got {int(y.min())} to {int(y.max())}")
    return y


def build_lattice(f: Tensor, g: Tensor, s: Tensor, e: Tensor, lengths: Tensor) -> tuple[Lattice, Tensor]:
    """Time-major copy of the scores, sorted by falling length, start and end scores included; and the order of the rows."""
    batch, time, _ = f.shape
    if even := bool((lengths == time).all()):
        order = torch.arange(batch, device=f.device)
        f = f.transpose(0, 1).clone(memory_format=torch.contiguous_format)
        g = g if g.dim() == 2 else g.transpose(0, 1)
        alive = None
    else:
        lengths, order = lengths.sort(descending=True, stable=True)
        alive = torch.arange(time, device=f.device)[:, None] < lengths
        f = f.transpose(0, 1)[:, order].masked_fill_(~alive[:, :, None], 0)
        g = g if g.dim() == 2 else g.transpose(0, 1)[:, order].masked_fill_(~alive[1:, :, None, None], 0)
    f[0] += s
    f[lengths - 1, torch.arange(batch, device=f.device)] += e
    if not (f < torch.inf).all() or not (g < torch.inf).all():
        raise ValueError("emissions, transitions, start and end must be finite or -inf, got nan or +inf")
    return Lattice(f, g, lengths, [batch] * time if even else count_active(lengths, time), alive), order

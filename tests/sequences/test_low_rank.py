"""Tests of kexue.sequences.low_rank: the dense recursion, enumeration, extremes, gradients, refusals."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kexue.sequences import crf
from kexue.sequences.low_rank import log_partition_low_rank


def normal(*shape, seed=0, size=1.0, dtype=torch.float64):
    return size * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def dense(log_u, log_v):
    return torch.logsumexp(log_u[:, None] + log_v[None], -1)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), time=st.integers(1, 6), tags=st.integers(1, 5), rank=st.integers(1, 4))
def test_equals_the_dense_recursion(seed, time, tags, rank):
    f, u, v = (normal(*shape, seed=seed + i, size=2) for i, shape in enumerate([(2, time, tags), (tags, rank), (tags, rank)]))
    mask = torch.arange(time) < torch.tensor([[time], [1 + seed % time]])
    want = crf.log_partition(f, dense(u, v), mask=mask)
    torch.testing.assert_close(log_partition_low_rank(f, u, v, mask=mask), want, rtol=0, atol=1e-10)


def test_equals_enumeration():
    f, u, v = normal(1, 4, 3), normal(3, 2, seed=1), normal(3, 2, seed=2)
    g = dense(u, v)
    paths = itertools.product(range(3), repeat=4)
    terms = [sum(f[0, k, t] for k, t in enumerate(p)) + sum(g[s, t] for s, t in itertools.pairwise(p)) for p in paths]
    assert log_partition_low_rank(f, u, v).item() == pytest.approx(torch.stack(terms).logsumexp(0).item(), abs=1e-12)


def test_identity_factors_give_the_matrix_itself():
    g = normal(4, 4, seed=5)
    eye = torch.full((4, 4), -math.inf, dtype=torch.float64).fill_diagonal_(0)
    f = normal(3, 7, 4)
    torch.testing.assert_close(log_partition_low_rank(f, g, eye), crf.log_partition(f, g), rtol=1e-13, atol=0)
    torch.testing.assert_close(log_partition_low_rank(f, eye, g.T), crf.log_partition(f, g), rtol=1e-13, atol=0)


def test_forbidden_and_huge_scores():
    f, u, v = normal(2, 6, 4, size=300), normal(4, 2, seed=1, size=300), normal(4, 2, seed=2, size=300)
    u[0] = v[1] = f[0, 2, 3] = -math.inf
    f, u, v = (x.requires_grad_() for x in (f, u, v))
    got = log_partition_low_rank(f, u, v)
    torch.testing.assert_close(got, crf.log_partition(f, dense(u, v)), rtol=1e-12, atol=1e-9)
    got.sum().backward()
    assert all(torch.isfinite(x.grad).all() for x in (f, u, v))
    assert not u.grad[0].any() and not v.grad[1].any()
    blocked = torch.full((4, 2), -math.inf, dtype=torch.float64, requires_grad=True)
    nothing = log_partition_low_rank(f, blocked, v)
    assert (nothing == -math.inf).all()
    assert (log_partition_low_rank(f[:, :1], blocked, v) == f[:, 0].logsumexp(1)).all()


def test_padding_does_not_matter_and_half_precision_is_computed_in_single():
    f, u, v = normal(2, 5, 3), normal(3, 2, seed=1), normal(3, 2, seed=2)
    mask = torch.tensor([[True] * 5, [True] * 2 + [False] * 3])
    want = log_partition_low_rank(f, u, v, mask=mask)
    torch.testing.assert_close(want[1], log_partition_low_rank(f[1:, :2], u, v)[0], rtol=1e-14, atol=0)
    f[~mask] = math.nan
    assert torch.equal(log_partition_low_rank(f, u, v, mask=mask), want)
    assert log_partition_low_rank(f.half(), u.half(), v.half(), mask=mask).dtype == torch.float32
    assert log_partition_low_rank(f.float(), u, v, mask=mask).dtype == torch.float64


def test_gradcheck():
    f, u, v = (normal(*s, seed=i).requires_grad_() for i, s in enumerate([(2, 4, 3), (3, 2), (3, 2)]))
    mask = torch.tensor([[True] * 4, [True] * 2 + [False] * 2])
    assert torch.autograd.gradcheck(lambda *x: log_partition_low_rank(*x, mask=mask), (f, u, v))
    assert torch.autograd.gradgradcheck(lambda *x: log_partition_low_rank(*x, mask=mask), (f, u, v))


def test_refusals_name_the_argument():
    plain = getattr(log_partition_low_rank, "__wrapped__", log_partition_low_rank)  # beartype would speak first
    f, u, v = normal(1, 4, 3), normal(3, 2), normal(3, 2)
    with pytest.raises(ValueError, match=r"log_u must have 3 rows, .* got shape \(2, 2\)"):
        plain(f, u[:2], v)
    with pytest.raises(ValueError, match=r"log_v must have 3 rows, .* as many columns as log_u \(at least one\), got shape \(3, 1\)"):
        plain(f, u, v[:, :1])
    with pytest.raises(ValueError, match=r"log_u must have 3 rows, .* got shape \(3, 0\)"):
        plain(f, u[:, :0], v[:, :0])
    with pytest.raises(ValueError, match="emissions must have at least one step"):
        plain(f[:, :0], u, v)
    with pytest.raises(ValueError, match="mask must be True"):
        plain(f, u, v, mask=torch.zeros(1, 4, dtype=torch.bool))

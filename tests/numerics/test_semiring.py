"""Products in the semirings: against loops and ordinary matrices, in every order of multiplication, at both ends of the range."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kexue.numerics.semiring import log_eye, log_matmul, max_matmul, safe_logsumexp, tree_levels, tree_states

DOUBLE = {"dtype": torch.float64}
INF = float("inf")


def brute_force(a, b, reduce):
    rows, cols = a.shape[-2], b.shape[-1]
    columns = [torch.stack([reduce(a[..., i, :] + b[..., :, j]) for j in range(cols)], -1) for i in range(rows)]
    return torch.stack(columns, -2)


def random_matrices(seed, *shape, spread=1.0, forbidden=0.2):
    generator = torch.Generator().manual_seed(seed)
    x = spread * torch.randn(*shape, generator=generator, **DOUBLE)
    return torch.where(torch.rand(*shape, generator=generator) < forbidden, -INF, x)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), spread=st.sampled_from([0.1, 10.0, 400.0, 1e4]), forbidden=st.sampled_from([0.0, 0.3, 1.0]))
def test_log_matmul_matches_the_sum_term_by_term(seed, spread, forbidden):
    a, b = (random_matrices(seed + k, 3, *s, spread=spread, forbidden=forbidden) for k, s in enumerate([(4, 5), (5, 2)]))
    torch.testing.assert_close(log_matmul(a, b), brute_force(a, b, lambda x: safe_logsumexp(x, -1)), rtol=1e-13, atol=1e-12)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), forbidden=st.sampled_from([0.0, 0.3, 1.0]))
def test_max_matmul_matches_the_maximum_term_by_term(seed, forbidden):
    a, b = (random_matrices(seed + k, 3, *s, forbidden=forbidden) for k, s in enumerate([(4, 5), (5, 2)]))
    assert torch.equal(max_matmul(a, b), brute_force(a, b, lambda x: x.amax(-1)))


def test_max_matmul_of_a_stack_that_is_taken_row_by_row():
    a, b = random_matrices(0, 4000, 2, 4, 5), random_matrices(1, 4000, 2, 5, 3)  # 120,000 numbers each on the right: one row at once
    assert torch.equal(max_matmul(a, b), brute_force(a, b, lambda x: x.amax(-1)))
    assert torch.equal(max_matmul(a[0, 0], b[0, 0]), brute_force(a[0, 0], b[0, 0], lambda x: x.amax(-1)))


def test_log_matmul_is_the_logarithm_of_the_ordinary_product():
    a, b = torch.rand(4, 3, **DOUBLE), torch.rand(3, 4, **DOUBLE)
    torch.testing.assert_close(log_matmul(a.log(), b.log()), (a @ b).log())


def test_log_matmul_keeps_an_entry_that_the_rescaled_product_rounds_to_zero():
    """The best inner state of the row cannot reach the column but by a step of -3000, so the worse one decides."""
    a, b = torch.tensor([[0.0, -500.0]]), torch.tensor([[-3000.0, 0.0], [0.0, -2000.0]])
    torch.testing.assert_close(log_matmul(a, b), torch.tensor([[-500.0, 0.0]]))
    assert log_matmul(a.double(), b.double())[0, 0] == -500


def test_log_matmul_recomputes_entries_that_are_small_but_not_zero():
    """exp(-85) + exp(-95) in float32: the second factor alone is 4e-42, a number with three digits."""
    a, b = torch.tensor([[0.0, -95.0]]), torch.tensor([[-96.0, 0.0], [0.0, -200.0]])
    expected = torch.logsumexp(torch.tensor([-96.0, -95.0], **DOUBLE), 0)
    assert abs(log_matmul(a, b)[0, 0].double() - expected) < 1e-5


def test_identity_changes_nothing():
    x = random_matrices(0, 4, 4)
    one = log_eye(4, like=x)
    for product in (log_matmul, max_matmul):
        torch.testing.assert_close(product(x, one), x, rtol=0, atol=1e-15)
        torch.testing.assert_close(product(one, x), x, rtol=0, atol=1e-15)
    assert one.dtype == torch.float64


def test_log_matmul_has_gradients_of_both_orders():
    a, b = (random_matrices(k, 2, 3, 3, forbidden=0).requires_grad_() for k in range(2))
    assert torch.autograd.gradcheck(log_matmul, (a, b)) and torch.autograd.gradgradcheck(log_matmul, (a, b))
    wide = (torch.tensor([[0.0, -900.0]], **DOUBLE, requires_grad=True), torch.tensor([[-3000.0], [0.0]], **DOUBLE, requires_grad=True))
    assert torch.autograd.gradcheck(log_matmul, wide)


def test_forbidden_entries_have_gradient_zero():
    a = torch.tensor([[-INF, 0.0], [-INF, -INF]], requires_grad=True)
    result = log_matmul(a, torch.zeros(2, 2))
    assert result.tolist() == [[0, 0], [-INF, -INF]]
    assert torch.autograd.grad(result[0].sum(), a, retain_graph=True)[0].tolist() == [[0, 2], [0, 0]]
    assert not torch.autograd.grad(result[1].sum(), a)[0].isnan().any()


def test_safe_logsumexp_of_nothing_possible():
    x = torch.full((2, 3), -INF, requires_grad=True)
    y = safe_logsumexp(x, 1)
    assert y.tolist() == [-INF, -INF] and torch.autograd.grad(y.sum(), x)[0].eq(0).all()
    assert safe_logsumexp(torch.zeros(2, 3), (0, 1), keepdim=True).shape == (1, 1)
    torch.testing.assert_close(safe_logsumexp(torch.zeros(2, 3), (0, 1)), torch.tensor(6.0).log())


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 13])
def test_tree_products_and_states_equal_the_sequential_ones(n):
    """Ordinary integer matrices do not commute, and their products are exact."""
    factors = torch.randint(-2, 3, (n, 3, 3), generator=torch.Generator().manual_seed(n))
    levels = tree_levels(torch.matmul, factors)
    assert len(levels) == 1 + (n - 1).bit_length()
    row, column = torch.tensor([[1, 2, 3]]), torch.tensor([[3], [1], [2]])
    before, after = [row], [column]
    for t in range(n):
        before.append(before[-1] @ factors[t])
        after.insert(0, factors[n - 1 - t] @ after[0])
    assert torch.equal(row @ levels[-1][0], before[-1])
    assert torch.equal(tree_states(levels, row, torch.matmul), torch.stack(before))
    assert torch.equal(tree_states(levels, column, lambda v, m: m @ v, reverse=True), torch.stack(after))


def test_a_tree_of_nothing_is_refused():
    with pytest.raises(ValueError, match="factors must be at least one"):
        tree_levels(torch.matmul, torch.zeros(0, 2, 2))

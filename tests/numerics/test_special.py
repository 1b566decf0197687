"""Tests of the beta functions in kexue.numerics.special, with 40-digit mpmath as the oracle."""

import math

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kexue.numerics import log_beta, log_betainc, polygamma

mpmath.mp.dps = 40


def f64(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def relative(got: float, exact: mpmath.mpf) -> float:
    return float(abs(mpmath.mpf(got) - exact) / abs(exact))


@pytest.mark.parametrize("a", [1e-3, 0.5, 1.5, 3.0, 19.4, 20.1, 300.0, 1e5, 5e8])
@pytest.mark.parametrize("b", [0.5, 7.3, 19.9, 20.0, 4e3, 5e8])
def test_log_beta_matches_mpmath(a, b):
    exact = mpmath.loggamma(a) + mpmath.loggamma(b) - mpmath.loggamma(mpmath.mpf(a) + b)
    # 20 ulps of the result, or of the largest log-gamma that a small case really needs (below 20, that is at most 45)
    assert abs(mpmath.mpf(log_beta(f64(a), f64(b)).item()) - exact) < 20 * 2.2e-16 * max(abs(exact), 45 if max(a, b) < 20 else 1)


@settings(max_examples=60, deadline=None)
@given(st.floats(0.1, 1e6), st.floats(0.1, 1e6))
def test_log_beta_is_symmetric_and_obeys_pascal(a, b):
    a, b = f64(a), f64(b)
    assert log_beta(a, b).equal(log_beta(b, a))
    # B(a, b) = B(a+1, b) + B(a, b+1)
    assert torch.allclose(log_beta(a, b), torch.logaddexp(log_beta(a + 1, b), log_beta(a, b + 1)), rtol=1e-12, atol=1e-12)


def test_log_beta_gradient():
    a = f64(0.7, 3.0, 19.99, 20.5, 400.0).requires_grad_()
    b = f64(0.5, 30.0, 0.5, 0.5, 80.0).requires_grad_()
    assert torch.autograd.gradcheck(log_beta, (a, b))
    large = f64(5e8).requires_grad_()
    log_beta(large, f64(0.5)).backward()
    assert large.grad.item() == pytest.approx(-0.5 / 5e8, rel=1e-8)


def betainc(a: float, b: float, x: float) -> mpmath.mpf:
    return mpmath.log(mpmath.betainc(a, b, 0, x, regularized=True))


@pytest.mark.parametrize("a", [0.3, 0.5, 2.0, 17.5, 300.0])
@pytest.mark.parametrize("b", [0.5, 1.0, 6.2, 250.0])
@pytest.mark.parametrize("x", [1e-9, 0.03, 0.4, 0.75, 0.999])
def test_log_betainc_matches_mpmath(a, b, x):
    exact = betainc(a, b, x)
    got = log_betainc(f64(a), f64(b), f64(x)).item()
    assert got <= 0
    assert abs(got - exact) <= 4e-14 * abs(exact) + 4e-16


@pytest.mark.parametrize(("a", "y"), [(499.5, 0.81), (5e5, 1e-6), (5e5, 1e-4), (5e8, 1e-9), (5e8, 3.6e-9), (5e8, 1e-14), (5e8, 0.09)])
def test_log_betainc_keeps_its_digits_beside_one(a, y):
    got = log_betainc(f64(a), f64(0.5), f64(1 - y), complement=f64(y)).item()
    if a * y > 1e6:  # mpmath needs minutes here: compare with the first three terms of the fraction in exact arithmetic
        a_, y_ = mpmath.mpf(a), mpmath.mpf(y)
        exact = a_ * mpmath.log(1 - y_) - mpmath.log(y_) / 2 - mpmath.log(mpmath.beta(a_, 0.5)) - mpmath.log(a_)
        assert got == pytest.approx(float(exact), rel=1e-12)
    else:
        assert relative(got, betainc(a, 0.5, 1 - mpmath.mpf(y))) < 1e-13


@pytest.mark.parametrize("x", [0.0, 1.0])
def test_log_betainc_at_the_ends(x):
    assert log_betainc(f64(2.5), f64(0.5), f64(x)).item() == (-math.inf if x == 0 else 0.0)


@settings(max_examples=60, deadline=None)
@given(st.floats(0.2, 1e4), st.floats(0.2, 1e4), st.floats(0.001, 0.999))
def test_log_betainc_of_both_tails_add_to_one(a, b, x):
    lower = log_betainc(f64(a), f64(b), f64(x), complement=f64(1 - x))
    upper = log_betainc(f64(b), f64(a), f64(1 - x), complement=f64(x))
    assert torch.allclose(torch.exp(lower) + torch.exp(upper), torch.ones(1, dtype=torch.float64), rtol=0, atol=1e-11)
    # step by one: I_x(a, b) = I_x(a+1, b) + x^a (1-x)^b / (a B(a, b))
    term = a * math.log(x) + b * math.log1p(-x) - math.log(a) - log_beta(f64(a), f64(b))
    assert torch.allclose(lower, torch.logaddexp(log_betainc(f64(a + 1), f64(b), f64(x)), term), rtol=1e-9, atol=1e-11)


def test_log_betainc_gradient_on_both_branches():
    a = f64(3.0, 3.0, 40.0, 0.5).requires_grad_()
    b = f64(0.5, 0.5, 0.5, 4.0).requires_grad_()
    x = f64(0.2, 0.95, 0.97, 0.4).requires_grad_()
    assert torch.autograd.gradcheck(log_betainc, (a, b, x))


def test_log_betainc_in_float32_and_broadcast():
    value = log_betainc(torch.tensor([[2.0], [3.0]]), torch.tensor(0.5), torch.tensor([0.1, 0.5, 0.9]))
    assert value.shape == (2, 3) and value.dtype == torch.float32
    assert value[1, 2].item() == pytest.approx(float(betainc(3, 0.5, 0.9)), rel=1e-5)


@pytest.mark.parametrize(
    ("a", "b", "x"), [(0.0, 1.0, 0.5), (1.0, -1.0, 0.5), (1.0, 1.0, -0.1), (1.0, 1.0, 1.1), (math.nan, 1.0, 0.5), (1.0, 1.0, math.nan)]
)
def test_log_betainc_refuses_what_is_no_beta_law(a, b, x):
    with pytest.raises(ValueError, match=r"a and b must be positive and x in \[0, 1\], got a ="):
        log_betainc(f64(1.0, a), f64(1.0, b), f64(0.5, x))


def test_log_betainc_says_when_it_gives_up(monkeypatch):
    from kexue.numerics import special

    monkeypatch.setattr(special, "_FRACTION_STEPS", 3)
    with pytest.raises(RuntimeError, match=r"has not converged in 3 steps, a up to 500, b up to 500"):
        log_betainc(f64(500.0), f64(500.0), f64(0.5))


@pytest.mark.parametrize("order", [1, 2, 3, 6])
@pytest.mark.parametrize("x", [0.1, 1.0, 1.5, 30.0, 5e8])
def test_polygamma_matches_mpmath(order, x):
    assert relative(polygamma(order, f64(x)).item(), mpmath.polygamma(order, x)) < 4e-15


def test_polygamma_differentiates_to_the_next_order():
    x = f64(0.3, 2.0, 70.0).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: polygamma(1, x), (x,))
    (slope,) = torch.autograd.grad(polygamma(3, x).sum(), x)
    torch.testing.assert_close(slope, polygamma(4, x.detach()), rtol=1e-14, atol=0)


def test_polygamma_obeys_the_recurrence():
    x = torch.linspace(0.1, 9, 20, dtype=torch.float64)
    torch.testing.assert_close(polygamma(1, x), polygamma(1, x + 1) + x**-2, rtol=1e-14, atol=0)
    assert polygamma(2, x.float()).dtype == torch.float32


def test_polygamma_refuses_order_zero_and_poles():
    with pytest.raises(ValueError, match=r"order must be an integer >= 1, got 0"):
        polygamma(0, f64(1.0))
    with pytest.raises(ValueError, match=r"x must be positive, got -2"):
        polygamma(1, f64(1.0, -2.0))

"""Tests of kexue.geometry.conditioning: spectra of second moments, centering, standardizing."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kexue.geometry.conditioning import curvature, curvature_report, second_moment
from sklearn.preprocessing import StandardScaler


def table(seed, rows=40, columns=4, offset=0.0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=g, dtype=dtype)
    return torch.randn(rows, columns, generator=g, dtype=dtype) @ mix + offset * torch.randn(columns, generator=g, dtype=dtype)


def test_second_moment_matches_the_mean_of_outer_products():
    X = table(0, rows=7)
    rows = [torch.cat([x, torch.ones(1, dtype=x.dtype)]) for x in X]
    assert torch.allclose(second_moment(X), sum(torch.outer(r, r) for r in rows) / 7, rtol=1e-13)
    assert torch.allclose(second_moment(X, bias=False), sum(torch.outer(x, x) for x in X) / 7, rtol=1e-13)


def test_second_moment_is_the_hessian_of_a_quadratic_loss():
    X, y = table(1), table(2, columns=1)[:, 0]
    loss = lambda w: ((X @ w[:-1] + w[-1] - y) ** 2).mean() / 2  # noqa: E731
    hessian = torch.autograd.functional.hessian(loss, torch.randn(5, dtype=torch.float64))
    assert torch.allclose(second_moment(X), hessian, rtol=1e-12, atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.booleans())
def test_curvature_matches_numpy_eigenvalues(seed, bias):
    X = table(seed, offset=2.0)
    found, values = curvature(X, bias=bias), np.linalg.eigvalsh(second_moment(X, bias=bias).numpy())
    assert found.lambda_max == pytest.approx(values[-1], rel=1e-12)
    assert found.lambda_min == pytest.approx(values[0], rel=1e-8, abs=1e-13 * values[-1])
    assert found.trace == pytest.approx(values.sum(), rel=1e-12)
    assert found.kappa == pytest.approx(found.lambda_max / found.lambda_min, rel=1e-12)


def test_curvature_keeps_the_digits_that_a_gram_matrix_loses():
    q, _ = torch.linalg.qr(table(3, rows=30, columns=3))
    X = math.sqrt(30) * q * torch.tensor([1.0, 1e-4, 1e-9], dtype=torch.float64)
    found = curvature(X, bias=False)
    assert found.kappa == pytest.approx(1e18, rel=1e-6)  # the matrix itself has a condition number of 1e9: half the digits are left
    assert found.lambda_min == pytest.approx(1e-18, rel=1e-6)


def test_curvature_of_as_many_rows_as_unknowns_is_regular():
    X = table(7, rows=5)
    values = torch.linalg.eigvalsh(second_moment(X))
    assert curvature(X).lambda_min == pytest.approx(values[0].item(), rel=1e-8)
    assert curvature(X).kappa == pytest.approx((values[-1] / values[0]).item(), rel=1e-8)


def test_curvature_of_singular_inputs_is_infinite():
    X = table(4)
    assert curvature(torch.cat([X, X[:, :1]], 1)).kappa == math.inf
    few = curvature(X[:3])  # three rows, five unknowns
    assert few.kappa == math.inf and few.lambda_min == 0.0
    assert curvature(torch.ones(5, 1)).kappa == math.inf  # a constant column is the bias again
    assert curvature(torch.zeros(5, 1), bias=False).kappa == math.inf


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.floats(0, 100))
def test_centering_improves_both_ends_of_the_spectrum(seed, offset):
    report = curvature_report(table(seed, offset=offset))
    raw, centered = report["raw"], report["centered"]
    assert centered.lambda_max <= raw.lambda_max * (1 + 1e-12)
    assert centered.lambda_min >= raw.lambda_min * (1 - 1e-8)
    assert centered.kappa <= raw.kappa * (1 + 1e-8)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.1, 100))
def test_standardized_condition_number_is_within_the_dimension_of_any_scaling(seed, spread):
    X = table(seed)
    scale = spread ** torch.randn(4, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    best = curvature_report(X)["standardized"].kappa
    assert best == pytest.approx(curvature_report(X * scale + 3)["standardized"].kappa, rel=1e-6)
    assert best <= 4 * curvature((X - X.mean(0)) * scale, bias=False).kappa * (1 + 1e-9)


def test_curvature_report_matches_sklearn_scaler():
    X = table(5, offset=10)
    report = curvature_report(X.float())
    Z = torch.from_numpy(StandardScaler().fit_transform(X.float().double().numpy()))
    assert report["standardized"] == pytest.approx(curvature(Z), rel=1e-10)
    assert report["standardized"].trace == pytest.approx(5, rel=1e-12)
    assert report["raw"] == curvature(X.float())
    plain = curvature_report(X, bias=False)
    assert plain["centered"].lambda_max == pytest.approx(np.linalg.eigvalsh(np.cov(X.T.numpy(), bias=True))[-1], rel=1e-12)


def test_refusals():
    with pytest.raises(ValueError, match=r"X must have at least one row and one column, got shape \(0, 3\)"):
        second_moment(torch.zeros(0, 3))
    with pytest.raises(ValueError, match="X must have finite entries"):
        curvature(torch.tensor([[1.0], [math.nan]]))
    X = table(6)
    X[:, 2] = 1e6 + 0.1
    X[:, 3] = 0
    with pytest.raises(ValueError, match="no constant column, got 2 of them; the first is 2"):
        curvature_report(X)

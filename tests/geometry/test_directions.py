"""Tests of cosines between given vectors and of the dimensions estimated from them, against brute force over pairs."""

import math
import statistics

import pytest
import scipy.optimize
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kexue.geometry import directions
from kexue.geometry.directions import effective_dimension, fit_dimension, pairwise_cosines
from kexue.geometry.sphere import angle_logpdf, random_cosine, random_unit


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sample(count: int, dimension: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, dimension, generator=generator(seed), dtype=torch.float64) + 0.3


def cosine(x: torch.Tensor, y: torch.Tensor) -> float:
    return (torch.dot(x, y) / (x.norm() * y.norm())).item()


# --- cosines ----------------------------------------------------------------------------------------------------------


def test_pairwise_cosines_match_a_double_loop():
    X, Y = sample(5, 4), sample(3, 4, seed=1)
    assert pairwise_cosines(X).tolist() == pytest.approx([cosine(X[i], X[j]) for i in range(5) for j in range(i + 1, 5)], abs=1e-15)
    assert pairwise_cosines(X, Y).tolist() == pytest.approx([cosine(x, y) for x in X for y in Y], abs=1e-15)


@pytest.mark.parametrize("block", [1, 40, 1 << 22])
def test_sampled_pairs_are_uniform_over_different_rows(monkeypatch, block):
    monkeypatch.setattr(directions, "_BLOCK", block)
    X = torch.linalg.qr(sample(4, 4)).Q @ torch.diag(torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)) + 5
    size = 6000
    drawn = pairwise_cosines(X, n_pairs=size, generator=generator(2))
    assert drawn.shape == (size,)
    shares = [(drawn - value).abs().lt(1e-12).double().mean().item() for value in pairwise_cosines(X)]
    assert sum(shares) == pytest.approx(1)  # in particular no row with itself
    assert all(abs(share - 1 / 6) < 5 * math.sqrt(5 / 36 / size) for share in shares)


def test_sampled_pairs_of_two_sets_are_uniform():
    X, Y = sample(2, 3), sample(3, 3, seed=1)
    drawn = pairwise_cosines(X, Y, n_pairs=6000, generator=generator(3))
    shares = [(drawn - value).abs().lt(1e-12).double().mean().item() for value in pairwise_cosines(X, Y)]
    assert sum(shares) == pytest.approx(1)
    assert all(abs(share - 1 / 6) < 5 * math.sqrt(5 / 36 / 6000) for share in shares)


def test_pairwise_cosines_keep_type_and_gradient():
    assert pairwise_cosines(sample(3, 2).float()).dtype == torch.float32
    assert torch.autograd.gradcheck(pairwise_cosines, (sample(4, 3).requires_grad_(),))


def test_vectors_without_a_direction_are_refused():
    X = sample(4, 3)
    X[2] = 0
    for refused in (lambda: pairwise_cosines(X), lambda: effective_dimension(X)):
        with pytest.raises(ValueError, match=r"X must have finite, nonzero rows, .* row 2 has length 0"):
            refused()
    with pytest.raises(ValueError, match=r"Y must have finite, nonzero rows"):
        pairwise_cosines(sample(2, 3), X)
    with pytest.raises(ValueError, match=r"row 1 has length inf"):
        pairwise_cosines(torch.tensor([[1.0, 0.0], [math.inf, 0.0]]))
    with pytest.raises(ValueError, match=r"centred X must have finite, nonzero rows, .* row 0 "):
        effective_dimension(torch.ones(3, 2), center=True)


def test_too_few_rows_or_pairs_are_refused():
    for refused in (lambda: pairwise_cosines(sample(1, 3)), lambda: pairwise_cosines(sample(1, 3), sample(0, 3))):
        with pytest.raises(ValueError, match=r"X must have at least two rows, or X and Y one each, got 1 and 0"):
            refused()
    with pytest.raises(ValueError, match=r"n_pairs must be at least 1, got 0"):
        pairwise_cosines(sample(3, 3), n_pairs=0)
    with pytest.raises(ValueError, match=r"X must have at least two rows, got 1"):
        effective_dimension(sample(1, 3))
    assert pairwise_cosines(sample(1, 3), sample(2, 3)).shape == (2,)


# --- effective dimension ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "dimension"), [(30, 4), (9, 40), (2, 3), (7, 7)])
@pytest.mark.parametrize("center", [False, True])
def test_effective_dimension_matches_brute_force_over_pairs(count, dimension, center):
    X = sample(count, dimension)
    Z = X - X.mean(0) if center else X
    pairs = [(i, j) for i in range(count) for j in range(count) if i != j]
    unit = len(pairs) / sum(cosine(Z[i], Z[j]) ** 2 for i, j in pairs)
    squares = sum((Z[i] @ Z[i]) * (Z[j] @ Z[j]) for i, j in pairs)
    participation = (squares / sum((Z[i] @ Z[j]) ** 2 for i, j in pairs)).item()
    found = effective_dimension(X, center=center)
    assert found.unit.item() == pytest.approx(unit, rel=1e-12)
    assert found.participation.item() == pytest.approx(participation, rel=1e-12)
    row = [sum(cosine(Z[i], Z[j]) ** 2 for j in range(count) if j != i) / (count - 1) for i in range(count)]
    error = 2 * unit**2 * statistics.stdev(row) / math.sqrt(count)
    assert found.standard_error.item() == pytest.approx(error, rel=1e-9, abs=1e-9)


def test_effective_dimension_at_the_extremes():
    one = torch.ones(5, 3) * torch.arange(1, 6)[:, None]
    for X, center in ((one, False), (sample(2, 3), True)):
        assert [v.item() for v in effective_dimension(X, center=center)] == pytest.approx([1, 0, 1], abs=1e-6)  # float32 rows
    basis = effective_dimension(torch.eye(4, dtype=torch.float64))
    assert basis.unit == basis.participation == math.inf


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 12), st.integers(2, 12), st.integers(0, 10**6))
def test_effective_dimension_ignores_rotation_and_unit_ignores_lengths(count, dimension, seed):
    X = sample(count, dimension, seed)
    Q = torch.linalg.qr(sample(dimension, dimension, seed + 1)).Q
    before, after = effective_dimension(X), effective_dimension(3 * X @ Q)
    torch.testing.assert_close(torch.stack(before), torch.stack(after), rtol=1e-9, atol=1e-12)
    scale = torch.rand(count, 1, generator=generator(seed), dtype=torch.float64) + 0.1
    torch.testing.assert_close(effective_dimension(scale * X).unit, before.unit, rtol=1e-9, atol=0)
    assert before.unit >= 1 - 1e-12


def test_few_isotropic_vectors_do_not_hide_their_dimension():
    # 200 vectors in 1000 dimensions; with the i = j terms the answer would be about 1 / (1/1000 + 1/200) = 167
    found = effective_dimension(random_unit(1000, 200, generator=generator(4), dtype=torch.float64))
    pairs = 200 * 199 / 2
    assert abs(1000 / found.unit.item() - 1) < 5 * math.sqrt(2 / pairs)  # t^2 has relative variance about 2


def test_standard_error_is_that_of_repetitions():
    scales = torch.tensor([3.0, 2.0, 1.0, 1.0, 0.5], dtype=torch.float64)
    repeats = [effective_dimension(torch.randn(300, 5, generator=generator(k), dtype=torch.float64) * scales) for k in range(200)]
    spread = torch.stack([r.unit for r in repeats]).std().item()
    assert statistics.mean(r.standard_error.item() for r in repeats) == pytest.approx(spread, rel=5 / math.sqrt(2 * 200))


def test_effective_dimension_estimates_the_inverse_trace():
    scales = torch.tensor([3.0, 2.0, 1.0, 1.0, 0.5], dtype=torch.float64)
    X = torch.randn(20_000, 5, generator=generator(5), dtype=torch.float64) * scales
    assert effective_dimension(X).participation.item() == pytest.approx((scales**2).sum().item() ** 2 / (scales**4).sum().item(), rel=0.02)
    assert effective_dimension(X.float()).unit.item() == pytest.approx(effective_dimension(X).unit.item(), rel=1e-5)


# --- maximum likelihood -----------------------------------------------------------------------------------------------


def test_fit_dimension_matches_a_numerical_maximum():
    angles = torch.acos(random_cosine(9, 500, generator=generator(6)))
    best = scipy.optimize.minimize_scalar(
        lambda n: -angle_logpdf(angles, n).sum().item(), bounds=(2, 50), method="bounded", options={"xatol": 1e-9}
    )
    estimate, error = fit_dimension(angles)
    assert estimate == pytest.approx(best.x, rel=1e-6)
    n = torch.tensor(estimate, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(angle_logpdf(angles, n).sum(), n, create_graph=True)
    (curvature,) = torch.autograd.grad(slope, n)
    assert abs(slope.item()) < 1e-9
    assert error == pytest.approx((-curvature.item()) ** -0.5, rel=1e-9)


@pytest.mark.parametrize("n", [2, 3, 50, 1e4, 1e6])
def test_fit_dimension_recovers_the_dimension(n):
    estimate, error = fit_dimension(torch.acos(random_cosine(n, 20_000, generator=generator(8))))
    assert abs(estimate - n) < 4 * error
    if n >= 50:  # the Fisher information is close to 1 / (2 n^2)
        assert error == pytest.approx(n * math.sqrt(2 / 20_000), rel=0.05)


def test_fit_dimension_is_calibrated_over_repetitions():
    scores = torch.tensor(
        [
            (lambda e: (e.estimate - 20) / e.standard_error)(fit_dimension(torch.acos(random_cosine(20, 400, generator=generator(k)))))
            for k in range(200)
        ]
    )
    assert abs(scores.std().item() - 1) < 5 / math.sqrt(400)
    assert abs(scores.mean().item()) < 5 / math.sqrt(200)


def test_fit_dimension_below_two_and_for_one_angle():
    assert 1 < fit_dimension(torch.tensor([1e-6, 3.14159])).estimate < 1.2
    assert fit_dimension(torch.tensor([[1.0]])).estimate > 1


@pytest.mark.parametrize(
    ("angles", "message"), [([0.0, 1.0], "got 0"), ([1.0, 3.2], "got 3.2"), ([], "got none"), ([1.0, math.nan], "got nan")]
)
def test_fit_dimension_refuses_what_is_no_angle(angles, message):
    with pytest.raises(ValueError, match=f"angles must be at least one number strictly between 0 and pi, {message}"):
        fit_dimension(torch.tensor(angles))


def test_right_angles_alone_are_refused():
    with pytest.raises(ValueError, match="angles must not all be right angles"):
        fit_dimension(torch.full((3,), math.pi / 2, dtype=torch.float64))

"""Tests of kexue.geometry.initialization: laws of the entries, Haar measure, isometry."""

import inspect
import math

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kexue.geometry import initialization
from kexue.geometry.initialization import init_, isometry_report, orthogonal, trunc_normal_, truncated_std
from scipy import stats
from torch.nn import functional as F

KURTOSIS = {"normal": 3.0, "uniform": 9 / 5, "rademacher": 1.0}


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("law", ["normal", "uniform", "truncated", "rademacher"])
@pytest.mark.parametrize(
    ("kind", "shape", "fan"), [("fan_in", (300, 400), 400), ("fan_out", (300, 400), 300), ("xavier", (100, 1000), 550),
                               ("fan_in", (20, 30, 5, 7), 1050), ("fan_out", (20, 30, 5, 7), 700), ("xavier", (20, 30, 5, 7), 875)]
)  # fmt: skip
def test_init_variance_is_gain_squared_over_fan_for_every_law(kind, shape, fan, law, rng):
    w = init_(torch.empty(shape, dtype=torch.float64), kind, law, gain=1.7, generator=rng)
    size = w.numel()
    scaled = w * math.sqrt(fan) / 1.7
    # Standard errors: 1/sqrt(size) for the mean, at most sqrt(2/size) for the mean square; 5 of them.
    assert abs(scaled.mean().item()) < 5 / math.sqrt(size)
    assert abs(scaled.square().mean().item() - 1) < 5 * math.sqrt(2 / size)


@pytest.mark.parametrize("law", KURTOSIS)
def test_init_kurtosis_of_the_law(law, rng):
    w = init_(torch.empty(500, 1000, dtype=torch.float64), "fan_in", law, generator=rng) * math.sqrt(1000)
    assert w.pow(4).mean().item() == pytest.approx(KURTOSIS[law], abs=0.07)  # se of the normal law's: sqrt(96/5e5) = 0.014
    assert abs(w.pow(3).mean().item()) < 0.03


def test_init_laws_against_scipy(rng):
    n = 200
    w = {law: init_(torch.empty(n, n), "fan_in", law, generator=rng).flatten().double().numpy() * math.sqrt(n)
         for law in ("normal", "uniform", "truncated")}  # fmt: skip
    c = truncated_std(2.0)
    for law, distribution in (
        ("normal", stats.norm),
        ("uniform", stats.uniform(-math.sqrt(3), 2 * math.sqrt(3))),
        ("truncated", stats.truncnorm(-2, 2, scale=1 / c)),
    ):
        assert stats.kstest(w[law], distribution.cdf).pvalue > 1e-3
    assert np.abs(w["truncated"]).max() <= 2 / c * (1 + 1e-6)


def test_init_is_in_place_and_reproducible_and_leaves_the_global_stream_alone():
    w = torch.nn.Parameter(torch.zeros(5, 4))
    before = torch.random.get_rng_state()
    assert init_(w, generator=torch.Generator().manual_seed(3)) is w
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(w, init_(torch.empty(5, 4), generator=torch.Generator().manual_seed(3)))
    assert w.requires_grad and w.grad_fn is None
    q = [init_(torch.empty(5, 4), "orthogonal", generator=torch.Generator().manual_seed(3)) for _ in range(2)]
    assert torch.equal(*q)


def test_init_rademacher_takes_two_values(rng):
    w = init_(torch.empty(8, 16), "fan_in", "rademacher", gain=2.0, generator=rng)
    assert set(w.flatten().tolist()) == {-0.5, 0.5}


@pytest.mark.parametrize("shape", [(6, 10), (10, 6), (4, 3, 3, 3), (40, 3, 3, 3)])
def test_init_orthogonal_has_orthogonal_rows_or_columns_times_gain(shape, rng):
    w = init_(torch.empty(shape, dtype=torch.float64), "orthogonal", gain=3.0, generator=rng).flatten(1)
    small = w @ w.mT if w.shape[0] <= w.shape[1] else w.mT @ w
    torch.testing.assert_close(small, 9 * torch.eye(len(small), dtype=torch.float64), atol=1e-13, rtol=0)


@pytest.mark.parametrize("kernel", [(3,), (3, 5)])
def test_init_delta_makes_a_circular_convolution_an_isometry(kernel, rng):
    w = init_(torch.empty(4, 4, *kernel, dtype=torch.float64), "delta", gain=2.0, generator=rng)
    x = torch.randn(2, 4, *(8 for _ in kernel), dtype=torch.float64, generator=rng)
    padded = F.pad(x, [k // 2 for k in reversed(kernel) for _ in range(2)], mode="circular")
    y = (F.conv1d if len(kernel) == 1 else F.conv2d)(padded, w)
    torch.testing.assert_close(y.flatten(1).norm(dim=1), 2 * x.flatten(1).norm(dim=1))
    assert (w.flatten(2).norm(dim=(0, 1)).nonzero() == math.prod(kernel) // 2).all()  # only the centre tap is used


def test_init_works_in_half_precision(rng):
    w = init_(torch.empty(64, 64, dtype=torch.bfloat16), "orthogonal", generator=rng)
    assert w.dtype == torch.bfloat16 and (w.double().mT @ w.double() - torch.eye(64)).abs().max() < 0.02


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((5,), {}, r"weight must have at least 2 dimensions .* got shape \(5,\)"),
        ((5, 0), {}, "none of them 0"),
        ((5, 5), {"gain": 0.0}, "gain must be positive and finite, got 0.0"),
        ((5, 5), {"gain": -1.0}, "gain"),
        ((5, 5), {"gain": math.inf}, "gain"),
        ((5, 5), {"gain": math.nan}, "gain"),
        ((5, 5), {"kind": "orthogonal", "law": "uniform"}, "law has no meaning for kind='orthogonal'.*'uniform'"),
        ((5, 5), {"kind": "delta"}, "delta needs a convolution"),
        ((5, 5, 2), {"kind": "delta"}, r"kernel sizes are all odd, got a weight of shape \(5, 5, 2\)"),
    ],
)
def test_init_refuses(shape, options, message):
    with pytest.raises(ValueError, match=message):
        init_(torch.empty(shape), **options)


@settings(max_examples=30, deadline=None)
@given(m=st.integers(1, 12), n=st.integers(1, 12), batch=st.sampled_from([(), (1,), (3,), (2, 2), (0,)]), seed=st.integers(0, 10**6))
def test_orthogonal_is_semi_orthogonal_for_every_shape(m, n, batch, seed):
    q = orthogonal(m, n, batch, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    assert q.shape == (*batch, m, n) and q.is_contiguous()
    gram = q.mT @ q if m >= n else q @ q.mT
    torch.testing.assert_close(gram, torch.eye(min(m, n), dtype=torch.float64).expand_as(gram), atol=1e-13, rtol=0)


def test_orthogonal_equals_the_product_of_explicit_reflections():
    x = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    product, signs = torch.eye(6, dtype=torch.float64), []
    for k in range(4):
        a, e = x[k:, k], torch.eye(6 - k, dtype=torch.float64)[0]
        beta = -math.copysign(a.norm().item(), a[0].item())
        u = torch.zeros(6, dtype=torch.float64)
        u[k:] = (a - beta * e) / (a - beta * e).norm()
        product = product @ (torch.eye(6, dtype=torch.float64) - 2 * torch.outer(u, u))
        signs.append(math.copysign(1, beta))
    q = initialization._from_reflections(x)
    torch.testing.assert_close(q, product[:, :4] * torch.tensor(signs, dtype=torch.float64), atol=1e-14, rtol=0)
    torch.testing.assert_close(q[:, 0], x[:, 0] / x[:, 0].norm(), atol=1e-14, rtol=0)


def test_orthogonal_is_haar_distributed_by_entries_trace_and_determinant(rng):
    n, draws = 4, 4000
    q = orthogonal(n, n, (draws,), generator=rng, dtype=torch.float64)
    peer = torch.as_tensor(stats.ortho_group.rvs(n, size=draws, random_state=0))
    fixed = torch.tensor([0.1, -0.7, 2.0, 0.4], dtype=torch.float64)
    fixed /= fixed.norm()
    marginal = stats.beta(0.5, (n - 1) / 2)  # law of a squared coordinate of a uniform unit vector
    for entry in (q[:, 0, 0], q[:, 3, 3], q[:, 3, 0], q[:, 0, 3], q @ fixed @ fixed):
        assert stats.kstest(entry.square().numpy(), marginal.cdf).pvalue > 1e-3
        assert abs(entry.mean().item()) < 5 / math.sqrt(n * draws)
    trace, peer_trace = (a.diagonal(dim1=1, dim2=2).sum(1).numpy() for a in (q, peer))
    assert stats.ks_2samp(trace, peer_trace).pvalue > 1e-3
    assert abs((torch.linalg.det(q) > 0).double().mean().item() - 0.5) < 5 * 0.5 / math.sqrt(draws)  # both components of O(n)


def test_orthogonal_survives_a_gaussian_vector_that_is_exactly_zero():
    assert torch.equal(initialization._from_reflections(torch.zeros(1, 1)).abs(), torch.ones(1, 1))
    x = torch.randn(3, 3, dtype=torch.float64)
    x[2, 2] = 0.0
    q = initialization._from_reflections(x)
    torch.testing.assert_close(q.mT @ q, torch.eye(3, dtype=torch.float64), atol=1e-14, rtol=0)


def test_orthogonal_accuracy_in_both_precisions(rng):
    for dtype in (torch.float32, torch.float64):
        q = orthogonal(128, 128, (2,), generator=rng, dtype=dtype)
        assert q.dtype == dtype
        assert (q.mT @ q - torch.eye(128, dtype=dtype)).abs().max() < 20 * torch.finfo(dtype).eps
    assert orthogonal(2, 2).dtype == torch.get_default_dtype()


def test_orthogonal_uses_the_generator_and_no_matrix_of_a_batch_repeats():
    a, b = (orthogonal(3, 3, (2,), generator=torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(a, b) and not torch.allclose(a[0], a[1])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0, 3), ValueError, "m and n must be positive, got m=0, n=3"),
        ((3, 0), ValueError, "m and n must be positive"),
        ((3, 3, (2, -1)), ValueError, r"no negative size, got \(2, -1\)"),
    ],
)
def test_orthogonal_refuses_sizes(arguments, error, message):
    with pytest.raises(error, match=message):
        orthogonal(*arguments)


@pytest.mark.parametrize("dtype", [torch.float16, torch.int64, torch.complex64])
def test_orthogonal_refuses_other_dtypes(dtype):
    with pytest.raises(TypeError, match=r"dtype must be torch.float32 or torch.float64"):
        orthogonal(2, 2, dtype=dtype)


def test_truncated_std_matches_mpmath_at_all_sizes():
    for a in (1e-12, 1e-8, 1.1e-8, 1e-4, 0.1, 1.0, 2.0, 5.0, 30.0):
        with mpmath.workdps(60):
            t = mpmath.mpf(a)
            exact = mpmath.sqrt(1 - 2 * t * mpmath.npdf(t) / mpmath.erf(t / mpmath.sqrt(2)))
        assert truncated_std(a) == pytest.approx(float(exact), rel=1e-14, abs=0)
    assert truncated_std(2.0) == pytest.approx(0.8796256610342398, rel=1e-15)
    assert truncated_std(2.0) == pytest.approx(stats.truncnorm(-2, 2).std(), rel=1e-12)
    assert truncated_std(math.inf) == 1.0 and truncated_std(1e-300) == pytest.approx(1e-300 / math.sqrt(3), abs=0)


@pytest.mark.parametrize("a", [0.0, -1.0, math.nan])
def test_truncated_std_refuses(a):
    with pytest.raises(ValueError, match="a must be positive"):
        truncated_std(a)


def test_isometry_report_of_a_hand_made_matrix():
    report = isometry_report(torch.tensor([[2.0, 0.0], [0.0, 0.5], [0.0, 0.0]]))
    # W^T W - I = diag(3, -3/4)
    assert report == pytest.approx(
        {"entry_mse": (9 + 9 / 16) / 4, "diagonal_mse": (9 + 9 / 16) / 2, "frobenius": math.sqrt(9 + 9 / 16), "operator": 3.0,
         "s_min": 0.5, "s_max": 2.0}
    )  # fmt: skip
    assert isometry_report(torch.tensor([[0.1, 0.0], [0.0, 0.5]]))["operator"] == pytest.approx(0.99)


def test_isometry_report_of_a_wide_matrix_knows_the_kernel(rng):
    report = isometry_report(orthogonal(3, 7, generator=rng, dtype=torch.float64))
    assert report["s_min"] == 0 and report["operator"] == 1.0
    assert report["s_max"] == pytest.approx(1) and report["frobenius"] == pytest.approx(2.0)  # sqrt(7 - 3)


def test_isometry_report_distinguishes_diagonal_and_off_diagonal():
    report = isometry_report(torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
    assert report["diagonal_mse"] == 0 and report["entry_mse"] == pytest.approx(0.5)


def test_isometry_report_expectations_of_the_fourth_moment_formula(rng):
    n, draws = 40, 200
    for law, k in KURTOSIS.items():
        reports = [isometry_report(init_(torch.empty(n, n), "fan_in", law, generator=rng)) for _ in range(draws)]
        for key, expected in (("entry_mse", (n + k - 2) / n**2), ("diagonal_mse", (k - 1) / n)):
            values = np.array([report[key] for report in reports])
            assert abs(values.mean() - expected) <= 5 * values.std() / math.sqrt(draws) + 1e-12


def test_isometry_report_refuses():
    for bad in (torch.empty(0, 3), torch.tensor([[math.nan]])):
        with pytest.raises(ValueError, match="non-empty and finite"):
            isometry_report(bad)


@pytest.mark.parametrize(("options", "message"), [({"kind": "fan"}, "got kind='fan'"), ({"law": "gauss"}, "law='gauss'")])
def test_init_refuses_unknown_words_without_a_type_checker(options, message):
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(init_)(torch.empty(3, 3), **options)


@pytest.mark.parametrize("kind", ["fan_in", "orthogonal"])
def test_init_refuses_an_integer_weight(kind):
    with pytest.raises(TypeError, match=r"floating-point type, got torch\.int64"):
        init_(torch.zeros(3, 3, dtype=torch.int64), kind)


@pytest.mark.parametrize("a", [0.5, 2.0, 4.0, 4.5])
@pytest.mark.parametrize("correct", [False, True])
def test_trunc_normal_has_the_truncated_law(a, correct):
    w = trunc_normal_(torch.empty(200, 500), 0.02, a, correct=correct, generator=torch.Generator().manual_seed(1))
    nominal = 0.02 / truncated_std(a) if correct else 0.02
    assert stats.kstest(w.flatten().numpy(), stats.truncnorm(-a, a, scale=nominal).cdf).pvalue > 1e-4
    assert w.abs().max() <= a * nominal * (1 + 1e-6)
    assert w.std().item() == pytest.approx(0.02 if correct else 0.02 * truncated_std(a), rel=0.01)  # 4.5 standard errors of 100 000 draws


def test_trunc_normal_cuts_at_two_and_redraws_only_what_is_outside():
    w = trunc_normal_(torch.empty(1000, 100), 1.0, generator=torch.Generator().manual_seed(0))
    assert 1.99 < w.abs().max() <= 2
    plain = torch.empty(1000, 1000).normal_(generator=torch.Generator().manual_seed(2))
    cut = trunc_normal_(torch.empty(1000, 1000), 1.0, 4.2, generator=torch.Generator().manual_seed(2))
    inside = plain.abs() <= 4.2
    assert torch.equal(cut[inside], plain[inside]) and 0 < (~inside).sum() < 100 and cut.abs().max() <= 4.2
    assert torch.equal(
        trunc_normal_(torch.empty(5, 5), 1.0, math.inf, generator=torch.Generator().manual_seed(3)),
        torch.empty(5, 5).normal_(generator=torch.Generator().manual_seed(3)),
    )


def test_trunc_normal_keeps_dtype_and_identity():
    w = torch.empty(3, 4, dtype=torch.float64, requires_grad=True)
    assert trunc_normal_(w, 0.1) is w and w.dtype == torch.float64 and w.requires_grad
    assert trunc_normal_(torch.ones(3, 3), 0.0).abs().max() == 0


def test_trunc_normal_refuses():
    with pytest.raises(TypeError, match=r"weight must be of a floating-point type, got torch\.int64"):
        trunc_normal_(torch.zeros(3, dtype=torch.int64), 1.0)
    for std in (-0.1, math.inf, math.nan):
        with pytest.raises(ValueError, match="std must be finite and not negative"):
            trunc_normal_(torch.zeros(3), std)
    for a in (0.0, -2.0, math.nan):
        with pytest.raises(ValueError, match="a must be positive, in standard deviations"):
            trunc_normal_(torch.zeros(3), 1.0, a)

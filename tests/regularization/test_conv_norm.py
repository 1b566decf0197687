"""Tests of kexue.regularization.conv_norm: dense matrices from identity images, closed forms, laws, gradients, refusals."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kexue.regularization.conv_norm import conv2d_bound, conv2d_norm, conv2d_singular_values, four_reshapes_bound, reshape_norm

# out, channels, height, width, image, stride
SHAPES = [
    (2, 3, 3, 3, 6, 1),
    (3, 2, 2, 2, 5, 1),
    (2, 2, 3, 3, 6, 2),
    (2, 3, 4, 2, 6, 3),
    (1, 1, 3, 3, 3, 1),
    (2, 2, 5, 3, 6, 2),
    (5, 1, 2, 2, 4, 4),
]


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def dense(kernel, n, mode="circular", stride=1):
    """The matrix of the layer, column by column from identity images, "same" size."""
    _, channels, height, width = kernel.shape
    images = torch.eye(channels * n * n, dtype=kernel.dtype).reshape(-1, channels, n, n)
    top, left = (height - 1) // 2, (width - 1) // 2
    padded = torch.nn.functional.pad(images, (left, width - 1 - left, top, height - 1 - top), mode=mode)
    return torch.nn.functional.conv2d(padded, kernel, stride=stride).flatten(1).T


def norm(matrix):
    return torch.linalg.matrix_norm(matrix, 2)


@pytest.mark.parametrize("shape", SHAPES)
def test_singular_values_match_svd_of_the_dense_matrix(shape):
    *sides, n, stride = shape
    kernel = normal(*sides)
    values = conv2d_singular_values(kernel, n, stride=stride)
    assert values.shape == (n // stride, n // stride, min(sides[0], stride**2 * sides[1]))
    expected = torch.linalg.svdvals(dense(kernel, n, stride=stride))
    torch.testing.assert_close(values.flatten().sort(descending=True).values, expected[: values.numel()], rtol=0, atol=1e-12)
    assert expected[values.numel() :].abs().sum() < 1e-10


def test_singular_values_sit_at_their_frequencies():
    kernel = torch.zeros(1, 1, 2, 1, dtype=torch.float64)
    kernel[0, 0, :, 0] = torch.tensor([1.0, -1.0])  # difference along the rows: 2 |sin(omega_1 / 2)|
    expected = 2 * torch.sin(math.pi * torch.arange(8, dtype=torch.float64) / 8).abs()
    torch.testing.assert_close(conv2d_singular_values(kernel, 8)[..., 0], expected[:, None].expand(8, 8), rtol=0, atol=1e-14)


@pytest.mark.parametrize("shape", SHAPES)
def test_norm_is_the_largest_of_them_and_bound_is_above_every_padding(shape):
    *sides, n, stride = shape
    kernel = normal(*sides, seed=1)
    circular, zeros = norm(dense(kernel, n, stride=stride)), norm(dense(kernel, n, "constant", stride=stride))
    torch.testing.assert_close(conv2d_norm(kernel, n, stride=stride), circular, rtol=1e-13, atol=0)
    assert conv2d_bound(kernel, stride=stride) >= max(circular, zeros)


@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3))
@settings(max_examples=30, deadline=None)
def test_zero_padding_is_a_window_of_a_larger_torus(seed, height, width, out, channels):
    kernel, n = normal(out, channels, height, width, seed=seed), 4
    torus = conv2d_norm(kernel, n + max(height, width) // 2)
    assert norm(dense(kernel, n, "constant")) <= torus * (1 + 1e-12)
    assert torus <= conv2d_bound(kernel) * (1 + 1e-12)


@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 3))
@settings(max_examples=30, deadline=None)
def test_reshaped_norm_and_four_reshapes_bracket_the_norm(seed, side, channels):
    kernel = normal(2, channels, side, side, seed=seed)
    fine = conv2d_norm(kernel, 120)
    assert reshape_norm(kernel) <= fine * (1 + 1e-12)
    assert fine <= four_reshapes_bound(kernel) * (1 + 1e-12) <= side * reshape_norm(kernel) * (1 + 1e-12) ** 2


@pytest.mark.parametrize("n", [8, 24])
def test_all_ones_kernel_has_closed_forms(n):
    ones = torch.ones(1, 1, 3, 3, dtype=torch.float64)
    assert reshape_norm(ones).item() == pytest.approx(3, rel=1e-14)
    assert four_reshapes_bound(ones).item() == pytest.approx(9, rel=1e-14)
    assert conv2d_norm(ones, n).item() == pytest.approx(9, rel=1e-14)
    assert norm(dense(ones, n, "constant")).item() == pytest.approx((1 + 2 * math.cos(math.pi / (n + 1))) ** 2, rel=1e-12)
    # the maximum is on the grid, so the certificate is the grid value over its cosine
    assert conv2d_bound(ones).item() == pytest.approx(9 / math.cos(2 * math.pi / 48), rel=1e-13)
    assert conv2d_bound(ones, grid=10).item() == pytest.approx(9 / math.cos(2 * math.pi / 10), rel=1e-13)


def test_bound_rounds_its_grid_up_to_the_stride_and_counts_both_sides():
    kernel = torch.ones(1, 1, 2, 4, dtype=torch.float64)
    assert conv2d_bound(kernel).item() == pytest.approx(8 / math.cos(math.pi * 4 / 128), rel=1e-13)
    # stride 3: at frequency 0 nine aliases of the row sums, and the grid 20 becomes 21
    assert conv2d_bound(kernel, stride=3, grid=20).item() == pytest.approx(
        conv2d_norm(kernel, 21, stride=3).item() / math.cos(math.pi * 4 / 42), rel=1e-13
    )
    assert conv2d_bound(kernel, stride=3, grid=21) == conv2d_bound(kernel, stride=3, grid=20)


def test_bound_of_one_by_one_kernels_is_the_matrix_norm():
    kernel = normal(4, 3, 1, 1)
    torch.testing.assert_close(conv2d_bound(kernel), norm(kernel[:, :, 0, 0]), rtol=1e-14, atol=0)


def test_bound_slack_falls_with_the_square_of_the_grid():
    kernel = normal(3, 3, 3, 3, seed=2)
    sup = conv2d_norm(kernel, 720)
    slack = [(conv2d_bound(kernel, grid=m) / sup - 1).item() for m in (12, 24, 48, 96)]
    assert all(s >= -1e-6 for s in slack) and slack[2] < 0.02
    assert slack[3] < slack[0] / 20  # 64 if the grid maximum were exact


def test_four_reshapes_follow_their_definition():
    kernel = normal(2, 3, 2, 4, seed=3)
    k = kernel.numpy()
    matrices = [
        k.reshape(2, -1),
        k.transpose(0, 2, 1, 3).reshape(4, -1),
        k.transpose(0, 3, 1, 2).reshape(8, -1),
        k.transpose(0, 2, 3, 1).reshape(16, 3),
    ]
    norms = [norm(torch.from_numpy(m.copy())).item() for m in matrices]
    assert four_reshapes_bound(kernel).item() == pytest.approx(math.sqrt(8) * min(norms), rel=1e-12)
    # each of the four is the smallest for some kernel, so none can be left out: an identity is flat in one reshape only
    eye = torch.eye(9, dtype=torch.float64)
    for identity in (eye.reshape(9, 1, 3, 3), eye.reshape(1, 3, 3, 9).movedim(-1, 1)):
        assert four_reshapes_bound(identity).item() == pytest.approx(3, rel=1e-12)
    for rows in ((0, 2), (0, 3)):
        columns = [axis for axis in (1, 2, 3) if axis not in rows]
        order = [*rows, *columns]
        identity = torch.eye(9, dtype=torch.float64).reshape(3, 3, 3, 3).permute(*(order.index(axis) for axis in range(4)))
        assert four_reshapes_bound(identity).item() == pytest.approx(3, rel=1e-12)


def test_leading_axes_are_a_batch():
    kernels = normal(2, 3, 2, 2, 3, 3, seed=4)
    for function in (reshape_norm, four_reshapes_bound, conv2d_bound, lambda k: conv2d_norm(k, 6), lambda k: conv2d_singular_values(k, 4)):
        single = torch.stack([torch.stack([function(k) for k in row]) for row in kernels])
        torch.testing.assert_close(function(kernels), single, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_of_norm_and_bound(stride):
    kernel = normal(3, 2, 3, 3, seed=5).requires_grad_()
    assert torch.autograd.gradcheck(lambda k: conv2d_norm(k, 6, stride=stride), kernel)
    assert torch.autograd.gradcheck(lambda k: conv2d_bound(k, stride=stride, grid=12), kernel)


def test_zero_kernel_has_norm_zero_and_gradient_zero():
    kernel = torch.zeros(2, 2, 3, 3, requires_grad=True)
    for function in (reshape_norm, conv2d_bound, lambda k: conv2d_norm(k, 5)):
        value = function(kernel)
        (gradient,) = torch.autograd.grad(value, kernel)
        assert value == 0 and (gradient == 0).all()


@pytest.mark.parametrize("scale", [1e-150, 1e150])
def test_extreme_sizes_neither_overflow_nor_underflow(scale):
    kernel = normal(2, 2, 3, 3, seed=6)
    torch.testing.assert_close(conv2d_bound(scale * kernel) / scale, conv2d_bound(kernel), rtol=1e-13, atol=0)


def test_dtypes_are_kept_and_half_precision_is_computed_in_single():
    kernel = normal(2, 2, 3, 3, seed=7)
    assert conv2d_norm(kernel.float(), 6).dtype == torch.float32
    half = conv2d_norm(kernel.half(), 6)
    assert half.dtype == torch.float16
    assert half.item() == pytest.approx(conv2d_norm(kernel.half().double(), 6).item(), rel=1e-3)  # one rounding to 11 bits
    assert conv2d_singular_values(kernel.half(), 6).dtype == torch.float32


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda k: conv2d_norm(k, 2), r"size must be at least that of the kernel, \(3, 3\), got 2"),
        (lambda k: conv2d_norm(k, 5, stride=2), "divide size = 5, got 2"),
        (lambda k: conv2d_norm(k, 4, stride=0), "stride must be at least 1 and divide size = 4, got 0"),
        (lambda k: conv2d_singular_values(k[:0], 4), "kernel must have no empty axis"),
        (lambda k: conv2d_bound(k / 0), "kernel must have finite entries"),
        (lambda k: conv2d_bound(k, stride=0), "stride must be at least 1, got 0"),
        (lambda k: conv2d_bound(k, grid=4), "grid must exceed 4 and reach 3 for this kernel, got 4"),
        (lambda k: conv2d_bound(k[..., :1, :], grid=2), "grid must exceed 2 and reach 3"),
        (lambda k: reshape_norm(k / 0), "finite"),
    ],
)
def test_refusals_name_the_argument(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.ones(1, 1, 3, 3))

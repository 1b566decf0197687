"""Tests of kexue.regularization.dropout: moments, torch's own dropout, ties, extremes, refusals; sampling at test time."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from kexue.regularization.dropout import Dropout, dropout, mc_dropout, noise_shapes
from torch import nn

RATES = (0.1, 0.5, 0.9)
plain_dropout = getattr(dropout, "__wrapped__", dropout)  # beartype would speak first


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=seeded(seed), dtype=dtype)


@pytest.mark.parametrize("p", RATES)
def test_dropout_values_are_zero_or_x_over_q_at_the_right_rate(p):
    x = normal(200, 500) + 10
    y = dropout(x, p, generator=seeded(1))
    kept = y != 0
    assert torch.equal(y[kept], x[kept] / (1 - p))
    # 100 000 draws: 5 standard errors of the share
    assert abs(kept.double().mean() - (1 - p)) < 5 * math.sqrt(p * (1 - p) / x.numel())


@pytest.mark.parametrize("kind", ["bernoulli", "gaussian"])
@pytest.mark.parametrize("p", RATES)
def test_dropout_moments_match_the_formula(kind, p):
    n = 200_000
    y = dropout(torch.full((n,), 3.0, dtype=torch.float64), p, generator=seeded(2), kind=kind)
    variance = 9 * p / (1 - p)
    assert abs(y.mean() - 3) < 5 * math.sqrt(variance / n)
    fourth = (y - y.mean()).pow(4).mean()
    spread = (fourth - variance**2).clamp(min=0) / n + (variance * 10 / n) ** 2  # at p = 1/2 the first term vanishes
    assert abs(y.var() - variance) < 5 * spread.sqrt()
    if kind == "gaussian":
        assert len(y.unique()) > n - 10 and abs(((y - 3) / math.sqrt(variance)).pow(4).mean() - 3) < 5 * math.sqrt(96 / n)


@pytest.mark.parametrize("shape", [(6,), (3, 4), (3, 4, 5), (2, 3, 4, 2)])
def test_dropout_noise_is_tied_exactly_along_axes_of_one(shape):
    x = torch.ones(shape)
    for noise_shape in noise_shapes(shape):
        y = dropout(x, 0.5, noise_shape=noise_shape, generator=seeded(3))
        tied = [axis for axis, (s, n) in enumerate(zip(noise_shape, shape, strict=True)) if s != n]
        for axis in tied:
            assert torch.equal(y, y.narrow(axis, 0, 1).expand(shape))
        drawn = torch.rand(noise_shape, generator=seeded(3))  # as many numbers as the mask has entries, no more
        assert torch.equal(y, torch.where(drawn < 0.5, 2.0, 0.0).expand(shape))


def test_dropout_none_entries_mean_the_full_size():
    x = torch.ones(7, 5, 3)
    for free, full in [((None, 1, None), (7, 1, 3)), ((None, None, 1), (7, 5, 1)), ((None, None, None), None), ((1, None, 3), (1, 5, 3))]:
        assert torch.equal(dropout(x, 0.4, noise_shape=free, generator=seeded(4)), dropout(x, 0.4, noise_shape=full, generator=seeded(4)))


@pytest.mark.parametrize("kind", ["bernoulli", "gaussian"])
def test_dropout_untied_entries_are_uncorrelated_and_tied_ones_are_one(kind):
    n, k = 40_000, 5
    x = torch.ones(n, k, dtype=torch.float64)
    free = dropout(x, 0.5, generator=seeded(5), kind=kind).sum(1).var()
    tied = dropout(x, 0.5, noise_shape=(None, 1), generator=seeded(5), kind=kind).sum(1).var()
    # k and k^2; relative standard error of a variance is at most sqrt(2 / n) here (normal) and less for a two-point law
    assert abs(free / k - 1) < 5 * math.sqrt(2 / n) and abs(tied / k**2 - 1) < 5 * math.sqrt(2 / n)


def test_dropout_agrees_with_torch_in_distribution():
    x = torch.ones(100_000)
    torch.manual_seed(6)
    theirs, ours = F.dropout(x, 0.3), dropout(x, 0.3, generator=seeded(6))
    assert torch.equal(theirs.unique(), ours.unique())
    assert abs((theirs != 0).double().mean() - (ours != 0).double().mean()) < 5 * math.sqrt(2 * 0.21 / 1e5)
    channels, images = torch.ones(400, 50, 9), torch.ones(400, 50, 3, 3)
    for peer, data, dims in [(F.dropout1d, channels, 1), (F.dropout2d, images, 2)]:
        theirs, ours = peer(data, 0.3).flatten(2), Dropout.spatial(0.3, dims, generator=seeded(7))(data).flatten(2)
        assert (theirs == theirs[..., :1]).all() and (ours == ours[..., :1]).all()
        assert abs((theirs != 0).double().mean() - (ours != 0).double().mean()) < 5 * math.sqrt(2 * 0.21 / 2e4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("p", [0.1, 0.3, 0.7])
def test_dropout_keeps_the_mean_in_every_dtype(dtype, p):
    x = (1 + torch.rand(200_000, generator=seeded(8), dtype=torch.float64)).to(dtype)
    y = dropout(x, p, generator=seeded(9))
    assert y.dtype == dtype
    kept = y != 0
    ratio = y[kept].double() * (1 - p) / x[kept].double()
    # rounding errors are at most eps / 2 each and average out; a rounded 1/q (as in torch 2.13 on the CPU) would leave 1.6e-3 in bfloat16.
    # Half precision is divided by q as a float32; float32 and float64 by q in their own precision, which is eps / 2 off at most.
    assert abs(ratio.mean() - 1) < (0.05 if dtype.itemsize == 2 else 0.6) * torch.finfo(dtype).eps
    assert dropout(x, p, kind="gaussian", generator=seeded(9)).dtype == dtype


def test_dropout_drops_infinities_to_zero_with_gradient_zero():
    x = torch.full((64,), math.inf, dtype=torch.float64, requires_grad=True)
    for p in (0.5, 1.0):
        y = dropout(x, p, generator=seeded(10))
        assert set(y.tolist()) <= {0.0, math.inf} and 0.0 in y.tolist()
        (gradient,) = torch.autograd.grad(y.sum(), x)
        assert torch.equal(gradient, torch.where(y == 0, 0.0, 1 / (1 - p) if p < 1 else 0.0))


def test_dropout_gradient_is_the_mask_over_q():
    for kind in ("bernoulli", "gaussian"):
        x = normal(4, 5, seed=11).requires_grad_()
        assert torch.autograd.gradcheck(lambda x, kind=kind: dropout(x, 0.3, noise_shape=(4, 1), generator=seeded(0), kind=kind), x)
    y = dropout(x, 0.3, generator=seeded(12))
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert torch.allclose(gradient, (y != 0).double() / 0.7)


def test_dropout_edges_identity_zero_empty_scalar_and_strides():
    x = normal(3, 4)
    assert dropout(x, 0.0) is x and dropout(x, 0.7, training=False) is x and dropout(x, 0.0, kind="gaussian") is x
    assert torch.equal(dropout(x, 1.0), torch.zeros_like(x))
    assert dropout(torch.zeros(0, 3), 0.5).shape == (0, 3)
    assert dropout(torch.tensor(1.0), 0.5, noise_shape=()).shape == ()
    assert torch.equal(dropout(x.T, 0.5, generator=seeded(1)), dropout(x.T.contiguous(), 0.5, generator=seeded(1)))


def test_dropout_generator_reproduces_and_the_global_one_is_the_default():
    x = torch.ones(50)
    assert torch.equal(dropout(x, 0.5, generator=seeded(1)), dropout(x, 0.5, generator=seeded(1)))
    assert not torch.equal(dropout(x, 0.5, generator=seeded(1)), dropout(x, 0.5, generator=seeded(2)))
    torch.manual_seed(3)
    first = dropout(x, 0.5)
    torch.manual_seed(3)
    assert torch.equal(first, dropout(x, 0.5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"p": -0.1}, r"p, the probability to drop, must lie in \[0, 1\], got -0.1"),
        ({"p": 1.5}, r"must lie in \[0, 1\], got 1.5"),
        ({"p": math.nan}, r"must lie in \[0, 1\], got nan"),
        ({"p": 1.0, "kind": "gaussian"}, r"must lie in \[0, 1\), got 1.0"),
        ({"p": 0.5, "kind": "uniform"}, "kind must be 'bernoulli' or 'gaussian', got 'uniform'"),
        ({"p": 0.5, "noise_shape": (3, 4)}, r"one entry for each of the 3 axes of x, got \(3, 4\)"),
        ({"p": 0.5, "noise_shape": (3, 2, 5)}, r"must be 1, None or the size of x \(3, 4, 5\), got \(3, 2, 5\)"),
        ({"p": 0.5, "noise_shape": (3, -1, 5)}, "entries of noise_shape"),
        ({"p": 0.0, "noise_shape": (3, 0, 5)}, "entries of noise_shape"),
    ],
)
def test_dropout_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        plain_dropout(torch.ones(3, 4, 5), **options)


def test_dropout_refuses_integers():
    with pytest.raises(TypeError, match=r"x must be of a floating dtype, .* got torch.int64"):
        plain_dropout(torch.ones(3, dtype=torch.int64), 0.5)


def test_module_follows_its_mode_and_passes_everything_on():
    x = torch.ones(8, 6, 4)
    for kind in ("bernoulli", "gaussian"):
        layer = Dropout(0.3, (None, 1, None), generator=seeded(1), kind=kind)
        assert torch.equal(layer(x), dropout(x, 0.3, noise_shape=(8, 1, 4), generator=seeded(1), kind=kind))
        assert layer.eval()(x) is x
    assert repr(layer) == "Dropout(p=0.3, noise_shape=(None, 1, None), kind='gaussian')"


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (Dropout.token(0.2), (None, None, 1)),
        (Dropout.locked(0.2), (None, 1, None)),
        (Dropout.spatial(0.2, 1), (None, None, 1)),
        (Dropout.spatial(0.2), (None, None, 1, 1)),
        (Dropout.spatial(0.2, 3), (None, None, 1, 1, 1)),
    ],
)
def test_module_presets(layer, expected):
    assert layer.noise_shape == expected and layer.p == 0.2 and layer.kind == "bernoulli" and layer.training
    assert Dropout.token(0.2, generator=(g := seeded())).generator is g and Dropout.locked(0.2, generator=g).generator is g


def test_module_refuses_when_it_is_made():
    with pytest.raises(ValueError, match="got 2"):
        Dropout(2.0)
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        Dropout(1.0, kind="gaussian")


def test_noise_shapes_are_the_eight_of_a_rank_three_tensor_and_no_others():
    found = noise_shapes((3, 4, 5))
    assert found[0] == (3, 4, 5) and found[-1] == (1, 1, 1) and len(set(found)) == 8
    x, accepted = torch.ones(3, 4, 5), []
    for candidate in itertools.product(range(7), repeat=3):
        try:
            dropout(x, 0.5, noise_shape=candidate)
        except ValueError:
            continue
        accepted.append(candidate)
    assert sorted(accepted) == sorted(found)
    assert [sum(s == 1 for s in shape) for shape in found] == [0, 1, 1, 1, 2, 2, 2, 3]


@pytest.mark.parametrize(("shape", "count"), [((), 1), ((1,), 1), ((7,), 2), ((3, 1, 5), 4), ((2, 2), 4), ((2, 3, 4, 5), 16)])
def test_noise_shapes_counts_axes_longer_than_one(shape, count):
    assert len(noise_shapes(shape)) == count


def test_mc_dropout_matches_the_moments_of_a_linear_layer():
    p, n = 0.3, 4000
    for layer in (Dropout(p, generator=seeded(1)), nn.Dropout(p)):
        torch.manual_seed(1)
        model = nn.Sequential(layer, nn.Linear(6, 2, bias=False)).double()
        x = normal(3, 6)
        mean, variance = mc_dropout(model, x, n)
        exact = p / (1 - p) * x.square() @ model[1].weight.square().T
        assert ((mean - model.eval()(x)).abs() < 5 * (exact / n).sqrt()).all()
        assert ((variance / exact - 1).abs() < 5 * math.sqrt(3 / n)).all()  # kurtosis of a sum of two-point variables stays below 4


def test_mc_dropout_is_the_plain_mean_and_unbiased_variance():
    model = nn.Sequential(nn.Linear(3, 4), Dropout(0.5, generator=seeded(2))).double()
    x = normal(5, 3)
    found = mc_dropout(model, x, 7)
    model[1].generator = seeded(2)
    with torch.no_grad():
        samples = torch.stack([model(x) for _ in range(7)])
    assert torch.allclose(found.mean, samples.mean(0), rtol=1e-12)
    assert torch.allclose(found.variance, samples.var(0), rtol=1e-12)
    assert not found.mean.requires_grad


def test_mc_dropout_leaves_batch_norm_alone_and_restores_every_mode():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, 2), Dropout(0.5))
    model.train()
    model[3].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    seen = []
    model[0].register_forward_hook(lambda module, *_: seen.append((module.training, model[1].training, model[3].training)))
    mc_dropout(model, torch.randn(8, 3), 3)
    assert seen == [(False, True, True)] * 3
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [m.training for m in model] == [True, True, True, False] and model.training
    model.eval()
    with pytest.raises(RuntimeError):
        mc_dropout(model, torch.randn(8, 4), 3)
    assert not any(m.training for m in model.modules())  # restored after an error, too


def test_mc_dropout_refuses():
    with pytest.raises(ValueError, match="n must be at least 2 for a variance, got 1"):
        mc_dropout(nn.Dropout(), torch.ones(2), 1)
    with pytest.raises(ValueError, match="model must have a dropout module, got none"):
        mc_dropout(nn.Linear(2, 2), torch.ones(2, 2), 5)

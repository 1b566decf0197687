"""Tests of kexue.regularization.adversarial: dual norms, steps, projections and attacks."""

import inspect
import itertools
import math

import pytest
import torch
import torchattacks
from art.attacks.evasion import FastGradientMethod, ProjectedGradientDescentNumpy
from art.estimators.classification import PyTorchClassifier
from foolbox import PyTorchModel
from foolbox.attacks import L2PGD, LinfPGD
from hypothesis import given, settings
from hypothesis import strategies as st
from kexue.regularization.adversarial import dual_norm, fast_gradient, pgd, project, steepest_direction
from torch import nn
from torch.nn.functional import cross_entropy, softplus

NORMS = [1, 1.5, 2, 3, math.inf]


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def images(count=6, seed=0):
    return torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def net(seed=0, inputs=16):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, 12), nn.Softplus(), nn.Linear(12, 4)).double()


def entropy(model, y):
    return lambda x: cross_entropy(model(x), y, reduction="none")


def raw(function):
    """The function without run-time type checks, which would refuse before the function does."""
    return inspect.unwrap(function)


def lengths(x, p):
    return torch.linalg.vector_norm(x.flatten(1), p, dim=1)


# --- dual_norm and steepest_direction


@pytest.mark.parametrize("p", NORMS)
def test_duality_oracle(p):
    g = normal(20, 3, 5)
    step = steepest_direction(g, p)
    q = {1: math.inf, math.inf: 1}.get(p) or p / (p - 1)
    assert torch.allclose(lengths(step, p), torch.ones(20, dtype=g.dtype), rtol=1e-13)
    assert torch.allclose((g * step).flatten(1).sum(1), lengths(g, q), rtol=1e-13)
    assert torch.allclose(dual_norm(g, p), lengths(g, q), rtol=1e-13)


@pytest.mark.parametrize("p", NORMS)
def test_no_other_direction_is_steeper_law(p):
    g, others = normal(1, 6), normal(20_000, 6, seed=1)
    others = others / lengths(others, p)[:, None]
    products = others @ g[0]
    assert products.max() <= dual_norm(g, p)[0] * (1 + 1e-12)
    assert products.max() > 0.8 * dual_norm(g, p)[0]  # the bound is not loose either


def test_steepest_direction_closed_forms():
    g = torch.tensor([[3.0, -4.0, 0.0]])
    assert torch.equal(steepest_direction(g, 1), torch.tensor([[0.0, -1.0, 0.0]]))
    assert torch.equal(steepest_direction(g, math.inf), torch.tensor([[1.0, -1.0, 0.0]]))
    assert torch.allclose(steepest_direction(g, 2), g / 5)
    assert dual_norm(g, 2).item() == 5
    assert dual_norm(g, 1).item() == 4
    assert dual_norm(g, math.inf).item() == 7
    tie = torch.tensor([[2.0, -2.0]])
    assert torch.equal(steepest_direction(tie, 1), torch.tensor([[1.0, 0.0]]))


@given(st.sampled_from(NORMS), st.floats(-35, 35), st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_scale_law(p, exponent, seed):
    g = normal(3, 7, seed=seed, dtype=torch.float32)
    c = 10.0**exponent
    assert torch.allclose(steepest_direction(c * g, p), steepest_direction(g, p), rtol=1e-4, atol=1e-6)
    assert torch.allclose(dual_norm(c * g, p).double(), c * dual_norm(g, p).double(), rtol=1e-5)


@pytest.mark.parametrize("p", NORMS)
def test_extremes_zero_tiny_half_and_rank_one(p):
    g = torch.stack([torch.zeros(4), torch.full((4,), 1e-44), torch.tensor([1e38, -1e38, 0.0, 1e38])])
    step = steepest_direction(g, p)
    assert torch.equal(step[0], torch.zeros(4))
    assert dual_norm(g, p)[0] == 0
    assert torch.allclose(lengths(step[1:], p), torch.ones(2), rtol=1e-5)
    half = torch.tensor([[6e-8, -6e-8], [6e4, 6e4]], dtype=torch.float16)  # the squares leave the range of half precision
    assert steepest_direction(half, p).dtype == torch.float16
    assert dual_norm(half, p).dtype == torch.float32
    assert torch.allclose(lengths(steepest_direction(half, p).float(), p), torch.ones(2), rtol=2e-3)
    assert torch.equal(dual_norm(torch.tensor([-3.0, 2.0]), p), torch.tensor([3.0, 2.0]))
    assert torch.equal(steepest_direction(torch.tensor([-3.0, 2.0]), p), torch.tensor([-1.0, 1.0]))
    assert steepest_direction(torch.zeros(0, 4), p).shape == (0, 4)


# --- project


@pytest.mark.parametrize("p", [1, 2, math.inf])
def test_projection_is_the_nearest_point_law(p):
    delta = 2 * normal(30, 2, 3)
    inside = project(delta, 1.5, p)
    assert (lengths(inside, p) <= 1.5 * (1 + 1e-12)).all()
    points = normal(4000, 6, seed=1)
    points = 1.5 * points / lengths(points, p)[:, None] * torch.rand(4000, 1, generator=torch.Generator().manual_seed(2))
    nearest = torch.cdist(delta.flatten(1), points).min(1).values
    assert (lengths(delta - inside, 2) <= nearest + 1e-12).all()
    assert torch.allclose(project(inside, 1.5, p), inside, rtol=1e-12)
    short = delta / 100
    assert torch.equal(project(short, 1.5, p), short)
    assert torch.equal(project(delta, 0.0, p), torch.zeros_like(delta))
    assert torch.equal(project(torch.tensor([-3.0, 0.5]), 1.0, p), torch.tensor([-1.0, 0.5]))


def test_projection_on_the_cross_polytope_oracle():
    """Bisection for the level at which soft thresholding has the norm asked for."""
    delta = normal(10, 8)
    for row, inside in zip(delta, project(delta, 0.7, 1), strict=True):
        low, high = 0.0, row.abs().max().item()
        for _ in range(100):
            level = (low + high) / 2
            low, high = (level, high) if (row.abs() - level).clamp(min=0).sum() > 0.7 else (low, level)
        assert torch.allclose(inside, row.sign() * (row.abs() - level).clamp(min=0), atol=1e-12)


# --- fast_gradient and pgd


def test_fast_gradient_matches_torchattacks():
    model, x, y = net(), images(), torch.arange(6) % 4
    theirs = torchattacks.FGSM(model, eps=0.2)(x, y)
    assert torch.equal(fast_gradient(entropy(model, y), x, 0.2, p=math.inf, clip=(0, 1)), theirs)


@pytest.mark.parametrize(("p", "attack"), [(math.inf, torchattacks.PGD), (2, torchattacks.PGDL2)])
def test_pgd_matches_torchattacks(p, attack):
    model, x, y = net(), images(), torch.arange(6) % 4
    theirs = attack(model, eps=0.3, alpha=0.07, steps=9, random_start=False)(x, y)
    ours = pgd(entropy(model, y), x, 0.3, p=p, steps=9, step_size=0.07, random_start=False, clip=(0, 1))
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-7)  # they add 1e-10 to the norms


@pytest.mark.parametrize(("p", "attack"), [(math.inf, LinfPGD), (2, L2PGD)])
def test_pgd_matches_foolbox(p, attack):
    model, x, y = net().float().eval(), images().float(), torch.arange(6) % 4
    peer = attack(abs_stepsize=0.07, steps=9, random_start=False)
    theirs = peer.run(PyTorchModel(model, bounds=(0, 1)), x, y, epsilon=0.3)
    ours = pgd(entropy(model, y), x, 0.3, p=p, steps=9, step_size=0.07, random_start=False, clip=(0, 1))
    assert torch.allclose(ours, theirs, rtol=0, atol=2e-6)  # nine float32 steps of entries below 1, each rounded a few times
    assert (ours - x).abs().max() > 0.05


@pytest.mark.parametrize(("p", "steps"), [(1, 1), (2, 1), (math.inf, 1), (2, 9), (math.inf, 9)])
def test_attacks_match_adversarial_robustness_toolbox(p, steps):
    """Away from the bounds, where the toolbox clips before it projects; in the norm 1 it projects by scaling, not to the nearest point."""
    model, x, y = net().float().eval(), 0.4 + 0.2 * images().float(), torch.arange(6) % 4
    classifier = PyTorchClassifier(model, nn.CrossEntropyLoss(), (1, 4, 4), 4, clip_values=(0, 1), device_type="cpu")
    peer, size = FastGradientMethod(classifier, norm=p, eps=0.3), {"eps": 0.3, "p": p, "clip": (0, 1)}
    ours = fast_gradient(entropy(model, y), x, **size)
    if steps > 1:
        options = {"eps_step": 0.07, "max_iter": steps, "num_random_init": 0, "verbose": False}
        peer = ProjectedGradientDescentNumpy(classifier, norm=p, eps=0.3, **options)
        ours = pgd(entropy(model, y), x, steps=steps, step_size=0.07, random_start=False, **size)
    theirs = torch.as_tensor(peer.generate(x.numpy(), y.numpy()))
    assert torch.allclose(ours, theirs, rtol=0, atol=2e-6)  # float32 entries below 1, each rounded a few times
    assert (ours - x).abs().max() > 0.05


@pytest.mark.parametrize("p", NORMS)
def test_fast_gradient_is_exact_for_a_linear_model_oracle(p):
    w, x = normal(5), normal(7, 5, seed=1)
    moved = fast_gradient(lambda v: softplus(-(v @ w)), x, 0.3, p=p)
    q = {1: math.inf, math.inf: 1}.get(p) or p / (p - 1)
    assert torch.allclose(moved @ w, x @ w - 0.3 * torch.linalg.vector_norm(w, q), rtol=1e-13)


def test_sign_corners_enumeration_oracle():
    w, x = normal(6), normal(4, 6, seed=1)
    corners = torch.tensor(list(itertools.product([-0.2, 0.2], repeat=6)), dtype=torch.float64)
    worst = softplus(-((x[:, None] + corners) @ w)).amax(1)
    assert torch.allclose(softplus(-(fast_gradient(lambda v: softplus(-(v @ w)), x, 0.2, p=math.inf) @ w)), worst, rtol=1e-13)


@pytest.mark.parametrize("p", [1, 2, math.inf])
def test_pgd_finds_the_brute_force_maximum_oracle(p):
    model = net(3, inputs=2)
    x, y = normal(3, 2), torch.tensor([0, 1, 2])
    angle = torch.linspace(0, 2 * math.pi, 721, dtype=torch.float64)[:-1]
    circle = torch.stack([angle.cos(), angle.sin()], 1)
    ball = (circle / lengths(circle, p)[:, None] * torch.linspace(0, 0.5, 41, dtype=torch.float64)[:, None, None]).reshape(-1, 2)
    grid = torch.stack([entropy(model, label.expand(len(ball)))(point + ball).amax() for point, label in zip(x, y, strict=True)])
    options = {"p": p, "steps": 200, "step_size": 0.02, "restarts": 8, "generator": torch.Generator().manual_seed(0)}
    found = entropy(model, y)(pgd(entropy(model, y), x, 0.5, **options))
    assert torch.allclose(found, grid, rtol=0, atol=2e-3)


@pytest.mark.parametrize("p", [1, 2, math.inf])
@pytest.mark.parametrize("clip", [None, (0, 1)])
def test_pgd_stays_in_ball_and_box_law(p, clip):
    model, x, y = net(), images(40), torch.arange(40) % 4
    for steps, size in [(1, 0.0), (7, None), (3, 5.0)]:
        moved = pgd(entropy(model, y), x, 0.3, p=p, steps=steps, step_size=size, clip=clip, generator=torch.Generator().manual_seed(1))
        assert (lengths(moved - x, p) <= 0.3 * (1 + 1e-12)).all()
        assert not torch.equal(moved, x)
        if clip:
            assert moved.min() >= 0
            assert moved.max() <= 1
    start = pgd(entropy(model, y), x, 0.3, p=p, steps=1, step_size=0.0, generator=torch.Generator().manual_seed(1))
    size = lengths(start - x, p) / 0.3
    assert size.max() > 0.9
    assert p == math.inf or (size.min() < 0.2 and 0.3 < size.mean() < 0.7)
    again = pgd(entropy(model, y), x, 0.3, p=p, steps=1, step_size=0.0, generator=torch.Generator().manual_seed(1))
    assert torch.equal(start, again)


@pytest.mark.parametrize("p", [1, 2, math.inf])
def test_start_is_symmetric_law(p):
    x = torch.zeros(4000, 3, dtype=torch.float64)
    start = pgd(lambda v: v.sum(1), x, 1.0, p=p, steps=1, step_size=0.0, generator=torch.Generator().manual_seed(0))
    assert (start.mean(0).abs() < 5 * start.std(0) / math.sqrt(4000)).all()


@pytest.mark.parametrize("p", [1, 2])
def test_projection_of_a_large_image_in_half_precision(p):
    """The sum of 70000 entries, and their number, exceed the largest number of float16; all are equal, so is the answer."""
    inside = project(torch.ones(1, 70_000, dtype=torch.float16), 7000.0 if p == 1 else 26.4575, p)
    assert inside.dtype == torch.float16
    assert (inside - 0.1).abs().max() < 1e-3  # half an ulp of 0.1 is 3e-5; the cumulated sum in float32 adds as much


def test_default_step_is_two_and_a_half_radii_over_the_steps():
    seen = []
    pgd(lambda v: (seen.append(v.detach().clone()), v.sum(1))[1], torch.zeros(1, 3), 0.5, steps=10, random_start=False)
    torch.testing.assert_close(seen[1], torch.full((1, 3), 0.125), rtol=0, atol=0)


def test_default_step_reaches_the_boundary():
    w = normal(5)
    moved = pgd(lambda v: v @ w, torch.zeros(50, 5, dtype=torch.float64), 0.4, steps=10, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(moved, 0.4 * w.sign().expand(50, 5))
    one = pgd(lambda v: v @ w, torch.zeros(1, 5, dtype=torch.float64), 0.4, p=2, steps=10, step_size=0.01, random_start=False)
    assert torch.allclose(one, 0.1 * w[None] / w.norm())
    visited = []
    pgd(lambda v: visited.append(v.norm().item()) or v @ w, torch.zeros(1, 5, dtype=torch.float64), 0.4, p=2, steps=5, random_start=False)
    assert visited == pytest.approx([0, 0.2, 0.4, 0.4, 0.4])  # 2.5 * 0.4 / 5 at a time


def test_restarts_keep_the_best_of_each_example_law():
    model, x, y = net(5), images(30), torch.arange(30) % 4
    loss = entropy(model, y)
    options = {"p": math.inf, "steps": 1, "step_size": 0.0}
    single = [pgd(loss, x, 0.3, generator=g, **options) for g in [torch.Generator().manual_seed(4)] for _ in range(3)]
    best = torch.stack([loss(moved) for moved in single]).amax(0)
    several = pgd(loss, x, 0.3, restarts=3, generator=torch.Generator().manual_seed(4), **options)
    assert torch.equal(loss(several), best)


def test_attacks_leave_no_trace():
    model, x, y = net(), images(), torch.arange(6) % 4
    model.train()
    before = [p.detach().clone() for p in model.parameters()]
    x.requires_grad_()
    with torch.no_grad():
        moved = fast_gradient(entropy(model, y), x, 0.1)
    assert not moved.requires_grad
    assert not pgd(entropy(model, y), x, 0.1, steps=2).requires_grad
    assert x.grad is None
    assert all(p.grad is None for p in model.parameters())
    assert model.training
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    cross_entropy(model(moved), y).backward()
    expected = torch.autograd.grad(cross_entropy(model(moved.clone()), y), list(model.parameters()))
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), expected, strict=True))


def test_examples_do_not_influence_each_other_law():
    model, x, y = net(), images(), torch.arange(6) % 4
    whole = fast_gradient(entropy(model, y), x, 0.3)
    single = torch.cat([fast_gradient(entropy(model, y[i : i + 1]), x[i : i + 1], 0.3) for i in range(6)])
    assert torch.allclose(whole, single, rtol=1e-12)


def test_zero_radius_and_empty_batch_extremes():
    model, x, y = net(), images(), torch.arange(6) % 4
    assert torch.equal(fast_gradient(entropy(model, y), x, 0), x)
    assert torch.equal(pgd(entropy(model, y), x, 0), x)
    assert fast_gradient(entropy(model, y[:0]), x[:0], 0.1, clip=(0, 1)).shape == (0, 1, 4, 4)
    flat = fast_gradient(
        lambda v: torch.zeros(len(v), dtype=v.dtype, requires_grad=True), x, 0.1
    )  # no dependence on the input: nowhere to go
    assert torch.equal(flat, x)
    clipped = fast_gradient(lambda v: v.flatten(1).sum(1), torch.ones(2, 3), 0.5, p=math.inf, clip=(0, 1))
    assert torch.equal(clipped, torch.ones(2, 3))


@pytest.mark.parametrize("attack", [fast_gradient, pgd])
def test_attack_refusals(attack):
    x = torch.rand(3, 2)
    with pytest.raises(TypeError, match="floating point"):
        raw(attack)(lambda v: v.sum(1), torch.ones(3, 2, dtype=torch.long), 0.1)
    for eps in (-0.1, math.nan, math.inf):
        with pytest.raises(ValueError, match="eps must be finite and at least 0"):
            attack(lambda v: v.sum(1), x, eps)
    with pytest.raises(ValueError, match=r"x must lie within clip = \(0, 0.5\)"):
        attack(lambda v: v.sum(1), x + 0.1, 0.1, clip=(0, 0.5))
    with pytest.raises(ValueError, match=r"x must lie within clip"):
        attack(lambda v: v.sum(1), x - 0.9, 0.1, clip=(0, 5))
    with pytest.raises(ValueError, match=r"one number per example, shape \(3,\), got shape \(\)"):
        attack(lambda v: v.sum(), x, 0.1)
    with pytest.raises(ValueError, match="finite gradient"):
        attack(lambda v: (v - v).sqrt().sum(1), x, 0.1)
    huge = fast_gradient(lambda v: 1e38 * v.sum(1), torch.zeros(1, 9), 3.0)  # finite, though the sum of its gradient is not
    assert torch.allclose(huge, torch.ones(1, 9))


def test_norm_refusals():
    x = torch.rand(3, 2)
    for call in (
        lambda: dual_norm(x, 0.5),
        lambda: steepest_direction(x, math.nan),
        lambda: fast_gradient(lambda v: v.sum(1), x, 0.1, p=0),
    ):
        with pytest.raises(ValueError, match="p must be at least 1"):
            call()
    for call in (lambda: project(x, 1.0, 3), lambda: pgd(lambda v: v.sum(1), x, 0.1, p=1.5)):
        with pytest.raises(ValueError, match="p must be 1, 2 or inf"):
            call()
    with pytest.raises(ValueError, match="eps must be"):
        project(x, -1.0, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps and restarts must be at least 1, got 0 and 1"),
        ({"restarts": 0}, "steps and restarts must be at least 1, got 20 and 0"),
        ({"restarts": 2, "random_start": False}, "would repeat one path"),
        ({"step_size": -1.0}, "step_size must be at least 0"),
    ],
)
def test_pgd_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        pgd(lambda v: v.sum(1), torch.rand(3, 2), 0.1, **options)

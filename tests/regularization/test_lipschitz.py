"""Tests of kexue.regularization.lipschitz: constants by dense grids, dense Jacobians, closed forms, laws, refusals."""

import math

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kexue.regularization import lipschitz as room
from kexue.regularization.lipschitz import (
    GroupSort,
    Residual,
    activation_lipschitz,
    certified_radius,
    lipschitz_lower,
    lipschitz_upper,
    operator_norm,
    spectral_complexity,
)
from torch import nn

SCALAR = [
    nn.ReLU(), nn.ReLU6(), nn.LeakyReLU(0.1), nn.LeakyReLU(-3.0), nn.ELU(), nn.ELU(2.5), nn.CELU(2.0), nn.SELU(), nn.Tanh(), nn.Sigmoid(),
    nn.LogSigmoid(), nn.Softplus(), nn.Softplus(beta=3), nn.Softsign(), nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.Mish(), nn.Hardswish(),
    nn.Hardsigmoid(), nn.Hardtanh(), nn.Tanhshrink(), nn.Softshrink(), nn.PReLU(init=-1.7), nn.PReLU(), nn.Identity(),
]  # fmt: skip


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def jacobian(model, x):
    """Dense Jacobian at one input, by autograd."""
    j = torch.autograd.functional.jacobian(lambda v: model(v[None])[0], x)
    return j.reshape(-1, x.numel())


def norm(matrix):
    return torch.linalg.matrix_norm(matrix.detach(), 2).item()


@pytest.mark.parametrize("module", SCALAR, ids=str)
def test_activation_constant_is_the_largest_slope_on_a_grid(module):
    x = torch.cat([torch.linspace(-40, 40, 400_001, dtype=torch.float64), torch.tensor([-1e-9, 1e-9, 3 - 1e-9, 200.0])]).requires_grad_()
    (slope,) = torch.autograd.grad(module.double()(x).sum(), x)
    constant = activation_lipschitz(module)
    assert slope.abs().max() <= constant * (1 + (1e-7 if isinstance(module, nn.Hardsigmoid) else 1e-12))  # torch rounds 1/6 to float32
    assert slope.abs().max() >= constant - 1e-8


@pytest.mark.parametrize(("name", "start"), [("_SILU", 2.4), ("_MISH", 1.5), ("_GELU_TANH", 1.4), ("_GELU", 1.4)])
def test_constants_that_no_closed_form_gives_have_sixteen_digits(name, start):
    f = {
        "_SILU": lambda x: x / (1 + mpmath.exp(-x)),
        "_MISH": lambda x: x * mpmath.tanh(mpmath.log(1 + mpmath.exp(x))),
        "_GELU": lambda x: x * mpmath.ncdf(x),
        "_GELU_TANH": lambda x: x / 2 * (1 + mpmath.tanh(mpmath.sqrt(2 / mpmath.pi) * (x + mpmath.mpf("0.044715") * x**3))),
    }[name]
    with mpmath.workdps(30):
        place = mpmath.findroot(lambda x: mpmath.diff(f, x, 2), start)
        assert abs(getattr(room, name) / mpmath.diff(f, place) - 1) < 4e-16


def test_softmax_constant_is_one_half_and_approached():
    def size(logits):
        p = logits.softmax(0)
        return norm(torch.diag(p) - torch.outer(p, p))

    assert activation_lipschitz(nn.Softmax(dim=1)) == activation_lipschitz(nn.Softmin(dim=1)) == 0.5
    assert max(size(3 * normal(n, seed=n)) for n in range(2, 40)) <= 0.5
    assert size(torch.tensor([0.0, 0.0, -60.0, -60.0], dtype=torch.float64)) == pytest.approx(0.5, abs=1e-15)


def test_group_sort_sorts_groups_and_keeps_lengths():
    x = torch.tensor([[3.0, 1.0, 2.0, 5.0, 4.0, 0.0]])
    assert GroupSort(3)(x).tolist() == [[1, 2, 3, 0, 4, 5]]
    assert GroupSort()(x).tolist() == [[1, 3, 2, 5, 0, 4]]
    image = normal(2, 4, 3, 3)
    torch.testing.assert_close(GroupSort(4)(image), image.sort(dim=1).values)
    j = jacobian(GroupSort(3), normal(12, seed=1))
    torch.testing.assert_close(j @ j.T, torch.eye(12, dtype=torch.float64))
    assert activation_lipschitz(GroupSort(5)) == 1
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        GroupSort(0)
    with pytest.raises(ValueError, match="the 4 features must be a multiple of the group size 3"):
        GroupSort(3)(torch.zeros(1, 4))


def test_upper_bound_of_chains_and_branches_has_closed_form():
    wide, narrow = nn.Linear(2, 3).double(), nn.Linear(3, 2).double()
    wide.weight.data = torch.tensor([[3.0, 0], [0, 4], [0, 0]], dtype=torch.float64)
    narrow.weight.data = torch.tensor([[0.0, 0, 2], [1, 0, 0]], dtype=torch.float64)
    assert lipschitz_upper(nn.Sequential(wide, nn.Sigmoid(), narrow)) == pytest.approx(4 * 0.25 * 2, rel=1e-14)
    assert lipschitz_upper(Residual(nn.Sequential(wide, nn.GELU("tanh"), narrow))) == pytest.approx(1 + 8 * room._GELU_TANH, rel=1e-14)
    assert lipschitz_upper(nn.Sequential()) == 1
    x = normal(5, 2)
    torch.testing.assert_close(Residual(nn.Sequential(wide, narrow))(x), x + narrow(wide(x)))


LAYERS = {
    "same": lambda: nn.Conv2d(2, 3, 3, padding=1),
    "wide zeros": lambda: nn.Conv2d(2, 3, 3, padding=4),
    "valid": lambda: nn.Conv2d(2, 3, 3),
    "by name": lambda: nn.Conv2d(2, 3, 4, padding="same"),
    "circular": lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"),
    "circular, stride": lambda: nn.Conv2d(2, 3, 3, padding=1, stride=2, padding_mode="circular"),
    "stride": lambda: nn.Conv2d(2, 3, 3, padding=1, stride=2),
    "one stride": lambda: nn.Conv2d(2, 3, 3, padding=1, stride=(1, 2)),
    "dilation": lambda: nn.Conv2d(2, 3, 3, padding=2, dilation=2),
    "dilation, stride": lambda: nn.Conv2d(2, 3, 3, padding=2, dilation=2, stride=2),
    "groups": lambda: nn.Conv2d(2, 6, 3, padding=1, groups=2),
    "max pool": lambda: nn.MaxPool2d(2),
    "max pool, overlap": lambda: nn.MaxPool2d(3, stride=2),
    "max pool, sides": lambda: nn.MaxPool2d((3, 2), stride=(1, 2)),
    "max pool, dilated": lambda: nn.MaxPool2d(2, stride=2, dilation=2),
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(98, 5)),
    "batch norm": lambda: nn.BatchNorm2d(2).eval(),
    "dropout": lambda: nn.Dropout2d().eval(),
    "net": lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.SiLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 3)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_upper_bound_exceeds_the_dense_jacobian(name):
    torch.manual_seed(0)
    layer = LAYERS[name]().double()
    bound = lipschitz_upper(layer)
    largest = max(norm(jacobian(layer, normal(2, 7, 7, seed=s))) for s in range(4))
    assert largest <= bound * (1 + 1e-12)
    loose = {"net": 3, "circular, stride": 3, "one stride": 3, "dilation, stride": 3, "valid": 1.5, "dilation": 1.5, "max pool, sides": 1.8}
    assert bound <= largest * loose.get(name, 1.4)


def test_max_pool_bound_counts_windows():
    assert lipschitz_upper(nn.MaxPool2d(2)) == 1
    assert lipschitz_upper(nn.MaxPool2d(3, stride=2)) == pytest.approx(2)  # a pixel lies in at most 2 x 2 windows
    assert lipschitz_upper(nn.MaxPool2d((3, 2), stride=(1, 2))) == pytest.approx(math.sqrt(3))
    assert lipschitz_upper(nn.MaxPool2d(2, stride=2, dilation=2)) == pytest.approx(2)  # the windows touch pixels 0 and 2, 2 and 4, ...
    assert lipschitz_upper(nn.MaxPool2d(2, stride=2, dilation=3)) == 1  # 0 and 3, 2 and 5, ...
    peak = torch.zeros(1, 5, 5, dtype=torch.float64)
    peak[0, 2, 2] = 1
    assert norm(jacobian(nn.MaxPool2d(3, stride=2), peak)) == pytest.approx(2)


def test_normalizations_have_closed_forms():
    batch = nn.BatchNorm1d(3).double().eval()
    batch.weight.data = torch.tensor([1.0, -6.0, 2.0], dtype=torch.float64)
    batch.running_var = torch.tensor([1.0, 9.0, 0.25], dtype=torch.float64)
    assert lipschitz_upper(batch) == pytest.approx(2 / math.sqrt(0.25 + 1e-5), rel=1e-12)
    assert norm(jacobian(batch, normal(3))) == pytest.approx(lipschitz_upper(batch), rel=1e-12)
    assert lipschitz_upper(nn.BatchNorm1d(64).eval()) == pytest.approx(1, abs=1e-5)
    plain = nn.BatchNorm1d(2, affine=False).eval()
    plain.running_var = torch.tensor([4.0, 0.04])
    assert lipschitz_upper(plain) == pytest.approx(5, rel=1e-3)
    layer = nn.LayerNorm(4, eps=0.01).double()
    layer.weight.data = torch.tensor([1.0, 2.0, -3.0, 1.0], dtype=torch.float64)
    assert lipschitz_upper(layer) == pytest.approx(30)
    assert lipschitz_upper(nn.LayerNorm(4, eps=0.01, elementwise_affine=False)) == pytest.approx(10)
    flat = nn.LayerNorm(4, eps=0.01, elementwise_affine=False).double()
    assert norm(jacobian(flat, torch.ones(4, dtype=torch.float64))) == pytest.approx(10)  # attained at a constant input
    assert lipschitz_upper(nn.Dropout(0.5).eval()) == 1


def test_operator_norm_gradient_is_the_product_of_the_singular_vectors():
    layer = nn.Linear(4, 3).double()
    weight = normal(3, 4).requires_grad_()
    (gradient,) = torch.autograd.grad(operator_norm(layer, weight), weight)
    u, _, vh = torch.linalg.svd(weight.detach())
    torch.testing.assert_close(gradient, torch.outer(u[:, 0], vh[0]), rtol=0, atol=1e-12)
    grouped = nn.Conv2d(4, 4, 3, padding=1, groups=2, padding_mode="circular").double()
    assert torch.autograd.gradcheck(lambda w: operator_norm(grouped, w), normal(4, 2, 3, 3, seed=1).requires_grad_())


@given(st.integers(0, 10_000))
@settings(max_examples=5, deadline=None)
def test_lower_bound_never_exceeds_the_upper_one(seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), Residual(nn.Linear(8, 8)), nn.GELU(), nn.Linear(8, 3)).double()
    low = lipschitz_lower(model, normal(6, 5, seed=seed), steps=1, generator=torch.Generator().manual_seed(seed))
    assert low.shape == (6,) and low.max() <= lipschitz_upper(model) * (1 + 1e-9)


def test_lower_bound_without_steps_is_the_jacobian_norm():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(32, 4)).double()
    x = normal(3, 1, 4, 4)
    dense = [norm(jacobian(model, point)) for point in x]
    low = lipschitz_lower(model, x, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(low, torch.tensor(dense, dtype=torch.float64), rtol=1e-4, atol=0)
    assert all(a <= b * (1 + 1e-12) for a, b in zip(low.tolist(), dense, strict=True))
    torch.testing.assert_close(
        lipschitz_lower(model[2:], normal(2, 2, 4, 4)), torch.full((2,), lipschitz_upper(model[3])).double(), rtol=1e-4, atol=0
    )


@pytest.mark.parametrize("outputs", [32, 33])
def test_lower_bound_of_a_linear_layer_is_its_norm_with_few_and_many_outputs(outputs):
    layer = nn.Linear(12, outputs).double()
    low = lipschitz_lower(layer, normal(2, 12), steps=1, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(low, torch.full_like(low, norm(layer.weight)), rtol=1e-4, atol=0)
    assert (low <= norm(layer.weight) * (1 + 1e-12)).all()


@pytest.mark.parametrize("side", [1.0, -1.0])
def test_search_finds_steep_places_on_either_side(side):
    def bend(x):
        return x + side * torch.relu(5 * (side * x - 1))

    start = torch.zeros(1, 1, dtype=torch.float64)
    assert lipschitz_lower(bend, start).item() == pytest.approx(1)
    assert lipschitz_lower(bend, start, steps=1, reach=2.0).item() == pytest.approx(6)
    assert lipschitz_lower(bend, start, steps=1).item() == pytest.approx(1)  # a move of 1 stops at the bend


def test_search_shortens_its_reach_and_keeps_the_points_apart():
    def narrow(x):  # steep between 0.4 and 0.6 only
        return x + 5 * (torch.relu(x - 0.4) - torch.relu(x - 0.6))

    start = torch.tensor([[0.0], [10.0]], dtype=torch.float64)
    assert lipschitz_lower(narrow, start, steps=2, reach=2.0).tolist() == pytest.approx([1, 1])
    assert lipschitz_lower(narrow, start, steps=3, reach=2.0).tolist() == pytest.approx([6, 1])


def test_search_climbs_on_from_where_it_has_arrived():
    def stairs(x):
        return x + torch.relu(x - 0.5) + torch.relu(x - 1.5) + torch.relu(x - 2.5)

    values = [lipschitz_lower(stairs, torch.zeros(1, 1, dtype=torch.float64), steps=s).item() for s in range(5)]
    assert values == pytest.approx([1, 2, 3, 4, 4])


def test_dead_network_has_lower_bound_zero():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    model[0].bias.data.fill_(-1e3)
    assert (lipschitz_lower(model, torch.zeros(2, 3), steps=2) == 0).all()


def test_certified_radius_is_the_distance_to_the_boundary_of_the_identity_classifier():
    logits = torch.tensor([[5.0, 1.0, 2.0], [0.0, 0.0, -1.0]])
    assert certified_radius(logits, 1.0).tolist() == pytest.approx([3 / math.sqrt(2), 0])
    assert certified_radius(logits, 4.0)[0].item() == pytest.approx(3 / math.sqrt(2) / 4)
    x = logits[0] - torch.tensor([1.5, 0, -1.5])  # the nearest tie, at that distance
    assert x[0] == x[2] and (x - logits[0]).norm() == pytest.approx(3 / math.sqrt(2))


def test_spectral_complexity_has_closed_forms():
    eye = torch.eye(4, dtype=torch.float64)
    assert spectral_complexity([eye, eye, eye]) == pytest.approx(4 * 3**1.5)
    assert spectral_complexity([torch.tensor([[3.0, 4.0]])]) == pytest.approx(5)  # one row: both norms are 5
    assert spectral_complexity([torch.tensor([[3.0], [4.0]])]) == pytest.approx(7)  # two rows of length one
    assert spectral_complexity([2 * eye, 3 * torch.ones(1, 4).double()]) == pytest.approx(12 * (4 ** (2 / 3) + 1) ** 1.5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: lipschitz_lower(nn.Identity(), torch.zeros(1, 2), steps=-1),
            "steps must be at least 0 and reach positive, got -1 and 1.0",
        ),
        (lambda: lipschitz_lower(nn.Identity(), torch.zeros(1, 2), reach=0.0), "got 0 and 0.0"),
        (lambda: certified_radius(torch.zeros(1, 2), 0.0), "lipschitz must be positive, got 0.0"),
        (lambda: certified_radius(torch.zeros(1, 1), 1.0), "at least two classes, got 1"),
        (lambda: spectral_complexity([torch.zeros(2, 2)]), "no zero matrix"),
    ],
)
def test_values_out_of_range_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.LogSoftmax(dim=1), "no Lipschitz constant is known here for LogSoftmax"),
        (nn.MultiheadAttention(4, 1), "self-attention is not Lipschitz on unbounded inputs"),
        (nn.Dropout(), "Dropout in training mode is random"),
        (nn.BatchNorm1d(3), "BatchNorm1d in training mode"),
        (nn.BatchNorm1d(3, track_running_stats=False).eval(), "without running statistics"),
        (nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"), "'reflect' repeats pixels"),
        (nn.Conv2d(1, 1, 3, padding=2, padding_mode="circular"), "'circular' repeats pixels"),
        (nn.Conv2d(1, 1, (1, 3), padding=1, padding_mode="circular"), "'circular' repeats pixels"),
    ],
)
def test_layers_without_a_bound_are_refused(module, message):
    with pytest.raises(NotImplementedError, match=message):
        lipschitz_upper(nn.Sequential(nn.Identity(), module))

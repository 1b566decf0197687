"""Tests of the shared small experiment: law of the initial weights, order of the batches, scores against scikit-learn."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kexue.regularization.training import calibration_error, fit, fit_to_loss, mlp, scores
from sklearn.metrics import accuracy_score, log_loss
from torch import nn


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def distributions(n, classes, seed=0):
    g = seeded(seed)
    return torch.randn(n, classes, generator=g, dtype=torch.float64).mul(3).softmax(1), torch.randint(classes, (n,), generator=g)


# --- mlp ---------------------------------------------------------------------------------------------------------------


def test_mlp_has_the_layers_it_was_asked_for():
    assert [type(layer) for layer in mlp([3, 5, 2])] == [nn.Linear, nn.ReLU, nn.Linear]
    assert [type(layer) for layer in mlp([3, 5, 2], activation=nn.Tanh, dropout=0.5)] == [nn.Linear, nn.Tanh, nn.Dropout, nn.Linear]
    assert mlp([3, 5, 2], dropout=0.25)[2].p == 0.25
    assert mlp([3, 5, 2])(torch.zeros(4, 3)).shape == (4, 2)
    assert len(mlp([3, 2])) == 1


def test_mlp_weights_follow_the_law_of_torch():
    first = mlp([400, 300, 10], generator=seeded())[0]
    for parameter in first.parameters():
        assert parameter.abs().max() <= 1 / 20
    # variance of a uniform law on +-b is b^2/3; 120 000 draws: relative standard error sqrt(0.8 / n) = 0.26 %
    assert first.weight.var().item() == pytest.approx(1 / 400 / 3, rel=0.0104)
    assert first.bias.std() > 0


def test_mlp_is_reproducible_and_leaves_no_other_generator_behind():
    a, b, c = (mlp([4, 6, 2], generator=seeded(s)) for s in (1, 1, 2))
    for p, q, r in zip(a.parameters(), b.parameters(), c.parameters(), strict=True):
        assert p.equal(q) and not p.equal(r)


@pytest.mark.parametrize(
    ("sizes", "dropout", "message"),
    [([3], 0, "two|output size"), ([3, 0, 2], 0, "at least 1"), ([3, 2], 1.0, r"dropout must lie in \[0, 1\)"), ([3, 2], -0.1, "dropout")],
)
def test_mlp_refuses(sizes, dropout, message):
    with pytest.raises(ValueError, match=message):
        mlp(sizes, dropout=float(dropout))


# --- fit ---------------------------------------------------------------------------------------------------------------


def test_fit_finds_the_boundary_of_two_clouds():
    g = seeded()
    y = torch.arange(200) % 2
    x = torch.randn(200, 2, generator=g) + 6.0 * y[:, None]
    model = fit(mlp([2, 2], generator=g), x, y, epochs=60, batch=20, lr=0.05, generator=g)
    assert not model.training
    assert scores(model(x).detach(), y).accuracy == 1.0


def test_fit_matches_adam_by_hand():
    x, y = torch.randn(6, 3, generator=seeded(1)), torch.tensor([0, 1, 2, 0, 1, 2])
    ours, theirs = mlp([3, 3], generator=seeded(2)), mlp([3, 3], generator=seeded(2))
    fit(ours, x, y, epochs=2, batch=4, lr=0.1, generator=seeded(3))
    optimizer, g = torch.optim.Adam(theirs.parameters(), lr=0.1), seeded(3)
    for _ in range(2):
        order = torch.randperm(6, generator=g)
        for chosen in (order[:4], order[4:]):
            optimizer.zero_grad()
            (theirs(x[chosen]).logsumexp(1) - theirs(x[chosen])[torch.arange(len(chosen)), y[chosen]]).mean().backward()
            optimizer.step()
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)  # the two losses differ by float32 rounding only


def test_fit_shows_every_example_once_an_epoch_in_training_mode_and_reports_progress():
    seen, modes, epochs = [], [], []

    def step(model, x, y):
        seen.append(y)
        modes.append(model.training)
        return model(x).square().mean()

    def progress(numbers):
        for number in numbers:
            epochs.append(number)
            yield number

    model = mlp([1, 1]).eval()
    fit(model, torch.zeros(7, 1), torch.arange(7), step=step, epochs=2, batch=3, generator=seeded(), progress=progress)
    assert [len(y) for y in seen] == [3, 3, 1, 3, 3, 1]
    first, second = torch.cat(seen[:3]), torch.cat(seen[3:])
    assert first.sort().values.tolist() == second.sort().values.tolist() == list(range(7)) and not first.equal(second)
    assert all(modes) and epochs == [0, 1]


def test_fit_stops_when_the_loss_is_not_finite():
    with pytest.raises(ValueError, match=r"nan in epoch 1: lower lr = 0\.5"):
        fit(mlp([1, 2]), torch.full((2, 1), float("nan")), torch.tensor([0, 1]), epochs=3, lr=0.5)


@pytest.mark.parametrize(
    ("n", "labels", "options", "message"),
    [
        (2, 3, {"epochs": 1}, "same number of examples, at least 1, got 2 and 3"),
        (0, 0, {"epochs": 1}, "got 0 and 0"),
        (2, 2, {"epochs": 0}, "epochs must be at least 1"),
        (2, 2, {"epochs": 1, "batch": 0}, "batch must be at least 1"),
    ],
)
def test_fit_refuses(n, labels, options, message):
    with pytest.raises(ValueError, match=message):
        fit(mlp([1, 2]), torch.zeros(n, 1), torch.zeros(labels, dtype=torch.int64), **options)


# --- scores ------------------------------------------------------------------------------------------------------------


def test_scores_match_scikit_learn():
    p, y = distributions(500, 4)
    found = scores(p.log() + 1000, y)  # softmax is invariant under a shift of the logits
    assert found.accuracy == accuracy_score(y, p.argmax(1))
    assert found.nll == pytest.approx(log_loss(y, p), rel=1e-10)
    assert found.ece == pytest.approx(calibration_error(p, y), rel=1e-9)


def test_calibration_error_of_four_examples_by_hand():
    # two bins: confidences 0.5 and 0.4 in the lower one (one right), 0.9 and 0.7 in the upper one (both right)
    p = torch.tensor([[0.5, 0.5, 0.0], [0.3, 0.3, 0.4], [0.9, 0.1, 0.0], [0.1, 0.2, 0.7]])
    y = torch.tensor([0, 1, 0, 2])
    assert calibration_error(p, y, bins=2) == pytest.approx(abs(1 - 0.9) / 4 + abs(2 - 1.6) / 4, abs=1e-7)
    assert calibration_error(p, y, bins=1) == pytest.approx(abs(3 - 2.5) / 4, abs=1e-7)


def test_calibration_error_matches_a_loop_over_bins():
    p, y = distributions(2000, 3, seed=4)
    confidence, predicted = p.max(1)
    total = 0.0
    for low in range(15):
        inside = (confidence > low / 15) & (confidence <= (low + 1) / 15)
        if inside.any():
            total += abs((predicted == y)[inside].double().mean() - confidence[inside].mean()).item() * inside.sum().item() / 2000
    assert calibration_error(p, y) == pytest.approx(total, rel=1e-12)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), bins=st.integers(1, 30))
def test_calibration_error_is_zero_for_certain_truths_and_one_for_certain_errors(seed, bins):
    y = torch.randint(3, (9,), generator=seeded(seed))
    sure = nn.functional.one_hot(y, 3).double()
    assert calibration_error(sure, y, bins=bins) == 0
    assert calibration_error(sure.roll(1, 1), y, bins=bins) == 1


def test_scores_refuse():
    p, y = distributions(5, 3)
    with pytest.raises(ValueError, match="bins must be at least 1, got 0"):
        calibration_error(p, y, bins=0)
    with pytest.raises(ValueError, match="apply softmax to logits first"):
        calibration_error(p + 0.1, y)
    with pytest.raises(ValueError, match="apply softmax"):
        calibration_error(torch.tensor([[1.5, -0.5]]), torch.tensor([0]))
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.2, the classes of logits, got 0\.\.3|got .*3"):
        scores(p, torch.tensor([0, 1, 2, 3, 0]))
    with pytest.raises(ValueError, match="labels must lie"):
        scores(p, y - 5)
    with pytest.raises(ValueError, match="at least one example"):
        scores(p[:0], y[:0])


# --- fit_to_loss -------------------------------------------------------------------------------------------------------


def small_task():
    g = seeded(5)
    x, model = torch.randn(30, 4, generator=g), mlp([4, 3], generator=g)
    return model, x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long()


def test_fit_to_loss_takes_the_steps_of_a_loop_written_out():
    (model, x, y), (plain, *_), shuffle, steps = small_task(), small_task(), seeded(1), 0
    count = fit_to_loss(model, x, y, torch.optim.SGD(model.parameters(), lr=0.1), target=0.9, batch=8, check=3, generator=seeded(1))
    optimizer, loss = torch.optim.SGD(plain.parameters(), lr=0.1), nn.CrossEntropyLoss()
    done = False
    while not done:
        for chosen in torch.randperm(30, generator=shuffle).split(8):
            optimizer.zero_grad()
            loss(plain(x[chosen]), y[chosen]).backward()
            optimizer.step()
            steps += 1
            if done := steps % 3 == 0 and loss(plain(x), y).item() < 0.9:
                break
    assert count == steps and count % 3 == 0
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))


def test_fit_to_loss_looks_at_the_plain_loss_and_reports_every_step():
    model, x, y = small_task()
    seen = []

    def step(model, x, y):
        return nn.functional.cross_entropy(model(x), y) + 1000.0

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    count = fit_to_loss(model, x, y, optimizer, target=0.95, step=step, generator=seeded(), watch=lambda _, number: seen.append(number))
    assert seen == [*range(count), "end"]
    assert nn.functional.cross_entropy(model(x), y) < 0.95


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": 0}, "batch must be at least 1, got 0"),
        ({"check": 0}, "check must be at least 1, got 0"),
        ({"limit": 0}, "limit must be at least 1, got 0"),
        ({"y": torch.zeros(3, dtype=torch.int64)}, "the same number of examples, at least 1, got 30 and 3"),
    ],
)
def test_fit_to_loss_refuses(change, message):
    model, x, y = small_task()
    with pytest.raises(ValueError, match=message):
        fit_to_loss(model, x, change.pop("y", y), torch.optim.SGD(model.parameters(), lr=0.1), target=0.5, **change)


def test_fit_to_loss_gives_up_at_the_limit():
    model, x, y = small_task()
    with pytest.raises(RuntimeError, match=r"the loss is still .* after 12 steps, not below the target 0"):
        fit_to_loss(model, x, y, torch.optim.SGD(model.parameters(), lr=0.1), target=0.0, batch=10, limit=10, check=2, generator=seeded())

"""Tests of kexue.observe: what is read, that reading changes nothing, and that nothing is left behind."""

import threading

import pytest
import torch
from kexue.observe import capture, tap
from torch import nn


class Block(nn.Module):
    """Calls one layer twice and shows an intermediate tensor at a tap."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 3)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x):
        h = tap("block/normalized", x / x.norm(dim=-1, keepdim=True))
        return self.act(self.inner(self.inner(h)))


@pytest.fixture
def block():
    torch.manual_seed(0)
    return Block()


def hooks(model):
    return sum(len(module._forward_hooks) for module in model.modules())


def test_capture_reads_leaves_and_taps_in_order_of_first_call(block):
    x = torch.randn(4, 3)
    with capture(block) as seen:
        block(x)
    assert list(seen) == ["block/normalized", "inner", "act"]
    assert len(seen["inner"]) == 2
    torch.testing.assert_close(seen["block/normalized"][0].norm(dim=-1), torch.ones(4))
    torch.testing.assert_close(seen["inner"][1], block.inner(seen["inner"][0]))


def test_capture_copies_so_that_in_place_operations_do_not_change_what_was_read(block):
    with capture(block, "inner", "act") as seen:
        block(torch.randn(50, 3))
    assert (seen["inner"][1] < 0).any() and (seen["act"][0] >= 0).all()


def test_capture_is_a_pure_observer_of_outputs_gradients_and_random_state(block):
    model = nn.Sequential(block, nn.Dropout(0.5))
    results = []
    for observed in (False, True):
        torch.manual_seed(1)
        x = torch.randn(4, 3, requires_grad=True)
        if observed:
            with capture(model):
                y = model(x)
        else:
            y = model(x)
        y.square().sum().backward()
        results.append((y.detach(), x.grad, torch.rand(1)))
    for plain, seen in zip(*results, strict=True):
        assert torch.equal(plain, seen)


def test_patterns_select_modules_with_children_and_taps(block):
    model = nn.Sequential(block, nn.Linear(3, 2))
    with capture(model, "0", "block/*") as seen:
        y = model(torch.randn(2, 3))
    assert set(seen) == {"0", "block/normalized"}
    torch.testing.assert_close(model[1](seen["0"][0]), y)


def test_a_model_that_is_one_layer_is_read_under_the_empty_name():
    with capture(nn.Linear(2, 2)) as seen:
        pass
    assert seen == {}
    layer = nn.Linear(2, 2)
    with capture(layer) as seen:
        y = layer(torch.ones(1, 2))
    assert torch.equal(seen[""][0], y)


def test_tensors_in_tuples_and_mappings_get_a_suffix():
    class Pair(nn.Module):
        def forward(self, x):
            return {"sum": x + 1, "parts": [x, "text"]}

    with capture(Pair()) as seen:
        pass
    pair = nn.Sequential(Pair())
    with capture(pair, "0") as seen:
        pair(torch.zeros(2))
    assert set(seen) == {"0.sum", "0.parts.0"}
    lstm = nn.LSTM(2, 3)
    with capture(lstm) as seen:
        lstm(torch.zeros(5, 1, 2))
    assert [tuple(values[0].shape) for values in seen.values()] == [(5, 1, 3), (1, 1, 3), (1, 1, 3)]
    assert list(seen) == [".0", ".1.0", ".1.1"]


def test_without_detach_gradients_flow_and_with_it_they_do_not(block):
    x = torch.randn(4, 3)
    with capture(block, "block/normalized", "inner", detach=False) as kept:
        y = block(x)
    assert torch.autograd.grad(y.sum(), kept["inner"][0])[0].shape == (4, 3)
    with capture(block, "inner") as seen:
        block(x)
    assert not seen["inner"][0].requires_grad


def test_tap_is_the_identity_outside_and_inside():
    x = torch.ones(2)
    assert tap("name", x) is x
    with capture(None, "name") as seen:
        assert tap("name", x) is x
    assert torch.equal(seen["name"][0], x)


def test_nested_captures_see_the_same_call_and_close_separately(block):
    with capture(block, "inner") as outer:
        with capture(block, "inner") as inner:
            block(torch.ones(1, 3))
        block(torch.ones(1, 3))
    assert (len(outer["inner"]), len(inner["inner"])) == (4, 2)
    assert hooks(block) == 0


def test_hooks_and_taps_are_gone_after_an_exception(block):
    seen = {}

    def fail():
        nonlocal seen
        with capture(block) as seen:
            block(torch.ones(1, 3))
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert hooks(block) == 0
    tap("late", torch.ones(1))
    assert "late" not in seen and len(seen["act"]) == 1


def test_another_thread_is_not_seen(block):
    with capture(block) as seen:
        worker = threading.Thread(target=lambda: block(torch.ones(1, 3)))
        worker.start()
        worker.join()
    assert seen == {}


def test_an_unmatched_pattern_raises_with_the_candidates(block):
    with pytest.raises(KeyError, match=r"no module or tap matches \['iner'\].*'inner'"), capture(block, "iner", "inner"):
        block(torch.ones(1, 3))
    assert hooks(block) == 0


def test_an_unmatched_pattern_does_not_hide_the_error_of_the_block(block):
    with pytest.raises(RuntimeError, match="first"), capture(block, "iner"):
        raise RuntimeError("first")


def test_what_is_no_module_is_refused():
    with pytest.raises(TypeError, match="model"), capture("inner"):
        pass

"""Claims hold or fail as stated, say everything when they fail, and leave a record that tools can read."""

import json
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from IPython.utils.capture import capture_output
from kexue.book import ClaimFailed, chapter, wrong_verdicts
from kexue.book.claims import evaluate


@pytest.fixture
def ch():
    return chapter("random-angles", scale="smoke", seed=3)


@pytest.mark.parametrize(
    ("measured", "relation", "limit", "passed"),
    [
        (1, "<", 2, True),
        (2, "<", 2, False),
        (2, "<=", 2, True),
        (3, "<=", 2, False),
        (3, ">", 2, True),
        (2, ">", 2, False),
        (2, ">=", 2, True),
        (1, ">=", 2, False),
        (2, "==", 2, True),
        (2, "==", 3, False),
        (0.5, "in", (0.5, 1.0), True),
        (1.0, "in", (0.5, 1.0), True),
        (1.1, "in", (0.5, 1.0), False),
        (0.4, "in", (0.5, 1.0), False),
        (math.inf, "<=", math.inf, True),
    ],
)
def test_relation_matches_its_meaning(measured, relation, limit, passed):
    assert evaluate("an-id", "A sentence.", measured, relation, limit).passed is passed


@pytest.mark.parametrize("relation", ["<", "<=", ">", ">=", "=="])
@given(x=st.floats(allow_nan=False))
def test_nan_never_holds(relation, x):
    assert not evaluate("an-id", "A sentence.", math.nan, relation, x).passed
    assert not evaluate("an-id", "A sentence.", x, relation, math.nan).passed


def test_nan_never_holds_in_an_interval():
    assert not evaluate("an-id", "A sentence.", math.nan, "in", (0, 1)).passed
    assert not evaluate("an-id", "A sentence.", 0.5, "in", (math.nan, 1)).passed


def test_record_survives_json_and_keeps_the_claim():
    claim = evaluate(
        "an-id", "Two\n words.", torch.tensor(0.25), "in", (np.float64(0), math.inf), unit="deg", draws=100, error_probability=1e-3
    )
    record = json.loads(json.dumps(claim.record(), allow_nan=False))
    assert record == {
        "id": "an-id",
        "sentence": "Two words.",
        "measured": 0.25,
        "relation": "in",
        "limit": [0, "inf"],
        "passed": True,
        "unit": "deg",
        "draws": 100,
        "error_probability": 1e-3,
    }


def test_failed_claim_says_everything(ch):
    with capture_output(), pytest.raises(ClaimFailed) as caught:
        ch.claim("too-big", "The error is small.", 0.5, "<", 0.1, unit="deg")
    for part in ("too-big", "random-angles", "scale smoke", "seed 3", "The error is small.", "0.5", "<", "0.1", "deg"):
        assert part in str(caught.value)


def test_failed_claim_is_recorded_and_passed_over_in_evidence_runs(ch, monkeypatch):
    monkeypatch.setenv("KEXUE_EVIDENCE", "1")
    with capture_output() as captured:
        ch.claim("too-big", "The error is small.", 0.5, "<", 0.1)
    assert captured.outputs[0].metadata["kexue"]["claim"]["passed"] is False


def test_shown_line_carries_text_html_and_record(ch):
    with capture_output() as captured:
        ch.claim("a-bound", "For $n<3$ & more.", 0.5, "<=", 1.0, draws=10, error_probability=0.01)
    (output,) = captured.outputs
    assert output.data["text/plain"].startswith("✓ a-bound: For $n<3$ & more. — measured 0.5 ≤ 1")
    assert 'id="claim-a-bound"' in output.data["text/html"]
    assert "n&lt;3" in output.data["text/html"] and "&amp; more" in output.data["text/html"]
    assert output.metadata["kexue"]["claim"]["measured"] == 0.5


def test_duplicate_ids_are_refused(ch):
    with capture_output():
        ch.claim("one-id", "A sentence.", 1, "<", 2)
        with pytest.raises(ValueError, match="'one-id' is used twice in chapter 'random-angles'"):
            ch.claim("one-id", "Another sentence.", 1, "<", 2)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"id": "Not Kebab"}, ValueError, "lower-case words joined by hyphens, got 'Not Kebab'"),
        ({"sentence": "  "}, ValueError, "non-empty string"),
        ({"relation": "~"}, ValueError, "must be one of <, <=, >, >=, ==, in, got '~'"),
        ({"relation": "in"}, ValueError, r"pair \(low, high\)"),
        ({"relation": "in", "limit": (2, 1)}, ValueError, "low <= high"),
        ({"measured": torch.zeros(2)}, TypeError, "single real number, got Tensor"),
        ({"measured": "1"}, TypeError, "single real number, got str"),
        ({"measured": 1j}, TypeError, "single real number, got complex"),
        ({"limit": None}, TypeError, "limit of claim 'an-id' must be a single real number"),
        ({"draws": 0}, ValueError, "positive integer, got 0"),
        ({"draws": True}, ValueError, "positive integer, got True"),
        ({"error_probability": 0.0}, ValueError, r"in \(0, 1\), got 0.0"),
        ({"error_probability": 1.0}, ValueError, r"in \(0, 1\), got 1.0"),
    ],
)
def test_bad_arguments_are_refused_by_name(change, error, message):
    arguments = {"id": "an-id", "sentence": "A sentence.", "measured": 1.0, "relation": "<", "limit": 2.0} | change
    with pytest.raises(error, match=message):
        evaluate(**arguments)


def test_wrong_verdicts_count_refused_sense_served_nonsense_and_accidents() -> None:
    def fail(error: type[Exception]) -> Callable[[], None]:
        def request() -> None:
            raise error

        return request

    refusals = [fail(error) for error in (ValueError, TypeError, KeyError, NotImplementedError)]
    assert wrong_verdicts([lambda: None, lambda: 1], refusals) == 0
    assert wrong_verdicts(refusals, [lambda: None]) == 5
    assert wrong_verdicts([fail(IndexError)], [fail(ZeroDivisionError)]) == 2

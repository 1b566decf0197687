"""Evidence counts what was measured, replaces what was measured again and keeps the rest, in a file that depends on nothing else."""

import json
import math
import random

import pytest
from kexue.book import evidence, normalise
from kexue.book.claims import evaluate
from kexue.book.execution import Result, Task
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output


def finished(chapter="f-gan", scale="cpu", seed=0, *, claims=None, outcome="ok", device="cpu", versions=None):
    """A finished task; ``claims`` maps ids to (measured, limit)."""
    claims = {"is-small": (0.5, 1.0)} if claims is None else claims
    records = [
        evaluate(name, f"It is {name}.", x, "in" if isinstance(limit, tuple) else "<", limit).record()
        for name, (x, limit) in claims.items()
    ]
    outputs = [new_output("display_data", data={"text/plain": "x"}, metadata={"kexue": {"claim": record}}) for record in records]
    cells = [new_markdown_cell("text"), new_code_cell("1", outputs=[new_output("stream", text="a"), *outputs])]
    text = normalise.to_text(normalise.normalise(new_notebook(cells=cells)))
    result = Result(chapter, scale, seed, "key", outcome, 2.5, 300.0, device, "", versions or {"torch": "2.0"})
    return Task(chapter, "path", text, scale, seed, True, "key"), result, text


def claim(found, chapter="f-gan", name="is-small"):
    (row,) = [row for row in found["claims"] if (row["chapter"], row["id"]) == (chapter, name)]
    return row


BOOK = {"f-gan": "is-small is-bounded", "random-angles": "is-small"}
EMPTY = {"schema": 1, "versions": {}, "runs": [], "claims": []}


def test_claims_of_a_notebook_come_in_their_order():
    cells = [new_code_cell("1"), new_markdown_cell("is-first")]
    for name in ("b-b", "a-a"):
        cells.append(new_code_cell("1", outputs=[new_output("display_data", metadata={"kexue": {"claim": {"id": name}}})]))
    cells[0].outputs = [new_output("display_data", metadata={"kexue": {"slider": {}}}), new_output("stream", text="a")]
    assert evidence.claims_of(new_notebook(cells=cells)) == [{"id": "b-b"}, {"id": "a-a"}]


def test_failed_claims_are_counted_with_their_values():
    runs = [finished(seed=seed, claims={"is-small": (value, 1.0)}) for seed, value in enumerate([0.5, 2.0, math.nan, 0.25])]
    row = claim(evidence.collect(runs))
    assert row["results"] == {"cpu": {"device": "cpu", "n": 4, "passed": 2, "values": [0.5, 2.0, "nan", 0.25]}}
    assert {k: v for k, v in row.items() if k != "results"} == {
        "chapter": "f-gan",
        "id": "is-small",
        "sentence": "It is is-small.",
        "relation": "<",
        "limit": 1.0,
        "unit": None,
    }


def test_equal_limits_collapse_and_others_stand_beside_the_values():
    same = claim(evidence.collect([finished(seed=seed, claims={"is-small": (0.5, (0.0, 1.0))}) for seed in (0, 1)]))
    assert same["limit"] == [0.0, 1.0] and "limits" not in same["results"]["cpu"]
    runs = [finished(seed=0, claims={"is-small": (0.5, 1.0)}), finished(seed=1, claims={"is-small": (0.5, 3.0)})]
    differ = claim(evidence.collect(reversed(runs)))
    assert differ["limit"] == 1.0 and differ["results"]["cpu"]["limits"] == [1.0, 3.0]
    by_scale = claim(evidence.collect([finished(), finished(scale="gpu", claims={"is-small": (0.5, 0.75)})]))
    assert "limits" not in by_scale["results"]["cpu"] and by_scale["results"]["gpu"]["limits"] == [0.75]


def test_values_keep_six_significant_digits():
    row = claim(evidence.collect([finished(claims={"is-small": (0.123456789, (0.0, 1.23456789e9))})]))
    assert row["results"]["cpu"]["values"] == [0.123457] and row["limit"] == [0.0, 1.23457e9]


def test_every_run_is_recorded_even_without_claims():
    runs = evidence.collect([finished(seed=1, claims={}, outcome="lost", device="unknown"), finished(seed=0)])["runs"]
    assert [(r["seed"], r["outcome"]) for r in runs] == [(0, "ok"), (1, "lost")]
    assert runs[0] == {"chapter": "f-gan", "scale": "cpu", "seed": 0, "device": "cpu", "outcome": "ok", "seconds": 2.5, "peak_mb": 300.0}


def test_file_does_not_depend_on_the_order_in_which_runs_finish():
    runs = [finished(c, scale, seed) for c in BOOK for scale in ("smoke", "cpu", "gpu") for seed in range(3)]
    text = evidence.to_text(evidence.merge(EMPTY, evidence.collect(runs), BOOK))
    random.Random(0).shuffle(runs)
    assert evidence.to_text(evidence.merge(EMPTY, evidence.collect(runs), BOOK)) == text
    rows = [(r["chapter"], r["scale"], r["seed"]) for r in json.loads(text)["runs"]]
    assert rows == [(c, scale, seed) for c in ("f-gan", "random-angles") for scale in ("smoke", "cpu", "gpu") for seed in range(3)]
    one_at_a_time = EMPTY
    for chapter in BOOK:
        for scale in ("gpu", "cpu", "smoke"):
            new = evidence.collect([run for run in runs if (run[0].chapter, run[0].scale) == (chapter, scale)])
            one_at_a_time = evidence.merge(one_at_a_time, new, BOOK)
    assert evidence.to_text(one_at_a_time) == text


def test_text_survives_the_file_and_has_a_line_per_run_and_claim(tmp_path):
    found = evidence.merge(EMPTY, evidence.collect([finished(), finished("random-angles")]), BOOK)
    text = evidence.to_text(found)
    (tmp_path / "evidence.json").write_text(text, encoding="utf-8")
    assert evidence.load(tmp_path / "evidence.json") == found
    assert evidence.to_text(evidence.load(tmp_path / "evidence.json")) == text
    assert sum(line.startswith("  {") for line in text.splitlines()) == 4 and text.endswith("}\n")
    assert json.loads(evidence.to_text(EMPTY)) == EMPTY


def test_no_file_is_no_evidence_and_another_schema_is_refused(tmp_path):
    path = tmp_path / "evidence.json"
    assert evidence.load(path) == EMPTY
    path.write_text('{"schema": 2}')
    with pytest.raises(ValueError, match=r"schema of .*evidence.json must be 1, got 2"):
        evidence.load(path)


def test_measurement_on_an_accelerator_leaves_that_on_the_cpu():
    old = evidence.merge(EMPTY, evidence.collect([finished(), finished("random-angles")]), BOOK)
    gpu = finished(scale="gpu", device="H200", claims={"is-small": (0.75, 1.0)}, versions={"torch": "2.0+cu", "numpy": "2"})
    new = evidence.merge(old, evidence.collect([gpu]), BOOK)
    assert claim(new)["results"]["cpu"] == claim(old)["results"]["cpu"]
    assert claim(new)["results"]["gpu"] == {"device": "H200", "n": 1, "passed": 1, "values": [0.75]}
    assert claim(new, "random-angles") == claim(old, "random-angles")
    assert [(r["chapter"], r["scale"]) for r in new["runs"]] == [("f-gan", "cpu"), ("f-gan", "gpu"), ("random-angles", "cpu")]
    assert new["versions"]["torch"] == "2.0" and new["versions"]["torch (gpu)"] == "2.0+cu"


def test_versions_on_an_accelerator_are_told_apart_whatever_the_order_of_chapters():
    for gpu, cpu in (("f-gan", "random-angles"), ("random-angles", "f-gan")):
        runs = [finished(gpu, "gpu", versions={"torch": "2.0+cu", "numpy": "2"}), finished(cpu, versions={"torch": "2.0", "numpy": "2"})]
        versions = evidence.merge(EMPTY, evidence.collect(runs), BOOK)["versions"]
        assert versions == {"torch": "2.0", "torch (gpu)": "2.0+cu", "numpy": "2", "numpy (gpu)": "2"}


def test_measuring_again_replaces_runs_and_values():
    old = evidence.merge(EMPTY, evidence.collect([finished(seed=seed) for seed in range(3)]), BOOK)
    new = evidence.merge(old, evidence.collect([finished(claims={"is-small": (2.0, 1.0)})]), BOOK)
    assert len(new["runs"]) == 1
    assert claim(new)["results"] == {"cpu": {"device": "cpu", "n": 1, "passed": 0, "values": [2.0]}}


def test_changed_limit_stands_beside_older_values():
    old = evidence.merge(EMPTY, evidence.collect([finished(scale="gpu", seed=seed) for seed in (0, 1)]), BOOK)
    new = claim(evidence.merge(old, evidence.collect([finished(claims={"is-small": (0.5, 3.0)})]), BOOK))
    assert new["limit"] == 3.0 and new["results"]["gpu"]["limits"] == [1.0, 1.0] and "limits" not in new["results"]["cpu"]


def test_claims_and_chapters_that_are_gone_are_dropped():
    both = {"is-small": (0.5, 1.0), "is-bounded": (0.5, 1.0)}
    old = evidence.merge(EMPTY, evidence.collect([finished(scale="gpu", claims=both), finished("random-angles")]), BOOK)
    assert len(old["claims"]) == 3
    new = evidence.merge(old, evidence.collect([finished()]), {"f-gan": "is-small alone"})
    assert [(c["chapter"], c["id"]) for c in new["claims"]] == [("f-gan", "is-small")]
    assert [(r["chapter"], r["scale"]) for r in new["runs"]] == [("f-gan", "cpu"), ("f-gan", "gpu")]

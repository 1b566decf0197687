"""The canonical form forgets how a notebook was run and keeps everything else; files are replaced whole or not at all."""

import copy
import os
import stat

import nbformat
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kexue.book import normalise
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

CANONICAL_KEYS = {"kernelspec", "language_info"}


def stream(text, name="stdout"):
    return new_output("stream", name=name, text=text)


def code(outputs=(), source="1", tags=(), count=1, **metadata):
    return new_code_cell(source, execution_count=count, outputs=list(outputs), metadata=metadata | ({"tags": list(tags)} if tags else {}))


def outputs_of(*outputs):
    """The outputs of a cell in canonical form."""
    return normalise.normalise(new_notebook(cells=[code(outputs)])).cells[0].outputs


OUTPUTS = st.one_of(
    st.builds(stream, st.text(max_size=8), st.sampled_from(["stdout", "stderr"])),
    st.builds(lambda d: new_output("display_data", data={"text/plain": d, "image/png": f"{d}\n"}, metadata={"a": 1}), st.text(max_size=8)),
    st.builds(lambda d, n: new_output("execute_result", data={"text/plain": d}, execution_count=n), st.text(max_size=8), st.integers(1, 9)),
    st.builds(lambda d: new_output("error", ename="E", evalue=d, traceback=[d]), st.text(max_size=8)),
)
CELLS = st.one_of(
    st.builds(
        code,
        st.lists(OUTPUTS, max_size=4),
        st.text("ab \n", max_size=6),
        st.sampled_from([(), ("setup",), ("injected-parameters",)]),
        st.one_of(st.none(), st.integers(1, 9)),
        papermill=st.just({"duration": 1.0}),
    ),
    st.builds(new_markdown_cell, st.text("ab \n", max_size=6)),
)


@given(st.lists(CELLS, max_size=5))
def test_normalise_is_idempotent_leaves_its_argument_alone_and_stays_valid(cells):
    notebook = new_notebook(cells=cells, metadata={"kexue": {"slug": "a"}, "papermill": {"version": "1"}})
    before = copy.deepcopy(notebook)
    once = normalise.normalise(notebook)
    assert notebook == before
    assert normalise.normalise(once) == once and normalise.to_text(normalise.normalise(once)) == normalise.to_text(once)
    nbformat.validate(once)
    assert len({cell.id for cell in once.cells}) == len(once.cells)


@given(st.lists(CELLS, max_size=5))
def test_text_and_notebook_survive_the_round_trip_through_a_file(cells):
    canonical = normalise.normalise(new_notebook(cells=cells))
    text = normalise.to_text(canonical)
    assert text.endswith("}\n") and normalise.to_text(nbformat.reads(text, as_version=4)) == text
    assert normalise.normalise(nbformat.reads(text, as_version=4)) == canonical


def test_traces_of_tools_go_and_the_chapters_own_metadata_stays():
    cell = code(tags=["card"], mystnb={"image": {"alt": "a line"}}, papermill={"duration": 3.0}, execution={"iopub.status.busy": "now"})
    metadata = {
        "kexue": {"slug": "a"},
        "mystnb": {"b": 1},
        "papermill": {},
        "widgets": {},
        "kernelspec": {"name": "mine", "display_name": "Mine"},
    }
    result = normalise.normalise(new_notebook(cells=[cell], metadata=metadata))
    assert set(result.metadata) == {"kexue", "mystnb"} | CANONICAL_KEYS and result.metadata.kernelspec.name == "python3"
    assert "version" not in result.metadata.language_info
    assert result.cells[0].metadata == {"tags": ["card"], "mystnb": {"image": {"alt": "a line"}}}
    assert (result.nbformat, result.nbformat_minor) == (4, 5)


def test_cell_of_injected_parameters_is_dropped():
    result = normalise.normalise(new_notebook(cells=[code(source="a = 1"), code(source="a = 2", tags=["injected-parameters"])]))
    assert [cell.source for cell in result.cells] == ["a = 1"]


def test_ids_come_from_content_and_count_repetitions():
    one, two, three, four = normalise.normalise(
        new_notebook(cells=[code(source="x"), code([stream("a")], source="x"), code(source="y"), new_markdown_cell("x")])
    ).cells
    assert two.id == f"{one.id}-2" and len({one.id, three.id, four.id}) == 3
    again = normalise.normalise(new_notebook(cells=[code(source="y"), code(source="x")])).cells
    assert [cell.id for cell in again] == [three.id, one.id]


def test_execution_counts_and_attachments_are_kept():
    picture = new_markdown_cell("![](attachment:a.png)  \n", attachments={"a.png": {"image/png": "AA=="}})
    result = normalise.normalise(new_notebook(cells=[code(count=7), code(count=None), picture]))
    assert [cell.get("execution_count") for cell in result.cells] == [7, None, None]
    assert result.cells[2].attachments == {"a.png": {"image/png": "AA=="}} and result.cells[2].source == "![](attachment:a.png)"


def test_pieces_of_one_stream_are_joined_where_it_began():
    shown = new_output("display_data", data={"text/plain": "x"})
    joined = outputs_of(stream("a"), stream("warning", "stderr"), shown, stream("b"))
    assert [(o.get("name"), o.get("text")) for o in joined] == [("stdout", "ab"), ("stderr", "warning"), (None, None)]


@pytest.mark.parametrize(
    ("text", "kept"), [("\r\x1b[A\x1b[2K \n", False), ("", False), ("\x1b[31mred\x1b[0m", True), ("0it [00:00, ?it/s]", True)]
)
def test_stderr_disappears_only_where_nothing_can_be_seen(text, kept):
    assert bool(outputs_of(stream(text, "stderr"))) is kept
    assert len(outputs_of(stream(text, "stdout"))) == 1


def test_each_kind_of_output_keeps_what_it_says():
    claim = {"kexue": {"claim": {"id": "a"}}}
    picture = new_output(
        "display_data", data={"image/png": "AA==\n", "text/plain": "<Figure>\n"}, metadata={"kexue": {"claim": {"id": "a"}}}
    )
    result = new_output("execute_result", data={"text/plain": "3"}, execution_count=4)
    error = new_output("error", ename="E", evalue="message", traceback=["line"])
    shown = outputs_of(picture, result, error)
    assert shown[0] == {
        "output_type": "display_data",
        "data": {"image/png": "AA==", "text/plain": "<Figure>\n"},
        "metadata": claim,
    }
    assert shown[1] == {"output_type": "execute_result", "data": {"text/plain": "3"}, "metadata": {}, "execution_count": 4}
    assert shown[2] == {"output_type": "error", "ename": "E", "evalue": "message", "traceback": ["line"]}


@pytest.mark.parametrize("text", ["not json", "{}", "[]", '{"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": 3}'])
def test_reading_something_else_is_refused_by_file_name(text, tmp_path):
    path = tmp_path / "broken.ipynb"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"broken\.ipynb is not a Jupyter notebook"):
        normalise.read(path)


def test_reading_gives_what_was_written(tmp_path):
    notebook = normalise.normalise(new_notebook(cells=[new_markdown_cell("# Überschrift")]))
    assert normalise.write_atomically(tmp_path / "a.ipynb", normalise.to_text(notebook))
    assert normalise.read(tmp_path / "a.ipynb") == notebook


def test_writing_says_whether_anything_changed(tmp_path):
    path = tmp_path / "new" / "folder" / "a.txt"
    assert normalise.write_atomically(path, "one é\n") is True and path.read_bytes() == "one é\n".encode()
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    stamp = path.stat().st_mtime_ns
    assert normalise.write_atomically(path, "one é\n") is False and path.stat().st_mtime_ns == stamp
    path.chmod(0o640)
    assert normalise.write_atomically(path, "two\r\n") is True and path.read_bytes() == b"two\r\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("step", ["replace", "chmod", "fdopen"])
def test_failure_or_interruption_while_writing_leaves_the_original_and_nothing_else(step, tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text("original")

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, step, interrupted)
    with pytest.raises(KeyboardInterrupt):
        normalise.write_atomically(path, "half")
    monkeypatch.undo()
    assert path.read_text() == "original" and [p.name for p in tmp_path.iterdir()] == ["a.txt"]

"""Glued numbers and tables show what they were given, in the form that the site and nbval read."""

import pytest
import torch
from IPython.utils.capture import capture_output
from kexue.book import glue, table


def shown(function, *args, **kwargs):
    with capture_output() as captured:
        function(*args, **kwargs)
    (output,) = captured.outputs
    return output


def test_glue_record_has_myst_nb_form():
    output = shown(glue, "a-key", torch.tensor(-1.25), ".1f")
    assert output.data == {"application/papermill.record/text/plain": "'−1.2'"}
    assert output.metadata["scrapbook"] == {"name": "a-key", "mime_prefix": "application/papermill.record/"}


@pytest.mark.parametrize(
    ("value", "spec", "text"), [(3, "d", "3"), (1e-5, ".0e", "1e-05"), (0.5, ".0%", "50%"), ("word", "", "word"), (True, "", "True")]
)
def test_glue_formats_only_as_told(value, spec, text):
    with capture_output():
        assert glue("key", value, spec) == text


def test_glued_text_reaches_the_page_with_its_final_zeros():
    from myst_nb.core.variables import format_plain_text

    stored = shown(glue, "key", 0.5, ".3f").data["application/papermill.record/text/plain"]
    assert format_plain_text(stored, "s") == "0.500"


def test_glue_refuses_bad_keys_and_nan():
    with pytest.raises(ValueError, match="joined by hyphens, got 'two words'"):
        glue("two words", 1)
    with pytest.raises(ValueError, match="'key' is NaN"):
        glue("key", float("nan"))


ROWS = [{"model": "a<b", "loss": 0.5, "seconds": None}, {"model": "c", "loss": torch.tensor(-0.25), "seconds": 3}]


def test_table_shows_every_cell_in_both_forms():
    data = shown(table, ROWS, formats={"loss": ".2f"}, caption="Two models").data
    assert data["text/plain"].splitlines() == ["Two models", "model   loss  seconds", "a<b     0.50        –", "c      −0.25        3"]
    assert "<caption>Two models</caption>" in data["text/html"] and "a&lt;b" in data["text/html"]


@pytest.mark.parametrize(("which", "best"), [("min", "1.00"), ("max", "2.00")])
def test_table_sets_the_best_value_bold(which, best):
    html = shown(table, [{"x": 1.0}, {"x": 2.0}], formats={"x": ".2f"}, best={"x": which}).data["text/html"]
    assert f"<strong>{best}</strong>" in html and html.count("<strong>") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rows": []}, "at least one row"),
        ({"rows": [{"a": 1}, {"b": 1}]}, r"row 1 has \['b'\]"),
        ({"rows": [{"a": 1}], "formats": {"b": ""}}, "unknown column 'b'"),
        ({"rows": [{"a": 1}], "best": {"a": "median"}}, "'min' or 'max', got 'median'"),
    ],
)
def test_table_refuses_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        table(**arguments)

"""Interactive figures: what they refuse, what they draw, and that they are the same in every run."""

from __future__ import annotations

import json
import math
import re
import urllib.parse

import numpy as np
import pytest
import torch
from bs4 import BeautifulSoup
from hypothesis import given
from hypothesis import strategies as st
from IPython.utils.capture import capture_output
from kexue.book.interactive import HEIGHT, WIDTH, Curve, slider

LABELS = {"xlabel": "angle (degrees)", "ylabel": "density", "alt": "A flat line becomes a needle."}


def slider_html(*arguments, **options) -> str:
    """The HTML that a call of slider displays."""
    with capture_output() as captured:
        slider(*arguments, **options)
    (output,) = captured.outputs
    return output.data["text/html"]


def drawing(page: str) -> dict:
    return json.loads(BeautifulSoup(page, "html.parser").select_one(".kx-frames").string)


def points(path: str) -> list[tuple[int, int]]:
    """Absolute points of a path of one piece: a move and relative steps."""
    start, _, steps = path[1:].partition("l")
    u, v = (int(n) for n in start.split())
    result = [(u, v)]
    numbers = [int(n) for n in re.findall(r"-?\d+", steps)]
    for du, dv in zip(numbers[::2], numbers[1::2], strict=True):
        u, v = u + du, v + dv
        result.append((u, v))
    return result


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=40))
def test_line_law_the_path_passes_through_the_data(data: list[tuple[float, float]]) -> None:
    x, y = zip(*data, strict=True)
    page = slider_html({1: [Curve(x, y)]}, "n", xlim=(0, 1), ylim=(0, 1), **LABELS)
    wanted = [(WIDTH * a, HEIGHT * (1 - b)) for a, b in data]
    assert np.abs(np.array(points(drawing(page)["f"][0][0][0])) - np.array(wanted)).max() <= 1  # one tenth of a pixel


@pytest.mark.parametrize("convert", [list, tuple, np.array, torch.tensor, lambda v: torch.tensor(v, requires_grad=True)])
def test_curve_takes_sequences_arrays_and_tensors_alike(convert) -> None:
    assert Curve(convert([0.0, 1.0]), convert([2.0, 3.0])).y == (2.0, 3.0)


def test_coordinates_keep_four_significant_digits() -> None:
    assert Curve([0.123456], [98765.4]).x == (0.1235,)
    assert Curve([0.123456], [98765.4]).y == (98770.0,)


def test_logarithmic_axes_place_decades_evenly_and_leave_out_what_is_not_positive() -> None:
    page = slider_html({1: [Curve([1, 10, 100], [1e-4, 0.0, 1.0])]}, xscale="log", yscale="log", ylim=(1e-4, 1), **LABELS)
    assert drawing(page)["f"][0][0][0] == f"M0 {HEIGHT}h0M{WIDTH} 0h0"
    assert [tick.string for tick in BeautifulSoup(page, "html.parser").select(".kx-xticks span")] == ["10⁰", "10¹", "10²"]


def test_narrow_logarithmic_axis_has_plain_numbers() -> None:
    page = slider_html({1: [Curve([1, 2], [3, 4])]}, xscale="log", **LABELS)
    texts = [tick.string for tick in BeautifulSoup(page, "html.parser").select(".kx-xticks span")]
    assert texts[0] == "1" and all(re.fullmatch(r"[\d.]+", text) for text in texts)


@pytest.mark.parametrize("gap", [math.nan, math.inf])
def test_values_that_are_not_finite_interrupt_the_line(gap: float) -> None:
    page = slider_html({1: [Curve([0, 1, 2, 3, 4], [0, 1, gap, 1, 0])]}, **LABELS)
    assert drawing(page)["f"][0][0][0].count("M") == 2


def test_constant_data_get_an_axis_around_them() -> None:
    page = slider_html({1: [Curve([0, 1], [5, 5])]}, **LABELS)
    assert {v for _, v in points(drawing(page)["f"][0][0][0])} == {HEIGHT // 2}


def test_styles_points_are_dots_and_fill_is_closed_at_zero() -> None:
    frame = [Curve([0, 1], [0, 1], "dots", "points", "green"), Curve([0, 1], [1, 1], "area", "fill", "orange")]
    (dots, kind, label), (area, *_) = drawing(slider_html({1: frame}, ylim=(0, 1), **LABELS))["f"][0]
    assert dots == f"M0 {HEIGHT}h0M{WIDTH} 0h0" and kind == "kx-points kx-green" and label == "dots"
    assert area.endswith(f"V{HEIGHT}H0z")


def still(page: str) -> BeautifulSoup:
    """The picture that stands in for the figure where no script runs."""
    return BeautifulSoup(urllib.parse.unquote(re.search(r'src="data:image/svg\+xml,([^"]*)"', page)[1]), "html.parser")


def test_first_frame_is_a_picture_until_the_script_has_run() -> None:
    frames = {n: [Curve([0, 1], [0, n], f"$n={n}$")] for n in (1, 2, 3)}
    soup = BeautifulSoup(slider_html(frames, "$n$", start=1, title="Title", **LABELS), "html.parser")
    assert soup.select_one(".kx-curves path")["d"] == drawing(str(soup))["f"][1][0][0]
    assert soup.select_one(".kx-live").has_attr("hidden") and soup.select_one(".kx-live .kx-control")
    assert soup.select_one("img.kx-still")["alt"] == LABELS["alt"]
    assert soup.select_one("output").string == "2" and soup.select_one("input")["aria-valuetext"] == "n = 2"
    assert soup.select_one("label")["for"] == soup.select_one("input")["id"]
    assert soup.select_one(".kx-plot")["role"] == "img" and soup.select_one(".kx-plot")["aria-label"] == LABELS["alt"]


def test_frames_with_fewer_curves_leave_a_hidden_place_in_the_legend() -> None:
    frames = {1: [Curve([0, 1], [0, 1], "one")], 2: [Curve([0, 1], [0, 1], "one"), Curve([0, 1], [1, 0], "two")]}
    items = BeautifulSoup(slider_html(frames, **LABELS), "html.parser").select(".kx-legend li")
    assert [item.has_attr("hidden") for item in items] == [False, True]
    assert not BeautifulSoup(slider_html({1: [Curve([0, 1], [0, 1])]}, **LABELS), "html.parser").select(".kx-legend")


def test_text_is_escaped_and_the_payload_cannot_end_its_script() -> None:
    page = slider_html({"<b>": [Curve([0, 1], [0, 1], "</script><b>")]}, "a & b", title="x < y", **LABELS)
    assert page.count("</script>") == 2  # the two that end our own elements
    soup = BeautifulSoup(page, "html.parser")
    assert not soup.select("b")
    assert soup.select_one(".kx-legend span").string == "</script><b>"


def test_output_is_the_same_in_every_run_and_asks_nobody() -> None:
    frames = {0.5: [Curve([0, 1], [0, 1])], np.float64(2): [Curve([0, 1], [1, 0])]}
    first, second = (slider_html(frames, **LABELS) for _ in range(2))
    assert first == second
    own = first.replace(urllib.parse.quote('xmlns="http://www.w3.org/2000/svg"', safe="/:="), "").replace("url(%23area)", "")
    assert len(own) < len(first) and not re.search(r"https?:|//[a-z]|@import|url\(", own)


def test_still_picture_shows_the_first_frame_with_its_words() -> None:
    frame = [Curve([0, 1], [0, 1], "$x < 1$"), Curve([0, 1], [1, 0], "dots", style="points", colour="orange"), Curve([0, 1], [1, 1])]
    page = slider_html({1: [Curve([0, 1], [0, 0])], 2: frame}, "$n$", start=1, **LABELS)
    picture = still(page)
    drawn = [path["d"] for path in picture.select("g path")]
    assert drawn == [layer[0] for layer in drawing(page)["f"][1]]
    words = [text.string for text in picture.select("text")]
    assert {"n = 2", "x < 1", "dots", LABELS["xlabel"], LABELS["ylabel"]} <= set(words)
    assert all(x in words for x in ("0", "0.25", "1"))  # the ticks
    assert len(picture.select("path.kx-points")) == 2 and len(picture.select("path.kx-line")) == 3  # curves, and two labels of three
    assert "#c2530c" in picture.style.string


def test_slider_displays_html_and_text() -> None:
    with capture_output() as captured:
        slider({-1: [Curve([0, 1], [0, 1])], 2.5: [Curve([0, 1], [0, 1])]}, r"$\sigma$", **LABELS)
    (output,) = captured.outputs
    assert output.data["text/plain"] == "Interactive figure, sigma = -1, 2.5. A flat line becomes a needle."
    assert 'class="kx-slider"' in output.data["text/html"]


TWO = {
    "kl": {1: [Curve([0, 1], [0, 1], "one")], 2: [Curve([0, 1], [1, 0], "one")]},
    "js": {1: [Curve([0, 1], [0, 9])], 2: [Curve([0, 1], [9, 0])]},
}


def test_chooser_makes_one_figure_per_option_and_shows_the_first_without_script() -> None:
    soup = BeautifulSoup(slider_html(TWO, r"$\xi$", chooser="$f$", start=1, **LABELS), "html.parser")
    figures = soup.select(".kx-choice > .kx-slider")
    assert [figure.has_attr("hidden") for figure in figures] == [False, True]
    assert [option.string for option in soup.select("select option")] == ["kl", "js"]
    assert soup.select_one(".kx-choice > .kx-control").has_attr("hidden"), "a list that no script serves must not show"
    assert soup.select_one("select")["id"] == soup.select_one(".kx-choice > .kx-control label")["for"]
    assert len({tag["id"] for tag in soup.select("[id]")}) == len(soup.select("[id]"))
    assert len(soup.select("style")) == 1 and len(soup.select("script:not([type])")) == 3
    assert [figure.select_one("output").string for figure in figures] == ["2", "2"]


def test_each_option_has_its_own_axes_by_default_and_by_name() -> None:
    def top(page: str) -> list[str]:
        return [figure.select(".kx-yticks span")[-1].string for figure in BeautifulSoup(page, "html.parser").select(".kx-slider")]

    assert top(slider_html(TWO, chooser="f", **LABELS)) == ["1", "7.5"]
    assert top(slider_html(TWO, chooser="f", ylim=(0, 20), **LABELS)) == ["20", "20"]
    assert top(slider_html(TWO, chooser="f", ylim={"kl": (0, 20), "js": (0, 40)}, **LABELS)) == ["20", "40"]


def test_chooser_is_named_in_the_text_of_the_display() -> None:
    with capture_output() as captured:
        slider(TWO, "n", chooser="$f$", **LABELS)
    (output,) = captured.outputs
    assert output.data["text/plain"] == "Interactive figure, f = kl, js; n = 1, 2. A flat line becomes a needle."
    assert 'class="kx-choice"' in output.data["text/html"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Curve([0, 1], [0]), "y must have as many values as x, got 1 and 2"),
        (lambda: Curve([], []), "x must hold 1 to 200 points"),
        (lambda: Curve(range(201), range(201)), "x must hold 1 to 200 points .* got 201"),
        (lambda: Curve([0], [0], style="wavy"), "style must be one of 'line', .* got 'wavy'"),
        (lambda: Curve([0], [0], colour="red"), "colour must be one of 'blue', .* got 'red'"),
        (lambda: Curve(3.0, [0]), "x must be a one-dimensional sequence of real numbers, got float"),
        (lambda: Curve([[0.0]], [0]), "x must be a one-dimensional sequence of real numbers, got list"),
        (lambda: slider_html({}, **LABELS), "frames must map at least one parameter value"),
        (lambda: slider_html({1: []}, **LABELS), r"frames\[1\] must be a non-empty list of Curve objects"),
        (lambda: slider_html({1: [Curve([0], [0])]}, **{**LABELS, "alt": " "}), "alt must say what one sees"),
        (lambda: slider_html({1: [Curve([0], [0])]}, start=1, **LABELS), "start must be a position from 0 to 0, got 1"),
        (lambda: slider_html({1: [Curve([0], [0])]}, xlim=(1.0, 0.0), **LABELS), "xlim must be two increasing numbers"),
        (
            lambda: slider_html({1: [Curve([1], [1])]}, ylim=(0.0, 1.0), yscale="log", **LABELS),
            "ylim must be two increasing positive numbers",
        ),
        (lambda: slider_html({1: [Curve([0], [0])]}, yscale="cubic", **LABELS), "yscale must be one of 'linear', 'log', got 'cubic'"),
        (lambda: slider_html({1: [Curve([0], [0])]}, chooser="f", **LABELS), "frames must map every option of the chooser 'f' to frames"),
        (lambda: slider_html({}, chooser="f", **LABELS), "frames must map every option of the chooser 'f' to frames"),
        (
            lambda: slider_html({"a": {1: [Curve([0], [0])]}, "b": {2: [Curve([0], [0])]}}, chooser="f", **LABELS),
            "frames must have the same values of n for every option of the chooser 'f'",
        ),
        (lambda: slider_html(TWO, chooser="f", ylim={"kl": (0, 1)}, **LABELS), "ylim must name the options kl, js, got kl"),
        (lambda: slider_html({1: [Curve([1], [-1])]}, yscale="log", **LABELS), "y has no positive finite value to draw on a log axis"),
    ],
)
def test_refusals_name_argument_value_and_what_is_allowed(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()

r"""Interactive line figures that need neither a server nor a third party.

``slider`` draws one family of curves per value of a parameter and lets the reader move through the values. The whole figure - axes,
curves, script and style - is one HTML output: it works in JupyterLab and in the built page, follows the light or dark theme, scales
from a phone to a desk. Coordinates are computed here, rounded to a tenth of a pixel and shipped as SVG paths, so that the script only
exchanges them and the output is the same byte for byte in every run.

Where no script runs - in a notebook that JupyterLab does not trust yet, on a code host's preview, in a browser without JavaScript - a
still picture of the first frame stands in its place. It is an image, because notebook viewers strip SVG elements but not images; and
what they must not show is ``hidden="hidden"``, because they strip an attribute without a value.

With ``chooser`` there is a second control, a list of named options. Each option is a figure of its own, with its own axes and legend; the
list shows one of them and hands the place of the slider on to it.
"""

from __future__ import annotations

import hashlib
import html
import itertools
import json
import math
import re
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Curve", "slider"]

COLOURS = ("blue", "orange", "green", "purple", "grey")
STYLES = ("line", "dashed", "points", "fill")
SCALES = ("linear", "log")
MAX_POINTS = 200
DIGITS = 4  # significant digits kept of every coordinate
WIDTH, HEIGHT = 6000, 3750  # drawing units: ten per pixel at the full width of 600 px


@dataclass(frozen=True)
class Curve:
    """One line of an interactive figure.

    :param x: horizontal coordinates: any one-dimensional sequence, array or tensor of at most 200 numbers.
    :param y: vertical coordinates, as many as ``x``; a value that is not finite interrupts the line.
    :param label: text of the legend, or None to leave the curve out of it; ``$...$`` is mathematics.
    :param style: ``"line"``, ``"dashed"``, ``"points"`` or ``"fill"`` (a line with the area down to zero shaded).
    :param colour: ``"blue"``, ``"orange"``, ``"green"``, ``"purple"`` or ``"grey"``, in the shade that fits the theme.
    :raises ValueError: if the lengths differ, there are no or too many points, or style or colour is unknown.
    """

    x: Any
    y: Any
    label: str | None = None
    style: str = "line"
    colour: str = "blue"

    def __post_init__(self) -> None:
        _one_of("style", self.style, STYLES)
        _one_of("colour", self.colour, COLOURS)
        x, y = _numbers("x", self.x), _numbers("y", self.y)
        if len(x) != len(y):
            raise ValueError(f"y must have as many values as x, got {len(y)} and {len(x)}")
        if not 1 <= len(x) <= MAX_POINTS:
            raise ValueError(f"x must hold 1 to {MAX_POINTS} points (thin the curve out: a screen shows no more), got {len(x)}")
        object.__setattr__(self, "x", x)
        object.__setattr__(self, "y", y)


def slider(
    frames: Mapping[Any, Any],
    parameter: str = "n",
    *,
    xlabel: str,
    ylabel: str,
    alt: str,
    title: str | None = None,
    xlim: tuple[float | int, float | int] | None = None,
    ylim: Any = None,
    xscale: str = "linear",
    yscale: str = "linear",
    start: int = 0,
    chooser: str | None = None,
) -> None:
    r"""Show an interactive figure: one frame of curves per value of a parameter.

    All frames share the axes. ``$...$`` in labels, title and parameter is mathematics.

    :param frames: curves by parameter value, in the order of the slider: ``{2: [Curve(x, y)], 3: [...]}``; with a ``chooser`` such
        mappings by option, ``{"kl": {2: [...], 3: [...]}, "js": {...}}``.
    :param parameter: name of what the slider changes, for example ``"n"`` or ``r"$\sigma$"``.
    :param xlabel: name and unit of the horizontal axis.
    :param ylabel: name and unit of the vertical axis.
    :param alt: what one sees, in a sentence, for readers who do not see it.
    :param title: a heading above the drawing.
    :param xlim: ends of the horizontal axis; by default the range of all frames.
    :param ylim: ends of the vertical axis; by default the range of all frames with a small margin. With a ``chooser`` also a mapping
        that gives each option its own ends.
    :param xscale: ``"linear"`` or ``"log"``.
    :param yscale: ``"linear"`` or ``"log"``; points that are not positive are left out of a logarithmic axis.
    :param start: position (from 0) of the frame that is shown first.
    :param chooser: name of a second choice, shown as a list of the options of ``frames``; the first option is shown first.
    :raises ValueError: if there are no frames or curves, ``alt`` is empty, a limit, scale or start is out of range, or the options of a
        chooser differ in their values.
    """
    from IPython.display import display  # the figure is a notebook's display: IPython is there

    axes = {
        "xlabel": xlabel,
        "ylabel": ylabel,
        "xlim": xlim,
        "xscale": xscale,
        "yscale": yscale,
        "alt": alt,
        "title": title,
        "start": start,
    }
    page = _page(frames, parameter, ylim, **axes) if chooser is None else _choice(frames, parameter, chooser, ylim, axes)
    options = "" if chooser is None else f"{_plain(chooser)} = {', '.join(map(_value_text, frames))}; "
    values = ", ".join(map(_value_text, frames if chooser is None else next(iter(frames.values()))))
    display({"text/plain": f"Interactive figure, {options}{_plain(parameter)} = {values}. {alt}", "text/html": page}, raw=True)


def _page(frames, parameter, ylim, *, xlabel, ylabel, xlim, xscale, yscale, alt, title, start) -> str:
    """The HTML of one figure; arguments and errors are those of :func:`slider`."""
    _check(frames, alt, start)
    curves = [curve for frame in frames.values() for curve in frame]
    horizontal = _Axis("x", xscale, xlim, [v for curve in curves for v in curve.x], margin=0.0)
    below = [0.0] if any(curve.style == "fill" for curve in curves) and yscale == "linear" else []
    vertical = _Axis("y", yscale, ylim, [v for curve in curves for v in curve.y] + below, margin=0.04)
    drawn = [[_layer(curve, horizontal, vertical) for curve in frame] for frame in frames.values()]
    values = [_value_text(value) for value in frames]
    payload = json.dumps(
        {"p": _plain(parameter), "v": values, "f": drawn}, ensure_ascii=False, separators=(",", ":"), sort_keys=True
    ).replace("</", "<\\/")
    name = "kx-" + hashlib.sha256("\0".join([payload, parameter, xlabel, ylabel, alt, title or ""]).encode()).hexdigest()[:10]
    slots = max(len(frame) for frame in drawn)
    shown = drawn[start] + [["", "", ""]] * (slots - len(drawn[start]))
    paths = "".join(f'<path class="{kind}" d="{path}"/>' for path, kind, _ in shown)
    legend = "".join(f'<li class="{kind}"{"" if label else " hidden"}>{_SWATCH}<span>{label}</span></li>' for _, kind, label in shown)
    grid = "".join(f'<path d="M{u} 0V{HEIGHT}"/>' for u, _ in horizontal.ticks(WIDTH))
    grid += "".join(f'<path d="M0 {HEIGHT - v}H{WIDTH}"/>' for v, _ in vertical.ticks(HEIGHT))
    xticks = "".join(f'<span style="left:{100 * u / WIDTH:.2f}%">{text}</span>' for u, text in horizontal.ticks(WIDTH))
    yticks = "".join(f'<span style="bottom:{100 * v / HEIGHT:.2f}%">{text}</span>' for v, text in vertical.ticks(HEIGHT))
    gutter = max((len(text) for _, text in vertical.ticks(HEIGHT)), default=1)
    has_legend = any(label for frame in drawn for _, _, label in frame)
    still = _still(list(frames.values())[start], horizontal, vertical, xlabel, ylabel, f"{parameter} = {values[start]}")
    return (
        f'<div class="kx-slider" id="{name}" role="group" aria-label="{html.escape(_plain(title or alt), quote=True)}">'
        f"<style>{_STYLE}</style>"
        + (f'<p class="kx-title">{_rich(title)}</p>' if title else "")
        + f'<img class="kx-still" alt="{html.escape(_plain(alt), quote=True)}" src="{still}">'
        + f'<div class="kx-live" hidden="hidden"><div class="kx-plot" role="img" aria-label="{html.escape(_plain(alt), quote=True)}"'
        f' style="--kx-gutter:{gutter * 0.58 + 0.7:.2f}em">'
        f'<div class="kx-ylabel">{_rich(ylabel)}</div><div class="kx-area"><div class="kx-yticks">{yticks}</div>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" aria-hidden="true"><g class="kx-grid">{grid}</g>'
        f'<g class="kx-curves">{paths}</g></svg><div class="kx-xticks">{xticks}</div></div>'
        f'<div class="kx-xlabel">{_rich(xlabel)}</div></div>'
        + (f'<ul class="kx-legend">{legend}</ul>' if has_legend else "")
        + f'<div class="kx-control"><label for="{name}-range">{_rich(parameter)} = '
        f'<output for="{name}-range">{html.escape(values[start])}</output></label>'
        f'<input type="range" id="{name}-range" min="0" max="{len(values) - 1}" step="1" value="{start}"'
        f' aria-valuetext="{html.escape(_plain(parameter), quote=True)} = {html.escape(values[start], quote=True)}"></div></div>'
        f'<script type="application/json" class="kx-frames">{payload}</script>'
        f"<script>{_SCRIPT.replace('NAME', name)}</script></div>"
    )


def _choice(frames: Mapping[Any, Any], parameter: str, chooser: str, ylim: Any, axes: dict[str, Any]) -> str:
    """One figure per option below a list; all but the first are hidden, which is also what shows where no script runs."""
    if not isinstance(frames, Mapping) or not frames or not all(isinstance(inner, Mapping) for inner in frames.values()):
        raise ValueError(f"frames must map every option of the chooser {chooser!r} to frames, got {frames!r}")
    if len({tuple(map(_value_text, inner)) for inner in frames.values()}) > 1:
        raise ValueError(f"frames must have the same values of {parameter} for every option of the chooser {chooser!r}")
    if isinstance(ylim, Mapping) and set(ylim) != set(frames):
        raise ValueError(f"ylim must name the options {', '.join(map(str, frames))}, got {', '.join(map(str, ylim))}")
    limits = ylim if isinstance(ylim, Mapping) else dict.fromkeys(frames, ylim)
    pages = [_page(inner, parameter, limits[option], **axes) for option, inner in frames.items()]
    name = "kx-" + hashlib.sha256("\0".join([chooser, *map(str, frames), *pages]).encode()).hexdigest()[:10]
    options = "".join(f"<option>{html.escape(_plain(_value_text(option)))}</option>" for option in frames)
    for place in range(1, len(pages)):
        pages[place] = pages[place].replace(f"<style>{_STYLE}</style>", "", 1).replace(' role="group"', ' hidden="hidden" role="group"', 1)
    label = f'<label for="{name}-list">{_rich(chooser)}</label>'
    control = f'<div class="kx-control" hidden="hidden">{label}<select id="{name}-list">{options}</select></div>'
    return f'<div class="kx-choice" id="{name}">{control}{"".join(pages)}<script>{_CHOOSE.replace("NAME", name)}</script></div>'


def _still(curves: Sequence[Curve], horizontal: _Axis, vertical: _Axis, xlabel: str, ylabel: str, value: str) -> str:
    """A frame as the address of a picture that holds itself: dark on white, with axes, curves and legend."""
    text = '<text x="{}" y="{}" text-anchor="{}">{}</text>'.format
    below = HEIGHT + 460
    parts = [f'<path class="kx-grid" d="M{u} 0V{HEIGHT}"/>{text(u, HEIGHT + 210, "middle", tick)}' for u, tick in horizontal.ticks(WIDTH)]
    for v, tick in vertical.ticks(HEIGHT):
        parts.append(f'<path class="kx-grid" d="M0 {HEIGHT - v}H{WIDTH}"/>{text(-60, HEIGHT - v + 45, "end", tick)}')
    for curve in curves:
        path, kind, _ = _layer(curve, horizontal, vertical)
        parts.append(f'<g clip-path="url(#area)"><path class="{kind}" d="{path}"/></g>')
    for place, label, anchor in [((-550, -130), ylabel, "start"), ((WIDTH, below), xlabel, "end"), ((0, below), value, "start")]:
        parts.append(text(*place, anchor, html.escape(_plain(label))))
    legend = [curve for curve in curves if curve.label]
    for row, curve in enumerate(legend, start=1):
        sign = "M150 {}h0" if curve.style == "points" else "M0 {}h300"
        parts.append(f'<path class="kx-{curve.style} kx-{curve.colour}" d="{sign.format(below + 230 * row - 45)}"/>')
        parts.append(text(420, below + 230 * row, "start", html.escape(_plain(curve.label))))
    box = f'x="-600" y="-360" width="{WIDTH + 800}" height="{below + 480 + 230 * len(legend)}"'
    drawing = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{" ".join(re.findall("-?[0-9]+", box))}"><style>{_STILL}</style>'
        f'<clipPath id="area"><path d="M0 0H{WIDTH}V{HEIGHT}H0z"/></clipPath><rect {box} fill="#fff"/>'
        f'{"".join(parts)}<path class="kx-axis" d="M0 0V{HEIGHT}H{WIDTH}"/></svg>'
    )
    return "data:image/svg+xml," + urllib.parse.quote(drawing, safe="/:=;,()!*+ ")


class _Axis:
    """A linear or logarithmic axis: maps values to drawing units and finds its ticks."""

    def __init__(
        self, name: str, scale: str, limits: tuple[float | int, float | int] | None, values: list[float], *, margin: float
    ) -> None:
        _one_of(f"{name}scale", scale, SCALES)
        self.log = scale == "log"
        usable = [v for v in values if math.isfinite(v) and (v > 0 or not self.log)]
        if limits is None:
            if not usable:
                raise ValueError(f"{name} has no {'positive ' if self.log else ''}finite value to draw on a {scale} axis")
            low, high = self._forward(min(usable)), self._forward(max(usable))
            pad = (high - low) * margin or (0.0 if high > low else 0.5)
            self.low, self.high = low - pad, high + pad
        else:
            if len(limits) != 2 or not all(math.isfinite(v) for v in limits) or not limits[0] < limits[1] or (self.log and limits[0] <= 0):
                raise ValueError(f"{name}lim must be two increasing {'positive ' if self.log else ''}numbers, got {limits}")
            self.low, self.high = self._forward(float(limits[0])), self._forward(float(limits[1]))

    def _forward(self, value: float) -> float:
        return math.log10(value) if self.log else value

    def place(self, value: float, size: int) -> int | None:
        """Position of a value in drawing units, None where the axis has no place for it; far outside is kept near the edge."""
        if not math.isfinite(value) or (self.log and value <= 0):
            return None
        return round(size * min(max((self._forward(value) - self.low) / (self.high - self.low), -3.0), 4.0))

    def ticks(self, size: int) -> list[tuple[int, str]]:
        """Pairs (position in drawing units, text) of about five round values."""
        span = self.high - self.low
        step = max(1, math.ceil(span / 5)) if self.log and span >= 1.5 else _round_step(span / 4.5)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        exponents = [k * step for k in range(first, last + 1)]
        if self.log and span >= 1.5:
            texts = [f"10{str(int(e)).translate(_SUPERSCRIPT)}" for e in exponents]
        elif self.log:  # less than two decades: plain numbers, evenly spread
            texts = [_number_text(float(f"{10**e:.2g}")) for e in exponents]
            exponents = [math.log10(float(f"{10**e:.2g}")) for e in exponents]
        else:
            texts = [_number_text(float(f"{e:.6g}")) for e in exponents]
        return [(min(max(round(size * (e - self.low) / span), 0), size), text) for e, text in zip(exponents, texts, strict=True)]


def _layer(curve: Curve, horizontal: _Axis, vertical: _Axis) -> list[str]:
    """SVG path, class and legend text of a curve; the path moves relatively, which halves its length."""
    pieces: list[list[tuple[int, int]]] = [[]]
    for x, y in zip(curve.x, curve.y, strict=True):
        u, v = horizontal.place(x, WIDTH), vertical.place(y, HEIGHT)
        if u is None or v is None:
            pieces.append([])
        else:
            pieces[-1].append((u, HEIGHT - v))
    pieces = [piece for piece in pieces if piece]
    if curve.style == "points":
        path = "".join(f"M{u} {v}h0" for piece in pieces for u, v in piece)
    else:
        path = "".join(_relative(piece) for piece in pieces)
    if curve.style == "fill":
        ground = HEIGHT - (vertical.place(0.0, HEIGHT) or 0)
        path = "".join(f"{_relative(piece)}V{ground}H{piece[0][0]}z" for piece in pieces)
    return [path, f"kx-{curve.style} kx-{curve.colour}", _rich(curve.label) if curve.label else ""]


def _relative(piece: list[tuple[int, int]]) -> str:
    steps = [f"{u - a}{v - b if v < b else f' {v - b}'}" for (a, b), (u, v) in itertools.pairwise(piece)]
    return f"M{piece[0][0]} {piece[0][1]}" + (f"l{' '.join(steps)}" if steps else "h0")


def _check(frames: Mapping[Any, Sequence[Curve]], alt: str, start: int) -> None:
    if not isinstance(frames, Mapping) or not frames:
        raise ValueError(f"frames must map at least one parameter value to a list of curves, got {frames!r}")
    for value, frame in frames.items():
        if not frame or not all(isinstance(curve, Curve) for curve in frame):
            raise ValueError(f"frames[{value!r}] must be a non-empty list of Curve objects, got {frame!r}")
    if not alt.strip():
        raise ValueError("alt must say what one sees, got an empty text")
    if not 0 <= start < len(frames):
        raise ValueError(f"start must be a position from 0 to {len(frames) - 1}, got {start}")


def _numbers(name: str, values: Any) -> tuple[float, ...]:
    if hasattr(values, "detach"):  # a torch tensor, without importing torch
        values = values.detach().cpu()
    if hasattr(values, "tolist"):
        values = values.tolist()
    try:
        return tuple(float(f"{float(v):.{DIGITS}g}") for v in values)
    except TypeError as error:
        raise ValueError(f"{name} must be a one-dimensional sequence of real numbers, got {type(values).__name__}") from error


def _one_of(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")


def _round_step(raw: float) -> float:
    """Smallest of 1, 2, 2.5, 5, 10 times a power of ten that is at least ``raw``."""
    power = 10.0 ** math.floor(math.log10(raw))
    return next(m * power for m in (1, 2, 2.5, 5, 10, 20) if m * power >= raw * (1 - 1e-9))


_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def _number_text(value: float) -> str:
    return f"{value:.6g}".replace("-", "−")


def _value_text(value: Any) -> str:
    return _number_text(float(value)) if isinstance(value, float) or hasattr(value, "dtype") else str(value)


def _rich(text: str) -> str:
    """HTML of a label: ``$...$`` becomes an element that MathJax sets, in the page and in JupyterLab."""
    parts = re.split(r"\$([^$]+)\$", text)
    return "".join(rf'<span class="math notranslate">\({html.escape(p)}\)</span>' if i % 2 else html.escape(p) for i, p in enumerate(parts))


def _plain(text: str) -> str:
    """A label as plain text: mathematics without its dollar signs and backslashes."""
    return re.sub(r"\$([^$]+)\$", lambda m: m[1].replace("\\", ""), text)


_SWATCH = '<svg viewBox="0 0 24 10" aria-hidden="true"><path d="M2 5h20"/></svg>'

_STYLE = """
.kx-slider{--kx-blue:#1f6cb0;--kx-orange:#c2530c;--kx-green:#18815a;--kx-purple:#8548ad;--kx-grey:#6a6f76;
max-width:40rem;margin:1rem 0;color:inherit;line-height:1.35}
html[data-theme=dark] .kx-slider,[data-jp-theme-light=false] .kx-slider{
--kx-blue:#74b4ef;--kx-orange:#f39a5b;--kx-green:#5fc79d;--kx-purple:#c79eec;--kx-grey:#a3a9b2}
.kx-slider .kx-title{margin:0 0 .5rem;font-weight:600}
.kx-slider .kx-plot{font-size:.8rem;padding-right:.9em}
.kx-slider .kx-ylabel{margin-bottom:.45em}
.kx-slider .kx-xlabel{text-align:right;margin-top:1.7em}
.kx-slider .kx-area{position:relative;margin-left:var(--kx-gutter)}
.kx-slider .kx-area>svg{display:block;width:100%;aspect-ratio:8/5;border:solid currentColor;border-width:0 0 1px 1px;overflow:hidden}
.kx-slider .kx-xticks span,.kx-slider .kx-yticks span{position:absolute;white-space:nowrap;font-variant-numeric:tabular-nums}
.kx-slider .kx-xticks span{top:100%;transform:translate(-50%,.3em)}
.kx-slider .kx-yticks span{right:100%;transform:translate(-.4em,50%)}
.kx-slider path{fill:none;stroke:currentColor;vector-effect:non-scaling-stroke;stroke-linejoin:round}
.kx-slider .kx-grid path{stroke-width:1px;opacity:.15}
.kx-slider .kx-blue{--kx-c:var(--kx-blue)}.kx-slider .kx-orange{--kx-c:var(--kx-orange)}.kx-slider .kx-green{--kx-c:var(--kx-green)}
.kx-slider .kx-purple{--kx-c:var(--kx-purple)}.kx-slider .kx-grey{--kx-c:var(--kx-grey)}
.kx-slider .kx-curves path,.kx-slider li path{stroke:var(--kx-c);stroke-width:2.2px}
.kx-slider path.kx-dashed,.kx-slider .kx-dashed path{stroke-dasharray:7 5}
.kx-slider path.kx-points,.kx-slider .kx-points path{stroke-width:6px;stroke-linecap:round}
.kx-slider .kx-points path{stroke-dasharray:.1 9}
.kx-slider path.kx-fill{fill:var(--kx-c);fill-opacity:.2}
.kx-slider .kx-legend{display:flex;flex-wrap:wrap;gap:.2rem 1.2rem;list-style:none;margin:.6rem 0 0;padding:0;font-size:.85rem}
.kx-slider .kx-legend li{margin:0;padding:0}.kx-slider .kx-legend svg{display:inline-block;width:24px;height:10px;margin-right:.45em}
.kx-slider .kx-control{display:flex;align-items:center;gap:1rem;margin-top:.8rem}
.kx-slider .kx-still{display:block;width:100%;border-radius:.25rem}
.kx-slider .kx-live[hidden],.kx-slider li[hidden],.kx-slider[hidden],.kx-choice>.kx-control[hidden]{display:none}
.kx-choice>.kx-control{display:flex;align-items:center;gap:1rem;max-width:40rem;margin-top:1rem}.kx-choice label{margin:0}
.kx-choice select{font:inherit;color:inherit;background:transparent;padding:.25rem .5rem;border:1px solid currentColor;border-radius:.25rem}
.kx-choice option{color:#16181b;background:#fff}
.kx-slider label{min-width:6.5em;margin:0;font-variant-numeric:tabular-nums}
.kx-slider input{flex:1;min-width:0;height:1.75rem;margin:0;accent-color:var(--kx-blue);cursor:pointer}
""".replace("\n", "")

_SHADES = {"blue": "#1f6cb0", "orange": "#c2530c", "green": "#18815a", "purple": "#8548ad", "grey": "#6a6f76"}

_STILL = (
    "text{font:150px sans-serif;fill:#222}path{fill:none;stroke-width:24;stroke-linejoin:round}"
    ".kx-grid{stroke:#ddd;stroke-width:10}.kx-axis{stroke:#222;stroke-width:10}"
    ".kx-dashed{stroke-dasharray:70 50}.kx-points{stroke-width:60;stroke-linecap:round}"
    + "".join(f".kx-{name}{{stroke:{shade}}}.kx-fill.kx-{name}{{fill:{shade};fill-opacity:.2}}" for name, shade in _SHADES.items())
)

_SCRIPT = """
document.querySelectorAll("#NAME:not([data-ready])").forEach(function(root){
root.dataset.ready="";
var data=JSON.parse(root.querySelector(".kx-frames").textContent),input=root.querySelector("input"),output=root.querySelector("output"),
paths=root.querySelectorAll(".kx-curves path"),items=root.querySelectorAll(".kx-legend li"),
shown=data.f[+input.value].map(function(c){return c[2]});
function draw(){
var i=+input.value,frame=data.f[i];
output.textContent=data.v[i];
input.setAttribute("aria-valuetext",data.p+" = "+data.v[i]);
paths.forEach(function(path,k){
var c=frame[k]||["","",""],item=items[k];
path.setAttribute("d",c[0]);path.setAttribute("class",c[1]);
if(!item||shown[k]===c[2])return;
shown[k]=c[2];item.className=c[1];item.hidden=!c[2];
var text=item.querySelector("span");text.innerHTML=c[2];
if(window.MathJax&&MathJax.typesetPromise)MathJax.typesetPromise([text]);
});
}
input.value=input.defaultValue;
input.addEventListener("input",draw);
root.querySelector(".kx-still").remove();
root.querySelector(".kx-live").hidden=false;
});
""".replace("\n", "")

_CHOOSE = """
document.querySelectorAll("#NAME:not([data-ready])").forEach(function(root){
root.dataset.ready="";
var list=root.querySelector("select"),figures=root.querySelectorAll(".kx-slider"),shown=0;
list.addEventListener("change",function(){
var next=figures[list.selectedIndex].querySelector("input");
next.value=figures[shown].querySelector("input").value;
next.dispatchEvent(new Event("input"));
shown=list.selectedIndex;
figures.forEach(function(figure,k){figure.hidden=k!==shown;});
});
list.selectedIndex=0;
root.querySelector(".kx-control").hidden=false;
});
""".replace("\n", "")

r"""Claims: sentences of a chapter that the run itself confirms or refutes.

A claim compares one measured quantity with one limit by one relation. It is shown as a line, recorded in the metadata of that line
(where tools read it and nbval does not compare it), and stops the run when it does not hold. In evidence runs
(environment variable ``KEXUE_EVIDENCE=1``) a failed claim is recorded and the chapter goes on, so that its rate can be published.
"""

from __future__ import annotations

import html
import math
import operator
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["EVIDENCE_VARIABLE", "RELATIONS", "Claim", "ClaimFailed", "evaluate", "show", "wrong_verdicts"]

EVIDENCE_VARIABLE = "KEXUE_EVIDENCE"

RELATIONS: dict[str, tuple[str, Callable[[Any, Any], bool]]] = {
    "<": ("<", operator.lt),
    "<=": ("≤", operator.le),
    ">": (">", operator.gt),
    ">=": ("≥", operator.ge),
    "==": ("=", operator.eq),
    "in": ("∈", lambda x, interval: interval[0] <= x <= interval[1]),
}

_IDENTIFIER = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


class ClaimFailed(AssertionError):
    """A claim of a chapter does not hold in this run."""


@dataclass(frozen=True)
class Claim:
    """One evaluated claim, as recorded in the notebook and collected into the evidence."""

    id: str
    sentence: str
    measured: float | int | bool
    relation: str
    limit: float | int | bool | tuple[float | int, float | int]
    passed: bool
    unit: str | None = None
    draws: int | None = None
    error_probability: float | None = None

    def values(self) -> str:
        """The measured value, the relation and the limit in one line, for example ``measured 0.0012 ≤ 0.01``."""
        unit = f" {self.unit}" if self.unit else ""
        limit = f"[{_number(self.limit[0])}, {_number(self.limit[1])}]" if isinstance(self.limit, tuple) else _number(self.limit)
        line = f"measured {_number(self.measured)} {RELATIONS[self.relation][0]} {limit}{unit}"
        if self.draws is not None:
            line += f" · {self.draws} draws"
        if self.error_probability is not None:
            line += f" · error probability {_number(self.error_probability)}"
        return line

    def record(self) -> dict[str, Any]:
        """The claim as plain data for JSON; infinities and NaN become strings, which JSON has no numbers for."""
        return {key: _plain(value) for key, value in asdict(self).items() if value is not None}


def evaluate(
    id: str,
    sentence: str,
    measured: Any,
    relation: str,
    limit: Any,
    *,
    unit: str | None = None,
    draws: int | None = None,
    error_probability: float | None = None,
) -> Claim:
    """Compare ``measured`` with ``limit`` and return the claim; NaN on either side never holds.

    ``measured`` is a number or a zero-dimensional array or tensor; ``limit`` likewise, or a pair (low, high) with the relation ``"in"``
    (both ends belong to the interval). Statistical claims state ``draws`` and ``error_probability`` (the probability that a correct
    implementation fails this check).

    Raises ValueError for a malformed id, an empty sentence, an unknown relation, a limit that does not fit the relation or an error
    probability outside (0, 1), and TypeError for values that are not single numbers.
    """
    if not isinstance(id, str) or not _IDENTIFIER.fullmatch(id):
        raise ValueError(f"id must be lower-case words joined by hyphens, got {id!r}")
    if not isinstance(sentence, str) or not sentence.strip():
        raise ValueError(f"sentence of claim {id!r} must be a non-empty string, got {sentence!r}")
    if relation not in RELATIONS:
        raise ValueError(f"relation of claim {id!r} must be one of {', '.join(RELATIONS)}, got {relation!r}")
    if error_probability is not None and not 0 < error_probability < 1:
        raise ValueError(f"error_probability of claim {id!r} must lie in (0, 1), got {error_probability!r}")
    if draws is not None and (isinstance(draws, bool) or int(draws) != draws or draws < 1):
        raise ValueError(f"draws of claim {id!r} must be a positive integer, got {draws!r}")
    value = _scalar(measured, f"measured value of claim {id!r}")
    bound: Any
    if relation == "in":
        if not isinstance(limit, (tuple, list)) or len(limit) != 2:
            raise ValueError(f"limit of claim {id!r} must be a pair (low, high) for the relation 'in', got {limit!r}")
        bound = tuple(_scalar(end, f"limit of claim {id!r}") for end in limit)
        if bound[0] > bound[1]:
            raise ValueError(f"limit of claim {id!r} must have low <= high, got {limit!r}")
    else:
        bound = _scalar(limit, f"limit of claim {id!r}")
    numbers = (value, *bound) if isinstance(bound, tuple) else (value, bound)
    passed = not any(math.isnan(x) for x in numbers) and bool(RELATIONS[relation][1](value, bound))
    return Claim(id, " ".join(sentence.split()), value, relation, bound, passed, unit, draws, error_probability)


def wrong_verdicts(meaningful: Iterable[Callable[[], Any]], meaningless: Iterable[Callable[[], Any]]) -> int:
    """Number of requests that get the wrong answer: meaningful ones that raise, meaningless ones that are not refused.

    A refusal is a ValueError, TypeError, KeyError or NotImplementedError; any other exception is an accident and counts as wrong.
    """
    return sum(_refused(request) is not False for request in meaningful) + sum(_refused(request) is not True for request in meaningless)


def _refused(request: Callable[[], Any]) -> bool | None:
    """Whether a request is refused; None for an accident."""
    try:
        request()
    except (ValueError, TypeError, KeyError, NotImplementedError):
        return True
    except Exception:
        return None
    return False


def show(claim: Claim, context: str = "") -> None:
    """Display the claim's line and record; raise ClaimFailed if it does not hold, unless this is an evidence run."""
    from IPython.display import display

    mark, state = ("✓", "pass") if claim.passed else ("✗", "fail")
    data = {
        "text/plain": f"{mark} {claim.id}: {claim.sentence} — {claim.values()}",
        "text/html": (
            f'<div class="kx-claim kx-{state}" id="claim-{claim.id}"><span class="kx-mark">{mark}</span> '
            f'<span class="kx-sentence">{_inline(claim.sentence)}</span> <span class="kx-values">{html.escape(claim.values())}</span></div>'
        ),
    }
    display(data, metadata={"kexue": {"claim": claim.record()}}, raw=True)
    if not claim.passed and os.environ.get(EVIDENCE_VARIABLE) != "1":
        where = f" ({context})" if context else ""
        raise ClaimFailed(f"claim {claim.id!r}{where} does not hold: {claim.sentence} — {claim.values()}")


def _scalar(value: Any, name: str) -> float | int | bool:
    """``value`` as one Python number; zero-dimensional arrays and tensors are unwrapped."""
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
        value = value.item()
    if not isinstance(value, (bool, int, float)):
        raise TypeError(f"{name} must be a single real number, got {type(value).__name__} {value!r}")
    return value


def _number(value: float | int | bool) -> str:
    if isinstance(value, (bool, int)):
        return str(value)
    return f"{value:.4g}"


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    return value


def _inline(sentence: str) -> str:
    """Escape a sentence for HTML; ``$...$`` stays mathematics for MathJax, which JupyterLab and the site both typeset."""
    parts = re.split(r"(\$[^$]+\$)", sentence)
    return "".join(
        f'<span class="math notranslate nohighlight">\\({html.escape(part[1:-1])}\\)</span>'
        if part.startswith("$") and len(part) > 1
        else html.escape(part)
        for part in parts
    )

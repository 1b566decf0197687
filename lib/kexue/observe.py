r"""Read any intermediate value of a model without editing it.

A run under :func:`capture` is a pure observation: outputs, gradients and random state are those of the run without it. Two kinds of places
can be read. The outputs of modules are read through forward hooks, which are removed when the block ends, however it ends. Any other tensor
is read at a *tap*, an identity function in the code of the model: ``h = tap("hidden/normalized", h)`` costs nothing outside a capture. A
capture belongs to its execution context: it sees neither the calls of other threads nor those of other asynchronous tasks.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

__all__ = ["capture", "tap"]

Values = dict[str, list[Tensor]]


class _Recorder:
    """The values of one open capture, and which names it wants (no pattern: every name)."""

    def __init__(self, patterns: tuple[str, ...], detach: bool) -> None:
        self.values: Values = {}
        self.patterns, self.detach = patterns, detach
        self.matched: set[str] = set()
        self.seen: set[str] = set()

    def wants(self, name: str) -> bool:
        self.seen.add(name)
        matches = {pattern for pattern in self.patterns if fnmatchcase(name, pattern)}
        self.matched |= matches
        return bool(matches) or not self.patterns

    def add(self, name: str, tensor: Tensor) -> None:
        # A detached value is copied: a later in-place operation of the model must not change what was read.
        self.values.setdefault(name, []).append(tensor.detach().clone() if self.detach else tensor)


_open: ContextVar[tuple[_Recorder, ...]] = ContextVar("kexue.observe", default=())


def tap(name: str, tensor: Tensor) -> Tensor:
    """Return ``tensor`` unchanged and show it to every open :func:`capture` that asks for ``name``.

    Outside a capture this is the identity and costs one lookup.
    """
    for recorder in _open.get():
        if recorder.wants(name):
            recorder.add(name, tensor)
    return tensor


@contextmanager
def capture(model: nn.Module | None = None, *patterns: str, detach: bool = True) -> Iterator[Values]:
    """Record outputs of modules, and taps, while the block runs.

    Yields a dictionary from name to the list of values in the order of the calls; names appear in the order of their first call.

    ``model``: its modules are read under their names in ``named_modules()``; ``None`` reads taps only.
    ``patterns``: shell patterns (``blocks.*.attention``) matched against module and tap names; without any, all taps and all modules that
    have no children are read. Tensors inside a tuple, list or mapping get the index or key as a suffix: ``lstm.0``.
    ``detach``: store detached copies (default), or the tensors themselves, so that gradients flow through them.

    Raises KeyError when the block ends without an error and a pattern has matched no module and no tap.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU())
    >>> with capture(model) as seen:
    ...     _ = model(torch.ones(2, 3))
    >>> [(name, tuple(values[0].shape)) for name, values in seen.items()]
    [('0', (2, 4)), ('1', (2, 4))]
    """
    recorder = _Recorder(patterns, detach)
    with ExitStack() as hooks:
        for name, module in () if model is None else model.named_modules():
            if recorder.wants(name) and (patterns or not any(module.children())):
                hooks.enter_context(module.register_forward_hook(_hook(recorder, name)))
        token = _open.set((*_open.get(), recorder))
        try:
            yield recorder.values
        finally:
            _open.reset(token)
    if missing := [pattern for pattern in patterns if pattern not in recorder.matched]:
        raise KeyError(f"no module or tap matches {missing}; names seen: {sorted(recorder.seen)}")


def _hook(recorder: _Recorder, name: str) -> Any:
    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        if recorder in _open.get():
            for label, tensor in _tensors(name, output):
                recorder.add(label, tensor)

    return hook


def _tensors(name: str, output: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(output, Tensor):
        yield name, output
    elif isinstance(output, Mapping | tuple | list):
        for key, value in output.items() if isinstance(output, Mapping) else enumerate(output):
            yield from _tensors(f"{name}.{key}", value)

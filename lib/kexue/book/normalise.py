"""Canonical notebooks: what is committed depends on the source of a chapter and its results, and on nothing else.

Tools leave traces in a notebook - time stamps, random cell ids, the version of Python, parameters they injected. The canonical form keeps
the chapter's own metadata, names cells by what they contain and fixes everything else, so that executing a chapter twice leaves the same
bytes. Execution counts are kept as they are: they show whether the cells were run in order.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

__all__ = ["INJECTED", "normalise", "read", "to_text", "write_atomically"]

INJECTED = "injected-parameters"  # papermill's tag of the cell that overrides the parameters

_NOTEBOOK_KEYS = ("kexue", "mystnb")
_CELL_KEYS = ("tags", "mystnb")
_KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
_LANGUAGE = {"file_extension": ".py", "mimetype": "text/x-python", "name": "python", "pygments_lexer": "ipython3"}
_INVISIBLE = re.compile(r"(?:\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x20\x7f])*")  # escape sequences of a terminal, control characters, blanks


def normalise(notebook: NotebookNode) -> NotebookNode:
    """The canonical form of ``notebook``, as a new object; idempotent."""
    cells = [_cell(cell) for cell in notebook.cells if INJECTED not in cell.metadata.get("tags", [])]
    seen: Counter[str] = Counter()
    for cell in cells:
        name = hashlib.sha256(f"{cell['cell_type']}\n{cell['source']}".encode()).hexdigest()[:12]
        seen[name] += 1
        cell["id"] = name if seen[name] == 1 else f"{name}-{seen[name]}"
    metadata = {key: notebook.metadata[key] for key in _NOTEBOOK_KEYS if key in notebook.metadata}
    return nbformat.from_dict(
        {"cells": cells, "metadata": metadata | {"kernelspec": _KERNEL, "language_info": _LANGUAGE}, "nbformat": 4, "nbformat_minor": 5}
    )


def to_text(notebook: NotebookNode) -> str:
    """``notebook`` as text: sorted keys, one line per line of source, a newline at the end."""
    return nbformat.writes(notebook, version=4).rstrip("\n") + "\n"


def read(path: Path) -> NotebookNode:
    """The notebook in the file ``path``. Raises ValueError, naming the file, if it is not a notebook."""
    try:
        return nbformat.read(path, as_version=4)
    except (nbformat.reader.NotJSONError, nbformat.ValidationError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{path} is not a Jupyter notebook: {error}") from error


def write_atomically(path: Path, text: str) -> bool:
    """Replace the file ``path`` by ``text`` in one step; return whether the content changed.

    Readers see the old file or the new one; whoever dies in between leaves the old one.
    """
    if path.exists() and path.read_bytes() == text.encode():
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
        os.chmod(name, path.stat().st_mode & 0o777 if path.exists() else 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return True


def _cell(cell: NotebookNode) -> dict[str, Any]:
    metadata = {key: cell.metadata[key] for key in _CELL_KEYS if cell.metadata.get(key)}
    result = {"cell_type": cell.cell_type, "metadata": metadata, "source": cell.source.rstrip()}
    if cell.get("attachments"):
        result["attachments"] = cell.attachments
    if cell.cell_type == "code":
        result["execution_count"] = cell.execution_count
        result["outputs"] = _outputs(cell.outputs)
    return result


def _outputs(outputs: list[NotebookNode]) -> list[dict[str, Any]]:
    """Outputs in their order, the pieces of one stream joined: how a stream falls into pieces depends on timing."""
    result: list[dict[str, Any]] = []
    streams: dict[str, dict[str, Any]] = {}
    for output in outputs:
        if output.output_type == "stream":
            if output.name not in streams:
                streams[output.name] = {"output_type": "stream", "name": output.name, "text": ""}
                result.append(streams[output.name])
            streams[output.name]["text"] += output.text
        elif output.output_type == "error":
            result.append({"output_type": "error", "ename": output.ename, "evalue": output.evalue, "traceback": list(output.traceback)})
        else:
            data = {kind: value.strip() if kind.startswith("image/png") else value for kind, value in output.data.items()}
            kept = {"output_type": output.output_type, "data": data, "metadata": output.get("metadata", {})}
            result.append(kept | ({"execution_count": output.execution_count} if output.output_type == "execute_result" else {}))
    return [o for o in result if not (o.get("name") == "stderr" and _INVISIBLE.fullmatch(o["text"]))]

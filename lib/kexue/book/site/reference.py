"""API pages: one per module, from docstrings and signatures that are read, never imported."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from typing import Any

from autodoc2.render.rst_ import RstRenderer
from autodoc2.sphinx.utils import get_database
from docutils import nodes

__all__ = ["ReferenceRenderer", "readable", "resolve_alias"]

# Float[torch.Tensor, batch time] of the analysed source, whose quotes the analysis has taken off
SHAPED = re.compile(r"\b(?:jaxtyping\.)?(\w+)\[((?:torch\.|numpy\.|np\.)[\w.]+), ([^\[\]]*)\]")
QUALIFIED = re.compile(r"\b(?:torch|numpy|np|jaxtyping|collections\.abc|pathlib|typing)\.((?:\w+\.)*)(?=\w)")


def readable(annotation: str) -> str:
    """An annotation as the source has it: shapes in quotes, third parties without their module path."""
    return QUALIFIED.sub(lambda m: m[1], SHAPED.sub(r'\1[\2, "\3"]', annotation))


class ReferenceRenderer(RstRenderer):
    """Module pages with a plain title, the module's docstring, its submodules and its public names in order."""

    def render_package(self, item: Any) -> Iterable[str]:
        name = item["full_name"]
        title = f"``{name}``"
        yield from [title, "=" * len(title), "", f".. py:module:: {name}", ""]
        if self.show_docstring(item):
            yield from [f".. autodoc2-docstring:: {name}", "   :allowtitles:", ""]
        inner = [child["full_name"] for child in self.get_children(item, {"package", "module"})]
        if inner:
            yield from [".. toctree::", "   :titlesonly:", "   :maxdepth: 2", "", *(f"   {child}" for child in inner), ""]
        for child in self.get_children(item):
            if child["type"] not in ("package", "module"):
                yield from self.render_item(child["full_name"])

    def format_annotation(self, annotation: str | None) -> str:
        return readable(super().format_annotation(annotation))

    def render_data(self, item: Any) -> Iterable[str]:
        """Constants with their value only where it is short: the docstring says what the others are."""
        value = item.get("value")
        short = value is not None and len(str(value)) <= 60 and "\n" not in str(value)
        yield from (line for line in super().render_data(item) if short or not line.strip().startswith(":value:"))


def resolve_alias(app: Any, env: Any, node: Any, contnode: nodes.Node) -> nodes.Node | None:
    """Resolve names of ours that the Python domain misses: re-exported ones, and type aliases, which are data and not classes."""
    target = node.get("reftarget", "")
    if node.get("refdomain") == "py" and target.partition(".")[0] in sys.stdlib_module_names:
        return contnode  # the interpreter's own types have no page here
    module = node.get("py:module") or ""
    if node.get("refdomain") != "py" or not (target.startswith("kexue.") or (module.startswith("kexue.") and target.isidentifier())):
        return None
    objects = env.get_domain("py").objects
    package, _, name = (target if target.startswith("kexue.") else f"{module}.{target}").rpartition(".")
    package = package if target.startswith("kexue.") or package.count(".") < 2 else package.rpartition(".")[0]
    found = [target] if target in objects else [full for full in objects if full.startswith(f"{package}.") and full.endswith(f".{name}")]
    if len(found) == 1:
        entry = objects[found[0]]
        uri = app.builder.get_relative_uri(node["refdoc"], entry.docname) + f"#{entry.node_id}"
        return nodes.reference("", "", contnode, internal=True, refuri=uri, reftitle=found[0])
    item = get_database(env).get_item(target)
    private = target.rpartition(".")[2].startswith("_")
    return contnode if item is not None and (private or item["type"] == "data") else None  # an alias or a private type: no page

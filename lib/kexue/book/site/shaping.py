"""Shapes documents before they are written: folds become native ones, and the box at the top of a chapter gets its paragraphs."""

from __future__ import annotations

import html
from typing import Any

from docutils import nodes

__all__ = ["fold", "open_proofs", "split_question"]

QUESTION_CLASS = "kx-question"
NEW_PARAGRAPH = ("Answer.", "Original:")


def split_question(app: Any, doctree: nodes.document) -> None:
    """Begin a new paragraph at the answer and at the original of the question box, however its source is wrapped."""
    for box in doctree.findall(nodes.admonition):
        if QUESTION_CLASS not in box["classes"]:
            continue
        for paragraph in list(box.findall(nodes.paragraph)):
            groups: list[list[nodes.Node]] = [[]]
            for child in paragraph.children:
                if isinstance(child, (nodes.strong, nodes.emphasis)) and child.astext().startswith(NEW_PARAGRAPH) and groups[-1]:
                    groups.append([])
                groups[-1].append(child)
            if len(groups) > 1:
                paragraph.replace_self([nodes.paragraph("", "", *group) for group in groups])


def open_proofs(app: Any, doctree: nodes.document) -> None:
    """Set the word with which a proof begins apart from its first sentence; sphinx-proof writes both into one text."""
    for proof in doctree.findall(nodes.admonition):
        first = next(iter(proof.findall(nodes.Text)), None)
        if proof["classes"][:2] == ["proof", "proof"] and first is not None and first.startswith("Proof. "):
            where = first.parent.index(first)
            first.parent[where : where + 1] = [nodes.emphasis("", "Proof."), nodes.Text(" " + first.removeprefix("Proof. "))]


def fold(app: Any, doctree: nodes.document, docname: str) -> None:
    """Turn every admonition, proof or solution of the class ``dropdown`` into a ``details`` element, which needs no script."""
    if app.builder.format != "html":
        return
    for node in list(doctree.findall(lambda n: isinstance(n, nodes.Element) and "dropdown" in n.get("classes", []))):
        titles = [child for child in node.children if isinstance(child, nodes.title)]
        summary = titles[0].astext() if titles else node["classes"][0].capitalize()
        for title in titles:
            node.remove(title)
        opener = next(iter(node.findall(nodes.emphasis)), None)
        if not titles and opener is not None and opener.astext() == f"{summary}.":
            opener.parent.remove(opener)  # the summary says it
        kinds = " ".join(name for name in dict.fromkeys(node["classes"]) if name != "dropdown")
        anchors = "".join(f'<span id="{html.escape(anchor, quote=True)}"></span>' for anchor in node["ids"])
        opening = f'<details class="kx-fold {html.escape(kinds)}"><summary>{html.escape(summary)}</summary>{anchors}'
        where = node.parent.index(node)
        node.parent[where : where + 1] = [
            nodes.raw("", opening, format="html"),
            *node.children,
            nodes.raw("", "</details>", format="html"),
        ]

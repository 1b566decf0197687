"""Small books for the tests of execution, evidence and checks."""

from pathlib import Path

import nbformat
from nbformat import NotebookNode, v4

PARAMETERS = 'scale = "cpu"  # "smoke", "cpu" or "gpu"\nseed = 0'
CLAIM = """from IPython.display import display
measured = {measured}
record = {{"id": "{id}", "sentence": "it is small", "measured": measured, "relation": "<", "limit": {limit}, "passed": measured < {limit}}}
display({{"text/plain": "line"}}, metadata={{"kexue": {{"claim": record}}}}, raw=True)"""


def notebook(*cells: str, parameters: str = PARAMETERS) -> NotebookNode:
    """A notebook of a title, the parameters cell and code cells; cells that begin with '#md ' are Markdown."""
    made = [v4.new_markdown_cell("# Title"), v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})]
    made += [v4.new_markdown_cell(c[4:]) if c.startswith("#md ") else v4.new_code_cell(c) for c in cells]
    return v4.new_notebook(cells=made, metadata={"kexue": {"slug": "small"}})


def book(root: Path, **chapters: NotebookNode) -> Path:
    """Write chapters ``chapters/part/SLUG.ipynb`` (underscores become hyphens) below ``root``."""
    for slug, content in chapters.items():
        path = root / "chapters" / "part" / f"{slug.replace('_', '-')}.ipynb"
        path.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(content, path)
    return root

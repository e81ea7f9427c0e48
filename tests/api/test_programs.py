"""Notebooks and examples are programs of users: they use the public API alone."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import persona

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted(ROOT.glob("notebooks/*.ipynb"))
EXAMPLES = sorted(ROOT.glob("examples/*.py"))


def source_of(path: Path) -> str:
    if path.suffix != ".ipynb":
        return path.read_text()
    cells = json.loads(path.read_text())["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield f"{node.module}."


@pytest.mark.parametrize("path", [*NOTEBOOKS, *EXAMPLES], ids=lambda path: path.name)
def test_the_public_api_is_enough(path: Path) -> None:
    tree = ast.parse(source_of(path))
    inside = [n for n in imported(tree) if n.startswith(("persona.", "subprocess", "os.system"))]
    assert inside == []
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "persona"
    }
    assert used <= set(persona.__all__)


def test_there_are_notebooks() -> None:
    assert len(NOTEBOOKS) == 3
    assert EXAMPLES

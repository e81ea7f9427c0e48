"""Imports point down: the table of ARCHITECTURE.md, read from the code itself."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "persona"
FLOOR = {
    *("errors", "workspace", "config", "files", "pictures", "progress", "landmarks", "memory"),
    *("workers", "download", "extras", "names", "registry", "figure_names"),
}
ROOMS = {
    "data": FLOOR,
    "models": FLOOR,
    "training": FLOOR | {"data", "models"},
    "evaluation": FLOOR | {"data", "models"},
    "report": FLOOR | {"data", "models", "training", "evaluation"},
    "targets": FLOOR | {"data", "models", "evaluation"},
    "deploy": FLOOR | {"data", "models", "evaluation"},
    "gallery": FLOOR | {"data", "models", "evaluation"},
    "demo": FLOOR | {"data", "models", "api"},
    "distill": FLOOR | {"data", "models", "training", "evaluation", "report"},
    "serve": FLOOR | {"data", "gallery"},
    "learning": FLOOR | {"data", "models", "training", "evaluation", "report"},
    "api": FLOOR
    | {"data", "models", "training", "evaluation", "report", "deploy", "gallery", "targets"}
    | {"distill"},
    "gallery_learning": FLOOR | {"data", "models", "evaluation", "gallery", "learning"},
    "cli": FLOOR
    | {"data", "models", "evaluation", "report", "targets", "distill", "deploy", "demo"}
    | {"gallery", "learning", "gallery_learning", "serve", "api"},
    "__main__": {"cli"},
    "__init__": FLOOR | {"api", "training"},
}
DOORS = {"distill/__init__.py": {"api"}, "distill/__main__.py": {"cli"}}
"""What a program calls, and the entry point of a command: the recipe behind them knows neither."""
ONLY_IN = {
    "accelerate": {"targets", "training", "distill", "evaluation"}
    | {"learning", "report", "cli", "api"},
    "wandb": {"training"},
    "typer": {"cli"},
}


@functools.cache
def imports(path: Path) -> set[str]:
    """Modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            if node.module == "persona":
                found |= {f"persona.{alias.name}" for alias in node.names}
    return found


FILES = sorted(ROOT.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    room = room_of(path)
    own = {name.split(".")[1] for name in imports(path) if name.startswith("persona.")}
    allowed = ROOMS.get(room, FLOOR) | {room, "__version__"}
    allowed |= DOORS.get(str(path.relative_to(ROOT)), set())
    assert own <= allowed
    for package, rooms in ONLY_IN.items():
        if any(name.split(".")[0] == package for name in imports(path)):
            assert room in rooms


def test_one_file_imports_wandb() -> None:
    having = [path.name for path in FILES if "wandb" in imports(path)]
    assert having == ["weights_and_biases.py"]


def test_the_library_does_not_print() -> None:
    for path in FILES:
        calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
        assert not any(getattr(call.func, "id", "") == "print" for call in calls), path


def test_no_docstring_begins_with_of() -> None:
    """It completes "This function …" or "This class is …", see conventions.md 20."""
    folders = ("persona", "scripts", "examples", "tests")
    paths = [path for folder in folders for path in (ROOT.parent / folder).rglob("*.py")]
    texts = {str(path): path.read_text() for path in paths if path != Path(__file__)}
    assert len(texts) > 100
    assert not [path for path, text in texts.items() if re.search(r'^ *r?"""Of ', text, re.M)]


def test_no_public_class_has_the_name_of_another() -> None:
    """A class may have the name of its own base, as `class FaceSet(sets.FaceSet)`."""
    places: dict[str, list[str]] = {}
    for path in FILES:
        for node in ast.parse(path.read_text()).body:
            if not isinstance(node, ast.ClassDef) or node.name.startswith("_"):
                continue
            if node.name not in {getattr(base, "attr", None) for base in node.bases}:
                places.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    assert {name: paths for name, paths in places.items() if len(paths) > 1} == {}

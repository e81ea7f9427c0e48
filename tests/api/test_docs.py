"""The examples in docstrings, in the README and on the first page: they run, or could be run."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import persona
from persona.api.training import distill_student

ROOT = Path(__file__).parents[2]
MODULES = {path: path.read_text("utf-8") for path in sorted((ROOT / "persona").rglob("*.py"))}
PAGES = ("README.md", "docs/index.md")
NAMES = [name for name in persona.__all__ if name.islower()]


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


@pytest.mark.parametrize("name", [name_of(path) for path in MODULES if ">>>" in MODULES[path]])
def test_examples_run(name: str) -> None:
    failed, tried = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert failed == 0 and tried


def examples() -> Iterator[tuple[str, str]]:
    """The examples that cannot run, because they need photos or a file, and where they stand."""
    docstring = re.compile(r"^Example:\n((?: {4}.*\n?|\n)+)", re.MULTILINE)
    for path, text in MODULES.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                for code in docstring.findall(ast.get_docstring(node) or ""):
                    if ">>>" not in code:
                        yield f"{name_of(path)}:{getattr(node, 'name', '')}", textwrap.dedent(code)
    for page in PAGES:
        for code in re.findall(
            r"^```python\n(.*?)^```", (ROOT / page).read_text("utf-8"), re.MULTILINE | re.DOTALL
        ):
            yield page, code
    yield (
        "persona",
        textwrap.dedent((persona.__doc__ or "").partition("\n\n")[2].partition("\n\nI")[0]),
    )


def check_code(code: str) -> None:
    """The code compiles, and its calls of persona's names could be made with their arguments."""
    known: dict[str, Any] = {"persona": persona, "model": persona.Model, "student": persona.Model}
    for node in ast.walk(ast.parse(code)):  # statements before the expressions in them
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            known[node.targets[0].id] = kind_of(node.value, known)
        elif isinstance(node, ast.withitem) and isinstance(node.optional_vars, ast.Name):
            known[node.optional_vars.id] = kind_of(node.context_expr, known)
        elif isinstance(node, ast.expr):
            kind_of(node, known)


def kind_of(node: ast.expr, known: dict[str, Any]) -> Any:
    """The class of a value, or the function or module that is named; None if it is not known.

    Raises:
        AttributeError: a name does not exist.
        TypeError: a call has other arguments than the function takes.
    """
    if isinstance(node, ast.Name):
        return known.get(node.id)
    if isinstance(node, ast.Attribute):
        owner = kind_of(node.value, known)
        if owner is persona and node.attr == "distill":  # a module that can be called
            return distill_student
        return None if owner is None else getattr(owner, node.attr)
    if isinstance(node, ast.Call):
        function = kind_of(node.func, known)
        if function is None:
            return None
        owner = node.func.value if isinstance(node.func, ast.Attribute) else None
        is_method = owner is not None and kind_of(owner, known) is not persona
        given = [None] * (len(node.args) + is_method)
        named: dict[str, Any] = {word.arg: None for word in node.keywords if word.arg}
        inspect.signature(function).bind(*given, **named)
        return getattr(persona, str(function.__annotations__.get("return")), None)
    return None


def test_examples_that_are_not_run_could_be() -> None:
    found = list(examples())
    assert len(found) >= 13
    assert {*PAGES, "persona", "persona.api.people:open_gallery"} <= {place for place, _ in found}
    for place, code in found:
        try:
            check_code(code)
        except (AttributeError, SyntaxError, TypeError) as error:
            pytest.fail(f"{place}: {error}")


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("persona.open_galery('gallery.db', model)", "attribute 'open_galery'"),
        ("persona.load('persona-s', min_fase=3)", "keyword argument 'min_fase'"),
        ("with persona.open_gallery('g.db', model) as g:\n    g.enrol('Ada', [])", "'enrol'"),
        ("verdict = persona.verify('a.jpg')", "argument: 'b'"),
        ("lfw = persona.open_set('lfw')\nlfw.loader(64, 3, 5, 7, 9, 11)", "too many positional"),
    ],
)
def test_an_example_that_could_not_run_is_found(code: str, told: str) -> None:
    with pytest.raises((AttributeError, TypeError), match=told):
        check_code(code)


def test_public_functions_have_an_example() -> None:
    for name in NAMES:
        thing = getattr(persona, name)
        doc = inspect.getdoc(distill_student if name == "distill" else thing)
        assert doc is not None and "Example:" in doc, name


def test_the_reference_page_has_every_public_name() -> None:
    """mkdocstrings writes the docstrings below the names of this page."""
    page = (ROOT / "docs" / "reference" / "api.md").read_text()
    places = re.findall(r"^::: persona\.([\w.]+)\.(\w+)$", page, re.MULTILINE)
    named = {f"{module}:{name}" for module, name in places}
    wanted = {*persona._PLACES.values(), "api.training:distill_student"}
    assert named == wanted and len(places) == len(wanted)

"""Writes docs/api.md, the page on the public API, from its docstrings."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import persona

WIDTH = 90
PAGE = Path(__file__).parents[1] / "docs" / "api.md"
HEAD = """# Python API

All that `import persona` gives. This page is made from the docstrings by `scripts/api_page.py`.
"""


def page() -> str:
    """The page as it should be."""
    parts = [HEAD]
    for name in sorted(persona.__all__, key=lambda name: (name[0].isupper(), name.lower())):
        parts.append(f"## persona.{name}\n")
        parts.append(_described(name, _public(name)))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(parts)).rstrip() + "\n"


def _public(name: str) -> Any:
    if name == "distill":  # a module that can be called
        from persona.api.training import distill_student

        return distill_student
    return getattr(persona, name)


def _described(name: str, thing: Any) -> str:
    if not inspect.isclass(thing):
        return f"```python\n{name}{_signature(thing)}\n```\n\n{_prose(thing)}"
    return "\n".join([_prose(thing), *_members(thing)])


def _members(kind: type) -> Iterator[str]:
    """What a user sees of a class: fields, properties and methods, in the order of its source."""
    if dataclasses.is_dataclass(kind):
        notes = _field_notes(kind)
        for field in dataclasses.fields(kind):
            if not field.name.startswith("_"):
                told = notes.get(field.name, "")
                yield f"- `{field.name}: {field.type}`" + (f": {told}" if told else "")
        yield ""
    for name, member in _vars(kind).items():
        if name.startswith("_") or inspect.getdoc(member) is None:
            continue
        function = inspect.unwrap(member.__func__ if isinstance(member, classmethod) else member)
        if isinstance(member, property):
            yield f"### {kind.__name__}.{name}\n\n{_prose(member)}"
        elif inspect.isfunction(function):
            yield (
                f"### {kind.__name__}.{name}\n\n```python\n{name}{_signature(function)}\n```\n\n"
                f"{_prose(function)}"
            )


def _vars(kind: type) -> dict[str, Any]:
    """Attributes of a class and of those of Persona's that it extends, the most general first."""
    ours = [base for base in kind.__mro__ if base.__module__.startswith("persona.")]
    return {name: member for base in reversed(ours) for name, member in vars(base).items()}


def _field_notes(kind: type) -> dict[str, str]:
    """The text under each field of a dataclass."""
    source = inspect.getsource(kind)
    found = re.findall(r'^    (\w+): [^\n]*\n    """(.*?)"""', source, re.DOTALL | re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in found}


def _signature(function: Any) -> str:
    """Parameters as they are written, one a line where they are many."""
    signature = inspect.signature(function)
    written = []
    for parameter in signature.parameters.values():
        if parameter.name in {"self", "cls"}:
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in written:
            written.append("*")
        written.append(_parameter(parameter))
    returns = f" -> {signature.return_annotation}"
    short = f"({', '.join(written)}){returns}"
    if len(short) <= WIDTH:
        return short
    return "(\n" + "".join(f"    {each},\n" for each in written) + f"){returns}"


def _parameter(parameter: inspect.Parameter) -> str:
    stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
    default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
    return f"{stars}{parameter.name}: {parameter.annotation}{default}"


def _prose(thing: Any) -> str:
    """A docstring as Markdown: its sections as lists, its examples as code."""
    lines = (inspect.getdoc(thing) or "").splitlines()
    written: list[str] = []
    section = ""
    for line in lines:
        if re.fullmatch(r"(Args|Returns|Raises|Example):", line):
            section = line[:-1]
            if written and written[-1] == "```":
                written.append("")
            written += ["", f"**{section}**", ""]
            if section == "Example":
                written.append("```python")
        elif section == "Example":
            written.append(line.removeprefix("    "))
        elif section in {"Args", "Raises"} and re.match(r"    \S", line):
            name, _, text = line.strip().partition(": ")
            written.append(f"- `{name}`: {text}" if text else line.strip())
        elif section and line.startswith("    "):
            written.append(("  " if section in {"Args", "Raises"} else "") + line.strip())
        else:
            written.append(line)
    if section == "Example":
        while written and not written[-1]:
            written.pop()
        written.append("```")
    return "\n".join(written) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")

"""Printing: one JSON document on stdout, or a table for a person."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from persona.names import escape_json, legible
from persona.workspace import Workspace

WorkersOption = Annotated[
    int | None,
    typer.Option(
        "--workers", "-w", min=0, help="Loader processes.  [default: as the device wants]"
    ),
]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
RawOption = Annotated[
    Path | None, typer.Option("--raw", help="Folder of raw datasets.  [default: data/raw]")
]
ShardsOption = Annotated[
    Path | None, typer.Option("--shards", help="Folder of packed sets.  [default: shards]")
]
CacheOption = Annotated[
    Path | None,
    typer.Option("--cache", help="Folder that keeps the files of sets named by a URL."),
]
NETWORKS = (
    "Model ID, onnx:FILE, litert:FILE, hf://OWNER/NAME, facenet-vggface2, or mobilenet_v3_small "
    "for an untrained one"
)
"""What a network may be called, see persona/models/sources.py."""
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model", metavar="NAME", help=f"{NETWORKS}.  [default: the best of the newest run]"
    ),
]
ModelArgument = Annotated[
    str | None, typer.Argument(help="Model ID.  [default: the best of the newest run]")
]
VerifyOption = Annotated[
    bool,
    typer.Option(
        "--verify/--no-verify",
        help="Check each file of a set against its checksum before its first use.",
    ),
]
ModelsOption = Annotated[
    Path | None, typer.Option("--models", help="Folder of models.  [default: models]")
]


def workspace(
    raw: Path | None = None, shards: Path | None = None, models: Path | None = None
) -> Workspace:
    """The folders of this command; what is not given lies below $PERSONA_HOME or `.`."""
    return Workspace.locate(raw=raw, shards=shards, models=models)


class LegibleFormatter(logging.Formatter):
    """The message of a record without what a terminal would act on."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, or several where a trace follows."""
        return "\n".join(map(legible, super().format(record).split("\n")))


def print_json(value: object) -> None:
    """One document, one line end; names of files may hold anything."""
    sys.stdout.write(escape_json(json.dumps(value, indent=2, ensure_ascii=False)) + "\n")


@dataclass(frozen=True)
class Column:
    """A column of a table."""

    title: str
    right: bool = False


def print_table(
    columns: Sequence[Column], rows: Sequence[Sequence[object]], *, empty: str | None = None
) -> None:
    """A table on stdout; on a pipe it is as wide as it needs, so that no cell is cut.

    `empty` is noted in its place where there is no row: what to do to get some.
    """
    if not rows and empty is not None:
        note(empty)
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for column in columns:
        table.add_column(column.title, justify="right" if column.right else "left")
    for row in rows:
        table.add_row(*("–" if cell is None else legible(str(cell)) for cell in row))
    # No markup: a path may have brackets.
    console = Console(highlight=False, markup=False)
    if not sys.stdout.isatty():
        console = Console(highlight=False, markup=False, width=200)
    console.print(table)


def note(text: str) -> None:
    """A line for a person, on stderr."""
    sys.stderr.write(legible(text) + "\n")


def keep_brackets(command: Any) -> None:
    """Has the help of a command, and of those below it, print its brackets as they are.

    Rich takes `[default: 20]` for a style that it does not know, and drops it.
    """
    if getattr(command, "rich_markup_mode", None) != "rich":
        return
    for shown in (command, *command.params):
        for name in ("help", "short_help", "epilog"):
            if text := getattr(shown, name, None):
                setattr(shown, name, text.replace("[", r"\["))
    for below in getattr(command, "commands", {}).values():
        keep_brackets(below)


def human_bytes(count: int) -> str:
    """1234567 as `1.2 MB`."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"

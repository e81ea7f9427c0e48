"""Options that several commands share, and printing: a JSON document or a table on stdout."""

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
"""Help text on the names of networks, see persona/models/sources.py."""
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model", metavar="NAME", help=f"{NETWORKS}.  [default: the best of the newest run]"
    ),
]
ModelArgument = Annotated[
    str | None, typer.Argument(help="Model ID.  [default: the best of the newest run]")
]
TrackerOption = Annotated[
    str | None,
    typer.Option(
        "--tracker",
        help="wandb, tensorboard, mlflow, comet_ml or aim, several with commas between, or none; "
        "metrics.jsonl is always written.  [default: wandb]",
    ),
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
    """Returns the command's folders. Those that are not given are in `PERSONA_HOME` or `.`."""
    return Workspace.locate(raw=raw, shards=shards, models=models)


class LegibleFormatter(logging.Formatter):
    """A formatter that escapes the control characters a terminal would act on."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the message, which is one line unless a trace follows."""
        return "\n".join(map(legible, super().format(record).split("\n")))


def print_json(value: object) -> None:
    """Prints one JSON document on stdout, with control characters escaped."""
    sys.stdout.write(escape_json(json.dumps(value, indent=2, ensure_ascii=False)) + "\n")


WIDEST = 10_000
"""Width of a terminal on which no table is cut."""


@dataclass(frozen=True)
class TableColumn:
    """A column of a table."""

    title: str
    right: bool = False
    whole: bool = False
    """Whether its cells are never cut or wrapped, as an ID that is typed again. If such a table is
    wider than the terminal, its last other columns are left out."""


def print_table(
    columns: Sequence[TableColumn], rows: Sequence[Sequence[object]], *, empty: str | None = None
) -> None:
    """Prints a table on stdout. On a pipe it is 200 characters wide, so that no cell is cut.

    Args:
        columns: the columns.
        rows: the cells of each row. None is printed as a dash.
        empty: note to print instead if there is no row, which says how to get some.
    """
    if not rows and empty is not None:
        note(empty)
        return
    from rich import box
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table

    # Without markup, because a path may have brackets.
    console = Console(highlight=False, markup=False)
    if not sys.stdout.isatty():
        console = Console(highlight=False, markup=False, width=200)
    cells = [["–" if cell is None else legible(str(cell)) for cell in row] for row in rows]

    def build(places: Sequence[int]) -> tuple[Table, int]:
        """The table of these columns, and its width if no cell is wrapped."""
        table = Table(box=box.SIMPLE_HEAD)
        for place in places:
            justify: Any = "right" if columns[place].right else "left"
            table.add_column(columns[place].title, justify=justify)
        for row in cells:
            table.add_row(*(row[place] for place in places))
        return table, Measurement.get(console, unlimited, table).maximum

    unlimited = console.options.update(width=WIDEST)
    shown = list(range(len(columns)))
    table, width = build(shown)
    if any(column.whole for column in columns):
        others = [place for place in shown if not columns[place].whole]
        while width > console.width and others:
            shown.remove(others.pop())
            table, width = build(shown)
        console.width = max(console.width, width)
    console.print(table)
    left_out = [column.title for place, column in enumerate(columns) if place not in shown]
    if left_out:
        note(f"left out, because the terminal is too narrow: {', '.join(left_out)}")


def note(text: str) -> None:
    """Prints a line on stderr."""
    sys.stderr.write(legible(text) + "\n")


def keep_brackets(command: Any) -> None:
    """Escapes the brackets in the help of a command and its subcommands.

    Rich takes `[default: 20]` for an unknown style and drops it.
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
    """Returns a number of bytes for people: 1234567 is `1.2 MB`."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"

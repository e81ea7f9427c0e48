"""Options that several commands share, and printing: a JSON document or a table on stdout."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from persona.errors import PersonaError
from persona.names import escape_json, legible
from persona.workspace import Workspace

if TYPE_CHECKING:
    from persona.api.model import Model
    from persona.evaluation.sentences import Sentence

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
NEWEST = "[default: the best of the newest run, else persona-s]"
"""Help text on the model that is taken where none is named."""
NETWORKS = (
    "Model ID, onnx:FILE, litert:FILE, hf://OWNER/NAME, facenet-vggface2, or mobilenet_v3_small "
    "for an untrained one"
)
"""Help text on the names of networks, see persona/models/sources.py."""
ModelOption = Annotated[
    str | None,
    typer.Option("--model", metavar="NAME", help=f"{NETWORKS}.  {NEWEST}"),
]
ModelArgument = Annotated[str | None, typer.Argument(help=f"Model ID.  {NEWEST}")]
MIN_FACE_PX = 20
"""Default of `MinFaceOption`, equal to that in persona/data/align/spec.py, which imports numpy."""
MinFaceOption = Annotated[
    int,
    typer.Option(
        "--min-face",
        metavar="PX",
        help="Smallest face to look for, px of the photo; larger is faster.",
    ),
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
BatchOption = Annotated[int, typer.Option("--batch-size", "-b", min=1)]
RunsOption = Annotated[Path | None, typer.Option("--runs", help="Folder of runs.  [default: runs]")]
CalibrateOption = Annotated[
    str | None, typer.Option(metavar="SET", help="Choose the threshold on all pairs of this set.")
]
DEFAULT_FAR = 1e-3
"""False accept rate (FAR) that a threshold is chosen for if none is given."""
CalibrateFarOption = Annotated[
    float | None,
    typer.Option(
        "--far",
        help="False accept rate that the threshold is chosen for: on the set of --calibrate, or by "
        "the model's card.  [default: 0.001]",
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


def check_threshold(threshold: float | None, calibrate: str | None, far: float | None) -> None:
    """Raises PersonaError if a threshold is both given and to be chosen."""
    if threshold is not None and not (calibrate is None and far is None):
        chooses = "--far" if calibrate is None else "--calibrate"
        raise PersonaError(f"choose one of --threshold and {chooses}")


def choose_threshold(network: Model, calibrate: str | None, far: float | None) -> None:
    """Chooses the threshold of a network by the options `--calibrate` and `--far`, if any is given.

    Raises:
        PersonaError: the set, or the model's card without one, cannot resolve the rate.
    """
    if calibrate is None and far is None:
        return
    from persona.api.sets import load_set

    faces = None if calibrate is None else load_set(calibrate, workspace=network.workspace)
    network.calibrate(faces, DEFAULT_FAR if far is None else far)


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
    """Prints a line on stderr. In a terminal it is dim, unless it is a warning."""
    line = legible(text)
    if sys.stderr.isatty() and not line.startswith("warning"):
        _print_styled([(line, "dim")], sys.stderr)
    else:
        sys.stderr.write(line + "\n")


def print_sentence(sentence: Sentence) -> None:
    """Prints a sentence on stdout. In a terminal its headline is bold."""
    parts = [(sentence.before, ""), (sentence.headline, "bold"), (sentence.after, "")]
    _print_styled([(legible(text), style) for text, style in parts], sys.stdout)


def print_page(
    title: str, lead: str, sections: Sequence[tuple[str, Sequence[tuple[str, str]]]]
) -> None:
    """Prints a page of facts on stdout: a title, a sentence, and sections of names and values.

    No word is cut, so that an ID, a path or a checksum can be copied.

    Args:
        title: the title.
        lead: a sentence on what the page is about.
        sections: title and rows of each section. A row without a name is text.
    """
    _print_styled([(legible(title), "bold")], sys.stdout)
    _print_styled([(legible(lead), "")], sys.stdout)
    for heading, rows in sections:
        sys.stdout.write("\n")
        _print_styled([(legible(heading), "bold")], sys.stdout)
        cells = [(legible(name), legible(value)) for name, value in rows]
        column = max((len(name) for name, _ in cells), default=0)
        for name, value in cells:
            first = f"  {name:{column}}  " if name else "  "
            _print_styled([(first, "dim"), (value, "")], sys.stdout, indent=len(first))


def _print_styled(parts: Sequence[tuple[str, str]], file: TextIO, *, indent: int = 0) -> None:
    """Prints a line of texts and their styles. In a terminal it is broken between words alone.

    Lines after the first one begin with `indent` spaces. A word that is wider than the terminal is
    left to the terminal, which folds it.
    """
    from rich.cells import cell_len
    from rich.console import Console
    from rich.text import Text

    console = Console(file=file, highlight=False, markup=False)
    line = Text.assemble(*parts)
    width = console.width if file.isatty() else WIDEST
    start, end, margin = 0, indent, 0
    for word in re.finditer(r"[^ ]+", line.plain[indent:]):
        after = indent + word.end()
        if end > max(start, indent) and margin + cell_len(line.plain[start:after]) > width:
            console.print(Text(" " * margin) + line[start:end], soft_wrap=True)
            start, margin = indent + word.start(), indent
        end = after
    console.print(Text(" " * margin) + line[start:], soft_wrap=True)


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

"""`persona report`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from persona.cli.output import (
    NETWORKS,
    BatchOption,
    JsonFlag,
    ModelsOption,
    RunsOption,
    ShardsOption,
    VerifyOption,
    WorkersOption,
    human_bytes,
    note,
    print_json,
)
from persona.errors import PersonaError, unknown
from persona.workspace import Workspace


def report_command(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN_OR_MODEL...",
            help=f"Run ID, or of a network: {NETWORKS}.",
        ),
    ],
    set_: Annotated[str, typer.Option("--set", help="A packed set with pairs.")] = "lfw",
    teacher: Annotated[
        str | None,
        typer.Option("--teacher", metavar="[NAME]", help="A teacher to show beside them."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="File to write.  [default: report.html, .pdf or .png]")
    ] = None,
    form: Annotated[
        str | None,
        typer.Option("--format", help="html, pdf or png.  [default: the ending of --out, or html]"),
    ] = None,
    show_names: Annotated[
        bool, typer.Option("--names", help="Show people's names beside their faces.")
    ] = False,
    batch_size: BatchOption = 128,
    workers: WorkersOption = None,
    shards: ShardsOption = None,
    verify: VerifyOption = True,
    models: ModelsOption = None,
    runs: RunsOption = None,
    json: JsonFlag = False,
) -> None:
    """One page on models side by side: curves, worst mistakes, how they were made.

    It holds faces of the set, so keep it as you keep the photos.
    """
    from persona.api.reporting import write_report
    from persona.data.sets import open_set

    form, out = choose_format(form, out)
    place = Workspace.locate(shards=shards, models=models, runs=runs)
    faces = open_set(set_, place.shards, verify=verify)
    notices = write_report(
        names,
        faces,
        out,
        teacher=teacher,
        names=show_names,
        form=form,
        batch_size=batch_size,
        workers=workers,
        workspace=place,
    )
    for text in notices:
        note(f"note: {text}")
    if json:
        size = out.stat().st_size
        print_json({"out": str(out), "format": form, "bytes": size, "notices": notices})
    else:
        sys.stdout.write(f"{out} ({human_bytes(out.stat().st_size)})\n")


def choose_format(form: str | None, out: Path | None) -> tuple[str, Path]:
    """Returns format and file, each derived from the other where it is not given.

    Raises:
        PersonaError: the format is unknown, or differs from the file's suffix.
    """
    from persona.api.reporting import FORMATS

    ending = out.suffix.lstrip(".").lower() if out else ""
    form = form or (ending if ending in FORMATS else "html")
    if form not in FORMATS:
        raise unknown("format", form, FORMATS)
    if out is not None and ending in FORMATS and ending != form:
        raise PersonaError(f"{out} does not end in .{form}: drop --format or mend --out")
    return form, out or Path(f"report.{form}")

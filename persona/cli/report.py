"""`persona report`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from persona.cli.output import (
    NETWORKS,
    JsonFlag,
    ModelsOption,
    ShardsOption,
    VerifyOption,
    WorkersOption,
    human_bytes,
    note,
    print_json,
)
from persona.errors import PersonaError, unknown
from persona.workspace import Workspace

FORMATS = ("html", "pdf", "png")


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
    batch_size: Annotated[int, typer.Option("--batch-size", "-b", min=1)] = 128,
    workers: WorkersOption = None,
    shards: ShardsOption = None,
    verify: VerifyOption = True,
    models: ModelsOption = None,
    runs: Annotated[
        Path | None, typer.Option("--runs", help="Folder of runs.  [default: runs]")
    ] = None,
    json: JsonFlag = False,
) -> None:
    """One page on models side by side: curves, worst mistakes, how they were made.

    It holds faces of the set, so keep it as you keep the photos.
    """
    from persona.data.shards import open_set

    form, out = choose_format(form, out)
    place = Workspace.locate(shards=shards, models=models, runs=runs)
    folder, manifest = open_set(set_, place.shards, verify=verify)
    if form != "html":
        from persona.report.browser import find_chromium

        find_chromium()  # before minutes of measuring

    from accelerate import Accelerator

    from persona.files import PRIVATE, write_atomically
    from persona.report.build import build_page, find_entries
    from persona.report.page import render

    accelerator = Accelerator()
    if accelerator.num_processes > 1:
        raise PersonaError("persona report runs on one process: start it without accelerate launch")
    entries = find_entries(names, teacher, place)
    page = build_page(
        *(entries, place, folder, manifest, accelerator),
        names=show_names,
        batch_size=batch_size,
        workers=workers,
    )
    html = render(page)
    if form == "html":
        data = html.encode()
    else:
        from persona.report.browser import open_browser, print_page

        with open_browser() as browser:
            data = print_page(browser, html, form)
    write_atomically(out, data, PRIVATE)
    for text in page.notices:
        note(f"note: {text}")
    if json:
        print_json({"out": str(out), "format": form, "bytes": len(data), "notices": page.notices})
    else:
        sys.stdout.write(f"{out} ({human_bytes(len(data))})\n")


def choose_format(form: str | None, out: Path | None) -> tuple[str, Path]:
    """The format and the file, each from the other where one is not given.

    Raises:
        PersonaError: unknown format.
    """
    ending = out.suffix.lstrip(".").lower() if out else ""
    form = form or (ending if ending in FORMATS else "html")
    if form not in FORMATS:
        raise unknown("format", form, FORMATS)
    if out is not None and ending in FORMATS and ending != form:
        raise PersonaError(f"{out} does not end in .{form}: drop --format or mend --out")
    return form, out or Path(f"report.{form}")

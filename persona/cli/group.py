"""`persona group`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from persona.cli.output import (
    JsonFlag,
    ModelOption,
    ModelsOption,
    ShardsOption,
    TableColumn,
    note,
    print_json,
    print_table,
    workspace,
)
from persona.errors import PersonaError
from persona.progress import progress_bar

SHOWN = 20
"""Most groups that are printed."""


def group_command(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Photos, also in folders below.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR|FILE",
            help="Write a CSV file, an HTML page, or a folder with both. With a folder, another "
            "call looks only at new photos.",
        ),
    ] = None,
    model: ModelOption = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            help="Cosine similarity from which on two faces are one person.  [default: the "
            "model's, or estimated from the photos]"
        ),
    ] = None,
    calibrate: Annotated[
        str | None,
        typer.Option(metavar="SET", help="Choose the threshold on all pairs of this set."),
    ] = None,
    far: Annotated[
        float, typer.Option(help="False accept rate that --calibrate chooses it for.")
    ] = 1e-3,
    shards: ShardsOption = None,
    models: ModelsOption = None,
    json: JsonFlag = False,
) -> None:
    """Group the faces of a photo folder into people, without names."""
    if threshold is not None and calibrate is not None:
        raise PersonaError("choose one of --threshold and --calibrate")
    from persona.api.embedding import find_photos
    from persona.api.grouping import check_out, group_photos
    from persona.api.model import load
    from persona.api.sets import load_set

    check_out(out)
    photos = find_photos(folder)
    place = workspace(shards=shards, models=models)
    network = load(model, workspace=place)
    if calibrate is not None:
        network.calibrate(load_set(calibrate, workspace=place), far)
    with progress_bar("looking at photos", total=len(photos), unit="photos") as advance:
        found = group_photos(network, photos, threshold=threshold, out=out, advance=advance)
    if json:
        print_json(found.to_json())
        return
    rows = [
        [str(number), str(len(faces)), Path(faces[0].photo).name]
        for number, faces in found.groups.items()
        if len(faces) > 1
    ]
    print_table(
        [TableColumn("group"), TableColumn("faces", right=True), TableColumn("first photo")],
        rows[:SHOWN],
    )
    if len(rows) > SHOWN:
        note(f"{len(rows) - SHOWN} more groups: --out or --json has them all")
    typer.echo(
        f"{found.faces} faces in {len(photos)} photos: {found.people} people with two faces or "
        f"more, {len(found.groups) - found.people} faces alone"
    )
    note(f"threshold {found.threshold:.3f}: {found.source}")
    if found.left_out:
        note(f"{len(found.left_out)} photos without a face, or unreadable; --json lists them")
    if out is not None:
        note(f"written: {out}")

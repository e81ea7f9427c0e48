"""`persona verify` and `persona embed`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from persona.cli.output import (
    MIN_FACE_PX,
    CalibrateFarOption,
    CalibrateOption,
    JsonFlag,
    MinFaceOption,
    ModelOption,
    ModelsOption,
    ShardsOption,
    check_threshold,
    choose_threshold,
    note,
    print_json,
    workspace,
)
from persona.figure_names import counted
from persona.progress import progress_bar

SHOWN = 10
"""Number of photos without an embedding that are named at most."""


def verify_command(
    a: Annotated[str, typer.Argument(metavar="A", help="A photo of one face.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The other photo.")],
    model: ModelOption = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            help="Cosine from which on they are one person.  [default: of the model's test set]"
        ),
    ] = None,
    calibrate: CalibrateOption = None,
    far: CalibrateFarOption = None,
    min_face: MinFaceOption = MIN_FACE_PX,
    shards: ShardsOption = None,
    models: ModelsOption = None,
    json: JsonFlag = False,
) -> None:
    """Are two photos of one person? Prints the similarity, and the verdict at a threshold."""
    check_threshold(threshold, calibrate, far)
    from persona.api.model import load
    from persona.api.verification import verify

    place = workspace(shards=shards, models=models)
    network = load(model, workspace=place, min_face=min_face)
    choose_threshold(network, calibrate, far)
    verdict = verify(a, b, model=network, threshold=threshold)
    for line in verdict.notes:
        note(f"note: {line}")
    if json:
        print_json(verdict.to_json())
        return
    said = {True: "the same person", False: "different people", None: "no verdict"}[verdict.same]
    typer.echo(f"{said}: similarity {verdict.similarity:.4f}")
    if verdict.threshold is None:
        note(f"note: {verdict.model} has no threshold: give --calibrate SET, or --threshold X")
    else:
        source = verdict.source
        if verdict.far:
            source = f"one in {1 / verdict.far:,.0f} pairs of two people is accepted ({source})"
        note(f"threshold {verdict.threshold:.4f}: {source}")


def embed_command(
    what: Annotated[Path, typer.Argument(metavar="PHOTO|FOLDER")],
    out: Annotated[Path, typer.Option("--out", help="The file to write: .npz or .parquet.")],
    model: ModelOption = None,
    min_face: MinFaceOption = MIN_FACE_PX,
    models: ModelsOption = None,
    json: JsonFlag = False,
) -> None:
    """Write the embedding of every face of a photo, or of a folder and those below it."""
    from persona.api.embedding import check_format, embed_photos, find_photos, write_embeddings
    from persona.api.model import load

    check_format(out)
    photos = find_photos(what)
    network = load(model, workspace=workspace(models=models), min_face=min_face)
    with progress_bar("embedding", total=len(photos), unit="photos") as advance:
        found = embed_photos(network, photos, advance)
    write_embeddings(out, found)
    size = network.embedding_size
    if json:
        print_json(
            {
                "out": str(out),
                "model": network.name,
                "photos": len(photos),
                "faces": len(found),
                "embedding_size": size,
                "left_out": found.left_out,
            }
        )
    else:
        typer.echo(
            f"{counted(len(found), 'face')} of {counted(len(photos), 'photo')}, {size}-d "
            f"embeddings, by {network.name}: {out}"
        )
        for place, reason in list(found.left_out.items())[:SHOWN]:
            note(f"left out: {place}: {reason}")
        if len(found.left_out) > SHOWN:
            note(f"left out: {len(found.left_out) - SHOWN} more; --json lists them all")

"""`persona export`, `persona bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from persona.cli.output import (
    Column,
    JsonFlag,
    ModelsOption,
    ShardsOption,
    human_bytes,
    note,
    print_json,
    print_table,
    workspace,
)
from persona.errors import PersonaError


def export_command(
    model: Annotated[str | None, typer.Argument(help="Model ID.  [default: newest]")] = None,
    precision: Annotated[str, typer.Option(help="fp32 or fp16.")] = "fp32",
    preprocessing: Annotated[
        bool,
        typer.Option(
            "--with-preprocessing",
            help="Take uint8 RGB (batch, height, width, 3): resized and normalised in the file.",
        ),
    ] = False,
    classifier: Annotated[
        bool, typer.Option("--classifier", help="Give the logits of its identities too.")
    ] = False,
    set_: Annotated[
        str | None,
        typer.Option(
            "--set",
            metavar="SET",
            help="Whose faces the file is checked on.  [default: the model's own sets if they are "
            "packed, else drawn faces]",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The file.  [default: <ID>.onnx]")] = None,
    shards: ShardsOption = None,
    models: ModelsOption = None,
    json: JsonFlag = False,
) -> None:
    """Write a student as an ONNX file that needs no torch, checked against the model first."""
    from persona.models.cards import find_model

    place = workspace(shards=shards, models=models)
    card = find_model(model, place.models)

    from persona.data.shards import MANIFEST, open_set
    from persona.deploy.export import FACES, ExportOptions, export_onnx
    from persona.deploy.faces import drawn_faces, set_faces
    from persona.models.store import load_model

    options = ExportOptions(precision, preprocessing, classifier)
    student = load_model(card, place.models)
    own = (card.test_set, card.train_set)
    name = set_ or next((s for s in own if (place.shards / s / MANIFEST).is_file()), None)
    if name is not None:
        folder, manifest = open_set(name, place.shards)
        faces = set_faces(folder, manifest, student.image_size, FACES)
    else:
        note("no set of this model is packed here: the file is checked on drawn faces")
        faces = drawn_faces(student.image_size, FACES)
    path = out or Path(f"{card.id}.onnx")
    if path.is_dir():
        raise PersonaError(f"{path} is a folder: name the file with --out {path}/{card.id}.onnx")
    done = export_onnx(student, card, faces, path, options)
    if json:
        row = {
            "model": card.id,
            "path": str(done.path),
            "precision": precision,
            "bytes": done.bytes,
            "worst_cosine": done.worst_cosine,
            "faces": done.faces,
        }
        print_json(row)
        return
    typer.echo(
        f"{done.path}: {human_bytes(done.bytes)}, worst cosine to the model "
        f"{done.worst_cosine:.6f} over {done.faces} faces"
    )


def bench_command(
    names: Annotated[
        list[str],
        typer.Argument(metavar="MODEL...", help="Model IDs, onnx:FILE, facenet-vggface2."),
    ],
    rounds: Annotated[int, typer.Option(min=1, help="Turns; medians of all are printed.")] = 10,
    runs: Annotated[int, typer.Option(min=1, help="Single faces a turn.")] = 20,
    models: ModelsOption = None,
    json: JsonFlag = False,
) -> None:
    """What models cost on this machine, side by side: latency, throughput, memory, bytes."""
    from dataclasses import asdict

    from persona.deploy.bench import bench, versions

    costs = bench(names, workspace(models=models).models, rounds=rounds, runs=runs)
    if json:
        print_json({"machine": versions(), "models": [asdict(cost) for cost in costs]})
        return
    titles = ("model", "runtime", "parameters", "MACs", "size", "p50 ms", "p95 ms", "of first")
    columns = [Column(t, right=place > 1) for place, t in enumerate((*titles, "faces/s", "peak"))]
    rows = [
        [
            *(cost.model, cost.runtime),
            None if cost.parameters is None else f"{cost.parameters:,}",
            None if cost.macs is None else f"{cost.macs / 1e6:,.0f} M",
            human_bytes(cost.bytes),
            *(f"{cost.latency_p50_ms:.2f}", f"{cost.latency_p95_ms:.2f}"),
            f"{cost.latency_ratio:.2f}",
            f"{cost.faces_per_s:,.0f}",
            human_bytes(int(cost.peak_memory_mb * 1e6)),
        ]
        for cost in costs
    ]
    print_table(columns, rows)
    note(", ".join(f"{name} {value}" for name, value in versions().items()))

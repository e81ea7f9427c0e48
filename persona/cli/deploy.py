"""`persona export` and `persona bench`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from persona.cli.commands import told_twice
from persona.cli.output import (
    NETWORKS,
    JsonFlag,
    ModelArgument,
    ModelsOption,
    ShardsOption,
    TableColumn,
    VerifyOption,
    human_bytes,
    note,
    print_json,
    print_table,
    workspace,
)

if TYPE_CHECKING:
    from persona.deploy.exports import Exported

EXACT = 1e-6
"""Smallest difference of cosines that is shown; float32 is not more exact."""
LAYERS_SHOWN = 10


def export_command(
    model: ModelArgument = None,
    precision: Annotated[
        str | None, typer.Option(help="fp32, fp16 or int8.  [default: fp32]")
    ] = None,
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
            "packed as for it, else drawn faces]",
        ),
    ] = None,
    calibrate: Annotated[
        str | None,
        typer.Option(
            metavar="SET",
            help="int8: whose faces its ranges are found on.  [default: the model's own set]",
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, help="Seed for choosing the calibration and check faces.")
    ] = 0,
    licence: Annotated[
        str | None, typer.Option(help="Goes into the file; you know what the model learnt from.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="The file, or the page's folder.  [default: <ID>.onnx, <ID>-int8.onnx, "
            "<ID>.tflite, <ID>-web and the like]"
        ),
    ] = None,
    format_: Annotated[
        str,
        typer.Option(
            "--format",
            help="{exports}.  litert is TensorFlow Lite (needs extra `litert`), web a page that "
            "compares faces in a browser.",
        ),
    ] = "onnx",
    runtime: Annotated[
        Path | None,
        typer.Option(
            help="onnxruntime-web for the page: npm's tarball, or the package's folder.  "
            "[default: npm fetches it once]"
        ),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--option",
            "-o",
            metavar="NAME=VALUE",
            help="Any option of the format.  Repeatable.",
        ),
    ] = None,
    shards: ShardsOption = None,
    verify: VerifyOption = True,
    models: ModelsOption = None,
    json: JsonFlag = False,
) -> None:
    """Write a student as a file that needs no torch, checked against the model first."""
    from persona.config import read_options
    from persona.deploy.exporting import export_model

    given = {
        "precision": precision,
        "preprocessing": preprocessing or None,
        "classifier": classifier or None,
        "runtime": runtime,
    }
    done = export_model(
        *(model, workspace(shards=shards, models=models)),
        form=format_,
        options=read_options(given, option or [], told_twice),
        out=out,
        set_name=set_,
        calibrate=calibrate,
        seed=seed,
        licence=licence,
        verify=verify,
    )
    if json:
        row = {
            "model": done.model,
            "path": str(done.path),
            "format": format_,
            "precision": done.precision,
            "bytes": done.bytes,
            "worst_cosine": done.worst_cosine,
            "similarity_error": done.error,
            "faces": done.faces,
        }
        if done.precision == "int8":
            row["calibration_faces"] = done.calibration_faces
            row |= {"layers": done.layers, "floats": {k.layer: k.cost for k in done.floats}}
        print_json(row)
        return
    typer.echo(
        f"{done.path}: {human_bytes(done.bytes)}, worst cosine to the model "
        f"{done.worst_cosine:.6f} over {done.faces} faces"
    )
    _print_layers(done)
    if done.path.is_dir():
        serve = f"python -m http.server --bind 127.0.0.1 -d {shlex.quote(str(done.path))}"
        typer.echo(f"open it with `{serve}` at http://127.0.0.1:8000")


def _print_layers(done: Exported) -> None:
    """Prints which layers of an int8 file stay in floats, and why."""
    if done.layers:
        typer.echo(f"{done.layers - len(done.floats)} of {done.layers} layers in integers")
    for kept in done.floats[:LAYERS_SHOWN]:
        # Many layers that cost almost nothing alone can cost too much together.
        cost = f"{kept.cost:.1e}" if kept.cost > EXACT else "nothing that can be measured"
        typer.echo(f"  in floats: {kept.layer}, whose integers alone take {cost} off the cosine")
    if len(done.floats) > LAYERS_SHOWN:
        typer.echo(f"  and {len(done.floats) - LAYERS_SHOWN} more: --json lists them")


def bench_command(
    names: Annotated[
        list[str],
        typer.Argument(metavar="MODEL...", help=f"{NETWORKS}."),
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
    columns = [
        TableColumn(title, right=place > 1, whole=place == 0)
        for place, title in enumerate((*titles, "faces/s", "peak"))
    ]
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

"""`persona export` and `persona bench`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from persona.cli.output import (
    NETWORKS,
    Column,
    JsonFlag,
    ModelArgument,
    ModelsOption,
    ShardsOption,
    VerifyOption,
    human_bytes,
    note,
    print_json,
    print_table,
    workspace,
)
from persona.errors import PersonaError, unknown

if TYPE_CHECKING:
    from persona.deploy.export import Exported
    from persona.models.cards import Card
    from persona.workspace import Workspace

FORMATS = ("onnx", "litert", "web")
EXACT = 1e-6
"""Smallest difference of cosines that is shown; float32 is not more exact."""
LAYERS_SHOWN = 10
ENDINGS = {"onnx": ".onnx", "litert": ".tflite", "web": "-web"}


def export_command(
    model: ModelArgument = None,
    precision: Annotated[str, typer.Option(help="fp32, fp16 or int8.")] = "fp32",
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
    calibrate: Annotated[
        str | None,
        typer.Option(
            metavar="SET",
            help="int8: whose faces its ranges are found on.  [default: the model's own set]",
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, help="Of the draw of the faces it is checked and calibrated on.")
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
            help="onnx, litert (TensorFlow Lite; needs extra `litert`), or web: a page that "
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
    shards: ShardsOption = None,
    verify: VerifyOption = True,
    models: ModelsOption = None,
    json: JsonFlag = False,
) -> None:
    """Write a student as a file that needs no torch, checked against the model first."""
    from persona.models.cards import find_model

    if format_ not in FORMATS:
        raise unknown("format", format_, FORMATS)
    if runtime and format_ != "web":
        raise PersonaError("--runtime is for pages: add --format web, or leave it out")
    if calibrate is not None and precision != "int8":
        raise PersonaError("--calibrate is for --precision int8: add that, or leave it out")
    place = workspace(shards=shards, models=models)
    card = find_model(model, place.models)

    from persona.deploy.export import ExportOptions, export_litert, export_onnx
    from persona.models.store import load_model
    from persona.names import public_name

    options = ExportOptions(precision, preprocessing, classifier)
    stem = card.id if precision == "fp32" or format_ == "web" else f"{card.id}-{precision}"
    path = out or Path(stem + ENDINGS[format_])
    if format_ != "web" and path.is_dir():
        raise PersonaError(
            f"{path} is a folder: name the file with --out {path / stem}{ENDINGS[format_]}"
        )
    checked = set_ or _packed((card.test_set, card.train_set), place)
    more: dict[str, Any] = {"facts": {} if licence is None else {"persona.licence": licence}}
    if precision == "int8":
        name = calibrate or _packed((card.train_set, card.test_set), place)
        if name is None:
            raise PersonaError("int8 is calibrated on faces: name a packed set with --calibrate")
        faces, ranges = _faces_apart(card, checked, name, place, seed, verify=verify)
        more["calibration_NHWC"] = ranges
        more["facts"]["persona.calibration"] = (
            f"{len(ranges)} faces of {public_name(name)}, seed {seed}"
        )
    else:
        faces = _check_faces(card, checked, place, seed, verify=verify)
    if format_ == "web":
        from persona.deploy.web import export_web

        done = export_web(card, place.models, faces, path, options, runtime=runtime, **more)
    else:
        export = export_litert if format_ == "litert" else export_onnx
        done = export(load_model(card, place.models), card, faces, path, options, **more)
    if json:
        row = {
            "model": card.id,
            "path": str(done.path),
            "format": format_,
            "precision": precision,
            "bytes": done.bytes,
            "worst_cosine": done.worst_cosine,
            "faces": done.faces,
        }
        if precision == "int8":
            row["calibration_faces"] = len(more["calibration_NHWC"])
            row |= {"layers": done.layers, "floats": {k.layer: k.cost for k in done.floats}}
        print_json(row)
        return
    typer.echo(
        f"{done.path}: {human_bytes(done.bytes)}, worst cosine to the model "
        f"{done.worst_cosine:.6f} over {done.faces} faces"
    )
    _print_layers(done)
    if format_ == "web":
        serve = f"python -m http.server --bind 127.0.0.1 -d {shlex.quote(str(done.path))}"
        typer.echo(f"open it with `{serve}` at http://127.0.0.1:8000")


def _check_faces(card: Card, set_: str | None, place: Workspace, seed: int, *, verify: bool) -> Any:
    """Returns the faces to check a file on: those of a set, or drawn faces where there is none."""
    from persona.data.sets import open_set
    from persona.deploy.export import FACES
    from persona.deploy.faces import drawn_faces, set_faces

    if set_ is not None:
        return set_faces(open_set(set_, place.shards, verify=verify), card.image_size, FACES, seed)
    note("no set of this model is packed here: the file is checked on drawn faces")
    return drawn_faces(card.image_size, FACES)


def _faces_apart(
    card: Card, checked: str | None, calibrate: str, place: Workspace, seed: int, *, verify: bool
) -> tuple[Any, Any]:
    """Returns faces to check a file on, and other faces to calibrate on.

    If both are from one set, the check faces are its first ones.
    """
    from persona.data.sets import open_set
    from persona.deploy.export import CALIBRATION_FACES, FACES
    from persona.deploy.faces import set_faces

    if checked != calibrate:
        ranges = open_set(calibrate, place.shards, verify=verify)
        return (
            _check_faces(card, checked, place, seed, verify=verify),
            set_faces(ranges, card.image_size, CALIBRATION_FACES, seed),
        )
    both = FACES + CALIBRATION_FACES
    faces = set_faces(open_set(calibrate, place.shards, verify=verify), card.image_size, both, seed)
    if len(faces) < 2:
        raise PersonaError(
            f"set {calibrate} has one face, and int8 wants one to calibrate on and another to be "
            "checked on: name another set with --calibrate"
        )
    count = max(1, len(faces) * FACES // both)
    return faces[:count], faces[count:]


def _packed(sets: tuple[str, ...], place: Workspace) -> str | None:
    """Returns the first of the sets that is packed here. A name may be that of a mix of sets."""
    from persona.data.mixed import names_in
    from persona.data.shards import MANIFEST

    names = [name for mix in sets for name in (mix, *names_in(mix))]
    return next((name for name in names if (place.shards / name / MANIFEST).is_file()), None)


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

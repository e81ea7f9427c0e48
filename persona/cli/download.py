"""`persona download`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from persona.cli.output import JsonFlag, ModelsOption, RawOption, note, print_json, workspace
from persona.errors import PersonaError, unknown


def download_command(
    what: Annotated[str, typer.Argument(help="lfw or teacher; of other datasets: whom to ask.")],
    name: Annotated[
        str | None,
        typer.Argument(
            help="The teacher's name: facenet-vggface2 or facenet-casia-webface.  "
            "[default: facenet-vggface2]"
        ),
    ] = None,
    mirror: Annotated[
        str | None, typer.Option(help="Address of the folder that has the files.")
    ] = None,
    raw: RawOption = None,
    models: ModelsOption = None,
    json: JsonFlag = False,
) -> None:
    """Download LFW or FaceNet's weights; interrupted and run again, it goes on where it was."""
    place = workspace(raw=raw, models=models)
    if what.lower() == "teacher":
        done = _teacher(name or "facenet-vggface2", place.models, mirror)
    elif name is not None:
        raise PersonaError(f"{what} {name}: only a teacher has a further name")
    elif what.lower() == "lfw":
        done = _lfw(place.raw, mirror)
    else:
        from persona.data.download import refuse_download

        raise refuse_download(what, place.raw)
    if json:
        print_json(done)
        return
    typer.echo(f"{done['name']} {'is now' if done['fresh'] else 'was already'} at {done['path']}")
    if done["name"] == "lfw":
        from persona.data.align.spec import ARCFACE

        note(f"pack it with: persona shard lfw {ARCFACE.options}; for FaceNet: persona shard lfw")


def _lfw(raw: Path, mirror: str | None) -> dict[str, Any]:
    from persona.data.download import download_lfw

    path, fresh = download_lfw(raw, mirror)
    return {"name": "lfw", "path": str(path), "fresh": fresh}


def _teacher(name: str, models: Path, mirror: str | None) -> dict[str, Any]:
    from persona.models.weights import FACENETS, download_weights, find_weights, weight_places

    release = FACENETS.get(name)
    if release is None:
        raise unknown("teacher to download", name, FACENETS)
    path = find_weights(release, models)
    fresh = path is None
    if path is None:
        target = weight_places(release, models)[0]
        path = download_weights(release, target, base=mirror)
    return {"name": name, "path": str(path), "fresh": fresh}

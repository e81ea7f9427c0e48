"""`persona targets`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from persona.cli.output import (
    NETWORKS,
    BatchOption,
    JsonFlag,
    ModelsOption,
    ShardsOption,
    VerifyOption,
    human_bytes,
    print_json,
    workspace,
)
from persona.figure_names import counted


def targets_command(
    set_: Annotated[str, typer.Argument(metavar="SET", help="A packed set.")],
    teacher: Annotated[str, typer.Option(metavar="NAME", help=f"{NETWORKS}.")],
    views: Annotated[
        int,
        typer.Option(help="Views kept of each photo: itself, its mirror image, then drawn ones."),
    ] = 2,
    config: Annotated[
        Path | None, typer.Option(help="Recipe whose `augment` the further views are drawn by.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the further views.")] = 0,
    precision: Annotated[str, typer.Option(help="no, bf16 or fp16.")] = "no",
    batch_size: BatchOption = 128,
    workers: Annotated[int, typer.Option("--workers", "-w", min=0, help="Loader processes.")] = 1,
    shards: ShardsOption = None,
    verify: VerifyOption = True,
    models: ModelsOption = None,
    json: JsonFlag = False,
) -> None:
    """Keep a teacher's embeddings beside a set: training then runs without the teacher.

    On several processes: `accelerate launch -m persona targets …`.
    """
    from persona.config import build_config, load_config, to_dict
    from persona.data.sets import open_set
    from persona.data.storage import on_disk
    from persona.targets import TargetOptions

    given = {
        "views": views,
        "seed": seed,
        "precision": precision,
        "batch_size": batch_size,
        "workers": workers,
    }
    augment = to_dict(load_config(config, {}).augment)
    options = build_config(TargetOptions, {"augment": augment}, given, config)
    place = workspace(shards=shards, models=models)
    faces = open_set(set_, place.shards, verify=verify)
    here = on_disk(faces.folder, "keeping targets")
    from persona.targets import keep_targets

    targets, fresh, main = keep_targets(faces, teacher, place.models, options)
    if not main:
        return
    from persona.data.kept_targets import targets_folder
    from persona.models.sources import spell

    teacher = spell(teacher)
    kept = targets_folder(here, teacher)
    size = sum(path.stat().st_size for path in kept.iterdir())
    if json:
        row = {
            "set": faces.name,
            "teacher": teacher,
            "photos": sum(file.photos for file in targets.files),
            "views": targets.views,
            "embedding_size": targets.embedding_size,
            "logits": targets.num_classes,
            "bytes": size,
            "path": str(kept),
            "fresh": fresh,
        }
        print_json(row)
        return
    verb = "keeps" if fresh else "kept before:"
    photos = counted(sum(f.photos for f in targets.files), "photo")
    typer.echo(
        f"{faces.name} {verb} {targets.views} views of {photos}, "
        f"{targets.embedding_size}-d embeddings ({human_bytes(size)}) at {kept}"
    )

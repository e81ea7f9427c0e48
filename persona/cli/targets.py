"""`persona targets`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from persona.cli.output import (
    NETWORKS,
    JsonFlag,
    ModelsOption,
    ShardsOption,
    VerifyOption,
    human_bytes,
    print_json,
    workspace,
)
from persona.errors import PersonaError

if TYPE_CHECKING:
    from persona.config import AugmentConfig
    from persona.data.align import AlignSpec
    from persona.data.shards import Manifest
    from persona.data.storage import SetFolder
    from persona.data.targets import Targets


def targets_command(
    set_: Annotated[str, typer.Argument(metavar="SET", help="A packed set.")],
    teacher: Annotated[str, typer.Option(metavar="NAME", help=f"{NETWORKS}.")],
    views: Annotated[
        int, typer.Option(help="Kept of each photo: itself, its mirror image, then drawn ones.")
    ] = 2,
    config: Annotated[
        Path | None, typer.Option(help="Recipe whose `augment` the further views are drawn by.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the further views.")] = 0,
    precision: Annotated[str, typer.Option(help="no, bf16 or fp16.")] = "no",
    batch_size: Annotated[int, typer.Option("--batch-size", "-b", min=1)] = 128,
    workers: Annotated[int, typer.Option("--workers", "-w", min=0, help="Loader processes.")] = 1,
    shards: ShardsOption = None,
    verify: VerifyOption = True,
    models: ModelsOption = None,
    json: JsonFlag = False,
) -> None:
    """Keep a teacher's vectors beside a set: training then runs without the teacher.

    On several processes: `accelerate launch -m persona targets …`.
    """
    from persona.config import PRECISIONS, load_config
    from persona.data.shards import open_set
    from persona.data.storage import on_disk
    from persona.errors import unknown

    if precision not in PRECISIONS:
        raise unknown("precision", precision, PRECISIONS)
    place = workspace(shards=shards, models=models)
    folder, manifest = open_set(set_, place.shards, verify=verify)
    here = on_disk(folder, "keeping targets")
    augment = load_config(config, {}).augment
    targets, fresh, main = keep_targets(
        *(folder, manifest, teacher, place.models),
        views=views,
        augment=augment,
        seed=seed,
        precision=precision,
        batch_size=batch_size,
        workers=workers,
    )
    if not main:
        return
    from persona.data.targets import targets_folder

    kept = targets_folder(here, teacher)
    size = sum(path.stat().st_size for path in kept.iterdir())
    if json:
        row = {
            "set": manifest.name,
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
    typer.echo(
        f"{manifest.name} {verb} {targets.views} views of {sum(f.photos for f in targets.files)} "
        f"photos, {targets.embedding_size} numbers each ({human_bytes(size)}) at {kept}"
    )


def check_teacher_exists(teacher: str, models: Path, align: AlignSpec) -> None:
    """Raises PersonaError, before hours of packing, if there is no such teacher for these crops."""
    from persona.models.sources import load_network

    if teacher == "none":
        raise PersonaError("targets are a teacher's: name one with --teacher")
    named = load_network(teacher, models)
    if named.network.uses_landmarks and not align.has_landmarks:
        raise PersonaError(
            f"{teacher} wants five points of each face: pack with --align mtcnn or landmarks"
        )
    if named.image_size not in {None, align.image_size}:
        raise PersonaError(
            f"{teacher} was trained on {named.image_size} px: pack with --image-size "
            f"{named.image_size}"
        )


def keep_targets(
    folder: SetFolder,
    manifest: Manifest,
    teacher: str,
    models: Path,
    *,
    views: int = 2,
    augment: AugmentConfig | None = None,
    seed: int = 0,
    precision: str = "no",
    batch_size: int = 128,
    workers: int = 1,
) -> tuple[Targets, bool, bool]:
    """Makes them; returns the card, whether anything was done, and whether to speak of it."""
    from persona.config import AugmentConfig

    if teacher == "none":
        raise PersonaError("targets are a teacher's: name one with --teacher")

    from accelerate import Accelerator

    from persona.evaluation.sanity import check_teacher
    from persona.models.sources import load_network
    from persona.targets import TargetOptions, make_targets

    options = TargetOptions(
        views=views,
        augment=augment or AugmentConfig(),
        seed=seed,
        precision=precision,
        batch_size=batch_size,
        workers=workers,
    )
    accelerator = Accelerator()
    named = load_network(teacher, models)
    manifest.check_crops(named.name, named.image_size, named.network.uses_landmarks)
    named.network.eval().to(accelerator.device)
    if named.network.from_elsewhere:
        check_teacher(named, folder, manifest, accelerator)
    targets, fresh = make_targets(folder, manifest, named, options, accelerator)
    main = accelerator.is_main_process
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return targets, fresh, main

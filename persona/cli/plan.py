"""`persona plan`."""

from __future__ import annotations

from typing import Annotated

import typer

from persona.cli.output import JsonFlag, TableColumn, human_bytes, note, print_json, print_table
from persona.errors import PersonaError


def plan_command(
    photos: Annotated[str, typer.Option(help="Photos of the set, as 3.3e6 or 260e6.")],
    gpus: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Number of GPUs.  Repeatable.  [default: 8, 16, … 512]"),
    ] = None,
    image_size: Annotated[int, typer.Option(min=1, help="Side of the crops in px.")] = 112,
    crop_bytes: Annotated[
        int | None, typer.Option(min=1, help="Bytes of a crop.  [default: 0.4 per pixel]")
    ] = None,
    shard_size: Annotated[
        int | None, typer.Option(min=1, help="Samples of a shard.  [default: about 100 MB]")
    ] = None,
    embedding_size: Annotated[
        int, typer.Option(min=1, help="Size of the teacher's embeddings.")
    ] = 512,
    views: Annotated[
        int, typer.Option(min=0, help="Kept views of each photo; 0: no kept targets.")
    ] = 2,
    batch_size: Annotated[
        int, typer.Option("--batch-size", "-b", min=1, help="Photos of a GPU's batch.")
    ] = 128,
    workers: Annotated[
        int, typer.Option("--workers", "-w", min=1, help="Loader processes of a GPU.")
    ] = 4,
    gpus_per_machine: Annotated[int, typer.Option(min=1)] = 8,
    loader_rate: Annotated[
        float | None,
        typer.Option(help="Images/s of one loader process.  [default: as measured]"),
    ] = None,
    step_rate: Annotated[
        float | None,
        typer.Option(help="Images/s of a train step on one GPU.  [default: unknown]"),
    ] = None,
    teacher_rate: Annotated[
        float | None,
        typer.Option(help="Faces/s of the teacher on one GPU.  [default: unknown]"),
    ] = None,
    align_rate: Annotated[
        float | None,
        typer.Option(help="Photos/s that one core packs.  [default: MTCNN's as measured]"),
    ] = None,
    network: Annotated[
        float | None,
        typer.Option(help="Gbit/s that a machine reads.  [default: unknown]"),
    ] = None,
    storage: Annotated[
        float | None,
        typer.Option(help="GB/s that the storage gives to all.  [default: unknown]"),
    ] = None,
    json: JsonFlag = False,
) -> None:
    """What a training on so many photos reads and takes on so many GPUs, and which part limits it.

    Nothing is measured or read. docs/scaling.md explains the figures.
    """
    from persona.data.planning import GPUS, Plan

    plan = Plan(
        photos=_read_photos(photos),
        image_size=image_size,
        crop_bytes=crop_bytes,
        shard_size=shard_size,
        embedding_size=embedding_size,
        views=views,
        batch_size=batch_size,
        workers=workers,
        gpus_per_machine=gpus_per_machine,
        loader_rate=loader_rate,
        step_rate=step_rate,
        network_gbit=network,
        storage_gb=storage,
        teacher_rate=teacher_rate,
        align_rate=align_rate,
    )
    of_set, rates = plan.set_figures(), plan.rates()
    runs = [plan.on(count) for count in gpus or GPUS]
    if json:
        told = {name: vars(rate) for name, rate in rates.items()}
        print_json({"set": of_set, "rates": told, "runs": runs})
        return
    hours = of_set["teacher_gpu_hours"]
    typer.echo(
        f"{of_set['photos']:,} photos of {image_size} px: {_bytes(of_set['shard_bytes'])} in "
        f"{of_set['shards']:,} shards, {_bytes(of_set['targets_bytes'])} of kept targets; packing "
        f"{of_set['packing_core_hours']:,.0f} core hours, the teacher "
        + ("unknown" if hours is None else f"{hours:,.0f} GPU hours")
    )
    print_table(
        [
            TableColumn("rate"),
            TableColumn("value", right=True),
            TableColumn("source"),
        ],
        [
            [name, None if rate.value is None else f"{rate.value:,.0f}", rate.source]
            for name, rate in rates.items()
        ],
    )
    titles = ("GPUs", "images/s", "epoch", "Gbit/s a machine", "GB/s in all", "read in an epoch")
    print_table(
        [
            *(TableColumn(title, right=True) for title in titles),
            TableColumn("loader memory a machine", right=True),
            TableColumn("limited by"),
        ],
        [
            [
                run["gpus"],
                f"{run['images_per_s']:,.0f}",
                _time(float(run["epoch_s"])),
                f"{run['network_gbit']:,.1f}",
                f"{run['storage_gb_per_s']:,.2f}",
                _bytes(run["read_bytes"]),
                f"{run['loader_gb']:.1f} GB",
                run["limited_by"],
            ]
            for run in runs
        ],
    )
    if step_rate is None:
        note(
            "the rate of a train step on a GPU is not among the measured figures, so this is what "
            "the loader can give: --step-rate sets it (scripts/bench_distill.py measures it)"
        )


def _read_photos(text: str) -> int:
    """The number of photos of a text such as 260e6.

    Raises:
        PersonaError: it is no whole number of at least 1.
    """
    try:
        value = float(text.replace(",", "").replace("_", ""))
        if value >= 1 and value == int(value):
            return int(value)
    except (ValueError, OverflowError):
        pass
    raise PersonaError(f"--photos {text}: give the number of photos of the set, as 3.3e6")


def _bytes(count: object) -> str:
    assert isinstance(count, int)
    return human_bytes(count)


def _time(seconds: float) -> str:
    """A time for people: 4210 s is `1 h 10 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"

"""`persona triplets …`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from persona.cli.commands import Commands
from persona.cli.output import (
    JsonFlag,
    RawOption,
    ShardsOption,
    TableColumn,
    print_json,
    print_table,
    workspace,
)
from persona.errors import PersonaError

app = Commands(help="Triplet sets: anchor, positive, negative.", no_args_is_help=True)


@app.command("make")
def make(
    num: Annotated[int, typer.Argument(help="How many.")],
    dataset: Annotated[
        str, typer.Argument(help="Raw dataset or KIND:PATH, see `persona datasets`.")
    ],
    split: Annotated[str | None, typer.Option(help="train or test.")] = None,
    seed: Annotated[int, typer.Option(help="Another seed, another set.")] = 0,
    workers: Annotated[
        int, typer.Option("--workers", "-w", min=1, help="Threads that list the folders.")
    ] = 8,
    raw: RawOption = None,
    shards: ShardsOption = None,
    json: JsonFlag = False,
) -> None:
    """Draw triplets that cover identities and photos as widely as their number allows."""
    from persona.data.raw import open_dataset
    from persona.data.triplets import make_triplets

    place = workspace(raw=raw, shards=shards)
    source = open_dataset(dataset, place.raw, split, scan_workers=workers)
    card = make_triplets(
        source.index(),
        num,
        dataset=source.spec,
        split=source.split,
        seed=seed,
        shards=place.shards,
        name=source.name,
    )
    if json:
        print_json(asdict(card))
        return
    typer.echo(card.id)
    typer.echo(f"pack it with: {card.packing_command}", err=True)


@app.command("list")
def list_(shards: ShardsOption = None, json: JsonFlag = False) -> None:
    """Every triplet set, packed or not."""
    from persona.data.shards import MANIFEST
    from persona.data.triplets import list_triplets

    place = workspace(shards=shards).shards
    cards, wrong = list_triplets(place)
    rows = [
        {
            "id": card.id,
            "dataset": card.dataset,
            "split": card.split,
            "triplets": card.triplets,
            "seed": card.seed,
            "packed": (place / card.id / MANIFEST).is_file(),
        }
        for card in cards
    ]
    if json:
        print_json(rows)
    else:
        names = ("id", "dataset", "split", "triplets", "seed", "packed")
        columns = [TableColumn(name, right=name in {"triplets", "seed"}) for name in names]
        print_table(
            columns,
            [[*(row[n] for n in names[:-1]), "yes" if row["packed"] else "no"] for row in rows],
            empty="no triplet set: `persona triplets make NUMBER DATASET` draws one",
        )
    if wrong:
        raise PersonaError("; ".join(wrong))


@app.command("coverage")
def coverage_(
    set_id: Annotated[str, typer.Option("--set", help="ID of a triplet set.")],
    raw: RawOption = None,
    shards: ShardsOption = None,
    json: JsonFlag = False,
) -> None:
    """How many identities and photos of the raw dataset a triplet set touches."""
    from persona.data.raw import open_dataset
    from persona.data.triplets import coverage, load_triplets

    place = workspace(raw=raw, shards=shards)
    card, indices = load_triplets(set_id, place.shards)
    measured = coverage(card, indices, open_dataset(card.dataset, place.raw, card.split).index())
    if json:
        print_json(asdict(measured))
        return
    typer.echo(
        f"{card.id}: {card.triplets} triplets touch {measured.class_coverage:.1%} of the "
        f"identities and {measured.image_coverage:.1%} of the photos of "
        f"{card.dataset} ({card.split})"
    )

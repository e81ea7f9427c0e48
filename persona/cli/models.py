"""`persona models list`."""

from __future__ import annotations

import typer

from persona.cli.output import (
    Column,
    JsonFlag,
    ModelsOption,
    human_bytes,
    print_json,
    print_table,
    workspace,
)

models_app = typer.Typer(help="The model store.", no_args_is_help=True)


@models_app.command("list")
def models_list(models: ModelsOption = None, json: JsonFlag = False) -> None:
    """Every student: what it is, what it learned from, how good it is."""
    from persona.models.cards import list_models

    names = (
        "id",
        "architecture",
        "parameters",
        "bytes",
        "teacher",
        "temperature",
        "epochs",
        "score",
        "created",
    )
    cards = list_models(workspace(models=models).models)
    rows = [{name: getattr(card, name) for name in names} for card in cards]
    if json:
        print_json(rows)
        return
    print_table(
        [Column(name, right=name in {"parameters", "bytes", "score"}) for name in names],
        [
            [
                card.id,
                card.architecture,
                f"{card.parameters:,}",
                human_bytes(card.bytes),
                card.teacher,
                card.temperature,
                card.epochs,
                None if card.score is None else f"{card.score:.4f}",
                card.created,
            ]
            for card in cards
        ],
    )

"""`persona models …`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from persona.cli.commands import Commands
from persona.cli.output import (
    NEWEST,
    JsonFlag,
    ModelsOption,
    TableColumn,
    human_bytes,
    note,
    print_json,
    print_page,
    print_table,
    workspace,
)

models_app = Commands(help="The model store.", no_args_is_help=True)


@models_app.command("list")
def models_list(models: ModelsOption = None, json: JsonFlag = False) -> None:
    """Every student: what it is, what it learned from, how good it is."""
    from persona.models.cards import list_models, list_shipped

    names = (
        "id",
        "architecture",
        "parameters",
        "bytes",
        "teacher",
        "temperature",
        "epochs",
        "score",
        "scored_on",
        "created",
    )
    place = workspace(models=models).models
    shipped = list_shipped(place)
    cards = [*shipped, *list_models(place)]
    if json:
        rows = [
            {name: getattr(card, name) for name in names}
            | ({"shipped": True} if card in shipped else {})
            for card in cards
        ]
        print_json(rows)
        return
    print_table(
        [
            TableColumn(name, right=name in {"parameters", "bytes", "score"}, whole=name == "id")
            for name in names
        ],
        [
            [
                f"{card.id} (shipped)" if card in shipped else card.id,
                card.architecture,
                f"{card.parameters:,}",
                human_bytes(card.bytes),
                card.teacher,
                card.temperature,
                card.epochs,
                card.told_score,
                card.scored_on,
                card.created,
            ]
            for card in cards
        ],
        empty="no model: `accelerate launch -m persona.distill` trains one, `persona models pull` "
        "fetches one",
    )


@models_app.command("show")
def models_show(
    model: Annotated[
        str | None,
        typer.Argument(help=f"Model ID, or a model's folder.  {NEWEST}"),
    ] = None,
    models: ModelsOption = None,
    json: JsonFlag = False,
) -> None:
    """What a student is, how good it is, what it learned from, and its files."""
    from dataclasses import asdict

    from persona.models.cards import files_in, files_of, find_model, is_of_zoo, is_stored, read_card

    place = workspace(models=models).models
    folder = None
    if model is not None and not is_stored(model, place) and Path(model).is_dir():
        folder = Path(model)
    card = find_model(model, place) if folder is None else read_card(folder)
    is_shipped = folder is None and is_of_zoo(card.id, place)
    if json:
        print_json(asdict(card) | ({"shipped": True} if is_shipped else {}))
        return
    from persona.deploy.model_page import model_page

    files = files_of(card, place) if folder is None else files_in(folder / card.weights)
    page = model_page(card, files, is_shipped=is_shipped)
    print_page(page.title, page.lead, [(part.title, part.rows) for part in page.sections])


@models_app.command("rename")
def models_rename(
    model: Annotated[str, typer.Argument(help="Model ID.")],
    name: Annotated[str, typer.Argument(help="Its new ID.")],
    models: ModelsOption = None,
) -> None:
    """Give a student another ID."""
    from persona.models.manage import rename_model, students_of

    place = workspace(models=models).models
    card = rename_model(model, name, place)
    typer.echo(f"{model} is now {card.id}")
    _warn_of_students(model, students_of(model, place))


@models_app.command("remove")
def models_remove(
    model: Annotated[str, typer.Argument(help="Model ID.")],
    models: ModelsOption = None,
) -> None:
    """Remove a student; the run that made it stays."""
    from persona.models.manage import remove_model, students_of

    place = workspace(models=models).models
    remove_model(model, place)
    typer.echo(f"{model} is removed")
    _warn_of_students(model, students_of(model, place))


@models_app.command("import")
def models_import(
    folder: Annotated[Path, typer.Argument(help="A model's folder of another store.")],
    name: Annotated[str | None, typer.Option(help="Its ID here.  [default: its own]")] = None,
    models: ModelsOption = None,
) -> None:
    """Take in a student from another machine's models folder."""
    from persona.models.manage import import_model

    card = import_model(folder, name, workspace(models=models).models)
    typer.echo(f"{card.id}: {card.architecture}, {human_bytes(card.bytes)}")


@models_app.command("push")
def models_push(
    model: Annotated[str, typer.Argument(help="Model ID.")],
    to: Annotated[str, typer.Argument(metavar="hf://OWNER/NAME", help="Where it goes.")],
    licence: Annotated[
        str,
        typer.Option(
            help="Licence of the weights, which may depend on the photos: mit, other, ….  It goes "
            "into card and ONNX file, too. If the card has a condition, `other` keeps it."
        ),
    ],
    public: Annotated[bool, typer.Option("--public", help="A new repository is public.")] = False,
    with_classes: Annotated[
        bool,
        typer.Option(
            "--with-classes",
            help="Publish the class list, which can hold names, and the last layer, a template of "
            "each identity.",
        ),
    ] = False,
    models: ModelsOption = None,
) -> None:
    """Publish a student on the Hugging Face hub: weights, ONNX file, model card."""
    from persona.deploy.hub import push
    from persona.models.cards import find_model
    from persona.models.hub import parse_repository

    repository = parse_repository(to)
    place = workspace(models=models).models
    address = push(
        find_model(model, place),
        place,
        repository,
        licence=licence,
        private=not public,
        with_classes=with_classes,
    )
    typer.echo(f"{model} is at {address}")


@models_app.command("pull")
def models_pull(
    source: Annotated[str, typer.Argument(metavar="hf://OWNER/NAME")],
    name: Annotated[str | None, typer.Option(help="Its ID here.  [default: NAME]")] = None,
    models: ModelsOption = None,
) -> None:
    """Take in a student from the Hugging Face hub."""
    from persona.models.hub import parse_repository, pull

    card = pull(parse_repository(source), name, workspace(models=models).models)
    typer.echo(f"{card.id}: {card.architecture}, {human_bytes(card.bytes)}")


def _warn_of_students(model: str, students: list[str]) -> None:
    if students:
        note(f"note: {', '.join(students)} learned from {model} and name it as their teacher")

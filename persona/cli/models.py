"""`persona models …`, `persona evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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

if TYPE_CHECKING:
    from persona.evaluation.protocols import Evaluation

models_app = typer.Typer(help="The model store.", no_args_is_help=True)

DEFAULT_TEACHER = "facenet-vggface2"


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


@models_app.command("show")
def models_show(
    model: Annotated[str | None, typer.Argument(help="Model ID.  [default: newest]")] = None,
    models: ModelsOption = None,
    json: JsonFlag = False,
) -> None:
    """All that is known of a student: its card."""
    from dataclasses import asdict

    from persona.models.cards import find_model

    card = find_model(model, workspace(models=models).models)
    if json:
        print_json(asdict(card))
        return
    import yaml

    typer.echo(yaml.safe_dump(asdict(card), sort_keys=False, allow_unicode=True), nl=False)


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
    typer.echo(f"{remove_model(model, place).id} is removed")
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
        str, typer.Option(help="Of the weights, which may depend on the photos: mit, other, ….")
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
    from persona.deploy.hub import parse_repository, push
    from persona.models.cards import find_model

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
    from persona.deploy.hub import parse_repository, pull

    card = pull(parse_repository(source), name, workspace(models=models).models)
    typer.echo(f"{card.id}: {card.architecture}, {human_bytes(card.bytes)}")


def _warn_of_students(model: str, students: list[str]) -> None:
    if students:
        note(f"note: {', '.join(students)} learned from {model} and name it as their teacher")


def evaluate_command(
    set_: Annotated[
        str, typer.Option("--set", help="lfw, a packed set, or the ID of a packed triplet set.")
    ],
    student: Annotated[
        str | None,
        typer.Option(
            help="Model ID; mobilenet_v3_small or _large for an untrained one.  [default: newest]"
        ),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            "--teacher",
            metavar="[NAME]",
            help=f"Evaluate a teacher, by name or onnx:FILE; without one {DEFAULT_TEACHER}.",
        ),
    ] = None,
    measure: Annotated[
        str | None,
        typer.Option(help="verification, match or class.  [default: what the set is made for]"),
    ] = None,
    scores: Annotated[
        Path | None, typer.Option(help="Write fold,same,score of every pair to this CSV file.")
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", "-b", min=1)] = 128,
    workers: Annotated[int, typer.Option("--workers", "-w", min=0, help="Loader processes.")] = 1,
    shards: ShardsOption = None,
    models: ModelsOption = None,
    json: JsonFlag = False,
) -> None:
    """Measure a student or a teacher on a packed set."""
    from persona.data.shards import open_set
    from persona.models.cards import find_model

    if student is not None and teacher is not None:
        raise PersonaError("choose one of --student and --teacher")
    place = workspace(shards=shards, models=models)
    folder, manifest = open_set(set_, place.shards)
    name = teacher or student or find_model(None, place.models).id

    import torch
    from accelerate import Accelerator

    from persona.evaluation.protocols import evaluate
    from persona.models.store import load_network

    accelerator = Accelerator()
    named = load_network(name, place.models)
    named.network.to(accelerator.device).to(memory_format=torch.channels_last)
    evaluation = evaluate(
        named,
        folder,
        manifest,
        accelerator,
        measure=measure,
        scores=scores,
        batch_size=batch_size,
        workers=workers,
    )
    if accelerator.is_main_process:
        if json:
            print_json({k: v for k, v in evaluation.to_json().items() if k != "impostors"})
        else:
            print_evaluation(evaluation)
        warn_of_resolution(evaluation)
    accelerator.wait_for_everyone()
    accelerator.end_training()


def print_evaluation(evaluation: Evaluation) -> None:
    """The figures as a table of one row."""
    cells: list[tuple[str, str]] = [
        ("model", evaluation.model),
        ("set", evaluation.set),
        ("measure", evaluation.measure),
        ("accuracy", f"{evaluation.accuracy:.4f}"),
    ]
    if evaluation.accuracy_std is not None:
        cells[-1] = ("accuracy", f"{evaluation.accuracy:.4f} ± {evaluation.accuracy_std:.4f}")
    if evaluation.auc is not None and evaluation.eer is not None:
        cells += [("AUC", f"{evaluation.auc:.4f}"), ("EER", f"{evaluation.eer:.4f}")]
    for far, tar in (evaluation.tar_at_far or {}).items():
        cells.append((f"TAR @ FAR {far}", f"{tar:.4f}"))
    for title in ("pairs", "triplets", "photos", "no_face"):
        count = getattr(evaluation, title)
        if count is not None:
            cells.append((title.replace("_", " "), str(count)))
    print_table([Column(title) for title, _ in cells], [[cell for _, cell in cells]])


def warn_of_resolution(evaluation: Evaluation) -> None:
    """Says where the impostor pairs are too few for a FAR, and what was left out."""
    for far in evaluation.tar_at_far or {}:
        if evaluation.impostors and float(far) * evaluation.impostors < 1:
            note(
                f"note: {evaluation.impostors} impostor pairs cannot resolve FAR {far}: "
                "its TAR is the one without any false accept"
            )
    if evaluation.no_face:
        unit = "triplets" if evaluation.triplets else "pairs" if evaluation.pairs else "photos"
        note(
            f"note: {evaluation.no_face} {unit} left out: a photo, or the face in it, was not found"
        )

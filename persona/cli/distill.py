"""The command line of `python -m persona.distill`, which `accelerate launch` runs too."""

from __future__ import annotations

import sys
from dataclasses import asdict
from json import dumps
from pathlib import Path
from typing import Annotated, Any

import typer

from persona.cli.commands import Commands, told_twice
from persona.cli.errors import run_app
from persona.cli.output import (
    CacheOption,
    ModelsOption,
    RunsOption,
    ShardsOption,
    TrackerOption,
    VerifyOption,
    print_json,
)
from persona.cli.process import is_first, launcher_options
from persona.extras import check_training
from persona.workspace import Workspace

app = Commands(
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command()
def distill_command(
    context: typer.Context,
    student: Annotated[
        str | None,
        typer.Argument(help="{backbones}.  [default: mobilenet_v3_small]"),
    ] = None,
    train_set: Annotated[
        str | None,
        typer.Option(
            help="Dataset, set, its URL or triplet ID; several are mixed, by weight: utk,aaf*2."
            "  [default: vggface2]"
        ),
    ] = None,
    exclude_near: Annotated[
        str | None,
        typer.Option(
            metavar="SET[:COSINE]",
            help="Leave out train photos near one of this set's, by the teacher's kept embeddings."
            "  [default cosine: 0.5]",
        ),
    ] = None,
    exclude_duplicates: Annotated[
        float | None,
        typer.Option(
            metavar="COSINE",
            help="Leave out train photos nearly the same as an earlier one of their set.",
        ),
    ] = None,
    test_set: Annotated[
        str | None,
        typer.Option(help="Evaluated after each epoch; `none`: never.  [default: lfw]"),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            help="facenet-vggface2, facenet-casia-webface, onnx:FILE, a model ID, several with "
            "commas, or none (hard labels alone).  [default: facenet-vggface2]"
        ),
    ] = None,
    from_model: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="MODEL",
            help="Go on from this student (ID, folder or hf://OWNER/NAME), as with another set.",
        ),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option("--epochs", "-e", help="Length of the run in epochs.  [default: 20]"),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Length of the run in optimizer steps, in place of epochs.")
    ] = None,
    photos: Annotated[
        int | None, typer.Option(help="Length of the run in photos seen, in place of epochs.")
    ] = None,
    evaluate_steps: Annotated[
        int | None,
        typer.Option(help="Optimizer steps between evaluations.  [default: those of an epoch]"),
    ] = None,
    temperature: Annotated[
        float | None, typer.Option("--temperature", "-t", help="[default: 4]")
    ] = None,
    soft_weight: Annotated[
        float | None, typer.Option(help="Weight of the teacher's soft targets.  [default: 0.9]")
    ] = None,
    hard_weight: Annotated[
        float | None, typer.Option(help="Weight of the hard labels.  [default: 0.1]")
    ] = None,
    lr: Annotated[float | None, typer.Option("--lr", help="[default: 0.001]")] = None,
    lr_scheduler: Annotated[
        bool | None,
        typer.Option(
            "--lr-scheduler/--no-lr-scheduler",
            help="Divide the rate by 10 at 1/4, 1/2 and 3/4 of the steps.  [default: yes]",
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option("--batch-size", "-b", help="On each process.  [default: 128]"),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option("--workers", "-w", help="Loader processes of each process.  [default: 4]"),
    ] = None,
    mixed_precision: Annotated[
        str | None, typer.Option(help="no, fp16 or bf16.  [default: what accelerate launch says]")
    ] = None,
    gradient_accumulation_steps: Annotated[
        int | None,
        typer.Option(
            help="Batches of an optimizer step on each process.  [default: "
            "ACCELERATE_GRADIENT_ACCUMULATION_STEPS, or 1]"
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="[default: 0]")] = None,
    checkpoint_steps: Annotated[
        int | None, typer.Option(help="Optimizer steps between checkpoints.  [default: 500]")
    ] = None,
    targets: Annotated[
        str | None,
        typer.Option(
            help="The teacher's embeddings: kept (persona targets), online, or auto: kept if there."
            "  [default: auto]"
        ),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--option",
            "-o",
            metavar="NAME=VALUE",
            help="Any value of a recipe, as `-o optim.schedule=cosine`; `-o optim={…}` replaces "
            "the recipe's whole group.  Repeatable.",
        ),
    ] = None,
    tracker: TrackerOption = None,
    config: Annotated[
        Path | None, typer.Option(help="A YAML recipe, see configs/; options win over it.")
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="RUN",
            help="Take up a run from its last checkpoint. `auto`: the run that this same command "
            "began, or a new one.",
        ),
    ] = None,
    shards: ShardsOption = None,
    cache: CacheOption = None,
    verify: VerifyOption = True,
    models: ModelsOption = None,
    runs: RunsOption = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print the model's card as JSON at the end.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the trace of an error.")] = False,
) -> None:
    """Distil a student from a teacher; `persona distill` takes all GPUs of this machine."""
    place = Workspace.locate(shards=shards, models=models, runs=runs)
    options: dict[str, Any] = {
        "student.architecture": student,
        "teacher": teacher,
        "from_model": from_model,
        "train_set": train_set,
        "exclude_near": exclude_near,
        "exclude_duplicates": exclude_duplicates,
        "test_set": test_set,
        "epochs": epochs,
        "steps": steps,
        "photos": photos,
        "evaluate_steps": evaluate_steps,
        "batch_size": batch_size,
        "workers": workers,
        "cache": None if cache is None else str(cache),
        "verify": None if verify else False,
        "targets": targets,
        "mixed_precision": mixed_precision,
        "gradient_accumulation_steps": gradient_accumulation_steps,
        "seed": seed,
        "checkpoint_steps": checkpoint_steps,
        "tracker": tracker,
        "losses.soft_targets.temperature": temperature,
        "losses.soft_targets.weight": soft_weight,
        "losses.hard_labels.weight": hard_weight,
        "optim.lr": lr,
        "optim.schedule": {None: None, True: "multistep", False: "constant"}[lr_scheduler],
    }
    from persona.config import read_options

    given = read_options(options, option or [], told_twice)
    from persona.distill.start import resolve_config

    resolved = resolve_config(config, given, launcher_options(), place, resume)
    check_training("distilling")
    if context.parent is not None:  # `persona distill` starts the processes itself
        from persona.cli.launch import launch_on_gpus

        switches = {"--json": json, "--debug": debug or context.parent.params.get("debug")}
        arguments = [
            *(
                f"--option={name}={dumps(value, ensure_ascii=False)}"
                for name, value in given.items()
            ),
            *([] if config is None else [f"--config={config}"]),
            *([] if resume is None else [f"--resume={resume}"]),
            *(f"--shards={place.shards}", f"--models={place.models}", f"--runs={place.runs}"),
            *(name for name, wanted in switches.items() if wanted),
        ]
        launch_on_gpus("persona.distill", arguments)
    from persona.distill import distill
    from persona.models.cards import find_model, list_models

    model_id = distill(resolved, place, resume)
    if is_first():
        card = find_model(model_id, place.models)
        if json:
            print_json(asdict(card))
        else:
            for card in list_models(place.models):
                if card.made_in == model_id:
                    best = card.told_score and f", the best on {card.test_set}: {card.told_score}"
                    typer.echo(f"{card.id}: {card.taken_after} kept{best or ''}")


def main() -> None:
    """Entry point of `python -m persona.distill`."""
    run_app(app, "python -m persona.distill", sys.argv[1:])

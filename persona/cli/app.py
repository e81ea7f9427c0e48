"""The Typer application, with the options that all its commands share."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from persona import __version__
from persona.cli import (
    data,
    demo,
    deploy,
    distill,
    download,
    evaluate,
    gallery,
    gallery_audit,
    gallery_import,
    gallery_unknown,
    gallery_upgrade,
    group,
    learn,
    models,
    plan,
    recognise,
    report,
    serve,
    sweep,
    targets,
    triplets,
    verify,
)
from persona.cli.commands import Commands
from persona.cli.errors import run_app

app = Commands(
    name="persona",
    help="Distil a large face network into a small one, measure it, keep it learning.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"persona {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the trace of an error.")] = False,
) -> None:
    """Options before the command. `--debug` is read by persona.cli.errors."""


# These modules add their commands to `persona gallery`.
_ = gallery_audit, gallery_import, gallery_unknown, gallery_upgrade

DATA, TRAIN, MEASURE, SHIP, PEOPLE = "Data", "Train", "Measure", "Ship", "People"
"""Panels of `persona --help`."""

app.command("datasets", rich_help_panel=DATA)(data.datasets_command)
app.command("download", rich_help_panel=DATA)(download.download_command)
app.command("shard", rich_help_panel=DATA)(data.shard_command)
app.add_typer(data.shards_app, name="shards", rich_help_panel=DATA)
app.command("targets", rich_help_panel=DATA)(targets.targets_command)
app.add_typer(triplets.app, name="triplets", rich_help_panel=DATA)
app.command("plan", rich_help_panel=TRAIN)(plan.plan_command)
app.command("distill", rich_help_panel=TRAIN)(distill.distill_command)
app.command("sweep", rich_help_panel=TRAIN)(sweep.sweep_command)
app.add_typer(learn.learn_app, name="learn", rich_help_panel=TRAIN)
app.add_typer(models.models_app, name="models", rich_help_panel=TRAIN)
app.command("demo", rich_help_panel=TRAIN)(demo.demo_command)
app.command("evaluate", rich_help_panel=MEASURE)(evaluate.evaluate_command)
app.command("compare", rich_help_panel=MEASURE)(evaluate.compare_command)
app.command("report", rich_help_panel=MEASURE)(report.report_command)
app.command("bench", rich_help_panel=MEASURE)(deploy.bench_command)
app.command("export", rich_help_panel=SHIP)(deploy.export_command)
app.command("verify", rich_help_panel=PEOPLE)(verify.verify_command)
app.command("embed", rich_help_panel=PEOPLE)(verify.embed_command)
app.command("enroll", rich_help_panel=PEOPLE)(gallery.enroll_command)
app.command("recognise", rich_help_panel=PEOPLE)(recognise.recognise_command)
app.command("group", rich_help_panel=PEOPLE)(group.group_command)
app.command("forget", rich_help_panel=PEOPLE)(gallery.forget_command)
app.add_typer(gallery.gallery_app, name="gallery", rich_help_panel=PEOPLE)
app.command("serve", rich_help_panel=PEOPLE)(serve.serve_command)


def main() -> None:
    """Entry point of `persona`."""
    arguments = name_default_teacher(sys.argv[1:])
    run_app(app.narrowed(arguments), "persona", arguments)


def name_default_teacher(arguments: list[str]) -> list[str]:
    """Adds FaceNet's name after a `--teacher` without one.

    Typer has no options with an optional value.
    """
    for place, argument in enumerate(arguments):
        following = arguments[place + 1 : place + 2]
        if argument == "--teacher" and (not following or following[0].startswith("-")):
            return [*arguments[: place + 1], evaluate.DEFAULT_TEACHER, *arguments[place + 1 :]]
    return arguments

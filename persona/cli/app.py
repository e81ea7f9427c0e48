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
    group,
    learn,
    models,
    recognise,
    report,
    serve,
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


app.command("datasets")(data.datasets_command)
app.command("download")(download.download_command)
app.command("shard")(data.shard_command)
app.add_typer(data.shards_app, name="shards")
app.command("targets")(targets.targets_command)
app.add_typer(triplets.app, name="triplets")
app.add_typer(models.models_app, name="models")
app.command("distill")(distill.distill_command)
app.command("evaluate")(evaluate.evaluate_command)
app.command("compare")(evaluate.compare_command)
app.command("report")(report.report_command)
app.add_typer(learn.learn_app, name="learn")
app.command("export")(deploy.export_command)
app.command("bench")(deploy.bench_command)
app.command("verify")(verify.verify_command)
app.command("embed")(verify.embed_command)
app.command("enroll")(gallery.enroll_command)
app.command("recognise")(recognise.recognise_command)
app.command("group")(group.group_command)
app.command("forget")(gallery.forget_command)
app.add_typer(gallery.gallery_app, name="gallery")
app.command("serve")(serve.serve_command)
app.command("demo")(demo.demo_command)


def main() -> None:
    """Entry point of `persona`."""
    run_app(app, "persona", name_default_teacher(sys.argv[1:]))


def name_default_teacher(arguments: list[str]) -> list[str]:
    """Adds FaceNet's name after a `--teacher` without one.

    Typer has no options with an optional value.
    """
    for place, argument in enumerate(arguments):
        following = arguments[place + 1 : place + 2]
        if argument == "--teacher" and (not following or following[0].startswith("-")):
            return [*arguments[: place + 1], evaluate.DEFAULT_TEACHER, *arguments[place + 1 :]]
    return arguments

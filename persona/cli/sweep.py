"""`persona sweep`."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from persona.cli.commands import told_twice
from persona.cli.output import (
    JsonFlag,
    ModelsOption,
    ShardsOption,
    TableColumn,
    note,
    print_json,
    print_table,
)
from persona.errors import PersonaError, resumed_by
from persona.extras import check_training
from persona.workspace import Workspace

if TYPE_CHECKING:
    from persona.distill.sweep import Sweep, SweepRunner


def sweep_command(
    file: Annotated[Path, typer.Argument(metavar="FILE.yaml", help="See configs/sweeps/.")],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of runs, results and tables.  [default: sweeps/FILE]"),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--option",
            "-o",
            metavar="NAME=VALUE",
            help="Any value of a recipe, for all runs, as `-o teacher=onnx:FILE`.  Repeatable.",
        ),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Runs at the same time.  [default: one on each GPU]")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the runs and whether they are done.")
    ] = False,
    tables: Annotated[
        bool, typer.Option("--tables", help="Write and print the tables of what is done.")
    ] = False,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw the runs' curves, as .svg, .pdf or .png."),
    ] = None,
    shards: ShardsOption = None,
    models: ModelsOption = None,
    json: JsonFlag = False,
) -> None:
    """Train every combination of options and seeds in a file, and compare the students.

    Killed, it goes on when run again. Tables lie in the folder as CSV, Markdown and LaTeX, and are
    written after each run.
    """
    place = Workspace.locate(shards=shards, models=models)
    from persona.config import read_options
    from persona.distill.sweep import SweepRunner, read_sweep

    sweep = read_sweep(file, read_options({}, option or [], told_twice))
    folder = out or place.runs.parent / "sweeps" / file.stem
    runner = SweepRunner(place, folder, note)
    if dry_run and tables:
        raise PersonaError("--dry-run lists runs and --tables their figures: give one of them")
    if dry_run:
        _list_runs(sweep, runner, json=json)
        return
    check_training("a sweep")
    from persona.data.sets import open_set
    from persona.distill.sweep_table import (
        cells,
        count_done,
        curves_figure,
        tabulate,
        titles,
        write_tables,
    )
    from persona.report.plots import check_plot, write_plot

    figures = sweep.measure.figures
    if plot is not None:
        check_plot(plot)
    failed: list[str] = []
    if not tables:
        open_set(sweep.measure.set, place.shards)
        with resumed_by("the same options"):
            failed = runner.run(
                sweep,
                _devices(jobs),
                lambda: write_tables(tabulate(sweep, runner), figures, folder),
            )
    rows = tabulate(sweep, runner)
    done, planned = count_done(rows)
    if done:
        write_tables(rows, figures, folder)
    if json:
        counts = {"done": done, "planned": planned, "failed": failed}
        print_json({"out": str(folder), "rows": [asdict(row) for row in rows], **counts})
    elif done:
        head = [
            TableColumn(title, right=number > 0) for number, title in enumerate(titles(figures))
        ]
        print_table(head, cells(rows, figures))
        note(f"tables: {folder}/table.csv, table.md, table.tex and runs.csv")
    if tables and done < planned:
        note(f"unfinished: {done} of {planned} are done; the command without --tables goes on")
    if plot is not None:
        write_plot(curves_figure(rows, sweep, runner), plot)
    if failed:
        raise PersonaError(
            f"{len(failed)} of {planned} failed: see why above, and run it again for these alone"
        )


def _list_runs(sweep: Sweep, runner: SweepRunner, *, json: bool) -> None:
    """Prints the runs of a sweep and whether they are done."""
    listed = [(run, bool(runner.result_of(run))) for run in sweep.runs]
    if json:
        rows = [
            {"run": run.title, "variant": run.variant, "seed": run.seed, "done": is_done}
            for run, is_done in listed
        ]
        print_json({"out": str(runner.out), "runs": rows})
        return
    print_table(
        [TableColumn("run"), TableColumn("state")],
        [[run.title, "done" if is_done else "to do"] for run, is_done in listed],
    )


def _devices(jobs: int | None) -> list[str | None]:
    """The GPUs that runs take in turns, or None for each run at the same time without them."""
    from persona.cli.launch import count_gpus

    gpus = count_gpus()
    if not gpus:
        return [None] * (jobs or 1)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    names = visible if len(visible) >= gpus and visible[0] else [str(n) for n in range(gpus)]
    return [names[number % gpus] for number in range(jobs or gpus)]

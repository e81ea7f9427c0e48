"""`persona learn`, `persona learn gallery` and `persona learn benchmark`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from persona.cli.commands import Commands, check_nothing_before, told_twice
from persona.cli.gallery import PassphraseOption, StoreOption, store_of
from persona.cli.output import (
    NEWEST,
    CacheOption,
    JsonFlag,
    ModelsOption,
    RunsOption,
    ShardsOption,
    TableColumn,
    TrackerOption,
    VerifyOption,
    human_bytes,
    note,
    print_json,
    print_table,
)
from persona.cli.process import is_first, launcher_options
from persona.errors import PersonaError
from persona.workspace import Workspace

if TYPE_CHECKING:
    from persona.gallery_learning import Outcome

learn_app = Commands(
    help="Teach a student new people without losing the old ones.", invoke_without_command=True
)

StudentOption = Annotated[str | None, typer.Option("--model", help=f"Model ID.  {NEWEST}")]
OnOption = Annotated[
    str | None, typer.Option("--on", metavar="SET", help="The set of those who are to be learned.")
]
StepsOption = Annotated[
    int | None, typer.Option("--steps", help="Optimizer steps of each experience.  [default: 200]")
]
BatchOption = Annotated[
    int | None,
    typer.Option("--batch-size", "-b", help="Photos a step on each process.  [default: 32]"),
]
MemoryOption = Annotated[
    int | None, typer.Option("--memory", help="Photos that may be kept.  [default: 200]")
]
MegabytesOption = Annotated[
    float | None,
    typer.Option("--memory-mb", help="MB that they, and what is kept with them, may take."),
]
HoldOutOption = Annotated[
    float | None,
    typer.Option(help="Share of each identity's photos to measure on.  [default: 0.2]"),
]
TeacherOption = Annotated[
    str | None,
    typer.Option(
        "--teacher", help="Teacher of method `anchor`.  [default: the one the student learned from]"
    ),
]
RateOption = Annotated[float | None, typer.Option("--lr", help="[default: 0.0001]")]
SeedOption = Annotated[int | None, typer.Option("--seed", help="[default: 0]")]
PrecisionOption = Annotated[
    str | None, typer.Option(help="no, fp16 or bf16.  [default: what accelerate launch says]")
]
ValueOption = Annotated[
    list[str] | None,
    typer.Option(
        "--option",
        "-o",
        metavar="NAME=VALUE",
        help="Any value of a method or the optimizer, as `-o ewc.weight=10`.  Repeatable.",
    ),
]


@learn_app.callback()
def learn_command(
    context: typer.Context,
    student: StudentOption = None,
    on: OnOption = None,
    method: Annotated[
        str | None,
        typer.Option(help="{methods}."),
    ] = None,
    old: Annotated[
        str | None,
        typer.Option(metavar="SET", help="A set of those whom the student knows already."),
    ] = None,
    experiences: Annotated[
        int | None, typer.Option(help="The identities come in so many groups.  [default: 1]")
    ] = None,
    steps: StepsOption = None,
    batch_size: BatchOption = None,
    memory: MemoryOption = None,
    memory_mb: MegabytesOption = None,
    hold_out: HoldOutOption = None,
    teacher: TeacherOption = None,
    lr: RateOption = None,
    seed: SeedOption = None,
    mixed_precision: PrecisionOption = None,
    checkpoint_steps: Annotated[
        int | None, typer.Option(help="Steps between checkpoints.  [default: 100]")
    ] = None,
    option: ValueOption = None,
    tracker: TrackerOption = None,
    resume: Annotated[
        str | None, typer.Option(metavar="RUN", help="Take up a run from its last checkpoint.")
    ] = None,
    shards: ShardsOption = None,
    cache: CacheOption = None,
    verify: VerifyOption = True,
    models: ModelsOption = None,
    runs: RunsOption = None,
    json: JsonFlag = False,
) -> None:
    """Teach a student new people without losing the old ones; the result is a new model.

    Several processes: accelerate launch … -m persona learn …
    """
    if context.invoked_subcommand is not None:
        check_nothing_before(context)
        return
    place = Workspace.locate(shards=shards, models=models, runs=runs)
    given = {
        "student": student,
        "on": on,
        "method": method,
        "old": old,
        "experiences": experiences,
        "steps": steps,
        "batch_size": batch_size,
        "memory": memory,
        "memory_mb": memory_mb,
        "hold_out": hold_out,
        "teacher": teacher,
        "optim.lr": lr,
        "seed": seed,
        "mixed_precision": mixed_precision,
        "checkpoint_steps": checkpoint_steps,
        "tracker": tracker,
        "cache": None if cache is None else str(cache),
        "verify": None if verify else False,
    }
    from persona.config import read_options
    from persona.learning.configure import build_learn_config
    from persona.models.cards import find_model

    given = read_options(given, option or [], told_twice)
    config = build_learn_config(place, given, launcher_options("mixed_precision"), resume)
    from persona.learning.run import learn

    card = find_model(learn(config, place, resume), place.models)
    if not is_first():
        return
    if json:
        print_json(asdict(card))
    else:
        score = "" if card.score is None else f", accuracy {card.score:.4f} on held-out photos"
        typer.echo(f"{card.id}: {card.num_classes} identities{score}")


@learn_app.command("gallery")
def gallery_command(
    test_set: Annotated[
        str,
        typer.Option(
            metavar="SET",
            help="A packed set of other people: what is forgotten is measured on them, and the "
            "new threshold is chosen.",
        ),
    ],
    method: Annotated[str | None, typer.Option(help="{methods}.  [default: anchor]")] = None,
    yes: Annotated[
        bool,
        typer.Option(
            "--yes",
            help="Replace the model without asking, if it recognises more than by chance and "
            "forgets little.",
        ),
    ] = False,
    steps: StepsOption = None,
    batch_size: BatchOption = None,
    memory: MemoryOption = None,
    teacher: TeacherOption = None,
    lr: RateOption = None,
    seed: SeedOption = None,
    option: ValueOption = None,
    store: StoreOption = None,
    passphrase_file: PassphraseOption = None,
    shards: ShardsOption = None,
    cache: CacheOption = None,
    verify: VerifyOption = True,
    models: ModelsOption = None,
    runs: RunsOption = None,
    json: JsonFlag = False,
) -> None:
    """The gallery's student learns the people who are enrolled, from their kept faces.

    Its gain, and what it forgets of other people, are shown before it replaces the old model.
    `persona gallery rollback` goes back. On one process.
    """
    from persona.config import read_options
    from persona.data.sets import open_set
    from persona.gallery_learning import learn_from_gallery, take_over

    place = Workspace.locate(shards=shards, models=models, runs=runs)
    given = {
        "method": method,
        "steps": steps,
        "batch_size": batch_size,
        "memory": memory,
        "teacher": teacher,
        "optim.lr": lr,
        "seed": seed,
    }
    given = read_options(
        *(given, option or [], told_twice),
        defaults={"method": "anchor"},
        fixed=("student", "on", "hold_out"),
    )
    faces = open_set(test_set, place.shards, cache, verify=verify)
    with store_of(store, passphrase_file) as opened:
        if passphrase_file is not None:
            note(
                f"the faces lie in {place.shards} while they are learned, and what the method "
                "keeps of them stays in the new model and its run: neither is encrypted"
            )
        outcome = learn_from_gallery(opened, faces, given, place)
        if not json:
            show_outcome(outcome)
        if yes:
            agreed = outcome.is_better
        elif json or not sys.stdin.isatty():
            agreed = False
        else:
            agreed = typer.confirm("Replace the model?", err=True)
        count = take_over(opened, outcome, place) if agreed else 0
    if json:
        print_json({"done": agreed, "templates": count, **outcome.to_json()})
    new = outcome.after.model
    if agreed:
        threshold = outcome.after.threshold
        note(f"{count} templates are {new}'s now; `persona gallery rollback` goes back")
        note(f"threshold {threshold.value:.3f}: {threshold.source}")
        return
    if yes:
        note("it recognises no more than by chance, or forgets too much")
    note(f"nothing is changed: `persona gallery upgrade --model {new}` does it all the same")


def show_outcome(outcome: Outcome) -> None:
    """Prints what learning from a gallery gave, before and after."""
    before, after = outcome.before, outcome.after
    rows = [
        ("held-out photos recognised", before.recognised, after.recognised),
        ("held-out photos, nearest is right", before.rank_1, after.rank_1),
        (f"TAR at FAR {outcome.far:g} on other people", before.tar, after.tar),
        ("threshold", before.threshold.value, after.threshold.value),
    ]
    print_table(
        [
            TableColumn("gallery"),
            *(TableColumn(n, right=True) for n in ("before", "after", "gain")),
        ],
        [
            [name, f"{old:.4f}", f"{new:.4f}", "" if name == "threshold" else f"{new - old:+.4f}"]
            for name, old, new in rows
        ],
    )
    note(
        f"{outcome.after.model} learned {outcome.photos} photos of {outcome.people} people; "
        f"{outcome.held_out} photos of them are held out; other people: {outcome.test_set}, "
        f"{outcome.impostors:,} pairs of two people"
    )
    note(
        f"of the held-out photos {outcome.won} are recognised now and were not, "
        f"{outcome.lost} were and are not now (p = {outcome.p:.2g})"
    )


@learn_app.command("benchmark")
def benchmark_command(
    student: StudentOption = None,
    on: OnOption = None,
    test_set: Annotated[
        str | None,
        typer.Option(
            help="A set with pairs, of other people.  [default: a fifth of the set's people]"
        ),
    ] = None,
    methods: Annotated[str, typer.Option(help="Names with commas between, or all.")] = "all",
    base: Annotated[float, typer.Option(help="Share of the people who come first.")] = 0.5,
    experiences: Annotated[
        int | None, typer.Option(min=1, help="The others come in so many groups.  [default: 5]")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, max=1000, help="Orders of the people.")] = 3,
    steps: StepsOption = None,
    batch_size: BatchOption = None,
    memory: MemoryOption = None,
    memory_mb: MegabytesOption = None,
    hold_out: HoldOutOption = None,
    teacher: TeacherOption = None,
    lr: RateOption = None,
    seed: SeedOption = None,
    mixed_precision: PrecisionOption = None,
    option: ValueOption = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw accuracy over experiences, as .svg, .pdf or .png."),
    ] = None,
    shards: ShardsOption = None,
    cache: CacheOption = None,
    verify: VerifyOption = True,
    models: ModelsOption = None,
    runs: RunsOption = None,
    json: JsonFlag = False,
) -> None:
    """All methods on one stream of people, under one budget of steps and memory.

    Killed, it goes on when run again. Several processes: accelerate launch … -m persona learn …
    """
    place = Workspace.locate(shards=shards, models=models, runs=runs)
    from persona.config import read_options
    from persona.learning.configure import build_benchmark_config

    given = {
        "student": student,
        "on": on,
        "experiences": experiences,
        "steps": steps,
        "batch_size": batch_size,
        "memory": memory,
        "memory_mb": memory_mb,
        "hold_out": hold_out,
        "teacher": teacher,
        "optim.lr": lr,
        "seed": seed,
        "mixed_precision": mixed_precision,
        "cache": None if cache is None else str(cache),
        "verify": None if verify else False,
    }
    given = read_options(
        *(given, option or [], told_twice),
        defaults={"experiences": 5, "tracker": "none"},
        fixed=("method", "old", "tracker"),
    )
    config, chosen, notes = build_benchmark_config(
        place, given, launcher_options("mixed_precision"), methods
    )
    for text in notes:
        note(text)

    from persona.learning.benchmark import benchmark, draw
    from persona.report.plots import check_plot

    if plot is not None and is_first():
        check_plot(plot)

    found = benchmark(
        *(config, place),
        chosen=chosen,
        base=base,
        seeds=seeds,
        test_set=test_set,
        told=note if is_first() else lambda _line: None,
    )
    if not is_first():
        return
    if plot is not None:
        draw(found, plot)
    if json:
        print_json(found)
    else:
        show(found)
    if found["failed"]:
        which = ", ".join(f"{run['method']} over order {run['seed']}" for run in found["failed"])
        of = len(found["runs"]) + len(found["failed"])
        raise PersonaError(f"{len(found['failed'])} of {of} runs failed ({which}): see why above")


def show(found: dict[str, Any]) -> None:
    """Prints the figures of a benchmark as a table."""
    columns = ["seen", "last", "forgetting", "BWT", "FWT", "outside AUC", "outside EER"]
    names = ["incremental", "final", "forgetting", "backward", "forward"]
    names += ["outside_auc", "outside_eer"]

    def cell(figures: dict[str, Any], name: str) -> str | None:
        if figures[name] is None:
            return None
        spread = figures[f"{name}_std"]
        return f"{figures[name]:.3f}" + ("" if spread is None else f" ± {spread:.3f}")

    print_table(
        [
            TableColumn("method"),
            *(TableColumn(c, right=True) for c in (*columns, "seconds", "kept")),
        ],
        [
            [
                method,
                *(cell(figures, name) for name in names),
                f"{figures['seconds']:.1f}",
                human_bytes(round(figures["kept_bytes"])),
            ]
            if not figures["failed"]
            else [method, "failed", *[None] * (len(names) + 1)]
            for method, figures in found["methods"].items()
        ],
    )
    if not found["runs"]:
        return
    from persona.learning.benchmark import outside_before

    before = outside_before(found)
    typer.echo(
        f"{found['identities']} people an experience, the base first; seen: accuracy on all so "
        "far, the mean over experiences, last: after the last. "
        f"Outside ({found['outside']}) before the stream: AUC {before['auc']:.3f}, "
        f"EER {before['eer']:.3f}. Mean and standard deviation of {found['seeds']} order(s)."
    )

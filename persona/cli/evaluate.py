"""`persona evaluate` and `persona compare`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from persona.cli.commands import told_twice
from persona.cli.output import (
    NETWORKS,
    BatchOption,
    CacheOption,
    JsonFlag,
    ModelOption,
    ModelsOption,
    ShardsOption,
    TableColumn,
    VerifyOption,
    WorkersOption,
    note,
    print_json,
    print_sentence,
    print_table,
    workspace,
)
from persona.errors import PersonaError
from persona.files import check_writable

if TYPE_CHECKING:
    from persona.data.sets import FaceSet
    from persona.evaluation.across import Across
    from persona.evaluation.protocols import Evaluation
    from persona.models.sources import Named

DEFAULT_TEACHER = "facenet-vggface2"

SetOption = Annotated[
    str,
    typer.Option("--set", help="lfw, a packed set or its URL, or the ID of a packed triplet set."),
]
FlipFlag = Annotated[bool, typer.Option("--flip", help="Add the mirror image's embedding.")]
NO_FACE_HELP = (
    "Photos without a face: centre (its middle stands in), fail (their pairs are wrong, as are "
    "those of absent photos) or exclude."
)
PairsOption = Annotated[
    Path | None,
    typer.Option("--pairs", help="Your pairs: CSV or parquet (a,b,label) or LFW's pairs.txt."),
]
OverlapOption = Annotated[
    str | None,
    typer.Option(
        "--exclude-overlap",
        metavar="SET_OR_MODEL",
        help="Leave out pairs of people who were trained on there.",
    ),
]
RESAMPLES = 1000
ResamplesOption = Annotated[
    int | None,
    typer.Option(
        min=0,
        max=100_000,
        help=f"Bootstrap resamples of the 95 % intervals; 0: none.  [default: {RESAMPLES}]",
    ),
]


def evaluate_command(
    set_: SetOption,
    model: ModelOption = None,
    measure: Annotated[
        str | None,
        typer.Option(help="{protocols}.  [default: what the set is made for]"),
    ] = None,
    flip: FlipFlag = False,
    no_face: Annotated[
        str | None, typer.Option("--no-face", help=f"{NO_FACE_HELP}  [default: centre]")
    ] = None,
    pairs: PairsOption = None,
    by: Annotated[
        str | None,
        typer.Option(help="Figures per group: an annotation (gender), or NAME-gap (age-gap)."),
    ] = None,
    exclude_overlap: OverlapOption = None,
    overlap_names: Annotated[
        Path | None,
        typer.Option(help="Write the people of the set who were trained on to this file."),
    ] = None,
    gallery: Annotated[
        str | None,
        typer.Option(help="Identification: the packed set that the photos are looked up in."),
    ] = None,
    templates: Annotated[
        Path | None, typer.Option(help="Templates: the folder of IJB-B's or IJB-C's lists.")
    ] = None,
    scores: Annotated[
        Path | None, typer.Option(help="Write fold,same,score of every pair to this CSV file.")
    ] = None,
    resamples: ResamplesOption = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--option",
            "-o",
            metavar="NAME=VALUE",
            help="Any option of the measure, as `-o fars=[0.01]`.  Repeatable.",
        ),
    ] = None,
    gallery_model: Annotated[
        str | None,
        typer.Option(
            "--gallery-model",
            metavar="NAME",
            help="Verification across two networks: the one that embeds the first photo of each "
            "pair, with --probe-model.",
        ),
    ] = None,
    probe_model: Annotated[
        str | None,
        typer.Option(
            "--probe-model",
            metavar="NAME",
            help="The one that embeds the second photo, such as a student of that teacher.",
        ),
    ] = None,
    batch_size: BatchOption = 128,
    workers: WorkersOption = None,
    shards: ShardsOption = None,
    cache: CacheOption = None,
    verify: VerifyOption = True,
    models: ModelsOption = None,
    json: JsonFlag = False,
) -> None:
    """Measure a network on a packed set, or two networks of one space against each other."""
    from persona.config import read_options
    from persona.data.sets import open_set
    from persona.models.cards import find_model

    both = _both_models(gallery_model, probe_model, model, measure)
    for written in (scores, overlap_names):
        if written is not None:  # before the set is embedded
            check_writable(written)
    place = workspace(shards=shards, models=models)
    faces = open_set(set_, place.shards, cache, verify=verify)
    opened = None if gallery is None else open_set(gallery, place.shards, cache, verify=verify)
    names = both or (model or find_model(None, place.models).id,)

    from persona.evaluation.overlap import trained_identities
    from persona.evaluation.processes import join_processes
    from persona.evaluation.protocols import evaluate
    from persona.models.sources import load_embedder, spell

    trained = None
    if exclude_overlap is not None:
        trained = trained_identities(exclude_overlap, place.shards, place.models, faces.manifest)
    loaded = [load_embedder(spell(name), place.models) for name in names]
    processes = join_processes(*(named.network for named in loaded))
    networks = [_on_device(named, processes) for named in loaded]
    options = {
        "flip": flip or None,
        "no_face": no_face,
        "pairs": pairs,
        "by": by,
        "resamples": resamples,
        "trained": trained,
        "scores": scores,
        "overlap_names": overlap_names,
        "gallery": opened,
        "templates": templates,
    }
    given = read_options(options, option or [], told_twice, defaults={"resamples": RESAMPLES})
    if both is not None:
        _evaluate_across(networks, faces, processes, given, batch_size, workers, json=json)
        return
    evaluation = evaluate(
        networks[0],
        faces,
        processes,
        measure=measure,
        options=given,
        batch_size=batch_size,
        workers=workers,
    )
    if processes.is_main_process:
        if json:
            print_json(evaluation.to_json())
        else:
            print_evaluation(evaluation)
        for line in evaluation.notes():
            note(line)
    processes.wait_for_everyone()
    processes.end_training()


def _both_models(
    gallery: str | None, probe: str | None, model: str | None, measure: str | None
) -> tuple[str, str] | None:
    """The two networks of an evaluation across both, or None if there is one network."""
    if gallery is None and probe is None:
        return None
    if gallery is None or probe is None:
        raise PersonaError("--gallery-model and --probe-model go together: give both")
    if model is not None:
        raise PersonaError("choose one of --model and --gallery-model with --probe-model")
    if measure not in (None, "verification"):
        raise PersonaError(f"--gallery-model goes with verification, not with --measure {measure}")
    return gallery, probe


def _evaluate_across(
    networks: Sequence[Named],
    faces: FaceSet,
    processes: Any,
    options: dict[str, Any],
    batch_size: int,
    workers: int | None,
    *,
    json: bool,
) -> None:
    """Measures the pairs of a set across two networks, and prints the figures."""
    from persona.evaluation.across import evaluate_across
    from persona.evaluation.protocols.base import build_options
    from persona.evaluation.protocols.verification import VerificationOptions

    given = {name: value for name, value in options.items() if value is not None}
    for name in ("by", "overlap_names"):
        if name in given:
            flag = name.replace("_", "-")
            raise PersonaError(f"--{flag} is about one network: leave it out, or give --model")
    chosen = build_options("verification", given)
    assert isinstance(chosen, VerificationOptions)
    found = evaluate_across(
        *(networks[0], networks[1], faces, processes, chosen),
        batch_size=batch_size,
        workers=workers,
    )
    if processes.is_main_process:
        if json:
            print_json(found.to_json())
        else:
            print_across(found)
    processes.wait_for_everyone()
    processes.end_training()


def print_across(found: Across) -> None:
    """Prints the figures across two networks beside those of each alone."""
    from persona.evaluation.protocols.verification import pair_notes
    from persona.evaluation.statistics import interval_text
    from persona.figure_names import label_of

    differences = {one.figure: one for one in found.differences}
    columns = (found.gallery, found.probe, found.across)
    lines = [(name, [getattr(one, name) for one in columns]) for name in ("accuracy", "auc", "eer")]
    lines += [
        (f"tar@{far}", [one.tar_at_far[far] for one in columns]) for far in found.across.tar_at_far
    ]
    rows: list[list[str | None]] = []
    for name, values in lines:
        shown = ["not resolvable" if value is None else f"{value:.4f}" for value in values]
        one = differences.get(name)
        gap = (
            (None, None)
            if one is None
            else (
                f"{one.difference:+.4f}",
                interval_text(one.interval, sign="+"),
            )
        )
        rows.append([label_of(name), *shown, *gap])
    titles = (
        "figure",
        "gallery alone",
        "probe alone",
        "across",
        "across - gallery",
        "95 % interval",
    )
    print_table([TableColumn(title, right=place > 0) for place, title in enumerate(titles)], rows)
    for text in found.warnings:
        note(f"warning: {text}")
    for line in pair_notes(found.facts):
        note(line)
    note(
        f"first photos by {found.gallery_model}, second by {found.probe_model}, set {found.set}: "
        f"{found.across.pairs} pairs"
    )
    note(f"mean similarity of both networks' embeddings of one photo: {found.agreement:.4f}")


def compare_command(
    model_a: Annotated[str, typer.Argument(metavar="A", help=f"{NETWORKS}.")],
    model_b: Annotated[str, typer.Argument(metavar="B", help="The one it is compared with.")],
    set_: SetOption,
    flip: FlipFlag = False,
    no_face: Annotated[str, typer.Option("--no-face", help=NO_FACE_HELP)] = "centre",
    pairs: PairsOption = None,
    exclude_overlap: OverlapOption = None,
    resamples: Annotated[
        int,
        typer.Option(
            min=100, max=100_000, help="Bootstrap resamples of the intervals, and permutations."
        ),
    ] = RESAMPLES,
    batch_size: BatchOption = 128,
    workers: WorkersOption = None,
    shards: ShardsOption = None,
    cache: CacheOption = None,
    verify: VerifyOption = True,
    models: ModelsOption = None,
    json: JsonFlag = False,
) -> None:
    """Is one model better than another on the same pairs, or is it chance?"""
    from persona.data.sets import open_set

    place = workspace(shards=shards, models=models)
    faces = open_set(set_, place.shards, cache, verify=verify)

    from persona.evaluation.compare import compare
    from persona.evaluation.overlap import trained_identities
    from persona.evaluation.processes import join_processes
    from persona.evaluation.protocols.verification import VerificationOptions, pair_notes
    from persona.evaluation.sentences import compare_sentence
    from persona.evaluation.statistics import interval_text
    from persona.figure_names import label_of
    from persona.models.sources import load_embedder, spell

    trained = None
    if exclude_overlap is not None:
        trained = trained_identities(exclude_overlap, place.shards, place.models, faces.manifest)
    options = VerificationOptions(
        flip=flip, no_face=no_face, pairs=pairs, trained=trained, resamples=resamples
    )
    first, second = (load_embedder(spell(name), place.models) for name in (model_a, model_b))
    processes = join_processes(first.network, second.network)
    both = (_on_device(first, processes), _on_device(second, processes))
    differences, facts = compare(
        both, faces, processes, options, batch_size=batch_size, workers=workers
    )
    if processes.is_main_process:
        if json:
            rows = {
                d.figure: {k: v for k, v in vars(d).items() if k != "figure"} for d in differences
            }
            named = {"a": model_a, "b": model_b, "set": faces.name}
            print_json({**named, **facts, "differences": rows})
        else:
            columns = ("figure", "A", "B", "A - B", "95 % interval", "p")
            print_table(
                [TableColumn(title, right=place > 0) for place, title in enumerate(columns)],
                [
                    [
                        label_of(d.figure),
                        *(f"{value:.4f}" for value in (d.a, d.b)),
                        f"{d.difference:+.4f}",
                        interval_text(d.interval, sign="+"),
                        None if d.p is None else f"{d.p:.3f}",
                    ]
                    for d in differences
                ],
            )
            accuracy = next(d for d in differences if d.figure == "accuracy")
            collapsed = "warnings" in facts
            print_sentence(
                compare_sentence(model_a, model_b, faces.name, accuracy, collapsed=collapsed)
            )
            for text in facts.get("warnings", ()):
                note(f"warning: {text}")
            for line in pair_notes(facts):
                note(line)
            note(
                f"A {model_a}, B {model_b}, set {faces.name}: {facts['pairs']} pairs, intervals "
                f"over resampled {facts['resampled']}"
            )
            if facts["permuted"] == "first photos":
                note(
                    "note: nearly all pairs hang together by the people they share, so p may be "
                    "too low: trust the intervals"
                )
    processes.wait_for_everyone()
    processes.end_training()


def _on_device(named: Named, processes: Any) -> Named:
    """Returns the network; a network in torch is moved to the processes' device."""
    from persona.models.embedder import Embedder

    if not isinstance(named.network, Embedder):
        import torch

        named.network.to(processes.device).to(memory_format=torch.channels_last)
    return named


def print_evaluation(evaluation: Evaluation) -> None:
    """Prints the tables of an evaluation's protocol, and then its sentence."""
    note(f"{evaluation.model} on {evaluation.set}, {evaluation.measure}")
    for table in evaluation.tables():
        columns = [TableColumn(title, right=place > 0) for place, title in enumerate(table.titles)]
        print_table(columns, table.rows)
        for line in table.notes:
            note(line)
    print_sentence(evaluation.sentence())

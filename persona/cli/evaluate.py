"""`persona evaluate`, `persona compare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from persona.cli.output import (
    NETWORKS,
    CacheOption,
    Column,
    JsonFlag,
    ModelOption,
    ModelsOption,
    ShardsOption,
    VerifyOption,
    WorkersOption,
    note,
    print_json,
    print_table,
    workspace,
)
from persona.errors import PersonaError

if TYPE_CHECKING:
    from persona.evaluation.protocols import Evaluation
    from persona.models.sources import Named

DEFAULT_TEACHER = "facenet-vggface2"
NOT_RESOLVABLE = "not resolvable"
UNKNOWN_SHOWN = 10

SetOption = Annotated[
    str,
    typer.Option("--set", help="lfw, a packed set or its URL, or the ID of a packed triplet set."),
]
FlipFlag = Annotated[bool, typer.Option("--flip", help="Add the mirror image's embedding.")]
NoFaceOption = Annotated[
    str,
    typer.Option(
        "--no-face",
        help="Photos without a face: centre (its middle stands in), fail (their pairs are wrong, "
        "as are those of absent photos) or exclude.",
    ),
]
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
ResamplesOption = Annotated[
    int, typer.Option(min=0, max=100_000, help="Of the 95 % intervals; 0: none.")
]
BatchOption = Annotated[int, typer.Option("--batch-size", "-b", min=1)]


def evaluate_command(
    set_: SetOption,
    model: ModelOption = None,
    measure: Annotated[
        str | None,
        typer.Option(
            help="verification, match, class, identification or templates.  "
            "[default: what the set is made for]"
        ),
    ] = None,
    flip: FlipFlag = False,
    no_face: NoFaceOption = "centre",
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
    resamples: ResamplesOption = 1000,
    batch_size: BatchOption = 128,
    workers: WorkersOption = None,
    shards: ShardsOption = None,
    cache: CacheOption = None,
    verify: VerifyOption = True,
    models: ModelsOption = None,
    json: JsonFlag = False,
) -> None:
    """Measure a network on a packed set."""
    from persona.data.shards import open_set
    from persona.models.cards import find_model

    place = workspace(shards=shards, models=models)
    folder, manifest = open_set(set_, place.shards, cache, verify=verify)
    opened = None if gallery is None else open_set(gallery, place.shards, cache, verify=verify)
    name = model or find_model(None, place.models).id

    from persona.evaluation.processes import join_processes
    from persona.evaluation.protocols import Options, evaluate
    from persona.models.sources import load_embedder, spell

    trained = None
    if exclude_overlap is not None:
        trained = trained_identities(exclude_overlap, place.shards, place.models)
    named = load_embedder(spell(name), place.models)
    processes = join_processes(named.network)
    options = Options(
        flip=flip,
        no_face=no_face,
        pairs=pairs,
        by=by,
        resamples=resamples,
        trained=trained,
        scores=scores,
        overlap_names=overlap_names,
        gallery=opened,
        templates=templates,
    )
    evaluation = evaluate(
        _placed(named, processes),
        folder,
        manifest,
        processes,
        measure=measure,
        options=options,
        batch_size=batch_size,
        workers=workers,
    )
    if processes.is_main_process:
        if json:
            print_json(evaluation.to_json())
        else:
            print_evaluation(evaluation)
        print_notes(evaluation)
    processes.wait_for_everyone()
    processes.end_training()


def compare_command(
    model_a: Annotated[str, typer.Argument(metavar="A", help=f"{NETWORKS}.")],
    model_b: Annotated[str, typer.Argument(metavar="B", help="The one it is compared with.")],
    set_: SetOption,
    flip: FlipFlag = False,
    no_face: NoFaceOption = "centre",
    pairs: PairsOption = None,
    exclude_overlap: OverlapOption = None,
    resamples: Annotated[
        int, typer.Option(min=100, max=100_000, help="Of the intervals and permutations.")
    ] = 1000,
    batch_size: BatchOption = 128,
    workers: WorkersOption = None,
    shards: ShardsOption = None,
    cache: CacheOption = None,
    verify: VerifyOption = True,
    models: ModelsOption = None,
    json: JsonFlag = False,
) -> None:
    """Is one model better than another on the same pairs, or is it chance?"""
    from persona.data.shards import open_set

    place = workspace(shards=shards, models=models)
    folder, manifest = open_set(set_, place.shards, cache, verify=verify)

    from persona.evaluation.compare import compare
    from persona.evaluation.processes import join_processes
    from persona.evaluation.protocols import Options
    from persona.models.sources import load_embedder, spell

    trained = None
    if exclude_overlap is not None:
        trained = trained_identities(exclude_overlap, place.shards, place.models)
    options = Options(flip=flip, no_face=no_face, pairs=pairs, trained=trained, resamples=resamples)
    first, second = (load_embedder(spell(name), place.models) for name in (model_a, model_b))
    processes = join_processes(first.network, second.network)
    both = (_placed(first, processes), _placed(second, processes))
    differences, facts = compare(
        both, folder, manifest, processes, options, batch_size=batch_size, workers=workers
    )
    if processes.is_main_process:
        if json:
            rows = {
                d.figure: {k: v for k, v in vars(d).items() if k != "figure"} for d in differences
            }
            named = {"a": model_a, "b": model_b, "set": manifest.name}
            print_json({**named, **facts, "differences": rows})
        else:
            columns = ("figure", "A", "B", "A - B", "95 % interval", "p")
            print_table(
                [Column(title, right=place > 0) for place, title in enumerate(columns)],
                [
                    [
                        d.figure,
                        *(f"{value:.4f}" for value in (d.a, d.b)),
                        f"{d.difference:+.4f}",
                        _interval(d.interval, sign="+"),
                        None if d.p is None else f"{d.p:.3f}",
                    ]
                    for d in differences
                ],
            )
            for text in facts.get("warnings", ()):
                note(f"warning: {text}")
            note(
                f"A {model_a}, B {model_b}, set {manifest.name}: {facts['pairs']} pairs, intervals "
                f"over resampled {facts['resampled']}"
            )
            if facts["permuted"] == "first photos":
                note(
                    "note: nearly all pairs hang together by the people they share, so p may be "
                    "too low: trust the intervals"
                )
    processes.wait_for_everyone()
    processes.end_training()


def _placed(named: Named, processes: Any) -> Named:
    """The network, if it is one in torch on the processes' device."""
    from persona.models.embedder import Embedder

    if not isinstance(named.network, Embedder):
        import torch

        named.network.to(processes.device).to(memory_format=torch.channels_last)
    return named


def trained_identities(name: str, shards: Path, models: Path) -> tuple[str, ...]:
    """The identities that a model was trained on, or that a packed set has.

    Raises:
        PersonaError: it is neither, or a model whose identities are not known by name.
    """
    from persona.data.shards import open_set
    from persona.models.sources import known_source

    source = known_source(name, models)
    if source is not None:
        return source.identities(name, models)
    try:
        return open_set(name, shards)[1].classes
    except PersonaError as error:
        raise PersonaError(f"--exclude-overlap: no model {name!r}, and {error}") from None


def print_evaluation(evaluation: Evaluation) -> None:
    """Figures with their intervals, then groups."""
    intervals = evaluation.intervals or {}
    rows: list[list[str | None]] = []

    def add(title: str, value: float | None, name: str, spread: float | None = None) -> None:
        shown = NOT_RESOLVABLE if value is None else f"{value:.4f}"
        if spread is not None:
            shown += f" ± {spread:.4f}"
        rows.append([title, shown, _interval(intervals.get(name))])

    for title, name in (
        ("rank-1" if evaluation.cmc else "accuracy", "accuracy"),
        ("AUC", "auc"),
        ("EER", "eer"),
        ("top-5", "top_5"),
        ("rank-1", "rank_1"),
        ("rank-5", "rank_5"),
        ("mean margin", "margin"),
        ("spread", "spread"),
    ):
        value = getattr(evaluation, name)
        if value is not None and not (name == "rank_1" and evaluation.accuracy is not None):
            add(title, value, name, evaluation.accuracy_std if name == "accuracy" else None)
    for far, tar in (evaluation.tar_at_far or {}).items():
        add(f"TAR @ FAR {far}", tar, f"tar@{far}")
    for fpir, tpir in (evaluation.tpir_at_fpir or {}).items():
        add(f"TPIR @ FPIR {fpir}", tpir, f"tpir@{fpir}")
    counted = (
        "pairs",
        "triplets",
        "photos",
        "gallery",
        "probes",
        "non_mated",
        "no_face",
        "absent",
        "overlap",
    )
    for name in counted:
        count = getattr(evaluation, name)
        if count is not None:
            rows.append([name.replace("_", " "), str(count), None])
    note(f"{evaluation.model} on {evaluation.set}, {evaluation.measure}")
    columns = [Column("figure"), Column("value", right=True)]
    if intervals:
        columns.append(Column("95 % interval", right=True))
    print_table(columns, [row[: len(columns)] for row in rows])
    if evaluation.groups is not None:
        _print_groups(evaluation)


def _print_groups(evaluation: Evaluation) -> None:
    assert evaluation.groups is not None
    titles = (
        *(evaluation.by or "", "pairs", "impostor", "accuracy", "95 % interval"),
        *("FAR", "FRR", "AUC", "EER"),
    )
    rows = []
    for name, group in evaluation.groups.items():
        interval = _interval(group.get("intervals", {}).get("accuracy"))
        figures = ("far", "frr", "auc", "eer")
        shown = (None if group[n] is None else f"{group[n]:.4f}" for n in figures)
        counts = (group["pairs"], group["impostors"])
        rows.append([name, *counts, f"{group['accuracy']:.4f}", interval, *shown])
    print_table([Column(title, right=place > 0) for place, title in enumerate(titles)], rows)
    note("FAR, FRR and their mean, the accuracy, are at the thresholds of all pairs")
    if evaluation.gap is not None:
        note(f"between the best and the worst group: {evaluation.gap:.4f} of accuracy")
    if evaluation.ungrouped:
        gap = (evaluation.by or "").endswith("-gap")
        note(
            f"note: {evaluation.ungrouped} pairs are {'' if gap else 'of two groups or '}"
            "not annotated"
        )


def _interval(interval: Any, sign: str = "") -> str | None:
    if interval is None:
        return None
    return f"{interval[0]:{sign}.4f} to {interval[1]:{sign}.4f}"


def print_notes(evaluation: Evaluation) -> None:
    """What was noticed and counted on the way, a line each."""
    if evaluation.collapse:
        note(f"warning: {evaluation.collapse}")
    for rates, unit, trials in (
        (evaluation.tar_at_far, "FAR", f"{evaluation.impostors} impostor pairs"),
        (evaluation.tpir_at_fpir, "FPIR", f"{evaluation.non_mated} non-mated probes"),
    ):
        unresolved = [rate for rate, value in (rates or {}).items() if value is None]
        if unresolved:
            note(f"note: {trials} cannot resolve {unit} {', '.join(unresolved)}")
    if evaluation.intervals and evaluation.intervals.get("accuracy", ...) is None:
        note("note: no interval where all resamples agree: no errors are no proof of none")
    unit = "triplets" if evaluation.triplets else "pairs" if evaluation.pairs else "photos"
    fate = "counted as wrong" if evaluation.no_face_policy == "fail" else "left out"
    if evaluation.no_face:
        found = {"photos": "show no face", "triplets": "lack a photo"}.get(
            unit, "have a photo without a face"
        )
        centre = "the middle of the photo stands in for the face"
        what = centre if evaluation.no_face_policy == "centre" else fate
        note(f"note: {evaluation.no_face} {unit} {found}: {what}")
    if evaluation.absent:
        found = "are absent" if unit == "photos" else "have a photo that the set does not hold"
        note(f"note: {evaluation.absent} {unit} {found}: {fate}")
    if evaluation.duplicates:
        note(f"note: {evaluation.duplicates} pairs are listed more than once and count each time")
    if evaluation.overlap:
        left = evaluation.overlap_pairs
        fate_of = "are measured" if left is None else f"are left out ({left})"
        note(f"note: {evaluation.overlap} people of the set were trained on; their pairs {fate_of}")
    strangers = evaluation.unknown_photos or []
    if strangers:
        note(f"note: {len(strangers)} paths are no photo of the set; their pairs are left out:")
        for path in strangers[:UNKNOWN_SHOWN]:
            note(f"  {path}")
        if len(strangers) > UNKNOWN_SHOWN:
            note(f"  … {len(strangers) - UNKNOWN_SHOWN} more")

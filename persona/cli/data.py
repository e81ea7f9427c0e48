"""`persona datasets`, `persona shard`, `persona shards …`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from persona.cli.commands import Commands
from persona.cli.output import (
    MIN_FACE_PX,
    CacheOption,
    JsonFlag,
    MinFaceOption,
    ModelsOption,
    RawOption,
    ShardsOption,
    TableColumn,
    VerifyOption,
    human_bytes,
    note,
    print_json,
    print_table,
    workspace,
)
from persona.errors import PersonaError
from persona.figure_names import counted
from persona.names import command_line

if TYPE_CHECKING:
    from persona.data.align import AlignSpec
    from persona.data.pack import Packed, PackedShare, Packing
    from persona.data.raw import RawDataset
    from persona.data.shards import Manifest

shards_app = Commands(help="Packed sets.", no_args_is_help=True)

SKIPS_SHOWN = 10


def datasets_command(raw: RawOption = None, json: JsonFlag = False) -> None:
    """Every known raw dataset and split: where it is expected, and what of it is there.

    A dataset of your own is named by its place, KIND:PATH, wherever a dataset is asked for.
    """
    from persona.data.raw import DATASET_KINDS
    from persona.data.raw.survey import survey

    rows = survey(workspace(raw=raw).raw)
    if json:
        print_json(rows)
        return
    print_table(
        [
            *map(TableColumn, ("dataset", "split", "path", "state")),
            TableColumn("identities", right=True),
            TableColumn("photos", right=True),
        ],
        [
            [r["dataset"], r["split"], r["path"], r["state"], r["identities"], r["photos"]]
            for r in rows
        ],
    )
    print_table(
        [*map(TableColumn, ("your own", "what PATH is"))],
        [
            [f"{kind}:PATH", kind_class.layout]
            for kind, kind_class in DATASET_KINDS.load_all().items()
        ],
    )
    for row in rows:
        if row["detail"]:
            note(f"{row['dataset']} ({row['split']}): {row['detail']}")


def shard_command(
    dataset: Annotated[
        str, typer.Argument(help="Raw dataset or KIND:PATH, see `persona datasets`.")
    ],
    split: Annotated[
        str | None, typer.Option(help="train or test, where the dataset has both.")
    ] = None,
    align: Annotated[
        str,
        typer.Option(
            help="mtcnn: detect; landmarks: turned to ArcFace's template; boxes: known; template: "
            "turned to it already (most sets of 112 px); none: cropped already."
        ),
    ] = "mtcnn",
    image_size: Annotated[
        int | None,
        typer.Option(help="Side of the crop, px.  [default: 160; with --align template 112]"),
    ] = None,
    unlabelled: Annotated[
        bool,
        typer.Option(
            "--unlabelled", help="Take photos without identities, in folders of any depth."
        ),
    ] = False,
    boxes: Annotated[
        Path | None,
        typer.Option(help="CSV of face boxes, for --align boxes.  [default: the dataset's own]"),
    ] = None,
    device: Annotated[
        str, typer.Option(help="Where faces are detected: auto, cpu or cuda.")
    ] = "auto",
    margin: Annotated[int, typer.Option(help="Around the box, in px of the crop.")] = 14,
    min_face: MinFaceOption = MIN_FACE_PX,
    workers: Annotated[
        int | None, typer.Option("--workers", "-w", help="Processes.  [default: all cores]")
    ] = None,
    shard_size: Annotated[
        int | None, typer.Option(help="Photos a shard.  [default: about 100 MB]")
    ] = None,
    triplets: Annotated[
        str | None, typer.Option(help="Pack this triplet set: three photos in one sample.")
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            help="Keep this teacher's embeddings beside the shards, see `persona targets`."
        ),
    ] = None,
    annotations: Annotated[
        Path | None,
        typer.Option(help="CSV of a photo's path or an identity, and columns to evaluate by."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the set.  [default: shards/<name>]")
    ] = None,
    max_skipped: Annotated[
        float, typer.Option(help="Share of photos that may be skipped before it stops.")
    ] = 0.5,
    engine: Annotated[str, typer.Option(help="local, or ray: a task a shard.")] = "local",
    address: Annotated[
        str | None,
        typer.Option(help="Address of a running Ray cluster.  [default: starts one here]"),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(help="I/N: every N-th shard, for job arrays; then `persona shards merge`."),
    ] = None,
    raw: RawOption = None,
    shards: ShardsOption = None,
    models: ModelsOption = None,
    json: JsonFlag = False,
) -> None:
    """Align a raw dataset once and pack it into shards; interrupted and run again, it goes on."""
    from persona.data.align import AlignSpec, default_size
    from persona.data.engines import Share
    from persona.data.pack import PackOptions, pack_set, pack_share, plan_photos, plan_triplets
    from persona.data.raw import open_dataset

    place = workspace(raw=raw, shards=shards)
    if workers is not None and workers < 1:
        raise PersonaError(f"{workers} workers: choose at least 1")
    size_px = default_size(align) if image_size is None else image_size
    options = PackOptions(
        align=AlignSpec(align, size_px, margin, min_face),
        shard_size=shard_size,
        workers=workers,
        max_skipped=max_skipped,
        engine=engine,
        address=address,
        boxes=boxes,
        device=device,
    )
    share = Share.parse(task) if task is not None else None
    if share is not None and engine != "local":
        raise PersonaError(
            "--task is a share for this machine, a cluster shares by itself: "
            "leave one of --task and --engine out"
        )
    if share is not None and teacher is not None:
        raise PersonaError("--teacher wants the whole set: run `persona targets` after the merge")
    source = open_dataset(dataset, place.raw, split, unlabelled=unlabelled)
    if teacher is not None:
        from persona.targets import check_teacher_exists

        place_of_teacher = workspace(shards=shards, models=models)
        check_teacher_exists(teacher, place_of_teacher.models, options.align)
    if triplets is None:
        from persona.data.raw.annotations import annotate

        index = None if annotations is None else annotate(source.index(), annotations)
        folder = out.resolve() if out else place.shards / source.set_name
        packing = plan_photos(source, folder, options, index=index)
        if not packing.folder.exists():
            _look_at(source, packing, options.align, device)
    elif annotations is not None:
        raise PersonaError("annotations go with photos: pack the split without --triplets")
    else:
        folder = out.resolve() if out else place.shards / triplets
        packing = plan_triplets(source, triplets, place.shards, options, folder)
    if share is not None:
        _report_share(pack_share(packing, options, share), json)
        return
    packed = pack_set(packing, options)
    if teacher is not None:
        from persona.targets import keep_targets

        place = workspace(shards=shards, models=models)
        keep_targets(packed.faces, teacher, place.models)
    _report_set(packed, json)


def _look_at(source: RawDataset, packing: Packing, align: AlignSpec, device: str) -> None:
    """Prints a note if photos that are packed as aligned do not look so, or the other way round."""
    from persona.data.align.aligned import LOOKED_AT, are_small_squares, look_at
    from persona.data.pack import sample_photos

    if align.method not in {"template", "mtcnn", "landmarks"}:
        return
    photos = sample_photos(source, packing, LOOKED_AT)
    if align.detects:
        if are_small_squares(photos) and (look := look_at(photos, device)).faces and look.aligned:
            note(
                "these photos look aligned already: in them the five points lie "
                f"{look.distance:.2f} of the side from ArcFace's template (the median of "
                f"{look.faces}); --align template packs them as they are, and detecting faces in "
                "crops costs accuracy"
            )
        return
    look = look_at(photos, device)
    if not look.aligned:
        note(
            f"these photos do not look aligned: in {look.faces} of them the five points lie "
            f"{look.distance:.2f} of the side from ArcFace's template (the median); --align "
            "landmarks turns them to it"
        )


def _report_share(done: PackedShare, json: bool) -> None:
    """Prints what a task has packed, and the command to run after all tasks."""
    if json:
        shards = {"shards": done.shards, "of_shards": done.of_shards}
        print_json({"task": str(done.share), **shards, "path": str(done.folder)})
        return
    typer.echo(
        f"task {done.share}: its {done.shards} of {done.of_shards} shards are at {done.folder}; "
        f"after all tasks: {command_line('shards', 'merge', done.folder)}"
    )


def _report_set(packed: Packed, json: bool) -> None:
    """Prints what a set holds and what was skipped."""
    manifest = packed.manifest
    if json:
        print_json({**set_row(manifest), "path": str(packed.folder), "fresh": packed.fresh})
        return
    verb = "packed" if packed.fresh else "was packed before:"
    size = human_bytes(sum(shard.bytes for shard in manifest.shards))
    kinds = counted(manifest.samples, manifest.kind.removesuffix("s"))
    of = counted(manifest.identities, "identity", "identities")
    whom = f"of {of}" if manifest.classes else "without identities"
    shards = counted(len(manifest.shards), "shard")
    typer.echo(f"{manifest.name} {verb} {kinds} {whom} in {shards} ({size}) at {packed.folder}")
    if manifest.pairs is not None:
        typer.echo(f"with {counted(manifest.pairs, 'verification pair')}")
    report_skips(manifest)


def report_skips(manifest: Manifest) -> None:
    """Prints which photos were mended or skipped and why. The manifest lists all of them."""
    if manifest.no_face:
        faceless = counted(len(manifest.no_face), "photo")
        note(
            f"kept for evaluation as centre crops: {faceless} without a detected face; `persona "
            "evaluate --no-face` says what becomes of their pairs"
        )
    for what, photos in (("mended", manifest.mended), ("skipped", manifest.skipped)):
        if not photos:
            continue
        reasons = Counter(photo.reason.partition(":")[0] for photo in photos)
        summary = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
        note(f"{what} {len(photos)}: {summary}")
        for photo in photos[:SKIPS_SHOWN]:
            note(f"  {photo.source}: {photo.reason}")
        if len(photos) > SKIPS_SHOWN:
            note(f"  … {len(photos) - SKIPS_SHOWN} more in manifest.json")


def set_row(manifest: Manifest) -> dict[str, Any]:
    """Returns a set as `persona shards list --json` prints it."""
    return {
        "name": manifest.name,
        "dataset": manifest.dataset,
        "split": manifest.split,
        "samples": manifest.samples,
        "identities": manifest.identities,
        "shards": len(manifest.shards),
        "skipped": len(manifest.skipped),
        "mended": len(manifest.mended),
    }


@shards_app.command("list")
def shards_list(shards: ShardsOption = None, json: JsonFlag = False) -> None:
    """Every packed set."""
    from persona.data.shards import list_sets

    place = workspace(shards=shards).shards
    sets, wrong = list_sets(place)
    rows = [set_row(manifest) for manifest in sets]
    names = ("name", "dataset", "split", "samples", "identities", "shards", "skipped")
    if json:
        print_json(rows)
    else:
        columns = [TableColumn(name, right=place > 2) for place, name in enumerate(names)]
        print_table(
            columns,
            [[row[name] for name in names] for row in rows],
            empty=f"no packed set below {place}: `persona shard DATASET` packs one, `persona "
            "datasets` names them",
        )
    if wrong:
        raise PersonaError("; ".join(wrong))


@shards_app.command("merge")
def shards_merge(
    set_: Annotated[str, typer.Argument(metavar="SET", help="Name or folder of the set.")],
    shards: ShardsOption = None,
    json: JsonFlag = False,
) -> None:
    """Make a set of the shards that `persona shard --task I/N` has packed."""
    from persona.data.pack import find_unmerged, merge_set

    _report_set(merge_set(find_unmerged(set_, workspace(shards=shards).shards)), json)


@shards_app.command("verify")
def shards_verify(
    set_: Annotated[str, typer.Argument(metavar="SET", help="A packed set, or its URL.")],
    shards: ShardsOption = None,
    cache: CacheOption = None,
    json: JsonFlag = False,
) -> None:
    """Re-read every shard of a set, and the targets kept of it, against their checksums."""
    from persona.data.sets import open_set, verify_set
    from persona.progress import progress_bar

    # verify=False, because all files are read here: a check before the first use would read twice.
    faces = open_set(set_, workspace(shards=shards).shards, cache, verify=False)
    with progress_bar("verifying", total=len(faces.manifest.shards), unit="shards") as advance:
        verify_set(faces, advance=advance)
    # The targets of a remote set cannot be listed. They are checked when they are read.
    folder, manifest = faces.folder, faces.manifest
    cards = sorted(folder.glob("targets/*/targets.json")) if isinstance(folder, Path) else []
    if cards:
        from persona.data.kept_targets import check_targets, read_targets

        for card in cards:
            check_targets(faces, read_targets(card.parent), deep=True)
    if json:
        print_json({**set_row(manifest), "targets": len(cards), "verified": True})
    else:
        kept = f" and the targets of {counted(len(cards), 'teacher')}" if cards else ""
        shards_of = counted(len(manifest.shards), "shard")
        typer.echo(f"{manifest.name}: the checksums of {shards_of}{kept} match")


@shards_app.command("duplicates")
def shards_duplicates(
    set_: Annotated[str, typer.Argument(metavar="SET", help="A packed set with kept targets.")],
    teacher: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Whose embeddings to compare.  [default: the only ones]"),
    ] = None,
    cosine: Annotated[
        float, typer.Option(min=0, max=1, help="Similarity from which two photos are the same.")
    ] = 0.9,
    shards: ShardsOption = None,
    verify: VerifyOption = True,
    json: JsonFlag = False,
) -> None:
    """List photos that are nearly the same as an earlier one of their set.

    `persona distill --exclude-duplicates COSINE` leaves them out.
    """
    from persona.data.kept_targets import kept_teachers
    from persona.data.near import find_duplicates, kept_vectors
    from persona.data.sets import open_set
    from persona.models.sources import spell
    from persona.progress import progress_bar

    faces = open_set(set_, workspace(shards=shards).shards, verify=verify)
    if teacher is None:
        known = kept_teachers(faces.folder)
        if len(known) != 1:
            told = ", ".join(known) or "no teacher"
            raise PersonaError(
                f"set {faces.name} keeps embeddings of {told}: name one teacher with --teacher; "
                f"`{command_line('targets', faces.name, '--teacher', 'NAME')}` keeps its embeddings"
            )
        (teacher,) = known
    targets = kept_vectors(faces, spell(teacher))
    with progress_bar("comparing photos", total=len(faces), unit="photos") as advance:
        found = find_duplicates(faces, targets, cosine, advance=advance)
    source = {key: str(meta["source"]) for key, meta in faces.metas().items()} if found else {}
    rows = [
        {"photo": source[near.key], "same_as": source[near.other], "cosine": near.cosine}
        for near in sorted(found, key=lambda near: -near.cosine)
    ]
    if json:
        print_json({"set": faces.name, "teacher": teacher, "cosine": cosine, "duplicates": rows})
        return
    typer.echo(
        f"{faces.name}: nearly the same as an earlier one {'is' if len(rows) == 1 else 'are'} "
        f"{len(rows):,} of {counted(len(faces), 'photo')}, by {teacher} from a cosine similarity "
        f"of {cosine:g}"
    )
    for row in rows[:SKIPS_SHOWN]:
        note(f"  {row['photo']} as {row['same_as']}: {row['cosine']:.3f}")
    if len(rows) > SKIPS_SHOWN:
        note(f"  … {len(rows) - SKIPS_SHOWN} more: --json lists them")

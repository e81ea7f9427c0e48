"""`persona enroll`, `persona forget`, `persona gallery`, and options of commands with a gallery."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from persona.cli.commands import Commands
from persona.cli.output import (
    DEFAULT_FAR,
    MIN_FACE_PX,
    NETWORKS,
    CacheOption,
    JsonFlag,
    MinFaceOption,
    ModelsOption,
    ShardsOption,
    TableColumn,
    VerifyOption,
    note,
    print_json,
    print_table,
    workspace,
)
from persona.errors import PersonaError
from persona.figure_names import counted
from persona.files import check_writable
from persona.names import legible

if TYPE_CHECKING:
    from persona.gallery import DoubtError, Enrolled, Gallery, Store
    from persona.gallery.store import Threshold
    from persona.gallery.unknown_faces import UnknownFaces

gallery_app = Commands(help="The people who are enrolled.", no_args_is_help=True)

StoreOption = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="FILE_OR_URL",
        help="The gallery: a file, or postgresql://… (extra `fleet`).  [default: gallery.db]",
    ),
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="NAME",
        help=f"{NETWORKS}.  [default: the gallery's; a new one's: the best of the newest run, else "
        "persona-s]",
    ),
]
PassphraseOption = Annotated[
    Path | None,
    typer.Option(
        "--passphrase-file",
        help="Its first line encrypts a new gallery, and opens an encrypted one.",
    ),
]
ThresholdOption = Annotated[
    float | None,
    typer.Option(help="Similarity from which on a face is somebody.  [default: as calibrated]"),
]
MatchOption = Annotated[
    str, typer.Option(help="mean: compare with the mean of a person's photos; max: the nearest.")
]
KeepCropsOption = Annotated[
    bool | None,
    typer.Option(
        "--keep-crops/--no-keep-crops",
        help="Keep the faces too, so that `rebuild` can use them.  [default: as answered when the "
        "gallery was new, or not]",
    ),
]
KeepUnknownOption = Annotated[
    float | None,
    typer.Option(
        "--keep-unknown",
        metavar="HOURS",
        help="Keep unknown faces for so long, so that `persona gallery unknown` proposes people "
        "who come back. Then they are deleted.  [default: none is kept]",
    ),
]
LivenessOption = Annotated[
    str | None,
    typer.Option(
        "--liveness",
        metavar="NAME|FILE.onnx",
        help="Ask this liveness check first: one of another package, or an ONNX file.",
    ),
]
LivenessThresholdOption = Annotated[
    float | None,
    typer.Option(help="Lowest liveness score of a live face.  [default: the check's]"),
]
NameArgument = Annotated[str, typer.Argument(help="As enrolled, or as `gallery list` shows it.")]


def enroll_command(
    what: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME PHOTO...|FOLDER",
            help="Photos of somebody; or one folder of folders, which are people by name.",
        ),
    ],
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Without asking, also where photos look like two people, or a new name like "
            "somebody who is enrolled.",
        ),
    ] = False,
    keep_crops: KeepCropsOption = None,
    min_face: MinFaceOption = MIN_FACE_PX,
    store: StoreOption = None,
    model: ModelOption = None,
    threshold: ThresholdOption = None,
    passphrase_file: PassphraseOption = None,
    models: ModelsOption = None,
    json: JsonFlag = False,
) -> None:
    """Remember somebody by their photos."""
    from persona.gallery.enrolling import enroll_people, people_of

    people, failed = people_of(what, note)
    with open_people(
        *(store, model, threshold, "mean", passphrase_file, models),
        keep_crops=keep_crops,
        min_face=min_face,
    ) as gallery:
        ask = _ask if sys.stdin.isatty() else None
        if ask is not None and keep_crops is None and not json:
            _ask_to_keep(gallery)
        done = enroll_people(gallery, people, failed, force=force, ask=ask)
        threshold_line = threshold_facts(gallery)
    if json:
        print_json({"enrolled": [vars(one) for one in done], "failed": failed, **threshold_line})
    tell_enrolled(done, failed, quiet=json)
    note(f"`{_command('recognise PHOTO|FOLDER|VIDEO', store)}` tells who is on a photo")


def _ask_to_keep(gallery: Gallery) -> None:
    """Asks once, in a new gallery, whether faces are kept. Later commands do as was answered."""
    facts = gallery.store.facts()
    if facts is None or facts.keeps_crops is not None or gallery.people():
        return
    note(
        "A kept face lets a better network make its template later. Without it, templates can only "
        "be mapped, at a loss. Whoever can read the gallery can see the faces that it keeps."
    )
    gallery.keep_crops = typer.confirm("Keep the faces of this gallery's photos?", err=True)
    gallery.store.answer_keeping(gallery.keep_crops)


def tell_enrolled(done: Sequence[Enrolled], failed: dict[str, str], *, quiet: bool) -> None:
    """Prints who was enrolled.

    Args:
        done: the results.
        failed: the reasons by name, for those who are not enrolled.
        quiet: whether to leave the table out.

    Raises:
        PersonaError: somebody is not enrolled.
    """
    if done and not quiet:
        print_table(
            [
                TableColumn("name"),
                TableColumn("photos added", right=True),
                TableColumn("refused", right=True),
            ],
            # Of a folder that was enrolled before, only the people who changed are shown.
            [
                [one.name, one.added, len(one.refused)]
                for one in done
                if one.added or one.refused or len(done) == 1
            ],
        )
    old = [one.already for one in done if one.already]
    if old:
        people = counted(len(old), "person", "people")
        note(f"enrolled already: {counted(sum(old), 'photo')} of {people}")
    for one in done:
        for reason in one.refused:
            note(f"refused: {one.name}: {reason}")
        if one.looks_like is not None:
            note(
                f"note: {one.name} looks like {one.looks_like} (similarity {one.similarity:.3f}): "
                "one person under two names? `persona gallery merge` joins them"
            )
    for name, reason in failed.items():
        note(f"not enrolled: {name}: {reason}")
    if failed:
        everybody = len(done) + len(failed)
        raise PersonaError(f"{len(failed)} of {everybody} people are not enrolled")


def _ask(doubt: DoubtError, name: str) -> bool:
    """Asks the user about a doubt, and returns whether the photos are enrolled all the same."""
    note(str(doubt).rpartition(";")[0])
    return typer.confirm(doubt.question.format(name=legible(name)), err=True)


def forget_command(
    name: NameArgument,
    store: StoreOption = None,
    json: JsonFlag = False,
) -> None:
    """Remove somebody, so that nothing of them is left in the gallery's files."""
    with store_of(store) as opened:
        name = opened.person(name).name
        templates = opened.forget(name)
    if json:
        print_json({"forgotten": name, "templates": templates})
    else:
        typer.echo(
            f"{legible(name)} is forgotten: "
            f"{counted(templates, 'template was', 'templates were')} removed; a second look found "
            "none"
        )
    if unknown_file(store, None).exists():
        note(
            "note: unknown faces are kept, which may show this person: "
            f"`{_command('gallery unknown --forget-all', store)}` deletes them"
        )


@gallery_app.command("list")
def gallery_list(store: StoreOption = None, json: JsonFlag = False) -> None:
    """List everybody."""
    from persona.gallery.people import threshold_of

    with store_of(store) as opened:
        people, facts = opened.people(), opened.facts()
    threshold = threshold_of(facts, workspace())
    if json:
        print_json(
            {
                "people": [vars(person) for person in people],
                "model": facts and facts.network,
                "threshold": threshold and vars(threshold),
                "previous": facts and facts.previous and facts.previous.network,
            }
        )
        return
    print_table(
        [TableColumn("name"), TableColumn("photos", right=True), TableColumn("enrolled")],
        [[person.name, person.photos, person.created] for person in people],
        empty=nobody_enrolled(store),
    )
    if facts is not None:
        calibrated = threshold and f"{threshold.value:.3f}: {threshold.source}"
        note(f"model {facts.network}; threshold {calibrated or 'none yet'}")
        if facts.previous is not None:
            note(f"`persona gallery rollback` goes back to {facts.previous.network}")


@gallery_app.command("show")
def gallery_show(
    name: NameArgument,
    store: StoreOption = None,
    passphrase_file: PassphraseOption = None,
    json: JsonFlag = False,
) -> None:
    """What is kept of somebody, and how alike their photos are."""
    from persona.gallery.people import describe_person

    with store_of(store, passphrase_file) as opened:
        value = describe_person(opened, name)
    if json:
        print_json(value)
        return
    rows = [
        [key.replace("_", " "), f"{item:.3f}" if isinstance(item, float) else item]
        for key, item in value.items()
    ]
    print_table([TableColumn("fact"), TableColumn("value")], rows)


@gallery_app.command("rename")
def gallery_rename(
    name: NameArgument,
    to: Annotated[str, typer.Argument(metavar="NEW_NAME", help="1 to 200 characters.")],
    store: StoreOption = None,
    passphrase_file: PassphraseOption = None,
    json: JsonFlag = False,
) -> None:
    """Give somebody another name, so that nothing of the old one is left in the gallery's files."""
    from persona.gallery.people import rename_person

    with store_of(store, passphrase_file) as opened:
        moved = rename_person(opened, name, to)
    if json:
        print_json(vars(moved))
    else:
        typer.echo(
            f"{legible(name)} is {legible(moved.name)} now: {counted(moved.photos, 'photo')}"
        )


@gallery_app.command("merge")
def gallery_merge(
    name: Annotated[str, typer.Argument(help="Who is removed; the photos are kept.")],
    into: Annotated[str, typer.Argument(help="Who gets the photos.")],
    force: Annotated[
        bool, typer.Option("--force", help="Without asking, also where the two do not look alike.")
    ] = False,
    threshold: ThresholdOption = None,
    store: StoreOption = None,
    passphrase_file: PassphraseOption = None,
    json: JsonFlag = False,
) -> None:
    """Make two people one, where one person was enrolled under two names."""
    from persona.gallery.people import TwoPeopleError, merge_people

    with store_of(store, passphrase_file) as opened:
        try:
            moved = merge_people(
                opened, name, into, None if force else _threshold_of(opened, threshold)
            )
        except TwoPeopleError as doubt:
            if not sys.stdin.isatty():
                raise
            note(str(doubt).rpartition(";")[0])
            question = f"Merge {legible(name)} into {legible(into)}?"
            if not typer.confirm(question, err=True):
                raise
            moved = merge_people(opened, name, into, None)
    if json:
        print_json(vars(moved))
    else:
        photos = counted(moved.photos, "photo")
        typer.echo(f"{legible(moved.name)} has {photos} of {legible(name)} now")


def _threshold_of(store: Store, given: float | None) -> float:
    """Returns the gallery's own threshold, unless one is given."""
    from persona.gallery.audit import own_threshold

    threshold = own_threshold(store, given, workspace())
    if threshold is None:
        raise PersonaError(
            f"{store.place} has no threshold to compare the two with: give --threshold X, or "
            "--force to merge without comparing"
        )
    return threshold.value


@gallery_app.command("backup")
def gallery_backup(
    out: Annotated[Path, typer.Argument(metavar="FILE", help="A new file.")],
    store: StoreOption = None,
    passphrase_file: PassphraseOption = None,
) -> None:
    """Copy the gallery, as it is at one moment, to a new file that --store takes."""
    with store_of(store, passphrase_file) as opened:
        opened.back_up(out)
        count = len(opened.people())
    people = counted(count, "person", "people")
    note(f"{out} holds {people} with their templates, which are biometric data")


@gallery_app.command("export")
def gallery_export(
    out: Annotated[Path, typer.Argument(metavar="FILE", help="A .safetensors file.")],
    store: StoreOption = None,
    passphrase_file: PassphraseOption = None,
) -> None:
    """Write everybody's templates to one file, without photos and not encrypted."""
    from persona.gallery.transfer import export_people

    with store_of(store, passphrase_file) as opened:
        count = export_people(opened, out)
    templates = counted(count, "template")
    note(f"{out} holds {templates}, which are biometric data, and is not encrypted")


@gallery_app.command("calibrate")
def gallery_calibrate(
    set_: Annotated[
        str | None, typer.Option("--set", help="A packed set of people, or its URL.")
    ] = None,
    far: Annotated[
        float | None,
        typer.Option(
            min=1e-9,
            max=0.5,
            help="False accepts to allow, of one comparison; without --set the threshold that the "
            "model's card has for it.  [default: 0.001]",
        ),
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(min=-1, max=1, help="Set it by hand instead.")
    ] = None,
    store: StoreOption = None,
    model: ModelOption = None,
    passphrase_file: PassphraseOption = None,
    shards: ShardsOption = None,
    cache: CacheOption = None,
    verify: VerifyOption = True,
    models: ModelsOption = None,
    json: JsonFlag = False,
) -> None:
    """Choose the threshold from all pairs of a set, or by a model's card; the gallery keeps it."""
    from persona.data.sets import open_set

    if (set_ is None and far is None) == (threshold is None):
        raise PersonaError("give one of --set SET (with --far), --far R alone, and --threshold X")
    place = workspace(shards=shards, models=models)
    faces = None if set_ is None else open_set(set_, place.shards, cache, verify=verify)

    from persona.gallery.calibrate import calibrate_gallery

    rate = DEFAULT_FAR if far is None else far
    with store_of(store, passphrase_file, create=True) as opened:
        chosen = calibrate_gallery(
            *(opened, model, place), faces=faces, far=rate, threshold=threshold
        )
    if json:
        print_json({"threshold": chosen.value, "threshold_source": chosen.source})
    else:
        typer.echo(f"threshold {chosen.value:.3f}: {chosen.source}")


@gallery_app.command("rebuild")
def gallery_rebuild(
    model: Annotated[str, typer.Option("--model", metavar="NAME", help=f"{NETWORKS}.")],
    store: StoreOption = None,
    passphrase_file: PassphraseOption = None,
    models: ModelsOption = None,
) -> None:
    """Make all templates anew with another network, from the faces that --keep-crops kept."""
    from persona.gallery.people import rebuild, threshold_of

    place = workspace(models=models)
    with store_of(store, passphrase_file) as opened:
        count = rebuild(opened, model, place)
        threshold = threshold_of(opened.facts(), place)
    note(f"{counted(count, 'template is', 'templates are')} made anew")
    note_threshold(threshold)


def note_threshold(threshold: Threshold | None) -> None:
    """Prints the threshold of a gallery that moved to another network, or how to choose one."""
    if threshold is None:
        note("choose their threshold: `persona gallery calibrate`")
    else:
        note(f"threshold {threshold.value:.3f}: {threshold.source}")


def _command(words: str, store: str | None) -> str:
    """Returns the line to type for a command on the same gallery.

    It never shows a gallery's URL, which may hold a password.
    """
    place = "" if not store else f" --store {'URL' if '://' in store else shlex.quote(store)}"
    return f"persona {words}{place}"


def nobody_enrolled(store: str | None) -> str:
    """Returns the note on an empty gallery."""
    return f"nobody is enrolled: `{_command('enroll NAME PHOTO...', store)}` enrols somebody"


def threshold_facts(gallery: Gallery) -> dict[str, Any]:
    """Returns the model and the threshold, which are printed with every answer."""
    return {
        "model": gallery.eyes.named.name,
        "threshold": gallery.threshold,
        "threshold_source": gallery.calibration.source,
    }


def check_page(out: Path | None) -> None:
    """Raises PersonaError unless a page can be written there, and replaces no gallery or photo."""
    if out is None:
        return
    if out.suffix.lower() not in {".html", ".htm"}:
        raise PersonaError(f"--out {out}: name it .html, so that it replaces no gallery or photo")
    check_writable(out)


def _passphrase(path: Path | None) -> bytes | None:
    from persona.gallery.crypt import read_passphrase

    return None if path is None else read_passphrase(path)


def store_of(store: str | None, passphrase_file: Path | None = None, create: bool = False) -> Store:
    """Opens the store that a command's options name, without its network."""
    from persona.gallery.store import open_store
    from persona.gallery.unknown_faces import purge_file

    passphrase = _passphrase(passphrase_file)
    purge_file(unknown_file(store, None))
    return open_store(store or workspace().gallery, passphrase=passphrase, create=create)


def open_people(
    store: str | None,
    model: str | None,
    threshold: float | None,
    match: str,
    passphrase_file: Path | None,
    models: Path | None,
    *,
    keep_crops: bool | None = None,
    create: bool = True,
    min_face: int = MIN_FACE_PX,
    keep_unknown: float | None = None,
    forgets: bool = False,
    liveness: str | None = None,
    liveness_threshold: float | None = None,
) -> Gallery:
    """Opens the gallery that a command's options name: a file, or a database by its URL.

    With `forgets`, the unknown faces that were kept before are opened, too, so that those of
    somebody who is forgotten are deleted.
    """
    from persona.gallery import open_gallery
    from persona.gallery.liveness import open_liveness
    from persona.gallery.store import ReadOnlyError
    from persona.gallery.unknown_faces import open_kept, purge_file

    if liveness is None and liveness_threshold is not None:
        raise PersonaError("--liveness-threshold goes with --liveness: name a check")
    place = workspace(models=models)
    gallery = open_gallery(
        store or place.gallery,
        model,
        place,
        threshold=threshold,
        match=match,
        passphrase=_passphrase(passphrase_file),
        keep_crops=keep_crops,
        create=create,
        min_face=min_face,
    )
    try:
        if liveness is not None:
            gallery.liveness = open_liveness(liveness, liveness_threshold)
        if keep_unknown is not None:
            gallery.unknown = open_unknown(store, passphrase_file, models, hours=keep_unknown)
        elif forgets:
            with contextlib.suppress(ReadOnlyError):  # nobody can be forgotten then
                gallery.store.check_writable()
                kept = unknown_file(store, models)
                gallery.unknown = open_kept(kept, _passphrase(passphrase_file))
        else:
            purge_file(unknown_file(store, models))
    except BaseException:
        gallery.close()
        raise
    return gallery


def open_unknown(
    store: str | None,
    passphrase_file: Path | None,
    models: Path | None,
    *,
    hours: float | None = None,
) -> UnknownFaces:
    """Opens the kept unknown faces of the gallery that a command's options name."""
    from persona.gallery.unknown_faces import UnknownFaces

    path = unknown_file(store, models)
    return UnknownFaces(path, hours=hours, passphrase=_passphrase(passphrase_file))


def unknown_file(store: str | None, models: Path | None) -> Path:
    """Returns the file of a gallery's unknown faces, whether or not there is one."""
    from persona.gallery.unknown_faces import file_of

    default = workspace(models=models).gallery
    return file_of(store or default, default)

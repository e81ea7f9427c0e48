"""`persona enroll`, `persona recognise`, `persona forget`, `persona gallery`."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from persona.cli.output import (
    CacheOption,
    Column,
    JsonFlag,
    ModelsOption,
    ShardsOption,
    note,
    print_json,
    print_table,
    workspace,
)
from persona.errors import PersonaError, SkipPhoto
from persona.progress import progress_bar

if TYPE_CHECKING:
    from persona.gallery import Enrolled, Gallery, Sighting, Store
    from persona.gallery.video import Seen

gallery_app = typer.Typer(help="The people who are enrolled.", no_args_is_help=True)

StoreOption = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="FILE_OR_URL",
        help="The gallery: a file, or postgresql://… (persona[fleet]).  [default: gallery.db]",
    ),
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="NAME",
        help="Model ID, teacher or onnx:FILE.  [default: the gallery's; a new one's: the newest "
        "student]",
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
    bool, typer.Option("--keep-crops", help="Keep the faces too, so that `rebuild` can use them.")
]
NameArgument = Annotated[str, typer.Argument(help="As enrolled.")]


def enroll_command(
    what: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME PHOTO...|FOLDER",
            help="Photos of somebody; or one folder of folders, which are people by name.",
        ),
    ],
    force: Annotated[
        bool, typer.Option("--force", help="Also where the photos look like two people.")
    ] = False,
    keep_crops: KeepCropsOption = False,
    store: StoreOption = None,
    model: ModelOption = None,
    threshold: ThresholdOption = None,
    passphrase_file: PassphraseOption = None,
    models: ModelsOption = None,
    json: JsonFlag = False,
) -> None:
    """Remember somebody by their photos."""
    people, failed = _who(what)
    with open_people(
        store, model, threshold, "mean", passphrase_file, models, keep_crops=keep_crops
    ) as gallery:
        if len(people) + len(failed) == 1:
            done = [_enroll(gallery, *one, force=force) for one in people.items()]
        else:
            done = _enroll_all(gallery, people, failed, force=force)
        threshold_line = _threshold(gallery)
    if json:
        print_json({"enrolled": [vars(one) for one in done], "failed": failed, **threshold_line})
    elif done:
        print_table(
            [Column("name"), Column("photos added", right=True), Column("refused", right=True)],
            [[one.name, one.added, len(one.refused)] for one in done],
        )
    for one in done:
        for reason in one.refused:
            note(f"refused: {one.name}: {reason}")
        if one.looks_like is not None:
            note(
                f"note: {one.name} looks like {one.looks_like} (similarity {one.similarity:.3f}): "
                "one person under two names? `persona forget` one of them"
            )
    for name, reason in failed.items():
        note(f"not enrolled: {name}: {reason}")
    if failed:
        everybody = len(done) + len(failed)
        raise PersonaError(f"{len(failed)} of {everybody} people are not enrolled")


def _who(what: list[str]) -> tuple[dict[str, list[Path]], dict[str, str]]:
    """Photos by name; and of a folder of folders those whose name is none, with the reason.

    Raises:
        PersonaError: no photos, or it is not clear whose.
    """
    from persona.gallery.photos import folders_of, photos_of
    from persona.gallery.store import check_name

    if len(what) == 1:
        folder = Path(what[0])
        folders = folders_of(folder) if folder.is_dir() else []
        if not folders:
            raise PersonaError(
                f"{what[0]!r}: give a name and photos (NAME PHOTO...), or a folder that holds a "
                "folder of photos for each person"
            )
        people: dict[str, list[Path]] = {}
        failed = {}
        for person in folders:
            try:
                # Two folders may have one name: composed and decomposed, or with a blank.
                people.setdefault(check_name(person.name), []).extend(photos_of(person))
            except PersonaError as error:
                failed[person.name] = str(error)
        return people, failed
    name, paths = check_name(what[0]), [Path(path) for path in what[1:]]
    if os.path.isfile(what[0]):  # noqa: PTH113 - a name may be too long for a path
        raise PersonaError(f"{what[0]!r} is a file: whose photo is it? Give a name first")
    photos = []
    for path in paths:
        if not path.exists():
            raise PersonaError(f"no photo or folder at {path}")
        found = photos_of(path) if path.is_dir() else [path]
        if not found:
            several = path.is_dir() and folders_of(path)
            remedy = f"`persona enroll {path}` enrols its folders as people" if several else ""
            raise PersonaError(f"{path} holds no photos: {remedy or 'JPEG, PNG, BMP or WebP'}")
        photos += found
    return {name: photos}, {}


def _enroll(gallery: Gallery, name: str, photos: list[Path], *, force: bool) -> Enrolled:
    """Enrols somebody; asks, on a terminal, where the photos look like two people."""
    from persona.gallery import TwoPeopleError
    from persona.gallery.photos import iter_photos

    labels = [path.name for path in photos]
    try:
        with progress_bar("enrolling", total=len(photos), unit="photos") as advance:
            return gallery.enroll(name, iter_photos(photos, advance), force=force, labels=labels)
    except TwoPeopleError as error:
        if not sys.stdin.isatty():
            raise
        note(str(error))
        if not typer.confirm(f"Enrol all of them as {name}?", err=True):
            raise PersonaError(f"{name!r} is not enrolled") from None
    return gallery.enroll(name, iter_photos(photos), force=True, labels=labels)


def _enroll_all(
    gallery: Gallery, people: dict[str, list[Path]], failed: dict[str, str], *, force: bool
) -> list[Enrolled]:
    """Enrols everybody; `failed` gets those for whom it failed, with the reason."""
    from persona.gallery.photos import iter_photos

    done = []
    total = sum(map(len, people.values()))
    with progress_bar("enrolling", total=total, unit="photos") as advance:
        for name, photos in people.items():
            labels = [path.name for path in photos]
            seen = iter_photos(photos, advance)
            try:
                done.append(gallery.enroll(name, seen, force=force, labels=labels))
            except PersonaError as error:
                failed[name] = str(error)
    return done


def recognise_command(
    what: Annotated[Path, typer.Argument(metavar="PHOTO|FOLDER|VIDEO")],
    annotate: Annotated[
        Path | None,
        typer.Option(
            help="Write a copy with boxes and names: a file; for a folder, a folder. It is smaller "
            "than a photo of over 16 megapixels."
        ),
    ] = None,
    nearest: Annotated[
        bool, typer.Option("--nearest", help="Who is nearest to an unknown face, and how near.")
    ] = False,
    match: MatchOption = "mean",
    every: Annotated[
        float, typer.Option(min=0.01, max=60, help="Of a video, look every so many seconds.")
    ] = 0.2,
    store: StoreOption = None,
    model: ModelOption = None,
    threshold: ThresholdOption = None,
    passphrase_file: PassphraseOption = None,
    models: ModelsOption = None,
    json: JsonFlag = False,
) -> None:
    """Say who is in a photo, in each photo of a folder, or in a video and when."""
    from persona.gallery.photos import photos_of

    if not what.exists():
        raise PersonaError(f"no photo, folder or video at {what}")
    folder = what.is_dir()
    paths = photos_of(what) if folder else [what]
    if not paths:
        raise PersonaError(f"{what} holds no photos: JPEG, PNG, BMP or WebP")
    if annotate is not None and annotate.resolve() == what.resolve():
        raise PersonaError(f"--annotate {annotate} would overwrite what it shows: choose another")
    with open_people(
        store, model, threshold, match, passphrase_file, models, create=False
    ) as gallery:
        seen = None if folder else _video(gallery, what, annotate, every)
        answers: list[tuple[Path, tuple[Sighting, ...] | str]] = []
        if seen is None:
            with progress_bar("recognising", total=len(paths), unit="photos", enabled=folder) as up:
                for path in paths:
                    answers.append((path, _recognise(gallery, path, annotate, folder)))
                    up(1)
        threshold_line = _threshold(gallery)
    if json:
        if seen is not None:
            print_json({**_video_json(what, seen, nearest), **threshold_line})
        else:
            print_json({"photos": [_photo_json(*one, nearest) for one in answers]} | threshold_line)
    elif seen is not None:
        _print_video(seen, nearest)
    else:
        _print_photos(answers, nearest)
    if seen is not None and seen.cut_off:
        note(f"note: {what} is cut off after {seen.seconds:.1f} s")
    note("threshold {threshold:.3f}: {threshold_source}".format_map(threshold_line))


def _recognise(
    gallery: Gallery, path: Path, annotate: Path | None, folder: bool
) -> tuple[Sighting, ...] | str:
    """The faces of a photo; of a folder's unreadable photo, the reason."""
    from persona.gallery.photos import draw_marks, mark_of, read_photo, save_image

    try:
        photo = read_photo(path)
    except SkipPhoto as reason:
        if not folder:
            raise PersonaError(f"{path}: {reason}") from None
        return str(reason)
    faces = gallery.recognise(photo.pixels)
    if annotate is not None:
        marks = [mark_of(face, face.box) for face in faces]
        save_image(draw_marks(photo.pixels, marks), annotate / path.name if folder else annotate)
    return tuple(replace(face, box=photo.whole(face.box)) for face in faces)


def _video(gallery: Gallery, path: Path, annotate: Path | None, every: float) -> Seen | None:
    """The tracks of a video; None: it is a photo, or what is wrong with it is a photo's matter."""
    from persona.data.align.decode import MOST_PIXELS, EncodedPhoto
    from persona.data.raw.base import IMAGE_SUFFIXES

    if path.suffix.lower() in IMAGE_SUFFIXES or not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            EncodedPhoto(file.read(10_000_000), MOST_PIXELS)
        return None
    except SkipPhoto:
        pass
    from persona.gallery.video import annotate_video, check_copy, recognise_video

    if annotate is not None:
        check_copy(annotate)
    seen = recognise_video(gallery, path, every_s=every)
    if annotate is not None:
        annotate_video(seen, path, annotate)
    return seen


def _answer(face: Sighting, nearest: bool) -> list[str | None]:
    """Who, and how near."""
    if face.refused is not None:
        return [face.refused, None]
    score = None if face.score is None else f"{face.score:.3f}"
    if face.name is not None:
        return [face.name, score]
    if nearest and face.nearest is not None:
        return [f"unknown (nearest {face.nearest})", score]
    return ["unknown", None]


def _face_json(face: Sighting, nearest: bool) -> dict[str, Any]:
    value: dict[str, Any] = {"name": face.name}
    if face.name is not None or nearest:
        value["score"] = face.score
    if nearest:
        value["nearest"] = face.nearest
    return value | ({} if face.refused is None else {"refused": face.refused})


def _photo_json(path: Path, faces: tuple[Sighting, ...] | str, nearest: bool) -> dict[str, Any]:
    if isinstance(faces, str):
        return {"photo": str(path), "unreadable": faces}
    return {
        "photo": str(path),
        "faces": [{"box": face.box, **_face_json(face, nearest)} for face in faces],
    }


def _print_photos(answers: list[tuple[Path, tuple[Sighting, ...] | str]], nearest: bool) -> None:
    rows: list[list[object]] = []
    for path, faces in answers:
        if isinstance(faces, str) or not faces:
            rows.append([path, None, faces or "no face", None])
            continue
        for face in faces:
            x, y, width, height = face.box
            where = f"{x:.0f}, {y:.0f}, {width:.0f} x {height:.0f}"
            rows.append([path, where, *_answer(face, nearest)])
    columns = [
        Column("photo"),
        Column("face (px)"),
        Column("who"),
        Column("similarity", right=True),
    ]
    print_table(columns, rows)


def _video_json(path: Path, seen: Seen, nearest: bool) -> dict[str, Any]:
    return {
        "video": str(path),
        "seconds": seen.seconds,
        "frames": seen.frames,
        "cut_off": seen.cut_off,
        "tracks": [
            {
                "from_s": track.from_s,
                "to_s": track.to_s,
                "frames": len(track.boxes),
                **_face_json(track.sighting, nearest),
            }
            for track in seen.tracks
            if track.sighting is not None
        ],
    }


def _print_video(seen: Seen, nearest: bool) -> None:
    if not seen.tracks:
        note(f"no face in {seen.frames} frames of {seen.seconds:.1f} s")
        return
    print_table(
        [
            *(Column(title, right=True) for title in ("from (s)", "to (s)", "frames")),
            Column("who"),
            Column("similarity", right=True),
        ],
        [
            [
                *(f"{time:.1f}" for time in (track.from_s, track.to_s)),
                len(track.boxes),
                *_answer(track.sighting, nearest),
            ]
            for track in seen.tracks
            if track.sighting is not None
        ],
    )


def forget_command(
    name: NameArgument,
    store: StoreOption = None,
    json: JsonFlag = False,
) -> None:
    """Remove somebody, so that nothing of them is left in the gallery's files."""
    from persona.gallery.store import check_name

    name = check_name(name)
    with _store(store) as opened:
        templates = opened.forget(name)
    if json:
        print_json({"forgotten": name, "templates": templates})
    else:
        typer.echo(f"{name} is forgotten, with {templates} templates")


@gallery_app.command("list")
def gallery_list(store: StoreOption = None, json: JsonFlag = False) -> None:
    """List everybody."""
    with _store(store) as opened:
        people, facts = opened.people(), opened.facts()
    if json:
        print_json(
            {
                "people": [vars(person) for person in people],
                "model": facts and facts.network,
                "threshold": facts and facts.threshold and vars(facts.threshold),
            }
        )
        return
    print_table(
        [Column("name"), Column("photos", right=True), Column("enrolled")],
        [[person.name, person.photos, person.created] for person in people],
    )
    if facts is not None:
        calibrated = facts.threshold and f"{facts.threshold.value:.3f}: {facts.threshold.source}"
        note(f"model {facts.network}; threshold {calibrated or 'none yet'}")


@gallery_app.command("show")
def gallery_show(
    name: NameArgument,
    store: StoreOption = None,
    passphrase_file: PassphraseOption = None,
    json: JsonFlag = False,
) -> None:
    """What is kept of somebody, and how alike their photos are."""
    import numpy as np

    from persona.gallery.store import check_name

    name = check_name(name)
    with _store(store, passphrase_file) as opened:
        person = opened.person(name)
        photos = [photo for _, _, photo in opened.photos(name)]
    templates_NE = np.stack([photo.template for photo in photos])
    pairs = (templates_NE @ templates_NE.T)[np.triu_indices(len(photos), 1)]
    value = {
        **vars(person),
        "crops": sum(photo.crop is not None for photo in photos),
        "least_similarity": float(pairs.min()) if len(pairs) else None,
        "mean_similarity": float(pairs.mean()) if len(pairs) else None,
    }
    if json:
        print_json(value)
        return
    rows = [
        [key.replace("_", " "), f"{item:.3f}" if isinstance(item, float) else item]
        for key, item in value.items()
    ]
    print_table([Column("fact"), Column("value")], rows)


@gallery_app.command("export")
def gallery_export(
    out: Annotated[Path, typer.Argument(metavar="FILE", help="A .safetensors file.")],
    store: StoreOption = None,
    passphrase_file: PassphraseOption = None,
) -> None:
    """Write everybody's templates to one file, without photos and not encrypted."""
    from persona.gallery.transfer import export_people

    with _store(store, passphrase_file) as opened:
        count = export_people(opened, out)
    note(f"{out} holds {count} templates, which are biometric data, and is not encrypted")


@gallery_app.command("import")
def gallery_import(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Of `persona gallery export`.")],
    store: StoreOption = None,
    passphrase_file: PassphraseOption = None,
) -> None:
    """Add everybody of an exported file."""
    from persona.gallery.transfer import import_people

    with _store(store, passphrase_file, create=True) as opened:
        people = import_people(opened, file)
    note(f"{len(people)} people with {sum(people.values())} templates are added")


@gallery_app.command("calibrate")
def gallery_calibrate(
    set_: Annotated[
        str | None, typer.Option("--set", help="A packed set of people, or its URL.")
    ] = None,
    far: Annotated[
        float, typer.Option(min=1e-9, max=0.5, help="False accepts to allow, of one comparison.")
    ] = 1e-3,
    threshold: Annotated[
        float | None, typer.Option(min=-1, max=1, help="Set it by hand instead.")
    ] = None,
    store: StoreOption = None,
    model: ModelOption = None,
    passphrase_file: PassphraseOption = None,
    shards: ShardsOption = None,
    cache: CacheOption = None,
    models: ModelsOption = None,
    json: JsonFlag = False,
) -> None:
    """Choose the threshold from all pairs of a set, and keep it in the gallery."""
    from persona.data.shards import open_set

    if (set_ is None) == (threshold is None):
        raise PersonaError("give one of --set SET (with --far) and --threshold X")
    place = workspace(shards=shards, models=models)
    opened_set = None if set_ is None else open_set(set_, place.shards, cache)

    from persona.gallery.people import open_eyes
    from persona.gallery.store import Threshold

    with _store(store, passphrase_file, create=True) as opened:
        eyes = open_eyes(opened, model, place)
        if opened_set is None:
            assert threshold is not None
            chosen = Threshold(threshold, "set by hand")
        else:
            from accelerate import Accelerator

            from persona.gallery.calibrate import calibrate

            chosen = calibrate(eyes.named, *opened_set, Accelerator(), far)
        opened.set_threshold(chosen)
    if json:
        print_json({"threshold": chosen.value, "threshold_source": chosen.source})
    else:
        typer.echo(f"threshold {chosen.value:.3f}: {chosen.source}")


@gallery_app.command("rebuild")
def gallery_rebuild(
    model: Annotated[
        str, typer.Option("--model", metavar="NAME", help="Model ID, teacher or onnx:FILE.")
    ],
    store: StoreOption = None,
    passphrase_file: PassphraseOption = None,
    models: ModelsOption = None,
) -> None:
    """Make all templates anew with another network, from the faces that --keep-crops kept."""
    from persona.gallery.people import rebuild

    with _store(store, passphrase_file) as opened:
        count = rebuild(opened, model, workspace(models=models))
    note(f"{count} templates are made anew; choose their threshold: `persona gallery calibrate`")


def _threshold(gallery: Gallery) -> dict[str, Any]:
    """What every answer is shown with."""
    return {
        "model": gallery.eyes.named.name,
        "threshold": gallery.threshold,
        "threshold_source": gallery.calibration.source,
    }


def _passphrase(path: Path | None) -> bytes | None:
    from persona.gallery.crypt import read_passphrase

    return None if path is None else read_passphrase(path)


def _store(store: str | None, passphrase_file: Path | None = None, create: bool = False) -> Store:
    from persona.gallery.store import open_store

    passphrase = _passphrase(passphrase_file)
    return open_store(store or workspace().gallery, passphrase=passphrase, create=create)


def open_people(
    store: str | None,
    model: str | None,
    threshold: float | None,
    match: str,
    passphrase_file: Path | None,
    models: Path | None,
    *,
    keep_crops: bool = False,
    create: bool = True,
) -> Gallery:
    """The gallery that a command's options name, here or behind a URL."""
    from persona.gallery import open_gallery

    place = workspace(models=models)
    return open_gallery(
        store or place.gallery,
        model,
        place,
        threshold=threshold,
        match=match,
        passphrase=_passphrase(passphrase_file),
        keep_crops=keep_crops,
        create=create,
    )

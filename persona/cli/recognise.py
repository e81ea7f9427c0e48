"""`persona recognise`."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from persona.cli.gallery import (
    KeepUnknownOption,
    LivenessOption,
    LivenessThresholdOption,
    MatchOption,
    ModelOption,
    PassphraseOption,
    StoreOption,
    ThresholdOption,
    nobody_enrolled,
    open_people,
    threshold_facts,
)
from persona.cli.output import (
    MIN_FACE_PX,
    JsonFlag,
    MinFaceOption,
    ModelsOption,
    TableColumn,
    note,
    print_json,
    print_table,
)
from persona.errors import PersonaError, SkipPhoto
from persona.progress import progress_bar
from persona.workers import in_threads

if TYPE_CHECKING:
    from persona.gallery import Gallery, Sighting
    from persona.gallery.video import Seen


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
        float, typer.Option(min=0.01, max=60, help="Seconds between the looks at a video.")
    ] = 0.2,
    min_face: MinFaceOption = MIN_FACE_PX,
    keep_unknown: KeepUnknownOption = None,
    liveness: LivenessOption = None,
    liveness_threshold: LivenessThresholdOption = None,
    store: StoreOption = None,
    model: ModelOption = None,
    threshold: ThresholdOption = None,
    passphrase_file: PassphraseOption = None,
    models: ModelsOption = None,
    json: JsonFlag = False,
) -> None:
    """Say who is in a photo, in each photo directly in a folder, or in a video and when."""
    from persona.gallery.enrolling import photos_in
    from persona.gallery.photos import folders_of
    from persona.pictures import READ_WORDS

    if not what.exists():
        raise PersonaError(f"no photo, folder or video at {what}")
    folder = what.is_dir()
    paths = photos_in(what, note) if folder else [what]
    if not paths:
        below = len(folders_of(what))
        remedy = f"it holds {below} folder(s), name one of them" if below else READ_WORDS
        raise PersonaError(f"{what} holds no photos: {remedy}")
    if annotate is not None and annotate.resolve() == what.resolve():
        raise PersonaError(f"--annotate {annotate} would overwrite what it shows: choose another")
    with open_people(
        *(store, model, threshold, match, passphrase_file, models),
        create=False,
        min_face=min_face,
        keep_unknown=keep_unknown,
        liveness=liveness,
        liveness_threshold=liveness_threshold,
    ) as gallery:
        seen = None if folder else _video(gallery, what, annotate, every)
        answers: list[tuple[Path, tuple[Sighting, ...] | str]] = []
        if seen is None:
            with progress_bar("recognising", total=len(paths), unit="photos", enabled=folder) as up:
                look = partial(_recognise, gallery, annotate=annotate, folder=folder)
                for path, answer in zip(paths, in_threads(look, paths), strict=True):
                    answers.append((path, answer))
                    up(1)
        threshold_line, empty = threshold_facts(gallery), not gallery.store.people()
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
    if empty:
        note(nobody_enrolled(store))


def _recognise(
    gallery: Gallery, path: Path, annotate: Path | None, folder: bool
) -> tuple[Sighting, ...] | str:
    """Recognises the faces of a photo. For an unreadable photo of a folder, returns the reason."""
    from persona.gallery.marks import draw_marks, mark_of
    from persona.gallery.photos import copy_name, read_photo, save_image

    try:
        photo = read_photo(path)
    except SkipPhoto as reason:
        if not folder:
            raise PersonaError(f"{path}: {reason}") from None
        return str(reason)
    faces = gallery.recognise(photo.pixels, shrink=photo.shrink)
    if annotate is not None:
        marks = [mark_of(face, face.box, number) for number, face in enumerate(faces, start=1)]
        out = annotate / copy_name(path) if folder else annotate
        save_image(draw_marks(photo.pixels, marks), out)
    return tuple(replace(face, box=photo.whole(face.box)) for face in faces)


def _video(gallery: Gallery, path: Path, annotate: Path | None, every: float) -> Seen | None:
    """Recognises the tracks of a video, or returns None if the file is treated as a photo."""
    from persona.gallery.photos import is_film

    if not is_film(path):
        return None
    from persona.gallery.video import annotate_video, check_copy, recognise_video

    if annotate is not None:
        check_copy(annotate)
    seen = recognise_video(gallery, path, every_s=every)
    if annotate is not None:
        annotate_video(seen, path, annotate)
    return seen


def _answer(face: Sighting, nearest: bool) -> list[str | None]:
    """Returns the two cells of a face in the table: name, and similarity."""
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
            rows.append([path, None, None, faces or "no face", None])
            continue
        for number, face in enumerate(faces, start=1):
            x, y, width, height = face.box
            where = f"{x:.0f}, {y:.0f}, {width:.0f} x {height:.0f}"
            rows.append([path, number, where, *_answer(face, nearest)])
    columns = [
        TableColumn("photo"),
        TableColumn("face", right=True),
        TableColumn("where (px)"),
        TableColumn("who"),
        TableColumn("similarity", right=True),
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
                **_face_json(sighting, nearest),
            }
            for track, sighting in seen.told
        ],
    }


def _print_video(seen: Seen, nearest: bool) -> None:
    if not seen.tracks:
        note(f"no face in {seen.frames} frames of {seen.seconds:.1f} s")
        return
    print_table(
        [
            *(TableColumn(title, right=True) for title in ("face", "from (s)", "to (s)", "frames")),
            TableColumn("who"),
            TableColumn("similarity", right=True),
        ],
        [
            [
                number,
                *(f"{time:.1f}" for time in (track.from_s, track.to_s)),
                len(track.boxes),
                *_answer(sighting, nearest),
            ]
            for number, (track, sighting) in enumerate(seen.told, start=1)
        ],
    )

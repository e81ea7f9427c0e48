"""`persona group`."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from persona.cli.gallery import (
    KeepCropsOption,
    PassphraseOption,
    StoreOption,
    open_people,
    tell_enrolled,
)
from persona.cli.output import (
    MIN_FACE_PX,
    CalibrateFarOption,
    CalibrateOption,
    JsonFlag,
    MinFaceOption,
    ModelOption,
    ModelsOption,
    ShardsOption,
    TableColumn,
    check_threshold,
    choose_threshold,
    note,
    print_json,
    print_table,
    workspace,
)
from persona.errors import PersonaError
from persona.figure_names import counted
from persona.files import whole_number
from persona.progress import progress_bar

if TYPE_CHECKING:
    from persona.api.grouping import Grouping
    from persona.gallery import Enrolled

SHOWN = 20
"""Most groups that are printed."""


def group_command(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Photos, also in folders below.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR|FILE",
            help="Write a CSV file, an HTML page, or a folder with both. With a folder, another "
            "call looks only at new photos and keeps what was changed in its CSV.",
        ),
    ] = None,
    model: ModelOption = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            help="Cosine similarity from which on two faces are one person.  [default: the "
            "model's, or estimated from the photos]"
        ),
    ] = None,
    calibrate: CalibrateOption = None,
    far: CalibrateFarOption = None,
    min_face: MinFaceOption = MIN_FACE_PX,
    name: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GROUP=NAME",
            help="Name a group that --out has already; two groups of one name become one. May be "
            "repeated.",
        ),
    ] = None,
    enroll: Annotated[
        bool, typer.Option("--enroll", help="Enrol the named groups in the gallery.")
    ] = False,
    store: StoreOption = None,
    passphrase_file: PassphraseOption = None,
    keep_crops: KeepCropsOption = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Enrol a group even if it looks like two people, or like somebody else."
        ),
    ] = False,
    shards: ShardsOption = None,
    models: ModelsOption = None,
    json: JsonFlag = False,
) -> None:
    """Group the faces of a photo folder into people, without names.

    To name, merge and split the groups, change them in the CSV of --out, or on the page of
    `persona serve --groups DIR`. Then --enroll brings them into a gallery.
    """
    check_threshold(threshold, calibrate, far)
    names = dict(_number_and_name(text) for text in name or ())
    of_gallery: dict[str, object] = {"--store": store, "--passphrase-file": passphrase_file}
    of_gallery |= {"--keep-crops": keep_crops, "--force": force}
    if not enroll and (idle := [option for option, value in of_gallery.items() if value]):
        raise PersonaError(f"{idle[0]} is about a gallery: give --enroll too, or leave it out")
    from persona.api.embedding import find_photos
    from persona.api.grouping import check_out, group_photos, is_folder
    from persona.api.model import load
    from persona.gallery.grouped import enroll_groups

    check_out(out)
    if (names or enroll) and (out is None or not is_folder(out)):
        raise PersonaError("--name and --enroll take the groups of a folder: name it with --out")
    photos = find_photos(folder)
    place = workspace(shards=shards, models=models)
    network = load(model, workspace=place, min_face=min_face)
    choose_threshold(network, calibrate, far)
    done: list[Enrolled] = []
    failed: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        gallery = None
        if enroll:  # before the photos are looked at, because it may be refused
            measured = network.threshold if calibrate is not None or far is not None else None
            chosen = threshold if measured is None else measured.value
            gallery = stack.enter_context(
                open_people(
                    *(store, network.name, chosen, "mean", passphrase_file, models),
                    keep_crops=keep_crops,
                    min_face=min_face,
                )
            )
        with progress_bar("looking at photos", total=len(photos), unit="photos") as advance:
            found = group_photos(
                *(network, photos), threshold=threshold, out=out, names=names, advance=advance
            )
        if gallery is not None:
            done, failed = enroll_groups(gallery, found.state, force=force)
    if json:
        about = {"enrolled": [vars(one) for one in done], "failed": failed} if enroll else {}
        print_json(found.to_json() | about)
    else:
        _tell(found, len(photos), out)
    if enroll:
        if not found.names:
            note("no group has a name yet: --name GROUP=NAME gives one, and so does the CSV")
        tell_enrolled(done, failed, quiet=json)


def _number_and_name(text: str) -> tuple[int, str]:
    number, equals, name = text.partition("=")
    if not equals or not (found := whole_number(number)):
        raise PersonaError(f"--name {text!r}: give the number of a group and a name, as in 3=Ada")
    return found, name


def _tell(found: Grouping, photos: int, out: Path | None) -> None:
    """Prints the groups as a table, and what there is to know about them."""
    from persona.api.embedding import NO_FACE

    rows = [
        [number, found.names.get(number, ""), len(faces), Path(faces[0].photo).name]
        for number, faces in found.groups.items()
        if len(faces) > 1
    ]
    print_table(
        [
            TableColumn("group"),
            TableColumn("name"),
            TableColumn("faces", right=True),
            TableColumn("first photo"),
        ],
        rows[:SHOWN],
    )
    if len(rows) > SHOWN:
        note(f"{counted(len(rows) - SHOWN, 'more group')}: --out or --json has them all")
    people = counted(found.people, "person", "people")
    alone = counted(len(found.groups) - found.people, "face")
    typer.echo(
        f"{counted(found.faces, 'face')} in {counted(photos, 'photo')}: {people} with two faces or "
        f"more, {alone} alone"
    )
    note(f"threshold {found.threshold:.3f}: {found.source}")
    if found.duplicates:
        photo, (original, similarity) = next(iter(found.duplicates.items()))
        copies = counted(len(found.duplicates), "photo is", "photos are")
        note(
            f"{copies} nearly the same as another one, such as "
            f"{Path(photo).name} of {Path(original).name} (similarity {similarity:.3f})"
        )
    unreadable = {p: reason for p, reason in found.left_out.items() if reason != NO_FACE}
    if faceless := len(found.left_out) - len(unreadable):
        note(f"{counted(faceless, 'photo')} without a face")
    if unreadable:
        photo, reason = next(iter(unreadable.items()))
        lost = counted(len(unreadable), "photo is", "photos are")
        note(f"{lost} left out, such as {photo}: {reason}; --json has all")
    if out is not None:
        note(f"written: {out}")

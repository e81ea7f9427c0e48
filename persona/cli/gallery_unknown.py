"""`persona gallery unknown`: unknown people who came back are proposed, enrolled or deleted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from persona.cli.gallery import (
    KeepCropsOption,
    MatchOption,
    ModelOption,
    PassphraseOption,
    StoreOption,
    ThresholdOption,
    check_page,
    gallery_app,
    open_people,
    open_unknown,
    tell_enrolled,
    threshold_facts,
)
from persona.cli.output import JsonFlag, ModelsOption, TableColumn, note, print_json, print_table
from persona.errors import PersonaError
from persona.figure_names import counted
from persona.files import whole_number

if TYPE_CHECKING:
    from persona.gallery import Enrolled, Gallery
    from persona.gallery.unknown_faces import Proposal, UnknownFaces

MOST_DIGITS = 18


@gallery_app.command("unknown")
def gallery_unknown(
    name: Annotated[
        list[str] | None,
        typer.Option(
            "--name",
            metavar="NUMBER=NAME",
            help="Enrol an unknown person under this name; may be repeated.",
        ),
    ] = None,
    forget: Annotated[
        list[int] | None,
        typer.Option(
            "--forget", metavar="NUMBER", help="Delete the kept faces of one; may be repeated."
        ),
    ] = None,
    forget_all: Annotated[
        bool, typer.Option("--forget-all", help="Delete all kept unknown faces.")
    ] = False,
    visits: Annotated[int, typer.Option(min=1, help="Least number of visits.")] = 2,
    apart_minutes: Annotated[
        float, typer.Option(min=0, help="Least time between two visits, in minutes.")
    ] = 30.0,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE.html", help="Write a page with faces.")
    ] = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Enrol also who looks like two people, or like somebody enrolled."
        ),
    ] = False,
    keep_crops: KeepCropsOption = None,
    match: MatchOption = "mean",
    store: StoreOption = None,
    model: ModelOption = None,
    threshold: ThresholdOption = None,
    passphrase_file: PassphraseOption = None,
    models: ModelsOption = None,
    json: JsonFlag = False,
) -> None:
    """Unknown people who came back, from the faces that --keep-unknown HOURS keeps."""
    from persona.files import PRIVATE, write_atomically
    from persona.gallery.unknown_faces import find_proposal, propose
    from persona.gallery.unknown_page import page_of

    check_page(out)
    chosen = _names(name or ())
    others = {"--name": name, "--forget": forget, "--out": out}
    if forget_all and (lost := [option for option, value in others.items() if value]):
        raise PersonaError(
            f"--forget-all deletes the faces that {lost[0]} is about: run the command with "
            f"{lost[0]} first, then again with --forget-all alone"
        )
    if forget_all:
        with open_unknown(store, passphrase_file, models) as unknown:
            count = unknown.forget_all()
        if json:
            print_json({"deleted": count})
        note(counted(count, "unknown face is deleted", "unknown faces are deleted"))
        return
    with (
        open_people(
            *(store, model, threshold, match, passphrase_file, models),
            keep_crops=keep_crops,
            create=False,
        ) as gallery,
        open_unknown(store, passphrase_file, models) as unknown,
    ):
        found = propose(gallery, unknown, visits=visits, apart_minutes=apart_minutes)
        # All numbers are looked up before anybody is enrolled.
        named = [(find_proposal(found, number), text) for number, text in chosen]
        gone = [find_proposal(found, number) for number in forget or ()]
        done, failed = _enroll(gallery, unknown, named, force=force)
        deleted = sum(unknown.forget(one.faces) for one in gone)
        if named or gone:
            found = propose(gallery, unknown, visits=visits, apart_minutes=apart_minutes)
        facts, kept = threshold_facts(gallery), len(unknown.faces())
    if out is not None:
        write_atomically(out, page_of(found), PRIVATE)
    if json:
        people = [_json(one) for one in found]
        enrolled = [vars(one) for one in done]
        print_json(
            {"unknown": people, "enrolled": enrolled, "failed": failed, "deleted": deleted, **facts}
        )
    else:
        _show(found, kept)
    if deleted:
        note(counted(deleted, "unknown face is deleted", "unknown faces are deleted"))
    if out is not None:
        note(f"written: {out}, with faces: only you can read it")
    tell_enrolled(done, failed, quiet=json)


def _names(texts: Sequence[str]) -> list[tuple[int, str]]:
    """Reads `NUMBER=NAME`."""
    found = []
    for text in texts:
        number, _, name = text.partition("=")
        whole = whole_number(number.strip(), MOST_DIGITS)
        if whole is None or not name.strip():
            raise PersonaError(f"--name {text}: give NUMBER=NAME, as in 12=Ada")
        found.append((whole, name))
    return found


def _enroll(
    gallery: Gallery,
    unknown: UnknownFaces,
    named: Sequence[tuple[Proposal, str]],
    *,
    force: bool,
) -> tuple[list[Enrolled], dict[str, str]]:
    from persona.gallery import DoubtError
    from persona.gallery.unknown_faces import enroll_proposal

    done, failed = [], {}
    for proposal, text in named:
        try:
            accept = (DoubtError,) if force else ()
            done.append(enroll_proposal(gallery, unknown, proposal, text, accept=accept))
        except PersonaError as error:
            failed[text] = str(error)
    return done, failed


def _json(one: Proposal) -> dict[str, object]:
    shown = {name: value for name, value in vars(one).items() if name not in {"picture", "faces"}}
    return shown | {"faces": len(one.faces)}


def _show(found: Sequence[Proposal], kept: int) -> None:
    empty = "no unknown face is kept; `persona serve --keep-unknown HOURS` keeps them"
    if kept:
        faces = counted(kept, "unknown face is", "unknown faces are")
        empty = f"{faces} kept, and nobody of them came back; --visits 1 shows all"
    print_table(
        [
            TableColumn("number", right=True),
            TableColumn("visits", right=True),
            TableColumn("faces", right=True),
            TableColumn("first"),
            TableColumn("last"),
            TableColumn("nearest"),
            TableColumn("similarity", right=True),
        ],
        [
            [
                *(one.number, one.visits, len(one.faces), one.first, one.last, one.nearest),
                None if one.score is None else f"{one.score:.3f}",
            ]
            for one in found
        ],
        empty=empty,
    )

"""`persona gallery import`: many people at once, from a list or an exported file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from persona.cli.gallery import (
    KeepCropsOption,
    ModelOption,
    PassphraseOption,
    StoreOption,
    ThresholdOption,
    gallery_app,
    open_people,
    store_of,
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
    workspace,
)
from persona.errors import PersonaError

if TYPE_CHECKING:
    from persona.gallery.importing import Imported

SHOWN = 20
"""Most refused photos that are printed."""


@gallery_app.command("import")
def gallery_import(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="A .csv or .parquet file with the columns name and photo (paths relative to the "
            "file), or what `persona gallery export` wrote.",
        ),
    ],
    refused: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.csv", help="Write the refused rows, with reasons, to this file."
        ),
    ] = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Also where photos look like two people, or a new name like somebody who is "
            "enrolled.",
        ),
    ] = False,
    keep_crops: KeepCropsOption = False,
    workers: Annotated[
        int | None,
        typer.Option("--workers", "-w", min=0, help="Processes.  [default: all cores]"),
    ] = None,
    min_face: MinFaceOption = MIN_FACE_PX,
    store: StoreOption = None,
    model: ModelOption = None,
    threshold: ThresholdOption = None,
    passphrase_file: PassphraseOption = None,
    models: ModelsOption = None,
    json: JsonFlag = False,
) -> None:
    """Enrol everybody of a list of names and photos, or add everybody of an exported file.

    Interrupted and run again, the import of a list goes on.
    """
    from persona.gallery.importing import (
        SUFFIXES,
        check_refused,
        import_list,
        open_journal,
        read_list,
        write_refused,
    )

    if file.suffix.lower() not in SUFFIXES:
        of_list: dict[str, Any] = {"--refused": refused, "--force": force, "--model": model}
        of_list |= {"--keep-crops": keep_crops, "--workers": workers, "--threshold": threshold}
        if idle := [option for option, value in of_list.items() if value not in (None, False)]:
            raise PersonaError(
                f"{idle[0]} goes with a list ({' or '.join(SUFFIXES[:2])}) of photos"
            )
        _import_exported(file, store, passphrase_file, json=json)
        return
    listed = read_list(file)
    if refused is not None:
        check_refused(refused, listed)
    place = workspace(models=models)
    with (
        open_people(
            *(store, model, threshold, "mean", passphrase_file, models),
            keep_crops=keep_crops,
            min_face=min_face,
        ) as gallery,
        open_journal(place.gallery.parent, gallery, file) as journal,
    ):
        done = import_list(gallery, listed, journal, place.models, force=force, workers=workers)
        facts = threshold_facts(gallery)
    if refused is not None:
        write_refused(refused, listed, done.refused)
    if json:
        print_json({**vars(done), "refused": [vars(one) for one in done.refused], **facts})
    _tell_imported(done, refused, quiet=json)


def _import_exported(
    file: Path, store: str | None, passphrase_file: Path | None, *, json: bool
) -> None:
    from persona.gallery.transfer import import_people

    with store_of(store, passphrase_file, create=True) as opened:
        people = import_people(opened, file)
    templates = sum(people.values())
    if json:
        print_json({"people": len(people), "added": templates})
    note(f"{len(people)} people with {templates} templates are added")


def _tell_imported(done: Imported, refused: Path | None, *, quiet: bool) -> None:
    """Prints what an import did.

    Raises:
        PersonaError: somebody of the list is not enrolled.
    """
    if not quiet:
        rows = [["people enrolled", done.people], ["photos added", done.added]]
        rows += [["photos enrolled already", done.already], ["rows refused", len(done.refused)]]
        rows += [[f"  {kind}", count] for kind, count in done.reasons()]
        print_table([TableColumn("import"), TableColumn("number", right=True)], rows)
    if done.continued:
        note(f"continued an interrupted import that had dealt with {done.continued} people")
    if refused is None:
        for one in done.refused[:SHOWN]:
            note(f"refused: row {one.row}: {one.name}: {one.photo or 'no photo'}: {one.reason}")
        if len(done.refused) > SHOWN:
            note(f"{len(done.refused) - SHOWN} more are refused: --refused FILE.csv has them all")
    else:
        note(f"written: {refused}, with {len(done.refused)} refused rows")
    if done.failed:
        everybody = done.people + len(done.failed)
        raise PersonaError(f"{len(done.failed)} of {everybody} people are not enrolled")

"""`persona gallery import`: many people at once, from a list, an exported file or a server."""

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
from persona.cli.serve import read_token
from persona.errors import PersonaError

if TYPE_CHECKING:
    from persona.gallery.importing import Imported, PeopleSource

SHOWN = 20
"""Most refused photos that are printed."""


@gallery_app.command("import")
def gallery_import(
    source: Annotated[
        str,
        typer.Argument(
            metavar="FILE|URL",
            help="A .csv or .parquet file with the columns name and photo (paths relative to the "
            "file); what `persona gallery export` wrote; or the address of a `persona serve "
            "--share-templates`.",
        ),
    ],
    refused: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.csv", help="Write the refused photos, with reasons, to this file."
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
    keep_crops: KeepCropsOption = None,
    workers: Annotated[
        int | None,
        typer.Option("--workers", "-w", min=0, help="Processes for a list.  [default: all cores]"),
    ] = None,
    min_face: MinFaceOption = MIN_FACE_PX,
    token_file: Annotated[
        Path | None, typer.Option(help="File of the token that the server at the URL wants.")
    ] = None,
    store: StoreOption = None,
    model: ModelOption = None,
    threshold: ThresholdOption = None,
    passphrase_file: PassphraseOption = None,
    models: ModelsOption = None,
    json: JsonFlag = False,
) -> None:
    """Enrol everybody of a list, of an exported file, or of another gallery's server.

    Interrupted and run again, the import of a list or from a server goes on.
    """
    from persona.data.storage import is_url
    from persona.gallery.import_list import SUFFIXES, read_list
    from persona.gallery.import_server import read_server
    from persona.gallery.importing import (
        check_refused,
        import_from,
        open_journal,
        write_refused,
    )

    is_server, file = is_url(source), Path(source)
    is_list = not is_server and file.suffix.lower() in SUFFIXES
    of_people: dict[str, Any] = {"--refused": refused, "--force": force, "--model": model}
    of_people |= {"--keep-crops": keep_crops, "--threshold": threshold}
    of_list = {"--workers": workers, "--min-face": None if min_face == MIN_FACE_PX else min_face}
    if not is_server:
        _check_idle({"--token-file": token_file}, "the address of a server")
    if not is_list:
        _check_idle(of_list, f"a list ({' or '.join(SUFFIXES[:2])}) of photos")
    if not is_list and not is_server:
        _check_idle(of_people, "a list of photos, or with the address of a server")
        _import_exported(file, store, passphrase_file, json=json)
        return
    place = workspace(models=models)
    if refused is not None:
        check_refused(refused, None if is_server else file)
    people: PeopleSource
    if is_server:
        people = read_server(source, None if token_file is None else read_token(token_file))
    else:
        people = read_list(file, place.models, workers)
    with (
        open_people(
            *(store, model, threshold, "mean", passphrase_file, models),
            keep_crops=keep_crops,
            min_face=min_face,
        ) as gallery,
        open_journal(place.gallery.parent, gallery, people) as journal,
    ):
        done = import_from(people, gallery, journal, force=force)
        facts = threshold_facts(gallery)
    if refused is not None:
        write_refused(refused, done.refused, None if is_server else file.parent)
    if json:
        print_json({**vars(done), "refused": [vars(one) for one in done.refused], **facts})
    _tell_imported(done, refused, rows=not is_server, quiet=json)


def _check_idle(options: dict[str, Any], what: str) -> None:
    """Raises PersonaError if an option is given that only goes with something else."""
    for option, value in options.items():
        if value is not None and value is not False:  # 0 is a value that was given
            raise PersonaError(f"{option} goes with {what}")


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


def _tell_imported(done: Imported, refused: Path | None, *, rows: bool, quiet: bool) -> None:
    """Prints what an import did; `rows` names the rows of a list.

    Raises:
        PersonaError: somebody of the list is not enrolled.
    """
    if not quiet:
        cells = [["people enrolled", done.people], ["photos added", done.added]]
        cells += [["photos enrolled already", done.already], ["photos refused", len(done.refused)]]
        cells += [[f"  {kind}", count] for kind, count in done.reasons()]
        print_table([TableColumn("import"), TableColumn("number", right=True)], cells)
    if done.continued:
        note(f"continued an interrupted import that had dealt with {done.continued} people")
    if refused is None:
        for one in done.refused[:SHOWN]:
            where = [f"row {one.row}"] if rows else []
            where += [part for part in (one.name, one.photo) if part]
            note(f"refused: {': '.join(where)}: {one.reason}")
        if len(done.refused) > SHOWN:
            note(f"{len(done.refused) - SHOWN} more are refused: --refused FILE.csv has them all")
    else:
        note(f"written: {refused}, with {len(done.refused)} refused photos")
    if done.failed:
        everybody = done.people + len(done.failed)
        raise PersonaError(f"{len(done.failed)} of {everybody} people are not enrolled")

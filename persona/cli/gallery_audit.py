"""`persona gallery audit`: who and what of a gallery should be looked at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from persona.cli.gallery import (
    PassphraseOption,
    StoreOption,
    ThresholdOption,
    check_page,
    gallery_app,
    store_of,
)
from persona.cli.output import (
    JsonFlag,
    ModelsOption,
    TableColumn,
    note,
    print_json,
    print_table,
    workspace,
)
from persona.figure_names import counted

SHOWN = 20
"""Most findings of one kind that are printed."""


@gallery_app.command("audit")
def gallery_audit(
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE.html", help="Write a page, with faces if kept."),
    ] = None,
    store: StoreOption = None,
    threshold: ThresholdOption = None,
    passphrase_file: PassphraseOption = None,
    models: ModelsOption = None,
    json: JsonFlag = False,
) -> None:
    """Who looks like whom, which photos do not fit, and whose only photo is poor."""
    from persona.files import PRIVATE, write_atomically
    from persona.gallery.audit import audit_gallery, own_threshold, rows_of
    from persona.gallery.audit_page import page_of

    check_page(out)
    with store_of(store, passphrase_file) as opened:
        found = audit_gallery(opened, own_threshold(opened, threshold, workspace(models=models)))
    if out is not None:
        write_atomically(out, page_of(found), PRIVATE)
    if json:
        print_json(found.to_json())
    else:
        rows = rows_of(found)
        kinds = ("look alike", "far photo", "one poor photo")
        shown = [row for kind in kinds for row in [r for r in rows if r[0] == kind][:SHOWN]]
        print_table(
            [
                TableColumn("finding"),
                TableColumn("person"),
                TableColumn("what"),
                TableColumn("similarity", right=True),
            ],
            [[*row[:3], None if row[3] is None else f"{row[3]:.3f}"] for row in shown],
            empty="nothing to look at was found",
        )
        if len(rows) > len(shown):
            note(f"{len(rows) - len(shown)} more: --json and --out have them")
    note(
        f"{counted(found.people, 'person', 'people')}, {counted(found.templates, 'photo')}; "
        f"threshold {found.threshold.value:.3f}: {found.threshold.source}"
    )
    if found.unknown_quality:
        note(
            f"{counted(found.unknown_quality, 'person has', 'people have')} one photo without a "
            "kept face, so how good it is is not known; --keep-crops keeps faces"
        )
    if out is not None:
        note(f"written: {out}, with people's names and faces: only you can read it")

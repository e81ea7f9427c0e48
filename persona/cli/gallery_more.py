"""`persona gallery audit`, `import` and `upgrade`, which are about everybody at once."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from persona.cli.gallery import (
    KeepCropsOption,
    ModelOption,
    PassphraseOption,
    StoreOption,
    ThresholdOption,
    _store,
    gallery_app,
    open_people,
    threshold_facts,
)
from persona.cli.output import (
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

if TYPE_CHECKING:
    from persona.gallery.importing import Imported
    from persona.gallery.upgrade import Upgrade

__all__ = ["gallery_app"]

SHOWN = 20
"""Most findings of one kind, and most refused photos, that are printed."""


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

    if out is not None and out.suffix.lower() not in {".html", ".htm"}:
        raise PersonaError(f"--out {out}: name it .html, so that it replaces no gallery or photo")
    with _store(store, passphrase_file) as opened:
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
        f"{found.people} people, {found.templates} photos; threshold {found.threshold.value:.3f}: "
        f"{found.threshold.source}"
    )
    if found.unknown_quality:
        note(
            f"{found.unknown_quality} people have one photo without a kept face, so how good it is "
            "is not known; --keep-crops keeps faces"
        )
    if out is not None:
        note(f"written: {out}, with people's names and faces: only you can read it")


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

    with _store(store, passphrase_file, create=True) as opened:
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


@gallery_app.command("upgrade")
def gallery_upgrade(
    model: Annotated[str, typer.Option("--model", metavar="NAME", help=f"{NETWORKS}.")],
    fit_set: Annotated[
        str | None,
        typer.Option(
            metavar="SET",
            help="A packed set of people, or its URL, to fit a map on: for photos whose faces are "
            "not kept.",
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do it without asking.")] = False,
    store: StoreOption = None,
    passphrase_file: PassphraseOption = None,
    shards: ShardsOption = None,
    cache: CacheOption = None,
    verify: VerifyOption = True,
    models: ModelsOption = None,
    json: JsonFlag = False,
) -> None:
    """Move a gallery to another network: from kept faces, or by a map between both.

    Where a map is needed, its cost is shown first.
    """
    from persona.data.sets import open_set
    from persona.gallery.upgrade import carry_out, plan_upgrade

    place = workspace(shards=shards, models=models)
    faces = None if fit_set is None else open_set(fit_set, place.shards, cache, verify=verify)
    with _store(store, passphrase_file) as opened:
        plan = plan_upgrade(opened, model, place, faces)
        if plan.fitted is not None and not json:
            _show_cost(plan)
        if plan.fitted is None:
            agreed = True  # as by `gallery rebuild`, nothing is lost
            if faces is not None:
                note("every photo's face is kept: --fit-set is not needed")
        elif yes or json or not sys.stdin.isatty():
            agreed = yes
        else:
            agreed = typer.confirm("Replace the templates?", err=True)
        count = carry_out(opened, plan) if agreed else 0
    chosen = None if plan.fitted is None else plan.fitted.threshold
    if json:
        print_json(
            {
                "done": agreed,
                "model": plan.new.network,
                "anew": len(plan.anew),
                "mapped": len(plan.to_map),
                "fit": plan.fitted and plan.fitted.to_json(),
            }
        )
    if not agreed:
        note("nothing is changed: --yes does it")
        return
    note(f"{count} templates are {plan.new.network}'s now, {len(plan.to_map)} of them mapped")
    if chosen is None:
        note("choose their threshold: `persona gallery calibrate`")
    else:
        note(f"threshold {chosen.value:.3f}: {chosen.source}")


def _show_cost(plan: Upgrade) -> None:
    """Prints what a map was fitted on, and what it costs."""
    from persona.gallery.upgrade import FAR

    fitted = plan.fitted
    assert fitted is not None
    rows: list[list[object]] = [
        ["templates made anew from kept faces", len(plan.anew)],
        ["templates mapped", len(plan.to_map)],
        ["similarity of mapped and new embeddings", f"{fitted.agreement:.4f}"],
        [f"TAR at FAR {FAR:g} today: the old network alone", f"{fitted.today:.4f}"],
        ["  mapped templates against the new network", f"{fitted.mapped:.4f}"],
        ["  the new network alone, all enrolled anew", f"{fitted.anew:.4f}"],
        ["cost of the map against today", f"{fitted.today - fitted.mapped:+.4f}"],
        ["cost of the map against enrolling anew", f"{fitted.anew - fitted.mapped:+.4f}"],
    ]
    print_table([TableColumn("upgrade"), TableColumn("value", right=True)], rows)
    note(
        f"fitted on {fitted.faces} faces of {fitted.people} people of {fitted.set}; measured on "
        f"{fitted.held_out_faces} faces of {fitted.held_out_people} others, {fitted.impostors:,} "
        "pairs of two people"
    )

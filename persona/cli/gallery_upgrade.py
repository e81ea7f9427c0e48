"""`persona gallery upgrade` and `rollback`: a gallery moves to another network, and back."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from persona.cli.gallery import (
    PassphraseOption,
    StoreOption,
    gallery_app,
    note_threshold,
    store_of,
)
from persona.cli.output import (
    NETWORKS,
    CacheOption,
    JsonFlag,
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
    from persona.gallery.upgrade import Rollback, Upgrade


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
    from persona.gallery.people import threshold_of
    from persona.gallery.upgrade import carry_out, plan_upgrade

    place = workspace(shards=shards, models=models)
    faces = None if fit_set is None else open_set(fit_set, place.shards, cache, verify=verify)
    with store_of(store, passphrase_file) as opened:
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
    # The card of a shipped model has the threshold of its own templates, not of mapped ones.
    chosen = threshold_of(plan.new, place) if plan.fitted is None else plan.fitted.threshold
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
    note("those of before are kept: `persona gallery rollback` goes back, --discard removes them")
    note_threshold(chosen)


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


@gallery_app.command("rollback")
def gallery_rollback(
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Show what would be done, and whose photos prevent it."),
    ] = False,
    discard: Annotated[
        bool,
        typer.Option(
            "--discard", help="Instead remove the kept templates of before: there is no way back."
        ),
    ] = False,
    store: StoreOption = None,
    passphrase_file: PassphraseOption = None,
    models: ModelsOption = None,
    json: JsonFlag = False,
) -> None:
    """Go back to the network and threshold before the last upgrade, rebuild or learning.

    The templates of before were kept and are put back. Run again, it goes forward.
    """
    from persona.gallery.people import threshold_of
    from persona.gallery.upgrade import discard_previous, plan_rollback, roll_back

    if dry_run and discard:
        raise PersonaError("--dry-run changes nothing and --discard removes: give one of them")
    with store_of(store, passphrase_file) as opened:
        if discard:
            before, count = discard_previous(opened)
            if json:
                print_json({"discarded": count, "model": before.network})
            note(f"{count} templates of {before.network} are removed: there is no way back to it")
            return
        place = workspace(models=models)
        plan = plan_rollback(opened, place)
        if dry_run and not json:
            _show_way_back(plan)
        count = 0 if dry_run else roll_back(opened, plan)
    facts = plan.facts
    threshold = threshold_of(facts, place)
    if json:
        print_json(
            {
                "done": not dry_run,
                "model": facts.network,
                "templates": count,
                "kept": len(plan.kept),
                "anew": len(plan.anew),
                "lacking": plan.lacking,
                "threshold": threshold and threshold.value,
            }
        )
    if dry_run:
        note("nothing is changed")
        return
    note(f"{count} templates are {facts.network}'s again, {len(plan.anew)} of them made anew")
    note_threshold(threshold)


def _show_way_back(plan: Rollback) -> None:
    """Prints the network to go back to, and where the templates of each photo come from."""
    rows: list[list[object]] = [
        ["network", plan.facts.network],
        ["templates put back", len(plan.kept)],
        ["templates made anew from kept faces", len(plan.anew)],
        ["photos that have neither", sum(plan.lacking.values())],
    ]
    rows += [[f"  of {name}", count] for name, count in sorted(plan.lacking.items())]
    print_table([TableColumn("rollback"), TableColumn("value", right=True)], rows)

"""The page of unknown people who came back, as one static file that loads nothing."""

from __future__ import annotations

import html
from collections.abc import Sequence

from persona.gallery.static_page import TABLE_STYLE, picture, static_page
from persona.gallery.unknown_faces import Proposal
from persona.names import legible


def page_of(proposals: Sequence[Proposal]) -> bytes:
    """One page of all proposals, each with a face."""
    rows = "".join(
        f"<tr><td>{picture(one.picture)}{one.number}</td><td>{one.visits} visits, "
        f"{len(one.faces)} faces<br>{one.first} to {one.last}</td><td>{_nearest(one)}</td></tr>"
        for one in proposals
    )
    return static_page(
        "Unknown people",
        TABLE_STYLE,
        "<p>persona gallery unknown --name NUMBER=NAME enrols one of them.</p>"
        f"<table>{rows}</table>",
        heading=f"Unknown people who came back: {len(proposals):,}",
    )


def _nearest(one: Proposal) -> str:
    if one.nearest is None:
        return ""
    return f"nearest: {html.escape(legible(one.nearest))} ({one.score:.3f})"

"""The page of unknown people who came back, as one static file that loads nothing."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence

from persona.gallery.audit_page import STYLE
from persona.gallery.unknown_faces import Proposal
from persona.names import legible


def page_of(proposals: Sequence[Proposal]) -> bytes:
    """One page of all proposals, each with a face."""
    rows = "".join(
        f'<tr><td><img src="data:image/jpeg;base64,{base64.b64encode(one.picture).decode()}" '
        f'alt="">{one.number}</td><td>{one.visits} visits, {len(one.faces)} faces<br>{one.first} '
        f"to {one.last}</td><td>{_nearest(one)}</td></tr>"
        for one in proposals
    )
    text = (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Unknown people</title>'
        '<meta name="viewport" content="width=device-width"><meta http-equiv='
        '"Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">"
        f"<style>{STYLE}</style><h1>Unknown people who came back: {len(proposals):,}</h1>"
        "<p>persona gallery unknown --name NUMBER=NAME enrols one of them.</p>"
        f"<table>{rows}</table></html>"
    )
    return text.encode("utf-8", "replace")


def _nearest(one: Proposal) -> str:
    if one.nearest is None:
        return ""
    return f"nearest: {html.escape(legible(one.nearest))} ({one.score:.3f})"

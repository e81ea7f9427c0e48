"""The page of grouped faces, as one static file that loads nothing from elsewhere."""

from __future__ import annotations

import html
from pathlib import Path

from persona.gallery.grouped import Groups
from persona.gallery.static_page import picture, static_page
from persona.names import legible

MOST_FACES, MOST_GROUPS, MOST_ALONE = 60, 1000, 600
"""Largest number of pictures of a group, of groups, and of faces alone on the page. A browser
cannot show the 100,000 faces of a large folder at once; the CSV has them all."""

STYLE = """
:root { color-scheme: light dark; font-family: system-ui, sans-serif }
body { margin: 2rem auto; max-width: 72rem; padding: 0 1rem; overflow-wrap: anywhere }
section { margin: 1.5rem 0 }
h2 { font-size: 1rem; margin: 0 0 .4rem }
img { width: 64px; height: 64px; border-radius: 6px; margin: 2px }
img.copy { outline: 3px dashed #b7791f; outline-offset: -3px }
"""


def page_of(groups: Groups) -> bytes:
    """One page of all groups."""
    members = groups.members()
    several = {number: places for number, places in members.items() if len(places) > 1}
    parts = []
    for number, places in list(several.items())[:MOST_GROUPS]:
        title = html.escape(legible(groups.names.get(number, f"Group {number}")))
        more = _more(len(places) - MOST_FACES, "faces")
        pictures = "".join(_picture(groups, place) for place in places[:MOST_FACES])
        parts.append(f"<section><h2>{title}: {len(places)} faces</h2>{pictures}{more}</section>")
    parts.append(_more(len(several) - MOST_GROUPS, "groups"))
    alone = [places[0] for places in members.values() if len(places) == 1]
    if alone:
        pictures = "".join(_picture(groups, place) for place in alone[:MOST_ALONE])
        parts.append(
            f"<details><summary>{len(alone)} faces in a group of their own</summary>"
            f"{pictures}{_more(len(alone) - MOST_ALONE, 'faces')}</details>"
        )
    summary = (
        f"{len(groups.numbers)} faces, {len(several)} people with two faces or more. Model "
        f"{html.escape(groups.faces.model)}."
    )
    if groups.duplicates:
        summary += (
            f" {len(groups.duplicates)} photos are nearly copies of another one; the faces in them "
            "have a dashed frame."
        )
    return static_page("Groups of faces", STYLE, f"<p>{summary}</p>{''.join(parts)}")


def _more(count: int, what: str) -> str:
    return f"<p>and {count:,} more {what}: groups.csv has them all</p>" if count > 0 else ""


def _picture(groups: Groups, place: int) -> str:
    face = groups.faces.faces[place]
    original = groups.duplicates.get(face.photo)
    copy = f", nearly a copy of {Path(original[0]).name}" if original else ""
    title = html.escape(face.photo + copy, quote=True)
    kind = ' class="copy"' if copy else ""
    return picture(groups.faces.thumbnails[place], f' title="{title}"{kind}')

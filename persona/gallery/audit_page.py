"""The page of an audit, as one static file that loads nothing from elsewhere."""

from __future__ import annotations

import html
from collections.abc import Sequence

from persona.gallery.audit import Audit
from persona.gallery.static_page import TABLE_STYLE, picture, static_page
from persona.names import legible

MOST_ROWS = 500
"""Largest number of findings of one kind on the page. `--json` has them all."""


def page_of(audit: Audit) -> bytes:
    """One page of all findings. It has pictures where the gallery keeps faces."""
    alike = [
        (
            _person(one.a, audit.faces.get(one.a)),
            _person(one.b, audit.faces.get(one.b)),
            f"{one.similarity:.3f}",
        )
        for one in audit.alike[:MOST_ROWS]
    ]
    far = [
        (
            _person(one.name, audit.crops.get(one.number)),
            f"photo {one.photo} of {one.photos}",
            f"{one.similarity:.3f}",
        )
        for one in audit.far[:MOST_ROWS]
    ]
    poor = [
        (_person(one.name, audit.crops.get(one.number)), html.escape(one.reason), "")
        for one in audit.poor[:MOST_ROWS]
    ]
    sections = (
        _section(
            "People who look alike",
            "One person under two names, or two people whom the threshold does not tell apart.",
            *(alike, len(audit.alike)),
        ),
        _section(
            "Photos far from the others of their person",
            "Another person's photo under this name, or a poor one. The similarity is that to the "
            "mean of the other photos.",
            *(far, len(audit.far)),
        ),
        _section(
            "People with one poor photo",
            "Another photo of them makes recognising surer.",
            *(poor, len(audit.poor)),
        ),
    )
    threshold = f"{audit.threshold.value:.3f} ({audit.threshold.source})"
    summary = (
        f"{audit.people:,} people with {audit.templates:,} photos. Model "
        f"{html.escape(legible(audit.model))}. Threshold {html.escape(legible(threshold))}."
    )
    if audit.unknown_quality:
        summary += (
            f" Of {audit.unknown_quality:,} people with one photo no face is kept, so it is not "
            "known how good it is."
        )
    return static_page("Audit of a gallery", TABLE_STYLE, f"<p>{summary}</p>{''.join(sections)}")


def _section(title: str, words: str, rows: Sequence[tuple[str, str, str]], count: int) -> str:
    if not count:
        return f"<section><h2>{title}: none</h2></section>"
    cells = "".join(
        f'<tr><td>{first}</td><td>{second}</td><td class="number">{third}</td></tr>'
        for first, second, third in rows
    )
    more = (
        f"<p>and {count - len(rows):,} more: --json has them all</p>" if count > len(rows) else ""
    )
    return (
        f"<section><h2>{title}: {count:,}</h2><p>{words}</p><table>{cells}</table>{more}</section>"
    )


def _person(name: str, crop: bytes | None) -> str:
    """A name, behind the person's face where it is kept."""
    return ("" if crop is None else picture(crop)) + html.escape(legible(name))

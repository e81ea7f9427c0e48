"""The page of an audit, as one static file that loads nothing from elsewhere."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence

from persona.gallery.audit import Audit
from persona.names import legible

MOST_ROWS = 500
"""Largest number of findings of one kind on the page. `--json` has them all."""

STYLE = """
:root { color-scheme: light dark; font-family: system-ui, sans-serif }
body { margin: 2rem auto; max-width: 60rem; padding: 0 1rem; overflow-wrap: anywhere }
section { margin: 2rem 0 }
h2 { font-size: 1.1rem; margin: 0 0 .4rem }
table { border-collapse: collapse; width: 100% }
td { padding: .3rem .6rem .3rem 0; vertical-align: middle; border-top: 1px solid #8884 }
td.number { text-align: right; font-variant-numeric: tabular-nums }
img { width: 64px; height: 64px; border-radius: 6px; margin-right: .4rem; vertical-align: middle }
"""


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
    text = (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Audit of a gallery</title>'
        '<meta name="viewport" content="width=device-width"><meta http-equiv='
        '"Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">"
        f"<style>{STYLE}</style><h1>Audit of a gallery</h1><p>{summary}</p>{''.join(sections)}"
        "</html>"
    )
    return text.encode("utf-8", "replace")


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
    picture = ""
    if crop is not None:
        data = base64.b64encode(crop).decode()
        picture = f'<img src="data:image/jpeg;base64,{data}" alt="">'
    return picture + html.escape(legible(name))

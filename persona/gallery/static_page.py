"""The frame of a page of faces, as one static file that loads nothing from elsewhere.

The Content-Security-Policy lets the page show pictures that are in the file, and nothing else.
"""

from __future__ import annotations

import base64

TABLE_STYLE = """
:root { color-scheme: light dark; font-family: system-ui, sans-serif }
body { margin: 2rem auto; max-width: 60rem; padding: 0 1rem; overflow-wrap: anywhere }
section { margin: 2rem 0 }
h2 { font-size: 1.1rem; margin: 0 0 .4rem }
table { border-collapse: collapse; width: 100% }
td { padding: .3rem .6rem .3rem 0; vertical-align: middle; border-top: 1px solid #8884 }
td.number { text-align: right; font-variant-numeric: tabular-nums }
img { width: 64px; height: 64px; border-radius: 6px; margin-right: .4rem; vertical-align: middle }
"""
"""Style of a page of tables."""


def static_page(title: str, style: str, body: str, *, heading: str | None = None) -> bytes:
    """Returns a page as UTF-8.

    Args:
        title: its title. It must be safe in HTML, and so must the other texts.
        style: its CSS.
        body: what stands below the heading, as HTML.
        heading: its heading. None takes the title.
    """
    text = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width"><meta http-equiv='
        '"Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">"
        f"<style>{style}</style><h1>{heading or title}</h1>{body}</html>"
    )
    return text.encode("utf-8", "replace")


def picture(jpeg: bytes, attributes: str = "") -> str:
    """Returns a picture as HTML, with further attributes, such as ` class="copy"`."""
    data = base64.b64encode(jpeg).decode()
    return f'<img src="data:image/jpeg;base64,{data}" alt=""{attributes}>'

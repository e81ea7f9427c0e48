"""The report page: a single HTML file that loads nothing else.

The template escapes all text from sets, runs and users. A Content-Security-Policy names plotly and
the page's own script by their hashes, so nothing else can run or be fetched.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import asdict, dataclass, field
from importlib import resources
from typing import Any

from persona.extras import missing
from persona.report.figures import Figure


@dataclass(frozen=True)
class PageTable:
    """A table of text cells under named columns."""

    columns: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class Section:
    """A section of the page: a heading with figures below it."""

    id: str
    title: str
    figures: list[Figure]
    text: str = ""


@dataclass(frozen=True)
class ShownFace:
    """A photo shown in the page."""

    jpeg: bytes
    alt: str
    """Alternative text."""

    @property
    def source(self) -> str:
        """The photo as a data URI."""
        return "data:image/jpeg;base64," + base64.b64encode(self.jpeg).decode()


@dataclass(frozen=True)
class FacePair:
    """A pair of photos that was decided wrongly."""

    faces: list[ShownFace]
    score: str
    names: str = ""


@dataclass(frozen=True)
class Mistakes:
    """The worst false accepts and false rejects of a model."""

    name: str
    accepts_title: str
    accepts: list[FacePair]
    rejects_title: str
    rejects: list[FacePair]


@dataclass(frozen=True)
class Made:
    """How a model was made."""

    name: str
    facts: list[list[str]]
    """Rows of a name and a value."""
    config: str = ""
    """Config of its training as YAML."""
    curves: list[Figure] = field(default_factory=list)
    """Curves of its training."""


@dataclass(frozen=True)
class Page:
    """The whole content of the page."""

    set: str
    summary: str
    headline: PageTable
    facts: list[list[str]]
    plots: list[Section] = field(default_factory=list)
    faces: list[Mistakes] = field(default_factory=list)
    made: list[Made] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    """What a reader must know first, for example that a run is still going."""
    remarks: list[str] = field(default_factory=list)

    @property
    def sections(self) -> list[tuple[str, str]]:
        """ID and title of each section, in order."""
        middle = [(section.id, section.title) for section in self.plots]
        faces = [("faces", "The worst mistakes")] if self.faces else []
        return [("headline", "Models"), *middle, *faces, ("made", "How they were made")]


def render(page: Page) -> str:
    """Renders the page as HTML.

    Raises:
        PersonaError: the extra `report` is not installed.
    """
    try:
        import jinja2
        from markupsafe import Markup
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise missing(f"a report needs {error.name}", "report") from None
    here = resources.files("persona.report")
    script = (here / "page.js").read_text(encoding="utf-8")
    plotly = get_plotlyjs()
    shown = [figure for section in page.plots for figure in section.figures]
    shown += [figure for made in page.made for figure in made.curves]
    figures = [asdict(figure) for figure in shown]
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    hashes = " ".join(_hash(text) for text in (plotly, script))
    policy = (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    template = environment.from_string((here / "page.html.j2").read_text(encoding="utf-8"))
    return template.render(
        page=page,
        policy=policy,
        style=Markup((here / "page.css").read_text(encoding="utf-8")),  # ours: no escaping
        plotly=Markup(plotly),
        script=Markup(script),
        figures=Markup(encode_for_script(figures)),
    )


def encode_for_script(value: Any) -> str:
    """JSON for a script element, escaped so that it cannot end the element."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"

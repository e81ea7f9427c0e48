"""The report page, and a page with one figure: a single HTML file that loads nothing else.

The templates escape all text from sets, runs and users. A Content-Security-Policy names plotly and
Persona's own scripts by their hashes, so nothing else can run or be fetched.
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
from persona.report.looks import LIGHTER, ModelLook

SHAPES = {
    "circle": "M8 3a5 5 0 1 0 0 10a5 5 0 1 0 0-10z",
    "square": "M3.5 3.5h9v9h-9z",
    "diamond": "M8 1.5l6.5 6.5-6.5 6.5-6.5-6.5z",
    "cross": "M6 2h4v4h4v4h-4v4h-4v-4h-4v-4h4z",
    "x": "M4.8 2L8 5.2 11.2 2 14 4.8 10.8 8 14 11.2 11.2 14 8 10.8 4.8 14 2 11.2 5.2 8 2 4.8z",
    "triangle-up": "M8 2l6.5 11.5h-13z",
    "star": "M8 1l2.1 4.7 5.1.6-3.8 3.5 1 5L8 12.3l-4.4 2.5 1-5L.8 6.3l5.1-.6z",
    "triangle-down": "M8 14l6.5-11.5h-13z",
    "pentagon": "M8 1.5l6.7 4.9-2.6 7.9H3.9L1.3 6.4z",
    "hourglass": "M2.5 2h11l-11 12h11z",
}
"""Paths of plotly's symbols in a box of 16 x 16."""


@dataclass(frozen=True)
class PageTable:
    """A table of text cells under named columns."""

    columns: list[str]
    rows: list[list[str]]
    best: frozenset[tuple[int, int]] = frozenset()
    """Row and column of each cell that holds the best value of its row."""


@dataclass(frozen=True)
class ShownModel:
    """A model in the key of the page, which is the one place that names it in full."""

    look: ModelLook
    full: str
    role: str = ""
    """As `teacher`."""


@dataclass(frozen=True)
class CardRow:
    """What a card says of one model."""

    look: ModelLook
    text: str
    spread: str
    """95 % interval as text. Empty if there is none."""
    share: float
    """Length of the bar, from 0 to 1."""
    best: bool


@dataclass(frozen=True)
class FigureCard:
    """One figure of all models."""

    title: str
    rows: list[CardRow]
    chance: float | None
    """What chance would reach. None for what is no rate."""


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
class ModelSimilarity:
    """What one model says of a pair of photos."""

    look: ModelLook
    score: float
    """Cosine similarity."""
    margin: float
    """ModelSimilarity minus threshold."""
    right: bool
    """Whether the pair was decided correctly."""

    @property
    def at(self) -> float:
        """Place of the similarity on a scale from 0 to 100 %, which begins at a cosine of 0."""
        return 100 * min(max(self.score, 0.0), 1.0)

    @property
    def cut(self) -> float:
        """Place of the threshold on the same scale."""
        return 100 * min(max(self.score - self.margin, 0.0), 1.0)


@dataclass(frozen=True)
class FacePair:
    """A pair of photos that was decided wrongly."""

    faces: list[ShownFace]
    margin: str
    """How far the similarity lies on the wrong side of the threshold, as text."""
    similarities: list[ModelSimilarity]
    """The similarity that each model gives the pair."""
    names: str = ""


@dataclass(frozen=True)
class Mistakes:
    """The worst false accepts and false rejects of a model."""

    look: ModelLook
    accepts_title: str
    accepts: list[FacePair]
    rejects_title: str
    rejects: list[FacePair]


@dataclass(frozen=True)
class MapPair:
    """A pair of the list that a photo of a map is in."""

    other: int
    """Key of the other photo."""
    same: bool
    similarities: list[ModelSimilarity]


@dataclass(frozen=True)
class MapFaces:
    """What the maps show of a photo when it is pointed at or chosen, by the key of the photo."""

    faces: dict[int, str] = field(default_factory=dict)
    """Data URIs."""
    people: dict[int, str] = field(default_factory=dict)
    """Names on the page."""
    pairs: dict[int, list[MapPair]] = field(default_factory=dict)
    counts: dict[int, int] = field(default_factory=dict)
    """Number of pairs in the list, of which `pairs` holds the first."""

    def plain(self) -> dict[str, Any]:
        """The same for the script of the page, without what `models` there tells."""
        return {
            "faces": self.faces,
            "people": self.people,
            "counts": self.counts,
            "pairs": {
                key: [
                    {
                        "other": pair.other,
                        "same": pair.same,
                        "models": [
                            [round(one.score, 3), round(one.margin, 3), one.right]
                            for one in pair.similarities
                        ],
                    }
                    for pair in pairs
                ]
                for key, pairs in self.pairs.items()
            },
        }


@dataclass(frozen=True)
class Made:
    """How a model was made."""

    look: ModelLook
    facts: list[list[str]]
    """Rows of a name and a value."""
    config: str = ""
    """Config of its training as YAML."""


@dataclass(frozen=True)
class Page:
    """The whole content of the page."""

    set: str
    summary: str
    headline: PageTable
    facts: list[list[str]]
    models: list[ShownModel] = field(default_factory=list)
    """All models and runs."""
    measured: list[ModelLook] = field(default_factory=list)
    """The models that were measured, in the order of every list of similarities."""
    verdicts: list[str] = field(default_factory=list)
    cards: list[FigureCard] = field(default_factory=list)
    plots: list[Section] = field(default_factory=list)
    faces: list[Mistakes] = field(default_factory=list)
    map_faces: MapFaces = field(default_factory=MapFaces)
    map_legend: list[ModelLook] = field(default_factory=list)
    """The people of the maps."""
    made: list[Made] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    """What a reader must know first, for example that a run is still going."""
    remarks: list[str] = field(default_factory=list)

    @property
    def sections(self) -> list[tuple[str, str]]:
        """ID and title of each section, in order."""
        middle = [(section.id, section.title) for section in self.plots]
        faces = [("faces", "The worst mistakes")] if self.faces else []
        return [("headline", "Verdict"), *middle, *faces, ("made", "How they were made")]


def render(page: Page) -> str:
    """Renders the page as HTML.

    Raises:
        PersonaError: the extra `report` is not installed.
    """
    shown = [figure for section in page.plots for figure in section.figures]
    data = {
        "figures": [asdict(figure) for figure in shown],
        "lighter": LIGHTER,
        "models": [swatch(look) for look in page.measured],
        "map": page.map_faces.plain(),
    }
    return _render("page", ("theme", "page"), data, page=page, swatch=swatch)


def render_figure(figure: Figure, size_px: tuple[int, int]) -> str:
    """Renders a page that holds one figure of a fixed size and nothing else.

    Raises:
        PersonaError: the extra `report` is not installed.
    """
    data = {"figures": [asdict(figure)]}
    return _render("figure", ("theme", "figure"), data, figure=figure, size_px=size_px)


def _render(template: str, scripts: tuple[str, ...], data: Any, **values: Any) -> str:
    """Fills a template. Plotly, then the scripts follow the data in it."""
    try:
        import jinja2
        from markupsafe import Markup
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise missing(f"a report needs {error.name}", "report") from None
    here = resources.files("persona.report")

    def read(name: str) -> str:
        return (here / name).read_text(encoding="utf-8")

    texts = [get_plotlyjs(), *(read(f"{name}.js") for name in scripts)]
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    policy = (
        f"default-src 'none'; script-src {' '.join(map(_hash, texts))}; "
        "style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    return environment.from_string(read(f"{template}.html.j2")).render(
        policy=policy,
        style=Markup(read("page.css")),  # ours: no escaping
        scripts=[Markup(text) for text in texts],
        data=Markup(encode_for_script(data)),
        **values,
    )


def swatch(look: ModelLook) -> dict[str, str]:
    """What template and script draw of a look: its name, its colours and the path of its symbol."""
    dark = LIGHTER.get(look.colour, look.colour)
    return {"name": look.name, "colour": look.colour, "dark": dark, "path": SHAPES[look.symbol]}


def encode_for_script(value: Any) -> str:
    """JSON for a script element, escaped so that it cannot end the element."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"

"""Looks of models: one short name, colour, dash and symbol for a model in every figure and table.

The first six colours are those of Okabe and Ito (2008), which can be told apart with any colour
vision. Four more were chosen far from them. Lines also differ in dash, and points in shape, so that
no figure depends on colour alone.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

PALETTE = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"),
    *("#222222", "#801A00", "#5B2BE0", "#93A400"),
)
LIGHTER = {
    "#0072B2": "#3D9BE0",
    "#D55E00": "#F07C2B",
    "#222222": "#E6EDF3",
    "#801A00": "#C4907C",
    "#5B2BE0": "#A78BFA",
}
"""What colours of the palette become on a dark page, where they are too dark."""
GREY = "#808080"
"""Colour of what is no model: chance, and impostor pairs. It is legible on light and dark pages."""
DASHES = (
    *("solid", "dash", "dot", "dashdot", "longdash", "longdashdot"),
    *("12px,3px,3px,3px,3px,3px", "3px,7px", "18px,4px,6px,4px", "6px,3px"),
)
SYMBOLS = (
    *("circle", "square", "diamond", "cross", "x", "triangle-up"),
    *("star", "triangle-down", "pentagon", "hourglass"),
)
PATTERNS = ("", "/", ".", "x", "-", "|", "\\", "+")
"""Hatching of bars."""
LONGEST = 24
"""Most characters of a short name."""

_ID = re.compile(r"(?P<made>.+)-\d{8}-\d{6}-(?P<tail>[0-9a-f]{4})(?P<ema>-ema)?")


@dataclass(frozen=True)
class ModelLook:
    """How a model is named and drawn."""

    name: str
    """Short name."""
    colour: str = PALETTE[0]
    """As #RRGGBB."""
    dash: str = DASHES[0]
    symbol: str = SYMBOLS[0]
    pattern: str = PATTERNS[0]


def look(number: int, name: str) -> ModelLook:
    """The look with a number. Looks of numbers below 10 differ in colour, dash and symbol.

    Example:
        look(0, "small · e94f").colour  # "#0072B2"
    """
    turn = number + number // len(PALETTE)  # the second round combines colours and symbols anew
    return ModelLook(
        name,
        PALETTE[number % len(PALETTE)],
        DASHES[turn % len(DASHES)],
        SYMBOLS[turn % len(SYMBOLS)],
        PATTERNS[number % len(PATTERNS)],
    )


def short_names(names: Sequence[str], untrained: Sequence[str] = ()) -> list[str]:
    """Short names such as `small · e94f`, no two of them equal.

    An ID becomes its architecture and its last four digits. Another long name loses its middle.
    Names that would become equal stay as they are, and equal names are numbered.

    Args:
        names: names of models, runs and files.
        untrained: those of them that are architectures without trained weights.
    """
    short = [_short(name, name in untrained) for name in names]
    count = Counter(short)
    chosen = [own if count[own] == 1 else name for name, own in zip(names, short, strict=True)]
    return [
        f"{name} ({chosen[:place].count(name) + 1})" if chosen.count(name) > 1 else name
        for place, name in enumerate(chosen)
    ]


def _short(name: str, untrained: bool) -> str:
    found = _ID.fullmatch(name)
    if found:
        ema = " · EMA" if found["ema"] else ""
        return f"{_family(found['made'])} · {found['tail']}{ema}"
    if untrained:
        return f"{_family(name)} · untrained"
    if len(name) <= LONGEST:
        return name
    end = LONGEST // 3
    return f"{name[: LONGEST - end - 1]}…{name[-end:]}"


def _family(architecture: str) -> str:
    return re.sub(r"^(mobilenet_v3_|timm[-:])", "", architecture)

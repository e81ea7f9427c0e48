"""Plots for papers: one figure as SVG, PDF or PNG, drawn by the script of the report page.

Lines have their names at their ends, so that a plot needs no legend and can be read without colour.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from persona.errors import unknown
from persona.files import check_writable, write_atomically
from persona.report.browser import draw_figure, find_chromium, open_browser, run_apart
from persona.report.figures import Figure, axis, chance_trace, curve_trace
from persona.report.looks import look
from persona.report.page import render_figure

FORMATS = ("svg", "pdf", "png")
SIZE_PX = (800, 480)
"""Width and height of a plot. A PNG has three times as many pixels, which is about 300 dpi."""
MARGINS_PX = {"l": 64, "t": 12, "b": 52}
FONT = "DejaVu Sans, Verdana, sans-serif"
"""Fonts of like width, since whoever opens an SVG has other ones."""
LABEL_PX, CHARACTER_PX, ARROW_PX = 17, 7.4, 26
"""Height of a label, width of its characters, and length of the line to it."""
MARGIN = 0.04
"""Free share of an axis beyond its highest and its lowest value."""


@dataclass(frozen=True)
class Line:
    """One line of a plot."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    note: str = ""
    """What its label says after the name, as `0.842 ± 0.012`."""


def line_plot(
    title: str,
    lines: Sequence[Line],
    axes: tuple[str, str],
    chance: Line | None = None,
) -> Figure:
    """A figure of lines, each with its own colour, dash and symbol, and labelled at its end.

    Args:
        title: what the figure shows. It is read out, and not drawn: a paper has captions.
        lines: at least one. The first ten differ in colour, dash and symbol.
        axes: titles of the x and the y axis.
        chance: the line of a network that guesses.

    Example:
        line_plot("learning", [Line("ncm", [0, 1], [0.9, 0.8])], ("experience", "accuracy"))
    """
    traces: list[dict[str, Any]] = []
    looks = [look(number, line.name) for number, line in enumerate(lines)]
    for own, line in zip(looks, lines, strict=True):
        trace = curve_trace(own, list(line.x), list(line.y))
        traces.append(trace | {"mode": "lines+markers"})
    values = [value for line in lines for value in line.y]
    ends = [(own.colour, line) for own, line in zip(looks, lines, strict=True)]
    if chance is not None:
        traces.insert(0, chance_trace(chance.x, chance.y))
        values += chance.y
        ends.append((traces[0]["line"]["color"], chance))
    low, high = _range(values)
    height_px = SIZE_PX[1] - MARGINS_PX["t"] - MARGINS_PX["b"]
    px = [(line.y[-1] - low) / (high - low) * height_px for _, line in ends]
    labels = [
        {
            "text": f"<b>{line.name}</b> {line.note}".rstrip(),
            **{"x": line.x[-1], "y": line.y[-1], "ax": ARROW_PX, "ay": own_px - label_px},
            **{"xanchor": "left", "align": "left", "standoff": 6, "font": {"size": 12}},
            **{"showarrow": True, "arrowhead": 0, "arrowwidth": 1, "arrowcolor": colour},
        }
        for (colour, line), own_px, label_px in zip(
            ends, px, spread_labels(px, LABEL_PX, height_px), strict=True
        )
    ]
    longest = max(len(f"{line.name} {line.note}") for _, line in ends)
    drawn = {"showline": True, "ticks": "outside"}
    return Figure(
        id="plot",
        title=title,
        alt=f"{axes[1]} over {axes[0]}. At the end: "
        + ", ".join(f"{line.name} {line.y[-1]:.3f}" for line in lines),
        traces=traces,
        layout={
            "xaxis": axis(axes[0], range=_range(x for line in lines for x in line.x), **drawn),
            "yaxis": axis(axes[1], range=[low, high], **drawn),
            "annotations": labels,
            "margin": {**MARGINS_PX, "r": round(ARROW_PX + 14 + longest * CHARACTER_PX)},
            "font": {"family": FONT},
            "showlegend": False,
        },
    )


def _range(values: Iterable[float]) -> list[float]:
    """Ends of an axis with some room around the values. Labels beside them need none of it."""
    low, high = min(there := list(values)), max(there)
    room = MARGIN * max(high - low, 1e-9)
    return [low - room, high + room]


def spread_labels(places: Sequence[float], gap: float, height: float) -> list[float]:
    """Places as near to the wanted ones as labels of this height allow, in the same order.

    Neighbours that would cover each other move apart around their common mean. If there is too
    little room for all labels, they lie as far apart as it allows.

    Args:
        places: wanted places, in px from the lower end.
        gap: least distance of two places.
        height: height of the axis.
    """
    order = np.argsort(places, kind="stable")
    gap = min(gap, height / max(len(places) - 1, 1))
    # Without the gaps, places must only not fall: pool neighbours that do (isotonic regression).
    steps = np.arange(len(places)) * gap
    blocks: list[list[float]] = []  # sum, count
    for wanted in np.asarray(places, np.float64)[order] - steps:
        blocks.append([float(wanted), 1])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] > blocks[-1][0] / blocks[-1][1]:
            total, count = blocks.pop()
            blocks[-1][0] += total
            blocks[-1][1] += count
    means = np.concatenate([np.full(int(count), total / count) for total, count in blocks])
    free = np.clip(means, 0, height - steps[-1]) + steps
    spread = np.empty(len(places))
    spread[order] = free
    return spread.tolist()


def check_plot(path: Path) -> str:
    """The format that a plot's suffix names, checked together with Chromium before hours of work.

    Raises:
        PersonaError: the suffix names no format, the file cannot be written, or there is no
            Chromium.
    """
    form = path.suffix.lstrip(".").lower()
    if form not in FORMATS:
        raise unknown(
            "format of a plot", path.suffix or path.name, [f".{name}" for name in FORMATS]
        )
    check_writable(path)
    find_chromium()
    return form


def write_plot(figure: Figure, path: Path) -> None:
    """Writes a figure in the format of the path's suffix.

    Raises:
        PersonaError: as `check_plot`, or the extra `report` is not installed.
    """
    form = check_plot(path)
    html = render_figure(figure, SIZE_PX)

    def draw() -> bytes:
        with open_browser() as browser:
            return draw_figure(browser, html, form, SIZE_PX)

    write_atomically(path, run_apart(draw))

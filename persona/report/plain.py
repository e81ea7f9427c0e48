"""Plots as plain images, drawn with Pillow, for trackers that have no browser to draw them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from persona.evaluation.metrics import Bools, Floats
from persona.report.figures import histogram, roc_traces
from persona.report.looks import PALETTE

WIDTH_PX, HEIGHT_PX, MARGIN_PX = 640, 420, 48
LEGEND_COLUMNS = 4


@dataclass(frozen=True)
class Curves:
    """Lines over a common x axis. They hold figures only, so that they may leave the machine."""

    title: str
    axes: tuple[str, str]
    """Titles of the x and the y axis."""
    x: list[float]
    lines: dict[str, list[float]]
    """Values at `x` of each line, by name."""

    def rows(self) -> tuple[list[str], list[list[float]]]:
        """The curves as a table: its columns and rows."""
        columns = [self.axes[0], *self.lines]
        return columns, [list(row) for row in zip(self.x, *self.lines.values(), strict=True)]

    def image(self, log_x: bool = False) -> Image.Image:
        """The plot as an image of 640 x 420 px, with frame, axis limits and legend."""
        image = Image.new("RGB", (WIDTH_PX, HEIGHT_PX), "white")
        draw = ImageDraw.Draw(image)
        left, top, right, bottom = (
            *(MARGIN_PX, MARGIN_PX),
            *(WIDTH_PX - MARGIN_PX, HEIGHT_PX - MARGIN_PX),
        )
        draw.rectangle((left, top, right, bottom), outline="#888")
        x = np.log10(self.x) if log_x else np.asarray(self.x)
        top_value = max(max(y) for y in self.lines.values()) or 1.0
        place_x = left + (x - x.min()) / max(float(np.ptp(x)), 1e-12) * (right - left)
        for number, (name, y) in enumerate(self.lines.items()):
            place_y = bottom - np.asarray(y) / top_value * (bottom - top)
            colour = PALETTE[number % len(PALETTE)]
            draw.line(list(zip(place_x.tolist(), place_y.tolist(), strict=True)), colour, 3)
            row, column = divmod(number, LEGEND_COLUMNS)
            draw.text((left + 8 + 130 * column, top + 6 + 14 * row), name, fill=colour)
        draw.text((left, top - 24), f"{self.title}: {self.axes[1]} over {self.axes[0]}", "black")
        draw.text((left, bottom + 8), f"{min(self.x):.3g}", "black")
        draw.text((right - 40, bottom + 8), f"{max(self.x):.3g}", "black")
        draw.text((4, top), f"{top_value:.3g}", "black")
        return image


def pair_curves(scores_P: Floats, same_P: Bools) -> list[Curves]:
    """ROC curve and histogram of (P,) scores. They contain no data of a single pair."""
    far, tar = roc_traces(scores_P, same_P)
    x, impostor, genuine = histogram(scores_P, same_P)
    shares = {"impostor": impostor, "genuine": genuine}
    return [
        Curves("ROC", ("false accept rate", "true accept rate"), far, {"true accept rate": tar}),
        Curves("scores", ("cosine similarity", "share of the pairs"), x, shares),
    ]

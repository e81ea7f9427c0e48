#!/usr/bin/env python
"""Draws the plots of the Concepts pages into docs/img/, from faces that are drawn here.

./scripts/draw_concepts.py [--out docs/img] [--people 60]

1. People are drawn, six photos of each. Persona-S finds and embeds them.
2. All pairs of photos give the histogram and the ROC of docs/concepts/verification.md.
3. The similarities of one face to others, through a softmax at three temperatures, are the plot of
   docs/concepts/distillation.md.
4. Crops that are mirrored, moved, coarsened and darkened, against themselves as they were, are that
   of docs/concepts/kept-targets.md.

The figures that the pages quote are printed. It needs the extra `report` and a Chromium, and takes
about two minutes. Shapes: N photos, E embedding, P pairs.
"""

from __future__ import annotations

import argparse
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

import persona
from persona.data.synthetic import draw_identity, draw_photo
from persona.errors import PersonaError
from persona.evaluation.metrics import roc, roc_auc, tar_at_far
from persona.files import write_atomically
from persona.report.browser import draw_figure, open_browser
from persona.report.figures import Figure, axis, curve_trace, histogram, roc_traces
from persona.report.looks import GREY, look
from persona.report.page import render_figure

Floats = npt.NDArray[np.float64]
Pixels = npt.NDArray[np.uint8]

PHOTOS = 6
SEED = 7
FAR = 1e-2
TEMPERATURES = (1.0, 0.3, 0.07)
OTHERS = 12
"""Faces whose similarities go through the softmax."""
SIZE_PX = (720, 380)
FONT = "DejaVu Sans, Verdana, sans-serif"
MARGIN_PX = {"l": 70, "r": 24, "t": 34, "b": 84}


def embed_people(count: int) -> tuple[Floats, npt.NDArray[np.int64], list[Pixels]]:
    """(N, E) embeddings, the person of each, and the crops. Photos without a face are left out."""
    model = persona.load("persona-s")
    crops, people = [], []
    for person in range(count):
        identity = draw_identity(SEED, person)
        for photo in range(PHOTOS):
            try:
                face = model.only_face(draw_photo(identity, person * 1000 + photo))
            except PersonaError:
                continue
            crops.append(face.crop)
            people.append(person)
    embedding_NE = np.asarray(model.embed(crops), np.float64)
    return embedding_NE, np.asarray(people), crops


def plot(name: str, title: str, alt: str, traces: list[dict[str, Any]], **layout: Any) -> Figure:
    """A figure whose axes are lines, with its legend below."""
    drawn = {"showline": True, "ticks": "outside"}
    for key in ("xaxis", "yaxis"):
        layout[key] = {**layout[key], **drawn}
    return Figure(
        name, title, alt, traces, {"font": {"family": FONT}, "margin": MARGIN_PX, **layout}
    )


def scores_figure(score_P: Floats, same_P: npt.NDArray[np.bool_], threshold: float) -> Figure:
    """Histograms of genuine and impostor pairs with the threshold between them."""
    x, impostor, genuine = histogram(score_P, same_P)
    blue = look(0, "").colour
    traces: list[dict[str, Any]] = [
        {
            **{"type": "scatter", "mode": "lines", "name": name, "x": x, "y": y},
            "line": {"color": colour, "dash": dash, "shape": "hvh", "width": 2},
            **{"fill": "tozeroy", "fillcolor": f"{colour}4D"},
        }
        for name, y, colour, dash in (
            ("impostor pairs", impostor, GREY, "dot"),
            ("genuine pairs", genuine, blue, "solid"),
        )
    ]
    line = {"type": "line", "x0": threshold, "x1": threshold, "yref": "paper", "y0": 0, "y1": 1}
    note = {"x": threshold, "yref": "paper", "y": 1, "yanchor": "bottom", "showarrow": False}
    return plot(
        "scores",
        "Similarities of genuine and impostor pairs",
        f"Two overlapping heaps: impostor pairs around {score_P[~same_P].mean():.2f}, genuine "
        f"pairs around {score_P[same_P].mean():.2f}; the threshold is {threshold:.2f}.",
        traces,
        xaxis=axis("cosine similarity"),
        yaxis=axis("share of the pairs", tickformat=".0%", rangemode="tozero"),
        shapes=[{**line, "themed": True}],
        annotations=[{**note, "text": f"threshold {threshold:.2f} (FAR {FAR:g})"}],
    )


def roc_figure(score_P: Floats, same_P: npt.NDArray[np.bool_]) -> Figure:
    """ROC with the TAR at the FARs that the pairs resolve, and the line of a coin."""
    x, y = roc_traces(score_P, same_P)
    own = look(0, "Persona-S on drawn faces")
    curve = {**curve_trace(own, x, y), "mode": "lines"}
    far_F = np.logspace(np.log10(x[0]), 0, 60)
    coin = {
        **{"type": "scatter", "mode": "lines", "name": "chance"},
        **{"x": far_F.tolist(), "y": far_F.tolist(), "line": {"color": GREY, "dash": "dot"}},
    }
    marked = [(far, tar_at_far(score_P, same_P, far)) for far in (1e-3, 1e-2, 1e-1)]
    rates, tars = zip(*((far, tar) for far, tar in marked if tar is not None), strict=True)
    points = {
        **{"type": "scatter", "mode": "markers", "name": "TAR at a FAR"},
        **{"x": rates, "y": tars, "marker": {"size": 10, "color": look(1, "").colour}},
    }
    notes = [
        {
            **{"x": float(np.log10(far)), "y": tar, "ax": 0, "ay": -30, "arrowhead": 0},
            "text": f"TAR@FAR={far:.0e} = {tar:.3f}".replace("e-0", "e-"),
        }
        for far, tar in zip(rates, tars, strict=True)
    ]
    return plot(
        "roc",
        "ROC",
        "A curve that rises from left to right; marked are "
        + ", ".join(f"TAR {tar:.3f} at FAR {far:g}" for far, tar in zip(rates, tars, strict=True)),
        [curve, coin, points],
        xaxis=axis("false accept rate", type="log", dtick=1, tickformat="~g"),
        yaxis=axis("true accept rate", range=[0, 1.05]),
        annotations=notes,
    )


def softmax(similarity_N: Floats, temperature: float) -> Floats:
    """Shares of the faces at a temperature."""
    power_N = np.exp((similarity_N - similarity_N.max()) / temperature)
    return np.asarray(power_N / power_N.sum())


def temperature_figure(similarity_N: Floats) -> Figure:
    """What a softmax makes of the similarities of one face to others, at each temperature."""
    names = [f"{place + 1}" for place in range(len(similarity_N))]
    traces = []
    for number, temperature in enumerate(TEMPERATURES):
        own = look(number, f"T = {temperature:g}")
        bar = {"color": own.colour, "pattern": {"shape": own.pattern, "solidity": 0.3}}
        y = softmax(similarity_N, temperature).tolist()
        traces.append({"type": "bar", "name": own.name, "x": names, "y": y, "marker": bar})
    first = [softmax(similarity_N, temperature)[0] for temperature in TEMPERATURES]
    return plot(
        "temperature",
        "A softmax at three temperatures",
        f"Share of the most similar of {len(similarity_N)} faces: "
        + ", ".join(f"{s:.2f} at T = {t:g}" for s, t in zip(first, TEMPERATURES, strict=True)),
        traces,
        xaxis=axis(
            "another face, and its cosine similarity",
            ticktext=[
                f"{name}<br>{value:.2f}" for name, value in zip(names, similarity_N, strict=True)
            ],
            tickvals=names,
            type="category",
        ),
        yaxis=axis("share after the softmax", tickformat=".0%"),
        barmode="group",
        margin={**MARGIN_PX, "b": 104},
    )


def mirrored(crop: Image.Image) -> Image.Image:
    """The mirror image."""
    return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def moved(crop: Image.Image) -> Image.Image:
    """Ten per cent cut off at the left and at the top, and scaled up again."""
    cut = crop.width // 10
    return crop.crop((cut, cut, crop.width, crop.height)).resize(crop.size)


def coarse(crop: Image.Image) -> Image.Image:
    """A quarter of the pixels a side."""
    return crop.resize((crop.width // 4, crop.height // 4)).resize(crop.size)


def dark(crop: Image.Image) -> Image.Image:
    """A quarter of the light."""
    return crop.point(lambda value: value / 4)


def blurred(crop: Image.Image) -> Image.Image:
    """A blur of two px."""
    return crop.filter(ImageFilter.GaussianBlur(2))


def compressed(crop: Image.Image) -> Image.Image:
    """JPEG of quality 20."""
    buffer = io.BytesIO()
    crop.save(buffer, "JPEG", quality=20)
    return Image.open(buffer).convert("RGB")


VIEWS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "mirrored": mirrored,
    "JPEG, quality 20": compressed,
    "a quarter of the light": dark,
    "10 % cut off": moved,
    "blurred by 2 px": blurred,
    "28 px a side": coarse,
}


def views_figure(embedding_NE: Floats, crops: list[Pixels]) -> Figure:
    """Similarity of a photo's embedding to that of the same photo in another view."""
    model = persona.load("persona-s")
    found = []
    for name, change in VIEWS.items():
        changed = [np.asarray(change(Image.fromarray(crop))) for crop in crops]
        view_NE = np.asarray(model.embed(changed), np.float64)
        low, middle, high = np.quantile((embedding_NE * view_NE).sum(axis=1), (0.05, 0.5, 0.95))
        found.append((name, float(low), float(middle), float(high)))
        print(f"{name}: median {middle:.3f}, 5 % {low:.3f}, 95 % {high:.3f}")
    found.sort(key=lambda row: row[2])
    names, lows, middles, highs = zip(*found, strict=True)
    spread = {
        **{"type": "data", "symmetric": False, "thickness": 2, "width": 6},
        "array": [high - middle for high, middle in zip(highs, middles, strict=True)],
        "arrayminus": [middle - low for low, middle in zip(lows, middles, strict=True)],
    }
    trace = {
        **{"type": "scatter", "mode": "markers", "name": "median, 5 % to 95 % of the photos"},
        **{"x": middles, "y": names, "error_x": {**spread, "color": look(0, "").colour}},
        "marker": {"size": 11, "color": look(0, "").colour},
    }
    return plot(
        "views",
        "A photo and its views",
        "Cosine between the embeddings of a photo and of its view: "
        + ", ".join(f"{name} {middle:.2f}" for name, _, middle, _ in reversed(found)),
        [trace],
        xaxis=axis("cosine to the embedding of the unchanged photo", range=[min(0.0, *lows), 1.02]),
        yaxis=axis(""),
    )


def main() -> None:
    """Draws all plots."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs" / "img")
    parser.add_argument("--people", type=int, default=60)
    chosen = parser.parse_args()
    embedding_NE, person_N, crops = embed_people(chosen.people)
    first, second = np.triu_indices(len(person_N), 1)
    score_P = (embedding_NE @ embedding_NE.T)[first, second]
    same_P = person_N[first] == person_N[second]
    far, tar, thresholds = roc(score_P, same_P)
    place = int(np.flatnonzero(far <= FAR)[-1])
    print(
        f"{len(person_N)} photos of {chosen.people} people, {same_P.sum()} genuine and "
        f"{(~same_P).sum()} impostor pairs; AUC {roc_auc(score_P, same_P):.4f}, threshold "
        f"{thresholds[place]:.4f}: FAR {far[place]:.4f}, TAR {tar[place]:.4f}"
    )
    for rate in (1e-3, 1e-2, 1e-1):
        print(f"TAR at FAR {rate:g}: {tar[np.flatnonzero(far <= rate)[-1]]:.3f}")
    # The nearest face of each of the most similar other people, and one of the same person.
    similarity_N = embedding_NE[0] @ embedding_NE[1:].T
    nearest = [similarity_N[person_N[1:] == one].max() for one in np.unique(person_N[1:])]
    similar = np.sort(nearest)[::-1][:OTHERS]
    print("softmax:", *(f"T {t:g}: {softmax(similar, t)[0]:.3f}" for t in TEMPERATURES))
    figures = (
        scores_figure(score_P, same_P, float(thresholds[place])),
        roc_figure(score_P, same_P),
        temperature_figure(similar),
        views_figure(embedding_NE, crops),
    )
    with open_browser() as browser:
        for figure in figures:
            svg = draw_figure(browser, render_figure(figure, SIZE_PX), "svg", SIZE_PX).decode()
            path = chosen.out / f"{figure.id}.svg"
            write_atomically(path, tidy(svg).encode())
            print(f"{path}: {path.stat().st_size / 1000:.1f} kB")


def tidy(svg: str) -> str:
    """The drawing on white, so that it can be read on a dark page, with equal ids in each run."""
    found = sorted(set(re.findall(r'id="[a-z]*([0-9a-f]{6})', svg)))
    for number, own in enumerate(found):
        svg = svg.replace(own, f"{number:06d}")
    return re.sub(
        r"(<svg[^>]*>)", r'\1<rect width="100%" height="100%" fill="#fff"/>', svg, count=1
    )


if __name__ == "__main__":
    main()

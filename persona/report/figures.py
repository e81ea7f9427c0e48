"""The page's figures as plotly dicts of traces and layout, without colours of the theme.

The colours are those of Okabe and Ito (2008), which can be told apart with any colour vision. Lines
also differ in dash, and points in shape.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from persona.evaluation.metrics import Bools, Floats, det, roc
from persona.report.history import History
from persona.report.measure import Group, Measured

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
SYMBOLS = ("circle", "square", "diamond", "cross", "x", "triangle-up", "star", "pentagon")
BINS = 40
MIN_RANGE = 0.02
"""Smallest range of cosines that the bins cover."""
MAX_MARKED = 30
"""Most points of a line for which each point is marked."""
POINTS_A_DECADE = 60
"""Most points of a curve in each decade of a logarithmic axis."""


@dataclass(frozen=True)
class Figure:
    """One figure of the page."""

    id: str
    title: str
    alt: str
    """Alternative text for readers who do not see the figure."""
    traces: list[dict[str, Any]]
    layout: dict[str, Any]
    columns: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    """The figure's values as a table under `columns`."""


def _line(number: int) -> dict[str, Any]:
    return {
        "color": PALETTE[number % len(PALETTE)],
        "dash": DASHES[number % len(DASHES)],
        "width": 2.5,
    }


def _axis(title: str, **more: Any) -> dict[str, Any]:
    return {"title": {"text": title}, "automargin": True, **more}


def _rate_axis(title: str) -> dict[str, Any]:
    """A logarithmic axis with labelled decades."""
    minor = {"dtick": "D1", "ticks": "outside", "ticklen": 4}
    return _axis(title, type="log", dtick=1, tickformat="~g", minor=minor)


def thin(far: Floats, *others: Floats) -> tuple[list[float], ...]:
    """Thins a curve for a logarithmic axis: keeps the last point in each 1/60 of a decade.

    Points with FAR 0 are dropped. `others` are further columns of the same points.
    """
    shown = far > 0
    cell = np.round(np.log10(far[shown]) * POINTS_A_DECADE)
    last = np.append(np.flatnonzero(np.diff(cell)), len(cell) - 1)
    return tuple(column[shown][last].tolist() for column in (far, *others))


def roc_traces(scores_P: Floats, same_P: Bools) -> tuple[list[float], list[float]]:
    """FAR and TAR of a thinned ROC curve."""
    far, tar, _ = roc(scores_P, same_P)
    x, y = thin(far, tar)
    return x, y


def histogram(scores_P: Floats, same_P: Bools) -> tuple[list[float], list[float], list[float]]:
    """Histogram of scores: centres of the bins, and share of impostor and of genuine pairs in each.

    The first and the last bin are empty. The bins cover at least `MIN_RANGE`, so that scores that
    hardly differ are not drawn far apart.
    """
    low, high = float(scores_P.min()), float(scores_P.max())
    width = max(high - low, MIN_RANGE) / (BINS - 3)
    edges = low - 1.5 * width + width * np.arange(BINS + 1)
    shares = [
        (np.histogram(scores_P[same_P == kind], edges)[0] / (same_P == kind).sum()).tolist()
        for kind in (False, True)
    ]
    return ((edges[1:] + edges[:-1]) / 2).tolist(), shares[0], shares[1]


def roc_figure(models: list[Measured]) -> Figure:
    """ROC: TAR over FAR, with FAR on a logarithmic axis."""
    traces = []
    for number, model in enumerate(models):
        x, y = roc_traces(model.scores.score, model.scores.same)
        traces.append(_curve(number, model.name, x, y))
    best = max(models, key=lambda model: model.figures.auc)
    return Figure(
        id="roc",
        title="ROC",
        alt=f"True accept rate over false accept rate of {len(models)} models; the largest area "
        f"under the curve, {best.figures.auc:.4f}, is that of {best.name}.",
        traces=traces,
        layout={
            "xaxis": _rate_axis("false accept rate"),
            "yaxis": _axis("true accept rate", rangemode="tozero"),
        },
        columns=["model", "AUC", *(f"TAR at FAR {far}" for far in models[0].figures.tar_at_far)],
        rows=[
            [m.name, f"{m.figures.auc:.4f}", *map(rate, m.figures.tar_at_far.values())]
            for m in models
        ],
    )


def det_figure(models: list[Measured]) -> Figure:
    """DET: FRR over FAR, both on logarithmic axes."""
    traces = []
    for number, model in enumerate(models):
        far, frr, _ = det(model.scores.score, model.scores.same)
        x, y = thin(far[frr > 0], frr[frr > 0]) if ((far > 0) & (frr > 0)).any() else ([], [])
        name = model.name if x else f"{model.name}: no errors"
        traces.append(_curve(number, name, x or [None], y or [None]))
    best = min(models, key=lambda model: model.figures.eer)
    return Figure(
        id="det",
        title="DET",
        alt=f"False reject rate over false accept rate of {len(models)} models, both axes "
        f"logarithmic; the lowest equal error rate, {best.figures.eer:.4f}, is that of "
        f"{best.name}. A model without errors has no line here.",
        traces=traces,
        layout={
            "xaxis": _rate_axis("false accept rate"),
            "yaxis": _rate_axis("false reject rate"),
        },
        columns=["model", "equal error rate"],
        rows=[[m.name, f"{m.figures.eer:.4f}"] for m in models],
    )


def _curve(number: int, name: str, x: list[Any], y: list[Any]) -> dict[str, Any]:
    hover = "%{x:.2g}, %{y:.4f}"
    return {
        "type": "scatter",
        "mode": "lines" if len(x) > 1 or x == [None] else "markers",
        "marker": {"color": PALETTE[number % len(PALETTE)], "size": 9},
        "name": name,
        "x": x,
        "y": y,
        "line": _line(number),
        "hovertemplate": hover,
    }


def cost_figure(models: list[Measured]) -> Figure:
    """Accuracy over CPU time per face (ms, logarithmic axis). Up and left is better."""
    traces = []
    for number, model in enumerate(models):
        trace = _curve(number, model.name, [model.cpu_ms], [model.figures.accuracy])
        trace["marker"] = {**trace["marker"], "symbol": SYMBOLS[number % len(SYMBOLS)], "size": 13}
        traces.append(trace | {"hovertemplate": "%{x:.2f} ms, %{y:.4f}"})
    fastest = min(models, key=lambda model: model.cpu_ms)
    best = max(models, key=lambda model: model.figures.accuracy)
    return Figure(
        id="cost",
        title="Accuracy over CPU time per face",
        alt=f"Accuracy of {len(models)} models over their milliseconds a face on the CPU; the "
        f"most accurate is {best.name} with {best.figures.accuracy:.4f}, the fastest "
        f"{fastest.name} with {fastest.cpu_ms:.2f} ms.",
        traces=traces,
        layout={"xaxis": _axis("CPU ms a face", type="log"), "yaxis": _axis("accuracy")},
        columns=["model", "CPU ms a face", "accuracy"],
        rows=[[m.name, f"{m.cpu_ms:.2f}", f"{m.figures.accuracy:.4f}"] for m in models],
    )


def histogram_figure(number: int, model: Measured) -> Figure:
    """Histograms of the scores of genuine and of impostor pairs, with the threshold."""
    scores, same = model.scores.score, model.scores.same
    x, impostor, genuine = histogram(scores, same)
    # Filled steps instead of hatched bars, each of which would be a 250 kB picture in a PDF.
    traces: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": f"{kind} pairs",
            "x": x,
            "y": y,
            "line": {"color": PALETTE[colour], "dash": dash, "shape": "hvh", "width": 2},
            "fill": "tozeroy",
            "fillcolor": f"{PALETTE[colour]}4D",
            "hovertemplate": "%{x:.2f}: %{y:.1%}",
        }
        for kind, y, colour, dash in (
            ("impostor", impostor, 1, "dot"),
            ("genuine", genuine, 0, "solid"),
        )
    ]
    at = model.threshold
    layout = {
        "xaxis": _axis("cosine similarity"),
        "yaxis": _axis("share of the pairs", tickformat=".0%", rangemode="tozero"),
        "shapes": [
            {"type": "line", "x0": at, "x1": at, "yref": "paper", "y0": 0, "y1": 1, "themed": True}
        ],
        "annotations": [
            {"x": at, "yref": "paper", "y": 1, "yanchor": "bottom", "showarrow": False}
            | {"text": f"threshold {at:.3f}"}
        ],
    }
    return Figure(
        id=f"scores-{number}",
        title=f"Scores: {model.name}",
        alt=f"Cosine similarities of {int(same.sum())} genuine pairs, mean "
        f"{scores[same].mean():.3f}, and of {int((~same).sum())} impostor pairs, mean "
        f"{scores[~same].mean():.3f}; the threshold is {at:.3f}.",
        traces=traces,
        layout=layout,
        columns=["pairs", "count", "mean", "5 %", "95 %"],
        rows=[
            [
                name,
                str(len(part)),
                *(f"{v:.3f}" for v in (part.mean(), *np.quantile(part, (0.05, 0.95)))),
            ]
            for name, part in (("genuine", scores[same]), ("impostor", scores[~same]))
        ],
    )


def group_figures(models: list[Measured]) -> list[Figure]:
    """Accuracy of each group with its 95 % interval, one figure per annotation."""
    figures: list[Figure] = []
    for by in dict.fromkeys(group.by for model in models for group in model.groups):
        traces, rows = [], []
        for number, model in enumerate(models):
            groups = [group for group in model.groups if group.by == by]
            traces.append(_bars(number, model.name, groups))
            rows += [[model.name, g.name, str(g.pairs), _with_interval(g)] for g in groups]
        figures.append(
            Figure(
                id=f"groups-{len(figures)}",
                title=f"Accuracy by {by}",
                alt=f"Verification accuracy of {len(models)} models by {by}, with 95 % intervals; "
                "the table below has every figure.",
                traces=traces,
                layout={
                    "barmode": "group",
                    "xaxis": _axis(by, type="category", showgrid=False),
                    "yaxis": _axis("accuracy", range=[0, 1.02]),
                },
                columns=["model", by, "pairs", "accuracy"],
                rows=rows,
            )
        )
    return figures


def _bars(number: int, name: str, groups: list[Group]) -> dict[str, Any]:
    return {
        "type": "bar",
        "name": name,
        "x": [f"{group.name}<br>{group.pairs:,} pairs" for group in groups],
        "y": [group.accuracy for group in groups],
        "error_y": {
            "type": "data",
            "symmetric": False,
            "array": [g.interval.high - g.accuracy if g.interval else 0 for g in groups],
            "arrayminus": [g.accuracy - g.interval.low if g.interval else 0 for g in groups],
        },
        "marker": {
            "color": PALETTE[number % len(PALETTE)],
            "pattern": {
                "shape": ("", "/", ".", "x", "-", "|")[number % 6],
                "fillmode": "overlay",
                "fgcolor": "#fff",
            },
        },
    }


def _with_interval(group: Group) -> str:
    return with_interval(group.accuracy, group.interval)


def curve_figures(number: int, name: str, history: History) -> list[Figure]:
    """Curves of the loss and of the test accuracy of a run, over optimizer steps."""
    wanted = {
        "Loss": [key for key in history.curves if key == "loss" or key.startswith("loss/")],
        "Test accuracy": [key for key in history.curves if key.endswith("/accuracy")],
    }
    if len(wanted["Loss"]) == 2:  # a single term equals the loss
        wanted["Loss"] = ["loss"]
    figures = []
    for title, keys in wanted.items():
        if not keys:
            continue
        traces, rows = [], []
        for place, key in enumerate(keys):
            x, y = (list(column) for column in zip(*history.curves[key], strict=True))
            trace = _curve(place, key, x, y)
            rows.append([key, f"{y[0]:.4g}", f"{min(y):.4g}", f"{max(y):.4g}", f"{y[-1]:.4g}"])
            mode = "lines+markers" if len(x) <= MAX_MARKED else "lines"
            traces.append(trace | {"mode": mode, "hovertemplate": "step %{x}: %{y:.4g}"})
        figures.append(
            Figure(
                id=f"{title.lower().replace(' ', '-')}-{number}",
                title=f"{title}: {name}",
                alt=f"{title} of run {name} over {len(x)} records; it begins at {rows[0][1]} and "
                f"ends at {rows[0][4]}.",
                traces=traces,
                layout={"xaxis": _axis("optimizer step"), "yaxis": _axis(title.lower())},
                columns=["figure", "first", "lowest", "highest", "last"],
                rows=rows,
            )
        )
    return figures


def map_figure(
    number: int, model: str, places: dict[str, Any], people: dict[int, str]
) -> Figure | None:
    """Map of embeddings, with a colour and shape per person. None if there are too few photos."""
    if not places["x"]:
        return None
    labels = np.array(places["label"])
    traces = []
    for place, label in enumerate(dict.fromkeys(places["label"])):
        which = labels == label
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": people[label],
                "x": np.array(places["x"])[which].tolist(),
                "y": np.array(places["y"])[which].tolist(),
                "marker": {
                    "color": PALETTE[place % len(PALETTE)],
                    "symbol": SYMBOLS[(place // len(PALETTE) + place) % len(SYMBOLS)],
                    "size": 8,
                },
                "hovertemplate": "%{fullData.name}<extra></extra>",
            }
        )
    bare: dict[str, Any] = {
        "showline": False,
        "showticklabels": False,
        "showgrid": False,
        "zeroline": False,
        "title": {"text": ""},
    }
    return Figure(
        id=f"map-{number}",
        title=f"Map of embeddings: {model}",
        alt=f"{len(labels)} photos of {len(traces)} people laid out by t-SNE, so that similar "
        "faces lie close; directions and distances between clusters mean nothing.",
        traces=traces,
        layout={"xaxis": bare, "yaxis": bare},
    )


def rate(value: float | None) -> str:
    """A rate as text. None, for too few pairs, gives `not resolvable`."""
    return "not resolvable" if value is None else f"{value:.4f}"


def with_interval(value: float | None, interval: Iterable[float] | None) -> str:
    """A value as text such as `0.9940`, with its interval `[0.9900, 0.9970]` on a second line."""
    if value is None or interval is None:
        return rate(value)
    low, high = interval
    return f"{value:.4f}\n[{low:.4f}, {high:.4f}]"

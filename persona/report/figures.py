"""Figures as plotly dicts of traces and layout, without the colours of the theme.

Colours, dashes and symbols are those of persona/report/looks.py. The report page and the plots of
`persona learn benchmark` draw these dicts with the same script (theme.js).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from persona.evaluation.metrics import Bools, Floats, det, roc
from persona.figure_names import label_of
from persona.report.history import History
from persona.report.looks import GREY, ModelLook, look
from persona.report.measure import Group, Measured

BINS = 40
MIN_RANGE = 0.02
"""Smallest range of cosines that the bins cover."""
MAX_MARKED = 30
"""Most points of a line for which each point is marked."""
POINTS_A_DECADE = 60
"""Most points of a curve in each decade of a logarithmic axis."""
MAX_RAW = 1000
"""Most records of a training curve that are drawn as they are."""
SMOOTHED = 0.04
"""Share of a training curve's records that one point of its smoothed line is the mean of."""
COIN = 0.5
"""Accuracy of a coin."""


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


def _line(look: ModelLook) -> dict[str, Any]:
    return {"color": look.colour, "dash": look.dash, "width": 2.5}


def axis(title: str, **more: Any) -> dict[str, Any]:
    """An axis with a title, and room for it."""
    return {"title": {"text": title}, "automargin": True, **more}


def _rate_axis(title: str) -> dict[str, Any]:
    """A logarithmic axis with labelled decades."""
    minor = {"dtick": "D1", "ticks": "outside", "ticklen": 4}
    return axis(title, type="log", dtick=1, tickformat="~g", minor=minor)


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
    for model in models:
        x, y = roc_traces(model.scores.score, model.scores.same)
        traces.append(curve_trace(model.look, x, y))
    far = _chance_rates(traces)
    traces.append(chance_trace(far, far))
    best = max(models, key=lambda model: model.figures.auc)
    return Figure(
        id="roc",
        title="ROC",
        alt=f"True accept rate over false accept rate of {len(models)} models; the largest area "
        f"under the curve, {best.figures.auc:.4f}, is that of {best.name}.",
        traces=traces,
        layout={
            "xaxis": _rate_axis("false accept rate"),
            "yaxis": axis("true accept rate", rangemode="tozero"),
        },
        columns=["model", "AUC", *(label_of(f"tar@{far}") for far in models[0].figures.tar_at_far)],
        rows=[
            [m.name, f"{m.figures.auc:.4f}", *map(rate, m.figures.tar_at_far.values())]
            for m in models
        ],
    )


def det_figure(models: list[Measured]) -> Figure:
    """DET: FRR over FAR, both on logarithmic axes."""
    traces = []
    for model in models:
        far, frr, _ = det(model.scores.score, model.scores.same)
        x, y = thin(far[frr > 0], frr[frr > 0]) if ((far > 0) & (frr > 0)).any() else ([], [])
        trace = curve_trace(model.look, x or [None], y or [None])
        traces.append(trace if x else trace | {"name": f"{model.name}: no errors"})
    rates = [rate for rate in _chance_rates(traces) if rate < 1]
    traces.append(chance_trace(rates, [1 - rate for rate in rates]))
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
        columns=["model", "EER"],
        rows=[[m.name, f"{m.figures.eer:.4f}"] for m in models],
    )


def curve_trace(look: ModelLook, x: list[Any], y: list[Any]) -> dict[str, Any]:
    """A line, or a point where there is one value, as its look says."""
    return {
        "type": "scatter",
        "mode": "lines" if len(x) > 1 or x == [None] else "markers",
        "marker": {"color": look.colour, "symbol": look.symbol, "size": 9},
        "name": look.name,
        "x": x,
        "y": y,
        "line": _line(look),
        "hovertemplate": "%{x:.2g}, %{y:.4f}",
    }


def chance_trace(x: Sequence[float], y: Sequence[float]) -> dict[str, Any]:
    """The line of a network that guesses."""
    return {
        "type": "scatter",
        "mode": "lines",
        "name": "chance",
        "x": list(x),
        "y": list(y),
        "line": {"color": GREY, "dash": "dot", "width": 1.5},
        "hoverinfo": "skip",
    }


def _chance_rates(traces: list[dict[str, Any]]) -> list[float]:
    """False accept rates for the line of chance: from the lowest that a model has, up to 1."""
    least = min((x for trace in traces for x in trace["x"] if x), default=0.01)
    decades = -np.log10(least)
    rates: list[float] = np.logspace(-decades, 0, 2 + round(20 * decades)).tolist()
    return rates


def cost_figure(models: list[Measured]) -> Figure:
    """Accuracy over CPU time per face (ms, logarithmic axis). Up and left is better."""
    traces = []
    for model in models:
        trace = curve_trace(model.look, [model.cpu_ms], [model.figures.accuracy])
        trace["marker"] = {**trace["marker"], "size": 13}
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
        layout={"xaxis": axis("CPU ms a face", type="log"), "yaxis": axis("accuracy")},
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
            "line": {"color": colour, "dash": dash, "shape": "hvh", "width": 2},
            "fill": "tozeroy",
            "fillcolor": f"{colour}4D",
            "hovertemplate": "%{x:.2f}: %{y:.1%}",
        }
        for kind, y, colour, dash in (
            ("impostor", impostor, GREY, "dot"),
            ("genuine", genuine, model.look.colour, "solid"),
        )
    ]
    at = model.threshold
    layout = {
        "xaxis": axis("cosine similarity"),
        "yaxis": axis("share of the pairs", tickformat=".0%", rangemode="tozero"),
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
        for model in models:
            groups = [group for group in model.groups if group.by == by]
            traces.append(_bars(model.look, groups))
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
                    "xaxis": axis(by, type="category", showgrid=False),
                    "yaxis": axis("accuracy", range=[0, 1.02]),
                    **_level(COIN, "chance"),
                },
                columns=["model", by, "pairs", "accuracy"],
                rows=rows,
            )
        )
    return figures


def _bars(look: ModelLook, groups: list[Group]) -> dict[str, Any]:
    return {
        "type": "bar",
        "name": look.name,
        "x": [f"{group.name}<br>{group.pairs:,} pairs" for group in groups],
        "y": [group.accuracy for group in groups],
        "error_y": {
            "type": "data",
            "symmetric": False,
            "array": [g.interval.high - g.accuracy if g.interval else 0 for g in groups],
            "arrayminus": [g.accuracy - g.interval.low if g.interval else 0 for g in groups],
        },
        "marker": {
            "color": look.colour,
            "pattern": {"shape": look.pattern, "fillmode": "overlay", "fgcolor": "#fff"},
        },
    }


def _level(value: float, name: str) -> dict[str, Any]:
    """Layout of a dotted line over the whole width, with its name at its right end."""
    across = {"xref": "paper", "x0": 0, "x1": 1, "y0": value, "y1": value}
    return {
        "shapes": [
            {"type": "line", **across, "line": {"color": GREY, "width": 1.5, "dash": "dot"}}
        ],
        "annotations": [
            {"text": name, "xref": "paper", "x": 1, "xanchor": "left", "y": value}
            | {"xshift": 4, "showarrow": False}
        ],
        "margin": {"r": 60, "t": 10},
    }


def _with_interval(group: Group) -> str:
    return with_interval(group.accuracy, group.interval)


def training_figures(runs: Sequence[tuple[ModelLook, History]]) -> list[Figure]:
    """Training curves of all runs over each other: the loss, its terms and the test accuracy.

    A thin line shows the records as they are, a thick one their moving mean. Evaluations are few
    and exact, so they are not smoothed.
    """
    figures: list[Figure] = []
    for key in _curve_keys(runs):
        shown = [(own, history.curves[key]) for own, history in runs if key in history.curves]
        exact = key.endswith("/accuracy")
        traces: list[dict[str, Any]] = []
        rows = []
        for own, curve in shown:
            steps, values = (np.array(column, np.float64) for column in zip(*curve, strict=True))
            ends = (values[0], values.min(), values.max(), values[-1])
            rows.append([own.name, *(f"{value:.4g}" for value in ends)])
            traces += _exact(own, steps, values) if exact else _smoothed(own, steps, values)
        title = _curve_title(key)
        lasts = ", ".join(f"{row[0]} at {row[-1]}" for row in rows)
        figures.append(
            Figure(
                id=f"training-{len(figures)}",
                title=title,
                alt=f"{title} of {len(shown)} runs over optimizer steps. They end: {lasts}.",
                traces=traces,
                layout={
                    "xaxis": axis("optimizer step"),
                    "yaxis": axis("loss" if key.startswith("loss/") else _lower(title)),
                },
                columns=["run", "first", "lowest", "highest", "last"],
                rows=rows,
            )
        )
    return figures


def _curve_keys(runs: Sequence[tuple[ModelLook, History]]) -> list[str]:
    """Figures of the runs' metrics that are drawn: the loss, its terms, then the accuracies."""
    terms: dict[str, None] = {}
    accuracies: dict[str, None] = {}
    for _, history in runs:
        own = [key for key in history.curves if key.startswith("loss/")]
        if len(own) > 1:  # a single term equals the loss
            terms |= dict.fromkeys(own)
        accuracies |= dict.fromkeys(key for key in history.curves if key.endswith("/accuracy"))
    loss = ["loss"] if any("loss" in history.curves for _, history in runs) else []
    return [*loss, *terms, *accuracies]


def _curve_title(key: str) -> str:
    if key.startswith("loss/"):
        return f"Loss, term {key.removeprefix('loss/')}"
    if key == "test/accuracy":
        return "Test accuracy"
    return key[:1].upper() + key[1:]


def _lower(title: str) -> str:
    return title[:1].lower() + title[1:]


def _exact(own: ModelLook, steps_N: Floats, values_N: Floats) -> list[dict[str, Any]]:
    trace = curve_trace(own, steps_N.tolist(), values_N.tolist())
    mode = "lines+markers" if len(steps_N) <= MAX_MARKED else "lines"
    return [trace | {"mode": mode, "hovertemplate": "step %{x}: %{y:.4g}"}]


def _smoothed(own: ModelLook, steps_N: Floats, values_N: Floats) -> list[dict[str, Any]]:
    """The raw line, which the legend does not list, and the smoothed one above it."""
    step, raw = extremes(steps_N, values_N)
    places = np.unique(np.linspace(0, len(values_N) - 1, MAX_RAW // 2).round().astype(int))
    mean = moving_mean(values_N)
    line = curve_trace(own, steps_N[places].tolist(), mean[places].tolist())
    line["hovertemplate"] = "step %{x}: %{y:.4g}"
    faint = {
        "name": f"{own.name}, raw",
        "mode": "lines",
        "line": {"color": own.colour, "width": 1},
        "opacity": 0.35,
        "hoverinfo": "skip",
        "showlegend": False,
        "legendgroup": own.name,
    }
    thin_line = {name: part for name, part in line.items() if name != "hovertemplate"} | faint
    return [thin_line | {"x": step, "y": raw}, line | {"legendgroup": own.name}]


def moving_mean(values_N: Floats) -> Floats:
    """Mean of each value and its neighbours on both sides; near the ends there are fewer.

    The window is centred, so that the line does not lag behind the records, and covers `SMOOTHED`
    of them.
    """
    reach = round(SMOOTHED * len(values_N) / 2)
    sums = np.concatenate([[0.0], np.cumsum(values_N)])
    place = np.arange(len(values_N))
    near = np.minimum(reach, np.minimum(place, len(values_N) - 1 - place))
    mean: Floats = (sums[place + near + 1] - sums[place - near]) / (2 * near + 1)
    return mean


def extremes(steps_N: Floats, values_N: Floats) -> tuple[list[float], list[float]]:
    """At most `MAX_RAW` points of a curve: the lowest and the highest of each stretch of it."""
    if len(values_N) <= MAX_RAW:
        return steps_N.tolist(), values_N.tolist()
    places: list[int] = []
    for part in np.array_split(np.arange(len(values_N)), MAX_RAW // 2):
        own = values_N[part]
        places += sorted({int(part[own.argmin()]), int(part[own.argmax()])})
    return steps_N[places].tolist(), values_N[places].tolist()


def map_figure(
    number: int, model: str, places: dict[str, Any], people: dict[int, str]
) -> Figure | None:
    """Map of embeddings, with a colour and shape per person. None if there are too few photos.

    One legend serves the maps of all models, so a map has none of its own.
    """
    if not places["x"]:
        return None
    labels = np.array(places["label"])
    traces = []
    for own, label in map_looks(places, people):
        which = labels == label
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": own.name,
                "x": np.array(places["x"])[which].tolist(),
                "y": np.array(places["y"])[which].tolist(),
                "marker": {"color": own.colour, "symbol": own.symbol, "size": 9},
                "customdata": np.array(places["key"])[which].tolist(),
                "hoverinfo": "none",  # the page shows the face
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
        layout={"xaxis": bare, "yaxis": bare, "showlegend": False},
    )


def map_looks(places: dict[str, Any], people: dict[int, str]) -> list[tuple[ModelLook, int]]:
    """The look and the label of each person in a map. They are the same in the maps of a set."""
    labels = dict.fromkeys(places["label"])
    return [(look(number, people[label]), label) for number, label in enumerate(labels)]


def rate(value: float | None) -> str:
    """A rate as text. None, for too few pairs, gives `not resolvable`."""
    return "not resolvable" if value is None else f"{value:.4f}"


def with_interval(value: float | None, interval: Iterable[float] | None) -> str:
    """A value as text such as `0.9940`, with its interval `[0.9900, 0.9970]` on a second line."""
    if value is None or interval is None:
        return rate(value)
    low, high = interval
    return f"{value:.4f}\n[{low:.4f}, {high:.4f}]"

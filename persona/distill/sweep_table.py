"""Tables and curves of a sweep: mean and spread over seeds, and paired tests.

Each variant is compared with the first one by the runs of the same seed. The p-value is that of the
exact sign-flip test: if the variants were equal, each difference could as well have the other sign.
With n seeds it cannot be below 2 / 2^n, so that three seeds never show more than 0.25.

The tables of an unfinished sweep have a row for every variant, too. Their column `seeds` says how
many are done, as `1 of 3`.
"""

from __future__ import annotations

import csv
import io
import itertools
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from persona.distill.sweep import Sweep, SweepRunner, check_figures
from persona.errors import PersonaError
from persona.figure_names import label_of
from persona.files import write_atomically
from persona.report.figures import Figure
from persona.report.history import read_metrics
from persona.report.plots import Line, line_plot
from persona.training.tracking import METRICS

MOST_EXACT = 16
"""Most pairs of which all sign flips are counted; more are drawn."""
DRAWN = 20_000
CURVES = ("test/accuracy", "test-ema/accuracy", "loss")
"""Figures of a run's metrics that are drawn: the first that the runs have."""
LATEX = str.maketrans(
    {
        **{sign: f"\\{sign}" for sign in "&%$#_{}"},
        **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    }
)


@dataclass(frozen=True)
class FigureOfRuns:
    """One figure over the seeds of a variant."""

    mean: float
    std: float | None
    """Standard deviation of the sample. None with one seed."""
    difference: float | None = None
    """Mean difference to the first variant, over the seeds of both. None for the first itself."""
    p: float | None = None
    """Two-sided p-value of the sign-flip test. None with fewer than two pairs."""
    pairs: int = 0


@dataclass
class Row:
    """A variant, or a network beside."""

    variant: dict[str, str]
    seeds: list[int]
    """Seeds of the runs that are done. Empty for a network beside."""
    planned: int
    """How many seeds the file asks for. 0 for a network beside."""
    figures: dict[str, FigureOfRuns]
    """Empty as long as nothing of the row is done."""
    seconds: float | None
    runs: list[dict[str, Any]] = field(default_factory=list)
    """Results of its runs, in the order of the seeds."""

    @property
    def name(self) -> str:
        """The values of its axes."""
        return " / ".join(self.variant.values()) or "recipe"


def tabulate(sweep: Sweep, runner: SweepRunner) -> list[Row]:
    """The rows of a sweep: networks beside, then variants in the order of the file.

    A row of which nothing is done has no figures.

    Raises:
        PersonaError: the results lack a figure of the file.
    """
    rows = []
    axes = list(sweep.runs[0].variant)
    for name in sweep.beside:
        result = runner.beside_of(sweep, name)
        figures = {}
        if result is not None:
            check_figures(sweep.measure, result["figures"])
            figures = {
                figure: FigureOfRuns(float(result["figures"][figure]), None)
                for figure in sweep.measure.figures
            }
        rows.append(Row(dict.fromkeys(axes[:1] or ["network"], name), [], 0, figures, None))
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    planned: Counter[tuple[str, ...]] = Counter()
    for run in sweep.runs:
        result = runner.result_of(run)
        variant = tuple(run.variant.values())
        planned[variant] += 1
        own = groups.setdefault(variant, [])
        if result is not None:
            check_figures(sweep.measure, result["figures"])
            # The names of the file, should they have changed since.
            own.append({**result, "variant": run.variant, "seed": run.seed})
    first: Mapping[int, dict[str, Any]] | None = None
    for variant, results in groups.items():
        by_seed = {result["seed"]: result["figures"] for result in results}
        names = sweep.measure.figures if results else ()
        figures = {name: _over_seeds(name, by_seed, first) for name in names}
        times = [result["seconds"] for result in results if result["seconds"] is not None]
        seconds = statistics.mean(times) if times else None
        named = dict(zip(axes, variant, strict=True))
        rows.append(Row(named, list(by_seed), planned[variant], figures, seconds, results))
        if first is None:
            first = by_seed
    return rows


def count_done(rows: Sequence[Row]) -> tuple[int, int]:
    """How many runs and networks beside are done, and how many there are."""
    done = sum(len(row.seeds) if row.planned else bool(row.figures) for row in rows)
    return done, sum(row.planned or 1 for row in rows)


def _over_seeds(
    name: str,
    by_seed: Mapping[int, dict[str, Any]],
    first: Mapping[int, dict[str, Any]] | None,
) -> FigureOfRuns:
    values = [float(figures[name]) for figures in by_seed.values()]
    mean, std = statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None
    shared = [seed for seed in by_seed if first is not None and seed in first]
    if first is None or not shared:
        return FigureOfRuns(mean, std)
    gains = [float(by_seed[seed][name]) - float(first[seed][name]) for seed in shared]
    return FigureOfRuns(mean, std, statistics.mean(gains), sign_flip_p(gains), len(gains))


def sign_flip_p(gains: Sequence[float]) -> float | None:
    """The two-sided p-value of the mean of paired differences; None with fewer than two.

    Up to `MOST_EXACT` pairs all flips are counted. Of more, `DRAWN` are drawn with a fixed seed.
    """
    if len(gains) < 2:
        return None
    gains_N = np.asarray(gains, np.float64)
    if len(gains) <= MOST_EXACT:
        signs = np.array(list(itertools.product((1.0, -1.0), repeat=len(gains))))
    else:
        drawn = np.random.default_rng(0).choice((1.0, -1.0), (DRAWN, len(gains)))
        signs = np.concatenate([np.ones((1, len(gains))), drawn])  # the observed one counts
    sums = np.abs(signs @ gains_N)
    # Sums of the same terms in another sign differ in their last digits.
    return float((sums >= sums[0] - 1e-12 * max(1.0, float(np.abs(gains_N).sum()))).mean())


# --- text ------------------------------------------------------------------------------------


def cells(rows: Sequence[Row], figures: Sequence[str]) -> list[list[str | None]]:
    """The cells of a table for people: name, seeds, and two cells for each figure, then seconds."""
    found = []
    for row in rows:
        line: list[str | None] = [row.name, _seeds_of(row)]
        for name in figures:
            line += _cells_of(row.figures.get(name))
        found.append([*line, None if row.seconds is None else f"{row.seconds:.0f}"])
    return found


def titles(figures: Sequence[str]) -> list[str]:
    """The titles of `cells`."""
    pairs = [[label_of(name), "to the first (p)"] for name in figures]
    return ["runs", "seeds", *itertools.chain(*pairs), "seconds a run"]


def _seeds_of(row: Row) -> str | None:
    done = len(row.seeds)
    return (
        (str(done) if done == row.planned else f"{done} of {row.planned}") if row.planned else None
    )


def _cells_of(figure: FigureOfRuns | None) -> list[str | None]:
    if figure is None:
        return [None, None]
    spread = "" if figure.std is None else f" ± {figure.std:.3f}"
    if figure.difference is None:
        return [f"{figure.mean:.3f}{spread}", None]
    p = "" if figure.p is None else f" ({figure.p:.2g})"
    return [f"{figure.mean:.3f}{spread}", f"{figure.difference:+.3f}{p}"]


def as_markdown(rows: Sequence[Row], figures: Sequence[str]) -> str:
    """A table in Markdown."""
    head = titles(figures)
    lines: list[Sequence[str | None]] = [head, ["---", *["--:"] * (len(head) - 1)]]
    lines += cells(rows, figures)
    shown = ([(cell or "").replace("|", "\\|") for cell in line] for line in lines)
    return "".join(f"| {' | '.join(line)} |\n" for line in shown)


def as_latex(rows: Sequence[Row], figures: Sequence[str]) -> str:
    """A table in LaTeX, of the package booktabs."""

    def line(texts: Sequence[str | None]) -> str:
        return " & ".join((text or "").translate(LATEX) for text in texts) + r" \\"

    head = titles(figures)
    body = [line(row).replace("±", r"$\pm$") for row in cells(rows, figures)]
    return "\n".join(
        [
            rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
            *(r"\toprule", line(head), r"\midrule", *body, r"\bottomrule"),
            r"\end{tabular}" + "\n",
        ]
    )


def as_csv(rows: Sequence[Row], figures: Sequence[str]) -> str:
    """A table of numbers: of each figure mean, std, difference, p and pairs.

    The sweep is unfinished where `seeds` is less than `seeds_planned`.
    """
    axes = list(dict.fromkeys(itertools.chain(*(row.variant for row in rows))))
    fields = ("mean", "std", "difference", "p", "pairs")
    lines: list[list[Any]] = [
        [*axes, "seeds", *(f"{n}_{f}" for n in figures for f in fields), "seconds", "seeds_planned"]
    ]
    for row in rows:
        found = [row.figures.get(name) for name in figures]
        numbers = [None if one is None else getattr(one, of) for one in found for of in fields]
        own = [row.variant.get(axis, "") for axis in axes]
        lines.append([*own, len(row.seeds), *numbers, row.seconds, row.planned])
    return _csv(lines)


def runs_csv(rows: Sequence[Row], figures: Sequence[str]) -> str:
    """A table of all runs: axes, seed, model and figures."""
    axes = list(dict.fromkeys(itertools.chain(*(row.variant for row in rows if row.runs))))
    lines: list[list[Any]] = [[*axes, "seed", "model", *figures, "seconds"]]
    for result in itertools.chain(*(row.runs for row in rows)):
        own = [result["variant"].get(axis, "") for axis in axes]
        measured = [result["figures"][name] for name in figures]
        lines.append([*own, result["seed"], result["model"], *measured, result["seconds"]])
    return _csv(lines)


def _csv(lines: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()


def write_tables(rows: Sequence[Row], figures: Sequence[str], out: Path) -> None:
    """Writes `table.csv`, `table.md`, `table.tex` and `runs.csv` into a folder."""
    for name, text in {
        "table.csv": as_csv(rows, figures),
        "table.md": as_markdown(rows, figures),
        "table.tex": as_latex(rows, figures),
        "runs.csv": runs_csv(rows, figures),
    }.items():
        write_atomically(out / name, text.encode())


# --- curves ------------------------------------------------------------------------------------


def curves_figure(rows: Sequence[Row], sweep: Sweep, runner: SweepRunner) -> Figure:
    """The curves of the variants over each other, each the mean over its seeds.

    Raises:
        PersonaError: no run has recorded a figure to draw.
    """
    folders = {(*run.variant.values(), run.seed): runner.runs_of(run) for run in sweep.runs}
    recorded = {
        row.name: [
            read_metrics(folders[*row.variant.values(), result["seed"]] / result["run"] / METRICS)[
                0
            ]
            for result in row.runs
        ]
        for row in rows
        if row.runs
    }
    for figure in CURVES:
        lines = []
        for name, runs in recorded.items():
            curves = [{r["step"]: r[figure] for r in records if figure in r} for records in runs]
            steps = sorted(set.intersection(*(set(curve) for curve in curves)))
            if steps:
                values = [statistics.mean(curve[step] for curve in curves) for step in steps]
                lines.append(Line(name, steps, values, f"{values[-1]:.3f}"))
        if lines:
            return line_plot("Curves of a sweep", lines, ("optimizer step", figure))
    raise PersonaError("no run of this sweep has recorded a figure to draw")

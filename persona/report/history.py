"""Reads the history of a run: its curves, how far it came, and whether it is still going."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from persona.config import DistillConfig, load_config, to_dict
from persona.errors import PersonaError
from persona.files import is_locked
from persona.training.checkpoint import Progress, load_progress
from persona.training.length import Length
from persona.training.meter import NOT_FINITE
from persona.training.run import ENDED
from persona.training.tracking import METRICS

CONFIG = "config.yaml"


@dataclass(frozen=True)
class History:
    """The history of a run, read from its folder."""

    state: str
    """`finished`, `still going`, `stopped` or `stopped: the loss was not finite`."""
    told: str
    """The state in sentences for a reader."""
    config: dict[str, Any] = field(default_factory=dict)
    """Config of the run."""
    curves: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    """Pairs (optimizer step, value) of each figure, by name."""
    damaged: int = 0
    """Number of metrics lines that could not be read."""


def read_history(folder: Path, *, has_model: bool) -> History:
    """Reads the folder of a run. Damaged lines of its metrics are skipped and counted.

    Args:
        folder: folder of the run.
        has_model: whether the run has saved a model.

    Raises:
        PersonaError: the run's config is missing or damaged.
    """
    config = load_config(folder / CONFIG, {})
    records, damaged = read_metrics(folder / METRICS)
    curves: dict[str, list[tuple[int, float]]] = {}
    for record in records:
        for name, value in record.items():
            if name not in {"step", "epoch"}:
                curves.setdefault(name, []).append((record["step"], value))
    state, told = _state(folder, config, records, has_model)
    return History(state, told, to_dict(config), curves, damaged)


def read_metrics(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Records of a metrics file and the number of damaged lines. Values not finite are left out."""
    records, damaged = [], 0
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):  # no JSON, a very long number, or too deep
                record = None
            step = record.get("step") if isinstance(record, dict) else None
            if isinstance(step, int) and _is_figure(step):
                records.append({k: v for k, v in record.items() if _is_figure(v)})
            else:
                damaged += 1
    return records, damaged


def _is_figure(value: object) -> bool:
    try:
        return isinstance(value, int | float) and math.isfinite(value)
    except OverflowError:  # an integer above all floats
        return False


def _state(
    folder: Path, config: DistillConfig, records: list[dict[str, Any]], has_model: bool
) -> tuple[str, str]:
    """State of a run, and the same as a sentence, found from the files of its folder."""
    reached = _reached(folder, records)
    length = Length(config.epochs, config.steps, config.photos)
    saved = "" if has_model else " It saved no model yet."
    if length.epochs is None:
        place = f"step {reached.step}"
    else:
        place = f"epoch {min(reached.epoch + 1, length.epochs)} of {length.epochs}"
    if (folder / NOT_FINITE).is_file():
        text = f"It stopped in {place}: the loss was not finite.{saved}"
        return "stopped: the loss was not finite", text
    if length.reached(reached):
        return "finished", f"It finished all {length.counted}."
    if (folder / ENDED).is_file():
        whole = "" if length.epochs is not None else f" of {length.counted}"
        return "finished", f"A callback ended it in {place}{whole}."
    if is_locked(folder):
        return "still going", f"It is still going, in {place}; figures may change.{saved}"
    written = [path.stat().st_mtime for path in folder.iterdir() if path.is_file()]
    text = (
        f"It stopped in {place}, {_ago(time.time() - max(written))}: it crashed or was killed. "
        f"--resume {folder.name} takes it up again.{saved}"
    )
    return "stopped", text


def _reached(folder: Path, records: list[dict[str, Any]]) -> Progress:
    """The furthest progress that the metrics or the checkpoint show.

    Without a test set no metrics follow the last epoch, but a checkpoint does.
    """
    found = _checkpoint(folder)
    for record in records:
        found.epoch = max(found.epoch, int(record.get("epoch", 0)))
        found.step = max(found.step, record["step"])
    return found


def _checkpoint(folder: Path) -> Progress:
    try:
        return load_progress(folder)
    except PersonaError:
        return Progress()


def _ago(time_s: float) -> str:
    for size_s, unit in ((86_400, "days"), (3600, "hours"), (60, "minutes")):
        if time_s >= 2 * size_s:
            return f"{time_s / size_s:.0f} {unit} ago"
    return "moments ago"

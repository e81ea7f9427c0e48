"""A model's card as a page for a person: what it is, how good, from what, on which condition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from persona.deploy.model_card import figure_rows
from persona.evaluation.statistics import interval_text
from persona.figure_names import label_of, power
from persona.models.cards import Card

UNKNOWN_LICENCE = "unknown: see the terms of its training data and of its teacher"


@dataclass(frozen=True)
class FactSection:
    """A part of a page: a title and rows of a name and a value. A row without a name is text."""

    title: str
    rows: list[tuple[str, str]]


@dataclass(frozen=True)
class ModelPage:
    """What `persona models show` prints."""

    title: str
    lead: str
    """One sentence that says what the model is."""
    sections: list[FactSection]


def model_page(card: Card, files: Sequence[Path], *, is_shipped: bool) -> ModelPage:
    """Builds the page of a model.

    Args:
        card: its card.
        files: its files, the weights first.
        is_shipped: whether it is shipped with Persona.
    """
    title = f"{card.id} (shipped with Persona)" if is_shipped else card.id
    sections = [
        FactSection("Faces", _crop_rows(card)),
        FactSection(*_figures(card)),
        FactSection(*_thresholds(card)),
        FactSection("Training", _training_rows(card, is_shipped=is_shipped)),
        FactSection("Conditions of use", [("", card.licence or UNKNOWN_LICENCE)]),
        FactSection(*_files(card, files)),
    ]
    return ModelPage(title, _lead(card), sections)


def _lead(card: Card) -> str:
    size = card.student.get("embedding_size")
    origin = "trained without a teacher"
    if card.learned is not None:
        origin = f"which learned new people after {card.learned.get('parent')}"
    elif card.teacher != "none":
        origin = f"distilled from {card.teacher}"
    knows = f" It also names the {card.num_classes:,} people it knows." if card.num_classes else ""
    collapsed = " It has collapsed: it gives all faces one embedding." if card.collapsed else ""
    return (
        f"A face network ({card.architecture}, {card.parameters:,} parameters), {origin}: a face "
        f"in, a {size}-d embedding out, compared with others by the cosine.{knows}{collapsed}"
    )


def _crop_rows(card: Card) -> list[tuple[str, str]]:
    side = card.image_size
    rows = [("input", f"{side} x {side} px RGB, (pixel - 127.5) / 128"), ("crop", card.crops)]
    method = card.aligned_by
    margin = f" --margin {(card.alignment or {}).get('margin')}"
    options = {"mtcnn": margin, "boxes": margin, "landmarks": "", "template": "", "none": ""}
    if method in options:
        method = "landmarks" if method == "template" else method  # of photos that are not cropped
        command = (
            f"persona shard SET --align {method} --image-size {side}{options[card.aligned_by]}"
        )
        rows.append(("to pack a set", command))
    return rows


def _figures(card: Card) -> tuple[str, list[tuple[str, str]]]:
    """Title and rows of the figures. Those of a collapsed model are not shown."""
    if card.collapsed:
        return "Figures", [("", "none: a collapsed model tells nobody apart")]
    rows = figure_rows(card)
    if card.score is not None and label_of(card.chosen_by) not in dict(rows):
        rows.append((label_of(card.chosen_by), f"{card.score:.4f}"))
    if not rows:
        return "Figures", [("", f"not measured: persona evaluate --set SET --model {card.id}")]
    counts = [
        f"{card.scores[name]:,} {name}"
        for name in ("pairs", "triplets", "photos")
        if isinstance(card.scores.get(name), int)
    ]
    of = ", ".join([card.scored_on or card.test_set, *counts[:1]])
    has_intervals = bool(card.scores.get("intervals"))
    return f"Figures on {of}" + (", with 95 % intervals" if has_intervals else ""), rows


def _thresholds(card: Card) -> tuple[str, list[tuple[str, str]]]:
    """Title and rows of the thresholds by false accept rate."""
    thresholds: dict[str, Any] = card.scores.get("threshold_at_far") or {}
    known = {far: value for far, value in thresholds.items() if value is not None}
    if card.collapsed or not known:
        command = f"persona gallery calibrate --set SET --model {card.id}"
        return "Thresholds", [("", f"none: measure one with {command}")]
    intervals = card.scores.get("intervals") or {}
    rows = []
    for far, value in known.items():
        interval = interval_text(intervals.get(f"threshold@{far}"))
        text = f"{value:.4f}" + (f" ({interval})" if interval else "")
        rows.append((f"FAR={power(far)}", text))
    return f"Thresholds of the cosine, from {card.threshold_from}", rows


def _training_rows(card: Card, *, is_shipped: bool) -> list[tuple[str, str]]:
    rows = [("set", card.train_set), ("teacher", card.teacher)]
    learned = card.learned or {}
    steps = card.steps or learned.get("steps")
    length = f"{card.epochs:,} epochs" + (f", {steps:,} steps" if isinstance(steps, int) else "")
    rows.append(("length", length))
    if card.temperature is not None:
        rows.append(("temperature", f"{card.temperature:g}"))
    if card.started_from is not None:
        rows.append(("began from", str(card.started_from.get("model"))))
    if card.learned is not None:
        rows += [(name, str(learned.get(name))) for name in ("parent", "method")]
    if card.score is not None and not is_shipped:  # the set of a shipped model only measures
        rows.append(("chosen by", f"{label_of(card.chosen_by)} on {card.scored_on}"))
    return [*rows, ("run", card.made_in), ("created", f"{card.created}, Persona {card.persona}")]


def _files(card: Card, files: Sequence[Path]) -> tuple[str, list[tuple[str, str]]]:
    """Title and rows of the files and the SHA-256 of the weights."""
    rows = []
    for file in files:
        size = f"{file.stat().st_size:,} bytes" if file.is_file() else "missing"
        rows.append((file.name, size))
    rows.append(("", f"SHA-256 of {card.weights}:"))
    return f"Files in {files[0].parent}", [*rows, ("", card.weights_sha256)]

"""Writes a model's README for the Hugging Face hub from its card: YAML front matter and text.

The format is that of huggingface.co/docs/hub/model-cards.
"""

from __future__ import annotations

from typing import Any

import yaml

from persona.data.mixed import names_in
from persona.evaluation.statistics import interval_text
from persona.figure_names import label_of
from persona.models.cards import Card
from persona.models.hub import PREFIX
from persona.models.public import public_card

FIGURES = ("accuracy", "auc", "eer")
"""Single figures, in the order of a table."""
VERIFICATION = "verification"
CAUTION = """\
Faces are biometric data. In many places, the European Union among them, you need the consent of
the people whose faces you compare, or another legal ground. An embedding is a biometric template:
keep it as you would a fingerprint.

Accuracy differs between groups of people, cameras and ages, and the figures above are of one set.
Measure it on faces like yours before you rely on it, choose the threshold there, and leave
decisions that matter to a person. It is not made for surveillance."""


def model_card(card: Card, licence: str, repository: str) -> str:
    """The README of a model that is published in a repository, OWNER/NAME.

    Its commands call the model NAME, as `persona models pull` does.
    """
    card = public_card(card)
    front = yaml.safe_dump(front_matter(card, licence), sort_keys=False)
    return f"---\n{front}---\n\n{_text(card, repository)}"


def front_matter(card: Card, licence: str) -> dict[str, Any]:
    """The fields that the hub reads."""
    results = [
        {"type": name, "name": label_of(name), "value": card.scores[name]}
        for name in FIGURES
        if card.scores.get(name) is not None
    ]
    front: dict[str, Any] = {
        "license": licence,
        "library_name": "persona",
        "pipeline_tag": "image-feature-extraction",
        "tags": ["face-recognition", "face-verification", "knowledge-distillation", "mobilenet"],
        "datasets": names_in(card.train_set),
        "metrics": [result["type"] for result in results],
    }
    if results and _measure(card) == VERIFICATION:  # the hub compares with others of this task
        task = {"type": "face-verification", "name": VERIFICATION}
        data = {"type": card.test_set, "name": card.test_set}
        entry = {"task": task, "dataset": data, "metrics": results}
        front["model-index"] = [{"name": card.id, "results": [entry]}]
    return front


def _measure(card: Card) -> str:
    """The measure of its figures. `persona learn` measures class accuracy."""
    told: str = card.scores.get("measure", VERIFICATION if card.learned is None else "class")
    return told


def _measured_on(card: Card) -> str:
    if card.learned is not None:
        return f"held-out photos of its own people ({card.scored_on or card.train_set})"
    measure = _measure(card)
    return card.test_set + ("" if measure == VERIFICATION else f", measure {measure}")


def fact_rows(card: Card) -> list[tuple[str, str]]:
    """What a network is and what it learned from, as pairs of title and value."""
    return [
        ("architecture", card.architecture),
        ("parameters", f"{card.parameters:,}"),
        ("input", f"{card.image_size} x {card.image_size} px RGB, (pixel - 127.5) / 128"),
        ("faces", card.crops),
        ("teacher", card.teacher),
        ("trained on", card.train_set),
        ("epochs", str(card.epochs)),
    ]


def figure_rows(card: Card) -> list[tuple[str, str]]:
    """The figures of the card's evaluation with their intervals, as pairs of title and value."""
    intervals = card.scores.get("intervals") or {}
    figures = [(card.scores[name], name) for name in FIGURES if card.scores.get(name) is not None]
    figures += [
        (value, f"tar@{far}")
        for far, value in (card.scores.get("tar_at_far") or {}).items()
        if value is not None
    ]
    rows = []
    for value, name in figures:
        interval = interval_text(intervals.get(name))
        rows.append((label_of(name), f"{value:.4f}" + (f" ({interval})" if interval else "")))
    groups = card.scores.get("groups") or {}
    return rows + [
        (f"accuracy, {card.scores.get('by')} {name}", f"{group['accuracy']:.4f}")
        for name, group in groups.items()
    ]


def table(rows: list[tuple[str, str]]) -> str:
    """A Markdown table of titles and values."""
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def _text(card: Card, repository: str) -> str:
    name = repository.partition("/")[2]
    known = [(n, card.scores[n]) for n in FIGURES if card.scores.get(n) is not None]
    rows = [
        *fact_rows(card),
        *((label_of(name), f"{value:.4f}") for name, value in known),
        *([("measured on", _measured_on(card))] if card.scores else []),
        *([("conditions of use", card.licence)] if card.licence else []),
    ]
    return f"""\
# {card.id}

A small face recognition network, distilled with Persona: a face in, an embedding out, compared with
others by the cosine.

{table(rows)}

## Use

    persona models pull {PREFIX}{repository}
    persona evaluate --set lfw --model {name}
    persona export {name}

## Intended use and limits

{CAUTION}
"""

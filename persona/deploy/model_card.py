"""Writes a model's README for the Hugging Face hub from its card: YAML front matter and text.

The format is that of huggingface.co/docs/hub/model-cards.
"""

from __future__ import annotations

from typing import Any

import yaml

from persona.data.mixed import names_in
from persona.models.cards import Card
from persona.models.public import public_card

FIGURES = {"accuracy": "accuracy", "auc": "ROC AUC", "eer": "EER"}
CAUTION = """\
Faces are biometric data. In many places, the European Union among them, you need the consent of
the people whose faces you compare, or another legal ground. An embedding is a biometric template:
keep it as you would a fingerprint.

Accuracy differs between groups of people, cameras and ages, and the figures above are of one set.
Measure it on faces like yours before you rely on it, choose the threshold there, and leave
decisions that matter to a person. It is not made for surveillance."""


def model_card(card: Card, licence: str) -> str:
    """The README of a published model."""
    card = public_card(card)
    return f"---\n{yaml.safe_dump(_front(card, licence), sort_keys=False)}---\n\n{_text(card)}"


def _front(card: Card, licence: str) -> dict[str, Any]:
    results = [
        {"type": name, "name": title, "value": card.scores[name]}
        for name, title in FIGURES.items()
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
    if results:
        task = {"type": "face-verification", "name": card.scores.get("measure", "verification")}
        data = {"type": card.test_set, "name": card.test_set}
        entry = {"task": task, "dataset": data, "metrics": results}
        front["model-index"] = [{"name": card.id, "results": [entry]}]
    return front


def _text(card: Card) -> str:
    rows = [
        ("architecture", card.architecture),
        ("parameters", f"{card.parameters:,}"),
        ("input", f"{card.image_size} x {card.image_size} px RGB, (pixel - 127.5) / 128"),
        ("faces", card.crops),
        ("teacher", card.teacher),
        ("trained on", card.train_set),
        ("epochs", str(card.epochs)),
        *((title, f"{card.scores[n]:.4f}") for n, title in FIGURES.items() if n in card.scores),
        *([("measured on", card.test_set)] if card.scores else []),
    ]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    return f"""\
# {card.id}

A small face recognition network, distilled with Persona: a face in, an embedding out, compared with
others by the cosine.

| | |
|---|---|
{table}

## Use

    persona models pull hf://OWNER/{card.id}
    persona evaluate --set lfw --student {card.id}
    persona export {card.id}

## Intended use and limits

{CAUTION}
"""

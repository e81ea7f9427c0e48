"""The documents tell of the shipped models what their cards tell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from persona.models.cards import shipped_card

ROOT = Path(__file__).parents[1]


def figures(name: str) -> dict[str, Any]:
    """The figures of a card, as documents spell them."""
    scores = shipped_card(name).scores
    low, high = scores["intervals"]["accuracy"]
    return {
        "accuracy": f"{scores['accuracy']:.4f}",
        "interval": f"{low:.4f} to {high:.4f}",
        "tar": f"{scores['tar_at_far']['0.01']:.3f}",
        "strict": f"{scores['tar_at_far']['0.001']:.3f}",
    }


@pytest.mark.parametrize(
    ("document", "told"),
    [
        ("README.md", "| {accuracy} ({interval}) | {tar} |"),
        ("docs/measurements.md", "| {accuracy} | {interval} | {tar} | {strict} |"),
        ("CHANGELOG.md", "LFW accuracy {accuracy} (95 % {interval})"),
    ],
)
@pytest.mark.parametrize("name", ["persona-l", "persona-s", "persona-xs"])
def test_a_document_has_the_figures_of_a_card(name: str, document: str, told: str) -> None:
    assert told.format(**figures(name)) in (ROOT / document).read_text()


@pytest.mark.parametrize(
    ("document", "told"),
    [
        ("docs/index.md", "{accuracy} (95 % {interval})"),
        ("docs/start.md", "(LFW accuracy {accuracy}, research only)"),
        ("docs/learning.md", "now {accuracy})"),
        ("docs/guides/persona-s.md", "| {accuracy} |"),
        ("docs/experiments.md", "TAR at FAR 1e-2 {tar}"),
    ],
)
def test_a_document_tells_the_accuracy_of_persona_s(document: str, told: str) -> None:
    assert told.format(**figures("persona-s")) in (ROOT / document).read_text()

"""Which model a command takes that names none."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from persona.errors import PersonaError
from persona.files import write_json
from persona.models.cards import CARD, Card, find_model, read_card


def card(models: Path, model_id: str, score: float | None, created: int, **facts: Any) -> Card:
    """A card in the store; a later `created` is newer."""
    known: dict[str, Any] = {
        **{"id": model_id, "architecture": "mobilenet_v3_small", "student": {}, "head": "none"},
        **{"num_classes": 0, "classes_sha256": "", "image_size": 32, "parameters": 1, "bytes": 4},
        **{
            "weights": "weights-0.safetensors",
            "weights_sha256": "0",
            "teacher": "none",
            "temperature": None,
        },
        **{"epochs": 1, "score": score, "train_set": "a", "test_set": "lfw", "config": {}},
        **{"created": f"2026-11-28T00:00:{created:02d}Z", "scores": {}},
    }
    made = Card(**known | facts)
    write_json(models / model_id / CARD, asdict(made))
    return made


def test_the_best_of_the_newest_run_is_taken_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    facts = {"run": "r2", "chosen_by": "auc"}
    card(tmp_path, "r1", 0.99, 1, run="r1")
    card(tmp_path, "r2", 0.95, 2, **facts)
    card(tmp_path, "r2-ema", 0.93, 3, **facts)
    with caplog.at_level("INFO", "persona"):
        assert find_model(None, tmp_path).id == "r2"
    assert caplog.messages == [
        "no model is named: taking the newest, r2, the best of the 2 models of its run, AUC 0.9500 "
        "on lfw; --model persona-s takes the shipped one"
    ]
    card(tmp_path, "r2-ema", 0.96, 3, **facts)
    assert find_model(None, tmp_path).id == "r2-ema"
    card(tmp_path, "r2-ema", 0.95, 3, **facts)
    assert find_model(None, tmp_path).id == "r2"  # no better: the student itself
    card(tmp_path, "r2-ema", 0.99, 3, **facts, scores={"collapsed": True})
    assert find_model(None, tmp_path).id == "r2"
    caplog.clear()
    assert find_model("r1", tmp_path).id == "r1"  # named: nothing to tell
    assert caplog.messages == []


def test_renamed_and_older_models_belong_to_their_run(tmp_path: Path) -> None:
    card(tmp_path, "old-run", 0.9, 1)
    card(tmp_path, "old-run-ema", 0.8, 2)  # as it was before cards named their run
    assert find_model(None, tmp_path).id == "old-run"
    card(tmp_path, "old-run-ema", None, 2)
    assert find_model(None, tmp_path).id == "old-run"
    card(tmp_path, "renamed", 0.7, 3, run="r3")
    card(tmp_path, "r3-ema", 0.6, 4, run="r3")
    assert find_model(None, tmp_path).id == "renamed"


def test_a_card_says_by_what_its_weights_were_chosen(tmp_path: Path) -> None:
    made = card(tmp_path, "m", 0.5, 1, chosen_by="margin")
    assert made.told_score == read_card(tmp_path / "m").told_score == "margin 0.5000"
    flat = card(tmp_path, "m", 0.5, 1, chosen_by="auc", scores={"collapsed": True})
    assert flat.told_score == "AUC 0.5000 (collapsed)"
    assert card(tmp_path, "m", None, 1).told_score is None
    for name, value in (("scores", None), ("score", "high"), ("run", [1])):
        write_json(tmp_path / "m" / CARD, asdict(flat) | {name: value})
        with pytest.raises(PersonaError, match=rf"{name} in .*card\.json: expected"):
            read_card(tmp_path / "m")

"""The page of a model: what it is, how good, from what, on which condition, and its files."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from students import write_student

from persona.deploy.model_page import ModelPage, model_page
from persona.models.cards import Card, files_of

SCORES: dict[str, Any] = {
    "measure": "verification",
    "accuracy": 0.9575,
    "auc": 0.99,
    "eer": 0.04,
    "pairs": 6000,
    "tar_at_far": {"0.001": 0.846, "0.0001": None},
    "threshold_at_far": {"0.001": 0.3125, "0.0001": None},
    "intervals": {"accuracy": [0.95, 0.965], "threshold@0.001": [0.3, 0.33], "auc": None},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Card, Path]:
    models = tmp_path_factory.mktemp("models")
    return write_student(models), models


def parts(page: ModelPage) -> dict[str, dict[str, str]]:
    return {part.title: dict(part.rows) for part in page.sections}


def page_of(model: tuple[Card, Path], **changes: Any) -> ModelPage:
    card, models = model
    changed = dataclasses.replace(card, **changes)
    return model_page(changed, files_of(changed, models), is_shipped=False)


def test_a_measured_model(model: tuple[Card, Path]) -> None:
    card, models = model
    found = page_of(
        model,
        **{"score": 0.99, "scores": SCORES, "chosen_by": "auc", "test_set": "lfw"},
        **{"steps": 12_000, "epochs": 3, "licence": "research alone"},
        started_from={"model": "older", "weights_sha256": "ab"},
        alignment={"method": "mtcnn", "image_size": 32, "margin": 14},
    )
    told = parts(found)
    assert found.title == card.id
    assert found.lead.startswith(f"A face network ({card.architecture}, {card.parameters:,} param")
    assert "distilled from onnx:" in found.lead and f"{card.num_classes:,} people" in found.lead
    assert told["Faces"] == {
        "input": "32 x 32 px RGB, (pixel - 127.5) / 128",
        "crop": "MTCNN's box with 14 px of 32 around it",
        "to pack a set": "persona shard SET --align mtcnn --image-size 32 --margin 14",
    }
    assert told["Figures on lfw, 6,000 pairs, with 95 % intervals"] == {
        "accuracy": "0.9575 (0.9500 to 0.9650)",
        "AUC": "0.9900",
        "EER": "0.0400",
        "TAR@FAR=1e-3": "0.8460",
    }
    assert told["Thresholds of the cosine, from lfw, its test set"] == {
        "FAR=1e-3": "0.3125 (0.3000 to 0.3300)"
    }
    training = told["Training"]
    assert training["length"] == "3 epochs, 12,000 steps"
    assert training["began from"] == "older" and training["chosen by"] == "AUC on lfw"
    assert told["Conditions of use"] == {"": "research alone"}
    files = told[f"Files in {models / card.id}"]
    assert files[card.weights] == f"{card.bytes:,} bytes" and files[""] == card.weights_sha256
    assert next(iter(files)) == card.weights and {"card.json", "classes.txt"} < set(files)


def test_what_is_not_known_is_said(model: tuple[Card, Path]) -> None:
    told = parts(page_of(model, score=None, scores={}, alignment=None, licence=""))
    assert told["Figures"][""].startswith("not measured: persona evaluate --set SET --model ")
    calibrate = f"persona gallery calibrate --set SET --model {model[0].id}"
    assert told["Thresholds"][""] == f"none: measure one with {calibrate}"
    assert told["Conditions of use"][""].startswith("unknown: see the terms")
    assert told["Faces"]["crop"] == "unknown" and "to pack a set" not in told["Faces"]


def test_a_model_of_another_measure_has_its_figure(model: tuple[Card, Path]) -> None:
    scores = {"measure": "nearest", "rank_1": 0.7, "photos": 50}
    facts = {"score": 0.7, "chosen_by": "rank_1", "test_set": "here"}
    told = parts(page_of(model, scores=scores, **facts))
    assert told["Figures on here, 50 photos"] == {"rank-1": "0.7000"}


def test_no_figure_of_a_collapsed_model_is_shown(model: tuple[Card, Path]) -> None:
    found = page_of(model, score=0.99, scores=SCORES | {"collapsed": True}, chosen_by="auc")
    assert found.lead.endswith("It has collapsed: it gives all faces one embedding.")
    told = parts(found)
    assert told["Figures"] == {"": "none: a collapsed model tells nobody apart"}
    assert told["Thresholds"][""].startswith("none: ")
    assert "0.9" not in str([part.rows for part in found.sections if part.title[0] in "FT"][1:3])


def test_one_that_learned_says_from_whom(model: tuple[Card, Path]) -> None:
    learned = {"parent": "small", "method": "icarl", "steps": 40}
    found = page_of(model, learned=learned, steps=0)
    assert "which learned new people after small" in found.lead
    training = parts(found)["Training"]
    assert (training["parent"], training["method"]) == ("small", "icarl")
    assert training["length"].endswith(", 40 steps")


def test_a_shipped_model_was_not_chosen_by_the_set_that_measures_it(
    model: tuple[Card, Path],
) -> None:
    card, models = model
    known = dataclasses.replace(card, score=0.99, scores=SCORES, chosen_by="auc", test_set="lfw")
    own, shipped = (
        parts(model_page(known, files_of(known, models), is_shipped=value))["Training"]
        for value in (False, True)
    )
    assert own["chosen by"] == "AUC on lfw" and "chosen by" not in shipped


def test_weights_that_are_gone_are_missing(model: tuple[Card, Path]) -> None:
    card, models = model
    gone = dataclasses.replace(card, weights="weights-000000000000.safetensors")
    told = parts(model_page(gone, files_of(gone, models), is_shipped=False))
    assert told[f"Files in {models / card.id}"][gone.weights] == "missing"

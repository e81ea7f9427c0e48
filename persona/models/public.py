"""Removes what must not be published of a model or a run: class list, class centres and paths.

Everything that is pushed, exported, reported or tracked goes through `public`. A class list can
hold people's names, each row of the last layer is a biometric template of one identity, and a path
can show a user's name. Only the last part of each path and address is kept. It names the set or the
teacher.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

from persona.models.cards import Card, read_classes
from persona.names import public_name

PRIVATE = frozenset({"cache", "unknown_photos"})
"""Fields of configs and scores that are about this machine or its people only."""


def public(value: Any) -> Any:
    """Returns a nested value without private fields and without paths."""
    if isinstance(value, Mapping):
        return {public(name): public(item) for name, item in value.items() if name not in PRIVATE}
    if isinstance(value, list | tuple):
        return [public(item) for item in value]
    return public_name(str(value)) if isinstance(value, str | PurePath) else value


def public_card(card: Card) -> Card:
    """Returns the card as it may be published.

    Its licence is meant to be, as it is written: it may hold an address.
    """
    return replace(card, **{**public(vars(card)), "licence": card.licence})


def publish_copy(card: Card, models: Path, target: Path, *, with_classes: bool) -> Card:
    """Writes a model as it may be published to `target/<ID>/`.

    Args:
        card: the card of the model.
        models: the store of the model.
        target: another store, for the copy.
        with_classes: whether to keep the last layer and the class list.
    """
    from persona.models.store import load_model, save_model
    from persona.models.student import without_head

    student = load_model(card, models)
    classes = read_classes(card, models) if with_classes else ()
    if not with_classes:
        student = without_head(student)
    shown = public_card(card)
    as_it_is = (
        *("teacher", "temperature", "epochs", "score", "scores", "train_set", "test_set"),
        *("config", "learned", "started_from", "alignment", "chosen_by", "steps", "licence"),
        "classes_of",
    )
    facts: dict[str, Any] = {name: getattr(shown, name) for name in as_it_is}
    return save_model(target, student, model_id=card.id, classes=classes, **facts)

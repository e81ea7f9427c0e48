"""Keeping the model store in order: show, rename, remove, import. No torch.

A model exists while its card does, so a card is written last and removed first: killed at any
moment, a model is whole or not there.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path

from persona.errors import PersonaError
from persona.files import PRIVATE, sha256_file, write_atomically, write_json
from persona.models.cards import (
    CARD,
    CLASSES,
    Card,
    find_model,
    list_models,
    mode_of_weights,
    read_card,
)
from persona.models.weights import FACENETS

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
RESERVED = frozenset({"none", "teachers", "runtimes", *FACENETS})


def check_name(name: str, models: Path) -> None:
    """Raises PersonaError if a model cannot be called so."""
    if name in RESERVED:
        raise PersonaError(
            f"{name} is no name for a model, it means something else: choose another"
        )
    if not NAME.fullmatch(name):
        raise PersonaError(
            f"{name[:80]!r} is no name for a model: choose letters, digits, dots, dashes and "
            "underscores, at most 100"
        )
    if (models / name).exists():
        raise PersonaError(f"there is a {name} below {models} already: choose another name")


def copy_model(card: Card, source: Path, name: str, models: Path) -> Card:
    """Copies a model's files from `source` to `models/<name>/`, under that ID.

    Raises:
        PersonaError: the name is taken, or the files are not those of the card.
    """
    check_name(name, models)
    for file in (card.weights, CLASSES):
        if not (source / file).is_file():
            raise PersonaError(f"{source} has no {file}, which its card names")
    if sha256_file(source / card.weights) != card.weights_sha256:
        raise PersonaError(
            f"{source / card.weights} does not match the checksum in its card: restore it"
        )
    classes = (source / CLASSES).read_bytes()
    weights = (source / card.weights).read_bytes()
    write_atomically(models / name / card.weights, weights, mode_of_weights(classes.splitlines()))
    write_atomically(models / name / CLASSES, classes, PRIVATE)
    copied = replace(card, id=name, scores={**card.scores, "model": name} if card.scores else {})
    write_json(models / name / CARD, asdict(copied))
    return copied


def rename_model(model_id: str, name: str, models: Path) -> Card:
    """Gives a model another ID; cards that name it as their teacher go on naming the old one."""
    card = find_model(model_id, models)
    renamed = copy_model(card, models / model_id, name, models)
    remove_model(model_id, models)
    return renamed


def remove_model(model_id: str, models: Path) -> Card:
    """Removes a model; its run, with its checkpoints, stays."""
    card = find_model(model_id, models)
    (models / model_id / CARD).unlink()
    shutil.rmtree(models / model_id)
    return card


def import_model(folder: Path, name: str | None, models: Path) -> Card:
    """Takes a model in from another store's folder.

    Raises:
        PersonaError: no model there, another version, or files that do not match its card.
    """
    if not (folder / CARD).is_file():
        raise PersonaError(f"{folder} holds no model: expected {CARD}, its weights and {CLASSES}")
    card = read_card(folder)
    return copy_model(card, folder, name or card.id, models)


def students_of(model_id: str, models: Path) -> list[str]:
    """IDs of the models that learned from it."""
    return [card.id for card in list_models(models) if card.teacher == model_id]

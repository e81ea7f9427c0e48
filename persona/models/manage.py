"""Manages the model store: copies, renames, removes and imports models. It does not import torch.

A model is added or removed by one rename of its folder. If a command is killed, the model is
complete or absent, and the same command can be run again.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, replace
from pathlib import Path

from persona.errors import PersonaError, shown
from persona.files import PRIVATE, scratch_folder, sha256_file, write_atomically, write_json
from persona.models.cards import (
    CARD,
    CLASSES,
    NAME,
    WEIGHTS,
    Card,
    check_own_model,
    classes_path,
    decode_classes,
    find_own_model,
    is_class_list,
    list_models,
    mode_of_weights,
    read_card,
)
from persona.models.sources import is_reserved

RESERVED = frozenset({"none", "teachers", "runtimes"})


def check_name(name: str, models: Path) -> None:
    """Checks the name of a new model.

    Raises:
        PersonaError: the name is reserved, malformed or taken.
    """
    if name in RESERVED or is_reserved(name, models):
        raise PersonaError(
            f"{name} is no name for a model, it means something else: choose another"
        )
    if not NAME.fullmatch(name):
        raise PersonaError(
            f"{shown(name)} is no name for a model: choose letters, digits, dots, dashes and "
            "underscores, at most 100"
        )
    _check_free(models / name)


def _check_free(folder: Path) -> None:
    """Checks that a new model's folder does not exist, or holds remains alone.

    Raises:
        PersonaError: the name is taken.
    """
    if folder.exists() and not _is_rest(folder):
        raise PersonaError(
            f"there is a {folder.name} below {folder.parent} already: choose another name"
        )


def _is_rest(folder: Path) -> bool:
    """Whether a folder holds only the remains of an incomplete model, without a card."""
    return folder.is_dir() and all(
        is_class_list(path.name) or WEIGHTS.fullmatch(path.name) or path.name.endswith(".partial")
        for path in folder.iterdir()
    )


def copy_model(card: Card, source: Path, name: str, models: Path) -> Card:
    """Copies a model's files from `source` to `models/<name>/`. Its ID becomes `name`.

    Raises:
        PersonaError: the name cannot be used, or the files do not match the card.
    """
    check_name(name, models)
    listed = classes_path(card, source)
    for file in (source / card.weights, listed):
        if not file.is_file():
            raise PersonaError(f"{source} has no {file.name}, which its card names")
    if sha256_file(source / card.weights) != card.weights_sha256:
        raise PersonaError(
            f"{source / card.weights} does not match the checksum in its card: restore it"
        )
    classes = listed.read_bytes()
    decode_classes(classes, card, listed)
    weights = (source / card.weights).read_bytes()
    with scratch_folder(models, name) as scratch:
        mode = mode_of_weights(classes.splitlines())
        write_atomically(scratch / name / card.weights, weights, mode)
        write_atomically(scratch / name / CLASSES, classes, PRIVATE)
        copied = _named(card, name)
        write_json(scratch / name / CARD, asdict(copied))
        _put(scratch / name, models / name)
    return copied


def _named(card: Card, name: str) -> Card:
    return replace(card, id=name, scores={**card.scores, "model": name} if card.scores else {})


def _put(source: Path, target: Path) -> None:
    """Moves a model's folder to `target`. Remains of an incomplete model there are removed.

    Raises:
        PersonaError: another process has put a model there since the name was checked.
    """
    _check_free(target)
    if target.exists():
        shutil.rmtree(target)
    source.rename(target)


def rename_model(model_id: str, name: str, models: Path) -> Card:
    """Changes the ID of a model. Cards that name it as their teacher keep the old ID.

    Raises:
        PersonaError: there is no such model, or the name cannot be used.
    """
    if not _is_half_renamed(model_id, name, models):
        find_own_model(model_id, models)
        check_name(name, models)
        _put(models / model_id, models / name)
    renamed = _named(find_own_model(name, models), name)
    write_json(models / name / CARD, asdict(renamed))
    return renamed


def _is_half_renamed(model_id: str, name: str, models: Path) -> bool:
    """Whether an earlier rename was killed after the folder was renamed, before its card."""
    there = NAME.fullmatch(name) is not None and (models / name / CARD).is_file()
    return there and not (models / model_id).exists() and read_card(models / name).id == model_id


def remove_model(model_id: str, models: Path) -> None:
    """Removes a model, also one whose card cannot be read. Its run and the run's checkpoint stay.

    Raises:
        PersonaError: there is no such model.
    """
    check_own_model(model_id, models)
    with scratch_folder(models, model_id) as scratch:
        (models / model_id).rename(scratch / model_id)


def import_model(folder: Path, name: str | None, models: Path) -> Card:
    """Imports a model from a folder of another store. Without a `name` it keeps its ID.

    Raises:
        PersonaError: the folder holds no model or one of another version, its files do not match
            its card, or the name cannot be used.
    """
    if not (folder / CARD).is_file():
        raise PersonaError(f"{folder} holds no model: expected {CARD}, its weights and {CLASSES}")
    card = read_card(folder)
    return copy_model(card, folder, name or card.id, models)


def students_of(model_id: str, models: Path) -> list[str]:
    """The IDs of the models whose teacher, or one of whose teachers, is `model_id`."""
    return [card.id for card in list_models(models) if model_id in card.teacher.split(",")]

"""Keeping the model store in order: show, rename, remove, import. No torch.

A model comes and goes by one rename of its folder: killed at any moment, it is whole or not there,
and the same command may be run again.
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
    find_model,
    list_models,
    mode_of_weights,
    read_card,
)
from persona.models.sources import is_reserved

RESERVED = frozenset({"none", "teachers", "runtimes"})


def check_name(name: str, models: Path) -> None:
    """Raises PersonaError if a model cannot be called so."""
    if name in RESERVED or is_reserved(name, models):
        raise PersonaError(
            f"{name} is no name for a model, it means something else: choose another"
        )
    if not NAME.fullmatch(name):
        raise PersonaError(
            f"{shown(name)} is no name for a model: choose letters, digits, dots, dashes and "
            "underscores, at most 100"
        )
    if (models / name).exists() and not _is_rest(models / name):
        raise PersonaError(f"there is a {name} below {models} already: choose another name")


def _is_rest(folder: Path) -> bool:
    """Whether a folder holds but files of a model that is not whole yet, or not any more."""
    return folder.is_dir() and all(
        path.name == CLASSES or WEIGHTS.fullmatch(path.name) or path.name.endswith(".partial")
        for path in folder.iterdir()
    )


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
    """Renames a model's folder to where nothing but the rest of one may lie."""
    if target.exists():
        shutil.rmtree(target)
    source.rename(target)


def rename_model(model_id: str, name: str, models: Path) -> Card:
    """Gives a model another ID; cards that name it as their teacher go on naming the old one."""
    if not _is_half_renamed(model_id, name, models):
        find_model(model_id, models)
        check_name(name, models)
        _put(models / model_id, models / name)
    renamed = _named(find_model(name, models), name)
    write_json(models / name / CARD, asdict(renamed))
    return renamed


def _is_half_renamed(model_id: str, name: str, models: Path) -> bool:
    """Whether a rename was killed after the folder's: its card says the old ID."""
    there = NAME.fullmatch(name) is not None and (models / name / CARD).is_file()
    return there and not (models / model_id).exists() and read_card(models / name).id == model_id


def remove_model(model_id: str, models: Path) -> Card:
    """Removes a model; its run, with its checkpoints, stays."""
    card = find_model(model_id, models)
    with scratch_folder(models, model_id) as scratch:
        (models / model_id).rename(scratch / model_id)
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

"""Whom a network was trained on, so that a test set can leave these people out."""

from __future__ import annotations

from pathlib import Path

from persona.data.shards import open_set
from persona.errors import PersonaError
from persona.models.cards import CARD, find_model, read_classes
from persona.models.weights import FACENETS


def trained_identities(name: str, shards: Path, models: Path) -> tuple[str, ...]:
    """The identities that a model was trained on, or that a packed set has.

    Raises:
        PersonaError: it is neither, or a model whose identities are not known by name.
    """
    if name in FACENETS:
        raise PersonaError(
            f"the release of {name} does not name the people it was trained on: give a packed "
            f"{FACENETS[name].trained_on} set to --exclude-overlap"
        )
    if (models / name / CARD).is_file():
        return read_classes(find_model(name, models), models)
    try:
        return open_set(name, shards)[1].classes
    except PersonaError as error:
        raise PersonaError(f"--exclude-overlap: no model {name!r}, and {error}") from None

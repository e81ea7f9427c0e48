"""Whom a network was trained on, so that a test set can leave these people out."""

from __future__ import annotations

from pathlib import Path

from persona.data.shards import open_set
from persona.errors import PersonaError
from persona.models.sources import known_source


def trained_identities(name: str, shards: Path, models: Path) -> tuple[str, ...]:
    """The identities that a model was trained on, or that a packed set has.

    Raises:
        PersonaError: it is neither, or a model whose identities are not known by name.
    """
    source = known_source(name, models)
    if source is not None:
        return source.identities(name, models)
    try:
        return open_set(name, shards)[1].classes
    except PersonaError as error:
        raise PersonaError(f"--exclude-overlap: no model {name!r}, and {error}") from None

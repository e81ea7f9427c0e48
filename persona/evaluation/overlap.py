"""Identities that a network was trained on, so that a test can leave them out."""

from __future__ import annotations

from pathlib import Path

from persona.data.sets import open_set
from persona.errors import PersonaError
from persona.models.sources import known_source, spell


def trained_identities(name: str, shards: Path, models: Path) -> tuple[str, ...]:
    """Names of the identities that a model was trained on, or that a packed set has.

    Args:
        name: name of a model or of a packed set.
        shards: folder of the packed sets.
        models: folder of the models.

    Raises:
        PersonaError: there is no such model or set, or the names of the model's identities are not
            known.
    """
    network = spell(name)
    source = known_source(network, models)
    if source is not None:
        return source.identities(network, models)
    try:
        return open_set(name, shards).identities
    except PersonaError as error:
        raise PersonaError(f"--exclude-overlap: no model {name!r}, and {error}") from None

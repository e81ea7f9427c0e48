"""Identities that a network was trained on, so that a test can leave them out."""

from __future__ import annotations

import logging
from pathlib import Path

from persona.data.sets import open_set
from persona.data.shards import Manifest
from persona.errors import PersonaError
from persona.evaluation.pairs import names_across
from persona.models.sources import known_source, spell

log = logging.getLogger(__name__)


def trained_identities(
    name: str, shards: Path, models: Path, manifest: Manifest
) -> tuple[str, ...]:
    """Names of the identities that a model was trained on, or that a packed set has.

    Numbers of another dataset than the tested set's are left out, with a note: see `names_across`.

    Args:
        name: name of a model or of a packed set.
        shards: folder of the packed sets.
        models: folder of the models.
        manifest: the manifest of the tested set.

    Raises:
        PersonaError: there is no such model or set, or the names of the model's identities are not
            known.
    """
    network = spell(name)
    source = known_source(network, models)
    if source is not None:
        names, card = source.identities(network, models), source.card(network, models)
        datasets = "" if card is None else card.classes_of
    else:
        try:
            trained = open_set(name, shards)
        except PersonaError as error:
            raise PersonaError(f"--exclude-overlap: no model {name!r}, and {error}") from None
        names, datasets = trained.identities, trained.manifest.dataset
    compared = tuple(filter(None, names_across(names, datasets, manifest)))
    if len(compared) < len(names):
        log.warning(
            "note: %s of %s's identities are numbers, which name nobody of another dataset than "
            "their own: none of them is looked for in set %s",
            *(f"{len(names) - len(compared):,}", name, manifest.name),
        )
    return compared

"""Publishes models on the Hugging Face hub. Downloads are in persona/models/hub.py.

A push puts the public parts of a model (persona/models/public.py) and a README into a temporary
folder and uploads it in one commit, which removes what an earlier push left: weights are named by
their content, so new ones do not replace those before.
"""

from __future__ import annotations

import logging
import tempfile
from dataclasses import replace
from pathlib import Path

from persona.deploy.model_card import model_card
from persona.errors import PersonaError, shown
from persona.files import scratch_folder, write_atomically
from persona.models import hub
from persona.models.cards import Card
from persona.models.public import publish_copy

log = logging.getLogger(__name__)

OTHER_LICENCE = "other"
"""The hub's name of any licence that is not in its list."""
PUSHED = ["weights-*.safetensors", "classes*.txt", "model.onnx"]
"""Patterns of the files that a push may leave in a repository, apart from card and README."""


def push(
    card: Card,
    models: Path,
    repository: str,
    *,
    licence: str,
    private: bool = True,
    with_classes: bool = False,
    onnx: bool = True,
) -> str:
    """Publishes a model and returns the URL of the commit.

    Files of an earlier push are removed. The repository's history still holds them, which a note
    says if their weights are others.

    Args:
        card: card of the model.
        models: the model store.
        repository: repository on the hub, as OWNER/NAME.
        licence: licence named in the README, and in card and ONNX file if the card has none.
            `other` goes with any condition on the card, which stays.
        private: whether a new repository is private.
        with_classes: whether the names of the trained identities are published too.
        onnx: whether an ONNX file is added.

    Raises:
        PersonaError: the card has another licence, there is no login, permission or network, or the
            hub fails.
    """
    if licence not in {OTHER_LICENCE, card.licence or licence}:
        raise PersonaError(
            f"{card.id} may be used under {shown(card.licence)}, by its card, and not under "
            f"{shown(licence)}: push it with --licence {OTHER_LICENCE}, which keeps that condition"
        )
    card = replace(card, licence=card.licence or licence)
    api = hub.open_hub()
    with scratch_folder(Path(tempfile.gettempdir()), "push") as scratch:
        public = publish_copy(card, models, scratch, with_classes=with_classes)
        folder = scratch / card.id
        readme = model_card(public, licence, repository)
        write_atomically(folder / "README.md", readme.encode())
        if onnx:
            from persona.deploy.exports.onnx import Onnx
            from persona.deploy.faces import FACES, drawn_faces

            faces = drawn_faces(public.image_size, FACES)
            Onnx().export(public, scratch, faces, folder / "model.onnx")
        with hub.explained(repository):
            api.create_repo(repository, private=private, exist_ok=True)
            before = api.list_repo_files(repository)
            commit = api.upload_folder(
                repo_id=repository,
                folder_path=folder,
                commit_message=f"persona: {card.id}",
                delete_patterns=PUSHED,
            )
    if any(name.startswith("weights-") and name != public.weights for name in before):
        log.warning(
            "note: the weights of an earlier push are removed from %s, but its history still holds "
            "them: `super_squash_history` of huggingface_hub clears it",
            repository,
        )
    return str(commit.commit_url)

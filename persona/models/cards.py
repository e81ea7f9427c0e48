"""Model cards: what is known of the models in `models/<ID>/`, without torch.

The card names the weights file and its SHA-256 and is replaced last, so a model that is saved again
while training goes on is at every moment the old one or the new one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import secrets
from collections.abc import Sized
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from persona import __version__
from persona.errors import PersonaError, unknown
from persona.files import PRIVATE, read_json

CARD = "card.json"
CLASSES = "classes.txt"
VERSION = 2


@dataclass(frozen=True)
class Card:
    """What is known of a model."""

    id: str
    architecture: str
    student: dict[str, Any]
    """Its StudentConfig."""
    head: str
    """Of the logits: linear, cosine or none."""
    num_classes: int
    classes_sha256: str
    """Of the class list: a set with another list has other labels."""
    image_size: int
    parameters: int
    bytes: int
    """Of the weights file."""
    weights: str
    weights_sha256: str
    teacher: str
    """`none`: trained from hard labels alone."""
    temperature: float | None
    epochs: int
    """After how many epochs these weights were taken."""
    score: float | None
    """The best test accuracy, by which these weights were kept."""
    scores: dict[str, Any]
    """The evaluation behind `score`."""
    train_set: str
    test_set: str
    config: dict[str, Any]
    created: str
    persona: str = __version__
    version: int = field(default=VERSION)
    learned: dict[str, Any] | None = None
    """By `persona learn`: its parent, method, memory and experiences; None: it was distilled."""
    alignment: dict[str, Any] | None = None
    """AlignSpec of the crops it was distilled from; None: an older card, which has none."""

    @property
    def aligned_by(self) -> str:
        """The method of its crops; `unknown` of an older card."""
        return str((self.alignment or {}).get("method", "unknown"))

    @property
    def crops(self) -> str:
        """How a face is to be cut for it, for a person."""
        around = f"with {(self.alignment or {}).get('margin')} px of {self.image_size} around it"
        known = {
            "mtcnn": f"MTCNN's box {around}",
            "boxes": f"the dataset's box {around}",
            "landmarks": "turned to ArcFace's template by five points",
            "none": "photos as they are, resized",
        }
        return known.get(self.aligned_by, "unknown")


def new_id(architecture: str) -> str:
    """A fresh model ID; its run has the same."""
    return f"{architecture}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def classes_digest(classes: tuple[str, ...]) -> str:
    """SHA-256 of a class list in order."""
    return hashlib.sha256("\n".join(classes).encode()).hexdigest()


def read_card(folder: Path) -> Card:
    """Reads and checks a card.

    Raises:
        PersonaError: missing, damaged or of another version.
    """
    value = read_json(folder / CARD, what="model card")
    if not isinstance(value, dict) or value.get("version") != VERSION:
        raise PersonaError(f"{folder / CARD} is no model card of version {VERSION}")
    names = {item.name for item in dataclasses.fields(Card)}
    try:
        card = Card(**{name: item for name, item in value.items() if name in names})
    except TypeError as error:
        raise PersonaError(f"{folder / CARD} is not complete ({error})") from None
    if not isinstance(card.alignment, dict | None):
        raise PersonaError(f"{folder / CARD} is not complete (alignment)")
    if Path(card.weights).name != card.weights:
        raise PersonaError(f"{folder / CARD} names weights outside its folder: {card.weights!r}")
    return card


def list_models(models: Path) -> list[Card]:
    """Every model's card, newest last."""
    cards = [read_card(path.parent) for path in models.glob(f"*/{CARD}")]
    return sorted(cards, key=lambda card: (card.created, card.id))


def find_model(model_id: str | None, models: Path) -> Card:
    """The card of `model_id`; None: the newest.

    Raises:
        PersonaError: unknown, with the known IDs.
    """
    if model_id is None:
        cards = list_models(models)
        if not cards:
            raise PersonaError(
                f"there is no student below {models} yet: "
                "train one with `accelerate launch -m persona.distill`"
            )
        return cards[-1]
    if not (models / model_id / CARD).is_file() or Path(model_id).name != model_id:
        raise unknown("model", model_id, [p.parent.name for p in models.glob(f"*/{CARD}")])
    return read_card(models / model_id)


def encode_classes(classes: tuple[str, ...]) -> bytes:
    """A class list as its file has it: one a line."""
    return "".join(f"{name}\n" for name in classes).encode()


def mode_of_weights(classes: Sized) -> int:
    """The mode of a weights file: each row of a last layer is a template of one of the classes."""
    return PRIVATE if classes else 0o666


def read_classes(card: Card, models: Path) -> tuple[str, ...]:
    """The identities that a model's logits stand for."""
    path = models / card.id / CLASSES
    if not path.is_file():
        raise PersonaError(f"model {card.id} has no class list at {path}")
    # Not splitlines: a name may hold one of the other separators that it knows.
    classes = tuple(path.read_text(encoding="utf-8").split("\n")[:-1])
    if classes_digest(classes) != card.classes_sha256:
        raise PersonaError(f"{path} does not match the checksum in its card: restore it")
    return classes

"""Model cards: what is known of the models in `models/<ID>/`, without torch.

The card names the weights file and its SHA-256 and is replaced last, so a model that is saved again
while training goes on is at every moment the old one or the new one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import secrets
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from persona import __version__
from persona.errors import PersonaError, unknown
from persona.files import read_json

log = logging.getLogger(__name__)

CARD = "card.json"
CLASSES = "classes.txt"
VERSION = 2
EMA = "ema"
"""What is added to a run's ID for the running mean of its student's weights."""


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
    """The best so far on the test set, by which these weights were kept."""
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
    chosen_by: str = "accuracy"
    """The figure of `scores` that `score` is; older cards do not say so."""
    run: str = ""
    """ID of the run that made it, whatever it is called now; empty: an older card."""

    @property
    def made_in(self) -> str:
        """ID of its run; of an older card as its own ID tells."""
        return self.run or self.id.removesuffix(f"-{EMA}")

    @property
    def told_score(self) -> str | None:
        """`auc 0.9160`, and whether it has collapsed; None: it was not measured."""
        if self.score is None:
            return None
        return f"{self.chosen_by} {self.score:.4f}" + (" (collapsed)" if self.collapsed else "")

    @property
    def collapsed(self) -> bool:
        """Whether its evaluation found one embedding for all faces."""
        return bool(self.scores.get("collapsed"))

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
    kinds = {"alignment": dict | None, "scores": dict, "score": float | int | None, "run": str}
    for name, kind in kinds.items():
        if not isinstance(getattr(card, name), kind):
            raise PersonaError(f"{folder / CARD} is not complete ({name})")
    if Path(card.weights).name != card.weights:
        raise PersonaError(f"{folder / CARD} names weights outside its folder: {card.weights!r}")
    return card


def list_models(models: Path) -> list[Card]:
    """Every model's card, newest last."""
    cards = [read_card(path.parent) for path in models.glob(f"*/{CARD}")]
    return sorted(cards, key=lambda card: (card.created, card.id))


def find_model(model_id: str | None, models: Path) -> Card:
    """The card of `model_id`; None: the best student of the newest run, which is then told.

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
        return _best_of_newest(cards)
    if not (models / model_id / CARD).is_file() or Path(model_id).name != model_id:
        raise unknown("model", model_id, [p.parent.name for p in models.glob(f"*/{CARD}")])
    return read_card(models / model_id)


def _best_of_newest(cards: list[Card]) -> Card:
    """Of the run that made the last card the one with the highest score on its test set.

    One that has collapsed, or was not measured, comes last; of equal ones the student itself comes
    before the running mean of its weights.
    """
    run = cards[-1].made_in
    same = sorted((card for card in cards if card.made_in == run), key=lambda card: len(card.id))
    best = max(same, key=_worth)
    score = "" if best.told_score is None else f", {best.told_score} on {best.test_set}"
    others = "" if len(same) == 1 else f", the best of the {len(same)} models of its run"
    log.info("no model is named: taking the newest, %s%s%s", best.id, others, score)
    return best


def _worth(card: Card) -> tuple[bool, float]:
    measured = card.score is not None and not card.collapsed
    return measured, card.score if measured and card.score is not None else 0.0


def encode_classes(classes: tuple[str, ...]) -> bytes:
    """A class list as its file has it: one a line."""
    return "".join(f"{name}\n" for name in classes).encode()


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

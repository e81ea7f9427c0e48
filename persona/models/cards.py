"""Model cards: what is known of the models in `models/<ID>/`, without torch.

The card names the weights file and its SHA-256 and is replaced last, so a model that is saved again
while training goes on is at every moment the old one or the new one. A model is called as its
folder is; a card that says another ID is of a folder that was copied, or renamed and not done yet.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import re
import secrets
from collections.abc import Sized
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from persona import __version__
from persona.config import from_dict
from persona.errors import PersonaError, shown, unknown
from persona.files import PRIVATE, read_json, sweep

log = logging.getLogger(__name__)

CARD = "card.json"
CLASSES = "classes.txt"
VERSION = 2
EMA = "ema"
"""What is added to a run's ID for the running mean of its student's weights."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
"""Of a model and its folder; what is hidden is no model, but on its way to be one."""
WEIGHTS = re.compile(r"weights-[\w-]+\.safetensors")
SIDES_PX = range(16, 1025)
DEEPEST = 12
"""Values inside each other."""


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
    steps: int = 0
    """After how many optimizer steps these weights were taken; 0: an older card, or a learned
    model's, whose steps are in `learned`."""

    @property
    def made_in(self) -> str:
        """ID of its run; of an older card as its own ID tells."""
        return self.run or self.id.removesuffix(f"-{EMA}")

    @property
    def taken_after(self) -> str:
        """When its weights were taken, for a person: `epoch 3`, or `step 500` of a run that is
        counted or evaluated in steps."""
        by_steps = self.config.get("evaluate_steps") or self.config.get("epochs") is None
        return f"step {self.steps}" if self.steps and by_steps else f"epoch {self.epochs}"

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
    def threshold(self) -> tuple[float, float] | None:
        """The cosine at a false accept rate on its test set, and the rate: the lower it resolved.

        None: it was not measured on pairs, or has collapsed.
        """
        found = self.scores.get("threshold_at_far") or {}
        for far in ("0.001", "0.01"):
            value = found.get(far)
            if value is not None and not self.collapsed:
                return float(value), float(far)
        return None

    @property
    def scored_on(self) -> str | None:
        """The set behind `score`: of a learnt model its own, where others have their test set."""
        if self.score is None:
            return None
        return self.test_set if self.learned is None else self.train_set

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
            "template": "turned to ArcFace's template by five points",
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
    known = {name: item for name, item in value.items() if name in names}
    try:
        card = from_dict(Card, known, where=str(folder / CARD))
    except TypeError as error:
        raise PersonaError(f"{folder / CARD} is not complete ({error})") from None
    if not WEIGHTS.fullmatch(card.weights):
        weights = shown(card.weights)
        raise PersonaError(f"{folder / CARD} names weights outside its folder: {weights}")
    wrong = _wrong_of(card)
    if wrong is not None:
        raise PersonaError(f"{folder / CARD} cannot be: its {wrong}")
    return card


def _wrong_of(card: Card) -> str | None:
    """What in a card, perhaps a stranger's, is of no model."""
    return _wrong_size_of(card) or _wrong_values_of(card)


def _wrong_size_of(card: Card) -> str | None:
    if not NAME.fullmatch(card.id):
        return f"id {shown(card.id)} is no name"
    if card.image_size not in SIDES_PX:
        return f"image_size is {shown(card.image_size)}"
    if min(card.num_classes, card.parameters, card.bytes, card.epochs, card.steps) < 0:
        return "counts are negative"
    if card.num_classes > card.bytes:  # each has some numbers in the weights
        return f"num_classes {card.num_classes:,} are too many for {card.bytes:,} bytes"
    return None


def _wrong_values_of(card: Card) -> str | None:
    thresholds = card.scores.get("threshold_at_far")
    figures = [card.scores.get(name) for name in ("accuracy", "auc", "eer")]
    if not isinstance(thresholds, dict | None) or not all(
        isinstance(figure, int | float | None)
        for figure in (*figures, *(thresholds or {}).values())
    ):
        return "scores hold figures that are no numbers"
    nested = (card.student, card.scores, card.config, card.learned, card.alignment)
    if any(_is_deeper(value, DEEPEST) for value in nested):
        return f"values lie over {DEEPEST} deep"
    return None


def _is_deeper(value: Any, limit: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    items = value.values() if isinstance(value, dict) else value
    return limit == 0 or any(_is_deeper(item, limit - 1) for item in items)


def model_ids(models: Path) -> list[str]:
    """The models of a store, by name; nothing of them is read."""
    names = (path.parent.name for path in models.glob(f"*/{CARD}"))
    return sorted(name for name in names if NAME.fullmatch(name))


def stored_card(model_id: str, models: Path) -> Card:
    """The card of a model that is in the store, under the ID of its folder."""
    return dataclasses.replace(read_card(models / model_id), id=model_id)


def list_models(models: Path) -> list[Card]:
    """Every model's card, newest last."""
    sweep(models)
    cards = [stored_card(name, models) for name in model_ids(models)]
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
    if not is_stored(model_id, models):
        raise unknown("model", model_id, model_ids(models))
    return stored_card(model_id, models)


def is_stored(model_id: str, models: Path) -> bool:
    """Whether there is a model of this name."""
    return NAME.fullmatch(model_id) is not None and (models / model_id / CARD).is_file()


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

"""Model cards: the metadata of models. This module does not import torch.

The user's own models lie in `models/<ID>/`. The card names the weights file and its SHA-256, and it
is written last. A model that training saves again is therefore at any moment either the old or the
new one. The name of the folder is the model's ID. The ID in the card differs if the folder was
copied, or while it is being renamed.

The models that are shipped with Persona lie in `ZOO`: the weights in `NAME.safetensors`, a graph
for onnxruntime in `NAME.onnx`, which reads the same weights, and `NAME.md` with the card in its
front matter (persona/deploy/zoo.py writes all three). If a model of the user's own has the same ID,
the user's own is taken.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
import math
import re
import secrets
from collections.abc import Iterator, Sized
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from persona import __version__
from persona.config import from_dict
from persona.errors import PersonaError, shown, unknown
from persona.figure_names import label_of
from persona.files import PRIVATE, read_json, sha256_file, sweep

log = logging.getLogger(__name__)

CARD = "card.json"
CARD_KEY = "persona.card"
"""Key in an exported file's metadata of the student's card, as JSON."""
CLASSES = "classes.txt"
"""File of the class list, unless `OTHER_CLASSES` is there."""
OTHER_CLASSES = re.compile(r"classes-[0-9a-f]{12}\.txt")
"""Pattern of its name, by its digest, if the model replaced one with another list: until the card
is replaced, the list of the old card must stay."""
VERSION = 2
ZOO = Path(__file__).parents[1] / "zoo"
"""Folder of the models that are shipped with Persona."""
DEFAULT = "persona-s"
"""Shipped model that is taken if none is named and the user has none."""
EMA = "ema"
"""Suffix to a run's ID for the model that holds the EMA of the student's weights."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
"""Pattern of a model's ID. Hidden folders, whose models are still being written, do not match."""
WEIGHTS = re.compile(r"weights-[\w-]+\.safetensors")
SIDES_PX = range(16, 1025)
"""Accepted sides of the crops, in px."""
DEEPEST = 12
"""Most levels of nesting in a card's values."""
BY_FAR = ("threshold_at_far", "tar_at_far")
"""The tables of `scores` whose keys are false accept rates."""
LARGEST_COSINE = 1.001
"""Largest size of a cosine threshold. Rounding, and a threshold just above all pairs, exceed 1."""


@dataclass(frozen=True)
class _Alignment:
    """Names and types of the fields of AlignSpec, which this package may not import."""

    method: str = ""
    image_size: int = 0
    margin: int = 0
    min_face: int = 0


@dataclass(frozen=True)
class Card:
    """The metadata of a model."""

    id: str
    architecture: str
    student: dict[str, Any]
    """Plain values of its StudentConfig."""
    head: str
    """Kind of its last layer: linear, cosine or none."""
    num_classes: int
    classes_sha256: str
    """SHA-256 of the class list. A set with another list has other labels."""
    image_size: int
    """Side of its crops in px."""
    parameters: int
    bytes: int
    """Size of the weights file in bytes."""
    weights: str
    """Name of the weights file."""
    weights_sha256: str
    teacher: str
    """Name of its teacher. `none` means that it was trained without a teacher."""
    temperature: float | None
    epochs: int
    """Number of epochs after which these weights were saved."""
    score: float | None
    """The figure on the test set by which these weights were chosen. None means not measured."""
    scores: dict[str, Any]
    """The whole evaluation that `score` is a part of."""
    train_set: str
    test_set: str
    config: dict[str, Any]
    created: str
    persona: str = __version__
    version: int = field(default=VERSION)
    learned: dict[str, Any] | None = None
    """Parent, method, memory and experiences of a model that `persona learn` made. None means that
    the model was distilled."""
    started_from: dict[str, Any] | None = None
    """Name and SHA-256 of the student that a distillation went on from (`--from`). None means that
    it began anew."""
    alignment: dict[str, Any] | None = None
    """AlignSpec of the crops that it was distilled from. Older cards have None."""
    chosen_by: str = "accuracy"
    """Name of the figure in `scores` that `score` holds. Older cards do not have this field."""
    run: str = ""
    """ID of the run that made it, which stays if the model is renamed. Empty in older cards."""
    steps: int = 0
    """Number of optimizer steps after which these weights were saved. 0 in older cards and in those
    of `persona learn`, whose steps are in `learned`."""
    licence: str = ""
    """Condition under which the weights may be used. Empty means that it is unknown."""
    classes_of: str = ""
    """Names of the datasets of its identities, separated by commas. Empty means that they are
    unknown, for example in an older card."""
    graph_sha256: str = ""
    """SHA-256 of the ONNX graph beside the weights of a shipped model. Empty means that it has
    none."""

    @property
    def made_in(self) -> str:
        """ID of the run that made it. For an older card it is derived from the model's ID."""
        return self.run or self.id.removesuffix(f"-{EMA}")

    @property
    def taken_after(self) -> str:
        """When its weights were saved, as text: `epoch 3`, or `step 500`.

        The step is given if the run's length or its evaluations are not counted in epochs.
        """
        by_steps = self.config.get("evaluate_steps") or self.config.get("epochs") is None
        return f"step {self.steps}" if self.steps and by_steps else f"epoch {self.epochs}"

    @property
    def told_score(self) -> str | None:
        """The score as text: `AUC 0.9160` or `AUC 0.5000 (collapsed)`. None means not measured."""
        if self.score is None:
            return None
        return f"{label_of(self.chosen_by)} {self.score:.4f}" + (
            " (collapsed)" if self.collapsed else ""
        )

    @property
    def collapsed(self) -> bool:
        """Whether its evaluation found that all faces have the same embedding."""
        return bool(self.scores.get("collapsed"))

    @property
    def threshold(self) -> tuple[float, float] | None:
        """The cosine threshold and the false accept rate (FAR) that it has on the test set.

        The FAR is 0.001 if the test set can resolve it, otherwise 0.01. None means that the model
        was not measured on pairs, or has collapsed.
        """
        found = self.thresholds
        return next(((found[far], far) for far in (1e-3, 1e-2) if far in found), None)

    @property
    def thresholds(self) -> dict[float, float]:
        """The cosine thresholds by the FAR that each was chosen for, the highest rate first."""
        found = {} if self.collapsed else self.scores.get("threshold_at_far") or {}
        known = {float(far): float(value) for far, value in found.items() if value is not None}
        return dict(sorted(known.items(), reverse=True))

    @property
    def threshold_from(self) -> str:
        """The sets on whose pairs the thresholds were chosen, as text."""
        found = self.scores.get("threshold_from")
        return found if isinstance(found, str) else f"{self.test_set}, its test set"

    @property
    def scored_on(self) -> str | None:
        """The set on which `score` was measured.

        It is the test set of a distilled model, and the train set of one that `persona learn` made.
        None means that the model was not measured.
        """
        if self.score is None:
            return None
        return self.test_set if self.learned is None else self.train_set

    @property
    def aligned_by(self) -> str:
        """The alignment method of its crops, or `unknown` for an older card."""
        return str((self.alignment or {}).get("method", "unknown"))

    @property
    def crops(self) -> str:
        """How a face must be cropped for this model, as text."""
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
    """Creates a new ID, which a run and its model share."""
    return (
        f"{architecture.replace(':', '-')}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    )


def classes_digest(classes: tuple[str, ...]) -> str:
    """SHA-256 of a class list. It depends on the order."""
    return hashlib.sha256("\n".join(classes).encode()).hexdigest()


def read_card(folder: Path) -> Card:
    """Reads and checks a card.

    Raises:
        PersonaError: the card is missing, damaged or of another version.
    """
    path = folder / CARD
    card = _parse(read_json(path, what="model card"), path)
    if not WEIGHTS.fullmatch(card.weights):
        raise PersonaError(f"{path} names weights outside its folder: {shown(card.weights)}")
    return card


def _parse(value: object, path: Path) -> Card:
    """Builds a card from the value that `path` holds, and checks it."""
    if not isinstance(value, dict) or value.get("version") != VERSION:
        raise PersonaError(f"{path} is no model card of version {VERSION}")
    names = {item.name for item in dataclasses.fields(Card)}
    known = {name: item for name, item in value.items() if name in names}
    try:
        card = from_dict(Card, known, where=str(path))
    except TypeError as error:
        raise PersonaError(f"{path} is not complete ({error})") from None
    wrong = _wrong_of(card)
    if wrong is not None:
        raise PersonaError(f"{path} cannot be: its {wrong}")
    if card.alignment is not None:
        from_dict(_Alignment, card.alignment, where=str(path), prefix="alignment.")
    return card


def alignment_in(text: str) -> dict[str, Any] | None:
    """The alignment of the crops, from the card in an exported file's metadata.

    None means that the card does not say it. The file may be untrusted.
    """
    try:
        found = json.loads(text)["alignment"]
        from_dict(_Alignment, found, where=CARD_KEY)
    # A text that is no JSON, is too deep or has other values.
    except (PersonaError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return None
    alignment: dict[str, Any] = found
    return alignment


def shipped_ids() -> list[str]:
    """The IDs of the models that are shipped with Persona, sorted."""
    return sorted(path.stem for path in ZOO.glob("*.safetensors") if NAME.fullmatch(path.stem))


def is_shipped(model_id: str) -> bool:
    """Whether a model with this ID is shipped with Persona."""
    return NAME.fullmatch(model_id) is not None and (ZOO / f"{model_id}.safetensors").is_file()


def shipped_card(model_id: str) -> Card:
    """Reads the card of a model that is shipped with Persona.

    Raises:
        PersonaError: the card is missing, damaged or of another version.
    """
    path = ZOO / f"{model_id}.md"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        raise _no_card(path) from None
    card = _front_card(path, text)
    if (card.id, card.weights, card.num_classes) != (model_id, f"{model_id}.safetensors", 0):
        raise PersonaError(f"{path} is not the card of {model_id}: install Persona again")
    return card


@functools.lru_cache(maxsize=8)
def _front_card(path: Path, text: str) -> Card:
    """The card in a page's front matter. Parsing takes 10 ms, and a command asks several times."""
    import yaml

    try:
        _, front, _ = text.split("---\n", 2)
        value = yaml.safe_load(front)["persona"]
    except (ValueError, KeyError, TypeError, yaml.YAMLError):
        raise _no_card(path) from None
    return _parse(value, path)


def _no_card(path: Path) -> PersonaError:
    return PersonaError(f"{path} is no model card: install Persona again")


def shipped_graph(card: Card) -> Path | None:
    """The ONNX graph of a shipped model, which takes its weights from the file of the weights.

    None means that it has none.

    Raises:
        PersonaError: the graph or the weights are not those that the card names.
    """
    if not card.graph_sha256:
        return None
    path = ZOO / f"{card.id}.onnx"
    for file, wanted in ((path, card.graph_sha256), (ZOO / card.weights, card.weights_sha256)):
        if not file.is_file() or sha256_file(file) != wanted:
            raise PersonaError(
                f"{file} is missing or does not match the checksum in its card: install Persona "
                "again"
            )
    return path


def weights_path(card: Card, models: Path) -> Path:
    """The file of a model's weights, in the store or among the models shipped with Persona."""
    if is_of_zoo(card.id, models):
        return ZOO / card.weights
    return models / card.id / card.weights


def files_of(card: Card, models: Path) -> list[Path]:
    """The files of a model in the store or among the models shipped with Persona.

    The weights come first, whether they are there or not.
    """
    weights = weights_path(card, models)
    if is_of_zoo(card.id, models):
        others = [ZOO / f"{card.id}{suffix}" for suffix in (".onnx", ".md")]
        return [weights, *(path for path in others if path.is_file())]
    return files_in(weights)


def files_in(weights: Path) -> list[Path]:
    """A model's weights and the other files of its folder, sorted by name."""
    others = sorted(path for path in weights.parent.iterdir() if path.is_file())
    return [weights, *(path for path in others if path != weights)]


def is_of_zoo(model_id: str, models: Path) -> bool:
    """Whether an ID means a model shipped with Persona: no model in the store has it."""
    return not is_stored(model_id, models) and is_shipped(model_id)


def _wrong_of(card: Card) -> str | None:
    """What is impossible in a card, as text; None if nothing is. The card may be untrusted."""
    return _wrong_size_of(card) or _wrong_values_of(card)


def _wrong_size_of(card: Card) -> str | None:
    if not NAME.fullmatch(card.id):
        return f"id {shown(card.id)} is no name"
    if card.image_size not in SIDES_PX:
        return f"image_size is {shown(card.image_size)}"
    if min(card.num_classes, card.parameters, card.bytes, card.epochs, card.steps) < 0:
        return "counts are negative"
    if card.num_classes > card.bytes:  # each class has weights in the file
        return f"num_classes {card.num_classes:,} are too many for {card.bytes:,} bytes"
    return None


def _wrong_values_of(card: Card) -> str | None:
    if not _hold_numbers(card.scores):
        return "scores hold figures that are no numbers"
    values = list(vars(card).values())
    if any(_is_deeper(value, DEEPEST) for value in values):
        return f"values lie over {DEEPEST} deep"
    # NaN and infinity are no JSON, and larger integers cannot be shown or compared as floats.
    if not all(map(_is_finite, _numbers_in(values))):
        return "values hold a number that is not finite, or over 1e308"
    rates = [rate for name in BY_FAR for rate in card.scores.get(name) or {}]
    if not all(map(_is_rate, rates)):
        return "scores hold a FAR that is no rate above 0 and up to 1"
    thresholds = (card.scores.get("threshold_at_far") or {}).values()
    if any(value is not None and abs(value) > LARGEST_COSINE for value in thresholds):
        return "thresholds are no cosines"
    return None


def _hold_numbers(scores: dict[str, Any]) -> bool:
    """Whether the figures that are shown of an evaluation are numbers."""
    tables = [scores.get(name) or {} for name in (*BY_FAR, "intervals")]
    groups = scores.get("groups") or {}
    if not all(isinstance(table, dict) for table in (*tables, groups)):
        return False
    if not all(isinstance(group, dict) for group in groups.values()):
        return False
    *by_rate, intervals = tables
    ends = [interval for interval in intervals.values() if interval is not None]
    if not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in ends):
        return False
    numbers = [scores.get(name) for name in ("accuracy", "auc", "eer")]
    numbers += [value for table in by_rate for value in table.values()]
    known = [end for pair in ends for end in pair]
    known += [group.get("accuracy") for group in groups.values()]
    return all(isinstance(number, int | float | None) for number in numbers) and all(
        isinstance(number, int | float) for number in known
    )


def _is_rate(text: Any) -> bool:
    try:
        return 0 < float(text) <= 1
    except (TypeError, ValueError, OverflowError):
        return False


def _is_deeper(value: Any, limit: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    items = value.values() if isinstance(value, dict) else value
    return limit == 0 or any(_is_deeper(item, limit - 1) for item in items)


def _numbers_in(value: Any) -> Iterator[float]:
    """All numbers in a nested value."""
    if isinstance(value, int | float):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _numbers_in(item)


def _is_finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # an integer over the largest float
        return False


def model_ids(models: Path) -> list[str]:
    """The IDs of the models in a store, sorted. No card is read."""
    names = (path.parent.name for path in models.glob(f"*/{CARD}"))
    return sorted(name for name in names if NAME.fullmatch(name))


def stored_card(model_id: str, models: Path) -> Card:
    """Reads the card of a model in the store. Its `id` is the name of the folder.

    Raises:
        PersonaError: the card is missing, damaged or of another version.
    """
    return dataclasses.replace(read_card(models / model_id), id=model_id)


def list_models(models: Path) -> list[Card]:
    """The cards of all models in a store, the newest last.

    A model whose card cannot be read is left out with a warning: it must not be in the way of the
    others.
    """
    sweep(models)
    cards = []
    for name in model_ids(models):
        try:
            cards.append(stored_card(name, models))
        except (PersonaError, OSError) as error:
            _warn_of(name, str(error))
    return sorted(cards, key=lambda card: (card.created, card.id))


@functools.cache
def _warn_of(model_id: str, reason: str) -> None:
    """Warns of a model that is left out, once a process: a training lists the models often."""
    log.warning(
        "warning: model %s is left out (%s): restore its card, or remove the model with `persona "
        "models remove %s`",
        *(model_id, reason, model_id),
    )


def list_shipped(models: Path) -> list[Card]:
    """The cards of the shipped models, without those whose ID a model in the store has."""
    return [shipped_card(name) for name in shipped_ids() if not is_stored(name, models)]


def find_model(model_id: str | None, models: Path) -> Card:
    """Finds the card of `model_id`, in the store or among the models shipped with Persona.

    None means the best student of the newest run, or `DEFAULT` if the store is empty. The choice is
    logged.

    Raises:
        PersonaError: the model is unknown (the message names known IDs), or there is none yet.
    """
    if model_id is None:
        cards = list_models(models)
        if cards:
            return _best_of_newest(cards)
        if not is_shipped(DEFAULT):
            raise PersonaError(
                f"there is no student below {models} yet: "
                "train one with `accelerate launch -m persona.distill`"
            )
        log.info(
            "no model is named, and there is none below %s: taking %s, which is shipped with "
            "Persona",
            *(models, DEFAULT),
        )
        return shipped_card(DEFAULT)
    if is_stored(model_id, models):
        return stored_card(model_id, models)
    if is_shipped(model_id):
        return shipped_card(model_id)
    raise unknown("model", model_id, [*model_ids(models), *shipped_ids()])


def find_own_model(model_id: str, models: Path) -> Card:
    """Finds the card of a model in the user's store, to change it.

    Raises:
        PersonaError: the model is unknown, or it is shipped with Persona.
    """
    check_own_model(model_id, models)
    return stored_card(model_id, models)


def check_own_model(model_id: str, models: Path) -> None:
    """Checks that a model is in the user's store. Its card is not read.

    Raises:
        PersonaError: the model is unknown, or it is shipped with Persona.
    """
    if is_of_zoo(model_id, models):
        raise PersonaError(
            f"{model_id} is shipped with Persona and stays as it is: name a model below {models}"
        )
    if not is_stored(model_id, models):
        raise unknown("model", model_id, [*model_ids(models), *shipped_ids()])


def is_stored(model_id: str, models: Path) -> bool:
    """Whether the store has a model with this ID."""
    return NAME.fullmatch(model_id) is not None and (models / model_id / CARD).is_file()


def _best_of_newest(cards: list[Card]) -> Card:
    """Chooses among the models of the newest run the one with the highest score on its test set.

    A model that has collapsed or was not measured ranks last. If the scores are equal, the student
    itself is preferred to the EMA of its weights.
    """
    run = cards[-1].made_in
    same = sorted((card for card in cards if card.made_in == run), key=lambda card: len(card.id))
    best = max(same, key=_worth)
    score = "" if best.told_score is None else f", {best.told_score} on {best.scored_on}"
    others = "" if len(same) == 1 else f", the best of the {len(same)} models of its run"
    shipped = f"; --model {DEFAULT} takes the shipped one" if is_shipped(DEFAULT) else ""
    log.info("no model is named: taking the newest, %s%s%s%s", best.id, others, score, shipped)
    return best


def _worth(card: Card) -> tuple[bool, float]:
    measured = card.score is not None and not card.collapsed
    return measured, card.score if measured and card.score is not None else 0.0


def encode_classes(classes: tuple[str, ...]) -> bytes:
    """Encodes a class list as the content of its file: one name per line."""
    return "".join(f"{name}\n" for name in classes).encode()


def mode_of_weights(classes: Sized) -> int:
    """The file mode of a weights file. It is private if the model has classes.

    Each row of the last layer is then a biometric template of one identity.
    """
    return PRIVATE if classes else 0o666


def other_classes(digest: str) -> str:
    """Name of the file of a class list of that digest, beside the list of another card."""
    return f"classes-{digest[:12]}.txt"


def is_class_list(name: str) -> bool:
    """Whether a file of a model's folder holds its class list, by its name."""
    return name == CLASSES or OTHER_CLASSES.fullmatch(name) is not None


def classes_path(card: Card, folder: Path) -> Path:
    """The file of the class list of a model in `folder`, which may not be there."""
    name = other_classes(card.classes_sha256)
    return folder / (name if is_class_list(name) and (folder / name).is_file() else CLASSES)


def read_classes(card: Card, models: Path) -> tuple[str, ...]:
    """Reads the identities of a model's logits, in order. A shipped model has none.

    Raises:
        PersonaError: the class list is missing or does not match the card.
    """
    if is_of_zoo(card.id, models):
        return ()
    path = classes_path(card, models / card.id)
    if not path.is_file():
        raise PersonaError(f"model {card.id} has no class list at {path}")
    return decode_classes(path.read_bytes(), card, path)


def decode_classes(data: bytes, card: Card, path: Path) -> tuple[str, ...]:
    """Decodes the content of the class list at `path`, and compares it with the card.

    Raises:
        PersonaError: the class list does not match the card.
    """
    other = PersonaError(f"{path} does not match the checksum in its card: restore it")
    try:
        # splitlines would also split at other separators, which a name may hold.
        classes = tuple(data.decode().split("\n")[:-1])
    except ValueError:  # no UTF-8, so it is not what was written
        raise other from None
    if classes_digest(classes) != card.classes_sha256:
        raise other
    return classes

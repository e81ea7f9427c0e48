"""The model store: students to and from `models/<ID>/`, and any network by its name."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from persona.errors import PersonaError, unknown
from persona.files import sha256_file, write_atomically, write_json
from persona.models.cards import CARD, CLASSES, Card, classes_digest, read_card, read_classes
from persona.models.output import FaceNetwork
from persona.models.student import ARCHITECTURES, Student, count_parameters
from persona.models.teacher import load_facenet
from persona.models.weights import FACENETS


def save_model(
    models: Path,
    student: Student,
    *,
    model_id: str,
    classes: tuple[str, ...],
    **facts: Any,
) -> Card:
    """Saves a student; `facts` are the remaining fields of its card."""
    folder = models / model_id
    state = {
        name: tensor.detach().cpu().contiguous() for name, tensor in student.state_dict().items()
    }
    data = safetensors.torch.save(state)
    digest = hashlib.sha256(data).hexdigest()
    weights = f"weights-{digest[:12]}.safetensors"
    write_atomically(folder / weights, data)
    write_atomically(folder / CLASSES, ("\n".join(classes) + "\n").encode())
    card = Card(
        id=model_id,
        architecture=student.architecture,
        num_classes=student.num_classes,
        classes_sha256=classes_digest(classes),
        parameters=count_parameters(student),
        bytes=len(data),
        weights=weights,
        weights_sha256=digest,
        created=f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        **facts,
    )
    write_json(folder / CARD, asdict(card))
    for other in folder.glob("weights-*.safetensors"):
        if other.name != weights:
            other.unlink()
    return card


def load_model(card: Card, models: Path) -> Student:
    """The student of a card.

    Raises:
        PersonaError: the weights are missing, damaged or of another architecture.
    """
    path = models / card.id / card.weights
    if card.architecture not in ARCHITECTURES:
        raise unknown("architecture", card.architecture, ARCHITECTURES, where=str(path.parent))
    if not path.is_file():
        raise PersonaError(f"model {card.id} has no weights at {path}")
    if sha256_file(path) != card.weights_sha256:
        raise PersonaError(f"{path} does not match the checksum in its card: restore it")
    student = Student(card.architecture, card.num_classes)
    try:
        student.load_state_dict(safetensors.torch.load_file(path))
    except (RuntimeError, safetensors.SafetensorError):
        raise PersonaError(f"{path} does not hold a {card.architecture}") from None
    return student


@dataclass(frozen=True)
class NamedNetwork:
    """A network, what it is called, and which class list its logits follow."""

    name: str
    network: FaceNetwork
    trained_on: str
    """What its classes come from, for messages."""
    classes: tuple[str, ...] | None
    """What its logits stand for; None: known by number and dataset alone (FaceNet's release)."""
    image_size: int | None
    """Of its training crops, px; None: any."""


def load_network(name: str, models: Path) -> NamedNetwork:
    """A teacher or student by name: a FaceNet release, a model ID, or an untrained architecture."""
    if name in FACENETS:
        release = FACENETS[name]
        network = load_facenet(name, models)
        return NamedNetwork(name, network, release.trained_on, None, 160)
    if name in ARCHITECTURES:
        torch.manual_seed(0)
        return NamedNetwork(name, Student(name, num_classes=1), "nothing", (), None)
    known = [*FACENETS, *ARCHITECTURES, *(p.parent.name for p in models.glob(f"*/{CARD}"))]
    if not (models / name / CARD).is_file() or Path(name).name != name:
        raise unknown("model", name, known, where=str(models))
    card = read_card(models / name)
    student, classes = load_model(card, models), read_classes(card, models)
    return NamedNetwork(name, student, card.train_set, classes, card.image_size)

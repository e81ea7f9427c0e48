"""The model store: saves students to `models/<ID>/` and loads them, and those shipped with Persona.

sources.py opens any network by its name.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from persona.config import StudentConfig, from_dict, to_dict
from persona.errors import PersonaError, unknown
from persona.files import PRIVATE, sha256_file, write_atomically, write_json
from persona.models.backbones import BACKBONES, make_backbone
from persona.models.cards import (
    CARD,
    CLASSES,
    Card,
    classes_digest,
    encode_classes,
    is_class_list,
    mode_of_weights,
    other_classes,
    weights_path,
)
from persona.models.output import EMBEDDING_SIZE, ClassifierHead
from persona.models.student import Student, count_parameters

SMALLEST = 2
"""Bytes of a stored number: weights are float32, those of the zoo float16."""


def save_model(
    models: Path,
    student: Student,
    *,
    model_id: str,
    classes: tuple[str, ...],
    **facts: Any,
) -> Card:
    """Saves a student and returns its card.

    Args:
        models: the folder of the store.
        student: the student.
        model_id: its ID. A model with this ID is replaced.
        classes: identities of its logits, in order.
        facts: the remaining fields of its card.
    """
    folder = models / model_id
    state = {
        name: tensor.detach().cpu().contiguous() for name, tensor in student.state_dict().items()
    }
    data = safetensors.torch.save(state)
    digest = hashlib.sha256(data).hexdigest()
    weights = f"weights-{digest[:12]}.safetensors"
    write_atomically(folder / weights, data, mode_of_weights(classes))
    names, listed = encode_classes(classes), CLASSES
    if (folder / CLASSES).is_file() and (folder / CLASSES).read_bytes() != names:
        listed = other_classes(classes_digest(classes))  # the old card still needs its own
    write_atomically(folder / listed, names, PRIVATE)
    card = Card(
        id=model_id,
        architecture=student.config.architecture,
        student=to_dict(student.config),
        head=student.logits.kind,
        num_classes=student.num_classes,
        classes_sha256=classes_digest(classes),
        image_size=student.image_size,
        parameters=count_parameters(student),
        bytes=len(data),
        weights=weights,
        weights_sha256=digest,
        created=f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        **facts,
    )
    write_json(folder / CARD, asdict(card))
    lists = (path for path in folder.glob("classes*.txt") if is_class_list(path.name))
    for other in (*folder.glob("weights-*.safetensors"), *lists):
        if other.name not in {weights, listed}:
            other.unlink()
    return card


def load_model(card: Card, models: Path) -> Student:
    """Loads the student of a card.

    Raises:
        PersonaError: the architecture is unknown, or the weights are missing, damaged or of another
            architecture.
    """
    path = weights_path(card, models)
    if card.architecture not in BACKBONES:
        raise unknown("architecture", card.architecture, BACKBONES, where=str(path.parent))
    if not path.is_file():
        raise PersonaError(f"model {card.id} has no weights at {path}")
    if sha256_file(path) != card.weights_sha256:
        raise PersonaError(f"{path} does not match the checksum in its card: restore it")
    config = from_dict(StudentConfig, card.student, where=str(path.parent / CARD))
    _check_size(card, config, path)
    try:
        student = Student(config, card.num_classes, head=card.head, image_size=card.image_size)
        student.load_state_dict(safetensors.torch.load_file(path))
    except (RuntimeError, AssertionError, safetensors.SafetensorError):
        raise PersonaError(f"{path} does not hold a {card.architecture}") from None
    return student


def _check_size(card: Card, config: StudentConfig, path: Path) -> None:
    """Checks, before memory is allocated, that the file can hold the classes and the backbone.

    Raises:
        PersonaError: the file is too small.
    """
    size = path.stat().st_size
    numbers = card.num_classes * (config.embedding_size or EMBEDDING_SIZE)
    if numbers * 4 > size:
        raise PersonaError(
            f"{path} cannot hold a last layer of {card.num_classes:,} classes, which its card names"
        )
    try:
        with torch.device("meta"):  # a family of backbones has networks of gigabytes
            backbone, _ = make_backbone(card.architecture, config.backbone, card.image_size).build()
    except Exception:  # a few networks cannot be built without memory
        return
    if count_parameters(backbone) * SMALLEST > size:
        raise PersonaError(f"{path} does not hold a {card.architecture}")


def save_head(path: Path, head: ClassifierHead) -> None:
    """Saves a last layer to a file of its own."""
    write_atomically(path, safetensors.torch.save(dict(head.state_dict())), PRIVATE)


def load_head(path: Path, *, embedding_size: int, num_classes: int, kind: str) -> ClassifierHead:
    """Loads a last layer that `save_head` saved.

    Raises:
        PersonaError: the file is missing, damaged or of another shape.
    """
    try:
        if embedding_size * num_classes * 4 > path.stat().st_size:  # before the head is allocated
            raise RuntimeError
        head = ClassifierHead(embedding_size, num_classes, kind)
        head.load_state_dict(safetensors.torch.load_file(path))
    except (OSError, RuntimeError, AssertionError, safetensors.SafetensorError):
        raise PersonaError(f"{path} is missing or damaged: make the targets again") from None
    return head

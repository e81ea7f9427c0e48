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

from persona.config import StudentConfig, from_dict, to_dict
from persona.errors import PersonaError, unknown
from persona.files import PRIVATE, sha256_file, write_atomically, write_json
from persona.models import litert, onnx
from persona.models.backbones import BACKBONES
from persona.models.cards import (
    CARD,
    CLASSES,
    Card,
    classes_digest,
    encode_classes,
    is_stored,
    mode_of_weights,
    model_ids,
    read_classes,
    stored_card,
)
from persona.models.litert_network import LitertNetwork
from persona.models.output import EMBEDDING_SIZE, ClassifierHead, FaceNetwork
from persona.models.student import Student, count_parameters
from persona.models.teacher import load_facenet
from persona.models.weights import FACENETS, find_weights
from persona.workspace import user_path


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
    write_atomically(folder / weights, data, mode_of_weights(classes))
    write_atomically(folder / CLASSES, encode_classes(classes), PRIVATE)
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
    """Raises PersonaError if a card names more classes than its file holds, before any memory."""
    numbers = card.num_classes * (config.embedding_size or EMBEDDING_SIZE)
    if numbers * 4 > path.stat().st_size:
        raise PersonaError(
            f"{path} cannot hold a last layer of {card.num_classes:,} classes, which its card names"
        )


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
    digest: str = ""
    """Of its weights: equal digests give equal vectors."""


def load_network(name: str, models: Path) -> NamedNetwork:
    """A network by name: FaceNet, a file (`onnx:`, `litert:`), a model, or an untrained student.

    Raises:
        PersonaError: unknown, or its file is missing or damaged.
    """
    path = find_file(name)
    if path is not None:
        network: FaceNetwork = (
            onnx.open_network(path) if name.startswith(onnx.PREFIX) else LitertNetwork(path)
        )
        digest = network_digest(name, models) or ""
        return NamedNetwork(name, network, "embeddings alone", (), None, digest)
    if name in FACENETS:
        facenet = load_facenet(name, models)
        digest = network_digest(name, models) or ""
        return NamedNetwork(name, facenet, FACENETS[name].trained_on, None, 160, digest)
    if name in BACKBONES:
        torch.manual_seed(0)
        student = Student(StudentConfig(name), 0, head="none")
        return NamedNetwork(name, student, "nothing", (), None)
    card = _card(name, models)
    student, classes = load_model(card, models), read_classes(card, models)
    return NamedNetwork(
        name, student, card.train_set, classes, card.image_size, card.weights_sha256
    )


def network_digest(name: str, models: Path) -> str | None:
    """`NamedNetwork.digest` without loading the network; None: it is not on this machine."""
    for prefix, digest in ((onnx.PREFIX, onnx.digest), (litert.PREFIX, sha256_file)):
        if name.startswith(prefix):
            path = user_path(name.removeprefix(prefix))
            return digest(path) if path.is_file() else None
    if name in FACENETS:
        found = find_weights(FACENETS[name], models)
        return sha256_file(found) if found else None
    return _card(name, models).weights_sha256 if is_stored(name, models) else None


def check_named(name: str, models: Path) -> None:
    """Raises PersonaError if a name stands for no network: an unknown model, a file not there.

    FaceNet is known wherever its weights are.
    """
    if find_file(name) is None and name not in {*FACENETS, *BACKBONES}:
        _card(name, models)


def find_file(name: str) -> Path | None:
    """The file that a name (`onnx:FILE`, `litert:FILE`) stands for; None: it names no file.

    Raises:
        PersonaError: it is not there.
    """
    for prefix, kind in ((onnx.PREFIX, "ONNX"), (litert.PREFIX, "LiteRT")):
        if name.startswith(prefix):
            path = user_path(name.removeprefix(prefix))
            if not path.is_file():
                hint = ": name one file, not a list" if f",{prefix}" in name else ""
                raise PersonaError(f"no {kind} file at {path}{hint}")
            return path
    return None


def _card(name: str, models: Path) -> Card:
    known = [*FACENETS, *BACKBONES, *model_ids(models)]
    if not is_stored(name, models):
        raise unknown("model", name, [*known, "onnx:FILE"], where=str(models))
    return stored_card(name, models)


def save_head(path: Path, head: ClassifierHead) -> None:
    """Keeps a last layer by itself."""
    write_atomically(path, safetensors.torch.save(dict(head.state_dict())), PRIVATE)


def load_head(path: Path, *, embedding_size: int, num_classes: int, kind: str) -> ClassifierHead:
    """A last layer that was kept.

    Raises:
        PersonaError: missing, damaged or of another shape.
    """
    try:
        if embedding_size * num_classes * 4 > path.stat().st_size:  # it is allocated first
            raise RuntimeError
        head = ClassifierHead(embedding_size, num_classes, kind)
        head.load_state_dict(safetensors.torch.load_file(path))
    except (OSError, RuntimeError, AssertionError, safetensors.SafetensorError):
        raise PersonaError(f"{path} is missing or damaged: make the targets again") from None
    return head

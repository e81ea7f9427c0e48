"""Exports a model by its name: `persona export`.

1. The format and its options are looked up, then the model.
2. Faces are chosen: of a packed set, or drawn. For int8, the faces of the calibration are others.
3. The format writes the file, see persona/deploy/exports/base.py.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from persona.config import from_dict
from persona.data.align.spec import AlignSpec
from persona.data.mixed import names_in
from persona.data.sets import FaceSet, open_set
from persona.data.shards import holds_set, read_manifest
from persona.deploy.exports.base import EXPORTS, Exported, build_options
from persona.deploy.exports.onnx import Onnx
from persona.deploy.faces import CALIBRATION_FACES, FACES, drawn_faces, set_faces
from persona.deploy.graph import Faces
from persona.errors import PersonaError
from persona.files import check_writable
from persona.models.cards import Card, find_model
from persona.models.sources import NamedNetwork
from persona.names import public_name
from persona.workspace import Workspace

log = logging.getLogger(__name__)


def export_model(
    model: str | None,
    place: Workspace,
    *,
    form: str = "onnx",
    options: Mapping[str, Any] | None = None,
    out: Path | None = None,
    set_name: str | None = None,
    calibrate: str | None = None,
    seed: int = 0,
    licence: str | None = None,
    verify: bool = True,
) -> Exported:
    """Exports a student.

    Args:
        model: ID of the student. None takes the best of the newest run.
        place: the folders of models and sets.
        form: name of the format.
        options: options of the format by name, for example `{"precision": "int8"}`.
        out: the file or folder to write. None names it by the ID in the current folder.
        set_name: packed set whose faces the file is checked on. None takes a set of the model's own
            if one is packed as it was for the model, otherwise drawn faces.
        calibrate: packed set whose faces int8 is calibrated on. None takes the model's own.
        seed: seed of the choice of the faces.
        licence: licence that the metadata names. None takes the card's.
        verify: whether each file of a set is compared with its checksum before its first use.

    Raises:
        PersonaError: the format does not have such an option, the model or a set cannot be found,
            or the file's embeddings differ from the model's.
    """
    kind = EXPORTS.find(form)
    chosen = build_options(form, options or {})
    integers = chosen.precision == "int8"
    if calibrate is not None and not integers:
        raise PersonaError("--calibrate is for --precision int8: add that, or leave it out")
    card = find_model(model, place.models)
    stem = card.id
    if chosen.precision != "fp32" and not kind.is_folder:
        stem = f"{card.id}-{chosen.precision}"
    path = out or Path(stem + kind.suffix)
    if path.is_dir() and not kind.is_folder:
        raise PersonaError(
            f"{path} is a folder: name the file with --out {path / stem}{kind.suffix}"
        )
    check_writable(path / "index.html" if kind.is_folder else path)  # before minutes of int8
    card = replace(card, licence=licence or card.licence)
    facts: dict[str, str] = {}
    checking = set_name or _packed((card.test_set, card.train_set), card, place)
    checked = None if checking is None else _open(card, checking, place, verify=verify)
    ranges = None
    if integers:
        name = calibrate or _packed((card.train_set, card.test_set), card, place)
        if name is None:
            raise PersonaError(
                "int8 is calibrated on faces, and no set of this model's crops is packed here: "
                "name a packed set with --calibrate"
            )
        same = checked if name == checking else None
        calibrated = same or _open(card, name, place, verify=verify)
        faces, ranges = _faces_apart(card, checked, calibrated, seed)
        facts["persona.calibration"] = f"{len(ranges)} faces of {public_name(name)}, seed {seed}"
    else:
        faces = _check_faces(card, checked, seed)
    done = kind().export(
        *(card, place.models, faces, path, chosen), calibration_NHWC=ranges, facts=facts
    )
    count = 0 if ranges is None else len(ranges)
    return replace(done, model=card.id, precision=chosen.precision, calibration_faces=count)


def export_wrapped(named: NamedNetwork, align: AlignSpec, path: Path, options: Any) -> Exported:
    """Exports a network of the user's own (`persona.wrap`) to ONNX, checked on drawn faces.

    Args:
        named: the wrapped network. It is copied, so the user's own stays as it is.
        align: how its crops are made.
        path: the file to write.
        options: ExportOptions.

    Raises:
        PersonaError: the network cannot become a graph, or the file's embeddings differ.
    """
    network: Any = copy.deepcopy(named.network)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    size = sum(parameter.numel() * parameter.element_size() for parameter in network.parameters())
    card = Card(
        id=named.name,
        architecture=type(network.wrapped).__name__,
        student={},
        head="none",
        num_classes=0,
        classes_sha256="",
        image_size=align.image_size,
        parameters=parameters,
        bytes=size,
        weights="",
        weights_sha256=named.digest,
        teacher="none",
        temperature=None,
        epochs=0,
        score=None,
        scores={},
        train_set="unknown",
        test_set="none",
        config={},
        created="",
        alignment=align.facts,
    )
    return Onnx().write(network, card, drawn_faces(align.image_size, FACES), path, options)


def _check_faces(card: Card, checked: FaceSet | None, seed: int) -> Faces:
    """The faces to check a file on: those of a set, or drawn faces where there is none."""
    if checked is not None:
        return set_faces(checked, FACES, seed)
    log.info("no set of this model's crops is packed here: the file is checked on drawn faces")
    return drawn_faces(card.image_size, FACES)


def _faces_apart(
    card: Card, checked: FaceSet | None, ranges: FaceSet, seed: int
) -> tuple[Faces, Faces]:
    """Faces to check a file on, and other faces to calibrate on.

    If both are from one set, the check faces are its first ones.
    """
    # One set may have two names, as `vggface2` and `vggface2-train`, or a copy elsewhere.
    if checked is None or checked.digest != ranges.digest:
        return _check_faces(card, checked, seed), set_faces(ranges, CALIBRATION_FACES, seed)
    both = FACES + CALIBRATION_FACES
    faces = set_faces(ranges, both, seed)
    if len(faces) < 2:
        raise PersonaError(
            f"set {ranges.name} has one face, and int8 wants one to calibrate on and another to be "
            "checked on: name another set with --calibrate"
        )
    count = max(1, len(faces) * FACES // both)
    return faces[:count], faces[count:]


def _open(card: Card, name: str, place: Workspace, *, verify: bool) -> FaceSet:
    """Opens a set of crops for a model, and notes crops of another alignment.

    Raises:
        PersonaError: there is no such set, or its crops have another size than the model's.
    """
    found = open_set(name, place.shards, verify=verify)
    found.manifest.check_crops(card.id, card.image_size, needs_landmarks=False)
    own, align = _own_crops(card), found.manifest.align
    if own is not None and not own.resembles(align):
        log.warning(
            "note: set %s is packed with --align %s, %s was trained on crops of `%s`: pack the set "
            "so, or the file is checked and calibrated on faces unlike those that it will see",
            *(found.name, align.method, card.id, own.options),
        )
    return found


def _own_crops(card: Card) -> AlignSpec | None:
    """How the crops are made that a model was trained on. Older cards do not say it."""
    return None if card.alignment is None else from_dict(AlignSpec, card.alignment, where=card.id)


def _packed(sets: tuple[str, ...], card: Card, place: Workspace) -> str | None:
    """The first of a model's sets that is packed here as it was for the model.

    A name may be that of a mix of sets. A set of such a name may be packed in another way, for
    another network.
    """
    own = _own_crops(card)
    for name in (name for mix in sets for name in (mix, *names_in(mix))):
        if holds_set(place.shards / name):
            align = read_manifest(place.shards / name).align
            if align.image_size == card.image_size and (own is None or own.resembles(align)):
                return name
            log.info("set %s is packed in another way than the model's crops: it is not used", name)
    return None

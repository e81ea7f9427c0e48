"""Writes a model that is shipped with Persona from a model of the store: `scripts/zoo.py`.

1. The student loses its last layer and its class list. Its parameters are rounded to float16; batch
   norm's running statistics stay in float32, because float16 cannot hold all of them.
2. The caller measures the rounded student.
3. The rounded weights are compared with the student's on drawn faces and written to
   `NAME.safetensors`, with the embeddings of some of these faces in the file's metadata.
4. A graph that reads these weights is written to `NAME.onnx`, so that embedding needs no torch.
5. The card is written to `NAME.md`. It names the SHA-256 of both files.

Shapes: N faces, H W pixels, E embedding.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.torch
import torch
import yaml

from persona.config import to_dict
from persona.data.transforms import normalise
from persona.deploy.faces import drawn_faces
from persona.deploy.graph import BOUNDS, build_on_weights
from persona.deploy.likeness import compare
from persona.deploy.model_card import CAUTION, fact_rows, figure_rows, front_matter, table
from persona.errors import PersonaError
from persona.figure_names import power
from persona.files import write_atomically
from persona.landmarks import template
from persona.models import cards
from persona.models.cards import Card, classes_digest, shipped_card, shipped_graph
from persona.models.onnx import open_session
from persona.models.public import public_card
from persona.models.store import load_model
from persona.models.student import Student, count_parameters, without_head

FACES, KEPT_FACES = 64, 4
"""Number of drawn faces that the weights are checked on, and of those whose embeddings are kept."""
KEPT = "persona.embeddings"
"""Key in the metadata of the weights of the kept embeddings: (N, E) float16 in base64."""
SAME_NETWORK = 0.9999
"""Lowest cosine similarity of an embedding, computed again on any machine, to the kept one."""


@dataclass(frozen=True)
class Shipped:
    """What the card of a shipped model says beside the card of the model in the store."""

    name: str
    """ID of the shipped model."""
    data: str
    """What it was trained on, in words."""
    licence: str
    """Condition under which the weights may be used."""
    test_set: str
    """Set that the figures were measured on."""
    scores: dict[str, Any]
    """The evaluation of the rounded student, as `Evaluation.to_json` gives it."""
    chosen_by: str
    """Name of the figure in `scores` that the card gives as its score."""
    thresholds: dict[str, float]
    """Threshold by FAR."""
    threshold_from: str
    """The sets and the number of pairs that the thresholds were chosen on, in words."""


def round_student(student: Student) -> Student:
    """A copy of a student without its last layer, whose parameters are float16 numbers."""
    rounded = without_head(student).eval()
    for parameter in rounded.parameters():
        parameter.data = parameter.data.half().float()
    return rounded


def write_shipped(card: Card, models: Path, shipped: Shipped) -> Card:
    """Writes the weights and the card of a shipped model, and returns the card.

    Args:
        card: card of the model in the store.
        models: the model store.
        shipped: what the new card says beside that.

    Raises:
        PersonaError: float16 cannot hold the weights, or the name cannot be used.
    """
    if not cards.NAME.fullmatch(shipped.name):
        raise PersonaError(f"{shipped.name!r}: name the model like a file")
    student = load_model(card, models)
    rounded = round_student(student)
    faces_NHWC = drawn_faces(student.image_size, FACES)
    found_NE, wanted_NE = embed_faces(rounded, faces_NHWC), embed_faces(student, faces_NHWC)
    alike = compare(found_NE, wanted_NE)
    if not BOUNDS["fp16"].allow(alike):
        raise PersonaError(
            f"model {card.id} in float16 would differ: worst cosine {alike.cosine:.6f} over "
            f"{FACES} faces, {BOUNDS['fp16']} is wanted; nothing was written"
        )
    halves = {name for name, _ in rounded.named_parameters()}
    state = {
        name: (tensor.half() if name in halves else tensor).contiguous()
        for name, tensor in rounded.state_dict().items()
    }
    kept = base64.b64encode(found_NE[:KEPT_FACES].astype("<f2").tobytes()).decode()
    data = safetensors.torch.save(state, {KEPT: kept})
    new = replace(
        public_card(card),
        id=shipped.name,
        student=to_dict(rounded.config),
        head="none",
        num_classes=0,
        classes_sha256=classes_digest(()),
        parameters=count_parameters(rounded),
        bytes=len(data),
        weights=f"{shipped.name}.safetensors",
        weights_sha256=hashlib.sha256(data).hexdigest(),
        score=shipped.scores[shipped.chosen_by],
        scores=shipped.scores
        | {
            "model": shipped.name,
            "threshold_at_far": shipped.thresholds,
            "threshold_from": shipped.threshold_from,
        },
        chosen_by=shipped.chosen_by,
        test_set=shipped.test_set,
        run=card.made_in,
        licence=shipped.licence,
    )
    graph = build_on_weights(rounded, new, data)
    new = replace(new, graph_sha256=hashlib.sha256(graph).hexdigest())
    # The card is written last: without it, commands refuse the weights.
    (cards.ZOO / f"{shipped.name}.md").unlink(missing_ok=True)
    write_atomically(cards.ZOO / new.weights, data)
    write_atomically(cards.ZOO / f"{shipped.name}.onnx", graph)
    write_atomically(cards.ZOO / f"{shipped.name}.md", shipped_text(new, shipped).encode())
    check_shipped(shipped.name)
    return shipped_card(shipped.name)


def check_shipped(name: str) -> float:
    """Embeds drawn faces again and compares them with the embeddings in the file's metadata.

    The graph and, where torch loads the weights, the student must both give them.

    Returns:
        The lowest cosine similarity.

    Raises:
        PersonaError: the weights are damaged or gave other embeddings when they were written.
    """
    card = shipped_card(name)
    student = load_model(card, cards.ZOO)
    with safetensors.safe_open(cards.ZOO / card.weights, "numpy") as file:
        kept = (file.metadata() or {}).get(KEPT, "")
    wanted = np.frombuffer(base64.b64decode(kept), "<f2").astype(np.float32)
    faces_NHWC = drawn_faces(card.image_size, KEPT_FACES)
    found_NE = embed_faces(student, faces_NHWC)
    if wanted.size != found_NE.size:
        raise PersonaError(
            f"{card.weights} holds no embeddings of {KEPT_FACES} faces: ship it anew"
        )
    wanted_NE = wanted.reshape(found_NE.shape)
    wanted_NE = wanted_NE / np.linalg.norm(wanted_NE, axis=1, keepdims=True)
    similarity_N = (found_NE * wanted_NE).sum(axis=1)
    graph = shipped_graph(card)
    if graph is not None:
        points = np.vstack([template(card.image_size), (1.0, 1.0)])
        run_NE = open_session(graph, threads=1).embed(
            faces_NHWC, np.tile(points, (len(faces_NHWC), 1, 1))
        )
        similarity_N = np.concatenate([similarity_N, (run_NE * wanted_NE).sum(axis=1)])
    worst = float(similarity_N.min())
    if not worst >= SAME_NETWORK:
        raise PersonaError(
            f"{card.weights} gives other embeddings than when it was written: worst cosine "
            f"{worst:.6f}, at least {SAME_NETWORK} is wanted"
        )
    return worst


@torch.inference_mode()
def embed_faces(student: Student, faces_NHWC: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """(N, E) float32 embeddings of (N, H, W, 3) uint8 crops."""
    pixels = normalise(torch.from_numpy(faces_NHWC).permute(0, 3, 1, 2))
    embeddings: npt.NDArray[np.float32] = student.eval().embed(pixels).numpy()
    return embeddings


def shipped_text(card: Card, shipped: Shipped) -> str:
    """The text of the card: front matter with the card's fields, then what a user must know."""
    front = front_matter(card, "other") | {"persona": asdict(card)}
    front = json.loads(json.dumps(front))  # plain numbers and lists, which YAML takes
    thresholds = [
        (f"FAR={power(far)}", f"{value:.4f}") for far, value in shipped.thresholds.items()
    ]
    return f"""\
---
{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---

# {card.id}

A small face recognition network that is shipped with Persona: a face in, an embedding out, compared
with others by the cosine.

{table(fact_rows(card))}

## Trained on

{shipped.data}

## Figures

On {card.test_set}, with 95 % intervals:

{table(figure_rows(card))}

Thresholds of the cosine, chosen on {shipped.threshold_from}:

{table(thresholds)}

## Condition

{card.licence}

## Intended use and limits

{CAUTION}
"""

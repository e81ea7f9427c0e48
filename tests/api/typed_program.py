"""A user's program, which mypy checks with `persona` (pyproject.toml): the public API is typed.

Nothing runs this file. A name that loses its type, or a parameter that changes its own, fails
`scripts/check`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import nn

import persona


class Patience(persona.Callback):
    """Ends a training whose accuracy no longer rises."""

    best: float = 0.0

    def on_evaluation(self, moment: persona.Moment) -> None:
        """Compares with the best so far."""
        accuracy = moment.metrics["test/accuracy"]
        if accuracy <= self.best:
            moment.stop()
        self.best = max(self.best, accuracy)


def embed(photo: Path) -> npt.NDArray[np.float32]:
    """The embeddings of a photo's faces, the best first."""
    model: persona.Model = persona.load("onnx:mobilefacenet.onnx")
    faces: list[persona.Face] = model.find(photo)
    faces.sort(key=lambda face: face.probability or 0.0, reverse=True)
    embeddings: npt.NDArray[np.float32] = model.embed(faces)
    return embeddings


def same(a: bytes, b: npt.NDArray[np.uint8], model: persona.Model) -> bool | None:
    """Whether two photos show one person, and how sure that is."""
    verdict: persona.Verdict = persona.verify(a, b, model=model)
    similarity: float = verdict.similarity
    assert -1 <= similarity <= 1
    return verdict.same


def train(own: nn.Module) -> Path:
    """Distils a module of the user's own on drawn faces and exports the student."""
    teacher = persona.wrap(own, image_size=112, alignment="landmarks")
    name, _ = persona.draw_faces(24)
    faces: persona.FaceSet = persona.shard(name, align="landmarks", image_size=112)
    student: persona.Model = persona.distill(
        "mobilenet_v3_small", teacher=teacher, train=faces, epochs=1, callbacks=[Patience()]
    )
    people: persona.People = persona.open_gallery(Path("gallery.db"), student)
    assert people is not None
    return student.export("student.onnx")


def first_labels(name: str) -> list[int]:
    """The labels of a set's first batch."""
    faces = persona.open_set(name)
    for batch in faces.loader(batch_size=256, training=True, rank=0, world_size=1):
        labels: list[int] = batch.labels.tolist()
        return labels
    return []

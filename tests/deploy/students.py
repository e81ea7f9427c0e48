"""A small student in a store, to export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from little import LITTLE
from torch.nn.modules.batchnorm import _BatchNorm

from persona.config import StudentConfig
from persona.data.transforms import normalise
from persona.deploy.faces import drawn_faces
from persona.models.cards import Card
from persona.models.store import save_model
from persona.models.student import Student

SIDE = 32
SECRET = "secret-place"


def write_student(
    models: Path, model_id: str = "small", architecture: str = "mobilenet_v3_small"
) -> Card:
    """Writes a student of two named people, whose teacher is a path. Its norms have seen faces."""
    torch.manual_seed(0)
    # Norms that know the faces spread the embeddings, which else nearly point the same way.
    options: dict[str, Any] = {} if architecture == LITTLE else {"width": 0.35}
    config = StudentConfig(architecture, embedding_size=16, norm_momentum=0.5, **options)
    student = Student(config, 2, image_size=SIDE).train()
    with torch.no_grad():
        faces = torch.from_numpy(drawn_faces(SIDE, 16)).permute(0, 3, 1, 2)
        for _ in range(10):
            student(normalise(faces))
    teacher = f"onnx:/home/{SECRET}/teacher.onnx"
    return save_model(
        models,
        student,
        model_id=model_id,
        classes=("Ada Lovelace", "Alan Turing"),
        teacher=teacher,
        temperature=None,
        epochs=1,
        score=None,
        scores={},
        train_set="drawn",
        test_set="none",
        config={"teacher": teacher},
    )


def show_faces(student: Student, side: int = SIDE, count: int = 32) -> None:
    """Gives the batch norms of a random student the statistics of drawn faces.

    Without them a random network gives all faces nearly one embedding, and is not exported.
    """
    norms = [each for each in student.modules() if isinstance(each, _BatchNorm)]
    before = [each.momentum for each in norms]
    images = normalise(torch.from_numpy(drawn_faces(side, count)).permute(0, 3, 1, 2))
    student.train()
    for each in norms:
        each.momentum = 0.5
    with torch.no_grad():
        for _ in range(10):
            student(images)
    for each, momentum in zip(norms, before, strict=True):
        each.momentum = momentum
    student.eval()

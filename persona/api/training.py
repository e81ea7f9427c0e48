"""Training from a program: `persona.distill`.

The recipe is persona/distill/recipe.py, which `accelerate launch -m persona.distill` runs too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from persona.api.model import Model, load
from persona.api.sets import FaceSet
from persona.config import load_config
from persona.errors import PersonaError
from persona.training.callbacks import Callback
from persona.workspace import Workspace

EMBEDDING_LOSSES = {"embedding_cosine": {"weight": 1.0}}
"""For teachers without logits, and sets whose people they do not know."""


def distill_student(
    student: str = "mobilenet_v3_small",
    *,
    teacher: Model | None,
    train: FaceSet,
    test: FaceSet | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    seed: int | None = None,
    recipe: str | Path | None = None,
    options: Mapping[str, Any] | None = None,
    callbacks: Sequence[Callback] = (),
    resume: str | None = None,
    workspace: Workspace | None = None,
) -> Model:
    """Distils a student from a teacher; this is `persona.distill`.

    Without a recipe the student learns the teacher's embedding (1 - cosine), for which the set
    needs no labels. Several GPUs: `accelerate launch` with a script that calls this, or
    `accelerate.notebook_launcher`.

    Args:
        student: a backbone, as `mobilenet_v3_small` or `mobilenet_v3_large`.
        teacher: what it learns from; its kept targets are used where the set has them. None: the
            student learns from labels alone.
        train: the set to train on.
        test: the set that chooses the best epoch; None: the last epoch is kept.
        epochs: passes over the set; None: the recipe's.
        batch_size: samples a step on each process; None: the recipe's.
        seed: of weights, order and views; None: the recipe's.
        recipe: a YAML file like those in `configs/`.
        options: any value of the recipe by its dotted name, as `{"optim.lr": 0.002}`.
        callbacks: told of steps, epochs and evaluations; one may end the training.
        resume: ID of a run of the same recipe, to go on from its last checkpoint.
        workspace: where models and runs go; None: the teacher's.

    Returns:
        The best student, saved in the workspace's models.

    Raises:
        PersonaError: an unknown option, sets that do not fit, or a teacher that the recipe cannot
            learn from; all before the first step.

    Example:
        student = persona.distill(
            "mobilenet_v3_small",
            teacher=persona.load("onnx:mobilefacenet.onnx"),
            train=persona.open_set("faces"),
            epochs=20,
        )
    """
    place = workspace or (Workspace.locate() if teacher is None else teacher.workspace)
    name = "none" if teacher is None else teacher.name
    given: dict[str, Any] = {
        "student.architecture": student,
        "teacher": name,
        "train_set": train.place(place),
        "test_set": "none" if test is None else test.place(place),
        "epochs": epochs,
        "batch_size": batch_size,
        "seed": seed,
        "tracker": "none",
        **(options or {}),
    }
    base: dict[str, Any] = {}
    if teacher is not None:
        base["losses"] = {term: dict(values) for term, values in EMBEDDING_LOSSES.items()}
    config = load_config(
        None if recipe is None else Path(recipe),
        {key: value for key, value in given.items() if value is not None},
        base=base,
    )
    if config.teacher != name:
        raise PersonaError("options: the teacher is given by `teacher`, leave it out here")
    from persona.distill import distill

    with _own_accelerator():
        run = distill(
            *(config, place, resume),
            teacher=None if teacher is None else teacher.in_torch(),
            callbacks=callbacks,
        )
    return load(run, workspace=place)


@contextlib.contextmanager
def _own_accelerator() -> Iterator[None]:
    """Lets the next training of this process choose its precision anew.

    Accelerate keeps the first one's device and precision for the whole process.
    """
    from accelerate.state import AcceleratorState, GradientState

    try:
        yield
    finally:
        AcceleratorState._reset_state()
        GradientState._reset_state()

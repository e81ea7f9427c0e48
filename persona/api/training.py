"""Training from a program: `persona.distill`.

The steps are those of persona/distill/recipe.py, which `accelerate launch -m persona.distill` runs
too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from persona.api.model import Model, load
from persona.config import DistillConfig, check_given_once, load_config
from persona.data.mixed import check_weight
from persona.data.sets import FaceSet
from persona.distill.start import start_values
from persona.errors import PersonaError
from persona.training.callbacks import Callback
from persona.workspace import Workspace

EMBEDDING_LOSSES = {"embedding_cosine": {"weight": 1.0}}
"""Losses that need neither logits from the teacher nor labels that it knows."""


def distill_student(
    student: str | None = None,
    *,
    teacher: Model | None,
    train: FaceSet | str | Sequence[FaceSet | str | tuple[FaceSet | str, float]],
    test: FaceSet | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    seed: int | None = None,
    recipe: str | Path | None = None,
    options: Mapping[str, Any] | None = None,
    callbacks: Sequence[Callback] = (),
    resume: str | None = None,
    processes: int = 1,
    workspace: Workspace | None = None,
) -> Model:
    """Distils a student from a teacher; this is `persona.distill`.

    Without a recipe the loss is 1 - cosine similarity of the student's and the teacher's
    embeddings, for which the set needs no labels. Several GPUs of this machine are used by
    `processes`, also from a notebook. A script that calls this function can be started by
    `accelerate launch`, too, on several machines.

    Args:
        student: the student's backbone, for example `mobilenet_v3_large`. None means the recipe's,
            else that of the student in the option `from_model`, else `mobilenet_v3_small`.
        teacher: the teacher. Its kept targets are used where the set has them. None means that the
            student learns from labels alone.
        train: the set to train on, or several sets that are mixed: a list of them, or a text such
            as `utk,aaf*2,vggface2`. A weight is how often a set's photos come in an epoch; in a
            list, `(set, weight)` gives it.
        test: the set on which the best epoch is chosen. None means that the last epoch is kept.
        epochs: passes over the set. None means the recipe's number.
        batch_size: samples per step on each process. None means the recipe's number.
        seed: seed for weights, order and views. None means the recipe's seed.
        recipe: a YAML file like those in `configs/`.
        options: further values of the recipe by their dotted names, for example
            `{"optim.lr": 0.002}`. A mapping, such as `{"losses": {"arcface": {}}}`, replaces the
            whole group of the recipe.
        callbacks: objects that are called on steps, epochs and evaluations; one may stop the
            training.
        resume: ID of a run of the same recipe, to continue from its last checkpoint. `auto` takes
            the newest unfinished run of the same recipe, or begins a new one.
        processes: how many processes train together, one on each GPU, or on the CPU where there is
            none. More than one are started beside this process, and each sees `batch_size` samples
            a step. They cannot have callbacks, nor a teacher made by `persona.wrap`.
        workspace: where models and runs are written. None means the teacher's workspace.

    Returns:
        The best student, which is saved in the workspace's models.

    Raises:
        PersonaError: an option is unknown, the sets do not fit, or the recipe needs what the
            teacher does not give. All of this is checked before the first step.
        Preempted: the process received SIGTERM or SIGUSR1 while training. A checkpoint is written.

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
        "train_set": _train_names(train, place),
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
    file = None if recipe is None else Path(recipe)
    given = {key: value for key, value in given.items() if value is not None}
    check_given_once(given)
    base |= start_values(file, given, place.models)
    config = load_config(file, given, base=base)
    if config.teacher != name:
        raise PersonaError("options: the teacher is given by `teacher`, leave it out here")
    if processes != 1:
        return load(
            _train_apart(config, place, processes, resume, teacher, callbacks), workspace=place
        )
    from persona.distill import distill
    from persona.training.preemption import signals_put_back

    with _own_accelerator(), signals_put_back():
        run = distill(
            *(config, place, resume),
            teacher=None if teacher is None else teacher.in_torch(),
            callbacks=callbacks,
        )
    return load(run, workspace=place)


def _train_apart(
    config: DistillConfig,
    place: Workspace,
    processes: int,
    resume: str | None,
    teacher: Model | None,
    callbacks: Sequence[Callback],
) -> str:
    """Trains in several processes and returns the ID of the model.

    Raises:
        PersonaError: that is not possible with these arguments, or a process failed.
    """
    from persona.distill.apart import train_apart
    from persona.models.wrapped import WrappedNetwork

    if processes < 1:
        raise PersonaError(f"processes {processes}: choose at least 1")
    if callbacks:
        raise PersonaError(
            f"callbacks are called in this process, and {processes} others would train: leave the "
            "callbacks or `processes` out"
        )
    if teacher is not None and isinstance(teacher.in_torch().network, WrappedNetwork):
        raise PersonaError(
            f"{processes} processes cannot open the teacher {teacher.name}, which only this one "
            "has: export it to an ONNX file, or leave `processes` out"
        )
    return train_apart(config, place, processes, resume)


def _train_names(
    train: FaceSet | str | Sequence[FaceSet | str | tuple[FaceSet | str, float]], place: Workspace
) -> str:
    """The sets to train on as a run's config names them.

    Raises:
        PersonaError: no set is given, or a weight is no positive number.
    """
    if isinstance(train, FaceSet | str):
        return train if isinstance(train, str) else train.place(place)
    texts = []
    for item in train:
        faces, weight = item if isinstance(item, tuple) else (item, None)
        name = faces if isinstance(faces, str) else faces.place(place)
        if len(train) > 1 and not isinstance(faces, str) and set(name) & set(",*"):
            raise PersonaError(
                f"set {name}: its folder has a comma or an asterisk in its name, so it cannot be "
                "mixed with others: rename the folder"
            )
        texts.append(name if weight is None else f"{name}*{check_weight(name, weight)!r}")
    if not texts:
        raise PersonaError("train: name at least one set")
    return ",".join(texts)


@contextlib.contextmanager
def _own_accelerator() -> Iterator[None]:
    """Resets Accelerate's state before and after a training, so that each chooses its precision.

    Otherwise Accelerate keeps the precision of whoever used it first in this process: a training,
    an evaluation, kept targets or a report.
    """
    _reset_accelerate()
    try:
        yield
    finally:
        _reset_accelerate()


def _reset_accelerate() -> None:
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state()
    GradientState._reset_state()

"""What a distillation starts from: nothing, a student (`--from`) or a run that was cut off.

With `--from MODEL` it goes on from a student, with another set, teacher or recipe. The student must
have the architecture and the options of the run. Its convolutions, pooling and embedding are taken
over, and its last layer if that names the same identities. Optimizer, schedule and EMA begin anew.
A student may be narrower than the run's (option `width`). It is widened then, to a network that
computes the same (persona/models/widen.py).

With `--resume auto` a command continues the run that the same command began, or begins one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from persona.config import (
    FIXED_SIZE,
    NOT_LEARNED,
    DistillConfig,
    StudentConfig,
    differences,
    from_dict,
    load_config,
    read_values,
    resume_config,
    to_dict,
)
from persona.errors import PersonaError
from persona.models.cards import CARD, Card, classes_digest
from persona.models.sources import spell, student_card
from persona.training.length import Length
from persona.workspace import Workspace

HEAD = "logits."
WIDTH = "width"
"""The option of a backbone that may be larger than that of the starting point."""
AUTO = "auto"
"""Value of `resume` that stands for the run that the same command began."""


@dataclass(frozen=True)
class StartingPoint:
    """The student that a run goes on from."""

    name: str
    """Its name, as the user gave it."""
    card: Card
    store: Path
    """The model store that holds it."""

    @property
    def options(self) -> StudentConfig:
        """The options of the student."""
        return from_dict(StudentConfig, self.card.student, where=str(self.store / CARD))

    def check(self, config: StudentConfig, image_size: int) -> None:
        """Checks that the student of a run is of the same architecture and options, or wider.

        Args:
            config: the options of the run's student, with its embedding size.
            image_size: side of the run's crops in px.

        Raises:
            PersonaError: it is not.
        """
        was, now = to_dict(self.options), to_dict(config)
        if WIDTH in was and WIDTH in now and was[WIDTH] < now[WIDTH]:
            was[WIDTH] = now[WIDTH]
        found = differences(was, now)
        if config.pooling in FIXED_SIZE and image_size != self.card.image_size:
            found.append(f"crops: {self.card.image_size} px are now {image_size} px")
        if found:
            raise PersonaError(
                f"--from {self.name}: its student is of other options ({'; '.join(found)}): leave "
                "those of the student out, or begin without --from"
            )

    def load(self, student: Any, classes: tuple[str, ...]) -> None:
        """Loads the weights into the student of a run, and widens them if it is wider.

        Args:
            student: a Student that `check` found nothing against.
            classes: the identities of its logits.

        Raises:
            PersonaError: the weights are missing or damaged, or a student of that width has other
                connections.
        """
        from persona.models.store import load_model
        from persona.models.widen import compute_the_same, widen_state

        known = load_model(self.card, self.store)
        state = known.state_dict()
        same = (self.card.head, self.card.classes_sha256) == (
            student.logits.kind,
            classes_digest(classes),
        )
        own = student.state_dict()
        taken = {name: v for name, v in state.items() if same or not name.startswith(HEAD)}
        student.load_state_dict({**own, **widen_state(taken, own)})
        was, now = (to_dict(one).get(WIDTH) for one in (known.config, student.config))
        if was != now and not compute_the_same(known, student):
            raise PersonaError(
                f"--from {self.name}: a {self.card.architecture} of width {now:g} has other "
                f"connections than one of {was:g}, because channels are rounded: choose another "
                "width, or begin without --from"
            )


def find_start(name: str, models: Path) -> StartingPoint:
    """Finds the student of `--from`.

    Raises:
        PersonaError: there is no such student.
    """
    return StartingPoint(name, *student_card(name, models))


def start_values(config: Path | None, given: Mapping[str, Any], models: Path) -> dict[str, Any]:
    """Values below a recipe and the command line: the student's options are those of `--from`.

    They are left out if another architecture is asked for, so that the message about it is of the
    architecture and not of one of its options.

    Args:
        config: the file of the recipe, if any.
        given: options of the command line, by dotted name.
        models: the model store.

    Raises:
        PersonaError: there is no such student, or the file cannot be read.
    """
    values = read_values(config)
    name = given.get("from_model", values.get("from_model"))
    # What is no text is refused with the other values of a wrong type.
    if not isinstance(name, str) or "student" in values:
        return {}
    start = find_start(name, models)
    asked = given.get("student.architecture", start.card.architecture)
    return {"student": dict(start.card.student)} if asked == start.card.architecture else {}


def resolve_config(
    file: Path | None,
    given: Mapping[str, Any],
    launched: Mapping[str, Any],
    place: Workspace,
    resume: str | None,
) -> DistillConfig:
    """The config of a command: that of its recipe and options, or of the run that it resumes.

    The command that began a run resumes it, too, with `--resume ID` added.

    Args:
        file: the file of the recipe, if any.
        given: options of the command line, by dotted name.
        launched: options of the launcher, which the recipe takes precedence over.
        place: the folders of models and runs.
        resume: ID of the run to continue, or `auto`. None means that a new one begins.

    Raises:
        PersonaError: an option is unknown or wrong, there is no such run or student to go on from,
            or the run has another recipe.
    """
    run = None if resume == AUTO else resume
    teacher = given.get("teacher")
    if isinstance(teacher, str):  # a run keeps the spelled name
        given = {**given, "teacher": spell(teacher)}
    if run is not None and file is None:
        return resume_config(DistillConfig, place.runs, run, given)
    base = {**launched, **start_values(file, given, place.models)}
    wanted = load_config(file, given, base=base)
    wanted = replace(wanted, teacher=spell(wanted.teacher))
    return wanted if run is None else resume_config(DistillConfig, place.runs, run, {}, wanted)


def find_unfinished(config: DistillConfig, runs: Path) -> str | None:
    """Finds the run that `--resume auto` continues.

    Returns:
        ID of the run of `find_newest`, unless it has ended, by its length or by a callback. None
        means that a new run begins. A run that reached its length and was cut off before its end
        is continued: it only has its last words to say, and training it again would take as long
        as the first time.
    """
    from persona.training.run import ENDED

    found = find_newest(config, runs)
    if found is None:
        return None
    run, _ = found
    return None if (runs / run / ENDED).is_file() else run


def find_newest(config: DistillConfig, runs: Path) -> tuple[str, bool] | None:
    """Finds the newest run of a config that has a checkpoint.

    Args:
        config: the resolved config, with the teacher's name spelled as in a run.
        runs: the folder of runs.

    Returns:
        ID of the run, and whether it has reached its length: its student is saved then. None if
        there is no such run.
    """
    from persona.training.checkpoint import NAME, load_progress

    length = Length(config.epochs, config.steps, config.photos)
    checkpoints = sorted(runs.glob(f"*/{NAME}"), key=lambda path: path.stat().st_mtime_ns)
    for folder in (path.parent for path in reversed(checkpoints)):
        with contextlib.suppress(PersonaError):  # a damaged run is not taken up
            was = resume_config(DistillConfig, runs, folder.name, {})
            if was == replace(config, **{name: getattr(was, name) for name in NOT_LEARNED}):
                return folder.name, length.reached(load_progress(folder))
    return None

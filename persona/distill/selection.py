"""Which of a run's students is kept: evaluated on the test set, the best so far is saved.

The figure that decides is the test set's protocol's (persona/evaluation/protocols/). Of equally
good students the later is kept. One that has collapsed is worse than any other: it is kept only as
long as there is no other.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
from collections.abc import Mapping

from accelerate.utils import broadcast

from persona.config import DistillConfig, to_dict
from persona.data.shards import Manifest
from persona.data.storage import SetFolder
from persona.errors import PersonaError
from persona.evaluation.protocols import (
    PROTOCOLS,
    Evaluation,
    Options,
    Subject,
    check_measure,
    default_measure,
    evaluate,
)
from persona.evaluation.protocols.verification import pair_scores
from persona.models import store
from persona.models.cards import list_models
from persona.models.sources import NamedNetwork
from persona.models.student import Student
from persona.report.plain import pair_curves
from persona.training.run import Run
from persona.workspace import Workspace

log = logging.getLogger(__name__)

TestSet = tuple[SetFolder, Manifest]


def check_test_set(student: NamedNetwork, manifest: Manifest) -> None:
    """Raises PersonaError if a student of the run cannot be measured on the set."""
    try:
        check_measure(default_measure(manifest), student, manifest)
    except PersonaError as error:
        raise PersonaError(f"--test-set: {error}; `none` goes without") from None


class Selection:
    """Measures the students of a run and keeps the best of each kind."""

    def __init__(
        self,
        run: Run,
        config: DistillConfig,
        workspace: Workspace,
        train_set: Manifest,
        classes: tuple[str, ...],
        test: TestSet | None,
    ) -> None:
        """`classes` are the identities of the students' logits; without `test` the last is kept."""
        self.run, self.config, self.workspace = run, config, workspace
        self.train_set, self.classes, self.test = train_set, classes, test
        self.accelerator = run.accelerator

    def check(self, student: Student) -> None:
        """Raises PersonaError if the student cannot be measured on the test set."""
        if self.test is not None:
            check_test_set(self._named(student), self.test[1])

    @property
    def chosen_by(self) -> str | None:
        """The figure by which students are compared; None: there is no test set."""
        if self.test is None:
            return None
        return PROTOCOLS.find(default_measure(self.test[1])).chosen_by

    def choose(self, students: Mapping[str, Student], place: str) -> dict[str, float]:
        """Evaluates students and saves each that is the best so far; by all processes.

        Args:
            students: by what is added to the run's ID to name the model.
            place: how far the run is, for a person.

        Returns:
            Figures as `test/accuracy`, of a student with a suffix as `test-ema/accuracy`.
        """
        best, figures = self.run.progress.best, dict[str, float]()
        for suffix, student in students.items():
            evaluation = self.evaluate(student)
            worth = worth_of(evaluation)
            kept = worth >= best.get(suffix, -math.inf)
            if kept:
                best[suffix] = worth
                if self.accelerator.is_main_process:
                    self._save(student, suffix, evaluation)
            if evaluation is not None:
                prefix = f"test-{suffix}" if suffix else "test"
                figures |= _figures(evaluation, prefix)
                figures[f"{prefix}/kept_by_{evaluation.chosen_by}"] = float(kept)
                _tell(evaluation, suffix, kept, place)
        return figures

    def evaluate(self, student: Student) -> Evaluation | None:
        """Measures a student on the test set, by all processes; None without a test set."""
        if self.test is None:
            return None
        # Each rank's batch norm has its own running statistics; the main process's are kept.
        for buffer in student.buffers():
            broadcast(buffer, from_process=0)
        return evaluate(
            self._named(student),
            *self.test,
            self.accelerator,
            batch_size=self.config.batch_size,
            workers=self._workers,
        )

    def compare_anew(self) -> None:
        """Measures the kept models again, by what students are compared by now; by all processes.

        One that is not there any more, or cannot be read, gives way to the next one.
        """
        best = self.run.progress.best
        known = {card.id: card for card in list_models(self.workspace.models)}
        for suffix in best:
            card = known.get(self.model_id(suffix))
            worth = -math.inf
            if card is not None:
                with contextlib.suppress(PersonaError):
                    kept = store.load_model(card, self.workspace.models)
                    worth = worth_of(self.evaluate(kept.to(self.accelerator.device)))
            best[suffix] = worth

    def tell_collapse(self) -> None:
        """Says at the end which of the kept models has collapsed."""
        for card in list_models(self.workspace.models):
            if card.made_in == self.run.id and card.collapsed:
                log.warning(
                    "warning: %s had collapsed after every epoch: do not use it, train anew with a "
                    "lower --lr or -o optim.clip_norm=1",
                    card.id,
                )

    def track_curves(self, student: Student) -> None:
        """Gives the trackers the ROC and the scores on the test pairs; by all processes."""
        if self.config.tracker == "none" or self.test is None or not self.test[1].pairs:
            return
        named, size = self._named(student), self.config.batch_size
        subject = Subject(*(named, *self.test, self.accelerator, Options(), size, self._workers))
        scores, _ = pair_scores(subject)
        tracker, step = self.run.tracker, self.run.progress.step
        if tracker is not None:
            for curves in pair_curves(scores.score, scores.same):
                image = curves.image(log_x=curves.title == "ROC")
                tracker.log_curve(step, f"test/{curves.title}", *curves.rows(), image)

    def model_id(self, suffix: str) -> str:
        """What a student of the run is called in the model store."""
        return f"{self.run.id}-{suffix}" if suffix else self.run.id

    @property
    def _workers(self) -> int | None:
        """On the CPU as few as will do: to fork one is to copy what training holds, bit by bit."""
        return None if self.accelerator.device.type == "cpu" else self.config.workers

    def _named(self, student: Student) -> NamedNetwork:
        """A student as evaluation takes it."""
        return NamedNetwork(
            name="the student",
            network=student,
            trained_on=self.train_set.dataset,
            classes=self.classes,
            image_size=self.train_set.align.image_size,
        )

    def _save(self, student: Student, suffix: str, evaluation: Evaluation | None) -> None:
        """Puts a student into the model store."""
        config, model_id = self.config, self.model_id(suffix)
        soft = config.losses.terms.get("soft_targets")
        store.save_model(
            self.workspace.models,
            student,
            model_id=model_id,
            classes=self.classes,
            teacher=config.teacher,
            temperature=getattr(soft, "temperature", None),
            epochs=self.run.progress.epoch,
            steps=self.run.progress.step,
            score=evaluation.score if evaluation else None,
            chosen_by=evaluation.chosen_by if evaluation else "",
            run=self.run.id,
            scores=evaluation.to_json() | {"model": model_id} if evaluation else {},
            train_set=self.train_set.name,
            alignment=dataclasses.asdict(self.train_set.align),
            test_set=self.test[1].name if self.test else "none",
            config=to_dict(config),
        )


def worth_of(evaluation: Evaluation | None) -> float:
    """What a student is compared by; the lowest value if nothing measured it, or if it has
    collapsed."""
    if evaluation is None or evaluation.collapse:
        return -math.inf
    return evaluation.score


def _tell(evaluation: Evaluation, suffix: str, kept: bool, place: str) -> None:
    """Says what a student is worth, and loudly if it has collapsed."""
    by = evaluation.chosen_by
    shown = {"accuracy": evaluation.accuracy, by: evaluation.score}
    log.info(
        "%s: %s %s on %s%s%s",
        *(place, evaluation.measure),
        ", ".join(f"{name} {value:.4f}" for name, value in shown.items()),
        *(evaluation.set, f" ({suffix})" if suffix else ""),
        f", the best so far by {by}" if kept and not evaluation.collapse else "",
    )
    if evaluation.collapse:
        log.warning("warning: %s: %s", place, evaluation.collapse)


def _figures(evaluation: Evaluation, prefix: str) -> dict[str, float]:
    """An evaluation as flat figures: `test/accuracy` and so on."""
    figures: dict[str, float] = {}
    for name, value in evaluation.to_json().items():
        if name == "tar_at_far":  # without those that the set cannot resolve
            named = {f"{prefix}/{name}/{far}": tar for far, tar in value.items()}
            figures |= {key: tar for key, tar in named.items() if tar is not None}
        elif isinstance(value, int | float):
            figures[f"{prefix}/{name}"] = value
    return figures

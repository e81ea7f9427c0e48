"""Chooses the best student of a run: evaluates on the test set and saves the best so far.

The protocol of the test set names the figure that decides (persona/evaluation/protocols/). If two
students are equally good, the later one is kept. A collapsed student ranks below all others and is
kept only while there is no other.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from accelerate.utils import broadcast

from persona.config import DistillConfig, to_dict
from persona.data.mixed import MixedSet
from persona.data.sets import FaceSet
from persona.data.shards import Manifest
from persona.errors import PersonaError
from persona.evaluation.protocols import (
    PROTOCOLS,
    Evaluation,
    Subject,
    check_measure,
    default_measure,
    evaluate,
)
from persona.evaluation.protocols.verification import VerificationOptions, pair_scores
from persona.figure_names import label_of
from persona.files import write_json
from persona.models import store
from persona.models.cards import CARD, Card, list_models
from persona.models.sources import NamedNetwork, known_licence, teacher_names
from persona.models.student import Student
from persona.report.plain import pair_curves
from persona.training.run import Run
from persona.workspace import Workspace

log = logging.getLogger(__name__)


def check_test_set(student: NamedNetwork, manifest: Manifest) -> str:
    """Checks that a student of the run can be evaluated on a test set; returns the protocol.

    Raises:
        PersonaError: it cannot.
    """
    try:
        measure = default_measure(manifest, named=student)
        check_measure(measure, student, manifest)
    except PersonaError as error:
        raise PersonaError(f"--test-set: {error}; `none` goes without") from None
    return measure


class Selection:
    """Evaluates the student of a run and its EMA, and saves the best of each."""

    def __init__(
        self,
        run: Run,
        config: DistillConfig,
        workspace: Workspace,
        train: MixedSet,
        classes: tuple[str, ...],
        test: FaceSet | None,
    ) -> None:
        """Prepares the selection.

        Args:
            run: the run, whose progress holds the best scores.
            config: the recipe.
            workspace: the folders, among them the model store.
            train: the train sets.
            classes: identities of the students' logits, in order.
            test: the test set. None means that the last student is kept.
        """
        self.run, self.config, self.workspace = run, config, workspace
        self.train, self.classes, self.test = train, classes, test
        self.accelerator = run.accelerator
        self.measure = ""
        """The protocol of the test set. `check` finds it."""
        self._outdated: list[Card] = []
        """Cards that `restore` has measured anew, with the new figures."""

    def check(self, student: Student) -> None:
        """Checks that the student can be evaluated on the test set, if there is one.

        Raises:
            PersonaError: it cannot.
        """
        if self.test is not None:
            self.measure = check_test_set(self._named(student), self.test.manifest)

    @property
    def chosen_by(self) -> str | None:
        """Name of the figure by which students are compared; None without a test set."""
        if self.test is None:
            return None
        return PROTOCOLS.find(self.measure).chosen_by

    def choose(self, students: Mapping[str, Student], place: str) -> dict[str, float]:
        """Evaluates students and saves each that is the best of its kind so far.

        All processes must call it.

        Args:
            students: the students, by the suffix to the run's ID that names their model.
            place: how far the run has come, as text for the log.

        Returns:
            The figures, named `test/accuracy` or, with suffix `ema`, `test-ema/accuracy`.
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
        """Evaluates a student on the test set; None without one. All processes must call it."""
        if self.test is None:
            return None
        # Batch norm's running statistics differ between ranks. Those of the main process are saved.
        for buffer in student.buffers():
            broadcast(buffer, from_process=0)
        return evaluate(
            self._named(student),
            self.test,
            self.accelerator,
            measure=self.measure,
            batch_size=self.config.batch_size,
            workers=self._workers,
        )

    def state(self) -> dict[str, Any]:
        """By which figure, and on which test set, the best scores of the progress were reached."""
        tested = None
        if self.test is not None:
            tested = [self.test.manifest.digest, self.test.manifest.pairs_sha256]
        return {"chosen_by": self.chosen_by, "tested_on": tested}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes up the state of a checkpoint. All processes must call it.

        If the run compared its students by another figure until now, or on a test set that was
        packed anew since, the saved models are evaluated again. A model that is missing or cannot
        be read counts as worst, so the next one replaces it.
        """
        now = self.state()
        # The oldest checkpoints used accuracy, and do not say on what.
        was = {"chosen_by": "accuracy", "tested_on": now["tested_on"], **state}
        if all(was[name] == value for name, value in now.items()):
            return
        best = self.run.progress.best
        known = {card.id: card for card in list_models(self.workspace.models)}
        for suffix in best:
            card = known.get(self.model_id(suffix))
            worth = -math.inf
            if card is not None:
                with contextlib.suppress(PersonaError):
                    kept = store.load_model(card, self.workspace.models)
                    evaluation = self.evaluate(kept.to(self.accelerator.device))
                    worth = worth_of(evaluation)
                    self._outdated.append(replace(card, **self._scores(evaluation, card.id)))
            best[suffix] = worth

    def update_cards(self) -> None:
        """Writes what `restore` measured anew into the cards. The run's folder must be locked."""
        if self.accelerator.is_main_process:
            for card in self._outdated:
                write_json(self.workspace.models / card.id / CARD, asdict(card))
        self._outdated.clear()

    def tell_collapse(self) -> None:
        """Warns at the end of a run of each saved model that has collapsed."""
        for card in list_models(self.workspace.models):
            if card.made_in == self.run.id and card.collapsed:
                log.warning(
                    "warning: %s had collapsed after every epoch: do not use it; train for longer "
                    "than a few steps, or anew with a lower --lr or -o optim.clip_norm=1",
                    card.id,
                )

    def track_curves(self, student: Student) -> None:
        """Passes the ROC and score curves of the test pairs to the trackers.

        All processes must call it.
        """
        if self.config.tracker == "none" or self.test is None or self.measure != "verification":
            return
        named, size = self._named(student), self.config.batch_size
        subject = Subject(
            *(named, self.test, self.accelerator, VerificationOptions(), size, self._workers)
        )
        scores, _ = pair_scores(subject)
        tracker, step = self.run.tracker, self.run.progress.step
        if tracker is not None:
            for curves in pair_curves(scores.score, scores.same):
                image = curves.image(log_x=curves.title == "ROC")
                tracker.log_curve(step, f"test/{curves.title}", *curves.rows(), image)

    def model_id(self, suffix: str) -> str:
        """The ID of a student of the run in the model store."""
        return f"{self.run.id}-{suffix}" if suffix else self.run.id

    @property
    def _workers(self) -> int | None:
        """Number of loader processes for evaluation. None lets evaluation choose it.

        On the CPU it is None, because evaluation chooses few. Each forked loader process gradually
        copies the memory of the training process.
        """
        return None if self.accelerator.device.type == "cpu" else self.config.workers

    def _named(self, student: Student) -> NamedNetwork:
        """The student as a NamedNetwork, for evaluation."""
        return NamedNetwork(
            name="the student",
            network=student,
            trained_on=self.train.dataset,
            classes=self.classes,
            image_size=self.train.align.image_size,
            classes_of=self._classes_of,
        )

    @property
    def _classes_of(self) -> str:
        """The datasets of its identities. Empty (unknown) if they are those of a teacher."""
        return self.train.dataset if self.classes == self.train.identities else ""

    @property
    def _started_from(self) -> dict[str, str] | None:
        if self.config.from_model is None:
            return None
        return {"model": self.config.from_model, "weights_sha256": self.run.origin["from"]}

    @property
    def _licence(self) -> str:
        """The conditions of the networks that the student learned or started from."""
        models = self.workspace.models
        names = [*teacher_names(self.config.teacher, models), self.config.from_model or ""]
        found = (known_licence(name, models) for name in names)
        return "; ".join(dict.fromkeys(filter(None, found)))

    def _save(self, student: Student, suffix: str, evaluation: Evaluation | None) -> None:
        """Saves a student in the model store."""
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
            run=self.run.id,
            started_from=self._started_from,
            licence=self._licence,
            train_set=self.train.name,
            classes_of=self._classes_of,
            alignment=self.train.align.facts,
            test_set=self.test.name if self.test else "none",
            config=to_dict(config),
            **self._scores(evaluation, model_id),
        )

    def _scores(self, evaluation: Evaluation | None, model_id: str) -> dict[str, Any]:
        """The fields of a card that hold the figures of its model."""
        return {
            "score": evaluation.score if evaluation else None,
            "chosen_by": evaluation.chosen_by if evaluation else "",
            "scores": evaluation.to_json() | {"model": model_id} if evaluation else {},
        }


def worth_of(evaluation: Evaluation | None) -> float:
    """The value by which students are compared. It is -inf without an evaluation or after a
    collapse."""
    if evaluation is None or evaluation.collapse:
        return -math.inf
    return evaluation.score


def _tell(evaluation: Evaluation, suffix: str, kept: bool, place: str) -> None:
    """Logs the scores of a student, and a warning if it has collapsed."""
    by = evaluation.chosen_by
    shown = {"accuracy": evaluation.accuracy, by: evaluation.score}
    log.info(
        "%s: %s %s on %s%s%s",
        *(place, evaluation.measure),
        ", ".join(f"{label_of(name)} {value:.4f}" for name, value in shown.items()),
        *(evaluation.set, f" ({suffix})" if suffix else ""),
        f", the best so far by {label_of(by)}" if kept and not evaluation.collapse else "",
    )
    if evaluation.collapse:
        log.warning("warning: %s: %s", place, evaluation.collapse)


def _figures(evaluation: Evaluation, prefix: str) -> dict[str, float]:
    """Flattens an evaluation to figures such as `test/accuracy`."""
    figures: dict[str, float] = {}
    for name, value in evaluation.to_json().items():
        if name == "tar_at_far":  # None where the set cannot resolve the FAR
            named = {f"{prefix}/{name}/{far}": tar for far, tar in value.items()}
            figures |= {key: tar for key, tar in named.items() if tar is not None}
        elif isinstance(value, int | float):
            figures[f"{prefix}/{name}"] = value
    return figures

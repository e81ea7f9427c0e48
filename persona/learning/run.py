"""`persona learn`: a student of the model store learns the identities of a set.

The result is a new model in the store.

1. The student, the sets and the state that its last run kept are opened. Most user errors are found
   in this step.
2. Each experience is learned and measured. Then the model and a checkpoint are saved.
3. A run that was killed continues from its last checkpoint and ends with the same weights.

persona/training/run.py holds the run's folder, lock, tracker and checkpoints. A checkpoint holds
weights, optimizer state and the state of the method, such as exemplars as JPEG bytes.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from persona.config import (
    NOT_LEARNED,
    DistillConfig,
    LearnConfig,
    LossesConfig,
    from_dict,
    to_dict,
)
from persona.data.ensembles import Reader, open_reader
from persona.data.mixed import MixedSet
from persona.data.sets import FaceSet, open_set
from persona.errors import PersonaError, resumed_by
from persona.evaluation.spread import has_collapsed, tell_collapse
from persona.learning.learner import Learner
from persona.learning.photos import Photos
from persona.learning.stream import Experience, build_experience, in_groups, in_order
from persona.models import store
from persona.models.cards import Card, find_model, list_models, read_classes
from persona.models.sources import spell
from persona.models.student import Student
from persona.training.checkpoint import Progress, load_checkpoint
from persona.training.devices import build_accelerator
from persona.training.run import LEARNING, Run, Stored, find_stored
from persona.training.teacher import Teacher, open_teacher
from persona.workspace import Workspace, user_path

log = logging.getLogger(__name__)


def learn(
    config: LearnConfig,
    workspace: Workspace,
    resume: str | None = None,
    *,
    forget: Collection[str] | None = None,
) -> str:
    """Teaches a student the identities of a set.

    Args:
        config: the resolved config. With `resume` it is the config of that run.
        workspace: folders of sets, models and runs.
        resume: ID of a run to continue from its last checkpoint.
        forget: identities whose rows leave the student's last layer. If this is given, even empty,
            the run begins with the student alone: nothing is taken up that the method kept of its
            last run, because that may be photos and class means of these identities.

    Returns:
        The ID of the run, which is also that of the new model.

    Raises:
        PersonaError: something is wrong that the user can mend. Where possible it is found before
            the first step.
    """
    accelerator = build_accelerator(config.mixed_precision)
    learning = Learning(config, workspace, accelerator, resume, forget)
    with resumed_by(f"--resume {learning.run.id}"), learning.run:
        learning.announce()
        while learning.progress.epoch < len(learning.experiences):
            learning.learn_next()
    return learning.run.id


class Learning:
    """A run of `persona learn`: a student, a method and the experiences to learn in turn."""

    def __init__(
        self,
        config: LearnConfig,
        workspace: Workspace,
        accelerator: Accelerator,
        resume: str | None,
        forget: Collection[str] | None = None,
    ) -> None:
        self.config, self.workspace, self.accelerator = config, workspace, accelerator
        self.alone = forget is not None
        """Whether the run begins with the student, and with nothing that its last run kept."""
        stored = find_stored(LearnConfig, workspace, resume)
        self.parent = find_parent(config, workspace, None if stored is None else stored.state)
        self.student = store.load_model(self.parent, workspace.models)
        classes = read_classes(self.parent, workspace.models) if self.student.num_classes else ()
        if forget:
            kept = [label for label, name in enumerate(classes) if name not in forget]
            log.info("%d identities leave the last layer", len(classes) - len(kept))
            self.student.keep_rows(kept)
            classes = tuple(classes[label] for label in kept)
        cache = user_path(config.cache) if config.cache else None
        names = [config.on, *([config.old] if config.old else [])]
        shards = workspace.shards
        sets = [open_set(name, shards, cache, verify=config.verify) for name in names]
        if len({faces.digest for faces in sets}) < len(sets):
            raise PersonaError(
                f"--old {config.old} and --on {config.on} are the same photos: --old is a set of "
                "those whom the student knows already"
            )
        for faces in sets:
            faces.manifest.check_crops(f"student {self.parent.id}", self.parent.image_size, False)
        self.photos = Photos(sets)
        self.new_set = sets[0]
        new = self.photos.of_set(0)
        groups = in_groups(in_order(self.photos, new, config.seed), config.experiences)
        self.experiences = [
            build_experience(self.photos, number, group, new, config.hold_out, config.seed)
            for number, group in enumerate(groups)
        ]
        self.old = self._old(classes)
        teacher, targets, digest = open_anchor(config, workspace, self.parent, sets[0], accelerator)
        origin = {
            "config": {k: v for k, v in to_dict(config).items() if k not in NOT_LEARNED},
            "student": self.parent.weights_sha256,
            "sets": [faces.digest for faces in sets],
            "teacher": digest,
        }
        self.run = Run(
            *(LEARNING, workspace, accelerator),
            architecture=self.parent.architecture,
            config=to_dict(config),
            trackers=config.tracker,
            origin=origin,
            resume=resume,
            stored=stored,
        )
        self.learner = Learner(
            config,
            self.student,
            classes,
            self.photos,
            accelerator,
            folder=self.run.folder,
            teacher=teacher,
            targets=targets,
        )
        self.state: dict[str, Any] | None = None
        if stored is None:
            self._begin()
            self.learner.check(self.experiences)
        else:
            self._restore(stored)

    @property
    def progress(self) -> Progress:
        """Progress of the run. Its epochs are experiences, its batches steps of an experience."""
        return self.run.progress

    def _old(self, classes: tuple[str, ...]) -> Experience | None:
        """The photos of `--old` as an experience, or None without `--old`.

        Logs how many identities of the new set the student already knows.

        Raises:
            PersonaError: method `joint` lacks the old photos, or `--old` has identities that the
                student does not know.
        """
        config = self.config
        fresh = {name for experience in self.experiences for name in experience.identities}
        again = len(fresh & set(classes))
        if again:
            log.info(
                "%d of %d identities of set %s are known to %s by name: their photos go on "
                "teaching the same identities",
                *(again, len(fresh), self.new_set.name, self.parent.id),
            )
        if config.old is None:
            if config.method == "joint" and classes:
                raise PersonaError(
                    f"method joint trains on all photos, and those of the {len(classes)} "
                    f"identities that {self.parent.id} knows are not at hand: give --old their set"
                )
            return None
        chosen = self.photos.of_set(1)
        names = [self.photos.names[place] for place in np.unique(self.photos.identity[chosen])]
        if classes and not set(names) <= set(classes):
            unknown = len(set(names) - set(classes))
            raise PersonaError(
                f"{unknown} of {len(names)} identities of --old {config.old} are unknown to "
                f"{self.parent.id}: give --old the set that it learned from"
            )
        return build_experience(self.photos, -1, names, chosen, config.hold_out, config.seed)

    def _begin(self) -> None:
        """Begins with the photos of `--old`, or with the state that the parent's run kept."""
        if self.old is not None:
            self.learner.adopt(self.old)
            return
        if self.alone:
            return
        before = self.parent.learned or {}
        run = before.get("run", "")  # the model may have been renamed since
        same = before.get("method") == self.config.method
        found = load_checkpoint(self.workspace.runs / run) if same else None
        if found is not None:
            progress, _, state = found
            if (progress.epoch, progress.batch) != (self.parent.epochs, 0):
                raise PersonaError(
                    f"run {run}, which made {self.parent.id}, has gone on or stopped inside an "
                    f"experience: end it first with `persona learn --resume {run}`"
                )
            # The model knows only identities that have a class mean; the run may know more.
            self.learner.classes = list(state["classes"])
            self._load_student(state)
            self.learner.method.load(state["method"])
            held_out = np.concatenate([experience.test for experience in self.experiences])
            self.learner.method.leave_out(held_out)
            log.info("what run %s kept is taken up", run)
        elif self.learner.classes and self.learner.method.remembers:
            log.warning(
                "nothing is at hand of the %d identities that %s knows: method %s begins with "
                "nothing of them%s (--old SET gives it their photos)",
                *(len(self.learner.classes), self.parent.id, self.config.method),
                ""
                if self.learner.method.means is None
                else ", and the new model names those of the set alone",
            )

    def announce(self) -> None:
        """Logs what the run is about to do."""
        config = self.config
        log.info(
            "run %s: %s learns set %s (%d identities) by %s, %d experience(s) of %d steps of "
            "%d photos on %d process(es) of %d thread(s)",
            *(self.run.id, self.parent.id, self.new_set.name),
            *(sum(len(e.identities) for e in self.experiences), config.method),
            *(len(self.experiences), config.steps, config.batch_size),
            *(self.accelerator.num_processes, torch.get_num_threads()),
        )

    def learn_next(self) -> None:
        """Learns the next experience (or the rest of it), measures it and saves the model.

        Raises:
            Preempted: a process was told to end. The checkpoint is written.
        """
        progress, experience = self.progress, self.experiences[self.progress.epoch]
        state, self.state = self.state, None

        def moment(step: int, figures: dict[str, float]) -> None:
            progress.batch, progress.step = step, progress.step + 1
            if figures:
                self.run.record(**figures)
            if step == self.config.steps:
                return  # the experience is measured and saved first
            preempted = self.run.preempted()
            if preempted or step % self.config.checkpoint_steps == 0:
                self.learner.watch.check(self.student)  # a checkpoint must hold finite weights
                self.checkpoint(self.learner.training_state())
            if preempted:
                self.run.end_early()

        self.learner.learn(experience, step=progress.batch, state=state, moment=moment)
        progress.epoch, progress.batch = progress.epoch + 1, 0
        figures, spread = self.measure(), self.spread()
        measured = figures if spread is None else figures | {"spread": spread}
        if measured:
            self.run.record(**{f"test/{name}": value for name, value in measured.items()})
        if figures:
            shown = ", ".join(f"{name} {value:.4f}" for name, value in figures.items())
            log.info("experience %d/%d: %s", progress.epoch, len(self.experiences), shown)
        scores: dict[str, Any] = dict(figures)
        if has_collapsed(spread):
            scores |= {"spread": spread, "collapsed": True}
            told = tell_collapse(self.run.id, spread, f"set {self.new_set.name}")
            log.warning("warning: experience %d: %s", progress.epoch, told)
        if self.accelerator.is_main_process:
            self.save(scores)
        self.checkpoint(None)
        if progress.epoch < len(self.experiences) and self.run.preempted():
            self.run.end_early()

    def spread(self) -> float | None:
        """Spread of the embeddings of all identities so far, see persona/evaluation/spread.py."""
        known = [*self.experiences[: self.progress.epoch], *([self.old] if self.old else [])]
        return self.learner.spread(np.concatenate([experience.train for experience in known]))

    def measure(self) -> dict[str, float]:
        """Accuracy on held-out photos: `new` identities, `old` ones, and `accuracy` on all so far.

        A figure without held-out photos is missing.
        """
        new = [e.test for e in self.experiences[: self.progress.epoch]]
        right = {"new": self.learner.right(np.concatenate(new))}
        if self.old is not None:
            right["old"] = self.learner.right(self.old.test)
        right = {"accuracy": torch.cat(list(right.values())), **right}
        return {name: float(of.double().mean()) for name, of in right.items() if len(of)}

    # --- what is kept --------------------------------------------------------------------------

    @property
    def _classes_of(self) -> str:
        """The datasets of its identities. Empty if those of the parent's are unknown."""
        own, new = self.parent.classes_of, self.new_set.manifest.dataset
        if not self.parent.num_classes:
            return new
        return ",".join(dict.fromkeys([*own.split(","), new])) if own else ""

    def save(self, scores: dict[str, Any]) -> None:
        """Saves the student to the model store, with the classifier that the method uses."""
        config, method, parent = self.config, self.learner.method, self.parent
        student, classes = answering(self.learner)
        before = parent.learned or {}
        store.save_model(
            self.workspace.models,
            student,
            model_id=self.run.id,
            classes=classes,
            teacher=parent.teacher,
            temperature=parent.temperature,
            epochs=self.progress.epoch,
            score=scores.get("accuracy"),
            scores=scores,
            run=self.run.id,
            train_set=self.new_set.name,
            classes_of=self._classes_of,
            alignment=parent.alignment,
            licence=parent.licence,
            test_set="none",
            config=to_dict(config),
            learned={
                "run": self.run.id,
                "parent": parent.id,
                "parent_sha256": parent.weights_sha256,
                "method": config.method,
                "set": self.new_set.name,
                "identities": sum(
                    len(e.identities) for e in self.experiences[: self.progress.epoch]
                ),
                "experience": before.get("experience", 0) + self.progress.epoch,
                "steps": self.progress.step,
                "memory": {"photos": config.memory, "mb": config.memory_mb},
                "kept_bytes": method.kept_bytes(),
            },
        )

    def checkpoint(self, training: dict[str, Any] | None) -> None:
        """Writes a checkpoint. `training` is the optimizer state, or None between experiences."""
        scaler = self.run.accelerator.scaler
        self.run.checkpoint(
            {
                "student": self.student.state_dict(),
                "head": (self.student.num_classes, self.student.logits.kind),
                "classes": self.learner.classes,
                "method": self.learner.method.state(),
                "training": training,
                "scaler": None if scaler is None else scaler.state_dict(),
            }
        )

    def _restore(self, stored: Stored) -> None:
        state = stored.state
        self.state = state["training"]
        self.learner.classes = list(state["classes"])
        self._load_student(state)
        self.learner.method.load(state["method"])
        scaler = self.run.accelerator.scaler
        if scaler is not None and state.get("scaler"):
            scaler.load_state_dict(state["scaler"])

    def _load_student(self, state: dict[str, Any]) -> None:
        rows, kind = state["head"]
        if (rows, kind) != (self.student.num_classes, self.student.logits.kind):
            self.student.resize_head(rows, kind)
        self.student.load_state_dict(state["student"])


def find_parent(config: LearnConfig, workspace: Workspace, state: dict[str, Any] | None) -> Card:
    """Finds the student that a run begins with.

    With the state of a checkpoint the student is found even if it was renamed since.

    Raises:
        PersonaError: there is no such student.
    """
    try:
        return find_model(config.student, workspace.models)
    except PersonaError:
        began = None if state is None else state["origin"]["student"]
        for card in list_models(workspace.models):
            if card.weights_sha256 == began:
                return card
        raise


def open_anchor(
    config: LearnConfig,
    workspace: Workspace,
    parent: Card,
    new: FaceSet,
    accelerator: Accelerator,
) -> tuple[Teacher | None, Reader | None, str]:
    """The original teacher, its precomputed embeddings, and the digest of both.

    They are None, None and an empty string if the method needs no teacher.

    Raises:
        PersonaError: the teacher is not found, or cannot teach this student.
    """
    if config.method != "anchor":
        if config.teacher is not None:
            raise PersonaError("--teacher goes with --method anchor")
        return None, None, ""
    name = spell(config.teacher or parent.teacher)
    if name == "none":
        return None, None, ""  # the method raises an error that says what to do
    losses = from_dict(LossesConfig, {"embedding_cosine": {}}, where="anchor")
    size = parent.student.get("embedding_size")
    student = dataclasses.replace(DistillConfig().student, embedding_size=size)
    asked = DistillConfig(teacher=name, losses=losses, student=student)
    side = open_teacher(asked, workspace, MixedSet.of(new))
    if side.teacher_size not in {None, side.embedding_size}:
        raise PersonaError(
            "the method anchor compares embeddings number by number: the student has "
            f"{side.embedding_size} dimensions, teacher {name} {side.teacher_size}: choose a "
            "teacher of the same size"
        )
    reader = open_reader(new.folder, side.targets[0]) if side.targets is not None else None
    return side.teacher(asked, accelerator.device, None), reader, side.digest


def answering(learner: Learner) -> tuple[Student, tuple[str, ...]]:
    """The student as it is stored, and the identities of its logits.

    If the method classifies by class means, these become a last layer of cosines, with a row for
    each identity that has a mean.
    """
    means, student = learner.method.means, learner.student
    if means is None:
        return student, tuple(learner.classes)
    stored = Student(
        dataclasses.replace(student.config, embedding_size=student.embedding_size),
        len(means.known),
        head="cosine",
        image_size=student.image_size,
    )
    weights = {n: v for n, v in student.state_dict().items() if not n.startswith("logits.")}
    stored.load_state_dict({**weights, "logits.weight": means.unit()})
    return stored, tuple(learner.classes[label] for label in means.known.tolist())

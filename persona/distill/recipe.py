"""Distils a student from a teacher: `accelerate launch -m persona.distill --temperature 4`.

1. Open the sets and the teacher. Mistakes of the user are found here, before the first step.
2. Accelerate prepares student and optimizer. The frozen teacher is only moved to the device.
3. In each epoch: stream the batches, take a train step on each, and write checkpoints.
4. After each epoch, or every `evaluate_steps` steps: evaluate on all processes and keep the best
   student.

The run itself (folder, lock, tracker, checkpoints) is persona/training/run.py, the train step
persona/training/trainer.py, the objective persona/training/task.py, and the choice of the best
student persona/distill/selection.py. The config is persona/config.py, the command line
persona/cli/distill.py.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed
from torch import Tensor

from persona.config import NOT_LEARNED, DistillConfig, to_dict
from persona.data.mixed import open_mixed
from persona.data.mixing import draw_mix
from persona.data.sets import FaceSet, open_set
from persona.data.stream import EpochLoader, build_loader, to_device
from persona.distill.exclusion import exclude
from persona.distill.selection import Selection
from persona.distill.start import StartModel, find_start
from persona.errors import PersonaError, resumed_by
from persona.evaluation.sanity import check_teacher
from persona.models.sources import NamedNetwork, spell
from persona.models.student import Student
from persona.progress import progress_bar
from persona.training.callbacks import Callback
from persona.training.devices import build_accelerator, rng_state, set_rng_state
from persona.training.length import Length
from persona.training.losses import head_kind
from persona.training.meter import Meter
from persona.training.run import DISTILLING, LOG_STEPS, Run, Stored, find_stored
from persona.training.teacher import TeacherSide, open_teacher
from persona.training.trainer import Trainer
from persona.workspace import Workspace, user_path

log = logging.getLogger(__name__)


def distill(
    config: DistillConfig,
    workspace: Workspace,
    resume: str | None = None,
    *,
    teacher: NamedNetwork | None = None,
    callbacks: Sequence[Callback] = (),
) -> str:
    """Trains a student and saves the best one; returns its ID, which is also the ID of the run.

    Args:
        config: the resolved config. With `resume` it is the config of that run.
        workspace: the folders of sets, models and runs.
        resume: ID of the run to continue from its last checkpoint.
        teacher: the network that `config.teacher` names, if it is already loaded.
        callbacks: called after steps, epochs and evaluations. A callback may end the training.

    Raises:
        PersonaError: an error that the user can mend, raised before the first step where possible.
    """
    config = dataclasses.replace(config, teacher=spell(config.teacher))
    accelerator = build_accelerator(
        config.mixed_precision,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        dynamo_backend=config.compile,
    )
    training = Distillation(config, workspace, accelerator, resume, teacher, callbacks)
    with resumed_by(f"--resume {training.run.id}"), training.run:
        training.announce()
        while not training.ends:
            training.train_epoch()
            training.end_epoch()
        training.selection.tell_collapse()
        training.selection.track_curves(training.trainer.student)
    return training.run.id


class Distillation:
    """A student, its teacher and its sets, ready for the first step or the next one."""

    def __init__(
        self,
        config: DistillConfig,
        workspace: Workspace,
        accelerator: Accelerator,
        resume: str | None = None,
        teacher: NamedNetwork | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        """Opens the sets and the teacher of the config and restores the checkpoint of `resume`."""
        self.config, self.accelerator = config, accelerator
        stored = find_stored(workspace, resume)

        cache = user_path(config.cache) if config.cache else None
        shards, verify = workspace.shards, config.verify
        train = open_mixed(config.train_set, shards, cache, verify=verify)
        self.train, self.excluded = exclude(config, workspace, train, accelerator)
        test: FaceSet | None = None
        if config.test_set != "none":
            test = open_set(config.test_set, shards, cache, verify=verify)
        side = open_teacher(config, workspace, self.train, teacher)
        self.targets = side.targets
        # A checkpoint holds the weights, so a run that is resumed needs no other model.
        start = None if stored else find_start(config.from_model, workspace.models)

        origin = {
            "recipe": {k: v for k, v in to_dict(config).items() if k not in NOT_LEARNED},
            "train set": self.train.origin,
            "targets": "kept" if side.targets else "online",
            "teacher": side.digest,
        }
        if self.excluded:
            origin["photos left out"] = self.excluded.digest
        if config.from_model is not None:
            origin["from"] = start.card.weights_sha256 if start else stored_start(stored)
        self.run = Run(
            *(DISTILLING, workspace, accelerator),
            architecture=config.student.architecture,
            config=to_dict(config),
            trackers=config.tracker,
            origin=origin,
            resume=resume,
            stored=stored,
            callbacks=callbacks,
        )
        set_seed(config.seed)  # here, so that loading a teacher does not change the student
        student = build_student(config, workspace, side, self.train.align.image_size, start)
        self.selection = Selection(self.run, config, workspace, self.train, side.classes, test)
        self.selection.check(student)
        for network in side.networks:
            if network.network.from_elsewhere:
                check_teacher(network, test or self.train.labelled_part(), accelerator)

        self.length = Length(config.epochs, config.steps, config.photos)
        accumulated = config.gradient_accumulation_steps
        batches = accumulated * accelerator.num_processes
        self.step_photos = config.batch_size * self.train.roles * batches
        epoch_steps = self.loader(epoch=0).plan.batches // accumulated
        self.total_steps = self.length.total_steps(epoch_steps, self.step_photos)
        self.trainer = Trainer(
            *(config, student, side, accelerator),
            identities=len(self.train.identities),
            total_steps=self.total_steps,
            epoch_steps=epoch_steps,
            folder=self.run.folder,
        )
        self.evaluated: int | None = None
        """The step of the last evaluation in this process."""
        if stored is not None:
            self._restore(stored)

    def announce(self) -> None:
        """Logs the student, the teacher, the train set and the length of the run."""
        config, train, plan = self.config, self.train, self.loader(epoch=0).plan
        length = self.length.counted + (" in epochs" if self.length.epochs is None else "")
        log.info(
            "run %s: %s, teacher %s (%s), set %s (%d samples, %d identities), %s of %d batches of "
            "%d on %d process(es) of %d thread(s), %d samples an epoch left out by the last batch",
            *(self.run.id, config.student.architecture, config.teacher, self.targets_are),
            *(train.name, len(train), train.people, length, plan.batches),
            *(config.batch_size, plan.world_size, torch.get_num_threads(), plan.dropped),
        )
        if self.excluded and self.accelerator.is_main_process:
            listed = self.excluded.write(self.run.folder, train)
            told = "%d photos are left out as near others by the teacher; %s lists them"
            log.info(told, len(self.excluded), listed)
        if self.trainer.projection is not None:
            log.info(
                "the student's embedding has %d dimensions; while it learns, a linear head maps it "
                "to the teacher's %d",
                *(self.trainer.student.embedding_size, self.trainer.projection.out_features),
            )

    @property
    def targets_are(self) -> str:
        """Where the teacher's embeddings come from, as text for the log."""
        teacher = self.trainer.task.teacher
        if self.targets is not None:
            views = dict.fromkeys(targets.views for targets in self.targets)
            return f"{' and '.join(map(str, views))} kept views a photo"
        if teacher is None:
            return "not asked"
        return f"online, {teacher.dtype or torch.float32}".replace("torch.", "")

    def loader(self, epoch: int, skip: int = 0) -> EpochLoader:
        """The batches of this rank in an epoch, beginning with batch `skip`."""
        return build_loader(
            self.train,
            batch_size=self.config.batch_size,
            training=True,
            seed=self.config.seed,
            epoch=epoch,
            skip=skip,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
            workers=self.config.workers,
            multiple=self.config.gradient_accumulation_steps,
            augment=self.config.augment,
            targets=self.targets,
        )

    # --- an epoch ------------------------------------------------------------------------------

    @property
    def ends(self) -> bool:
        """Whether the run has reached its length or a callback has ended it."""
        return self.length.reached(self.run.progress) or self.run.stopping

    def train_epoch(self) -> None:
        """Trains until the epoch or the run ends."""
        progress, accelerator = self.run.progress, self.accelerator
        loader = self.loader(progress.epoch, skip=progress.batch)
        meter = Meter(accelerator.num_processes, accelerator.device)
        self.trainer.task.train()
        with progress_bar(
            self.length.title(progress.epoch + 1),
            total=loader.plan.batches,
            done=progress.batch,
            unit="batches",
            enabled=accelerator.is_main_process,
        ) as advance:
            for batch in meter.waiting_for(to_device(loader, accelerator.device)):
                measured = (progress.step + 1) % LOG_STEPS == 0
                seeds = self.config.seed, progress.epoch, accelerator.process_index, progress.batch
                mix = draw_mix(self.config.mix, len(batch.labels), *seeds)
                total, terms = self.trainer.train_step(
                    batch, progress.step, mix=mix, measure_norm=measured
                )
                meter.add(len(batch.images), total, terms)
                progress.batch += 1
                advance(1)
                if accelerator.sync_gradients:
                    progress.step += 1
                    progress.photos += self.step_photos
                    self.after_step(meter, total, terms)
                    if self.ends:
                        break
        self.trainer.watch.flush()
        self.record(**meter.read())
        self.run.tell("on_epoch", {})

    def after_step(self, meter: Meter, total: Tensor, terms: dict[str, Tensor]) -> None:
        """Records metrics, evaluates, writes a checkpoint and calls the callbacks, where due."""
        step, config = self.run.progress.step, self.config
        evaluates = config.evaluate_steps is not None and step % config.evaluate_steps == 0
        if step % LOG_STEPS == 0 or evaluates:
            self.record(**meter.read())
        # After the last step of the run, `end_epoch` evaluates and writes the checkpoint.
        if evaluates and not self.ends:
            self.evaluate()
            self.trainer.task.train()
            meter.restart()  # the time of an evaluation is no training time
        elif step % config.checkpoint_steps == 0 and not self.ends:
            self.checkpoint()
        if self.run.callbacks:
            losses = {name: float(value) for name, value in terms.items()}
            self.run.tell("on_step", {"loss": float(total), **losses})

    def end_epoch(self) -> None:
        """Counts the epoch as done, then evaluates or only writes a checkpoint.

        With `evaluate_steps` the end of an epoch is not evaluated, but the end of the run is.
        """
        progress = self.run.progress
        progress.epoch, progress.batch = progress.epoch + 1, 0
        by_steps = self.config.evaluate_steps is not None
        if self.evaluated != progress.step and (self.ends or not by_steps):
            self.evaluate()
        else:
            self.checkpoint()

    def evaluate(self) -> None:
        """Evaluates the student and its EMA, and saves each that is the best of its kind so far."""
        progress = self.run.progress
        figures = self.selection.choose(self.trainer.students(), self.place)
        self.evaluated = progress.step
        # Before the checkpoint: a resumed run records again whatever follows its checkpoint.
        self.record(**figures)
        self.checkpoint()
        if figures:
            self.run.tell("on_evaluation", figures)

    @property
    def place(self) -> str:
        """How far the run has come, as text for the log: `epoch 3/20` or `step 500/2000`."""
        progress = self.run.progress
        if progress.batch or self.length.epochs is None:
            return f"step {progress.step}/{self.total_steps}"
        return f"epoch {progress.epoch}/{self.length.epochs}"

    # --- what is kept --------------------------------------------------------------------------

    def record(self, **figures: float) -> None:
        """Records figures at the current step, together with the learning rate."""
        if figures:
            self.run.record(**figures, lr=self.trainer.learning_rate)

    def checkpoint(self) -> None:
        """Writes a checkpoint. Only the RNG state differs between processes, so each is kept."""
        state = self.trainer.state()
        state |= {"rng": gather_object([rng_state()]), "chosen_by": self.selection.chosen_by}
        self.run.checkpoint(state)

    def _restore(self, stored: Stored) -> None:
        """Restores the training from a checkpoint."""
        # An older run may have compared its students by another figure; the oldest used accuracy.
        if stored.state.get("chosen_by", "accuracy") != self.selection.chosen_by:
            self.selection.compare_anew()
        try:
            self.trainer.load(stored.state)
        except (RuntimeError, TypeError, AttributeError, KeyError, ValueError):
            raise PersonaError(
                f"the checkpoint of run {self.run.id} is of another student or optimizer than its "
                f"{DISTILLING.config} says: restore one of them, or start a new run"
            ) from None
        if stored.world_size == self.accelerator.num_processes:
            set_rng_state(stored.state["rng"][self.accelerator.process_index])


def build_student(
    config: DistillConfig,
    workspace: Workspace,
    side: TeacherSide,
    image_size: int,
    start: StartModel | None = None,
) -> Student:
    """Builds the student, with the weights of `start` if there is one.

    Its embedding size is `side.embedding_size`.

    Raises:
        PersonaError: pretrained weights of the backbone cannot be had, it fails on crops of this
            size, it leaves depthwise pooling one place to weigh, or `start` is of other options.
    """
    options = dataclasses.replace(config.student, embedding_size=side.embedding_size)
    if start is not None:
        start.check(options, image_size)
    student = Student(
        options,
        len(side.classes),
        head=head_kind(config.losses),
        image_size=image_size,
    )
    if student.maps_side() == 1 and config.student.pooling == "depthwise":
        raise PersonaError(
            f"student.pooling depthwise weighs places, and {config.student.architecture} leaves "
            f"one of a crop of {image_size} px: choose average, or a larger --image-size"
        )
    if start is None:
        student.start(workspace.models)
    else:
        start.load(student, side.classes)
    return student


def stored_start(stored: Stored | None) -> str:
    """SHA-256 of the student that a resumed run began with."""
    return "" if stored is None else str(stored.state["origin"].get("from", ""))

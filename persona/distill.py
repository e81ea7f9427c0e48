"""Distils a student from a teacher: `accelerate launch -m persona.distill --temperature 4`.

1. open the sets and the teacher; what a user can get wrong is found here, before the first step
2. student and optimizer go through Accelerate; the frozen teacher only to the device
3. each epoch: stream batches, one train step each, checkpoints on the way
4. after each epoch: evaluate on all processes, keep the best student

The command line is persona/cli/distill.py, the config persona/config.py.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the heavy imports: --help and a wrong option answer at once
    from persona.cli.distill import main

    main()

import logging
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, broadcast_object_list, gather_object, set_seed
from torch import Tensor
from torch.optim import Optimizer

from persona.config import DistillConfig, save_config, to_dict
from persona.data.shards import Manifest, open_set
from persona.data.stream import Batch, EpochLoader, build_loader
from persona.data.transforms import normalise, random_flip
from persona.errors import PersonaError
from persona.evaluation.protocols import (
    Evaluation,
    check_measure,
    default_measure,
    evaluate,
    same_classes,
)
from persona.models import store
from persona.models.cards import new_id
from persona.models.store import NamedNetwork
from persona.models.student import Student
from persona.progress import progress_bar
from persona.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from persona.training.optim import build_optimizer, build_scheduler
from persona.training.task import DistillationTask
from persona.training.tracking import Tracker
from persona.workspace import Workspace

log = logging.getLogger(__name__)

CONFIG = "config.yaml"
LOG_STEPS = 20
"""Optimizer steps between metric records."""


def distill(config: DistillConfig, workspace: Workspace, resume: str | None = None) -> str:
    """Trains a student and keeps the best one; returns its ID, which is the run's too.

    Args:
        config: the resolved config; with `resume` it is that run's.
        workspace: where sets, models and runs lie.
        resume: ID of a run to take up from its last checkpoint.

    Raises:
        PersonaError: what a user can mend, found before the first step where it can be.
    """
    # Batches come ready for each rank and the schedule is stepped by hand, so Accelerate is asked
    # for devices, precision, accumulation and gradients, not for data.
    try:
        accelerator = Accelerator(
            mixed_precision=config.mixed_precision,
            gradient_accumulation_steps=config.gradient_accumulation_steps,
            step_scheduler_with_optimizer=False,
        )
    except ValueError as error:
        raise PersonaError(f"this device cannot do it: {error}") from None
    set_seed(config.seed)
    run = Run(config, workspace, accelerator, resume)
    with run:
        while run.progress.epoch < config.epochs:
            run.train_epoch()
            run.finish_epoch()
    return run.id


class Run:
    """A training run: what it holds and what it does."""

    def __init__(
        self,
        config: DistillConfig,
        workspace: Workspace,
        accelerator: Accelerator,
        resume: str | None,
    ) -> None:
        self.config = config
        self.workspace = workspace
        self.accelerator = accelerator
        self.progress = Progress()

        self.train_folder, self.train_set = open_set(config.train_set, workspace.shards)
        teacher, self.classes = open_teacher(config, workspace, self.train_set)
        self.student = Student(config.student, len(self.classes))
        self.test: tuple[Path, Manifest] | None = None
        if config.test_set != "none":
            self.test = open_set(config.test_set, workspace.shards)
            check_measure(default_measure(self.test[1]), self.named_student, self.test[1])

        steps = self.loader(epoch=0).plan.batches // config.gradient_accumulation_steps
        # Convolutions are up to twice as fast with channels last in memory, for the same sums.
        self.student.to(memory_format=torch.channels_last)
        raw_optimizer = build_optimizer(self.student, config.optim)
        self.scheduler = build_scheduler(raw_optimizer, config.optim, steps * config.epochs)
        student, self.optimizer = prepare(accelerator, self.student, raw_optimizer)
        if teacher is not None:
            teacher.network.to(accelerator.device).to(memory_format=torch.channels_last)
        self.task = DistillationTask(student, teacher.network if teacher else None, config.loss)

        self.id = resume or agree(accelerator, new_id(config.student))
        self.folder = workspace.runs / self.id
        if resume:
            self.restore()
        self.tracker: Tracker | None = None

    def __enter__(self) -> Run:
        """Opens the run's folder and tells what it is about to do; the main process alone."""
        if self.accelerator.is_main_process:
            save_config(self.folder / CONFIG, self.config)
            self.tracker = Tracker(
                self.folder,
                run_id=self.id,
                config=to_dict(self.config),
                wandb=self.config.tracker == "wandb",
                step=self.progress.step,
            )
            config, plan = self.config, self.loader(epoch=0).plan
            log.info(
                "run %s: %s, teacher %s, set %s (%d samples, %d identities), %d epochs of %d "
                "batches of %d on %d process(es), %d samples an epoch left out by the last batch",
                *(self.id, config.student, config.teacher, self.train_set.name),
                *(self.train_set.samples, self.train_set.identities, config.epochs, plan.batches),
                *(config.batch_size, plan.world_size, plan.dropped),
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.tracker is not None:
            self.tracker.__exit__(kind, error, trace)
        if kind is None:
            self.accelerator.wait_for_everyone()
        self.accelerator.end_training()

    @property
    def named_student(self) -> NamedNetwork:
        """The student as evaluation takes it."""
        return NamedNetwork(
            name="the student",
            network=self.student,
            trained_on=self.train_set.dataset,
            classes=self.classes,
            image_size=self.train_set.align.image_size,
        )

    def loader(self, epoch: int, skip: int = 0) -> EpochLoader:
        """This rank's batches of an epoch, from batch `skip` on."""
        return build_loader(
            self.train_folder,
            self.train_set,
            batch_size=self.config.batch_size,
            training=True,
            seed=self.config.seed,
            epoch=epoch,
            skip=skip,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
            workers=self.config.workers,
            multiple=self.config.gradient_accumulation_steps,
        )

    # --- an epoch ------------------------------------------------------------------------------

    def train_epoch(self) -> None:
        """Trains on what is left of the epoch."""
        progress, accelerator = self.progress, self.accelerator
        loader = self.loader(progress.epoch, skip=progress.batch)
        meter = Meter(accelerator.num_processes)
        self.task.train()
        title = f"epoch {progress.epoch + 1}/{self.config.epochs}"
        with progress_bar(
            title,
            total=loader.plan.batches,
            done=progress.batch,
            unit="batches",
            enabled=accelerator.is_main_process,
        ) as advance:
            for batch in loader:
                meter.add(len(batch.images), *self.train_step(batch))
                progress.batch += 1
                advance(1)
                if accelerator.sync_gradients:
                    progress.step += 1
                    if progress.step % LOG_STEPS == 0:
                        self.record(**meter.read())
                    if progress.step % self.config.checkpoint_steps == 0:
                        self.checkpoint()
        self.record(**meter.read())

    def train_step(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """One batch; the same with accumulation, mixed precision, one process or many."""
        accelerator, progress = self.accelerator, self.progress
        images = batch.images.to(accelerator.device, non_blocking=True)
        labels = batch.labels.to(accelerator.device, non_blocking=True)
        coins = (self.config.seed, progress.epoch, progress.batch, accelerator.process_index)
        images = normalise(random_flip(images, *coins))
        with accelerator.accumulate(self.task.student):
            with accelerator.autocast():
                total, terms = self.task(images, labels)
            if not torch.isfinite(total):
                raise PersonaError(
                    f"the loss is {float(total)} at step {progress.step} of run {self.id} "
                    f"(samples {batch.keys[:4].tolist()}, …): choose a lower --lr or bf16"
                )
            accelerator.backward(total)
            self.optimizer.step()
            self.optimizer.zero_grad()
        if accelerator.sync_gradients and not accelerator.optimizer_step_was_skipped:
            self.scheduler.step()
        return total.detach(), terms

    def finish_epoch(self) -> None:
        """Evaluates, keeps the student if it is the best, and notes the epoch as done."""
        progress = self.progress
        evaluation = self.evaluate()
        score = evaluation.accuracy if evaluation else None
        progress.epoch, progress.batch = progress.epoch + 1, 0
        if score is None or progress.best is None or score > progress.best:
            progress.best = score
            if self.accelerator.is_main_process:
                self.save(evaluation)
        self.checkpoint()
        if evaluation is not None:
            self.record(epoch=progress.epoch, **_figures(evaluation))
            log.info(
                "epoch %d/%d: %s accuracy %.4f on %s",
                *(progress.epoch, self.config.epochs, evaluation.measure),
                *(evaluation.accuracy, evaluation.set),
            )

    def evaluate(self) -> Evaluation | None:
        """The student on the test set, by all processes; None without a test set."""
        if self.test is None:
            return None
        # Each rank's batch norm has its own running statistics; the main process's are kept.
        for buffer in self.student.buffers():
            broadcast(buffer, from_process=0)
        return evaluate(
            self.named_student,
            *self.test,
            self.accelerator,
            batch_size=self.config.batch_size,
            workers=self.config.workers,
        )

    # --- what is kept --------------------------------------------------------------------------

    def record(self, **figures: float) -> None:
        """Notes figures at this step."""
        if self.tracker is not None and figures:
            self.tracker.log(
                self.progress.step,
                epoch=figures.pop("epoch", self.progress.epoch),
                **figures,
                lr=float(self.scheduler.get_last_lr()[0]),
            )

    def save(self, evaluation: Evaluation | None) -> None:
        """Puts the student into the model store."""
        config = self.config
        store.save_model(
            self.workspace.models,
            self.student,
            model_id=self.id,
            classes=self.classes,
            image_size=self.train_set.align.image_size,
            teacher=config.teacher,
            temperature=config.loss.temperature if config.teacher != "none" else None,
            epochs=self.progress.epoch,
            score=evaluation.accuracy if evaluation else None,
            scores=evaluation.to_json() | {"model": self.id} if evaluation else {},
            train_set=self.train_set.name,
            test_set=self.test[1].name if self.test else "none",
            config=to_dict(config),
        )

    def checkpoint(self) -> None:
        """Writes where the run stands; ranks differ in nothing but their RNG."""
        rng = gather_object([rng_state()])
        if self.accelerator.is_main_process:
            scaler = self.accelerator.scaler
            state = {
                "student": self.student.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scheduler": self.scheduler.state_dict(),
                "scaler": scaler.state_dict() if scaler else None,
                "rng": rng,
            }
            world_size = self.accelerator.num_processes
            save_checkpoint(self.folder, self.progress, world_size, state)
        self.accelerator.wait_for_everyone()

    def restore(self) -> None:
        """Takes up the last checkpoint; a run killed before its first starts over."""
        found = load_checkpoint(self.folder)
        if found is None:
            return
        progress, world_size, state = found
        if progress.batch and world_size != self.accelerator.num_processes:
            raise PersonaError(
                f"run {self.id} stopped inside an epoch on {world_size} process(es): "
                f"resume it on as many, not {self.accelerator.num_processes}"
            )
        self.progress = progress
        self.student.load_state_dict(state["student"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        if self.accelerator.scaler is not None and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        if world_size == self.accelerator.num_processes:
            set_rng_state(state["rng"][self.accelerator.process_index])


class Meter:
    """Means since the last reading; nothing waits for the device before that."""

    def __init__(self, num_processes: int) -> None:
        self.num_processes = num_processes
        self.sums: dict[str, Tensor] = {}
        self.batches = self.images = 0
        self.since_s = time.perf_counter()

    def add(self, images: int, total: Tensor, terms: dict[str, Tensor]) -> None:
        """Counts one batch of so many images on this process."""
        self.batches += 1
        self.images += images
        for name, value in {"loss": total, **terms}.items():
            self.sums[name] = self.sums.get(name, torch.zeros_like(value)) + value

    def read(self) -> dict[str, float]:
        """`loss`, `loss/<term>` and `images_per_s`, and starts anew; empty without a batch."""
        if not self.batches:
            return {}
        figures = {
            "loss" if name == "loss" else f"loss/{name}": float(value) / self.batches
            for name, value in self.sums.items()
        }
        now_s = time.perf_counter()
        figures["images_per_s"] = self.images * self.num_processes / (now_s - self.since_s)
        self.sums, self.batches, self.images, self.since_s = {}, 0, 0, now_s
        return figures


def open_teacher(
    config: DistillConfig, workspace: Workspace, train_set: Manifest
) -> tuple[NamedNetwork | None, tuple[str, ...]]:
    """The teacher, and the identities that teacher's and student's logits stand for.

    Raises:
        PersonaError: unknown, weights missing, or identities other than the set's while hard
            labels count.
    """
    if config.teacher == "none":
        return None, train_set.classes
    teacher = store.load_network(config.teacher, workspace.models)
    if teacher.image_size not in {None, train_set.align.image_size}:
        raise PersonaError(
            f"teacher {teacher.name} was trained on crops of {teacher.image_size} px, set "
            f"{train_set.name} has {train_set.align.image_size} px: pack it with --image-size "
            f"{teacher.image_size}"
        )
    if same_classes(teacher, train_set):
        return teacher, train_set.classes
    if config.loss.hard_weight or not config.loss.soft_weight:
        raise PersonaError(
            f"teacher {teacher.name} knows {teacher.network.num_classes} identities of "
            f"{teacher.trained_on}, set {train_set.name} has {len(train_set.classes)} others, so "
            "its labels mean nothing to the teacher: set loss.hard_weight to 0 (--hard-weight 0), "
            "or choose another teacher"
        )
    numbered = tuple(f"{teacher.name}/{n}" for n in range(teacher.network.num_classes))
    return teacher, teacher.classes or numbered


def prepare(
    accelerator: Accelerator, student: Student, optimizer: Optimizer
) -> tuple[torch.nn.Module, Any]:
    """Student (on the device, in DDP where there are several processes) and its optimizer."""
    prepared: Any = accelerator.prepare(student, optimizer)
    return prepared[0], prepared[1]


def agree(accelerator: Accelerator, value: str) -> str:
    """The main process's value, on every process."""
    values = [value]
    if accelerator.num_processes > 1:
        broadcast_object_list(values)
    return values[0]


def rng_state() -> dict[str, Tensor]:
    """This process's torch generators."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state: dict[str, Tensor]) -> None:
    """Restores `rng_state`."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def _figures(evaluation: Evaluation) -> dict[str, float]:
    """An evaluation as flat figures: `test/accuracy` and so on."""
    figures: dict[str, float] = {}
    for name, value in evaluation.to_json().items():
        if isinstance(value, dict):
            figures |= {f"test/{name}/{key}": item for key, item in value.items()}
        elif not isinstance(value, str):
            figures[f"test/{name}"] = value
    return figures

"""The train step, the same for accumulation, mixed precision, one process and many.

1. Apply the views (augmentation) to the batch on the device, and mix its photos.
2. Run student and teacher on them and sum the weighted losses.
3. Compute the gradients and clip them if the recipe asks for it.
4. Step the optimizer, the schedule and the EMA of the weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from persona.config import DistillConfig
from persona.data.ensembles import shared_augment
from persona.data.mixing import Mix, apply_mix
from persona.data.stream import Batch
from persona.data.transforms import apply_views, normalise, view_landmarks
from persona.errors import PersonaError
from persona.models.cards import EMA
from persona.models.student import Student
from persona.training.devices import compile_options, finite_lag, prepare, with_sync_batch_norm
from persona.training.losses import needs_projection
from persona.training.meter import FiniteWatch
from persona.training.optim import (
    build_ema,
    build_optimizer,
    build_scheduler,
    start_norms,
    unused_norms,
)
from persona.training.projection import ProjectedStudent
from persona.training.run import DISTILLING
from persona.training.task import DistillationTask
from persona.training.teacher import TeacherSide


class Trainer:
    """All state that changes during training: student, EMA, losses, optimizer and schedule."""

    def __init__(
        self,
        config: DistillConfig,
        student: Student,
        side: TeacherSide,
        accelerator: Accelerator,
        *,
        identities: int,
        total_steps: int,
        epoch_steps: int,
        folder: Path,
    ) -> None:
        """Builds optimizer, schedule, EMA and task around a student.

        Args:
            config: the recipe.
            student: the network, on the CPU. It is trained in place.
            side: the teacher or its kept targets.
            accelerator: device and processes.
            identities: number of identities of the train set's labels.
            total_steps: optimizer steps of the run, over which the schedule stretches.
            epoch_steps: optimizer steps of an epoch.
            folder: folder of the run, where the keys of a batch with a non-finite loss are written.

        Raises:
            PersonaError: the device does not support an option of the recipe.
        """
        self.accelerator = accelerator
        if config.sync_batch_norm:
            student = with_sync_batch_norm(student, accelerator)
        # With channels last in memory, convolutions give the same sums up to twice as fast.
        self.student: Student = student.to(memory_format=torch.channels_last)
        self.ema = None
        if config.optim.ema_decay:
            self.ema = build_ema(self.student, config.optim.ema_decay).to(accelerator.device)
        self.trained: nn.Module = self.student
        self.projection: nn.Linear | None = None
        if needs_projection(config.losses, student.embedding_size, side.teacher_size):
            assert side.teacher_size is not None
            self.trained = ProjectedStudent(self.student, side.teacher_size)
            self.projection = self.trained.projection
        raw_optimizer = build_optimizer(self.trained, config.optim)
        self.scheduler = build_scheduler(raw_optimizer, config.optim, total_steps, epoch_steps)
        wrapped, self.optimizer = prepare(accelerator, self.trained, raw_optimizer)
        asked = side.teacher(config, accelerator.device, compile_options(accelerator))
        self.task = DistillationTask(
            *(wrapped, self.student, asked, config.losses, identities, side.teacher_size)
        )
        self.task.to(accelerator.device)
        # Kept views may have columns that the recipe does not need.
        self.augment = shared_augment(side.targets) if side.targets else config.augment
        self.clip_norm = config.optim.clip_norm
        self.folder = folder
        self.watch = FiniteWatch(folder, finite_lag(accelerator), side.train.spell)

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next step."""
        return float(self.scheduler.get_last_lr()[0])

    def students(self) -> dict[str, Student]:
        """The networks that a run saves: the student under "", and its EMA, if any, under `ema`."""
        both = {"": self.student}
        if self.ema is not None:
            mean: Any = self.ema.module
            both[EMA] = mean
        return both

    def train_step(
        self, batch: Batch, step: int, *, mix: Mix | None = None, measure_norm: bool = False
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Learns from one batch.

        With gradient accumulation, only the last batch of a group makes an optimizer step;
        `accelerator.sync_gradients` then is True.

        Args:
            batch: photos, labels and perhaps kept targets, on the device.
            step: number of optimizer steps before this one.
            mix: which photos are mixed (persona/data/mixing.py). None mixes none.
            measure_norm: whether an optimizer step adds `gradient_norm` to the terms.

        Returns:
            The loss and its terms, detached.

        Raises:
            NotFiniteError: an earlier loss, or on the CPU this loss, is not finite.
        """
        accelerator = self.accelerator
        views = batch.views.numpy()
        images = apply_views(batch.images, views, self.augment)
        if mix is not None:
            images = apply_mix(images, mix)
        images = normalise(images)
        images = images.contiguous(memory_format=torch.channels_last)
        landmarks = view_landmarks(batch.landmarks, views, images.shape[2], self.augment)
        unused = [] if step else unused_norms(self.student)
        with accelerator.accumulate(self.task.student):
            with accelerator.autocast():
                total, terms = self.task(images, batch.labels, batch.targets, landmarks)
            self.watch.add(total, batch.keys, step)
            accelerator.backward(total)
            start_norms(unused)  # not before, because autograd holds the statistics
            terms |= self._clip_gradients(measure_norm)
            self.optimizer.step()
            self.optimizer.zero_grad()
        if accelerator.sync_gradients:
            # Also where an fp16 step was left out because a gradient overflowed: the length of the
            # schedule counts these, and fused optimizers do not tell.
            self.scheduler.step()
            if self.ema is not None:
                self.ema.update_parameters(self.student)
        return total.detach(), terms

    def _clip_gradients(self, measure_norm: bool) -> dict[str, Tensor]:
        """Clips the gradients if the recipe asks for it; returns their L2 norm if it is wanted."""
        accelerator = self.accelerator
        if not accelerator.sync_gradients or not (self.clip_norm or measure_norm):
            return {}
        limit = self.clip_norm or float("inf")
        norm = accelerator.clip_grad_norm_(self.trained.parameters(), limit)
        return {"gradient_norm": norm.detach()} if measure_norm and norm is not None else {}

    def stretch_schedule(self, factor: float) -> int:
        """Moves the schedule to another step, when a step has become one of fewer or more photos.

        Args:
            factor: the photos of a step before, over those of a step now.

        Returns:
            The step of the schedule that comes next.
        """
        self.scheduler.last_epoch = round(self.scheduler.last_epoch * factor)
        return self.scheduler.last_epoch

    def check_finite(self) -> None:
        """Checks the losses so far and the weights.

        Raises:
            NotFiniteError: one of them is not finite.
        """
        self.watch.check(self.trained)

    def state(self) -> dict[str, Any]:
        """The state for a checkpoint. It is the same on all processes.

        Raises:
            NotFiniteError: a loss or a weight is not finite.
        """
        self.check_finite()  # a checkpoint must not hold a state that is not finite
        scaler = self.accelerator.scaler
        return {
            "student": self.student.state_dict(),
            "ema": self.ema.state_dict() if self.ema is not None else None,
            "projection": None if self.projection is None else self.projection.state_dict(),
            "losses": self.task.losses.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": scaler.state_dict() if scaler else None,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Restores what `state` returned.

        Raises:
            PersonaError: the state belongs to another student or optimizer.
        """
        try:
            self._load(state)
        except (RuntimeError, TypeError, AttributeError, KeyError, ValueError):
            raise PersonaError(
                f"the checkpoint of run {self.folder.name} is of another student or optimizer than "
                f"its {DISTILLING.config} says: restore one of them, or start a new run"
            ) from None

    def _load(self, state: dict[str, Any]) -> None:
        self.student.load_state_dict(state["student"])
        if self.projection is not None:
            self.projection.load_state_dict(state["projection"])
        self.task.losses.load_state_dict(state["losses"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        if self.accelerator.scaler is not None and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])

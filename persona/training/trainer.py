"""A student on its way: one train step for accumulation, mixed precision, one process and many.

1. views are applied to a batch on the device
2. student and teacher see them, the task weighs the losses
3. gradients, clipped where the recipe says so; optimizer, schedule and EMA take their step
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from persona.config import DistillConfig
from persona.data.stream import Batch
from persona.data.transforms import apply_views, normalise, view_landmarks
from persona.models.cards import EMA
from persona.models.student import Student
from persona.training.devices import compile_options, finite_lag, prepare, with_sync_batch_norm
from persona.training.meter import FiniteWatch
from persona.training.optim import build_ema, build_optimizer, build_scheduler
from persona.training.task import DistillationTask
from persona.training.teacher import TeacherSide


class Trainer:
    """Everything that changes while a student is distilled."""

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
            student: the network, on the CPU; it is trained in place.
            side: its teacher.
            accelerator: device and processes.
            identities: of the train set's labels.
            total_steps: optimizer steps of the run, over which the schedule stretches.
            epoch_steps: optimizer steps of an epoch.
            folder: of the run, for the keys of a loss that is not finite.

        Raises:
            PersonaError: an option that this device cannot do.
        """
        self.accelerator = accelerator
        if config.sync_batch_norm:
            student = with_sync_batch_norm(student, accelerator)
        # Convolutions are up to twice as fast with channels last in memory, for the same sums.
        self.student: Student = student.to(memory_format=torch.channels_last)
        self.ema = None
        if config.optim.ema_decay:
            self.ema = build_ema(self.student, config.optim.ema_decay).to(accelerator.device)
        raw_optimizer = build_optimizer(self.student, config.optim)
        self.scheduler = build_scheduler(raw_optimizer, config.optim, total_steps, epoch_steps)
        wrapped, self.optimizer = prepare(accelerator, self.student, raw_optimizer)
        asked = side.teacher(config, accelerator.device, compile_options(accelerator))
        self.task = DistillationTask(wrapped, self.student, asked, config.losses, identities)
        self.task.to(accelerator.device)
        self.clip_norm = config.optim.clip_norm
        self.watch = FiniteWatch(folder, lag=finite_lag(accelerator))

    @property
    def learning_rate(self) -> float:
        """The rate of the next step."""
        return float(self.scheduler.get_last_lr()[0])

    def students(self) -> dict[str, Student]:
        """What a run saves: the student, and under `ema` the EMA of its weights if it has one."""
        both = {"": self.student}
        if self.ema is not None:
            mean: Any = self.ema.module
            both[EMA] = mean
        return both

    def train_step(
        self, batch: Batch, step: int, *, measure_norm: bool = False
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Learns from one batch; an optimizer step where `accelerator.sync_gradients`.

        Args:
            batch: photos, labels and perhaps kept targets, on the device.
            step: optimizer steps done before, for messages.
            measure_norm: whether the terms have the `gradient_norm` of an optimizer step.

        Returns:
            The loss and its terms, detached.

        Raises:
            NotFiniteError: an earlier loss, or on the CPU this one, is not finite.
        """
        accelerator = self.accelerator
        views = batch.views.numpy()
        images = normalise(apply_views(batch.images, views))
        images = images.contiguous(memory_format=torch.channels_last)
        landmarks = view_landmarks(batch.landmarks, views, images.shape[2])
        with accelerator.accumulate(self.task.student):
            with accelerator.autocast():
                total, terms = self.task(images, batch.labels, batch.targets, landmarks)
            self.watch.add(total, batch.keys, step)
            accelerator.backward(total)
            terms |= self._clip_gradients(measure_norm)
            self.optimizer.step()
            self.optimizer.zero_grad()
        if accelerator.sync_gradients and not accelerator.optimizer_step_was_skipped:
            self.scheduler.step()
            if self.ema is not None:
                self.ema.update_parameters(self.student)
        return total.detach(), terms

    def _clip_gradients(self, measure_norm: bool) -> dict[str, Tensor]:
        """Scales the gradients down where the recipe says so; their norm if it is measured."""
        accelerator = self.accelerator
        if not accelerator.sync_gradients or not (self.clip_norm or measure_norm):
            return {}
        limit = self.clip_norm or float("inf")
        norm = accelerator.clip_grad_norm_(self.student.parameters(), limit)
        return {"gradient_norm": norm.detach()} if measure_norm and norm is not None else {}

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps; processes differ in nothing of it."""
        self.watch.flush()  # what is not finite must not be kept
        scaler = self.accelerator.scaler
        return {
            "student": self.student.state_dict(),
            "ema": self.ema.state_dict() if self.ema is not None else None,
            "losses": self.task.losses.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": scaler.state_dict() if scaler else None,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Restores `state`.

        Raises:
            RuntimeError, TypeError, AttributeError, KeyError, ValueError: it is of another student
                or optimizer.
        """
        self.student.load_state_dict(state["student"])
        self.task.losses.load_state_dict(state["losses"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        if self.accelerator.scaler is not None and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])

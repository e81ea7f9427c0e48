"""The devices and processes of a training, managed by Accelerate."""

from __future__ import annotations

import os
import warnings
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
    broadcast_object_list,
)
from torch import Tensor, nn
from torch.optim import Optimizer

from persona.errors import PersonaError
from persona.memory import keep_freed_memory
from persona.models.student import Student

T = TypeVar("T")

PLAIN_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
"""Layers that compute batch norm and nothing else."""

PATIENCE = InitProcessGroupKwargs(timeout=timedelta(hours=6))
"""How long processes wait for each other. NCCL's ten minutes are too short where the main process
looks for near-duplicates or fits a projection. A launcher ends all when one of them dies."""

DDP_OPTIONS = DistributedDataParallelKwargs(
    broadcast_buffers=False,  # `Selection.evaluate` sends batch norm's statistics when needed
    gradient_as_bucket_view=True,
)


def build_accelerator(
    mixed_precision: str, *, gradient_accumulation_steps: int = 1, **options: Any
) -> Accelerator:
    """Builds the Accelerator for devices, precision, gradient accumulation and DDP.

    Accelerate does not distribute the data, because each rank streams its own batches. The training
    steps the schedule itself.

    Raises:
        PersonaError: the device does not support the precision or one of the options, or several
            processes were launched and there is no GPU for them.
    """
    try:
        accelerator = Accelerator(
            mixed_precision=mixed_precision,
            step_scheduler_with_optimizer=False,
            # A plugin, because a plain number gives way to a variable of the environment.
            gradient_accumulation_plugin=GradientAccumulationPlugin(gradient_accumulation_steps),
            kwargs_handlers=[DDP_OPTIONS, PATIENCE],
            **options,
        )
    except ValueError as error:
        raise PersonaError(f"this device cannot do it: {error}") from None
    if accelerator.device.type == "cpu":
        if mixed_precision == "fp16":  # Accelerate accepts it but trains in float32
            raise PersonaError("mixed_precision fp16 works on GPUs alone: choose bf16 or no here")
        keep_freed_memory()
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched > accelerator.num_processes:  # each would train a student of its own
        raise PersonaError(
            f"{launched} processes were launched and there is no GPU for them: launch one "
            "(--num_processes 1), or on the CPU set ACCELERATE_USE_CPU=true"
        )
    return accelerator


def prepare(
    accelerator: Accelerator, student: torch.nn.Module, optimizer: Optimizer
) -> tuple[torch.nn.Module, Any]:
    """Prepares student and optimizer: on the device, with DDP if there are several processes.

    A student may be prepared again, with another optimizer.
    """
    if "_original_forward" in vars(student) and "_is_accelerate_prepared" not in vars(student):
        # Accelerate puts mixed precision around `forward`, and its mark on what it returns. With
        # DDP that is not the student, which would get one more such layer each time.
        del student.forward, student._original_forward
    with warnings.catch_warnings():
        # torch 2.15 renamed an option that Accelerate 1.15 still passes under its old name.
        warnings.filterwarnings("ignore", message=".*broadcast_buffers.* is deprecated")
        prepared: Any = accelerator.prepare(student, optimizer)
    return prepared[0], prepared[1]


def with_sync_batch_norm(student: Student, accelerator: Accelerator) -> Student:
    """Converts batch norm layers so that they use the statistics of all processes' batches.

    Raises:
        PersonaError: the device is no GPU, or a layer computes more than batch norm, which the
            conversion would remove.
    """
    if accelerator.device.type != "cuda":
        raise PersonaError("sync_batch_norm works on GPUs alone: leave it out here")
    convert: Any = nn.SyncBatchNorm.convert_sync_batchnorm
    norms = (m for m in student.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
    others: set[type] = {*map(type, norms)} - {*PLAIN_NORMS}
    if any(kind.__module__.startswith("timm.") for kind in others):
        from timm.layers import BatchNormAct2d, convert_sync_batchnorm

        convert = convert_sync_batchnorm  # torch's removes the activation of these layers
        others -= {BatchNormAct2d}
    if others:
        names = ", ".join(sorted(kind.__name__ for kind in others))
        raise PersonaError(
            f"sync_batch_norm would lose what {names} computes beyond batch norm: leave it out"
        )
    converted: Student = convert(student)
    return converted


def compile_options(accelerator: Accelerator) -> dict[str, Any] | None:
    """The options with which Accelerate compiles the student; None if it does not compile it."""
    plugin: Any = accelerator.state.dynamo_plugin
    return dict(plugin.to_kwargs()) if plugin.backend.value != "NO" else None


def finite_lag(accelerator: Accelerator) -> int:
    """Number of train steps after which a loss is checked.

    By then a GPU has computed it, so that the check does not wait for the device.
    """
    return 4 if accelerator.device.type == "cuda" else 0


def agree(accelerator: Accelerator, value: T) -> T:
    """Returns the main process's value on every process."""
    values = [value]
    if accelerator.num_processes > 1:
        broadcast_object_list(values)
    return values[0]


def rng_state() -> dict[str, Tensor]:
    """The state of torch's random generators in this process."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state: dict[str, Tensor]) -> None:
    """Restores what `rng_state` returned."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])

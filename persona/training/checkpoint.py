"""Where a run stands, in one file: weights, optimizer, schedule, scaler, RNG, position.

Written under another name and renamed, so that the newest checkpoint is always whole.
"""

from __future__ import annotations

import io
import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from persona.errors import PersonaError
from persona.files import write_atomically

NAME = "checkpoint.pt"
VERSION = 3


@dataclass
class Progress:
    """The position of a run."""

    epoch: int = 0
    batch: int = 0
    """Batches of this epoch that each rank consumed."""
    step: int = 0
    """Optimizer steps."""
    best: dict[str, float] = field(default_factory=dict)
    """Best test score so far, of the student ("") and of the running mean of its weights."""


def save_checkpoint(
    folder: Path, progress: Progress, world_size: int, state: dict[str, Any]
) -> None:
    """Writes `folder/checkpoint.pt`; `state` holds tensors, numbers, strings and containers."""
    buffer = io.BytesIO()
    torch.save(
        {"version": VERSION, "progress": vars(progress), "world_size": world_size, **state}, buffer
    )
    write_atomically(folder / NAME, buffer.getvalue())


def load_progress(folder: Path) -> Progress | None:
    """The position alone; the weights stay on disk.

    Raises:
        PersonaError: see `load_checkpoint`.
    """
    state = _read(folder, mapped=True)
    return None if state is None else state[0]


def load_checkpoint(folder: Path) -> tuple[Progress, int, dict[str, Any]] | None:
    """Progress, world size and state of the newest checkpoint; None if there is none yet.

    Raises:
        PersonaError: it is damaged or of another version.
    """
    return _read(folder, mapped=False)


def _read(folder: Path, *, mapped: bool) -> tuple[Progress, int, dict[str, Any]] | None:
    path = folder / NAME
    if not path.is_file():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        if state.pop("version") != VERSION:
            raise PersonaError(f"{path} was written by another version: start a new run")
        return Progress(**state.pop("progress")), state.pop("world_size"), state
    except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError, TypeError, AttributeError):
        raise PersonaError(f"{path} is damaged: start a new run") from None

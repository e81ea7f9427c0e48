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
from persona.files import PRIVATE, write_atomically

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
    photos: int = 0
    """Photos seen by all processes; of a distillation."""
    best: dict[str, float] = field(default_factory=dict)
    """Best score so far, of the student ("") and of the running mean of its weights; -inf: none
    that counts."""


def save_checkpoint(
    folder: Path, progress: Progress, world_size: int, state: dict[str, Any]
) -> None:
    """Writes `folder/checkpoint.pt`; `state` holds tensors, numbers, strings and containers.

    It is its owner's alone: a run that learns keeps names and photos in it, any other a last layer.
    """
    buffer = io.BytesIO()
    torch.save(
        {"version": VERSION, "progress": vars(progress), "world_size": world_size, **state}, buffer
    )
    write_atomically(folder / NAME, buffer.getvalue(), PRIVATE)


def load_checkpoint(folder: Path) -> tuple[Progress, int, dict[str, Any]] | None:
    """Progress, world size and state of the newest checkpoint; None if there is none yet.

    Raises:
        PersonaError: it is damaged or of another version.
    """
    state = _read(folder / NAME)
    if state is None:
        return None
    try:
        if state.pop("version") != VERSION:
            raise PersonaError(f"{folder / NAME} was written by another version: start a new run")
        return Progress(**state.pop("progress")), state.pop("world_size"), state
    except (KeyError, TypeError, AttributeError):
        raise _damaged(folder / NAME) from None


def load_progress(folder: Path) -> Progress:
    """Where the newest checkpoint stands, of any version; at 0 without one. Reads no tensor.

    Raises:
        PersonaError: it is damaged.
    """
    state = _read(folder / NAME, mmap=True)
    found = Progress()
    try:
        if state is not None:
            found.epoch, found.step = (int(state["progress"][name]) for name in ("epoch", "step"))
            found.photos = int(state["progress"].get("photos", 0))
    except (KeyError, TypeError, ValueError, AttributeError):
        raise _damaged(folder / NAME) from None
    return found


def _read(path: Path, *, mmap: bool = False) -> Any:
    if not path.is_file():
        return None
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError, AttributeError):
        raise _damaged(path) from None


def _damaged(path: Path) -> PersonaError:
    return PersonaError(f"{path} is damaged: start a new run")

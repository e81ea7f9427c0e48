"""Checkpoints: weights, optimizer, schedule, scaler, RNG and progress of a run, in one file.

The file is written under another name and renamed, so that the newest checkpoint is always whole.
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
    """The progress of a run."""

    epoch: int = 0
    batch: int = 0
    """Number of batches of this epoch, or of its last part, that each rank has trained on."""
    step: int = 0
    """Number of optimizer steps."""
    photos: int = 0
    """Number of photos that all processes have seen. Only a distillation counts them."""
    best: dict[str, float] = field(default_factory=dict)
    """Best score so far, of the student under "" and of the EMA of its weights under "ema". -inf
    means that the kept model has no valid score."""
    earlier: list[list[int]] = field(default_factory=list)
    """Parts of this epoch that were trained on other numbers of processes: of each the number of
    processes, and the batches of each rank."""


def save_checkpoint(
    folder: Path, progress: Progress, world_size: int, state: dict[str, Any]
) -> None:
    """Writes `folder/checkpoint.pt`. `state` holds tensors, numbers, strings and containers.

    Only the owner can read the file: it holds the last layer, and names and photos of people in a
    run of `persona learn`.
    """
    buffer = io.BytesIO()
    torch.save(
        {"version": VERSION, "progress": vars(progress), "world_size": world_size, **state}, buffer
    )
    write_atomically(folder / NAME, buffer.getvalue(), PRIVATE)


def load_checkpoint(folder: Path) -> tuple[Progress, int, dict[str, Any]] | None:
    """Loads progress, world size and state of the newest checkpoint; None if there is none yet.

    Raises:
        PersonaError: the checkpoint is damaged or of another version.
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
    """Loads the progress of the newest checkpoint, of any version, without reading its tensors.

    Without a checkpoint all counts are 0. The other fields are not read.

    Raises:
        PersonaError: the checkpoint is damaged.
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

"""A training run: its ID and folder, lock, tracker, position, checkpoints and callbacks.

`persona distill` and `persona learn` are both such a run. What is trained, and how, they know
themselves: a run keeps their state and gives it back.

    runs/<ID>/config.yaml     the config (learn.yaml where a student learns people)
    runs/<ID>/metrics.jsonl   losses and accuracies
    runs/<ID>/checkpoint.pt   where the run stands
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml
from accelerate import Accelerator

from persona.config import differences
from persona.errors import PersonaError
from persona.files import folder_lock, write_atomically
from persona.models.cards import new_id
from persona.training.callbacks import Callback, Moment, tell
from persona.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from persona.training.devices import agree
from persona.training.tracking import Tracker, check_trackers
from persona.workspace import Workspace

LOG_STEPS = 20
"""Optimizer steps between metric records."""


@dataclass(frozen=True)
class Kind:
    """What differs between kinds of runs in their files and messages."""

    config: str
    """Name of the config file in the run's folder."""
    doing: str
    """What another process does that holds the folder."""
    made: str
    """How a run with another origin was made."""
    part: str
    """What an epoch is called."""


DISTILLING = Kind(
    config="config.yaml",
    doing="training in",
    made="trained with another recipe, set or teacher",
    part="epoch",
)
LEARNING = Kind(
    config="learn.yaml",
    doing="learning in",
    made="made with another config, student, set or teacher",
    part="experience",
)


@dataclass(frozen=True)
class Stored:
    """The newest checkpoint of a run that is resumed."""

    progress: Progress
    world_size: int
    state: dict[str, Any]
    """What the training put into it, and its `origin`."""


def find_stored(workspace: Workspace, resume: str | None) -> Stored | None:
    """The checkpoint of the run that is resumed; None: a new run, or killed before its first.

    Raises:
        PersonaError: the checkpoint is damaged or of another version.
    """
    found = None if resume is None else load_checkpoint(workspace.runs / resume)
    return None if found is None else Stored(*found)


class Run:
    """A run in its folder; with `with` it holds the folder and has a tracker.

    All processes have one, and only the main process writes.
    """

    def __init__(
        self,
        kind: Kind,
        workspace: Workspace,
        accelerator: Accelerator,
        *,
        architecture: str,
        config: dict[str, Any],
        trackers: str,
        origin: Mapping[str, Any],
        resume: str | None = None,
        stored: Stored | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        """Takes up the position of `stored`, or starts a new run.

        Args:
            kind: what the run is called in files and messages.
            workspace: where runs lie.
            accelerator: device and processes.
            architecture: the student's; the ID of a new run begins with it.
            config: plain values, for the config file and the trackers.
            trackers: where metrics go, see `persona.training.tracking`.
            origin: what a run depends on; a checkpoint of another origin is refused.
            resume: ID of the run that is taken up.
            stored: its checkpoint.
            callbacks: told of steps, epochs and evaluations; one may end the training.

        Raises:
            PersonaError: the checkpoint is of another origin, or was written inside an epoch by
                another number of processes; or a tracker's package is not installed.
        """
        check_trackers(trackers)
        self.kind, self.accelerator = kind, accelerator
        self.config, self.trackers = config, trackers
        self.origin = dict(origin)
        self.callbacks, self.stopping = callbacks, False
        self.id = resume or agree(accelerator, new_id(architecture))
        self.folder: Path = workspace.runs / self.id
        self.progress = Progress()
        self.tracker: Tracker | None = None
        self._held = contextlib.ExitStack()
        if stored is not None:
            self._take_up(stored)

    def _take_up(self, stored: Stored) -> None:
        kind, processes = self.kind, self.accelerator.num_processes
        differing = differences(stored.state["origin"], self.origin)
        if differing:
            raise PersonaError(
                f"run {self.id} was {kind.made} ({'; '.join(differing)}): restore it, or start a "
                "new run"
            )
        if stored.progress.batch and stored.world_size != processes:
            raise PersonaError(
                f"run {self.id} stopped inside an {kind.part} on {stored.world_size} process(es): "
                f"resume it on as many, not {processes}"
            )
        self.progress = stored.progress

    def __enter__(self) -> Run:
        """Locks the folder, writes the config and opens the trackers; the main process alone."""
        if self.accelerator.is_main_process:
            self._held.enter_context(folder_lock(self.folder, doing=self.kind.doing))
            text = yaml.safe_dump(self.config, sort_keys=False)
            write_atomically(self.folder / self.kind.config, text.encode())
            tracker = Tracker(
                self.folder,
                run_id=self.id,
                config=self.config,
                trackers=self.trackers,
                step=self.progress.step,
            )
            self.tracker = self._held.enter_context(tracker)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._held.__exit__(kind, error, trace)
        if kind is None:
            self.accelerator.wait_for_everyone()
        self.accelerator.end_training()

    def record(self, **figures: float) -> None:
        """Notes figures at this step, and which epoch it is in."""
        if self.tracker is not None and figures:
            epoch = figures.pop("epoch", self.progress.epoch)
            self.tracker.log(self.progress.step, epoch=epoch, **figures)

    def tell(self, method: str, metrics: Mapping[str, float]) -> None:
        """Tells the callbacks where the training stands; the main process's may end it for all."""
        if self.callbacks:
            moment = Moment(self.id, self.progress.step, self.progress.epoch, metrics)
            tell(self.callbacks, method, moment)
            self.stopping |= agree(self.accelerator, moment.stopping)

    def checkpoint(self, state: Mapping[str, Any]) -> None:
        """Writes position and state; all processes wait until it is on disk."""
        if self.accelerator.is_main_process:
            kept = {**state, "origin": self.origin}
            save_checkpoint(self.folder, self.progress, self.accelerator.num_processes, kept)
        self.accelerator.wait_for_everyone()

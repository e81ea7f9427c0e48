"""A training run: its ID and folder, lock, tracker, progress, checkpoints and callbacks.

`persona distill` and `persona learn` both use it. They define what is trained and how. The run
saves and restores their state.

    runs/<ID>/config.yaml     the config (learn.yaml for `persona learn`)
    runs/<ID>/metrics.jsonl   losses and accuracies
    runs/<ID>/checkpoint.pt   the newest checkpoint
    runs/<ID>/ended           empty; it says that the run has ended, and was not cut off
"""

from __future__ import annotations

import contextlib
import logging
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

from accelerate import Accelerator

from persona.config import (
    NOT_LEARNED,
    DistillConfig,
    LearnConfig,
    differences,
    find_run,
    save_config,
)
from persona.errors import PersonaError, Preempted
from persona.files import folder_lock
from persona.models.cards import new_id
from persona.training.callbacks import Callback, Moment, tell
from persona.training.checkpoint import (
    Progress,
    load_checkpoint,
    load_progress,
    save_checkpoint,
)
from persona.training.devices import agree
from persona.training.meter import NOT_FINITE
from persona.training.preemption import Preemption
from persona.training.tracking import Tracker, check_trackers
from persona.workspace import Workspace

log = logging.getLogger(__name__)

ENDED = "ended"
"""Name of the file that a run writes last."""
LOG_STEPS = 20
"""Optimizer steps between metric records."""


@dataclass(frozen=True)
class RunKind:
    """A kind of run: the file name and the words for messages in which kinds differ."""

    config: str
    """Name of the config file in the run's folder."""
    doing: str
    """Text for what another process that has locked the folder is doing."""
    made: str
    """Text for how a run with another origin was made."""
    part: str
    """Name of one part of the run, as "epoch"."""
    divisible: bool
    """Whether what is left of a part can be shared by another number of processes."""


DISTILLING = RunKind(
    config="config.yaml",
    doing="training in",
    made="trained with another recipe, set or teacher",
    part="epoch",
    divisible=True,
)
LEARNING = RunKind(
    config="learn.yaml",
    doing="learning in",
    made="made with another config, student, set or teacher",
    part="experience",
    divisible=False,
)


@dataclass(frozen=True)
class Stored:
    """The newest checkpoint of a run that is resumed."""

    progress: Progress
    world_size: int
    state: dict[str, Any]
    """The training's own state, and the run's `origin`."""


def find_stored(
    kind: type[DistillConfig] | type[LearnConfig], workspace: Workspace, resume: str | None
) -> Stored | None:
    """Loads the checkpoint of the run that is resumed.

    Args:
        kind: the config of such a run.
        workspace: the folders, among them that of the runs.
        resume: ID of the run. None means that a new one begins.

    Returns:
        The checkpoint. None means that the run is new, or was killed before its first checkpoint.

    Raises:
        PersonaError: there is no such run, or its checkpoint is damaged or of another version.
    """
    if resume is None:
        return None
    found = load_checkpoint(find_run(kind, workspace.runs, resume).parent)
    return None if found is None else Stored(*found)


class Run:
    """A run and its folder. Inside a `with` block it holds the folder's lock and a tracker.

    Every process has a `Run`, but only the main process writes.
    """

    def __init__(
        self,
        kind: RunKind,
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
        """Continues from the checkpoint `stored`, or starts a new run.

        Args:
            kind: the kind of run, for files and messages.
            workspace: the folders, among them that of the runs.
            accelerator: device and processes.
            architecture: the student's architecture. The ID of a new run begins with it.
            config: plain values for the config file and the trackers.
            trackers: names of the trackers, see `persona.training.tracking`.
            origin: facts that must be the same when the run is resumed, such as the recipe and the
                digest of the train set. A checkpoint of another origin is refused.
            resume: ID of the run to continue.
            stored: the checkpoint of that run.
            callbacks: called after steps, epochs and evaluations. A callback may end the training.

        Raises:
            PersonaError: the checkpoint has another origin, or was written inside an experience by
                another number of processes, or a tracker's package is not installed.
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
        self._preemption = Preemption(accelerator)
        self._held = contextlib.ExitStack()
        if stored is not None:
            self._take_up(stored)

    def _take_up(self, stored: Stored) -> None:
        kind, processes = self.kind, self.accelerator.num_processes
        was = {name: _learned(fact) for name, fact in stored.state["origin"].items()}
        differing = differences(was, self.origin)
        if differing:
            raise PersonaError(
                f"run {self.id} was {kind.made} ({'; '.join(differing)}): restore it, or start a "
                "new run"
            )
        self.progress = stored.progress
        if not self.progress.batch or stored.world_size == processes:
            return
        stopped = f"stopped inside an {kind.part} on {stored.world_size} process(es)"
        if not kind.divisible:
            raise PersonaError(f"run {self.id} {stopped}: resume it on as many, not {processes}")
        log.info("run %s %s: %d share what is left of it", self.id, stopped, processes)
        self.progress.earlier.append([stored.world_size, self.progress.batch])
        self.progress.batch = 0

    def __enter__(self) -> Run:
        """Locks the folder, writes the config and opens the trackers, on the main process only.

        From here on, every process receives the signals that ask it to end.
        """
        with contextlib.ExitStack() as stack:  # nothing stays held if a step fails
            stack.enter_context(self._preemption)
            if self.accelerator.is_main_process:
                self._open(stack)
            self._held = stack.pop_all()
        return self

    def _open(self, stack: contextlib.ExitStack) -> None:
        stack.enter_context(folder_lock(self.folder, doing=self.kind.doing))
        if load_progress(self.folder).step != self.progress.step:
            raise PersonaError(
                f"run {self.id} went on in another process while this one began: run the command "
                "again"
            )
        # How it ended before is over: it may be resumed with a new length or learning rate.
        for name in (ENDED, NOT_FINITE):
            (self.folder / name).unlink(missing_ok=True)
        save_config(self.folder / self.kind.config, self.config)
        tracker = Tracker(
            self.folder,
            run_id=self.id,
            config=self.config,
            trackers=self.trackers,
            step=self.progress.step,
        )
        self.tracker = stack.enter_context(tracker)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._held.__exit__(kind, error, trace)
        if kind is None:
            self.accelerator.wait_for_everyone()
            if self.accelerator.is_main_process:
                (self.folder / ENDED).touch()
        self.accelerator.end_training()

    def record(self, **figures: float) -> None:
        """Records figures at the current step, with its epoch."""
        if self.tracker is not None and figures:
            epoch = figures.pop("epoch", self.progress.epoch)
            self.tracker.log(self.progress.step, epoch=epoch, **figures)

    def tell(self, method: str, metrics: Mapping[str, float]) -> None:
        """Calls `method` of all callbacks. Those of the main process may end the training."""
        if self.callbacks:
            moment = Moment(self.id, self.progress.step, self.progress.epoch, metrics)
            tell(self.callbacks, method, moment)
            self.stopping |= agree(self.accelerator, moment.stopping)

    def preempted(self) -> bool:
        """Whether a process was told to end. All processes ask after each optimizer step."""
        return self._preemption.agreed()

    def end_early(self) -> NoReturn:
        """Ends a run that was told to end, after its checkpoint.

        Raises:
            Preempted: always.
        """
        number = self._preemption.received
        told = "told to end" if number is None else f"told to end ({signal.Signals(number).name})"
        raise Preempted(
            f"{told}: a checkpoint is written at step {self.progress.step}; run the command with "
            f"--resume {self.id} to go on"
        )

    def checkpoint(self, state: Mapping[str, Any]) -> None:
        """Writes progress and state to the checkpoint. All processes wait until it is on disk."""
        if self.accelerator.is_main_process:
            kept = {**state, "origin": self.origin}
            save_checkpoint(self.folder, self.progress, self.accelerator.num_processes, kept)
        self.accelerator.wait_for_everyone()


def _learned(fact: Any) -> Any:
    """A fact about a run's origin without `NOT_LEARNED`, of which older checkpoints hold some."""
    if not isinstance(fact, Mapping):
        return fact
    return {name: value for name, value in fact.items() if name not in NOT_LEARNED}

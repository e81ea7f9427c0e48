"""Runs modules as processes of their own: those of a sweep, and a training of several processes.

A process is told to end with this one. Its standard output is one JSON document, and lies in a
folder together with its log.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from persona.config import DistillConfig, save_config, to_dict
from persona.errors import PersonaError
from persona.workspace import Workspace

ANSWER, LOG, RECIPE = "answer.json", "log.txt", "recipe.yaml"
ENDING_S = 60.0
"""Seconds that processes have for a checkpoint when this one is interrupted."""
PR_SET_PDEATHSIG = 1
"""Option of prctl(2): the signal that a process gets when its parent ends."""
ERROR = "error: "


class Failed(PersonaError):  # noqa: N818 - as StopIteration, it says what happened
    """A process failed, or gave no answer. The message is its own last line."""


class Process(subprocess.Popen[bytes]):
    """A module that was started."""

    log_start = 0
    """Size of its log in bytes when it was started, by processes before it."""


def ending_with_parent() -> Callable[[], None] | None:
    """What a new process calls to end when its parent is killed. It would train beside the next.

    Everything is looked up here: between fork and exec the new process must take no lock that
    another thread of this one may hold.
    """
    if sys.platform != "linux":
        return None
    prctl, number = ctypes.CDLL(None).prctl, int(signal.SIGTERM)

    def tie() -> None:
        prctl(PR_SET_PDEATHSIG, number)

    return tie


def python() -> list[str]:
    """The command that runs a module."""
    return [sys.executable, "-m"]


def start(command: list[str], folder: Path, where: dict[str, str]) -> Process:
    """Starts a module.

    Args:
        command: the name of the module and its arguments.
        folder: where its output goes.
        where: variables of its environment beside those of this process.
    """
    with (folder / ANSWER).open("wb") as out, (folder / LOG).open("ab") as told:
        log_start = told.tell()
        process = Process(
            [*python(), *command],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=told,
            env={**os.environ, **where},
            start_new_session=True,  # Ctrl-C is for this process, which ends them properly
            preexec_fn=ending_with_parent(),  # it makes a system call alone
        )
    process.log_start = log_start
    return process


def answer(process: Process, folder: Path) -> dict[str, Any]:
    """The JSON that an ended process has printed.

    Raises:
        Failed: it failed, or printed none.
    """
    if process.returncode == 0:
        try:
            found = json.loads((folder / ANSWER).read_bytes())
        except ValueError:
            found = None
        if isinstance(found, dict):
            return found
    # What earlier processes wrote is kept, but their errors are not those of this one.
    own = (folder / LOG).read_bytes()[process.log_start :]
    lines = own.decode("utf-8", errors="replace").splitlines()
    # Of several processes the launcher's trace comes last, and the error of the first one before.
    errors = [line for line in lines if line.startswith(ERROR)]
    last = (errors or lines or [""])[-1].removeprefix(ERROR)
    raise Failed(f"{last or f'exit code {process.returncode}'} ({folder / LOG})")


def end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ends processes. A training among them writes a checkpoint first."""
    for process in processes:
        process.terminate()
    until_s = time.monotonic() + ENDING_S
    for process in processes:
        try:
            process.wait(max(0.0, until_s - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def train_apart(config: DistillConfig, place: Workspace, processes: int, resume: str | None) -> str:
    """Trains in several processes of this machine, and returns the ID of the model.

    Raises:
        PersonaError: one of them failed. The message is that of the first.
    """
    import torch

    place.runs.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".processes-", dir=place.runs) as name:
        folder = Path(name)
        save_config(folder / RECIPE, to_dict(config))
        command = [
            *("torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"),
            *("-m", "persona.distill", f"--config={folder / RECIPE}", "--json"),
            *(f"--runs={place.runs}", f"--shards={place.shards}", f"--models={place.models}"),
            *([f"--resume={resume}"] if resume else []),
        ]
        where = {} if torch.cuda.is_available() else {"ACCELERATE_USE_CPU": "true"}
        process = start(command, folder, where)
        try:
            process.wait()
        finally:
            end([process])
        try:
            return str(answer(process, folder)["id"])
        except Failed as error:
            # The log goes with the folder.
            raise PersonaError(str(error).replace(f" ({folder / LOG})", "")) from None

"""SIGTERM and SIGUSR1 during a run: a checkpoint, an exit code, and the same weights in the end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from accelerate import Accelerator
from conftest import NO_ALIGN, write_vggface2
from helpers import DISTILL, TESTS, TWO_PROCESSES, distill_here, environment, reset_accelerate
from little import LITTLE

from persona.cli.errors import EXIT_PREEMPTED
from persona.data.pack import pack_photos
from persona.data.raw import open_dataset
from persona.training.preemption import Preemption

OPTIONS = (*(LITTLE, "--teacher", "none", "-e", "2"), *("--seed", "3", "--checkpoint-steps", "100"))
SIGNALLED = """
import os, signal, subprocess, sys, time
sys.path.insert(0, sys.argv.pop(1))
import little  # the backbone
from persona.cli.distill import main
from persona.distill.recipe import Distillation
from persona.training import checkpoint

step, name, where = int(sys.argv.pop(1)), sys.argv.pop(1), sys.argv.pop(1)
me = os.getpid()
kill = lambda: os.kill(me, getattr(signal, name))

if where == "group":  # as a cluster does: from elsewhere, and the loader processes get it, too

    def kill():
        subprocess.run(["kill", f"-{name[3:]}", "--", f"-{os.getpgrp()}"])
        time.sleep(1)

if where in {"step", "group"}:
    after = Distillation.after_step

    def after_step(self, *arguments):
        if self.run.progress.step == step:
            kill()
        after(self, *arguments)

    Distillation.after_step = after_step
elif where == "evaluation":  # the machine does not wait for the evaluation that is due
    after = Distillation.after_step

    def after_step(self, *arguments):
        if self.run.progress.step == step:
            kill()
            self.evaluate = lambda: os._exit(9)
        after(self, *arguments)

    Distillation.after_step = after_step
elif where == "checkpoint":
    write = checkpoint.torch.save

    def save(state, file):
        write(state, file)
        if state["progress"]["step"] == step:
            kill()

    checkpoint.torch.save = save
main()
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    write_vggface2(folder / "raw")
    dataset = open_dataset("vggface2", folder / "raw")
    pack_photos(dataset, folder / "shards" / dataset.set_name, NO_ALIGN)
    return folder


@pytest.fixture(scope="module")
def whole(home: Path) -> dict[str, torch.Tensor]:
    """The weights of a run that nobody interrupts: 2 epochs of 6 steps."""
    return weights(home, distill_here(*OPTIONS, home=home))


def weights(home: Path, model: str) -> dict[str, torch.Tensor]:
    (file,) = (home / "models" / model).glob("*.safetensors")
    return safetensors.torch.load_file(file)


def signalled(
    step: int, name: str, where: str, *options: str, home: Path
) -> tuple[int, str, str | None]:
    """A run that gets a signal at a step: its exit code, its errors, and the new run's ID."""
    before = set((home / "runs").glob("*"))
    done = subprocess.run(
        [sys.executable, "-c", SIGNALLED, TESTS, str(step), name, where, *DISTILL, *options],
        env=environment(home),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        start_new_session=True,
    )
    found = set((home / "runs").glob("*")) - before
    return done.returncode, done.stderr, found.pop().name if found else None


def reached(home: Path, run: str) -> tuple[int, int]:
    progress = torch.load(home / "runs" / run / "checkpoint.pt", weights_only=True)["progress"]
    return progress["epoch"], progress["step"]


@pytest.mark.parametrize(
    ("step", "name", "more", "at"),
    [
        (3, "SIGUSR1", (), (0, 3)),
        (8, "SIGTERM", ("-w", "2"), (1, 8)),
        (6, "SIGTERM", (), (0, 6)),  # the last step of an epoch, which is not counted yet
    ],
)
def test_a_run_that_is_told_to_end_is_resumed_to_the_same_weights(
    step: int,
    name: str,
    more: tuple[str, ...],
    at: tuple[int, int],
    home: Path,
    whole: dict[str, torch.Tensor],
) -> None:
    options = (*OPTIONS, "--resume", "auto", *more)
    code, told, run = signalled(step, name, "step", *options, home=home)
    assert code == EXIT_PREEMPTED and run is not None, told
    line = f"error: told to end ({name}): a checkpoint is written at step {step}; run the command "
    assert told.splitlines()[-1] == line + f"with --resume {run} to go on"
    assert reached(home, run) == at
    assert distill_here(*options, home=home) == run
    resumed = weights(home, run)
    for tensor, value in whole.items():
        assert torch.equal(value, resumed[tensor]), tensor


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_loader_processes_go_on_until_the_run_has_ended(name: str, home: Path) -> None:
    options = (*OPTIONS, "-w", "2")
    code, told, run = signalled(2, name, "group", *options, home=home)
    assert code == EXIT_PREEMPTED and run is not None, told
    assert reached(home, run) == (0, 2)


def test_after_its_last_step_a_run_ends_as_usual(home: Path) -> None:
    code, told, run = signalled(12, "SIGTERM", "step", *OPTIONS, home=home)
    # The end of the second epoch evaluates and saves first; there is no step to notice it after.
    assert run is not None
    assert (code, reached(home, run)) == (EXIT_PREEMPTED, (1, 12)), told
    code, told, run = signalled(12, "SIGTERM", "step", *OPTIONS[:3], "--steps", "12", home=home)
    assert code == 0, told


def test_a_checkpoint_is_whole_when_the_signal_comes_while_it_is_written(home: Path) -> None:
    # A seed of its own: `auto` would go on with an unfinished run of another test.
    options = (*OPTIONS[:-4], "--seed", "4", "--checkpoint-steps", "4", "--resume", "auto")
    code, told, run = signalled(4, "SIGTERM", "checkpoint", *options, home=home)
    assert code == EXIT_PREEMPTED and run is not None, told
    assert reached(home, run) == (0, 5)
    assert not list((home / "runs" / run).glob(".*.partial"))


def test_a_checkpoint_is_written_before_an_evaluation_that_is_due(home: Path) -> None:
    options = (*OPTIONS, "--evaluate-steps", "4")
    code, _, run = signalled(4, "SIGTERM", "evaluation", *options, home=home)
    assert code == 9 and run is not None
    assert reached(home, run) == (0, 4)


def test_all_processes_end_after_the_same_step(home: Path) -> None:
    """One of two processes gets the signal, and its launcher ends with an error of its own."""
    script = home / "signalled.py"
    script.write_text(
        SIGNALLED.replace(
            "me = os.getpid()", "me = os.getpid()\nif os.environ['RANK'] == '0': step = 0"
        )
    )
    options = (*OPTIONS[:3], "-e", "2", "--checkpoint-steps", "100")
    before = set((home / "runs").glob("*"))
    launch = ("accelerate.commands.launch", "--config_file", str(TWO_PROCESSES))
    done = subprocess.run(
        [
            *(sys.executable, "-m", *launch, "--main_process_port", "0", str(script), TESTS),
            *("2", "SIGUSR1", "step", *DISTILL, *options),
        ],
        env=environment(home),
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode != 0
    (folder,) = set((home / "runs").glob("*")) - before
    assert "error: told to end: a checkpoint is written at step 2; run" in done.stderr
    assert reached(home, folder.name) == (0, 2)
    # 20 of 30 samples are seen. One process has two batches left of this epoch, then six.
    distill_here("--resume", folder.name, home=home)
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    progress = state["progress"]
    assert (progress["epoch"], progress["step"], progress["photos"]) == (2, 10, 60)
    assert progress["earlier"] == []
    # Two steps of two processes are four of one: the schedule of 12 steps ends where the run ends.
    assert state["scheduler"]["last_epoch"] == 12
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    rates = [json.loads(line)["lr"] for line in lines]
    assert rates[-1] == pytest.approx(1e-6)


def test_signals_are_as_before_after_a_run() -> None:
    accelerator = Accelerator(cpu=True)
    try:
        before = signal.getsignal(signal.SIGTERM)
        with Preemption(accelerator) as quiet:
            assert not quiet.agreed()
        assert signal.getsignal(signal.SIGTERM) == before
        with Preemption(accelerator) as told:
            os.kill(os.getpid(), signal.SIGTERM)
            assert told.agreed()
        os.kill(os.getpid(), signal.SIGTERM)  # a launcher forwards it a second time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as below a shell's `trap '' TERM`
        with Preemption(accelerator) as deaf:
            os.kill(os.getpid(), signal.SIGTERM)
            assert not deaf.agreed()
        failed: list[Any] = []
        thread = threading.Thread(target=lambda: failed.append(Preemption(accelerator).__enter__()))
        thread.start()
        thread.join()
        assert len(failed) == 1
    finally:
        reset_accelerate()

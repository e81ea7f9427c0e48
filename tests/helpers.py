"""Starting the real command lines, and decoding photos."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from persona.data.align.decode import EncodedPhoto

TESTS = str(Path(__file__).parent)
TWO_PROCESSES = Path(__file__).parents[1] / "configs" / "two_cpu_processes.yaml"
ONE_THREAD = {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}


def decode_photo(data: bytes) -> Image.Image:
    """Decodes a photo to upright 8-bit RGB, at its own size."""
    return EncodedPhoto(data).decode().image


def environment(home: Path, **more: str | None) -> dict[str, str]:
    """The environment of a command that works in `home`, on the CPU alone; None takes one out."""
    # ACCELERATE_USE_CPU keeps machines with a GPU to what the tests compare with.
    fixed = {"PERSONA_HOME": str(home), "ACCELERATE_USE_CPU": "true"}
    wanted: dict[str, str | None] = {**os.environ, **ONE_THREAD, **fixed, **more}
    return {name: value for name, value in wanted.items() if value is not None}


def run(
    *command: str, home: Path, fails: bool = False, **more: str | None
) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end; its exit code must be what `fails` says."""
    done = subprocess.run(
        [sys.executable, "-m", *command],
        env=environment(home, **more),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert (done.returncode != 0) == fails, done.stderr
    return done


def persona_error(*arguments: str, home: Path) -> str:
    """`persona ARGUMENTS` must fail; its one line on stderr."""
    done = run("persona", *arguments, home=home, fails=True)
    assert "Traceback" not in done.stderr
    lines = done.stderr.strip().splitlines()
    assert lines[-1].startswith("error: "), done.stderr
    return lines[-1]


DISTILL = ("-b", "5", "-w", "0", "--tracker", "none", "--test-set", "none")


def reset_accelerate() -> None:
    """Accelerate keeps the first run's device and precision for the whole process."""
    from accelerate.state import AcceleratorState, GradientState, PartialState

    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def _here(app: Any, arguments: tuple[str, ...], home: Path) -> Any:
    """Invokes a command line in this process, where torch has been imported once."""
    from typer.testing import CliRunner

    fixed = {"PERSONA_HOME": str(home), "ACCELERATE_USE_CPU": "true"}
    try:
        return CliRunner().invoke(app, arguments, env=fixed)
    finally:
        reset_accelerate()


def distill_here(*arguments: str, home: Path) -> str:
    """`distill` in this process."""
    from persona.cli.distill import app

    result = _here(app, (*DISTILL, *arguments, "--json"), home)
    if result.exception is not None:
        raise result.exception
    return str(json.loads(result.stdout)["id"])


def distill_error(*arguments: str, home: Path) -> str:
    """`distill` in this process must fail as a user may see it; the line it would print."""
    from persona.cli.distill import app
    from persona.cli.errors import explain

    result = _here(app, (*DISTILL, *arguments), home)
    assert result.exception is not None
    explained = explain(result.exception)
    assert explained is not None, result.exception
    return explained[0]


def persona_here(*arguments: str, home: Path) -> Any:
    """`persona` in this process."""
    from persona.cli.app import app

    result = _here(app, (*arguments, "--json"), home)
    if result.exception is not None:
        raise result.exception
    return json.loads(result.stdout)


def persona_error_here(*arguments: str, home: Path) -> str:
    """`persona` in this process must fail as a user may see it; the line it would print."""
    from persona.cli.app import app
    from persona.cli.errors import explain

    result = _here(app, arguments, home)
    assert result.exception is not None
    explained = explain(result.exception)
    assert explained is not None, result.exception
    return explained[0]


@contextlib.contextmanager
def left_by_a_kill(checkpoints: int, home: Path, elsewhere: Path) -> Iterator[None]:
    """Copies what a run killed after so many checkpoints leaves on the disk; the run goes on.

    A SIGKILL leaves the files as they are at that moment. In the home `elsewhere` the run is as
    they were, and can be taken up; in `home` it comes to its end, to compare with.
    """
    from persona.training import run

    module: Any = run

    save, count = module.save_checkpoint, itertools.count(1)

    def save_and_copy(folder: Path, *arguments: Any) -> None:
        save(folder, *arguments)
        if next(count) == checkpoints:
            shutil.copytree(folder, elsewhere / "runs" / folder.name)
            shutil.copytree(home / "models", elsewhere / "models", dirs_exist_ok=True)
            (elsewhere / "shards").symlink_to(home / "shards")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "save_checkpoint", save_and_copy)
        yield


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv.pop(1))
import little  # the backbone of a teacher
from persona.cli.distill import main
from persona.training import run

write, left = run.save_checkpoint, [int(sys.argv.pop(1))]

def write_and_die(*arguments):
    write(*arguments)
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)

run.save_checkpoint = write_and_die
main()
"""


def killed(checkpoints: int, *arguments: str, home: Path) -> str:
    """A `python -m persona.distill` that is killed after so many checkpoints; the run's ID."""
    before = set((home / "runs").glob("*"))
    done = subprocess.run(
        [sys.executable, "-c", KILLED, TESTS, str(checkpoints), *DISTILL, *arguments],
        env=environment(home),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    (folder,) = set((home / "runs").glob("*")) - before
    return folder.name

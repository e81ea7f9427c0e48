"""Starting the real command lines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

TWO_PROCESSES = Path(__file__).parents[1] / "configs" / "two_cpu_processes.yaml"
ONE_THREAD = {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}


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


def persona(*arguments: str, home: Path) -> Any:
    """`persona ARGUMENTS --json`, as the value it prints."""
    return json.loads(run("persona", *arguments, "--json", home=home).stdout)


def persona_error(*arguments: str, home: Path) -> str:
    """`persona ARGUMENTS` must fail; its one line on stderr."""
    done = run("persona", *arguments, home=home, fails=True)
    assert "Traceback" not in done.stderr
    lines = done.stderr.strip().splitlines()
    assert lines[-1].startswith("error: "), done.stderr
    return lines[-1]


DISTILL = ("-b", "5", "-w", "0", "--tracker", "none", "--test-set", "none")


def distill(*arguments: str, home: Path, processes: int = 1, **more: str | None) -> str:
    """A short `python -m persona.distill`, or as launched on two processes; the model's ID."""
    accelerate = ("accelerate.commands.launch", "--config_file", str(TWO_PROCESSES), "-m")
    launch = (*(accelerate if processes == 2 else ()), "persona.distill")
    done = run(*launch, *DISTILL, *arguments, "--json", home=home, fails=False, **more)
    return str(json.loads(done.stdout)["id"])


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

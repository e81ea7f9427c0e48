"""`persona distill` on one device and on several."""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from conftest import NO_ALIGN, write_vggface2
from helpers import DISTILL, TWO_PROCESSES, _here, environment
from little import LITTLE
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from persona.cli import launch, signals
from persona.cli.app import app
from persona.cli.launch import launch_on_gpus
from persona.data.pack import pack_photos
from persona.data.raw import open_dataset
from persona.errors import PersonaError, Preempted

ARGUMENTS = ("--teacher", "none", "-e", "1", "--json")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    write_vggface2(folder / "raw")
    dataset = open_dataset("vggface2", folder / "raw")
    pack_photos(dataset, folder / "shards" / dataset.set_name, NO_ALIGN)
    return folder


def test_on_one_device_it_trains_in_its_own_process(
    home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(launch, "count_gpus", lambda: 1)
    with caplog.at_level("INFO", "persona"):
        done = _here(app, ("distill", LITTLE, *DISTILL, *ARGUMENTS), home)
    assert json.loads(done.stdout)["epochs"] == 1
    assert "6 batches of 5 on 1 process(es)" in caplog.text
    assert "launching" not in caplog.text


def test_on_several_each_has_a_process_and_what_one_says_is_the_end(home: Path) -> None:
    """Two processes on the CPU, in place of two GPUs; the launcher adds no trace of its own."""
    (home / launch.CONFIG).write_text(TWO_PROCESSES.read_text())
    code = "from persona.cli import launch, main\nlaunch.count_gpus = lambda: 2\nmain()"
    small = ("-o", "student.width=0.35", "-o", "student.embedding_size=32")
    command = [sys.executable, "-c", code, "distill", *DISTILL, *ARGUMENTS, *small]
    options: Any = {"env": environment(home), "capture_output": True, "text": True, "cwd": home}
    done = subprocess.run(command, **options, check=True)
    assert json.loads(done.stdout)["epochs"] == 1
    assert "launching on 2 GPUs as accelerate_config.yaml says" in done.stderr
    assert "3 batches of 5 on 2 process(es)" in done.stderr

    # A mistake that each finds before it imports torch.
    done = subprocess.run([*command, "--config", "nope.yaml"], **options, check=False)
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if not line.startswith(("launch", "note:"))]
    assert len(set(lines)) == 1 and lines[0].startswith("error: cannot read config nope.yaml")


Launched = Callable[..., list[str]]


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Launched:
    """Launches on so many GPUs, where the launcher ends as told; what it was given."""
    from accelerate.commands import launch as accelerate

    for name in launch.LAUNCHED:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(signals, "received", None)
    given: list[str] = []

    def launch_with(gpus: int, end: BaseException | None = None) -> list[str]:
        def launch_command(parsed: Any) -> None:
            found = {name: value for name, value in vars(parsed).items() if value}
            keys = ("config_file", "num_processes", "multi_gpu", "mixed_precision", "module")
            given.extend(f"{key}={found[key]}" for key in keys if key in found)
            given.extend([parsed.training_script, *parsed.training_script_args])
            if end is not None:
                raise end

        monkeypatch.setattr(accelerate, "launch_command", launch_command)
        monkeypatch.setattr(launch, "count_gpus", lambda: gpus)
        launch_on_gpus("persona.distill", ["-e", "3", "--json"])
        return given

    launch_with.given = given  # type: ignore[attr-defined]
    return launch_with


def exit_code(launched: Launched, end: BaseException | None = None) -> int:
    with pytest.raises(typer.Exit) as ended:
        launched(4, end)
    return ended.value.exit_code


def test_every_gpu_has_a_process_and_arguments_are_passed_through(launched: Launched) -> None:
    given: list[str] = launched.given  # type: ignore[attr-defined]
    own = ["module=True", "persona.distill", "-e", "3", "--json"]
    assert exit_code(launched) == 0
    assert given == ["num_processes=4", "multi_gpu=True", "mixed_precision=no", *own]
    given.clear()
    launch.CONFIG.touch()
    assert exit_code(launched) == 0
    assert given == ["config_file=accelerate_config.yaml", "num_processes=4", *own]


@pytest.mark.parametrize("variable", launch.LAUNCHED)
def test_what_was_launched_launches_nothing(
    launched: Launched, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert launched(1) == []
    monkeypatch.setenv(variable, "0")
    assert launched(4) == []


def failed(exit_code: int) -> ChildFailedError:
    return ChildFailedError("x", {1: ProcessFailure(1, 99, exit_code, "none")})


def test_its_exit_code_is_that_of_its_processes(launched: Launched) -> None:
    assert exit_code(launched, failed(1)) == 1
    assert exit_code(launched, subprocess.CalledProcessError(3, "x")) == 3
    assert exit_code(launched, SignalException("x", signal.SIGINT)) == 130
    with pytest.raises(PersonaError, match=r"was killed \(SIGKILL\), perhaps for memory"):
        launched(2, failed(-signal.SIGKILL))
    with pytest.raises(PersonaError, match=r"cannot launch as accelerate_config.yaml says: odd"):
        launched(2, ValueError("odd\nlines"))
    with pytest.raises(Preempted, match="--resume RUN to go on"):
        launched(2, SignalException("x", signal.SIGTERM))
    assert signals.received == signal.SIGTERM
    logging.getLogger("torch.distributed.elastic").setLevel(logging.NOTSET)

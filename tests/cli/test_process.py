"""What a process takes from whoever started it: its share of the cores above all."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from conftest import NO_ALIGN, write_vggface2
from helpers import run

from persona import workers
from persona.cli import errors, process
from persona.data.pack import pack_photos
from persona.data.raw import open_dataset
from persona.errors import PersonaError

ALONE = ("--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no")
LAUNCH = ("accelerate.commands.launch", *ALONE, "--dynamo_backend", "no", "-m")
VARIABLES = ("LOCAL_WORLD_SIZE", *process.LAUNCHED)


def threads(monkeypatch: pytest.MonkeyPatch, **environment: str) -> str:
    """OMP_NUM_THREADS after a start in this environment, on twelve cores."""
    monkeypatch.setattr(process, "usable_cores", lambda: 12)
    for name in (*VARIABLES, process.THREADS, process.SHARED, process.WAITING):
        monkeypatch.setenv(name, "")  # so that it is put back, whatever happens to it
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    process.share_threads()
    return os.environ[process.THREADS]


def test_a_process_gets_its_share_of_the_cores(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    launcher = {"ACCELERATE_MIXED_PRECISION": "no"}
    assert threads(monkeypatch) == "12"
    assert os.environ[process.WAITING] == "PASSIVE"
    assert threads(monkeypatch, OMP_NUM_THREADS="1", OMP_WAIT_POLICY="ACTIVE") == "1"
    assert os.environ[process.WAITING] == "ACTIVE"
    assert threads(monkeypatch, OMP_NUM_THREADS="3", **launcher) == "3"
    assert threads(monkeypatch, LOCAL_WORLD_SIZE="5", **launcher) == "2"
    assert threads(monkeypatch, LOCAL_WORLD_SIZE="99", **launcher) == "1"
    # What this process took itself is not the user's in those that it launches.
    shared = {process.THREADS: "12", process.SHARED: "12"}
    assert threads(monkeypatch, LOCAL_WORLD_SIZE="2", **launcher, **shared) == "6"
    # The launcher's own 1 is told from the user's by what the launcher was started with.
    monkeypatch.setattr(process, "Path", lambda _: tmp_path)
    for told, options, wanted in (
        (b"A=1\0B=2\0", b"accelerate\0launch\0", "12"),
        (b"A=1\0OMP_NUM_THREADS=1\0", b"accelerate\0launch\0", "1"),
        (b"A=1\0", b"accelerate\0launch\0--num_cpu_threads_per_process\x001\0", "1"),
        (b"A=1\0", b"accelerate\0launch\0--num-cpu-threads-per-process=1\0", "1"),
    ):
        (tmp_path / "environ").write_bytes(told)
        (tmp_path / "cmdline").write_bytes(options)
        assert threads(monkeypatch, OMP_NUM_THREADS="1", **launcher) == wanted
    (tmp_path / "environ").unlink()
    assert threads(monkeypatch, OMP_NUM_THREADS="1", **launcher) == "12"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("50000 100000", 1), ("250000 100000", 2), ("max 100000", 8), ("", 8), ("9 0", 8)],
)
def test_a_quota_bounds_the_cores(
    text: str, wanted: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpu.max").write_text(text)
    monkeypatch.setattr(workers, "QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert workers.usable_cores() == wanted


def test_alone_and_launched_it_is_the_same_run(tmp_path: Path) -> None:
    """The same threads, so the same sums."""
    write_vggface2(tmp_path / "raw")
    dataset = open_dataset("vggface2", tmp_path / "raw")
    pack_photos(dataset, tmp_path / "shards" / dataset.set_name, NO_ALIGN)
    options: tuple[str, ...] = ("--teacher", "none", "-e", "1", "-b", "15", "-w", "0")
    options += ("--tracker", "none")
    options += ("-o", "student.width=0.35", "-o", "student.embedding_size=32")
    found = []
    for start in ((), LAUNCH):
        command = (*start, "persona.distill", *options, "--test-set", "none", "--json")
        done = run(*command, home=tmp_path, OMP_NUM_THREADS=None)
        said = re.search(r"on 1 process\(es\) of (\d+) thread\(s\)", done.stderr)
        assert said is not None, done.stderr
        metrics = tmp_path / "runs" / json.loads(done.stdout)["id"] / "metrics.jsonl"
        found.append((said[1], json.loads(metrics.read_text().splitlines()[-1])["loss"]))
    assert found[0] == found[1]
    assert found[0][0] == str(workers.usable_cores())


def test_the_launcher_closes_its_trace_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

    failures = {}
    for rank in (0, 1):
        file = tmp_path / f"{rank}.json"
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(file))
        assert errors._say(PersonaError(f"no set of rank {rank}"), debug=False) == 1
        failures[rank] = ProcessFailure(local_rank=rank, pid=1, exitcode=1, error_file=str(file))
    assert capfd.readouterr().err == "error: no set of rank 0\n"
    told = str(ChildFailedError("persona.distill", failures))
    assert "error: no set of rank 0" in told and "error: no set of rank 1" in told


@pytest.mark.parametrize("file", ["", "no/such/folder/error.json"])
def test_without_a_file_of_the_launcher_every_process_says_its_error(
    file: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", file)
    errors._say(PersonaError("a set of rank 1"), debug=False)
    assert capfd.readouterr().err == "error: a set of rank 1\n"

"""Worker processes: order, errors, and that nothing of them stays."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from persona.cli.errors import explain
from persona.errors import PersonaError
from persona.workers import AHEAD, in_threads, tell_done, worker_pool


def build_square(offset: int) -> Callable[[int], int]:
    def square(number: int) -> int:
        time.sleep(0.05 if number % 3 == 0 else 0)  # so that later ones are ready earlier
        if number == 7:
            raise PersonaError("seven")
        if number == 8:
            os.kill(os.getpid(), signal.SIGKILL)
        if number == 9:
            os._exit(3)
        if number == 10:
            resource.setrlimit(resource.RLIMIT_AS, (1 << 32, 1 << 32))
            bytes(1 << 33)
        return offset + number * number

    return square


def build_nothing() -> Callable[[int], int]:
    raise PersonaError("no such model")


def left() -> list[object]:
    return list(multiprocessing.active_children())


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_results_come_in_the_order_of_their_tasks(workers: int) -> None:
    with worker_pool(build_square, (1,), workers) as square:
        assert list(square(range(7))) == [1 + n * n for n in range(7)]
        assert list(square([])) == []
    assert not left()


def build_teller(wait_for: str) -> Callable[[int], int]:
    """Tells of two parts; before its result it waits until a file is there."""

    def tell(number: int) -> int:
        tell_done(1)
        tell_done(2)
        while wait_for and not os.path.exists(wait_for):  # noqa: PTH110
            time.sleep(0.01)
        return number

    return tell


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_parts_of_tasks_are_told_before_their_results(workers: int, tmp_path: Path) -> None:
    told: list[int] = []
    seen = tmp_path / "seen"

    def hear(count: int) -> None:
        told.append(count)
        seen.touch()

    with worker_pool(build_teller, (str(seen),), workers, tell=hear) as tell:
        assert list(tell(range(5))) == list(range(5))
    assert sorted(told) == [1] * 5 + [2] * 5
    tell_done(7)  # nobody listens any more
    assert len(told) == 10


SERVER_MASK = """
from multiprocessing import forkserver
from pathlib import Path
from persona.workers import worker_pool

if __name__ == "__main__":
    with worker_pool(len, (), 1, preload=["json"]):
        server = forkserver._forkserver._forkserver_pid
        lines = Path(f"/proc/{server}/status").read_text().splitlines()
        print(next(line for line in lines if line.startswith("SigBlk")).split()[1])
"""


def test_the_server_is_not_met_by_an_interrupt_while_it_imports(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SERVER_MASK)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert int(done.stdout, 16) >> (signal.SIGINT - 1) & 1


def test_tasks_are_taken_only_so_far_ahead() -> None:
    taken = 0

    def tasks() -> Iterator[int]:
        nonlocal taken
        for _ in range(1000):
            taken += 1
            yield 1

    with worker_pool(build_square, (0,), 2) as square:
        next(results := square(tasks()))
        time.sleep(0.2)
        next(results)
        assert taken <= 2 + 2 * AHEAD


@pytest.mark.parametrize("workers", [0, 2])
def test_what_a_task_raises_is_raised_here(workers: int) -> None:
    with (
        pytest.raises(PersonaError, match=r"^seven") as raised,
        worker_pool(build_square, (0,), workers) as square,
    ):
        list(square([1, 2, 7, *[3] * 20]))
    if workers:
        assert "in square" in raised.value.__notes__[0]  # where, for --debug
    assert not left()


def test_a_killed_worker_is_told_of() -> None:
    with (
        pytest.raises(PersonaError, match=r"a worker process was killed.*fewer --workers"),
        worker_pool(build_square, (0,), 2) as square,
    ):
        list(square([1, 2, 8, 3, 4]))
    assert not left()


def test_a_worker_that_ends_by_itself_is_told_from_a_killed_one() -> None:
    with (
        pytest.raises(PersonaError, match="ended by itself with exit code 3, what it said is abov"),
        worker_pool(build_square, (0,), 2) as square,
    ):
        list(square([1, 2, 9, 3, 4]))
    assert not left()


def test_a_script_that_its_workers_would_run_again_is_told_so(tmp_path: Path) -> None:
    script = tmp_path / "unguarded.py"
    guarded = ENDLESS.format(tests=str(Path(__file__).parent))
    script.write_text(guarded.replace('if __name__ == "__main__":', "if True:"))
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "An attempt has been made to start a new process" in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert "ended by itself with exit code 1" in last and "killed" not in last
    assert 'below `if __name__ == "__main__":`' in last


def test_a_killed_server_of_workers_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "deadly.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    script = tmp_path / "script.py"
    script.write_text(
        "from persona.errors import PersonaError\nfrom persona.workers import worker_pool\n"
        "if __name__ == '__main__':\n    try:\n"
        "        with worker_pool(dict, (), 2, preload=('deadly',)):\n            pass\n"
        "    except PersonaError as error:\n        print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, script],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "a worker process was killed, perhaps for memory" in done.stdout, done.stderr


def test_a_worker_without_memory_is_one_line() -> None:
    with pytest.raises(MemoryError) as raised, worker_pool(build_square, (0,), 1) as square:
        list(square([1, 10]))
    line, code = explain(raised.value) or ("", 0)
    assert line.startswith("there is no memory left: fewer --workers") and code == 1


def test_what_building_raises_is_raised_here() -> None:
    with (
        pytest.raises(PersonaError, match="no such model"),
        worker_pool(build_nothing, (), 2) as run,
    ):
        list(run(range(20)))


ENDLESS = """
import itertools, sys
sys.path.insert(0, {tests!r})
from test_workers import build_square
from persona.workers import worker_pool

if __name__ == "__main__":
    with worker_pool(build_square, (0,), 2) as square:
        for number, _ in enumerate(square(itertools.repeat(3))):
            if number == 2:
                print("running", flush=True)
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_their_parent(how: signal.Signals, tmp_path: Path) -> None:
    """Ctrl-C reaches every process of a terminal's group, SIGKILL the parent alone."""
    script = tmp_path / "endless.py"
    script.write_text(ENDLESS.format(tests=str(Path(__file__).parent)))
    process = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "running\n"
        if how == signal.SIGINT:
            os.killpg(process.pid, how)
        else:
            process.kill()
        _, stderr = process.communicate(timeout=60)  # ends when no worker holds the pipe open
        assert stderr.count("Traceback") == (1 if how == signal.SIGINT else 0), stderr
        assert process.returncode == -how
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def test_threads_keep_the_order_and_take_few_items_ahead() -> None:
    taken: list[int] = []
    both = threading.Barrier(2, timeout=30)

    def items() -> Iterator[int]:
        for number in range(40):
            taken.append(number)
            yield number

    def work(number: int) -> int:
        if number < 2:
            both.wait()  # it passes only if two items are worked on at once
        return 10 * number

    results = in_threads(work, items(), threads=2)
    assert next(results) == 0 and len(taken) <= 2 * AHEAD + 1
    assert list(results) == [10 * number for number in range(1, 40)]


def test_threads_pass_an_error_on_and_begin_nothing_else() -> None:
    begun: list[int] = []

    def work(number: int) -> int:
        begun.append(number)
        if number == 3:
            raise PersonaError("no luck")
        return number

    results = in_threads(work, range(100), threads=1)
    with pytest.raises(PersonaError, match="no luck"):
        list(results)
    assert len(begun) <= 3 + AHEAD + 2

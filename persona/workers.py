"""Worker processes that map over tasks in order, and end with whoever asked for them.

The one that asks has no helper thread and shares no lock with its workers: it sends each a task
through a pipe of its own and waits for the pipes. Ctrl-C is therefore never met by anything but
that wait, and stopping is killing, which is safe because workers write nothing that matters.
A worker whose parent is gone finds its pipe closed and ends.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TypeVar

from persona.errors import PersonaError

T = TypeVar("T")
R = TypeVar("R")

Tell = Callable[[int], None]


def _tell_nobody(_count: int) -> None:
    """What a function tells where nobody asked."""


_tell: Tell = _tell_nobody
"""Of this process."""

AHEAD = 2
"""Results a worker that may wait for an earlier one; memory stays flat."""
NOT_KNOWN = 255
"""The exit code of a worker whose server was killed as well."""
ENDING_S = 10.0
"""What a worker that has closed its pipe has to end."""
QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""Microseconds of processor time in a period, and the period; `max`: no bound."""


def usable_cores() -> int:
    """Cores that this process may use, by its affinity and its control group's quota."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = QUOTA.read_text().split()
        return max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError, ZeroDivisionError):  # no such file, or `max`
        return cores


def tell_done(count: int) -> None:
    """Called by a function that a pool maps: how much of its task is done, before it returns."""
    _tell(count)


@contextlib.contextmanager
def told(tell: Tell) -> Iterator[None]:
    """`tell` hears what `tell_done` is called with in this process."""
    global _tell  # noqa: PLW0603 - a function does not know who maps it
    before, _tell = _tell, tell
    try:
        yield
    finally:
        _tell = before


@contextlib.contextmanager
def told_in_all() -> Iterator[Tell]:
    """Yields `done(n)`, which tells what is lacking to `n` of all that was told since."""
    heard, outer = 0, _tell

    def hear(count: int) -> None:
        nonlocal heard
        heard += count
        outer(count)

    def done(count: int) -> None:
        if count > heard:
            hear(count - heard)

    with told(hear):
        yield done


@dataclass(frozen=True)
class _Part:
    """So much of a task is done: comes through the pipe before its result."""

    count: int


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    task: int | None = None
    """Number of the task it works on."""


@contextlib.contextmanager
def worker_pool(
    build: Callable[..., Callable[[T], R]],
    arguments: Sequence[Any],
    workers: int,
    *,
    preload: Sequence[str] = (),
    tell: Tell = _tell_nobody,
) -> Iterator[Callable[[Iterable[T]], Iterator[R]]]:
    """Yields an ordered map over tasks by `build(*arguments)`, which each worker builds once.

    One map at a time, to its end: one that is left early ends with the pool.

    Args:
        build: a function of a module's top level.
        arguments: picklable.
        workers: processes; 0 works in this one.
        preload: modules that are imported once for all workers.
        tell: hears of parts of tasks as they are done, see `tell_done`.

    Raises:
        PersonaError: from the map, where a worker was killed or did not start. What a task raises
            is raised here.
    """
    if workers == 0:
        function = build(*arguments)
        with told(tell):
            yield lambda tasks: map(function, tasks)
        return
    # Workers fork from a server that has imported once for all of them, and has no threads.
    context = multiprocessing.get_context("forkserver")
    if preload:
        context.set_forkserver_preload(list(preload))
    # First: starting it lets Ctrl-C through again, to a server that is about to import.
    resource_tracker.ensure_running()
    pool: list[_Worker] = []
    try:
        with no_interrupts():  # a worker inherits that: Ctrl-C is its parent's to handle
            for _ in range(workers):
                ours, theirs = context.Pipe()
                process = context.Process(target=_serve, args=(theirs,), daemon=True)
                try:
                    process.start()
                except (EOFError, ConnectionError):  # the server has been killed
                    raise _killed() from None
                theirs.close()
                pool.append(_Worker(process, ours))
        for worker in pool:
            _send(worker, (build, tuple(arguments)))
        yield lambda tasks: _ordered_map(pool, tasks, tell)
    finally:
        for worker in pool:
            worker.process.kill()
        for worker in pool:
            worker.process.join()
            worker.pipe.close()


def _ordered_map(pool: Sequence[_Worker], tasks: Iterable[T], tell: Tell) -> Iterator[Any]:
    """Results in the order of their tasks; a worker gets its next task when it has sent a result.

    One task at a time a worker: it always listens when its parent sends, so that neither can wait
    for the other with a full pipe.
    """
    numbered = iter(enumerate(tasks))
    results: dict[int, Any] = {}
    due, sent, more = 0, 0, True
    while True:
        for worker in pool:
            if worker.task is None and more and sent < due + AHEAD * len(pool):
                try:
                    number, task = next(numbered)
                except StopIteration:
                    more = False
                    break
                _send(worker, task)
                worker.task, sent = number, number + 1
        busy = {worker.pipe: worker for worker in pool if worker.task is not None}
        if due not in results and not busy:
            return
        for pipe in wait(list(busy), timeout=0 if due in results else None):
            assert isinstance(pipe, Connection)
            worker = busy[pipe]
            assert worker.task is not None
            received = _receive(worker)
            if isinstance(received, _Part):
                tell(received.count)
                continue
            results[worker.task], worker.task = received, None
        if due in results:
            yield results.pop(due)
            due += 1


def _send(worker: _Worker, what: object) -> None:
    try:
        worker.pipe.send(what)
    except (BrokenPipeError, ConnectionResetError):
        raise _lost(worker) from None


def _receive(worker: _Worker) -> Any:
    try:
        answer = worker.pipe.recv()
    except (EOFError, ConnectionResetError):
        raise _lost(worker) from None
    if isinstance(answer, _Part):
        return answer
    result, error = answer
    if error is not None:
        raise error
    return result


def _lost(worker: _Worker) -> PersonaError:
    """The error for a worker whose pipe is closed: the kernel killed it, or it ended by itself."""
    worker.process.join(ENDING_S)
    code = worker.process.exitcode
    if code is not None and 0 < code < NOT_KNOWN:
        return PersonaError(
            f"a worker process ended by itself with exit code {code}, what it said is above: if it "
            "ended for memory, run again with fewer --workers; a script of your own must start "
            'its work below `if __name__ == "__main__":`, because workers import it'
        )
    return _killed()


def _killed() -> PersonaError:
    return PersonaError(
        "a worker process was killed, perhaps for memory: run the command again with fewer "
        "--workers; it goes on where it was"
    )


@contextlib.contextmanager
def no_interrupts() -> Iterator[None]:
    """Holds Ctrl-C back until the end; processes that start within never see it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(pipe: Connection) -> None:
    """A worker's life: build, then a result (or what was raised) for each task."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # should the server be older than this pool
    function: Callable[[Any], Any] | None = None
    with (
        contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError),
        told(lambda count: pipe.send(_Part(count))),
    ):
        while True:
            what = pipe.recv()
            try:
                if function is None:
                    build, arguments = what
                    function = build(*arguments)
                    continue
                answer: tuple[Any, Exception | None] = function(what), None
            except Exception as error:
                error.add_note(traceback.format_exc())
                answer = None, error
            pipe.send(answer)

"""Worker processes, and threads, that map a function over tasks, in order.

The parent of worker processes has no helper thread and shares no lock with its workers. It sends
each worker a task through the worker's own pipe, and waits for the pipes. Ctrl-C therefore only
ever interrupts that wait. Stopping the workers means killing them, which is safe because they write
nothing that matters. A worker whose parent has ended finds its pipe closed and ends, too.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import platform
import signal
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
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
    """Ignores reports. It is used if nobody asks for them."""


_tell: Tell = _tell_nobody
"""The receiver of reports in this process."""

AHEAD = 2
"""Results per worker that may wait for an earlier result. It bounds the memory."""
NOT_KNOWN = 255
"""Exit code of a worker whose fork server was killed as well."""
ENDING_S = 10.0
"""Seconds that a worker may take to end after its pipe was closed."""
QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""File with the CPU quota in µs and its period in µs. A quota of `max` means no limit."""


def usable_cores() -> int:
    """Number of cores that this process may use, by its affinity and its control group's quota."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = QUOTA.read_text().split()
        return max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError, ZeroDivisionError):  # no such file, or `max`
        return cores


def processor_name() -> str:
    """Name of the processor, or its architecture where Linux does not tell the name."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def in_threads(work: Callable[[T], R], items: Iterable[T], threads: int = 0) -> Iterator[R]:
    """Yields `work(item)` of each item, in order, from as many threads as there are cores.

    It is for work that leaves Python for most of its time, such as decoding and detecting. Only a
    few items per thread are taken ahead. If the caller stops, so do the threads after their item.
    """
    threads = threads or usable_cores()
    with ThreadPoolExecutor(threads, "work") as pool:
        waiting = deque[Future[R]]()
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > AHEAD * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def tell_done(count: int) -> None:
    """Reports that `count` more units of the current task are done.

    A function that a pool maps calls it before it returns.
    """
    _tell(count)


@contextlib.contextmanager
def told(tell: Tell) -> Iterator[None]:
    """Within the block, `tell` receives the reports of `tell_done` in this process."""
    global _tell  # noqa: PLW0603 - a function does not know which pool maps it
    before, _tell = _tell, tell
    try:
        yield
    finally:
        _tell = before


@contextlib.contextmanager
def told_in_all() -> Iterator[Tell]:
    """Yields `done(n)`, which reports as many units as are missing to a total of `n` since then."""
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
    """A report that units of a task are done. It travels through the pipe before the result."""

    count: int


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    task: int | None = None
    """Number of the task that it works on. None if it is idle."""


@contextlib.contextmanager
def worker_pool(
    build: Callable[..., Callable[[T], R]],
    arguments: Sequence[Any],
    workers: int,
    *,
    preload: Sequence[str] = (),
    tell: Tell = _tell_nobody,
) -> Iterator[Callable[[Iterable[T]], Iterator[R]]]:
    """Yields an ordered map over tasks by the function `build(*arguments)`.

    Each worker builds the function once. Only one map may run at a time, and to its end. A map that
    is left early ends with the pool.

    Args:
        build: A function at a module's top level.
        arguments: Its arguments, which must be picklable.
        workers: Number of processes. 0 works in this process.
        preload: Modules that are imported once for all workers.
        tell: Receives the reports of `tell_done`.

    Raises:
        PersonaError: If a worker was killed or did not start. The map raises it, and also any
            exception of a task.
    """
    if workers == 0:
        function = build(*arguments)
        with told(tell):
            yield lambda tasks: map(function, tasks)
        return
    # Workers fork from a server that has imported the modules once and has no threads.
    context = multiprocessing.get_context("forkserver")
    if preload:
        context.set_forkserver_preload(list(preload))
    # This comes first: starting it unblocks Ctrl-C, also for a server that is about to import.
    resource_tracker.ensure_running()
    pool: list[_Worker] = []
    try:
        with no_interrupts():  # workers inherit the blocked signal: Ctrl-C belongs to the parent
            for _ in range(workers):
                ours, theirs = context.Pipe()
                process = context.Process(target=_serve, args=(theirs,), daemon=True)
                try:
                    process.start()
                except (EOFError, ConnectionError):  # the fork server was killed
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
    """Yields results in the order of the tasks. A worker gets its next task after its result.

    A worker has one task at a time. It is always listening when its parent sends, so that the two
    can never wait for each other with full pipes.
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
    """The error for a worker with a closed pipe: it was killed, or ended by itself."""
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
    """Blocks Ctrl-C within the block. Processes that start within it never receive Ctrl-C."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(pipe: Connection) -> None:
    """The main loop of a worker: build the function, then send a result or error per task."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # for a fork server that is older than the pool
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

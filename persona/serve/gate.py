"""Who may work: so many at once, so many waiting in order, the rest is sent away."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Busy(Exception):  # noqa: N818 - an answer, not a fault
    """All places are taken."""


class TooSlow(Exception):  # noqa: N818
    """A request took longer than it may; the message says which part of it."""


class Gate:
    """Threads behind a queue that is bounded from before a request's body is read.

    So memory is bounded too: by the places and what a request may hold.
    """

    def __init__(
        self,
        workers: int,
        waiting: int,
        *,
        read_s: float,
        work_s: float,
        begin: Callable[[], object] | None = None,
    ) -> None:
        """`begin` is what each thread does first."""
        self._pool = ThreadPoolExecutor(workers, "serve", begin)
        self._places = threading.Semaphore(workers + waiting)
        self._read_s, self._work_s = read_s, work_s

    async def run(self, read: Callable[[], Awaitable[T]], work: Callable[[T], R]) -> R:
        """`work` in a thread on what `read` gives, in the order in which they were read.

        Raises:
            Busy: all places are taken; nothing was read.
            TooSlow: reading, or waiting and working, ran past its time. A thread that has begun
                keeps its place until it is done.
        """
        if not self._places.acquire(blocking=False):
            raise Busy
        with contextlib.ExitStack() as place:
            place.callback(self._places.release)
            value = await _within(self._read_s, read(), "the request did not arrive whole")
            future = self._pool.submit(work, value)
            place.pop_all()
        future.add_done_callback(lambda _: self._places.release())
        return await _within(self._work_s, asyncio.wrap_future(future), "the answer was not ready")

    def close(self) -> None:
        """Waits for the threads; nothing that waits is begun."""
        self._pool.shutdown(cancel_futures=True)


async def _within(seconds: float, what: Awaitable[T], failing: str) -> T:
    try:
        async with asyncio.timeout(seconds):
            return await what
    except TimeoutError:
        raise TooSlow(f"{failing} within {seconds:g} s: try again") from None

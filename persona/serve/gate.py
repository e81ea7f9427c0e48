"""A bounded queue of requests and the threads that work on them; further requests are refused."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from typing import Any, TypeVar

Claim = Callable[[], None]
"""A function that work calls before it commits a change.

It raises TooSlow if the client was told already that the request failed. Otherwise the client waits
for the answer, however long it takes."""
T = TypeVar("T")
R = TypeVar("R")


class Busy(Exception):  # noqa: N818 - an answer, not a fault
    """All places are taken, or the client has as many as one client may have."""


class TooSlow(Exception):  # noqa: N818
    """A request exceeded a time limit. The message says which part of it did."""


class Gate:
    """Threads behind a bounded queue. A request takes its place before its body is read.

    Memory is therefore bounded by the number of places and the largest request.
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
        """Starts the threads.

        Args:
            workers: number of threads.
            waiting: number of requests that may wait for a thread.
            read_s: time limit in s for reading a request.
            work_s: time limit in s for waiting and working.
            begin: function that each thread calls first.
        """
        self._pool = ThreadPoolExecutor(workers, "serve", begin)
        self.places = workers + waiting
        """Most requests in work and in the queue."""
        self._free = self.places
        self._share = self._free - self._free // 4
        """Places that one client may have. The last quarter is for others."""
        self._taken: Counter[str] = Counter()
        """Places that are taken, by client."""
        self._lock = threading.Lock()
        self._futures: set[Future[Any]] = set()
        self._read_s, self._work_s = read_s, work_s

    @property
    def taken(self) -> int:
        """Number of requests in work and in the queue."""
        return self.places - self._free

    async def run(
        self, read: Callable[[], Awaitable[T]], work: Callable[[T, Claim], R], client: str = ""
    ) -> R:
        """Reads a request and works on it in a thread, in the order in which requests were read.

        Args:
            read: reads the request.
            work: takes what was read and a `Claim`, and returns the answer.
            client: the client, whose number of places is limited.

        Raises:
            Busy: all places are taken, or the client's share of them. Nothing was read.
            TooSlow: reading, or waiting and working, exceeded its time limit. What `work` has not
                claimed by then is not committed any more. A thread that has begun keeps its place
                until it ends.
        """
        self._take(client)
        with contextlib.ExitStack() as place:
            place.callback(self._give_back, client)
            value = await self._read(read())
            decided = threading.Lock()
            """Taken once: by the work, to commit, or by whoever tells the client that it failed."""

            def claim() -> None:
                if not decided.acquire(blocking=False):
                    raise _late("the answer was not ready", self._work_s)

            future = self._pool.submit(work, value, claim)
            self._futures.add(future)
            place.pop_all()
        future.add_done_callback(self._futures.discard)
        future.add_done_callback(lambda _: self._give_back(client))
        answer = asyncio.wrap_future(future)
        try:
            await asyncio.wait({answer}, timeout=self._work_s)
        except asyncio.CancelledError:  # the server stops, and this client gets no answer
            decided.acquire(blocking=False)
            raise
        if not answer.done() and decided.acquire(blocking=False):
            answer.cancel()  # work that has not begun never begins
            raise _late("the answer was not ready", self._work_s)
        return await answer

    def _take(self, client: str) -> None:
        with self._lock:
            if not self._free or self._taken[client] >= self._share:
                raise Busy
            self._free -= 1
            self._taken[client] += 1

    def _give_back(self, client: str) -> None:
        with self._lock:
            self._free += 1
            self._taken[client] -= 1
            if not self._taken[client]:
                del self._taken[client]

    async def _read(self, what: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(self._read_s):
                return await what
        except TimeoutError:
            raise _late("the request did not arrive whole", self._read_s) from None

    def close(self, patience_s: float | None = None) -> bool:
        """Waits for the threads and returns whether all have ended.

        Requests in the queue are not begun any more.

        Args:
            patience_s: time to wait in s. None means without limit.
        """
        self._pool.shutdown(wait=False, cancel_futures=True)
        return not wait_for(set(self._futures), patience_s).not_done


def _late(failing: str, seconds: float) -> TooSlow:
    return TooSlow(f"{failing} within {seconds:g} s: try again")

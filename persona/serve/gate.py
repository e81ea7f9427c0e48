"""Who may work: so many at once, so many waiting in order, the rest is sent away."""

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
"""Called by work before it changes anything for good.

Raises TooSlow where its client was told that it failed; where not, the answer is waited for."""
T = TypeVar("T")
R = TypeVar("R")


class Busy(Exception):  # noqa: N818 - an answer, not a fault
    """All places are taken, or a client's share of them."""


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
        self._free = workers + waiting
        self._share = self._free - self._free // 4
        """Places that one client may have: the last quarter is for others."""
        self._taken: Counter[str] = Counter()
        """By client."""
        self._lock = threading.Lock()
        self._futures: set[Future[Any]] = set()
        self._read_s, self._work_s = read_s, work_s

    async def run(
        self, read: Callable[[], Awaitable[T]], work: Callable[[T, Claim], R], client: str = ""
    ) -> R:
        """`work` in a thread on what `read` gives, in the order in which they were read.

        Raises:
            Busy: all places are taken, or the client's share of them; nothing was read.
            TooSlow: reading, or waiting and working, ran past its time; nothing that `work` has
                not claimed is done any more. A thread that has begun keeps its place until its end.
        """
        self._take(client)
        with contextlib.ExitStack() as place:
            place.callback(self._give_back, client)
            value = await self._read(read())
            decided = threading.Lock()
            """Taken once: by work that claims, or by who tells the client that it failed."""

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
        except asyncio.CancelledError:  # the server ends, and this client hears no answer
            decided.acquire(blocking=False)
            raise
        if not answer.done() and decided.acquire(blocking=False):
            answer.cancel()  # what has not begun never does
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
        """Waits for the threads (None: as long as they want); whether all have ended.

        Nothing that waits is begun.
        """
        self._pool.shutdown(wait=False, cancel_futures=True)
        return not wait_for(set(self._futures), patience_s).not_done


def _late(failing: str, seconds: float) -> TooSlow:
    return TooSlow(f"{failing} within {seconds:g} s: try again")

"""Packs shards with worker processes on this machine. They make chunks; this process writes."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from persona.data.engines import Done, Job, ShardTask
from persona.data.journal import ShardWriter, shard_name
from persona.progress import Advance
from persona.workers import worker_pool

log = logging.getLogger(__name__)


def run_local(
    job: Job, tasks: Iterable[ShardTask], advance: Advance, *, workers: int | None
) -> Iterator[Done]:
    """Packs shards in order, chunk by chunk, and yields the result of each chunk.

    Args:
        job: What the tasks have in common.
        tasks: The shards that do not exist yet.
        advance: Receives the number of items as the workers make them.
        workers: Number of processes. 0 works in this process, None starts one per core.
    """
    if job.copies:
        workers = 0
    elif workers is None:
        workers = len(os.sched_getaffinity(0))
    open_shards: deque[ShardWriter] = deque()
    due: deque[tuple[int, bool]] = deque()
    """(items, whether it is the shard's last chunk) of each chunk in progress."""
    earlier: deque[Done] = deque()

    def chunks() -> Iterator[Sequence[Any]]:
        for task in tasks:
            writer = ShardWriter(job.folder, task.number, job.plan)
            if writer.items:
                log.info("going on in %s after %d", shard_name(task.number), writer.items)
                advance(writer.items, earlier=True)
                earlier.append(Done(writer.items, tuple(writer.skipped), len(writer.no_face)))
            if writer.items == len(task.items):  # killed before its end was written
                with writer:
                    writer.finish()
                continue
            open_shards.append(writer)
            for start in range(writer.items, len(task.items), job.chunk):
                items = task.items[start : start + job.chunk]
                due.append((len(items), start + job.chunk >= len(task.items)))
                yield items

    try:
        with worker_pool(
            job.build, job.arguments, workers, preload=job.preload, tell=advance
        ) as work:
            for chunk in work(chunks()):
                items, last = due.popleft()
                open_shards[0].append(chunk, items)
                if last:
                    open_shards[0].finish()
                    open_shards.popleft()
                while earlier:
                    yield earlier.popleft()
                yield Done(items, chunk.skipped, len(chunk.no_face))
        yield from earlier
    finally:
        for writer in open_shards:
            writer.close()

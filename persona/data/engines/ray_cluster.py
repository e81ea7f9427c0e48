"""Packs shards on a Ray cluster, one task per shard. It uses a running cluster or starts one here.

Raw photos and the packed set must lie on a file system that every node has at the same path, and
persona must be installed on every node. Ray runs a task again if its worker or node is lost.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from persona.data.engines import Done, Job, ShardTask, pack_shard
from persona.data.journal import count_items
from persona.errors import PersonaError
from persona.extras import missing
from persona.progress import Advance

RETRIES = 3
REACH_S = 10.0
LOOK_S = 1.0
"""Seconds between two reads of the journals."""
OBJECT_STORE_BYTES = 100_000_000
"""Size in bytes. Tasks and results are small, because photos go through the file system."""


def run_ray(
    job: Job,
    tasks: Iterable[ShardTask],
    advance: Advance,
    *,
    address: str | None,
    workers: int | None,
) -> Iterator[Done]:
    """Packs shards in any order and yields the result of each.

    Args:
        job: What the tasks have in common.
        tasks: The shards to pack.
        advance: Receives the number of items, as read from the journals of running tasks.
        address: Address of a running cluster. None starts one for this call.
        workers: Number of concurrent shards. None takes as many as the cluster has cores.

    Raises:
        PersonaError: If Ray is not installed or cannot be reached, or has lost a worker too often.
    """
    # Ray reads both on import. The first turns its usage reports off.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError:
        raise missing("--engine ray needs Ray: leave --engine out, or install it", "ray") from None
    with _cluster(ray, address, workers):
        remote = ray.remote(num_cpus=1, max_retries=RETRIES)(pack_shard)
        shared = ray.put(job)
        running = _Running(ray, job.folder, advance)
        for task in tasks:
            if len(running.tasks) >= (workers or int(2 * ray.cluster_resources().get("CPU", 1))):
                yield running.next()
            running.add(remote.remote(shared, task), task.number)
        while running.tasks:
            yield running.next()


@contextlib.contextmanager
def _cluster(ray: Any, address: str | None, workers: int | None) -> Iterator[None]:
    """Connects to a cluster, or starts one that only this machine can reach."""
    if address is not None and address != "auto":
        _reach(address)  # Ray itself would try for two minutes
    own = {
        "num_cpus": workers,
        "include_dashboard": False,
        "object_store_memory": OBJECT_STORE_BYTES,
        "_node_ip_address": "127.0.0.1",
    }
    try:
        ray.init(
            address=address or "local",
            log_to_driver=False,
            logging_level=logging.ERROR,
            **({} if address else own),
        )
    except Exception as error:  # Ray raises a plain one if a node takes too long to start
        what = str(error).partition("\n")[0]
        raise PersonaError(
            f"no Ray cluster at {address or 'this machine'} ({what}): start one with `ray start`, "
            "name its --address, or leave both out"
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


def _reach(address: str) -> None:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=REACH_S).close()
    except (OSError, ValueError, OverflowError) as error:
        raise PersonaError(
            f"no Ray cluster at {address!r} ({error}): expected the HOST:PORT that `ray start "
            "--head` names, or auto for the one of this machine"
        ) from None


class _Running:
    """The running tasks of the cluster, and how many items of each were reported."""

    def __init__(self, ray: Any, folder: Path, advance: Advance) -> None:
        self.ray = ray
        self.folder = folder
        self.advance = advance
        self.tasks: dict[Any, int] = {}
        """Number of the shard that each task makes."""
        self.told: dict[int, int] = {}
        """Number of reported items of each shard."""

    def add(self, task: Any, number: int) -> None:
        """Adds a started task. Items that its shard already has count as made earlier."""
        self.tasks[task] = number
        self.told[number] = count_items(self.folder, number)
        self.advance(self.told[number], earlier=True)

    def next(self) -> Done:
        """Waits until a task ends, removes it and returns its result."""
        ready: list[Any] = []
        while not ready:
            ready, _ = self.ray.wait(list(self.tasks), num_returns=1, timeout=LOOK_S)
            if not ready:
                for number in self.tasks.values():
                    self._tell(number, count_items(self.folder, number))
        (task,) = ready
        try:
            done: Done = self.ray.get(task)
        except self.ray.exceptions.RayTaskError as error:  # raised by pack_shard
            raise error.cause from None
        except self.ray.exceptions.RayError as error:
            raise PersonaError(
                f"Ray has lost a shard's worker {RETRIES + 1} times ({type(error).__name__}), "
                "perhaps for memory: run the command again with fewer --workers or another node; "
                "it goes on where it was"
            ) from None
        self._tell(self.tasks.pop(task), done.items)
        return done

    def _tell(self, number: int, items: int) -> None:
        fresh = items - self.told[number]
        if fresh > 0:
            self.told[number] = items
            self.advance(fresh)

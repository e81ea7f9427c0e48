"""A Ray cluster, one task a shard: an existing one by its address, or one on this machine.

Raw photos and the packed set lie on a file system that every node has at the same place, and
persona is installed on every node. Ray runs a task again when its worker or node is lost.
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
"""Between two looks at the journals."""
OBJECT_STORE_BYTES = 100_000_000
"""Tasks and answers are small: the photos go through the file system."""


def run_ray(
    job: Job,
    tasks: Iterable[ShardTask],
    advance: Advance,
    *,
    address: str | None,
    workers: int | None,
) -> Iterator[Done]:
    """Packs shards in any order; yields what came of each.

    Args:
        job: what the tasks share.
        tasks: shards to pack.
        advance: told of items as the journals of running tasks tell of them.
        address: of a running cluster; None starts one for this call.
        workers: shards at once; None is as many as the cluster has cores.

    Raises:
        PersonaError: Ray is not there, or has lost a shard's worker too often.
    """
    # Ray reads both on import. Nobody is told of what is packed here.
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
    """Connects to a cluster, or starts one of this machine that only this machine can reach."""
    if address is not None and address != "auto":
        _reach(address)  # Ray itself tries for two minutes
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
    except Exception as error:  # a plain one where a node takes too long to start
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
    """Tasks on the cluster, and how much of each its journal has told of."""

    def __init__(self, ray: Any, folder: Path, advance: Advance) -> None:
        self.ray = ray
        self.folder = folder
        self.advance = advance
        self.tasks: dict[Any, int] = {}
        """The shard that each makes."""
        self.told: dict[int, int] = {}
        """Items of each shard."""

    def add(self, task: Any, number: int) -> None:
        """Takes a task that was started; what its shard has already, an earlier run made."""
        self.tasks[task] = number
        self.told[number] = count_items(self.folder, number)
        self.advance(self.told[number], earlier=True)

    def next(self) -> Done:
        """Waits for one of the tasks and takes it out."""
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

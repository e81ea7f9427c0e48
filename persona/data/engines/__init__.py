"""Engines that pack shards: worker processes on this machine, or a Ray cluster.

The contract is one function, `pack_shard`, which packs one shard task and returns what came of it
(as in img2dataset's distributors). A task is deterministic. It does nothing if the shard exists, it
continues where a killed task of the same host stopped, and it puts the shard in place whole. An
engine may therefore run tasks in any order, anywhere, and more than once. Its progress reports need
not be exact.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from persona.data.journal import Chunk, Plan, ShardWriter, differing, read_record
from persona.data.shards import Skipped
from persona.errors import PersonaError
from persona.files import whole_number
from persona.progress import Advance

ENGINES = ("local", "ray")

Pack = Callable[[Sequence[Any]], Chunk]


@dataclass(frozen=True)
class Job:
    """What all shard tasks of a set have in common. It can be pickled."""

    folder: Path
    plan: Plan
    build: Callable[..., Pack]
    """A function at a module's top level. Each worker calls it once."""
    arguments: tuple[Any, ...]
    chunk: int
    """Items per call, and per line of the journal."""
    needs: tuple[Path, ...] = ()
    """Paths that every machine must have."""
    preload: tuple[str, ...] = ()
    """Modules that take long to import. Local workers fork from a server that has imported them."""
    copies: bool = False
    """Whether the job only copies. One process is then as fast as the disk."""
    directory: Path = field(default_factory=Path.cwd)
    """The folder that relative paths start from."""


@dataclass(frozen=True)
class ShardTask:
    """One shard: its number, and its items in order."""

    number: int
    items: Sequence[Any]


@dataclass(frozen=True)
class Done:
    """The result of some items of a task."""

    items: int
    skipped: tuple[Skipped, ...]
    no_face: int = 0
    """Number of photos without a face that were kept as centre crops."""


Engine = Callable[[Job, Iterable[ShardTask], Advance], Iterator[Done]]
"""Runs tasks. It reports items to `Advance` while they are made, and yields results once they are
on disk."""


@dataclass(frozen=True)
class Share:
    """Every `of`-th shard from the `number`-th on: the share of one task of a Slurm array."""

    number: int
    """Number of the share, from 1."""
    of: int

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    @classmethod
    def parse(cls, text: str) -> Share:
        """Parses a share such as `3/8`.

        Raises:
            PersonaError: If the text is not a valid share.
        """
        first, slash, second = text.partition("/")
        number, of = whole_number(first), whole_number(second)
        if not slash or number is None or of is None:
            raise PersonaError(f"--task {text[:40]!r}: expected I/N, the first of eight is 1/8")
        share = cls(number, of)
        if not 1 <= share.number <= share.of:
            last = max(share.of, 1)
            raise PersonaError(f"--task {text}: choose 1/{last} to {last}/{last}")
        return share

    def of_shards(self, num_shards: int) -> range:
        """The numbers of the shards in this share."""
        return range(self.number - 1, num_shards, self.of)


_built: dict[str, Pack] = {}


def pack_shard(job: Job, task: ShardTask) -> Done:
    """Packs one shard in this process, unless it exists.

    Raises:
        PersonaError: If this machine cannot see the files.
    """
    with contextlib.suppress(OSError):  # without this folder only absolute paths work
        os.chdir(job.directory)
    for path in job.needs:
        if not path.exists():
            raise PersonaError(
                f"{path} is not there on {socket.gethostname()}: the raw photos and the packed set "
                "must lie on a file system that every machine has at the same place"
            )
    record = read_record(job.folder, task.number)
    if record is None or differing(record.plan, job.plan):
        with ShardWriter(job.folder, task.number, job.plan) as writer:
            while writer.items < len(task.items):
                items = task.items[writer.items : writer.items + job.chunk]
                writer.append(_builder(job)(items), len(items))
            record = writer.finish()
    return Done(len(task.items), record.skipped, len(record.shard.no_face))


def _builder(job: Job) -> Pack:
    """The job's function. It is kept between tasks, because detectors and boxes load slowly."""
    key = f"{job.folder} {job.plan}"
    if key not in _built:
        _built.clear()
        _built[key] = job.build(*job.arguments)
    return _built[key]

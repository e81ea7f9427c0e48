"""Where shards are packed: in worker processes here, or on a Ray cluster.

The contract is one function, `pack_shard`, from a shard task to how it went (that of img2dataset's
distributors). A task is deterministic, leaves a shard that is there alone, goes on where a killed
one of its host stopped, and puts the shard in place whole. So an engine may run tasks in any order,
anywhere, and twice. What it tells a bar meanwhile need not be exact.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from persona.data.journal import Chunk, Plan, ShardWriter, read_record
from persona.data.shards import Skipped
from persona.errors import PersonaError
from persona.files import whole_number
from persona.progress import Advance

ENGINES = ("local", "ray")

Pack = Callable[[Sequence[Any]], Chunk]


@dataclass(frozen=True)
class Job:
    """What all shard tasks of a set share; picklable."""

    folder: Path
    plan: Plan
    build: Callable[..., Pack]
    """Of a module's top level; built once in every worker."""
    arguments: tuple[Any, ...]
    chunk: int
    """Items a call and a line of the journal."""
    needs: tuple[Path, ...] = ()
    """What every machine must have at the same place."""
    preload: tuple[str, ...] = ()
    """Modules that take long to import."""
    copies: bool = False
    """Copying alone: one process is as fast as the disk."""
    directory: Path = field(default_factory=Path.cwd)
    """What relative paths start from."""


@dataclass(frozen=True)
class ShardTask:
    """One shard: its number, and what goes into it in order."""

    number: int
    items: Sequence[Any]


@dataclass(frozen=True)
class Done:
    """What came of some items of a task."""

    items: int
    skipped: tuple[Skipped, ...]
    no_face: int = 0
    """Kept as centre crops."""


Engine = Callable[[Job, Iterable[ShardTask], Advance], Iterator[Done]]
"""Tells `Advance` of items while they are made, and yields what came of them once they are kept."""


@dataclass(frozen=True)
class Share:
    """Every `of`-th shard from the `number`-th on: one task of a Slurm array."""

    number: int
    """From 1."""
    of: int

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    @classmethod
    def parse(cls, text: str) -> Share:
        """Reads `3/8`.

        Raises:
            PersonaError: it is no such share.
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
        """The shards of this share."""
        return range(self.number - 1, num_shards, self.of)


_built: dict[str, Pack] = {}


def pack_shard(job: Job, task: ShardTask) -> Done:
    """Packs one shard in this process, unless it is there.

    Raises:
        PersonaError: this machine does not see the files.
    """
    with contextlib.suppress(OSError):  # where it is not there, all paths had better be absolute
        os.chdir(job.directory)
    for path in job.needs:
        if not path.exists():
            raise PersonaError(
                f"{path} is not there on {socket.gethostname()}: the raw photos and the packed set "
                "must lie on a file system that every machine has at the same place"
            )
    record = read_record(job.folder, task.number)
    if record is None or record.plan != job.plan:
        with ShardWriter(job.folder, task.number, job.plan) as writer:
            while writer.items < len(task.items):
                items = task.items[writer.items : writer.items + job.chunk]
                writer.append(_builder(job)(items), len(items))
            record = writer.finish()
    return Done(len(task.items), record.skipped, len(record.shard.no_face))


def _builder(job: Job) -> Pack:
    """The job's function, kept between tasks: detectors and boxes load slowly."""
    key = f"{job.folder} {job.plan}"
    if key not in _built:
        _built.clear()
        _built[key] = job.build(*job.arguments)
    return _built[key]

"""Writes one shard so that a killed process can be continued, on any machine.

1. take up: a partial shard that a killed process of this host left is continued where its journal
   ends
2. append: a chunk goes to `000003.tar.<host>-<pid>.partial`, then a line to the journal beside it
3. finish: a record of the shard, `.000003.json`, is written, then the tar is renamed into place

A shard exists if its tar exists with the size in its record. Names hold host and process, and equal
tasks make equal bytes. Two machines that write the same shard therefore leave one whole shard,
whichever is last.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import hashlib
import json
import os
import socket
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from persona.data.shards import Mended, Shard, Skipped, encode_json, tar_end
from persona.errors import PersonaError
from persona.files import placed, process_name, read_json, write_atomically

PLAN = ".packing.json"
"""File with the plan by which a folder is packed. Every record holds the plan, too."""

Plan = dict[str, Any]
"""Plain JSON values. Shards with equal plans belong to one set."""


@dataclass(frozen=True)
class Chunk:
    """The result of a worker for some samples."""

    data: bytes
    samples: int
    identities: tuple[int, ...]
    skipped: tuple[Skipped, ...]
    no_face: tuple[int, ...] = ()
    """Keys of the photos without a face, kept as centre crops."""
    mended: tuple[Mended, ...] = ()


@dataclass(frozen=True)
class Record:
    """The record of a finished shard."""

    shard: Shard
    identities: tuple[int, ...]
    """Labels in the shard, sorted."""
    skipped: tuple[Skipped, ...]
    mended: tuple[Mended, ...]
    plan: Plan


def shard_name(number: int) -> str:
    """File name of shard `number`."""
    return f"{number:06d}.tar"


def _record_path(folder: Path, number: int) -> Path:
    return folder / f".{number:06d}.json"


def read_record(folder: Path, number: int) -> Record | None:
    """The record of a shard. None if the record, or a tar of the size in it, does not exist."""
    try:
        value = json.loads(_record_path(folder, number).read_bytes())
        record = Record(
            Shard.from_json(value["shard"]),
            tuple(value["identities"]),
            tuple(Skipped(**photo) for photo in value["skipped"]),
            tuple(Mended(**photo) for photo in value.get("mended", ())),
            dict(value["plan"]),
        )
        size = (folder / shard_name(number)).stat().st_size
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return record if (record.shard.name, record.shard.bytes) == (shard_name(number), size) else None


def clear_journals(folder: Path, num_shards: int) -> None:
    """Removes the files that only an unfinished set needs."""
    for number in range(num_shards):
        _record_path(folder, number).unlink(missing_ok=True)
    for pattern in ("[0-9]*.tar.*.partial", ".[0-9]*.tar.*.jsonl"):
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)


class ShardWriter:
    """Writes one shard. It continues from the journal of a killed process, if there is one."""

    def __init__(self, folder: Path, number: int, plan: Plan) -> None:
        self.folder = folder
        self.number = number
        self.plan = plan
        self.items = 0
        """Number of the task's items that were packed or skipped so far."""
        self.samples = 0
        self.identities: set[int] = set()
        self.skipped: list[Skipped] = []
        self.no_face: list[int] = []
        self.mended: list[Mended] = []
        self._size = 0
        self._digest = hashlib.sha256()
        self._path = folder / f"{shard_name(number)}.{process_name()}.partial"
        self._tar = self._take_up() or self._path.open("w+b")
        _lock(self._tar)
        self._journal = _journal_of(self._path).open("ab" if self._size else "wb")

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the files. Another writer can now continue an unfinished shard."""
        for file in (self._tar, self._journal):
            with contextlib.suppress(OSError):  # data that is not in the journal may be lost
                file.close()

    def _take_up(self) -> IO[bytes] | None:
        """Takes over a partial shard of this host that no living process holds, and renames it.

        Shards of other hosts are left alone, because their processes may be alive.
        """
        pattern = f"{shard_name(self.number)}.{glob.escape(socket.gethostname())}-*.partial"
        for found in sorted(self.folder.glob(pattern)):
            with contextlib.suppress(FileNotFoundError):  # another process took it first
                file = found.open("r+b")
                if _lock(file):
                    with contextlib.suppress(FileNotFoundError):
                        _journal_of(found).replace(_journal_of(self._path))
                        found.replace(self._path)
                        self._replay(file)
                        return file
                file.close()
        return None

    def _replay(self, file: IO[bytes]) -> None:
        """Cuts the file and its journal back to the last line on which they agree."""
        held = os.fstat(file.fileno()).st_size
        path = _journal_of(self._path)
        kept = 0
        for line in path.read_bytes().splitlines(keepends=True):
            try:
                entry = json.loads(line) if line.endswith(b"\n") else None
                if entry is None or entry["size"] > held:
                    break
                skipped = tuple(Skipped(**photo) for photo in entry["skipped"])
                mended = tuple(Mended(**photo) for photo in entry.get("mended", ()))
                identities, no_face = tuple(entry["identities"]), tuple(entry["no_face"])
                chunk = Chunk(b"", entry["samples"], identities, skipped, no_face, mended)
                self._count(chunk, entry["items"])
                self._size = entry["size"]
            except (ValueError, KeyError, TypeError):
                break  # half a line, or a line of another program
            kept += len(line)
        os.truncate(path, kept)
        file.truncate(self._size)
        file.seek(0)
        while block := file.read(1 << 20):
            self._digest.update(block)

    def _count(self, chunk: Chunk, items: int) -> None:
        self.items += items
        self.samples += chunk.samples
        self.identities.update(chunk.identities)
        self.skipped.extend(chunk.skipped)
        self.no_face.extend(chunk.no_face)
        self.mended.extend(chunk.mended)

    def append(self, chunk: Chunk, items: int) -> None:
        """Appends the result of the next `items` of the task, then adds a line to the journal."""
        with placed(self.folder):
            self._tar.write(chunk.data)
            self._tar.flush()
        self._digest.update(chunk.data)
        self._size += len(chunk.data)
        self._count(chunk, items)
        entry = {
            "size": self._size,
            "items": items,
            "samples": chunk.samples,
            "identities": chunk.identities,
            "skipped": [asdict(photo) for photo in chunk.skipped],
            "no_face": chunk.no_face,
            "mended": [asdict(photo) for photo in chunk.mended],
        }
        with placed(self.folder):
            self._journal.write(encode_json(entry) + b"\n")
            self._journal.flush()

    def finish(self) -> Record:
        """Ends the tar and renames it into place."""
        end = tar_end(self._size)
        with placed(self.folder):
            self._tar.write(end)
            self._tar.flush()
            os.fsync(self._tar.fileno())
        self._digest.update(end)
        name = shard_name(self.number)
        no_face = tuple(sorted(self.no_face))
        shard = Shard(name, self.samples, self._size + len(end), self._digest.hexdigest(), no_face)
        record = Record(
            shard,
            tuple(sorted(self.identities)),
            tuple(self.skipped),
            tuple(self.mended),
            self.plan,
        )
        write_atomically(_record_path(self.folder, self.number), encode_json(asdict(record)))
        try:
            self._path.replace(self.folder / name)
        except FileNotFoundError:
            # Another machine has packed this shard too, and the set was merged meanwhile.
            if not (self.folder / name).is_file():
                raise
        self.close()
        _journal_of(self._path).unlink(missing_ok=True)
        return record


def iter_records(folder: Path, num_shards: int) -> Iterator[tuple[int, Record | None]]:
    """Yields every shard's number and record in order. The record is None for a missing shard."""
    for number in range(num_shards):
        yield number, read_record(folder, number)


def count_items(folder: Path, number: int) -> int:
    """Number of a shard's items in its longest journal, whichever process of any host writes it."""
    counts = [0]
    for path in folder.glob(f".{shard_name(number)}.*.jsonl"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # it may be in writing
            lines = path.read_bytes().splitlines(keepends=True)
            counts.append(sum(json.loads(line)["items"] for line in lines if line.endswith(b"\n")))
    return max(counts)


def read_plan(folder: Path) -> Plan:
    """Reads the plan of a folder.

    Raises:
        PersonaError: If there is none, or it is damaged.
    """
    plan = read_json(folder / PLAN, what="packing plan")
    if not isinstance(plan, dict):
        raise PersonaError(f"{folder / PLAN} is no packing plan: remove {folder} and pack again")
    return plan


def differing(earlier: Plan, plan: Plan) -> str:
    """The names of the settings in which two plans differ. It is empty if they are of one set.

    The plan of a set with identities did not always have their digest. Without it they may be any.
    """
    names = {name for name in earlier | plan if earlier.get(name, "") != plan.get(name, "")}
    known = [each["identities"] for each in (earlier, plan) if "identities" in each]
    if len(known) == 1 and known != [None]:  # None means that the set has none
        names.discard("identities")
    return ", ".join(sorted(names))


def _journal_of(partial: Path) -> Path:
    return partial.with_name(f".{partial.name.removesuffix('.partial')}.jsonl")


def _lock(file: IO[bytes]) -> bool:
    """Locks a file for this process. False if another process has the lock, or locking fails."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True

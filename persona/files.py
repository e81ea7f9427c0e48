"""Files that survive being killed: written under another name, then renamed into place."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import socket
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import IO, Any, AnyStr

from persona.errors import PersonaError

PRIVATE = 0o600
"""Mode of what holds people's names, templates or photos: its owner's alone."""
LONGEST_LINE = 1 << 16


def process_name() -> str:
    """This process among those of all machines that share a file system."""
    return f"{socket.gethostname()}-{os.getpid()}"


@contextlib.contextmanager
def placed(path: Path) -> Iterator[None]:
    """Gives `path` to an error of the system that names no file: a full disk is told with where."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def write_atomically(path: Path, data: bytes | Iterable[bytes], mode: int = 0o666) -> None:
    """Writes `data` to `path` so that a reader sees the old file or the new one, never half.

    `mode` is a new file's, less the umask.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{process_name()}.partial")
    try:
        opened = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with placed(path), os.fdopen(opened, "wb") as file:
            file.writelines((data,) if isinstance(data, bytes) else data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, value: object) -> None:
    """Writes canonical JSON (sorted keys, two spaces), atomically: same value, same bytes.

    Dataclasses are written as their fields.
    """
    encoder = json.JSONEncoder(indent=2, sort_keys=True, ensure_ascii=False, default=_fields)
    # Piece by piece: the manifest may name millions of photos.
    write_atomically(path, (piece.encode() for piece in chain(encoder.iterencode(value), "\n")))


def _fields(value: Any) -> dict[str, Any]:
    """What JSON holds of a dataclass."""
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


def read_json(path: Path, *, what: str) -> Any:
    """Reads JSON; `what` names the file's role in the error.

    Raises:
        PersonaError: the file is not there or is no JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise PersonaError(f"no {what} at {path}") from None
    except (ValueError, RecursionError) as error:  # also of numbers with too many digits
        raise PersonaError(
            f"{what} {path} is not valid JSON ({error}): restore it, or remove it and make it anew"
        ) from None


def bounded_lines(file: IO[AnyStr], path: Path) -> Iterator[AnyStr]:
    """Lines of an open list, which may come from a stranger: none is read whole that is too long.

    Raises:
        PersonaError: a line is.
    """
    number = 1
    while line := file.readline(LONGEST_LINE + 1):
        if len(line) > LONGEST_LINE:
            raise PersonaError(
                f"{path} line {number} is longer than {LONGEST_LINE:,} characters: this is no list"
            )
        yield line
        number += 1


def whole_number(text: str, most_digits: int = 9) -> int | None:
    """The number that a few of the digits 0 to 9 write; None: it is something else.

    `str.isdigit` holds for `²` too, which `int` refuses, as it does thousands of digits.
    """
    plain = text.isascii() and text.isdigit() and len(text) <= most_digits
    return int(text) if plain else None


def sha256_file(path: Path) -> str:
    """SHA-256 of a file as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def folder_lock(folder: Path, *, doing: str) -> Iterator[IO[bytes]]:
    """Holds `folder` for one process; the kernel lets go of it however the process ends.

    Raises:
        PersonaError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PersonaError(
                f"another process is {doing} {folder}: wait for it to end, or choose another folder"
            ) from None
        yield file


def is_locked(folder: Path) -> bool:
    """Whether a process holds `folder_lock`."""
    try:
        with (folder / ".lock").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False

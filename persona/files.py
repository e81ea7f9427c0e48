"""Writes files so that a killed process leaves no half files: under another name, then renamed.

While a file is written it has a hidden name with host and process, and its process holds a lock on
it. A killed process leaves it behind. The next process that writes to the same folder deletes it.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import dataclasses
import fcntl
import functools
import hashlib
import io
import json
import os
import re
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import IO, Any, AnyStr

from persona.errors import PersonaError

PRIVATE = 0o600
"""File mode for people's names, templates or photos: only the owner can read them."""
LONGEST_LINE = 1 << 16
LARGEST_JSON = 1 << 22
"""Largest size in bytes of a card."""
LARGEST_LIST = 1 << 28
"""Largest size in bytes of a card that lists photos, identities or shards. It is enough for tens of
millions of photos."""
GAP_S = 60.0
"""Age in seconds from which a partial file without a lock has no writer. A writer locks its file
right after creating it."""


SEPARATORS = (",", ";", "\t")
"""What may separate the columns of a CSV."""
PEEKED = 4096
"""Bytes of a list file that are looked at before it is decoded."""
_IN_UTF8 = "save it as UTF-8, in Excel as `CSV UTF-8`"
DANGLING = "a link to nothing"
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
}


def process_name() -> str:
    """A name of this process that is unique among all machines that share a file system."""
    return f"{socket.gethostname()}-{os.getpid()}"


@contextlib.contextmanager
def placed(path: Path) -> Iterator[None]:
    """Adds `path` to an OSError that names no file, as none of reading and writing does."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def write_atomically(path: Path, data: bytes | Iterable[bytes], mode: int = 0o666) -> None:
    """Writes `data` to `path` so that a reader sees the old file or the new one, never half.

    `mode` is the mode of a new file, before the umask.

    Raises:
        PersonaError: see `check_target`.
    """
    with replacing(path, mode) as file:
        file.writelines((data,) if isinstance(data, bytes) else data)


@contextlib.contextmanager
def replacing(path: Path, mode: int = 0o666) -> Iterator[IO[bytes]]:
    """Yields a new file that replaces `path` at the end of the block, unless the block raises.

    Raises:
        PersonaError: see `check_target`.
    """
    check_target(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep_once(path.parent)
    partial = path.with_name(f".{path.name}.{process_name()}.partial")
    try:
        opener = functools.partial(os.open, mode=mode)
        with placed(path), open(partial, "wb", opener=opener) as file:
            try_lock(file.fileno())
            yield file
            file.flush()
            os.fsync(file.fileno())
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def check_target(path: Path) -> None:
    """Checks that a file may replace what lies at `path`.

    The reader of a pipe that is replaced waits for ever, and a device is everybody's.

    Raises:
        PersonaError: a pipe, a device, a socket or a folder lies there.
    """
    kind = not_a_file(path)
    if path.is_symlink() and path.absolute().parent == Path("/dev"):
        kind = "a device"  # /dev/stdout is a link to a file where the output is redirected
    if kind is not None and kind != DANGLING:
        raise PersonaError(f"{path} is {kind}: name a file")


def check_writable(path: Path) -> None:
    """Checks that a file can be written at `path`, before the work whose result it will hold.

    Nothing is made for that: the nearest folder that exists is asked.

    Raises:
        PersonaError: see `check_target`; or a part of the path is no folder, or nothing may be
            written there.
    """
    check_target(path)
    folder = path.absolute().parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise PersonaError(f"{path} cannot be written: {folder} is no folder")
    if not os.access(folder, os.W_OK | os.X_OK):  # root may not write to a read-only disk, either
        raise PersonaError(
            f"{path} cannot be written: nothing may be written to {folder}; choose another folder"
        )


@contextlib.contextmanager
def scratch_folder(parent: Path, label: str) -> Iterator[Path]:
    """Yields a hidden folder below `parent` for the time of the block. Rename finished work out of
    it."""
    parent.mkdir(parents=True, exist_ok=True)
    _sweep_once(parent)
    suffix = f".{process_name()}.partial"
    folder = Path(tempfile.mkdtemp(prefix=f".{label}.", suffix=suffix, dir=parent))
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try_lock(opened)
        yield folder
    finally:
        os.close(opened)
        shutil.rmtree(folder, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Deletes partial files and scratch folders that killed processes of this host left behind.

    Those of other hosts stay, because their processes may be alive.
    """
    ours = re.compile(rf"\..*\.{re.escape(socket.gethostname())}-(\d+)\.partial", re.DOTALL)
    with contextlib.suppress(OSError):  # a folder that does not exist or may not be changed
        for path in folder.iterdir():
            if (process := ours.fullmatch(path.name)) is not None:
                _remove_if_dead(path, int(process[1]))


_SWEPT: set[Path] = set()


def _sweep_once(folder: Path) -> None:
    if folder not in _SWEPT:
        _SWEPT.add(folder)
        sweep(folder)


def _remove_if_dead(path: Path, process: int) -> None:
    """Deletes a partial file or folder unless its writer is alive."""
    with contextlib.suppress(OSError):  # it belongs to another user, or is gone meanwhile
        opened = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            found = os.fstat(opened)
            held = try_lock(opened)
            alive = _is_alive(process)
            if alive and held and time.time() - found.st_mtime > GAP_S:
                alive = False  # another process has the same number by now
            if held is False or alive or found.st_uid != os.geteuid():
                return
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()
        finally:
            os.close(opened)


def try_lock(opened: int) -> bool | None:
    """Locks a file until it is closed. False: another process holds it. None: locking fails."""
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _is_alive(process: int) -> bool:
    """Whether this host has a process with that number."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def write_json(path: Path, value: object) -> None:
    """Writes canonical JSON (sorted keys, two spaces), atomically. Equal values give equal bytes.

    A dataclass is written as an object of its fields.
    """
    encoder = json.JSONEncoder(indent=2, sort_keys=True, ensure_ascii=False, default=_fields)
    # Encoded piece by piece, because a manifest may name millions of photos.
    write_atomically(path, (piece.encode() for piece in chain(encoder.iterencode(value), "\n")))


def _fields(value: Any) -> dict[str, Any]:
    """The JSON object of a dataclass."""
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


def read_json(path: Path, *, what: str, limit: int = LARGEST_JSON) -> Any:
    """Reads an untrusted JSON file. `what` names the file's role in the error.

    Raises:
        PersonaError: If the file does not exist, is over `limit` bytes, or is not JSON.
    """
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except FileNotFoundError:
        raise PersonaError(f"no {what} at {path}") from None
    if len(data) > limit:
        raise PersonaError(f"{what} {path} has over {limit / 1e6:.1f} MB: none is so large")
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:  # ValueError also for a number of too many digits
        raise PersonaError(
            f"{what} {path} is not valid JSON ({error}): restore it, or remove it and make it anew"
        ) from None


@contextlib.contextmanager
def open_list(
    path: Path, what: str, *, newline: str | None = None, errors: str = "strict"
) -> Iterator[IO[str]]:
    """Opens a user's text file, such as a CSV, as UTF-8 with or without a byte order mark.

    A pipe can be read, too.

    Args:
        path: the file.
        what: what it should be, such as "a CSV of boxes", for messages.
        newline: as in `open`. The module csv wants "".
        errors: as in `open`.

    Raises:
        PersonaError: there is no such file, it cannot be read, or it is no UTF-8 text, which may
            only show while the block reads it.
    """
    try:
        with path.open("rb") as raw:
            start = raw.peek(PEEKED)[:PEEKED]
            if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in start:
                raise PersonaError(f"{path} is in UTF-16 or no text: {_IN_UTF8}")
            with io.TextIOWrapper(raw, "utf-8-sig", errors, newline) as file:
                yield file
    except FileNotFoundError:
        raise PersonaError(f"{path}: there is no such file: expected {what}") from None
    except IsADirectoryError:
        raise PersonaError(f"{path} is a folder: expected {what}") from None
    except UnicodeDecodeError:
        raise PersonaError(f"{path} is not in UTF-8: {_IN_UTF8}") from None
    except OSError as error:
        raise PersonaError(f"{path} cannot be read as {what} ({error.strerror})") from None


def separator_of(head: str) -> str:
    """What separates the columns of a CSV, by its first line.

    Spreadsheets write semicolons where the comma is in decimal numbers, and tabs into `.tsv`.
    """
    return max(SEPARATORS, key=head.count)


def iter_csv(path: Path, what: str) -> Iterator[tuple[int, list[str]]]:
    """Yields the line number and the fields of each row of a user's CSV; empty lines are left out.

    The columns are separated by what separates most in the first line, see `SEPARATORS`.

    Args:
        path: the file.
        what: what it should be, as in `open_list`.

    Raises:
        PersonaError: as `open_list`, a line is too long, or quotes are not closed.
    """
    with open_list(path, what, newline="") as file:
        lines = bounded_lines(file, path)
        head = next(lines, "")
        rows = csv.reader(chain([head], lines), delimiter=separator_of(head), strict=True)
        try:
            for row in rows:
                if row:
                    yield rows.line_num, row
        except csv.Error as error:
            raise PersonaError(f"{path} line {rows.line_num}: {error}") from None


def not_a_file(path: Path) -> str | None:
    """What lies at a path in place of a file, as text. None for a file and where nothing lies."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):  # a path with a zero byte is none
        return DANGLING if path.is_symlink() else None
    return None if stat.S_ISREG(mode) else _KINDS.get(stat.S_IFMT(mode), "no file")


def bounded_lines(file: IO[AnyStr], path: Path) -> Iterator[AnyStr]:
    """Yields the lines of an untrusted list file. An overlong line is not read whole.

    Raises:
        PersonaError: If a line is longer than LONGEST_LINE.
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
    """The number in a text of at most `most_digits` digits 0 to 9. None for any other text.

    `str.isdigit` also accepts `²`, which `int` refuses; `int` also refuses thousands of digits.
    """
    plain = text.isascii() and text.isdigit() and len(text) <= most_digits
    return int(text) if plain else None


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file as 64 hex digits."""
    with placed(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def folder_lock(folder: Path, *, doing: str, wait: bool = False) -> Iterator[IO[bytes]]:
    """Locks `folder` for one process. The kernel releases the lock however the process ends.

    With `wait` it waits while another process holds the lock. The holder may delete the folder,
    which is then created anew.

    Raises:
        PersonaError: If another process holds the lock, without `wait`, or the file system has no
            locks.
    """
    with contextlib.ExitStack() as stack:
        while True:
            folder.mkdir(parents=True, exist_ok=True)
            try:
                file = (folder / ".lock").open("ab")
            except FileNotFoundError:  # deleted since `mkdir`
                continue
            stack.enter_context(file)
            try:
                fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise PersonaError(
                    f"another process is {doing} {folder}: wait for it to end, or choose another "
                    "folder"
                ) from None
            except OSError as error:  # without a lock, two processes would mix what they write
                raise PersonaError(
                    f"{folder} cannot be locked ({error.strerror}): choose a folder on a disk with "
                    "file locks, or have its file system mounted with them"
                ) from None
            if _is_at(file, folder / ".lock"):
                break
            stack.close()  # the lock of a deleted file keeps nobody out
        yield file


def _is_at(file: IO[bytes], path: Path) -> bool:
    """Whether an open file is still the one at a path."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    return False


def is_locked(folder: Path) -> bool:
    """Whether a process holds the `folder_lock` of a folder. Without file locks nobody does."""
    try:
        with (folder / ".lock").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False

"""Access to the files of a set, in a local folder or behind a URL.

    https://host/vggface2-train     s3://bucket/vggface2-train     gs://bucket/vggface2-train

A remote file is downloaded whole on demand, under a lock that workers and ranks share. An
interrupted download continues at the byte where it stopped. The file gets its name only once it
matches its checksum. With a cache folder it is kept there, and downloaded again if it does not
match any more. Without one it lies in a temporary folder and is deleted when the stream has read
it. Credentials come from ~/.netrc (for https, or
this machine), or from where the tools of AWS and Google keep them. A URL with credentials is
refused, because URLs are printed.

A local file, or one in a cache, is compared with its checksum before its first use in a run,
because a flipped bit seldom breaks a JPEG: it changes pixels. The first process to come reads the
file and other workers wait. A mark in a temporary folder, named by size, time and inode, tells all
of them the result.
"""

from __future__ import annotations

import atexit
import base64
import contextlib
import fcntl
import functools
import hashlib
import http.client
import ipaddress
import logging
import netrc
import os
import shutil
import tempfile
import time
import urllib.error
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from io import RawIOBase
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from persona.download import open_url, read_blocks
from persona.errors import PersonaError
from persona.extras import missing
from persona.files import LARGEST_LIST, placed, sha256_file, try_lock, write_atomically

log = logging.getLogger(__name__)

OBJECT_STORES = {"s3": "s3", "gs": "gcs"}
"""URL scheme to the extra of this package that can read it."""
OBJECT_OPTIONS: dict[str, dict[str, Any]] = {
    "s3": {"config_kwargs": {"retries": {"max_attempts": 0}}}  # retries are done in this file
}
TRIES_OF_STORES = {"gs": 6}
"""Tries of readers that retry by themselves, for half a minute, and cannot be told not to."""
SCHEMES = ("http", "https", *OBJECT_STORES)
TIMEOUT_S = 30.0
RETRIES = 5
"""Number of consecutive tries that may bring no data."""
BACKOFF_S = 0.5
"""Wait in seconds before the second try. It doubles with each further try."""
TEMPORARY = "persona-set-"
"""Prefix of the names of temporary folders."""
NETRC_DEFAULT = "default"
"""Name under which `netrc` keeps the login for all hosts without an entry."""
OBJECT_CHUNK = 8 << 20
"""Bytes per request to an object store."""
LARGEST_CARD = LARGEST_LIST
"""Largest size in bytes of a file whose size no manifest states."""
FINAL = {401: "refused", 403: "refused", 404: "not there", 410: "not there"}
"""HTTP status codes that no retry changes."""


@dataclass(frozen=True)
class RemoteFolder:
    """A set behind a URL, and the local folder of its files."""

    url: str
    local: Path
    keep: bool
    """Whether files stay in `local` after they were read."""
    marks: Path
    """Folder of the marks of checked files, as in CheckedFolder. Only kept files are checked."""

    def __str__(self) -> str:
        return self.url


@dataclass(frozen=True)
class CheckedFolder:
    """A local set whose files are compared with their checksums before their first use."""

    path: Path
    marks: Path
    """Folder of the marks of checked files, for all processes of this run on this machine."""

    def __str__(self) -> str:
        return str(self.path)


SetFolder = Path | CheckedFolder | RemoteFolder
"""Files below a plain path are not checked."""


class NotThereError(PersonaError):
    """The storage answers that there is no such file."""


class UnreachableError(PersonaError):
    """The storage gives no useful answer after all retries."""


class _Final(Exception):  # noqa: N818 - the caller turns it into an error
    """An answer of the storage that no retry changes."""


class _GivenUp(_Final):
    """The reader of the storage has retried often enough by itself."""


def is_url(name: str) -> bool:
    """Whether a set's name is a URL."""
    return "://" in name


def is_remote(folder: SetFolder) -> bool:
    """Whether a set's files must be downloaded."""
    return isinstance(folder, RemoteFolder)


def keeps(folder: SetFolder) -> bool:
    """Whether a remote set has a cache, from which it can be read while it is unreachable."""
    return isinstance(folder, RemoteFolder) and folder.keep


def open_remote(url: str, cache: Path | None) -> RemoteFolder:
    """Opens a set by its URL, without reading anything yet.

    Raises:
        PersonaError: If the scheme is unknown or the URL holds credentials.
    """
    try:
        parts = urlsplit(url.rstrip("/"))
    except ValueError:
        raise PersonaError("the URL of the set does not read as one") from None
    if parts.scheme not in SCHEMES:
        raise PersonaError(f"sets are read from {', '.join(SCHEMES)}, not from {parts.scheme}://")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise PersonaError(
            f"the URL of a set at {parts.netloc.rpartition('@')[2]} holds a user, a query or a "
            "fragment: leave it out; credentials are read from ~/.netrc (https), or from where "
            "AWS's and Google's own tools have them"
        )
    if not parts.netloc or not parts.path.strip("/"):
        raise PersonaError(f"{url} names no folder: give the URL under which manifest.json lies")
    place = parts.geturl()
    if cache is None:
        local = _temporary_folder()
        return RemoteFolder(place, local, keep=False, marks=local)
    digest = hashlib.sha256(place.encode()).hexdigest()[:12]
    local = cache / f"{place.rpartition('/')[2]}-{digest}"
    return RemoteFolder(place, local, keep=True, marks=_marks())


def checked(folder: Path) -> CheckedFolder:
    """The set in `folder`, with its files checked before their first use."""
    return CheckedFolder(folder, _marks())


@functools.cache
def _marks() -> Path:
    """The folder of this run's marks. Forked processes, and those given a folder, share it."""
    return _temporary_folder()


def _temporary_folder() -> Path:
    """Creates a temporary folder that is deleted when this process ends, not when its workers do.

    If the process is killed, the next one that creates such a folder deletes it.
    """
    _remove_abandoned(Path(tempfile.gettempdir()))
    owner = os.getpid()
    # Another process may delete it as abandoned before it is locked.
    while _hold(folder := Path(tempfile.mkdtemp(prefix=TEMPORARY)), surely=False) is None:
        pass

    def remove() -> None:
        if os.getpid() == owner:
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return folder


def _hold(folder: Path, *, surely: bool) -> int | None:
    """Locks a folder until this process and all that it forks end.

    Unless `surely`, it is also held where the file system has no locks: nobody then deletes it.

    Returns:
        The handle, or None if the folder is gone or another process holds it.
    """
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    locked = try_lock(handle)
    if (locked or (locked is None and not surely)) and folder.is_dir():
        return handle
    os.close(handle)
    return None


def _remove_abandoned(place: Path) -> None:
    """Deletes temporary folders below `place` that this user's ended processes left behind."""
    for folder in place.glob(f"{TEMPORARY}*"):
        with contextlib.suppress(OSError):
            mine = folder.lstat().st_uid == os.geteuid()
            if mine and (handle := _hold(folder, surely=True)) is not None:
                shutil.rmtree(folder, ignore_errors=True)
                os.close(handle)


def on_disk(folder: SetFolder, doing: str) -> Path:
    """The local folder of a set, for functions that write beside a set or check it.

    Raises:
        PersonaError: If the set is remote.
    """
    if isinstance(folder, RemoteFolder):
        raise PersonaError(f"{doing} wants the set on this machine: copy {folder} below shards/")
    return folder.path if isinstance(folder, CheckedFolder) else folder


def card_file(folder: SetFolder, name: str) -> Path:
    """The local path of a small file of a set. A remote file is downloaded anew each time.

    If the storage is unreachable, the copy in the cache is used.

    Raises:
        NotThereError: If the remote set has no such file.
        UnreachableError: If the storage is unreachable and the cache has no copy.
        PersonaError: If the file cannot be read.
    """
    if not isinstance(folder, RemoteFolder):
        return on_disk(folder, "reading") / name
    path = folder.local / name
    with tempfile.TemporaryFile(buffering=0) as file:
        try:
            _download(folder, name, file, size=None)
        except UnreachableError as error:
            if not (folder.keep and path.is_file()):
                raise
            fetched = datetime.fromtimestamp(path.stat().st_mtime, UTC)
            log.warning("%s: going on with the copy of %s UTC", error, f"{fetched:%Y-%m-%d %H:%M}")
            return path
        file.seek(0)
        with _writing(folder):
            write_atomically(path, file.read())
    return path


def local_file(folder: SetFolder, name: str, sha256: str, size: int | None = None) -> Path:
    """The local path of a file of a set. A remote file is downloaded first.

    Args:
        folder: The set's folder.
        name: The file's name in it.
        sha256: The file's checksum. It is not compared if `folder` is a plain path.
        size: The file's size in bytes, if known.

    Raises:
        PersonaError: If the file cannot be read, does not match, or there is no room for it.
    """
    if isinstance(folder, CheckedFolder):
        return _check(folder, name, sha256)
    if isinstance(folder, Path):
        return folder / name
    path = _place(folder, name, sha256)
    if _is_here(folder, path, sha256):
        return path
    if path.is_file():
        log.warning("%s does not match its checksum: downloading it again", path)
    with _writing(folder):
        path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    began_anew = False
    while True:
        with contextlib.ExitStack() as stack:
            with _writing(folder):
                file = stack.enter_context(partial.open("ab", buffering=0))
                fcntl.flock(file, fcntl.LOCK_EX)
            if _is_here(folder, path, sha256):
                return path
            if not _is_still(file, partial):  # its last holder deleted or renamed it
                continue
            file.seek(0, os.SEEK_END)  # while this process waited, another may have written
            if size is not None and file.tell() > size:
                _empty(file)
            _download(folder, name, file, size)
            with _writing(folder):
                os.fsync(file.fileno())
            if sha256_file(partial) == sha256:
                partial.replace(path)
                if folder.keep:
                    _mark_as_sound(_mark_of(path.stat(), sha256, folder.marks))
                return path
            partial.unlink()
            if began_anew:
                raise PersonaError(
                    f"{folder}/{name} does not match its checksum: upload the set again"
                )
            began_anew = True  # the first answer may have been another page, such as a login


def _check(folder: CheckedFolder, name: str, sha256: str) -> Path:
    """The path of a local file, after comparing its checksum. A missing file is not an error."""
    path = folder.path / name
    # The reader of a file reports that it is missing.
    with contextlib.suppress(FileNotFoundError):
        if not _is_sound(path, sha256, folder.marks):
            raise PersonaError(
                f"{path} does not match its checksum: restore it (`persona shards verify` names "
                "all such files), or remove it and run again what made it"
            )
    return path


def _is_here(folder: RemoteFolder, path: Path, sha256: str) -> bool:
    """Whether a remote file is on this machine. Those of a cache are compared with checksums."""
    try:
        return _is_sound(path, sha256, folder.marks) if folder.keep else path.is_file()
    except FileNotFoundError:
        return False


def _is_sound(path: Path, sha256: str, marks: Path) -> bool:
    """Whether a file matches its checksum. It is read once in a run.

    Raises:
        FileNotFoundError: If it is missing.
    """
    with placed(path), path.open("rb", buffering=0) as file:
        mark = _mark_of(os.fstat(file.fileno()), sha256, marks)
        if mark.exists():
            return True
        # Some network file systems cannot lock.
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        if mark.exists():
            return True
        if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
            return False
        _mark_as_sound(mark)
    return True


def _mark_of(now: os.stat_result, sha256: str, marks: Path) -> Path:
    """The mark that says that a file of this state matches its checksum."""
    told = f"{now.st_dev} {now.st_ino} {now.st_size} {now.st_mtime_ns} {sha256}"
    return marks / hashlib.sha256(told.encode()).hexdigest()


def _mark_as_sound(mark: Path) -> None:
    with contextlib.suppress(OSError):  # if the disk is full, it is checked again next time
        mark.touch()


def _append(file: RawIOBase, data: bytes) -> None:
    """Writes all of `data`. If the disk is full, the file is emptied to make room again."""
    rest = memoryview(data)
    try:
        while rest:
            rest = rest[file.write(rest) or 0 :]
    except OSError:
        _empty(file)
        raise


def _empty(file: RawIOBase) -> None:
    file.seek(0)
    file.truncate()


def drop_file(folder: SetFolder, name: str, sha256: str) -> None:
    """Deletes the local copy of a remote file, unless it is kept in a cache."""
    if isinstance(folder, RemoteFolder) and not folder.keep:
        _place(folder, name, sha256).unlink(missing_ok=True)


def _place(folder: RemoteFolder, name: str, sha256: str) -> Path:
    """Path of a file, named by its checksum: files of a set that was packed again never mix."""
    path = folder.local / name
    return path.with_name(f"{path.stem}-{sha256[:16]}{path.suffix}")


def _is_still(file: RawIOBase, path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    return False


@contextlib.contextmanager
def _writing(folder: RemoteFolder) -> Iterator[None]:
    """Turns an OSError while writing into a PersonaError that names the local folder."""
    try:
        yield
    except OSError as error:
        advice = (
            "make room, or name another with --cache" if folder.keep else "set TMPDIR or --cache"
        )
        raise PersonaError(
            f"cannot keep files of {folder} in {folder.local}: {error.strerror}; {advice}"
        ) from None


def _download(folder: RemoteFolder, name: str, file: RawIOBase, size: int | None) -> None:
    """Appends the rest of a remote file. More than RETRIES tries in a row without data fail."""
    url = f"{folder.url}/{quote(name)}"
    tries = 0
    while True:
        before = file.tell()
        if before == size:
            return
        try:
            for data in _chunks(url, before, size):
                with _writing(folder):
                    _append(file, data)
                if file.tell() > (LARGEST_CARD if size is None else size):
                    _empty(file)
                    raise _Final("larger than it may be")
            if size is None or file.tell() == size:
                return
            problem = f"{file.tell():,} of {size:,} bytes came"
        except _Final as answer:
            given_up = UnreachableError if isinstance(answer, _GivenUp) else PersonaError
            kind = NotThereError if str(answer) == FINAL[404] else given_up
            raise kind(f"cannot read {url}: {answer}; {_ADVICE}") from None
        except (OSError, http.client.HTTPException) as error:
            problem = _reason(error)
        if size is None:  # without a size no byte of it is known to be right
            _empty(file)
        tries = 0 if file.tell() > before else tries + 1
        if tries > RETRIES:
            raise UnreachableError(f"cannot read {url}: {problem}, {tries} times; {_ADVICE}")
        log.debug("%s: %s, trying again from byte %d", url, problem, file.tell())
        time.sleep(BACKOFF_S * 2 ** max(0, tries - 1))


_ADVICE = "check the URL, the right to read it, and the server"


def _reason(error: Exception) -> str:
    """Describes an error without headers or signed URLs."""
    if isinstance(error, urllib.error.HTTPError):
        error.close()
        return f"the server answers {error.code}"
    reason = getattr(error, "reason", error)
    if isinstance(reason, TimeoutError):
        return f"nothing came for {TIMEOUT_S:g} s"
    if isinstance(reason, OSError) and reason.strerror:
        return reason.strerror[0].lower() + reason.strerror[1:]
    return f"the connection broke ({type(reason).__name__})"


def _chunks(url: str, start: int, size: int | None) -> Iterator[bytes]:
    """Yields a file's bytes from `start` on. OSError and HTTPException mean: try again."""
    scheme = urlsplit(url).scheme
    return _objects(url, start, size) if scheme in OBJECT_STORES else _http(url, start)


def _http(url: str, start: int) -> Iterator[bytes]:
    credentials = _credentials(url)
    login = {"Authorization": credentials} if credentials else {}
    try:
        response = open_url(url, start=start, login=login, timeout_s=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code in FINAL or error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            error.close()
            answer = FINAL.get(error.code, "shorter than its manifest says")
            if error.code == http.HTTPStatus.UNAUTHORIZED and not _is_private(url):
                answer += ", and a login in ~/.netrc is not sent over http: use https"
            raise _Final(answer) from None
        raise
    with response:
        # A server without range requests starts at byte 0.
        passed = start if response.status != http.HTTPStatus.PARTIAL_CONTENT else 0
        came = 0
        for data in read_blocks(response, whole=True):
            came += len(data)
            fresh = data[max(0, len(data) - (came - passed)) :] if came > passed else b""
            if fresh:
                yield fresh


def _credentials(url: str) -> str | None:
    """The HTTP authorization header of a host's own entry in ~/.netrc.

    The entry `default` is not used: it would send one login to every host that a URL names.
    """
    host = urlsplit(url).hostname
    if not host or host == NETRC_DEFAULT or not _is_private(url):
        return None
    with contextlib.suppress(OSError, netrc.NetrcParseError):
        found = netrc.netrc().hosts.get(host)
        if found is not None:
            return "Basic " + base64.b64encode(f"{found[0]}:{found[2]}".encode()).decode()
    return None


def _is_private(url: str) -> bool:
    """Whether nobody on the way can read a request: https, or a server on this machine."""
    parts = urlsplit(url)
    if parts.scheme == "https" or parts.hostname == "localhost":
        return True
    try:
        return ipaddress.ip_address(parts.hostname or "").is_loopback
    except ValueError:  # a name
        return False


def _objects(url: str, start: int, size: int | None) -> Iterator[bytes]:
    scheme = urlsplit(url).scheme
    store = _object_store(scheme)
    while size is None or start < size:
        end = None if size is None else min(start + OBJECT_CHUNK, size)
        try:
            data = store.cat_file(url, start=start or None, end=end)
        except FileNotFoundError:
            raise _Final(FINAL[404]) from None
        except PermissionError:
            raise _Final(FINAL[403]) from None
        except Exception as error:  # the stores' exceptions have no common base class
            code = getattr(error, "code", None)  # the attribute of gcsfs's HttpError
            problem = f"the server answers {code}" if code else _reason(error)
            answer = _answer_of(error, code)
            if answer is None and scheme in TRIES_OF_STORES:
                raise _GivenUp(f"{problem}, {TRIES_OF_STORES[scheme]} times") from None
            if answer is not None:
                raise _Final(answer) from None
            raise ConnectionError(0, problem) from None
        if not data:
            return
        yield data
        if size is None:
            return
        start += len(data)


def _object_store(scheme: str) -> Any:
    """Opens the reader of an object store.

    Raises:
        PersonaError: If it is not installed.
    """
    import fsspec

    # gcsfs reads this on import. It would ask about buckets over gRPC, where a fork may hang.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it logs a traceback per refusal
    try:
        # Each process makes its own: connections do not survive a fork.
        return fsspec.filesystem(scheme, **OBJECT_OPTIONS.get(scheme, {}))
    except ImportError:
        raise missing(f"{scheme}:// needs a reader", OBJECT_STORES[scheme]) from None


def _answer_of(error: Exception, code: object) -> str | None:
    """The final answer in a store's own exception, or None if it may be tried again."""
    if "Credential" in type(error).__name__:
        return "no credentials"
    if isinstance(error, OSError) and str(error).startswith("Forbidden"):  # gcsfs's 403
        return FINAL[403]
    return FINAL.get(code) if isinstance(code, int) else None

"""Where a set lies: a folder of this machine, or a URL whose files are brought here when wanted.

    https://host/vggface2-train     s3://bucket/vggface2-train     gs://bucket/vggface2-train

A file comes whole, under a lock that workers and ranks share, from the byte at which the last try
was cut, and has its name only once it matches its checksum. With a cache folder it stays there;
without one it lies in a temporary folder and goes when the stream is past it. Credentials are those
of ~/.netrc, of AWS and of Google; a URL that holds some is refused, because URLs are printed.

A file of a set on this machine is read against its checksum before its first use, once a run: a
flipped bit seldom breaks a JPEG, it changes its pixels. Whoever comes first reads it, other workers
wait, and a mark in a temporary folder tells them all, by size, time and inode.
"""

from __future__ import annotations

import atexit
import base64
import contextlib
import fcntl
import functools
import hashlib
import http.client
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
from persona.files import LARGEST_LIST, sha256_file, write_atomically

log = logging.getLogger(__name__)

OBJECT_STORES = {"s3": "s3", "gs": "gcs"}
"""Scheme and the extra of this package that reads it."""
OBJECT_OPTIONS: dict[str, dict[str, Any]] = {
    "s3": {"config_kwargs": {"retries": {"max_attempts": 0}}}  # tried again here
}
TRIES_OF_STORES = {"gs": 6}
"""Of readers that try again by themselves, for half a minute, and cannot be told not to."""
SCHEMES = ("http", "https", *OBJECT_STORES)
TIMEOUT_S = 30.0
RETRIES = 5
"""Tries in a row that bring nothing."""
BACKOFF_S = 0.5
"""Wait before the second try; doubled for each one after it."""
TEMPORARY = "persona-set-"
"""What the names of temporary folders begin with."""
OBJECT_CHUNK = 8 << 20
"""Bytes a request to an object store."""
LARGEST_CARD = LARGEST_LIST
"""Bytes of a file whose size no manifest says."""
FINAL = {401: "refused", 403: "refused", 404: "not there", 410: "not there"}
"""HTTP answers that no second try changes."""


@dataclass(frozen=True)
class RemoteFolder:
    """A set behind a URL, and where its files are put on this machine."""

    url: str
    local: Path
    keep: bool
    """Whether files stay in `local`."""

    def __str__(self) -> str:
        return self.url


@dataclass(frozen=True)
class CheckedFolder:
    """A set on this machine whose files are read against their checksums before their first use."""

    path: Path
    marks: Path
    """Folder in which this run notes what it has checked, for all its processes here."""

    def __str__(self) -> str:
        return str(self.path)


SetFolder = Path | CheckedFolder | RemoteFolder
"""Of a plain path nothing is checked."""


class NotThereError(PersonaError):
    """The storage says that there is no such file."""


class UnreachableError(PersonaError):
    """The storage does not answer, or not with what is asked for, however often it is tried."""


class _Final(Exception):  # noqa: N818 - an answer, of which the caller makes an error
    """The storage answered, and no second try changes it."""


class _GivenUp(_Final):
    """Its reader tried often enough."""


def is_url(name: str) -> bool:
    """Whether a set's name is a place elsewhere."""
    return "://" in name


def is_remote(folder: SetFolder) -> bool:
    """Whether a set's files must be brought here."""
    return isinstance(folder, RemoteFolder)


def keeps(folder: SetFolder) -> bool:
    """Whether a set that is elsewhere has a cache, from which it may go on."""
    return isinstance(folder, RemoteFolder) and folder.keep


def open_remote(url: str, cache: Path | None) -> RemoteFolder:
    """A set by its URL; nothing is read yet.

    Raises:
        PersonaError: of an unknown scheme, or with credentials in it.
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
        return RemoteFolder(place, _temporary_folder(), keep=False)
    digest = hashlib.sha256(place.encode()).hexdigest()[:12]
    return RemoteFolder(place, cache / f"{place.rpartition('/')[2]}-{digest}", keep=True)


def checked(folder: Path) -> CheckedFolder:
    """The set in `folder`, whose files are checked."""
    return CheckedFolder(folder, _marks())


@functools.cache
def _marks() -> Path:
    """This run's marks; processes that it forks, or gives a folder, have the same ones."""
    return _temporary_folder()


def _temporary_folder() -> Path:
    """A folder that goes with this process, though not with the workers that it forks.

    If the process is killed, the next one that makes such a folder removes it.
    """
    _remove_abandoned(Path(tempfile.gettempdir()))
    owner = os.getpid()
    while _hold(folder := Path(tempfile.mkdtemp(prefix=TEMPORARY))) is None:
        pass  # another process took it for abandoned before it was held

    def remove() -> None:
        if os.getpid() == owner:
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return folder


def _hold(folder: Path) -> int | None:
    """A handle that locks a folder until this process and what it forks end.

    Returns:
        None: the folder is gone, or another process holds it.
    """
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    with contextlib.suppress(OSError):
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if folder.is_dir():
            return handle
    os.close(handle)
    return None


def _remove_abandoned(place: Path) -> None:
    """Removes the temporary folders below `place` of this user's processes that are no more."""
    for folder in place.glob(f"{TEMPORARY}*"):
        with contextlib.suppress(OSError):
            if folder.lstat().st_uid == os.geteuid() and (handle := _hold(folder)) is not None:
                shutil.rmtree(folder, ignore_errors=True)
                os.close(handle)


def on_disk(folder: SetFolder, doing: str) -> Path:
    """The folder itself, for what writes beside a set or checks it.

    Raises:
        PersonaError: the set is elsewhere.
    """
    if isinstance(folder, RemoteFolder):
        raise PersonaError(f"{doing} wants the set on this machine: copy {folder} below shards/")
    return folder.path if isinstance(folder, CheckedFolder) else folder


def card_file(folder: SetFolder, name: str) -> Path:
    """A small file of a set, fetched anew each time where it is elsewhere.

    Where nobody answers there, a cache has it as it was when it was fetched last.

    Raises:
        NotThereError: there is no such file elsewhere.
        UnreachableError: nobody answers, and no cache has it.
        PersonaError: it cannot be read from there.
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
    """A file of a set, brought here first where it is elsewhere.

    Args:
        folder: of the set.
        name: of the file in it.
        sha256: what it must be; only of a plain path it is taken as it is.
        size: its bytes, where they are known.

    Raises:
        PersonaError: it cannot be read, does not match, or there is no room for it.
    """
    if isinstance(folder, CheckedFolder):
        return _check(folder, name, sha256)
    if isinstance(folder, Path):
        return folder / name
    path = _place(folder, name, sha256)
    if path.is_file():
        return path
    with _writing(folder):
        path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    began_anew = False
    while True:
        with contextlib.ExitStack() as stack:
            with _writing(folder):
                file = stack.enter_context(partial.open("ab", buffering=0))
            fcntl.flock(file, fcntl.LOCK_EX)
            if path.is_file():
                return path
            if not _is_still(file, partial):  # its last holder gave it up
                continue
            if size is not None and file.tell() > size:
                _empty(file)
            _download(folder, name, file, size)
            with _writing(folder):
                os.fsync(file.fileno())
            if sha256_file(partial) == sha256:
                partial.replace(path)
                return path
            partial.unlink()
            if began_anew:
                raise PersonaError(
                    f"{folder}/{name} does not match its checksum: upload the set again"
                )
            began_anew = True  # an answer may have been another page, one to log in for example


def _check(folder: CheckedFolder, name: str, sha256: str) -> Path:
    """A file of a set on this machine, which matches its checksum or is not there."""
    path = folder.path / name
    try:
        file = path.open("rb", buffering=0)
    except FileNotFoundError:
        return path  # who reads it says what is to be done
    with file:
        now = os.fstat(file.fileno())
        told = f"{now.st_dev} {now.st_ino} {now.st_size} {now.st_mtime_ns} {sha256}"
        mark = folder.marks / hashlib.sha256(told.encode()).hexdigest()
        if mark.exists():
            return path
        # Not every network's file system can lock.
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        if mark.exists():
            return path
        if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
            raise PersonaError(
                f"{path} does not match its checksum: restore it (`persona shards verify` names "
                "all such files), or remove it and run again what made it"
            )
        with contextlib.suppress(OSError):  # a disk that is full: checked again next time
            mark.touch()
    return path


def _append(file: RawIOBase, data: bytes) -> None:
    """Writes all of it; what is on a disk that is full by then makes room again."""
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
    """Lets go of a file that was brought here for a while."""
    if isinstance(folder, RemoteFolder) and not folder.keep:
        _place(folder, name, sha256).unlink(missing_ok=True)


def _place(folder: RemoteFolder, name: str, sha256: str) -> Path:
    """Named by what it holds: a set that was packed anew is never mixed with what it was."""
    path = folder.local / name
    return path.with_name(f"{path.stem}-{sha256[:16]}{path.suffix}")


def _is_still(file: RawIOBase, path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    return False


@contextlib.contextmanager
def _writing(folder: RemoteFolder) -> Iterator[None]:
    """Says what is wrong with the place where files are put."""
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
    """Appends what `file` lacks yet, in as many tries as it takes while each brings something."""
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
        if size is None:  # no byte of it is known to be right
            _empty(file)
        tries = 0 if file.tell() > before else tries + 1
        if tries > RETRIES:
            raise UnreachableError(f"cannot read {url}: {problem}, {tries} times; {_ADVICE}")
        log.debug("%s: %s, trying again from byte %d", url, problem, file.tell())
        time.sleep(BACKOFF_S * 2 ** max(0, tries - 1))


_ADVICE = "check the URL, the right to read it, and the server"


def _reason(error: Exception) -> str:
    """What went wrong, in words that hold no header and no signed address."""
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
    """A file's bytes from `start` on; what can be tried again is an OSError or HTTPException."""
    scheme = urlsplit(url).scheme
    return _objects(url, start, size) if scheme in OBJECT_STORES else _http(url, start)


def _http(url: str, start: int) -> Iterator[bytes]:
    credentials = _credentials(urlsplit(url).hostname or "")
    login = {"Authorization": credentials} if credentials else {}
    try:
        response = open_url(url, start=start, login=login, timeout_s=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code in FINAL or error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            error.close()
            shorter = "shorter than its manifest says"
            raise _Final(FINAL.get(error.code, shorter)) from None
        raise
    with response:
        # A server that knows no ranges begins anew.
        passed = start if response.status != http.HTTPStatus.PARTIAL_CONTENT else 0
        came = 0
        for data in read_blocks(response, whole=True):
            came += len(data)
            fresh = data[max(0, len(data) - (came - passed)) :] if came > passed else b""
            if fresh:
                yield fresh


def _credentials(host: str) -> str | None:
    """What ~/.netrc has for a host, as HTTP takes it."""
    with contextlib.suppress(OSError, netrc.NetrcParseError):
        found = netrc.netrc().authenticators(host)
        if found is not None:
            return "Basic " + base64.b64encode(f"{found[0]}:{found[2]}".encode()).decode()
    return None


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
        except Exception as error:  # the stores' own families have no base in common
            code = getattr(error, "code", None)  # of gcsfs's HttpError
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
    """The reader of an object store.

    Raises:
        PersonaError: it is not installed.
    """
    import fsspec

    # gcsfs reads it on import: over gRPC, which it would ask about buckets, a fork may hang.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it logs the trace of each refusal
    try:
        # Made anew in each process: its connections do not survive a fork.
        return fsspec.filesystem(scheme, **OBJECT_OPTIONS.get(scheme, {}))
    except ImportError:
        raise missing(f"{scheme}:// needs a reader", OBJECT_STORES[scheme]) from None


def _answer_of(error: Exception, code: object) -> str | None:
    """What a store's own exception says that no second try changes."""
    if "Credential" in type(error).__name__:
        return "no credentials"
    if isinstance(error, OSError) and str(error).startswith("Forbidden"):  # gcsfs's 403
        return FINAL[403]
    return FINAL.get(code) if isinstance(code, int) else None

"""Downloads files. A download is resumed, retried, verified, and put in place only when complete.

1. Every mirror that has not refused is asked in turn, in rounds with longer and longer waits. Only
   rounds that bring no data count
2. The data so far lies in `.download/` beside the target. The next request asks for the rest, on
   the condition that the file is still the same (Range and If-Range)
3. The whole is compared with its length and checksum, then renamed

All HTTP requests of Persona go through `open_url` and `read_blocks`. Those for the files of a
packed set (persona/data/storage.py) and of the hub (persona/models/hub.py) have their own rules for
partial files and retries.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import http.client
import ipaddress
import json
import logging
import secrets
import shutil
import socket
import tarfile
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import urlsplit

from persona.errors import PersonaError
from persona.files import folder_lock, placed, whole_number, write_json
from persona.progress import progress_bar

log = logging.getLogger(__name__)

TIMEOUT_S = 30.0
"""Seconds without data after which a mirror is left for this round."""
ROUNDS = 5
WAIT_S = 1.0
"""Wait in seconds before the second round. It doubles with each further round."""
MAX_BYTES = 20 << 30
MOST_DIGITS = 18
"""Largest number of digits of a length that a server states."""
BLOCK = 1 << 18
FOLDER = ".download"
FINAL_STATUS = frozenset({400, 401, 403, 404, 405, 410, 451})
"""HTTP status codes after which a mirror is not asked again."""


@dataclass(frozen=True)
class Checksum:
    """The checksum of a file."""

    algorithm: str
    digits: str
    """Hex digits of the hash, or as many of the first ones as are known."""

    def fits(self, path: Path) -> bool:
        """Whether the file has this checksum."""
        with placed(path), path.open("rb") as file:
            digest = hashlib.file_digest(file, lambda: hashlib.new(self.algorithm))
        return digest.hexdigest().startswith(self.digits)


class RefusedError(PersonaError):
    """Every mirror has answered, and does not give the file."""

    reason = ""
    """The answer of the last mirror."""


class _CutError(Exception):
    """A mirror gave less than the whole file. The message says why."""


class _RefusalError(_CutError):
    """A mirror refused, and need not be asked again."""


class _NowhereError(_RefusalError):
    """There is no such server, or nothing answers there."""


class _BeyondError(_CutError):
    """The server has no data beyond the bytes that are here. The message is its length."""


class _SameHost(urllib.request.HTTPRedirectHandler):
    """Follows redirects, and sends the login only to the same server."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        """Builds the redirected request."""
        found = super().redirect_request(req, fp, code, msg, headers, newurl)
        there, here = urlsplit(newurl), urlsplit(req.full_url)
        if found is not None and (there.scheme, there.netloc) == (here.scheme, here.netloc):
            found.unredirected_hdrs.update(req.unredirected_hdrs)
        return found


class _Proxies(urllib.request.ProxyHandler):
    """The user's proxies, which never get a request to this machine, also after a redirect."""

    def proxy_open(self, req: urllib.request.Request, proxy: str, type: str) -> Any:  # noqa: A002
        """Sends a request through a proxy. None leaves it to be sent directly."""
        if is_this_machine(urlsplit(f"//{req.host}").hostname or ""):
            return None
        return super().proxy_open(req, proxy, type)


def is_this_machine(host: str) -> bool:
    """Whether a URL's host is this machine's loopback address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def open_url(
    url: str,
    *,
    start: int = 0,
    version: str = "",
    login: Mapping[str, str] | None = None,
    form: Mapping[str, str] | None = None,
    timeout_s: float = TIMEOUT_S,
) -> Any:
    """Sends one request, without compression, through the user's proxies or to this machine.

    Args:
        url: An http(s) URL.
        start: First byte to send. A server without range requests starts at byte 0.
        version: ETag or date of the bytes that are here. If the file has another one, the server
            sends all of it.
        login: Headers that are not sent to any other server after a redirect.
        form: Fields to post as multipart/form-data. None gets a file.
        timeout_s: Seconds without data after which the request fails.

    Raises:
        OSError, http.client.HTTPException: If there is no answer, or it is an error
            (`urllib.error.HTTPError`).
        ValueError: If the URL is not valid.
    """
    request = urllib.request.Request(
        url, headers={"User-Agent": "persona", "Accept-Encoding": "identity"}
    )
    if start:
        request.add_header("Range", f"bytes={start}-")
        if version:
            request.add_header("If-Range", version)
    for name, value in (login or {}).items():
        request.add_unredirected_header(name, value)
    if form is not None:
        boundary = secrets.token_hex(16)
        request.add_unredirected_header("Content-Type", f"multipart/form-data; boundary={boundary}")
        request.data = _form_bytes(form, boundary)
    return urllib.request.build_opener(_SameHost, _Proxies).open(request, timeout=timeout_s)


def _form_bytes(form: Mapping[str, str], boundary: str) -> bytes:
    """The fields of a form as multipart/form-data (RFC 7578). Their names are plain ASCII."""
    head = f"--{boundary}\r\nContent-Disposition: form-data; name="
    fields = [f'{head}"{name}"\r\n\r\n{value}\r\n' for name, value in form.items()]
    return "".join([*fields, f"--{boundary}--\r\n"]).encode()


def read_blocks(response: Any, *, whole: bool = False) -> Iterator[bytes]:
    """Yields the body of an answer as it arrives.

    Raises:
        OSError, http.client.HTTPException: If the connection broke, or with `whole` if the body
            ended early.
    """
    came = 0
    while block := response.read1(BLOCK):  # `read` would lose data that came before a reset
        came += len(block)
        yield block
    length = whole_number(response.headers.get("Content-Length") or "", MOST_DIGITS) or 0
    if whole and came < length:
        raise http.client.IncompleteRead(b"", length - came)


def fetch(
    mirrors: Sequence[str],
    target: Path,
    *,
    checksum: Checksum | None = None,
    by_hand: str,
    rounds: int = ROUNDS,
    sleep: Callable[[float], None] = time.sleep,
    most_bytes: int = MAX_BYTES,
    quiet: bool = False,
    wait: bool = False,
) -> Path:
    """Downloads one file to `target`. It keeps an existing file and continues a partial one.

    Args:
        mirrors: http(s) URLs of the same file.
        target: Path of the file. Its folder is created.
        checksum: Checksum of the whole file, if known.
        by_hand: What to do without internet access, for the error.
        rounds: Number of consecutive rounds without data before the download fails.
        sleep: Function that waits between rounds.
        most_bytes: A larger file is refused.
        quiet: Show no progress bar.
        wait: Wait while another process downloads into the same folder.

    Raises:
        RefusedError: If every mirror refused the file.
        PersonaError: If no mirror has the whole file, or another process is downloading into its
            folder, without `wait`.
    """
    for url in mirrors:
        if urlsplit(url).scheme not in {"http", "https"}:
            raise PersonaError(f"{_shown(url)} is no address of a mirror: expected https://…")
    if target.exists():
        return _kept(target, checksum)
    work = target.parent / FOLDER
    with folder_lock(work, doing="downloading into", wait=wait):
        here = target.exists()  # another process has just finished
        if not here:
            partial = _Partial(work, target.name)
            ask = functools.partial(_ask, checksum=checksum, most_bytes=most_bytes)
            _fill(partial, mirrors, ask, by_hand, rounds, sleep, quiet)
            partial.path.replace(target)
            partial.clear()
        if [path.name for path in work.iterdir()] == [".lock"]:
            # A process that waits may just have put a new lock there.
            shutil.rmtree(work, ignore_errors=True)
    return _kept(target, checksum) if here else target


def _kept(target: Path, checksum: Checksum | None) -> Path:
    if checksum is not None and not checksum.fits(target):
        raise PersonaError(
            f"{target} is not the file that it should be ({checksum.algorithm} "
            f"{checksum.digits}): remove it and run again"
        )
    return target


class _Partial:
    """The part of a file that is here, and the version of the file that it belongs to."""

    def __init__(self, folder: Path, name: str) -> None:
        self.path = folder / f"{name}.partial"
        self.card = folder / f"{name}.json"
        self.version = ""
        self.address = ""
        """Hash of the URL that it came from. The query of a signed URL is a secret."""
        self.total = 0
        """Length of the whole file in bytes, as the server stated. 0 if it is not known."""
        if self.path.is_file() and self.card.is_file():
            with contextlib.suppress(ValueError, AttributeError):
                known = json.loads(self.card.read_bytes())
                self.address = str(known.get("url_sha256"))
                self.version = str(known.get("version") or "")
                self.total = int(known.get("total") or 0)

    @property
    def size(self) -> int:
        """Number of bytes that are here."""
        return self.path.stat().st_size if self.path.is_file() else 0

    def begin(self, url: str, version: str, total: int) -> None:
        """Deletes the partial file and starts anew with this version of the file."""
        self.path.unlink(missing_ok=True)
        self.address, self.version, self.total = _hash(url), version, total
        card = {"url_sha256": self.address, "version": version, "total": total}
        write_json(self.card, card)

    def clear(self) -> None:
        """Deletes the partial file and its card."""
        self.path.unlink(missing_ok=True)
        self.card.unlink(missing_ok=True)


def _fill(
    partial: _Partial,
    mirrors: Sequence[str],
    ask: Callable[[str, _Partial, _Bar], None],
    by_hand: str,
    rounds: int,
    sleep: Callable[[float], None],
    quiet: bool,
) -> None:
    """Asks the mirrors until the file is complete."""
    asked = list(dict.fromkeys(mirrors))
    reasons: dict[str, _CutError] = {}
    vain, most = 0, partial.size
    with contextlib.ExitStack() as stack:
        bar = _Bar(stack, partial, quiet)
        while asked and vain < rounds:
            if reasons:
                sleep(WAIT_S * 2 ** max(0, vain - 1))
            for url in list(asked):
                log.debug("asking %s from byte %d", _shown(url), partial.size)
                try:
                    ask(url, partial, bar)
                except _CutError as why:
                    reasons[url] = why
                    if isinstance(why, _RefusalError):
                        asked.remove(url)
                    continue
                return
            # Compared with the largest size so far: a file that always starts over must end, too.
            vain = 0 if partial.size > most else vain + 1
            most = max(most, partial.size)
    told = "; ".join(f"{_shown(url)}: {why}" for url, why in reasons.items())
    line = f"cannot download {partial.path.stem} ({told}): {by_hand}"
    if asked or any(isinstance(why, _NowhereError) for why in reasons.values()):
        raise PersonaError(line)
    refused = RefusedError(line)
    refused.reason = str([*reasons.values()][-1])
    raise refused


class _Bar:
    """A progress bar that appears when the length is known, and may go back."""

    def __init__(self, stack: contextlib.ExitStack, partial: _Partial, quiet: bool) -> None:
        self._stack = stack
        self._quiet = quiet
        self._title = partial.path.stem
        self._advance: Callable[[int], None] | None = None
        self._at = 0

    def __call__(self, done: int, total: int) -> None:
        """Shows that `done` bytes of `total` are here. A total of 0 is not known."""
        if self._advance is None:
            bar = progress_bar(
                self._title, total=total, unit="bytes", done=done, enabled=not self._quiet
            )
            self._advance = self._stack.enter_context(bar)
        else:
            self._advance(done - self._at)
        self._at = done


def _ask(
    url: str,
    partial: _Partial,
    bar: _Bar,
    *,
    checksum: Checksum | None,
    most_bytes: int,
) -> None:
    """Downloads the rest of the file from one mirror.

    Raises:
        _CutError: If the data did not all come, or does not match.
    """
    start = partial.size
    same = partial.address == _hash(url) and partial.version
    if start and not same and checksum is None:
        start = 0  # without a checksum, bytes of two different files could be joined unnoticed
    version = partial.version if same else ""
    try:
        size, total = _receive(url, version, partial, start, most_bytes, bar)
    except _BeyondError as length:  # killed between the last byte and the renaming, or damaged
        if str(length) != str(start) or (checksum is None and partial.total != start):
            partial.clear()
            raise _CutError("its length is not what was promised before") from None
        size = total = start
    if size < total:
        raise _CutError(f"{size:,} of {total:,} bytes came")
    if checksum is not None and not checksum.fits(partial.path):
        partial.clear()
        # A file that came in one piece would be the wrong one again the next time.
        kind = _CutError if start else _RefusalError
        raise kind(f"its {checksum.algorithm} is not {checksum.digits}")


def _receive(
    url: str, version: str, partial: _Partial, start: int, most_bytes: int, bar: _Bar
) -> tuple[int, int]:
    """Appends the data of one request. Returns the size so far and of the whole, 0 if unknown."""
    with _response(url, start, version) as response:
        total = _begin(response, url, partial, start, most_bytes)
        size = partial.size
        bar(size, total)
        with partial.path.open("ab") as file:
            for block in _blocks(response):
                size += len(block)
                if size > (total or most_bytes):
                    raise _CutError("more bytes came than were promised")
                file.write(block)
                bar(size, total)
    return size, total


def _begin(response: Any, url: str, partial: _Partial, start: int, most_bytes: int) -> int:
    """Prepares the partial file for the answer. Returns the length of the whole, 0 if unknown."""
    headers = response.headers
    if response.status == 206:
        promise = (headers.get("Content-Range") or "").removeprefix("bytes ")
        span, _, length = promise.partition("/")
        first = span.partition("-")[0]
        if whole_number(first, MOST_DIGITS) != start or not start:
            raise _CutError("it answered with another part than asked for")
        total = whole_number(length, MOST_DIGITS) or 0
    else:
        tag = headers.get("ETag") or ""
        version = tag if tag and not tag.startswith("W/") else headers.get("Last-Modified") or ""
        length = headers.get("Content-Length") or ""
        total = whole_number(length, MOST_DIGITS) or 0
        partial.begin(url, version, total)
    if total > most_bytes:
        raise _RefusalError(f"it promises {total:,} bytes")
    return total


@contextlib.contextmanager
def _response(url: str, start: int, version: str) -> Iterator[Any]:
    """Yields an answer that holds the file, or the requested part of it."""
    try:
        response = open_url(url, start=start, version=version)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:
            length = (error.headers.get("Content-Range") or "").rpartition("/")[2]
            raise _BeyondError(length) from None
        kind = _RefusalError if error.code in FINAL_STATUS else _CutError
        raise kind(f"HTTP {error.code} {error.reason}") from None
    except (OSError, http.client.HTTPException) as error:  # URLErrors and time-outs are OSErrors
        # An unknown host or a closed port: waiting does not help.
        reason = getattr(error, "reason", error)
        nowhere = isinstance(reason, socket.gaierror | ConnectionRefusedError)
        raise (_NowhereError if nowhere else _CutError)(_reason(error)) from None
    except ValueError:  # http.client.InvalidURL and the like
        raise _RefusalError("this is no address") from None
    with response:
        yield response


def _blocks(response: Any) -> Iterator[bytes]:
    """Yields the body. Its read errors become _CutError, unlike errors of writing to disk."""
    blocks = read_blocks(response)
    while True:
        try:
            block = next(blocks, b"")
        except (OSError, http.client.HTTPException) as error:
            raise _CutError(_reason(error)) from None
        if not block:
            return
        yield block


def _reason(error: BaseException) -> str:
    reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
    return str(reason) or type(error).__name__


def _hash(url: str) -> str:
    return hashlib.sha256(url.encode()).hexdigest()


def _shown(url: str) -> str:
    """A URL without parts that may be secret."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def unpack_tar(archive: Path, folder: Path, *, max_bytes: int, max_files: int) -> None:
    """Unpacks a tar, compressed or not, into a folder that does not exist yet.

    Owners, modes and times are ignored.

    Raises:
        PersonaError: If the tar is damaged, too large, holds anything but files and folders, or a
            name points outside the folder.
    """
    files = size = 0
    folder.mkdir(parents=True)
    try:
        with (
            tarfile.open(archive, mode="r|*") as tar,
            progress_bar(f"unpacking {archive.name}", total=0, unit="files") as advance,
        ):
            for member in tar:
                tar.members = []  # type: ignore[attr-defined]  # keeps memory flat
                name = PurePosixPath(member.name)
                if name.is_absolute() or ".." in name.parts or "\0" in member.name:
                    raise _unsafe(archive, member, "leaves its folder")
                if member.isdir():
                    (folder / name).mkdir(parents=True, exist_ok=True)
                    continue
                if not member.isreg() or member.issparse():
                    raise _unsafe(archive, member, "is a link, device or sparse file")
                files, size = files + 1, size + member.size
                if files > max_files or size > max_bytes:
                    limit = f"{max_bytes:,} bytes or {max_files:,} files"
                    raise _unsafe(archive, member, f"is beyond {limit}")
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                source = tar.extractfile(member)
                assert source is not None
                try:
                    with path.open("xb") as file:
                        shutil.copyfileobj(source, file)
                except FileExistsError:
                    raise _unsafe(archive, member, "is in it twice") from None
                advance(1)
    except (tarfile.TarError, zlib.error, EOFError, ValueError, OSError) as error:
        # A broken gzip stream is an OSError, too. Errors of the disk have a number.
        if isinstance(error, OSError) and error.errno:
            raise
        raise PersonaError(f"{archive} is damaged ({error}): remove it and run again") from None


def _unsafe(archive: Path, member: tarfile.TarInfo, what: str) -> PersonaError:
    return PersonaError(f"{archive} is not unpacked: {member.name[:100]!r} {what}")

"""Photos of a list that lie behind http(s) URLs. They are downloaded before anything is packed.

    photos.csv.downloads/
        3f/3f0c…9a       a photo, named by the SHA-256 of its URL without the query
        refused.csv      url,reason of each photo that its server refused, and a hash of its query

The query of a URL is asked with and then forgotten, because that of a signed URL is a secret and
lasts for hours. So a list whose URLs are signed anew names the same photos.

A photo that is there is not asked for again, nor is one that was refused (HTTP 404 and the like),
unless its query is another; remove `refused.csv` to ask again. A server that gives no answer ends
the command after all others were asked. Otherwise a broken network would quietly make a smaller
set.
"""

from __future__ import annotations

import csv
import hashlib
import itertools
import logging
import os
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

from persona.data.raw.base import MAX_PHOTO_BYTES
from persona.download import RefusedError, fetch
from persona.errors import PersonaError
from persona.names import legible
from persona.progress import progress_bar

log = logging.getLogger(__name__)

SCHEMES = ("http://", "https://")
REFUSED = "refused.csv"
THREADS = 16
ROUNDS = 3
"""Times that a server is asked without an answer before it is left."""


def is_url(text: str) -> bool:
    """Whether a row of a list names a URL."""
    return text.startswith(SCHEMES)


def is_sound(url: str) -> bool:
    """Whether a URL can be taken apart, and names a host."""
    try:
        parts = urlsplit(url)
        return bool(parts.hostname) and parts.port != 0
    except ValueError:  # for example `http://[a/1.jpg` and `http://a:b/1.jpg`
        return False


def without_query(url: str) -> str:
    """A URL without its query and fragment, as a set may show it."""
    return re.split("[?#]", url, maxsplit=1)[0]


def _query_hash(url: str) -> str:
    """Tells queries of a URL apart without showing them. It is empty if there is no query."""
    return "" if without_query(url) == url else hashlib.sha256(url.encode()).hexdigest()[:16]


class FetchedPhotos:
    """The downloaded photos of a list, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.refused: dict[str, str] = {}
        """The reason of each photo that its server refused, by URL without its query."""
        self._queries: dict[str, str] = {}
        """The `_query_hash` of the URL with which each refused photo was asked for."""
        self.unanswered: dict[str, str] = {}
        """The reason of each photo whose server gave no whole answer in this process, by URL
        without its query."""
        self._hosts: set[str] = set()
        self._stopped = False  # an Event could not be sent to the workers that read photos
        if (folder / REFUSED).is_file():
            with (folder / REFUSED).open(encoding="utf-8", newline="") as file:
                for url, reason, *query in filter(lambda row: len(row) in {2, 3}, csv.reader(file)):
                    name = without_query(url)
                    self.refused[name] = reason
                    self._queries[name] = query[0] if query else _query_hash(url)

    def path(self, url: str) -> str:
        """Path of a photo's file, which may not be there. The query does not matter."""
        digest = hashlib.sha256(without_query(url).encode()).hexdigest()
        return os.path.join(self.folder, digest[:2], digest)  # noqa: PTH118 - as in lists.py

    def fetch(self, urls: Iterable[str]) -> None:
        """Downloads the photos that are neither there nor refused.

        Of URLs that differ in the query alone, the first is asked for. Those that do not come are
        in `refused` and `unanswered` afterwards.
        """
        wanted: dict[str, str] = {}
        for url in urls:
            wanted.setdefault(without_query(url), url)
        missing = []
        for name, url in wanted.items():
            there = os.path.isfile(self.path(url))  # noqa: PTH113
            if there or self._queries.get(name) != _query_hash(url):
                self.refused.pop(name, None)
            if not there and name not in self.refused:
                missing.append(url)
        if not missing:
            return
        # `fetch` locks the folder that it downloads into, so each thread has folders of its own.
        by_folder = itertools.groupby(sorted(missing, key=self.path), lambda u: self.path(u)[:-64])
        known = set(self.refused)
        pool = ThreadPoolExecutor(THREADS)
        try:
            with progress_bar("downloading", total=len(missing), unit="photos") as advance:
                for done in pool.map(self._fetch_all, [list(group) for _, group in by_folder]):
                    advance(done)
        finally:
            self._stopped = True
            pool.shutdown(cancel_futures=True)
            self._stopped = False
            self._write_refused([name for name in self.refused if name not in known])

    def _fetch_all(self, urls: list[str]) -> int:
        for url in urls:
            if self._stopped:
                break
            self._fetch_one(url)
        return len(urls)

    def _fetch_one(self, url: str) -> None:
        name, host = without_query(url), urlsplit(url).netloc
        if host in self._hosts:
            self.unanswered[name] = "this server gave no answer before"
            return
        try:
            fetch(
                [url],
                Path(self.path(url)),
                by_hand="take it out of the list",
                rounds=ROUNDS,
                most_bytes=MAX_PHOTO_BYTES,
                quiet=True,
                wait=True,  # several commands may read one list, and a photo comes soon
            )
        except RefusedError as error:
            self.refused[name], self._queries[name] = error.reason, _query_hash(url)
        except PersonaError as error:
            self.unanswered[name] = str(error)
            self._hosts.add(host)

    def _write_refused(self, fresh: list[str]) -> None:
        if fresh:
            self.folder.mkdir(parents=True, exist_ok=True)
            with (self.folder / REFUSED).open("a", encoding="utf-8", newline="") as file:
                csv.writer(file).writerows(
                    [name, legible(self.refused[name]), *filter(None, [self._queries[name]])]
                    for name in fresh
                )

    def check(self, total: int) -> None:
        """Tells how many photos were refused.

        Raises:
            PersonaError: A server gave no answer, so its photos may come the next time.
        """
        if self.unanswered:
            first = next(iter(self.unanswered.values()))
            raise PersonaError(
                f"{len(self.unanswered):,} of {total:,} photos did not come, the first: {first}; "
                "run again to go on, or take them out of the list"
            )
        if self.refused:
            log.warning(
                "%d of %d photos were refused by their servers: %s lists them",
                *(len(self.refused), total, self.folder / REFUSED),
            )

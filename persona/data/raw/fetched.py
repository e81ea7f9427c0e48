"""Photos of a list that lie behind http(s) URLs. They are downloaded before anything is packed.

    photos.csv.downloads/
        3f/3f0c…9a       a photo, named by the SHA-256 of its URL
        refused.csv      url,reason of each photo that its server refused

A photo that is there is not asked for again, nor is one that was refused (HTTP 404 and the like);
remove `refused.csv` to ask again. A server that gives no answer ends the command after all others
were asked. Otherwise a broken network would quietly make a smaller set.
"""

from __future__ import annotations

import csv
import hashlib
import itertools
import logging
import os
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


class FetchedPhotos:
    """The downloaded photos of a list, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.refused: dict[str, str] = {}
        """The reason of each photo that its server refused, by URL."""
        self.unanswered: dict[str, str] = {}
        """The reason of each photo whose server gave no whole answer in this process."""
        self._hosts: set[str] = set()
        self._stopped = False  # an Event could not be sent to the workers that read photos
        if (folder / REFUSED).is_file():
            with (folder / REFUSED).open(encoding="utf-8", newline="") as file:
                self.refused = {row[0]: row[1] for row in csv.reader(file) if len(row) == 2}

    def path(self, url: str) -> str:
        """Path of a photo's file, which may not be there."""
        digest = hashlib.sha256(url.encode()).hexdigest()
        return os.path.join(self.folder, digest[:2], digest)  # noqa: PTH118 - as in lists.py

    def fetch(self, urls: Iterable[str]) -> None:
        """Downloads the photos that are neither there nor refused.

        Those that do not come are in `refused` and `unanswered` afterwards.
        """
        wanted = dict.fromkeys(url for url in urls if url not in self.refused)
        missing = [url for url in wanted if not os.path.isfile(self.path(url))]  # noqa: PTH113
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
            self._write_refused([url for url in self.refused if url not in known])

    def _fetch_all(self, urls: list[str]) -> int:
        for url in urls:
            if self._stopped:
                break
            self._fetch_one(url)
        return len(urls)

    def _fetch_one(self, url: str) -> None:
        host = urlsplit(url).netloc
        if host in self._hosts:
            self.unanswered[url] = "this server gave no answer before"
            return
        try:
            fetch(
                [url],
                Path(self.path(url)),
                by_hand="take it out of the list",
                rounds=ROUNDS,
                most_bytes=MAX_PHOTO_BYTES,
                quiet=True,
            )
        except RefusedError as error:
            self.refused[url] = error.reason
        except PersonaError as error:
            self.unanswered[url] = str(error)
            self._hosts.add(host)

    def _write_refused(self, fresh: list[str]) -> None:
        if fresh:
            self.folder.mkdir(parents=True, exist_ok=True)
            with (self.folder / REFUSED).open("a", encoding="utf-8", newline="") as file:
                csv.writer(file).writerows([url, legible(self.refused[url])] for url in fresh)

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

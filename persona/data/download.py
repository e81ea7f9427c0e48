"""LFW from where it can be had.

Everything is made in `.lfw/` below the raw folder, which is renamed to `LFW` when it is whole; a
run that was killed goes on from the archive, or the part of it, that lies there.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from persona.data.raw.base import DATASETS, find_root
from persona.data.raw.lfw import LFW
from persona.download import Checksum, fetch, unpack_tar
from persona.errors import PersonaError, unknown
from persona.files import folder_lock

WORK = ".lfw"
MAX_UNPACKED_BYTES = 2 << 30
MAX_UNPACKED_FILES = 50_000


@dataclass(frozen=True)
class Source:
    """A file and its mirrors."""

    file: str
    mirrors: tuple[str, ...]
    checksum: Checksum


# Checksums: torchvision 0.26, datasets/lfw.py. Mirrors: the site, scikit-learn's (_lfw.py), the
# copy of pairs.txt in davidsandberg/facenet.
ARCHIVE = Source(
    "lfw.tgz",
    (
        "https://ndownloader.figshare.com/files/5976018",
        "https://vis-www.cs.umass.edu/lfw/lfw.tgz",
        "http://vis-www.cs.umass.edu/lfw/lfw.tgz",
    ),
    Checksum("md5", "a17d05bd522c52d84eca14327a23d494"),
)
PAIRS = Source(
    "pairs.txt",
    (
        "https://ndownloader.figshare.com/files/5976006",
        "https://raw.githubusercontent.com/davidsandberg/facenet/master/data/pairs.txt",
        "https://vis-www.cs.umass.edu/lfw/pairs.txt",
        "http://vis-www.cs.umass.edu/lfw/pairs.txt",
    ),
    Checksum("md5", "9f1ba174e4e1c508ff7cdf10ac338a7d"),
)


def download_lfw(
    raw: Path,
    mirror: str | None = None,
    *,
    archive: Source = ARCHIVE,
    pairs: Source = PAIRS,
    rounds: int = 5,
) -> tuple[Path, bool]:
    """LFW's folder below `raw`, and whether anything had to be downloaded for it.

    Args:
        raw: the folder of raw datasets.
        mirror: address of a folder with lfw.tgz and pairs.txt (or of lfw.tgz), asked alone for
            the archive and first for the pairs.
        archive: the photos.
        pairs: the verification pairs.
        rounds: how often all mirrors are asked in vain.

    Raises:
        PersonaError: it cannot be downloaded, or what is there is no LFW.
    """
    root = find_root(LFW, raw)
    if root is not None and any(root.iterdir()):
        return root, _complete(root, mirror, pairs, rounds)
    target = root or raw / LFW.folder
    work = raw / WORK
    with folder_lock(work, doing="downloading into"):
        if target.is_dir() and any(target.iterdir()):
            return target, False  # another process has just ended
        # What takes long first: pairs.txt is small.
        packed = _fetch(archive, _mirrors(archive, mirror, alone=True), work, target, rounds)
        _fetch(pairs, _mirrors(pairs, mirror), work, target, rounds)
        made = work / "unpacked"
        if made.exists():
            shutil.rmtree(made)  # half of it, from a run that was killed
        unpack_tar(packed, made, max_bytes=MAX_UNPACKED_BYTES, max_files=MAX_UNPACKED_FILES)
        shutil.copyfile(work / pairs.file, made / pairs.file)
        LFW(made).index()  # raises where there is no photo
        made.replace(target)
        shutil.rmtree(work)
    return target, True


def _complete(root: Path, mirror: str | None, pairs: Source, rounds: int) -> bool:
    """Checks an LFW that is there and gets its pairs.txt if that alone is missing."""
    dataset = LFW(root)
    dataset.index()
    if dataset.pairs_path(dataset.photo_root()) is not None:
        dataset.pairs()
        return False
    _fetch(pairs, _mirrors(pairs, mirror), root, root, rounds)
    return True


def _mirrors(source: Source, mirror: str | None, *, alone: bool = False) -> Sequence[str]:
    if mirror is None:
        return source.mirrors
    base = mirror.removesuffix(ARCHIVE.file).rstrip("/")
    return (f"{base}/{source.file}", *(() if alone else source.mirrors))


def _fetch(source: Source, mirrors: Sequence[str], work: Path, home: Path, rounds: int) -> Path:
    by_hand = (
        f"fetch {source.file} ({source.checksum.algorithm} {source.checksum.digits}) on another "
        f"machine and put it at {work / source.file}, then run this again; or name another place "
        f"with --mirror, or unpack LFW by hand to {home}"
    )
    return fetch(
        mirrors, work / source.file, checksum=source.checksum, by_hand=by_hand, rounds=rounds
    )


def refuse_download(name: str, raw: Path) -> PersonaError:
    """Why a dataset cannot be downloaded, who can be asked and what is expected where."""
    dataset_class = DATASETS.get(name.lower())
    if dataset_class is None:
        return unknown("download", name, ["lfw", "teacher"])
    return PersonaError(
        f"{dataset_class.name} cannot be downloaded: {dataset_class.obtain}. Expected at "
        f"{raw / dataset_class.folder}: {dataset_class.layout}"
    )

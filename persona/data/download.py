"""Downloads LFW from its mirrors.

Everything is made in `.lfw/` below the raw folder, which is renamed to `LFW` when it is complete. A
run that was killed continues with the archive, or the part of it, that lies there.
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
class MirroredFile:
    """A file, its mirrors and its checksum."""

    file: str
    mirrors: tuple[str, ...]
    checksum: Checksum


# Checksums: torchvision 0.26, datasets/lfw.py. Mirrors: LFW's site, scikit-learn's (_lfw.py), and
# the copy of pairs.txt in davidsandberg/facenet.
ARCHIVE = MirroredFile(
    "lfw.tgz",
    (
        "https://ndownloader.figshare.com/files/5976018",
        "https://vis-www.cs.umass.edu/lfw/lfw.tgz",
        "http://vis-www.cs.umass.edu/lfw/lfw.tgz",
    ),
    Checksum("md5", "a17d05bd522c52d84eca14327a23d494"),
)
PAIRS = MirroredFile(
    "pairs.txt",
    (
        "https://ndownloader.figshare.com/files/5976006",
        "https://raw.githubusercontent.com/davidsandberg/facenet/master/data/pairs.txt",
        "https://vis-www.cs.umass.edu/lfw/pairs.txt",
        "http://vis-www.cs.umass.edu/lfw/pairs.txt",
    ),
    Checksum("md5", "9f1ba174e4e1c508ff7cdf10ac338a7d"),
)


def download_lfw(raw: Path, mirror: str | None = None) -> tuple[Path, bool]:
    """Downloads LFW, unless it exists below `raw`.

    Args:
        raw: Folder of the raw datasets.
        mirror: URL of a folder with lfw.tgz and pairs.txt (or of lfw.tgz). It is the only source
            of the archive and the first source of the pairs.

    Returns:
        LFW's folder, and whether anything was downloaded.

    Raises:
        PersonaError: If it cannot be downloaded, or the files are not LFW.
    """
    root = find_root(LFW, raw)
    if root is not None and any(root.iterdir()):
        return root, _complete(root, mirror)
    target = root or raw / LFW.folder
    work = raw / WORK
    with folder_lock(work, doing="downloading into"):
        if target.is_dir() and any(target.iterdir()):
            return target, False  # another process has just finished
        # The archive comes first because it takes long: pairs.txt is small.
        packed = _fetch(ARCHIVE, _mirrors(ARCHIVE, mirror, alone=True), work, target)
        _fetch(PAIRS, _mirrors(PAIRS, mirror), work, target)
        made = work / "unpacked"
        if made.exists():
            shutil.rmtree(made)  # left incomplete by a run that was killed
        unpack_tar(packed, made, max_bytes=MAX_UNPACKED_BYTES, max_files=MAX_UNPACKED_FILES)
        shutil.copyfile(work / PAIRS.file, made / PAIRS.file)
        LFW(made).index()  # raises PersonaError if there is no photo
        made.replace(target)
        shutil.rmtree(work)
    return target, True


def _complete(root: Path, mirror: str | None) -> bool:
    """Checks an existing LFW and downloads pairs.txt if only that is missing."""
    dataset = LFW(root)
    dataset.index()
    if dataset.pairs_path(dataset.photo_root()) is not None:
        dataset.pairs()
        return False
    _fetch(PAIRS, _mirrors(PAIRS, mirror), root, root)
    return True


def _mirrors(source: MirroredFile, mirror: str | None, *, alone: bool = False) -> Sequence[str]:
    if mirror is None:
        return source.mirrors
    base = mirror.removesuffix(ARCHIVE.file).rstrip("/")
    return (f"{base}/{source.file}", *(() if alone else source.mirrors))


def _fetch(source: MirroredFile, mirrors: Sequence[str], work: Path, home: Path) -> Path:
    by_hand = (
        f"fetch {source.file} ({source.checksum.algorithm} {source.checksum.digits}) on another "
        f"machine and put it at {work / source.file}, then run this again; or name another place "
        f"with --mirror, or unpack LFW by hand to {home}"
    )
    return fetch(mirrors, work / source.file, checksum=source.checksum, by_hand=by_hand)


def refuse_download(name: str, raw: Path) -> PersonaError:
    """The error for a dataset that cannot be downloaded, with how to obtain it."""
    dataset_class = DATASETS.get(name.lower())
    if dataset_class is None:
        return unknown("download", name, ["lfw", "teacher"])
    return PersonaError(
        f"{dataset_class.name} cannot be downloaded: {dataset_class.obtain}. Expected at "
        f"{raw / dataset_class.folder}: {dataset_class.layout}"
    )

"""What a raw dataset is: a name, splits, and an iterator over its photos.

A new dataset is one subclass; defining it registers it:

    class Passports(RawDataset):
        name = "passports"
        folder = "Passports"

        def iter_photos(self):
            for path in self.root.glob("*/*.jpg"):
                yield Photo(identity=path.parent.name, source=self.relative(path))
"""

from __future__ import annotations

import errno
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from persona.errors import PersonaError, unknown

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp"})

_REGISTRY: dict[str, type[RawDataset]] = {}


@dataclass(frozen=True, slots=True, order=True)
class Photo:
    """One raw photo."""

    source: str
    """Path below the dataset's root, with forward slashes."""
    identity: str
    attributes: tuple[tuple[str, str | int], ...] = field(default=(), compare=False)
    """Annotations by name, such as `("age", 35)`: they go into the sample's json."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two photos and whether they show one person."""

    fold: int
    same: bool
    a: str
    b: str
    """`a` and `b` are `Photo.source`s."""


@dataclass(frozen=True)
class Index:
    """Every photo of a split in source order; a photo's key is its place in this order."""

    photos: tuple[Photo, ...]
    classes: tuple[str, ...]
    """All identities of the split, sorted; an identity's place is its class index."""
    missing: tuple[str, ...]
    """Sources that the dataset's list names but the disk does not have."""

    @property
    def identities(self) -> int:
        """How many identities have a photo here."""
        return len({photo.identity for photo in self.photos})


class RawDataset(ABC):
    """Photos as their dataset ships them, below `root`."""

    name: ClassVar[str]
    """What the command line calls it."""
    folder: ClassVar[str]
    """Its folder below `data/raw`, found in any letter case."""
    splits: ClassVar[tuple[str, ...]] = ("all",)
    """The first is the default."""
    layout: ClassVar[str] = "one folder of photos an identity"
    """What is expected where, for the error that says it is not there."""
    obtain: ClassVar[str] = "put your photos there"
    """Who can be asked for it."""

    def __init__(self, root: Path, split: str | None = None, *, scan_workers: int = 8) -> None:
        """`scan_workers` threads list folders at once: what network disks need."""
        self.root = root
        self.split = split or self.splits[0]
        self.scan_workers = scan_workers
        self.missing: list[str] = []
        if self.split not in self.splits:
            raise unknown("split", self.split, self.splits, where=f"dataset {self.name}")

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        # A class without a name of its own is a layout that several datasets share.
        if "name" in cls.__dict__:
            _REGISTRY[cls.name] = cls

    @abstractmethod
    def iter_photos(self) -> Iterator[Photo]:
        """Yields every photo that is on disk, in any order; may fill `self.missing`."""

    def class_list(self) -> list[str] | None:
        """The dataset's own full identity list; None: the identities found."""
        return None

    def pairs(self) -> list[Pair] | None:
        """The dataset's verification pairs, if it has any."""
        return None

    def boxes(self) -> dict[str, tuple[float, float, float, float]] | None:
        """The dataset's own face boxes, source to (x0, y0, x1, y1) px, if it has any."""
        return None

    def read(self, photo: Photo) -> bytes:
        """The photo's file as it is.

        Raises:
            OSError: it cannot be read, or is a pipe or a device, which may never end.
        """
        descriptor = os.open(self.root / photo.source, os.O_RDONLY | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OSError(errno.EINVAL, "no regular file")
            return file.read()

    @property
    def set_name(self) -> str:
        """What the packed set is called."""
        return self.name if len(self.splits) == 1 else f"{self.name}-{self.split}"

    def relative(self, path: Path) -> str:
        """`path` below the root, as a `Photo.source`."""
        return path.relative_to(self.root).as_posix()

    def index(self) -> Index:
        """Lists the split once.

        Raises:
            PersonaError: no photo, or an identity that the class list does not name.
        """
        self.missing.clear()
        photos = tuple(sorted(self.iter_photos()))
        if not photos:
            raise PersonaError(
                f"{self.name} ({self.split}) has no photo below {self.root}: "
                f"expected {self.layout}; {self.obtain}"
            )
        listed = self.class_list()
        found = {photo.identity for photo in photos}
        classes = tuple(sorted(found if listed is None else set(listed)))
        strangers = sorted(found.difference(classes))
        if strangers:
            raise PersonaError(
                f"{self.name} ({self.split}): {len(strangers)} identity folders are not in its "
                f"list, the first is {strangers[0]!r}: remove them or mend the list"
            )
        return Index(photos, classes, tuple(sorted(self.missing)))

    def complain(self, wanted: Path) -> PersonaError:
        """The error for a part that is not there."""
        return PersonaError(
            f"{self.name} ({self.split}) is not complete: {wanted} is missing; "
            f"expected {self.layout}; {self.obtain}"
        )


def datasets() -> dict[str, type[RawDataset]]:
    """Every registered dataset by name."""
    return dict(_REGISTRY)


def open_dataset(name: str, raw: Path, split: str | None = None, **options: int) -> RawDataset:
    """Opens dataset `name` below the folder `raw` (or at `raw`, if that is the dataset itself).

    Raises:
        PersonaError: the name or split is unknown, or the folder is not there.
    """
    dataset_class = _REGISTRY.get(name.lower())
    if dataset_class is None:
        raise unknown("dataset", name, _REGISTRY)
    root = find_root(dataset_class, raw)
    if root is None:
        raise PersonaError(
            f"{dataset_class.name} is not at {raw / dataset_class.folder}: "
            f"expected {dataset_class.layout}; {dataset_class.obtain}. "
            "--raw DIR names another place"
        )
    return dataset_class(root, split, **options)


def find_root(dataset_class: type[RawDataset], raw: Path) -> Path | None:
    """The dataset's folder below `raw`, in any letter case; `raw` itself if it has that name."""
    wanted = dataset_class.folder.lower()
    if raw.is_dir():
        for entry in sorted(raw.iterdir()):
            if entry.name.lower() == wanted and entry.is_dir():
                return entry
        if raw.resolve().name.lower() == wanted:
            return raw
    return None


def list_images(folder: Path) -> list[str]:
    """Names of the image files in a folder, sorted; an absent folder has none."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(
                entry.name
                for entry in entries
                if os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122
                and not entry.name.startswith(".")
            )
    except (FileNotFoundError, NotADirectoryError):
        return []
    _check_names(folder, names)
    return names


def _check_names(folder: Path, names: list[str]) -> None:
    """Raises PersonaError for a name that a manifest could not hold."""
    for name in names:
        if not name.isascii():
            try:
                name.encode()
            except UnicodeEncodeError:
                raise PersonaError(
                    f"{str(folder / name)!r} has a name that is not UTF-8: rename it"
                ) from None


def iter_lines(path: Path) -> Iterator[str]:
    """Lines of a list file; the mark that some editors put before UTF-8 is taken off.

    Raises:
        PersonaError: it is no text.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            yield from file
    except UnicodeDecodeError:
        raise PersonaError(f"{path} is not UTF-8 text: save it as UTF-8") from None


def list_image_folders(
    parent: Path, names: Iterable[str], workers: int
) -> Iterator[tuple[str, list[str]]]:
    """`(name, image files)` of each folder below `parent`, listed by several threads at once."""
    ordered = list(names)
    with ThreadPoolExecutor(max(1, workers)) as pool:
        yield from zip(
            ordered, pool.map(lambda name: list_images(parent / name), ordered), strict=True
        )


def list_folders(parent: Path) -> list[str]:
    """Names of the folders in `parent`, sorted; hidden ones are left out."""
    if not parent.is_dir():
        return []
    with os.scandir(parent) as entries:
        names = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    _check_names(parent, names)
    return names


class IdentityFolders(RawDataset):
    """The plain layout: one folder of photos an identity. LFW and CASIA-WebFace have it."""

    def photo_root(self) -> Path:
        """The folder that holds the identity folders, one level deeper where archives add one."""
        folders = list_folders(self.root)
        if len(folders) == 1:
            inner = self.root / folders[0]
            if not list_images(inner) and list_folders(inner):
                return inner
        return self.root

    def iter_photos(self) -> Iterator[Photo]:
        """Yields the photos of every identity folder."""
        root = self.photo_root()
        for identity, names in list_image_folders(root, list_folders(root), self.scan_workers):
            for name in names:
                yield Photo(identity=identity, source=self.relative(root / identity / name))

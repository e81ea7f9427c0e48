"""The base class of raw datasets: a name, splits, and an iterator over the photos.

A new dataset is one subclass. Defining the class registers it:

    class Passports(RawDataset):
        name = "passports"
        folder = "Passports"

        def iter_photos(self):
            for path in self.root.glob("*/*.jpg"):
                yield Photo(identity=path.parent.name, source=self.relative(path))

A dataset that the user gives as `KIND:PATH` has a `kind` in place of `name` and `folder`.
"""

from __future__ import annotations

import errno
import hashlib
import heapq
import logging
import operator
import os
import shlex
import stat
import tempfile
import weakref
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import ClassVar, NoReturn, overload

import orjson

from persona import registry
from persona.errors import PersonaError, SkipPhoto, unknown
from persona.files import bounded_lines, not_a_file, open_list, placed, whole_number
from persona.names import composed, hidden
from persona.pictures import IMAGE_SUFFIXES
from persona.registry import Registry
from persona.workspace import user_path

MAX_PHOTO_BYTES = 1 << 28
"""Largest size in bytes of a photo's file, and that a container may state for a photo."""
MAX_LABEL = 9_999_999
LABEL_DIGITS = 7
MAX_NAME = 255
"""Longest name of an identity, in characters."""
UNLABELLED = ""
"""Identity of every photo of an unlabelled set."""
NOBODY = "-1"
"""Label of a photo that shows none of the dataset's identities. Many datasets use it."""
LITTER = frozenset(
    {
        "__macosx",
        "@eadir",
        "@tmp",
        "@recycle",
        "@recently-snapshot",
        "@__thumb",
        "#recycle",
        "#snapshot",
        "$recycle.bin",
        "system volume information",
        "lost+found",
    }
)
"""Folders that systems create beside photos (thumbnails, recycle bins), in lower case."""
MAX_NESTED = 4
"""How many nested folders an archive may add around the folders of the dataset."""
SEEN = 4
"""How many file names an error gives."""
SORTED_AT_ONCE = 1 << 14
"""Photos that are held as objects while a split is listed."""
READ_AT_ONCE = 1 << 10
MERGED_AT_ONCE = 64
MOST_OPEN = 64
"""Most files that a `RandomReader` has open at once."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, order=True)
class Photo:
    """A raw photo of a dataset."""

    source: str
    """Path below the dataset's root, with forward slashes."""
    identity: str
    offset: int = field(default=0, compare=False)
    """Byte offset in the file that holds the photo, if one file holds many."""
    attributes: tuple[tuple[str, str | int], ...] = field(default=(), compare=False)
    """Annotations by name, such as `("age", 35)`. They are written to the sample's JSON."""


class PhotoList(Sequence[Photo]):
    """A list of photos in an unlinked temporary file, sorted by source.

    The file takes about 60 bytes per photo in the system's temporary folder (`TMPDIR`). 8 bytes per
    photo stay in memory.
    """

    def __init__(self) -> None:
        self._starts = array("q", [0])
        """Byte offset of each photo in the file, and the end of the last one."""
        self.twice: str | None = None
        """A source that more than one photo has, or None."""
        self._last = ""
        self._file, path = tempfile.mkstemp(prefix="persona-")
        os.unlink(path)  # noqa: PTH108 - the file then disappears with this process
        weakref.finalize(self, os.close, self._file)

    @classmethod
    def gather(cls, photos: Iterable[Photo]) -> PhotoList:
        """Sorts photos that come in any order. Among equal photos the first stays first."""
        lists: list[PhotoList] = []
        last = None
        left = iter(photos)
        while run := sorted(islice(left, SORTED_AT_ONCE)):
            if last is None or run[0] < last:  # most datasets come in order and need one list
                if len(lists) == MERGED_AT_ONCE:  # each list is an open file
                    lists = [cls._merged(lists)]
                lists.append(cls())
            lists[-1]._extend(run)
            last = run[-1]
        return lists[0] if len(lists) == 1 else cls._merged(lists)

    @classmethod
    def _merged(cls, lists: Sequence[PhotoList]) -> PhotoList:
        whole = cls()
        whole._extend(heapq.merge(*lists))
        return whole

    def _extend(self, photos: Iterable[Photo]) -> None:
        end = self._starts[-1]
        with (
            placed(Path(tempfile.gettempdir())),
            open(self._file, "ab", closefd=False) as file,
        ):
            for photo in photos:
                values = photo.source, photo.identity, photo.offset, photo.attributes
                end += file.write(orjson.dumps(values) + b",")
                self._starts.append(end)
                if photo.source == self._last:
                    self.twice = photo.source
                self._last = photo.source

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PhotoList) and (
            len(self) == len(other) and all(map(operator.eq, self, other))
        )

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> NoReturn:
        raise TypeError("a list of photos stays in its process: send the photos that are wanted")

    def __len__(self) -> int:
        return len(self._starts) - 1

    @overload
    def __getitem__(self, place: int) -> Photo: ...

    @overload
    def __getitem__(self, place: slice) -> list[Photo]: ...

    def __getitem__(self, place: int | slice) -> Photo | list[Photo]:
        places = range(len(self))[place]
        if isinstance(places, range):
            return [self[each] for each in places]
        return self._read(places, places + 1)[0]

    def __iter__(self) -> Iterator[Photo]:
        for start in range(0, len(self), READ_AT_ONCE):
            yield from self._read(start, min(start + READ_AT_ONCE, len(self)))

    def _read(self, start: int, stop: int) -> list[Photo]:
        first, end = self._starts[start], self._starts[stop]
        values = orjson.loads(b"[%s]" % os.pread(self._file, end - first - 1, first))
        return [
            Photo(source, identity, offset, tuple(map(tuple, attributes)) if attributes else ())
            for source, identity, offset, attributes in values
        ]


@dataclass(frozen=True, slots=True)
class Pair:
    """A verification pair: two photos, and whether they show the same person."""

    fold: int
    same: bool
    a: str
    b: str
    """`a` and `b` are values of `Photo.source`."""


@dataclass(frozen=True)
class Index:
    """All photos of a split, sorted by source. A photo's key is its place in this order."""

    photos: Sequence[Photo]
    classes: tuple[str, ...]
    """All identities of the split, sorted. The class index is the position in it. It is empty if
    the photos are unlabelled."""
    missing: tuple[str, ...]
    """Sources that the dataset's list names but that are not on disk."""
    nobody: tuple[str, ...] = ()
    """Sources of photos labelled `NOBODY`. They have no key."""

    @property
    def identities(self) -> int:
        """Number of identities that have a photo."""
        return len({photo.identity for photo in self.photos}) if self.classes else 0

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the sources, in order."""
        digest = hashlib.sha256()
        for photo in self.photos:
            digest.update(photo.source.encode() + b"\0")
        return digest.hexdigest()

    @cached_property
    def labels_digest(self) -> str:
        """SHA-256 over the classes and the identity of each photo, in order."""
        digest = hashlib.sha256()
        for name in (*self.classes, ""):
            digest.update(name.encode() + b"\0")
        for photo in self.photos:
            digest.update(photo.identity.encode() + b"\0")
        return digest.hexdigest()


class RawDataset(ABC):
    """A dataset's original photos, below the folder `root`."""

    name: str
    """Name on the command line. A dataset with a `kind` is named after its file or folder."""
    kind: ClassVar[str] = ""
    """The part before the colon in `KIND:PATH`, for datasets that the user gives by path."""
    folder: ClassVar[str]
    """Name of the folder below `data/raw`. Letter case and punctuation do not matter."""
    aliases: ClassVar[frozenset[str]] = frozenset()
    """Other names of that folder, as in archives: lower-case letters and digits alone."""
    splits: ClassVar[tuple[str, ...]] = ("all",)
    """Names of the splits. The first is the default."""
    layout: ClassVar[str] = "one folder of photos an identity"
    """The expected files, for the error that they are missing."""
    obtain: ClassVar[str] = "put your photos there"
    """How to obtain the dataset, for the same error."""
    unlabelled: bool = False
    """Ignore identities, whether or not the dataset has them."""
    blocks_at_once: int = 1
    """Number of blocks that a worker may hold in memory, if the photos lie in blocks."""

    def __init__(self, root: Path, split: str | None = None, *, scan_workers: int = 8) -> None:
        """`scan_workers` is the number of threads that list folders, for slow network disks."""
        self.root = root
        if self.kind:
            self.name = self.path_name()
        self.split = split or self.splits[0]
        self.scan_workers = scan_workers
        self.missing: list[str] = []
        if self.split not in self.splits:
            raise unknown("split", self.split, self.splits, where=f"dataset {self.name}")

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        # A class without a name of its own is a layout that several datasets share.
        if "kind" in cls.__dict__:
            DATASET_KINDS.add(cls.kind, cls)
        elif "name" in cls.__dict__:
            DATASETS.add(cls.name, cls)

    @abstractmethod
    def iter_photos(self) -> Iterator[Photo]:
        """Yields every photo on disk, in any order. It may append to `self.missing`.

        With `self.unlabelled` the identities of the photos are ignored.
        """

    def class_list(self) -> list[str] | None:
        """The dataset's own full identity list. None means the identities that are found."""
        return None

    def pairs(self) -> list[Pair] | None:
        """The dataset's verification pairs, or None if it has none."""
        return None

    def boxes(self) -> dict[str, tuple[float, float, float, float]] | None:
        """The dataset's own face boxes, source to (x0, y0, x1, y1) px, or None if it has none."""
        return None

    def read(self, photo: Photo) -> bytes:
        """Reads the bytes of the photo's file.

        Raises:
            OSError: If it cannot be read, or is a pipe or a device, which may never end.
            SkipPhoto: If it is too large, or the file that holds the photo does not yield it.
        """
        return read_plain(f"{self.root}/{photo.source}")

    def block(self, photo: Photo) -> str | None:
        """Name of the block that must be read to read this photo. None: it is read by itself."""
        return None

    def why_missing(self, source: str) -> str:
        """Why a photo of the dataset's list is not packed: nothing is there, or no file."""
        kind = not_a_file(Path(self.root, source))
        return "listed, not on disk" if kind is None else f"listed, but {kind}"

    def path_name(self) -> str:
        """Name of a dataset given by path: the folder's name or the file's stem."""
        place = self.root.resolve()
        return (place.name if place.is_dir() else place.stem) or "root"

    @property
    def spec(self) -> str:
        """The name with which `open_dataset` opens this dataset again."""
        return f"{self.kind}:{self.root.resolve()}" if self.kind else self.name

    @property
    def set_name(self) -> str:
        """Name of the packed set."""
        return self.name if len(self.splits) == 1 else f"{self.name}-{self.split}"

    def relative(self, path: Path) -> str:
        """`path` relative to the root, as a `Photo.source`."""
        return path.relative_to(self.root).as_posix()

    def index(self) -> Index:
        """Lists the split once.

        Identities are in Unicode's composed form (NFC), whatever the disk has. Sources are not.

        Raises:
            PersonaError: If there is no photo, a photo occurs twice, or an identity is not in the
                class list.
        """
        self.missing.clear()
        found: set[str] = set()
        nobody: list[str] = []

        def listed_photos() -> Iterator[Photo]:
            for photo in self.iter_photos():
                if self.unlabelled:
                    yield replace(photo, identity=UNLABELLED)
                    continue
                if photo.identity == NOBODY:
                    nobody.append(photo.source)
                    continue
                identity = composed(photo.identity)
                found.add(identity)
                yield photo if identity == photo.identity else replace(photo, identity=identity)

        photos = PhotoList.gather(listed_photos())
        if not photos and nobody:
            raise PersonaError(
                f"{self.name} ({self.split}): all {len(nobody)} photos are labelled {NOBODY}, "
                "which is nobody: choose the split that has labels"
            )
        if not photos:
            raise self.nothing_found()
        if photos.twice is not None:
            raise PersonaError(
                f"{self.name} ({self.split}): {photos.twice} is in it twice: take one of them out"
            )
        if self.unlabelled:
            return Index(photos, (), tuple(sorted(self.missing)))
        listed = self.class_list()
        classes = tuple(sorted(found if listed is None else set(map(composed, listed))))
        strangers = sorted(found.difference(classes))
        if strangers:
            raise PersonaError(
                f"{self.name} ({self.split}): {len(strangers)} identities are not in its "
                f"list, the first is {strangers[0]!r}: remove them or mend the list"
            )
        return Index(photos, classes, tuple(sorted(self.missing)), tuple(sorted(nobody)))

    def nothing_found(self) -> PersonaError:
        """The error for a split without photos."""
        return PersonaError(
            f"{self.name} ({self.split}) has no photo below {self.root}, which "
            f"{seen(self.root)}: expected {self.layout}; {self.obtain}"
        )

    def complain(self, wanted: Path) -> PersonaError:
        """The error for a missing part of the dataset."""
        return PersonaError(
            f"{self.name} ({self.split}) is not complete: {wanted} is missing, {self.root} "
            f"{seen(self.root)}; expected {self.layout}; {self.obtain}"
        )


def read_plain(path: str) -> bytes:
    """Reads a photo's file.

    Raises:
        OSError: If it cannot be read, or is a pipe or a device, which may never end.
        SkipPhoto: If it is larger than MAX_PHOTO_BYTES.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "no regular file")
        if found.st_size > MAX_PHOTO_BYTES:
            raise SkipPhoto(f"unreadable: {found.st_size:,} bytes are over the limit")
        # Some file systems state no size. `read` reserves what it is told to read.
        return file.read(found.st_size or MAX_PHOTO_BYTES)


DATASETS: Registry[type[RawDataset]] = registry.DATASETS
DATASET_KINDS: Registry[type[RawDataset]] = registry.DATASET_KINDS
"""Datasets that the user gives by path, `KIND:PATH`."""


def open_dataset(
    name: str, raw: Path, split: str | None = None, *, unlabelled: bool = False, **options: int
) -> RawDataset:
    """Opens dataset `name` below the folder `raw` (or at `raw`, if that is the dataset itself).

    A name `KIND:PATH` opens the file or folder PATH. With `unlabelled` the identities of the photos
    are ignored.

    Raises:
        PersonaError: If the name, kind or split is unknown, or the folder does not exist.
    """
    dataset = _open(name, raw, split, options)
    dataset.unlabelled |= unlabelled
    return dataset


def _open(name: str, raw: Path, split: str | None, options: dict[str, int]) -> RawDataset:
    kind, colon, path = name.partition(":")
    if colon:
        return _open_path(kind.lower(), path, split, options)
    if name.lower() not in DATASETS and user_path(name).is_dir():
        raise _named_as_folder(name)
    dataset_class = DATASETS.find(name.lower())
    root = find_root(dataset_class, raw)
    if root is None:
        raise PersonaError(
            f"{dataset_class.name} is not at {raw / dataset_class.folder}: {raw} {seen(raw)}; "
            f"expected {dataset_class.layout}; {dataset_class.obtain}. --raw DIR names another "
            "folder of raw datasets"
        )
    return dataset_class(root, split, **options)


def _open_path(kind: str, path: str, split: str | None, options: dict[str, int]) -> RawDataset:
    dataset_class = DATASET_KINDS.find(kind)
    root = user_path(path)
    if not path or not root.exists():
        raise PersonaError(
            f"{kind}:{path}: there is no such file or folder; expected {dataset_class.layout}"
        )
    return dataset_class(root, split, **options)


def _named_as_folder(name: str) -> PersonaError:
    """The error for a folder where the name of a dataset is wanted."""
    hint = f"{name} is a folder: `persona shard folders:{shlex.quote(name)}` packs its photos"
    for known in DATASETS:
        dataset_class = DATASETS.find(known)
        if find_root(dataset_class, user_path(name)) is not None:
            hint += f"; `persona shard {known} --raw {shlex.quote(name)}` packs it as {known}"
    return PersonaError(hint)


def find_root(dataset_class: type[RawDataset], raw: Path) -> Path | None:
    """The dataset's folder below `raw`, in any spelling. `raw` itself if it has that name."""
    if not raw.is_dir():
        return None
    folder = dataset_class.folder.lower()
    spellings: tuple[Callable[[str], bool], ...] = (
        lambda name: name.lower() == folder,
        lambda name: _plain_name(name) == _plain_name(folder),
        lambda name: _plain_name(name) in dataset_class.aliases,
    )
    for is_it in spellings:
        for entry in sorted(raw.iterdir()):
            if is_it(entry.name) and not is_litter(entry.name) and entry.is_dir():
                return entry
        if is_it(raw.resolve().name):
            return raw
    return None


def _plain_name(name: str) -> str:
    """A folder's name in lower-case letters and digits alone: `VGG-Face2` is `vggface2`."""
    return "".join(character for character in name.lower() if character.isalnum())


def seen(folder: Path) -> str:
    """What is at a folder's path, for the error that something else was expected there."""
    if not folder.exists():
        return "does not exist"
    if not folder.is_dir():
        return "is a file and no folder"
    with os.scandir(folder) as entries:
        names = sorted(
            f"{entry.name}/" if entry.is_dir() else entry.name
            for entry in entries
            if not is_litter(entry.name)
        )
    if not names:
        return "is empty"
    more = f" and {len(names) - SEEN:,} more" if len(names) > SEEN else ""
    return f"holds {', '.join(name[:60] for name in names[:SEEN])}{more}"


def list_images(folder: Path) -> list[str]:
    """Sorted names of the image files in a folder. A folder that does not exist has none.

    Files of kinds that cannot be decoded are included. Packing counts them as skipped.
    """
    return _listed(folder)[0]


def _listed(folder: Path) -> tuple[list[str], list[str]]:
    """Sorted names of the image files in a folder, and of its folders, without litter."""
    images, folders = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES:  # noqa: PTH122
                    images.append(entry.name)
                elif entry.is_dir() and not is_litter(entry.name):
                    folders.append(entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return [], []
    images.sort()
    folders.sort()
    _check_names(folder, images)
    return images, folders


def _check_names(folder: Path, names: list[str]) -> None:
    """Raises PersonaError if a name is not UTF-8, because a manifest could not hold it."""
    for name in names:
        if not name.isascii():
            try:
                name.encode()
            except UnicodeEncodeError:
                raise PersonaError(
                    f"{str(folder / name)!r} has a name that is not UTF-8: rename it"
                ) from None


def iter_lines(path: Path) -> Iterator[str]:
    """Yields the lines of a list file. A byte order mark before UTF-8 is removed.

    Raises:
        PersonaError: If the file is not UTF-8 text.
    """
    with open_list(path, "a list") as file:
        yield from bounded_lines(file, path)


def list_image_folders(
    parent: Path, names: Iterable[str], workers: int
) -> Iterator[tuple[str, list[str]]]:
    """Yields `(name, image files)` of each folder below `parent`. Several threads list them.

    Folders in them that hold photos cause a warning at the end.
    """
    ordered = list(names)
    deeper: list[str] = []
    with ThreadPoolExecutor(max(1, workers)) as pool:
        listed = pool.map(lambda name: _listed(parent / name), ordered)
        for name, (images, folders) in zip(ordered, listed, strict=True):
            yield name, images
            deeper += [f"{name}/{folder}" for folder in folders]
    _warn_of_deeper(parent, deeper)


def _warn_of_deeper(parent: Path, folders: Iterable[str]) -> None:
    """Warns of those of the folders that hold photos, at any depth."""
    deep = [name for name in folders if _first_with_images(parent / name) is not None]
    if deep:
        more = f" and {len(deep) - SEEN:,} more" if len(deep) > SEEN else ""
        log.warning(
            "%d folders below %s are in a person's folder, and their photos left out: %s%s; move "
            "these photos up into the person's folder",
            *(len(deep), parent, ", ".join(deep[:SEEN]), more),
        )


def _first_with_images(root: Path) -> Path | None:
    """The first folder that holds image files: `root` or one below it."""
    return next((folder for folder in walk_folders(root) if list_images(folder)), None)


def is_litter(name: str) -> bool:
    """Whether a file or folder is hidden, or one that systems create beside photos."""
    return name.startswith(".") or name.lower() in LITTER


def list_folders(parent: Path) -> list[str]:
    """Sorted names of the folders in `parent`, without hidden ones and litter."""
    if not parent.is_dir():
        return []
    with os.scandir(parent) as entries:
        names = sorted(e.name for e in entries if e.is_dir() and not is_litter(e.name))
    _check_names(parent, names)
    return names


def walk_folders(root: Path) -> Iterator[Path]:
    """Yields a folder and all below it, sorted by path, without litter and links."""
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        yield folder
        below = (folder / name for name in reversed(list_folders(folder)))
        waiting += [path for path in below if not path.is_symlink()]


class IdentityFolders(RawDataset):
    """The plain layout of one folder of photos per identity, as in LFW and CASIA-WebFace."""

    def photo_root(self) -> Path:
        """The folder that holds the identity folders. Archives may nest it some levels deeper.

        The search goes into a folder if no folder beside it holds photos, and it alone holds
        folders.
        """
        root = self.root
        for _ in range(MAX_NESTED):
            folders = list_folders(root)
            if any(list_images(root / name) for name in folders):
                return root
            deeper = [name for name in folders if list_folders(root / name)]
            if len(deeper) != 1:
                break
            root /= deeper[0]
        return self.root

    def iter_photos(self) -> Iterator[Photo]:
        """Yields the photos of every identity folder. Photos outside and deeper cause a warning."""
        if self.unlabelled:
            for folder in walk_folders(self.root):
                yield from (Photo(self.relative(folder / name), "") for name in list_images(folder))
            return
        root = self.photo_root()
        if self.kind and root != self.root:  # of a known dataset it is known what people are
            log.warning(
                "%s has its photos deeper: each folder in %s is taken for a person",
                *(self.root, root),
            )
        loose = len(list_images(root))
        if loose and list_folders(root):
            log.warning(
                "%d photos directly in %s are in no identity's folder: left out", loose, root
            )
        below = "" if root == self.root else f"{self.relative(root)}/"
        for identity, names in list_image_folders(root, list_folders(root), self.scan_workers):
            for name in names:  # a Path per photo would double the time
                yield Photo(identity=identity, source=f"{below}{identity}/{name}")

    def nothing_found(self) -> PersonaError:
        """The error for a split without photos. It tells of photos outside identity folders."""
        loose = len(list_images(self.root))
        # A known dataset that is unpacked in another layout is named by what its folder holds.
        deep = _first_with_images(self.root) if self.kind and not loose else None
        if not loose and deep is None:
            return super().nothing_found()
        held = f"{loose:,} photos" if deep is None else f"photos, as in {self.relative(deep)}"
        return PersonaError(
            f"{self.root} holds {held}, but none in a folder of its person: expected "
            f"{self.layout}. Move each person's photos into a folder that has their name; photos "
            "of nobody in particular go into a folder each, or --unlabelled packs all of them "
            "without identities"
        )


class Folders(IdentityFolders):
    """`folders:DIR`: a folder of the user's own, in the plain layout."""

    kind = "folders"
    layout = "a folder with <identity>/<photo>.jpg"


def label_name(label: int) -> str:
    """Name of a numbered identity. The names sort like the numbers."""
    return f"{label:0{LABEL_DIGITS}d}"


def identity_name(value: object, where: str) -> str:
    """The identity of a label: text as it is, a whole number in the form of `label_name`.

    The label -1, as a number or as text, gives `NOBODY`. Digits as text are a number up to
    MAX_LABEL and a name beyond it.

    Raises:
        PersonaError: If the label is neither.
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, str):
        number = whole_number(value.removeprefix("-"), LABEL_DIGITS + 1)
        if number is not None and number <= MAX_LABEL:
            value = -number if value.startswith("-") else number
    if isinstance(value, int) and not isinstance(value, bool):
        if value == int(NOBODY):
            return NOBODY
        if 0 <= value <= MAX_LABEL:
            return label_name(value)
    if isinstance(value, str) and value and len(value) <= MAX_NAME and hidden(value) is None:
        return value
    raise PersonaError(
        f"{where} has the label {str(value)[:40]!r}: expected a name, a whole number from 0 to "
        f"{MAX_LABEL:,}, or {NOBODY} for nobody"
    )


class RandomReader:
    """Reads parts of files and keeps the files open. A copy in another process opens its own."""

    def __init__(self) -> None:
        self._open: dict[Path, int] = {}

    def __reduce__(self) -> tuple[type[RandomReader], tuple[()]]:
        return RandomReader, ()

    def __del__(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1])

    def __call__(self, path: Path, offset: int, size: int) -> bytes:
        """At most `size` bytes from `offset`. It returns fewer bytes at the end of the file."""
        descriptor = self._open.get(path)
        if descriptor is None:
            if len(self._open) == MOST_OPEN:
                os.close(self._open.pop(next(iter(self._open))))
            descriptor = self._open[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        return os.pread(descriptor, size, offset)

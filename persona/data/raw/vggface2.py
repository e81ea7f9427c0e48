"""VGGFace2 (Cao et al. 2018): 8,631 train and 500 test identities, 3.3 million photos."""

from __future__ import annotations

import csv
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

from persona.data.raw.base import (
    MAX_NESTED,
    Photo,
    RawDataset,
    iter_lines,
    list_folders,
    list_image_folders,
)
from persona.errors import PersonaError

log = logging.getLogger(__name__)


class VGGFace2Layout(RawDataset):
    """`train/`, `test/` and their list files: the layout that VGGFace2 is distributed in."""

    splits = ("train", "test")
    layout = (
        "train/<identity>/<photo>.jpg, test/<identity>/<photo>.jpg, "
        "train_list.txt and test_list.txt (one <identity>/<photo>.jpg a line)"
    )

    @property
    def list_path(self) -> Path:
        """The split's list: every identity and photo, whether on disk or not."""
        return self._find(f"{self.split}_list.txt")

    def _find(self, name: str) -> Path:
        """A part of the dataset: in its folder, in `data` or `meta`, or where archives nest it."""
        root = self.root
        for _ in range(MAX_NESTED):
            for folder in (root, root / "data", root / "meta"):
                if (folder / name).exists():
                    return folder / name
            inner = list_folders(root)
            if len(inner) != 1:
                break
            root /= inner[0]
        return self.root / name

    def _listed(self) -> dict[str, list[str]]:
        """Identity to photo names, as the list file has them."""
        if not self.list_path.is_file():
            raise self.complain(self.list_path)
        # As keys: a line that comes twice is one photo.
        listed: dict[str, dict[str, None]] = {}
        for number, line in enumerate(iter_lines(self.list_path), start=1):
            entry = line.strip()
            if not entry:
                continue
            identity, slash, name = entry.partition("/")
            # A name with further slashes or dots could point outside the dataset.
            if not slash or not name or "/" in name or ".." in (identity, name):
                raise PersonaError(
                    f"{self.list_path} line {number}: expected <identity>/<photo>.jpg, "
                    f"found {entry[:80]!r}"
                )
            listed.setdefault(identity, {})[sys.intern(name)] = None  # many identities share it
        if not listed:
            raise PersonaError(f"{self.list_path} is empty: expected <identity>/<photo>.jpg lines")
        return {identity: list(names) for identity, names in listed.items()}

    def class_list(self) -> list[str]:
        """All identities of the list file, so that a part of the set keeps its class indices."""
        return sorted(self._listed())

    def iter_photos(self) -> Iterator[Photo]:
        """Yields listed photos on disk; those of a present identity that are not are `missing`.

        Raises:
            PersonaError: no list, no folder, or an identity folder that the list does not name.
        """
        listed = self._listed()
        split_root = self._find(self.split)
        if not split_root.is_dir():
            raise self.complain(split_root)
        strangers = [name for name in list_folders(split_root) if name not in listed]
        if strangers:
            raise PersonaError(
                f"{self.name} ({self.split}): {len(strangers)} identity folders are not in "
                f"{self.list_path.name}, the first is {strangers[0]!r}: remove them or mend the "
                "list"
            )
        unlisted = 0
        below = self.relative(split_root)
        for identity, found in list_image_folders(split_root, listed, self.scan_workers):
            if not found:
                continue  # an identity that is absent as a whole: a part of the set, not a fault
            on_disk = set(found)
            unlisted += len(on_disk.difference(listed[identity]))
            for name in listed[identity]:
                source = f"{below}/{identity}/{name}"
                if name in on_disk:
                    yield Photo(identity=identity, source=source)
                else:
                    self.missing.append(source)
        if unlisted:
            log.warning(
                "%d photos below %s are not in %s: left out",
                *(unlisted, split_root, self.list_path.name),
            )


class VGGFace2(VGGFace2Layout):
    """The dataset that FaceNet was trained on."""

    name = "vggface2"
    folder = "VGGFace2"
    obtain = (
        "its first home is gone, so ask your institution for a copy, "
        "or use a dataset of your own in this layout"
    )

    def boxes(self) -> dict[str, tuple[float, float, float, float]] | None:
        """`bb_landmark/loose_bb_<split>.csv`: NAME_ID,X,Y,W,H with NAME_ID without `.jpg`."""
        path = self._find(f"bb_landmark/loose_bb_{self.split}.csv")
        below = self.relative(self._find(self.split))
        if not path.is_file():
            raise PersonaError(
                f"no face boxes at {path}: it comes with VGGFace2; without it choose --align mtcnn"
            )
        boxes: dict[str, tuple[float, float, float, float]] = {}
        for number, row in enumerate(_rows(path), start=1):
            if number == 1 and row[:1] == ["NAME_ID"]:
                continue
            try:
                name, x, y, width, height = row[0], *map(float, row[1:5])
                # What is not finite, or far beyond any photo, is no place.
                if not all(abs(edge) < 1e6 for edge in (x, y, width, height)):
                    raise ValueError
            except (IndexError, ValueError):
                raise PersonaError(f"{path} line {number}: expected NAME_ID,X,Y,W,H") from None
            source = f"{below}/{name}.jpg"
            if source in boxes:
                raise PersonaError(f"{path} line {number}: {name} has a box already: restore it")
            boxes[source] = (x, y, x + width, y + height)
        if not boxes:
            raise PersonaError(f"{path} has no box: restore it, or choose --align mtcnn")
        return boxes


def _rows(path: Path) -> Iterator[list[str]]:
    try:
        yield from csv.reader(iter_lines(path))
    except csv.Error as error:
        raise PersonaError(f"{path} does not read as CSV ({error}): restore it") from None

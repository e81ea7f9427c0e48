"""VGGFace2 (Cao et al. 2018): 8,631 train and 500 test identities, 3.3 million photos."""

from __future__ import annotations

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
from persona.files import iter_csv

log = logging.getLogger(__name__)


class VGGFace2Layout(RawDataset):
    """The layout in which VGGFace2 is distributed: `train/`, `test/` and their list files."""

    splits = ("train", "test")
    layout = (
        "train/<identity>/<photo>.jpg, test/<identity>/<photo>.jpg, "
        "train_list.txt and test_list.txt (one <identity>/<photo>.jpg a line)"
    )

    @property
    def list_path(self) -> Path:
        """Path of the split's list of all identities and photos, whether on disk or not."""
        return self._find(f"{self.split}_list.txt")

    def _find(self, name: str) -> Path:
        """Path of a part: in the dataset's folder, in `data` or `meta`, or in a nested folder."""
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
        """The photo names of each identity, in the order of the list file."""
        if not self.list_path.is_file():
            raise self.complain(self.list_path)
        # A dictionary, so that a line that occurs twice counts once.
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
            listed.setdefault(identity, {})[sys.intern(name)] = None  # identities share many names
        if not listed:
            raise PersonaError(f"{self.list_path} is empty: expected <identity>/<photo>.jpg lines")
        return {identity: list(names) for identity, names in listed.items()}

    def class_list(self) -> list[str]:
        """All identities of the list file. A part of the set then keeps the class indices."""
        return sorted(self._listed())

    def iter_photos(self) -> Iterator[Photo]:
        """Yields the listed photos that are on disk.

        Photos of an identity that is on disk are `missing` if they are not.

        Raises:
            PersonaError: If there is no list or no folder, or the list lacks an identity folder.
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
                continue  # a whole identity may be absent: this is a part of the set, not a fault
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
    """VGGFace2, the dataset that FaceNet was trained on."""

    name = "vggface2"
    folder = "VGGFace2"
    obtain = (
        "its first home is gone, so ask your institution for a copy, "
        "or use a dataset of your own in this layout"
    )

    def boxes(self) -> dict[str, tuple[float, float, float, float]] | None:
        """Reads the face boxes in `bb_landmark/loose_bb_<split>.csv`.

        Its columns are NAME_ID, X, Y, W, H in px. NAME_ID is a photo's name without `.jpg`.
        """
        path = self._find(f"bb_landmark/loose_bb_{self.split}.csv")
        below = self.relative(self._find(self.split))
        if not path.is_file():
            raise PersonaError(
                f"no face boxes at {path}: it comes with VGGFace2; without it choose --align mtcnn"
            )
        boxes: dict[str, tuple[float, float, float, float]] = {}
        for number, row in iter_csv(path, "VGGFace2's boxes"):
            if number == 1 and row[:1] == ["NAME_ID"]:
                continue
            try:
                name, x, y, width, height = row[0], *map(float, row[1:5])
                # NaN, infinity and values far beyond any photo are no coordinates.
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

"""The faces of many photos as one table of embeddings: `persona embed`.

1. every face of every photo is detected
2. faces are embedded in batches; those too poor to be recognised are left out with a reason
3. the table is written as one file, for the user's own programs

Shapes: N faces, E embedding.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from persona.api.model import Face, Model
from persona.data.raw.base import is_litter
from persona.errors import PersonaError
from persona.extras import missing
from persona.files import PRIVATE, check_writable, write_atomically
from persona.pictures import IMAGE_SUFFIXES
from persona.workers import in_threads

BATCH = 64
NO_FACE = "no face"
"""Why a photo is left out that can be read."""
FORMATS = (".npz", ".parquet")


@dataclass(frozen=True)
class EmbeddedFaces:
    """The faces that have an embedding, in the order of the photos and, in each, from the left."""

    photos: list[str]
    """Paths, as they were given, of the photo that each of the N faces is in."""
    boxes: npt.NDArray[np.float32]
    """(N, 4) float32 boxes: x0, y0, x1, y1 in px of the upright photo."""
    probabilities: npt.NDArray[np.float32]
    """(N,) float32 probabilities from the detector, in [0, 1]; NaN where it gave none."""
    embeddings: npt.NDArray[np.float32]
    """(N, E) float32 embeddings of unit length."""
    left_out: dict[str, str]
    """Reasons by photo or face, for those without an embedding."""

    def __len__(self) -> int:
        return len(self.photos)


def find_photos(place: Path) -> list[Path]:
    """Returns the photo itself, or all pictures in a folder and its subfolders, sorted by name.

    Raises:
        PersonaError: there is no such file or folder, or the folder holds no picture.
    """
    if not place.is_dir():
        if not place.exists():
            raise PersonaError(f"no photo or folder at {place}")
        return [place]
    found = []
    for folder, below, names in os.walk(place):
        below[:] = sorted(name for name in below if not is_litter(name))
        paths = (Path(folder) / name for name in sorted(names) if not is_litter(name))
        found += [path for path in paths if path.suffix.lower() in IMAGE_SUFFIXES]
    if not found:
        raise PersonaError(f"{place} holds no photos: name another folder")
    return found


def embed_photos(
    model: Model, photos: Iterable[Path], advance: Callable[[int], None] = lambda _: None
) -> EmbeddedFaces:
    """Embeds every face of every photo.

    Args:
        model: the network that detects and embeds the faces.
        photos: paths of the photos. A photo that cannot be read is left out.
        advance: called with 1 after each photo.
    """
    owners: list[str] = []
    faces: list[Face] = []
    left_out: dict[str, str] = {}
    parts: list[npt.NDArray[np.float32]] = []
    found_boxes: list[tuple[float, float, float, float]] = []
    found_probabilities: list[float] = []

    def flush() -> None:
        parts.append(model.embed(faces))
        faces.clear()

    _ = model.sight  # built once, before the threads ask for it

    def look(path: Path) -> tuple[Path, list[Face] | str]:
        return path, find_faces(model, path)

    for path, found in in_threads(look, photos):
        advance(1)
        if isinstance(found, str) or not found:
            left_out[str(path)] = found if isinstance(found, str) else NO_FACE
            continue
        for place, face in enumerate(found, start=1):
            if face.flaw is not None:
                left_out[f"{path}, face {place} from the left"] = face.flaw
                continue
            owners.append(str(path))
            found_boxes.append(face.box)
            found_probabilities.append(np.nan if face.probability is None else face.probability)
            faces.append(face)
        if len(faces) >= BATCH:
            flush()
    flush()
    return EmbeddedFaces(
        owners,
        np.array(found_boxes, np.float32).reshape(-1, 4),
        np.array(found_probabilities, np.float32),
        np.concatenate(parts),
        left_out,
    )


def find_faces(model: Model, path: Path) -> list[Face] | str:
    """The faces of a photo, or the reason why it cannot be read."""
    try:
        return model.find(path)
    except PersonaError as reason:
        return str(reason).removeprefix(f"photo {path}: ")


def check_format(path: Path) -> None:
    """Raises PersonaError unless the file can be written and its suffix names a known format."""
    if path.suffix.lower() not in FORMATS:
        raise PersonaError(f"--out {path}: name it something{' or something'.join(FORMATS)}")
    if path.suffix.lower() == ".parquet":
        _pyarrow()
    check_writable(path)


def write_embeddings(path: Path, found: EmbeddedFaces) -> None:
    """Writes the table as a file that only its owner may read: embeddings are biometric data.

    An npz file holds the arrays `photo`, `box`, `probability` and `embedding`. A Parquet file
    holds one row per face with the same columns; box and embedding are lists. Bytes of a path that
    are not UTF-8 are written as `\\udcXX`.

    Raises:
        PersonaError: the suffix is another one, or pyarrow is not installed.
    """
    check_format(path)
    photos = [photo.encode("utf-8", "backslashreplace").decode() for photo in found.photos]
    file = io.BytesIO()
    if path.suffix.lower() == ".npz":
        np.savez(
            file,
            photo=np.array(photos, dtype=np.str_),
            box=found.boxes,
            probability=found.probabilities,
            embedding=found.embeddings,
        )
    else:
        arrow, parquet = _pyarrow()
        columns = {
            "photo": arrow.array(photos, arrow.string()),
            "box": arrow.FixedSizeListArray.from_arrays(found.boxes.ravel(), 4),
            "probability": found.probabilities,
            "embedding": arrow.FixedSizeListArray.from_arrays(
                found.embeddings.ravel(), found.embeddings.shape[1]
            ),
        }
        parquet.write_table(arrow.table(columns), file)
    write_atomically(path, file.getvalue(), PRIVATE)


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise missing("parquet files need pyarrow", "parquet") from None
    return pyarrow, pyarrow.parquet

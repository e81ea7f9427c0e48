"""The faces of many photos as one table of embeddings: `persona embed`.

1. every photo is looked at, and every face in it found
2. faces are embedded in batches; those too poor to be recognised are left out, with the reason
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
from persona.files import PRIVATE, write_atomically
from persona.pictures import IMAGE_SUFFIXES

BATCH = 64
FORMATS = (".npz", ".parquet")


@dataclass(frozen=True)
class EmbeddedFaces:
    """The faces that have an embedding, in the order of photos and from the left."""

    photos: list[str]
    """N: which photo each face is of, as it was given."""
    boxes: npt.NDArray[np.float32]
    """(N, 4) x0, y0, x1, y1 in px of the upright photo."""
    probabilities: npt.NDArray[np.float32]
    """(N,) the detector's, in [0, 1]."""
    embeddings: npt.NDArray[np.float32]
    """(N, E) of unit length."""
    left_out: dict[str, str]
    """Photos and faces without an embedding, each with the reason."""

    def __len__(self) -> int:
        return len(self.photos)


def find_photos(place: Path) -> list[Path]:
    """A photo, or all pictures in a folder and the folders below it, by name.

    Raises:
        PersonaError: there is nothing, or no picture.
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
        model: what finds and embeds them.
        photos: their files; one that cannot be read is left out.
        advance: told of each photo.
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

    for path in photos:
        try:
            found = model.find(path)
            if not found:
                left_out[str(path)] = "no face"
        except PersonaError as reason:
            found = []
            left_out[str(path)] = str(reason).removeprefix(f"photo {path}: ")
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
        advance(1)
    flush()
    return EmbeddedFaces(
        owners,
        np.array(found_boxes, np.float32).reshape(-1, 4),
        np.array(found_probabilities, np.float32),
        np.concatenate(parts),
        left_out,
    )


def check_format(path: Path) -> None:
    """Raises PersonaError unless the name asks for a format that can be written here."""
    if path.suffix.lower() not in FORMATS:
        raise PersonaError(f"--out {path}: name it something{' or something'.join(FORMATS)}")
    if path.suffix.lower() == ".parquet":
        _pyarrow()


def write_embeddings(path: Path, found: EmbeddedFaces) -> None:
    """Writes the table for its owner's eyes alone: an embedding is biometric data.

    npz: arrays `photo`, `box`, `probability`, `embedding`. Parquet: a row a face with the same
    columns, the embedding as a list.

    Raises:
        PersonaError: another format, or pyarrow is missing.
    """
    check_format(path)
    file = io.BytesIO()
    if path.suffix.lower() == ".npz":
        np.savez(
            file,
            photo=np.array(found.photos, dtype=np.str_),
            box=found.boxes,
            probability=found.probabilities,
            embedding=found.embeddings,
        )
    else:
        arrow, parquet = _pyarrow()
        columns = {
            "photo": arrow.array(found.photos, arrow.string()),
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

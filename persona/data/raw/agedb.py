"""AgeDB (Moschoglou et al. 2017): 16,488 photos of 568 people, annotated with age and gender."""

from __future__ import annotations

from collections.abc import Iterator

from persona.data.raw.base import Photo, RawDataset, list_images
from persona.errors import PersonaError


class AgeDB(RawDataset):
    """One folder of `<id>_<Name>_<age>_<gender>.jpg`; the faces are cropped already."""

    name = "agedb"
    folder = "AgeDB"
    layout = "<id>_<Name>_<age>_<gender>.jpg, all in one folder"
    obtain = "ask its authors (Imperial College London, iBUG) for access"

    def iter_photos(self) -> Iterator[Photo]:
        """Yields every photo; the identity is the name field."""
        for name in list_images(self.root):
            number, _, rest = name.rpartition(".")[0].partition("_")
            fields = rest.rsplit("_", maxsplit=2)
            if not number.isdigit() or len(fields) != 3 or not fields[0] or not fields[1].isdigit():
                raise PersonaError(
                    f"{self.root / name}: expected <id>_<Name>_<age>_<gender>.jpg; "
                    "rename it or take it out"
                )
            yield Photo(identity=fields[0], source=name)

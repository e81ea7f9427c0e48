"""Labeled Faces in the Wild (Huang et al. 2008): 13,233 photos, 5,749 identities, 6,000 pairs."""

from __future__ import annotations

from pathlib import Path

from persona.data.raw.base import IdentityFolders, Pair, iter_lines
from persona.errors import PersonaError
from persona.files import whole_number

GENUINE_FIELDS = 3
IMPOSTOR_FIELDS = 4


class LFWLayout(IdentityFolders):
    """LFW's layout: `Name/Name_0001.jpg` (perhaps nested some folders deeper) and `pairs.txt`."""

    layout = "<Name>/<Name>_0001.jpg and pairs.txt"

    def pairs(self) -> list[Pair]:
        """The verification pairs in `pairs.txt` (the site's "view 2").

        A pair may name a photo that is not on disk. Packing counts such photos.

        Raises:
            PersonaError: If there is no file, or a line is malformed.
        """
        root = self.photo_root()
        path = self.pairs_path(root)
        if path is None:
            raise self.complain(self.root / "pairs.txt")
        return parse_pairs(path, prefix="" if root == self.root else f"{self.relative(root)}/")

    def pairs_path(self, root: Path) -> Path | None:
        """Path of `pairs.txt` in the dataset's folder, in `root` or between them, if it exists."""
        between = [folder for folder in root.parents if folder.is_relative_to(self.root)]
        places = (folder / "pairs.txt" for folder in (*reversed(between), root))
        return next((place for place in places if place.is_file()), None)


class LFW(LFWLayout):
    """LFW, the standard benchmark of face verification."""

    name = "lfw"
    folder = "LFW"
    aliases = frozenset({"lfwdeepfunneled", "lfwfunneled", "lfwdataset"})
    obtain = "it is free: run `persona download lfw`"


def parse_pairs(path: Path, prefix: str = "") -> list[Pair]:
    """Reads LFW's pairs format.

    The header is `folds<TAB>n`. Each fold has n lines `name i j` (one identity), then n lines
    `name i name j` (two identities). A header of one number means one fold.

    Raises:
        PersonaError: If a line is malformed. The message has its number.
    """
    lines = [line.rstrip("\r\n") for line in iter_lines(path)]
    while lines and not lines[-1].strip():
        lines.pop()
    header = lines[0].split() if lines else []
    if not 1 <= len(header) <= 2 or not all(map(whole_number, header)):
        raise PersonaError(
            f"{path} line 1: expected '<folds><TAB><pairs a fold>', for LFW '10<TAB>300'"
        )
    folds, per_kind = (1, int(header[0])) if len(header) == 1 else map(int, header)
    expected = 1 + folds * 2 * per_kind
    if len(lines) != expected:
        raise PersonaError(
            f"{path}: its header promises {expected - 1} pairs "
            f"({folds} folds of 2 x {per_kind}), it has {len(lines) - 1}: is it cut short?"
        )

    def source(name: str, number: str, line: int) -> str:
        place = whole_number(number)
        if place is None or name in {".", ".."} or "/" in name or "\\" in name:
            raise PersonaError(f"{path} line {line}: {name!r} {number!r} is no name and number")
        return f"{prefix}{name}/{name}_{place:04d}.jpg"

    pairs = []
    for number, text in enumerate(lines[1:], start=2):
        fold, position = divmod(number - 2, 2 * per_kind)
        same = position < per_kind
        fields = text.split("\t") if "\t" in text else text.split()
        if len(fields) != (GENUINE_FIELDS if same else IMPOSTOR_FIELDS):
            wanted = "'name i j' (same person)" if same else "'name i name j' (two people)"
            raise PersonaError(f"{path} line {number}: expected {wanted}, found {text[:80]!r}")
        name_a, number_a, *rest = fields
        name_b, number_b = (name_a, rest[0]) if same else rest
        a, b = source(name_a, number_a, number), source(name_b, number_b, number)
        if a == b or (not same and name_a == name_b):
            what = "a photo with itself" if a == b else "two photos of one person as impostors"
            raise PersonaError(f"{path} line {number}: {what}, {text[:80]!r}")
        pairs.append(Pair(fold, same, a, b))
    return pairs

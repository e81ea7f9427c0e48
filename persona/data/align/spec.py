"""The types that go into alignment and come out of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from persona.errors import PersonaError, unknown
from persona.landmarks import Floats

MIN_FACE_PX = 20
"""Side of the smallest face that MTCNN looks for, unless it is told another one."""
FEWEST_PX, MOST_PX = 12, 1000
"""The smallest and the largest value of it. MTCNN's first network sees 12 px."""
MARGIN_APART = 0.05
"""Share of a crop's side by which margins of similar crops may differ."""
ALIGNMENTS = ("mtcnn", "boxes", "landmarks", "template", "none")

Box = tuple[float, float, float, float]
"""(x0, y0, x1, y1) px in the upright photo, before the margin."""


def default_size(method: str) -> int:
    """Default side of the crop in px: 112 for `template` (most aligned sets), 160 for FaceNet."""
    return 112 if method == "template" else 160


def check_min_face(min_face: int) -> None:
    """Raises PersonaError unless the detector can look for faces from `min_face` px on."""
    if not FEWEST_PX <= min_face <= MOST_PX:
        raise PersonaError(f"smallest face {min_face} px: choose {FEWEST_PX} to {MOST_PX}")


@dataclass(frozen=True)
class AlignSpec:
    """How a set is aligned. It is part of the set's manifest."""

    method: str = "mtcnn"
    image_size: int = 160
    """Side of the square crop in px. Photos that are already aligned mostly have 112 px."""
    margin: int = 14
    """Margin around the box in px of the crop, both sides together."""
    min_face: int = MIN_FACE_PX
    """Side in px of the smallest face that the detector looks for. Larger is faster. The boxes of
    other faces change a little, too, because the photo is searched at other scales."""

    def __post_init__(self) -> None:
        if self.method not in ALIGNMENTS:
            raise unknown("alignment", self.method, ALIGNMENTS)
        if not 32 <= self.image_size <= 1024:
            raise PersonaError(f"image size {self.image_size} px: choose 32 to 1024")
        if not 0 <= self.margin < self.image_size // 2:
            raise PersonaError(
                f"margin {self.margin} px: choose 0 to below half the image size {self.image_size}"
            )
        check_min_face(self.min_face)
        if self.min_face != MIN_FACE_PX and not self.detects:
            raise PersonaError(
                f"a smallest face goes with --align mtcnn or landmarks: --align {self.method} "
                "detects none"
            )

    @property
    def has_landmarks(self) -> bool:
        """Whether every crop has five-point landmarks."""
        return self.method in {"mtcnn", "landmarks", "template"}

    @property
    def detects(self) -> bool:
        """Whether a detector looks for the face in each photo."""
        return self.method in {"mtcnn", "landmarks"}

    @property
    def facts(self) -> dict[str, str | int]:
        """Its values as plain ones. The default of the smallest face is left out, so that what was
        written before there was a choice is the same."""
        values = dict(vars(self))
        if self.min_face == MIN_FACE_PX:
            del values["min_face"]
        return values

    @property
    def options(self) -> str:
        """The options of `persona shard` that make such crops of whole photos."""
        of, default = self.of_photos, AlignSpec()
        told = f"--align {of.method} --image-size {of.image_size}"
        if of.method in {"mtcnn", "boxes"} and of.margin != default.margin:
            told += f" --margin {of.margin}"
        if of.min_face != default.min_face:
            told += f" --min-face {of.min_face}"
        return told

    @property
    def of_photos(self) -> AlignSpec:
        """The spec that makes equal crops from whole photos: `landmarks` in place of `template`."""
        return replace(self, method="landmarks") if self.method == "template" else self

    def resembles(self, other: AlignSpec) -> bool:
        """Whether crops of both show a face alike. Sizes may differ, and margins a little.

        Of photos that were taken as they are (`none`) nothing is known, so they are believed.
        """
        one, two = self.of_photos, other.of_photos
        if "none" in {one.method, two.method}:
            return True
        if one.method != two.method:
            return False
        shares = (spec.margin / spec.image_size for spec in (one, two))
        return one.method == "landmarks" or abs(next(shares) - next(shares)) <= MARGIN_APART


ARCFACE = AlignSpec("landmarks", 112)
"""The crops that ArcFace's and most other networks take."""


@dataclass(frozen=True)
class RawPhoto:
    """A photo that has not been read yet."""

    read: Callable[[], bytes]
    """Reads the bytes of its file. It may raise SkipPhoto."""
    box: Box | None = None
    """The face box, if it is known before the photo is read."""


@dataclass(frozen=True)
class FoundFace:
    """A face in its upright photo."""

    box: Box
    probability: float | None = None
    """The detector's probability in [0, 1]. None if nothing was detected."""
    landmarks_52: Floats | None = None
    """(5, 2) five-point landmarks in px."""


@dataclass(frozen=True)
class Crop:
    """An aligned crop."""

    jpeg: bytes
    face: FoundFace | None
    """The face. None if the crop shows the whole photo."""
    landmarks_62: Floats | None
    """(6, 2) points and scale in the crop, see persona/landmarks.py. None if it has none."""
    mended: str | None = None
    """The fault of a photo whose pixels are nevertheless all there."""
    align: AlignSpec | None = None
    """How it was aligned, where that is not the alignment of the gallery or set that it is of."""

"""What goes into alignment and what comes out of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from persona.errors import PersonaError, unknown
from persona.landmarks import Floats

ALIGNMENTS = ("mtcnn", "boxes", "landmarks", "template", "none")

Box = tuple[float, float, float, float]
"""(x0, y0, x1, y1) px in the upright photo, before the margin."""


def default_size(method: str) -> int:
    """Side of the crop in px where nobody says: that of FaceNet, and of most aligned sets."""
    return 112 if method == "template" else 160


@dataclass(frozen=True)
class AlignSpec:
    """How a set is aligned; part of its manifest."""

    method: str = "mtcnn"
    image_size: int = 160
    """Side of the square crop, px. Aligned photos have 112 px as a rule, see `default_size`."""
    margin: int = 14
    """Added around the box, in px of the crop, both sides together."""

    def __post_init__(self) -> None:
        if self.method not in ALIGNMENTS:
            raise unknown("alignment", self.method, ALIGNMENTS)
        if not 32 <= self.image_size <= 1024:
            raise PersonaError(f"image size {self.image_size} px: choose 32 to 1024")
        if not 0 <= self.margin < self.image_size // 2:
            raise PersonaError(
                f"margin {self.margin} px: choose 0 to below half the image size {self.image_size}"
            )

    @property
    def has_landmarks(self) -> bool:
        """Whether every crop comes with its five points."""
        return self.method in {"mtcnn", "landmarks", "template"}

    @property
    def detects(self) -> bool:
        """Whether a detector looks for the face in each photo."""
        return self.method in {"mtcnn", "landmarks"}

    @property
    def of_photos(self) -> AlignSpec:
        """What cuts such crops out of whole photos: of aligned ones, `landmarks` does."""
        return replace(self, method="landmarks") if self.method == "template" else self


@dataclass(frozen=True)
class RawPhoto:
    """A photo that is still to be read."""

    read: Callable[[], bytes]
    """Its file; may raise SkipPhoto."""
    box: Box | None = None
    """Where its face is, as far as is known before it is looked at."""


@dataclass(frozen=True)
class Face:
    """Where a face is in its upright photo."""

    box: Box
    probability: float | None = None
    """The detector's, in [0, 1]; None where nothing was detected."""
    landmarks_52: Floats | None = None
    """(5, 2) px."""


@dataclass(frozen=True)
class Crop:
    """An aligned face."""

    jpeg: bytes
    face: Face | None
    """None: the whole photo."""
    landmarks_62: Floats | None
    """(6, 2) points and scale in the crop, see persona/landmarks.py."""
    mended: str | None = None
    """What was wrong with the photo, though its pixels were all there."""

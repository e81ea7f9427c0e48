"""From photos to templates, in the same way as packing and evaluation.

1. MTCNN detects every face of a photo
2. faces are cropped with the network's alignment and encoded as JPEG at quality 95, as in a
   packed set
3. faces that are too small or too blurred are refused
4. the others are embedded; a template is an embedding of unit length

Shapes: N faces, C channel, H W pixels, E embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from PIL import Image

from persona.data.align import crop_face
from persona.data.align.decode import Decoded
from persona.data.align.detect import MIN_FACE_PX, Mtcnn
from persona.data.align.detect_onnx import OnnxNetworks
from persona.data.align.spec import AlignSpec, Box, Crop, FoundFace, check_min_face
from persona.errors import PersonaError, SkipPhoto
from persona.gallery import quality
from persona.gallery.crops import read_crop
from persona.gallery.store import Templates
from persona.landmarks import Floats
from persona.models.embedder import Embedder
from persona.models.sources import Named
from persona.names import public_name

Pixels = npt.NDArray[np.uint8]

BATCH = 64


@dataclass(frozen=True)
class SeenFace:
    """A detected face of a photo, with its crop."""

    face: FoundFace
    crop: Crop | None = None
    """Aligned crop. None means that the face could not be aligned."""
    flaw: str | None = None
    """Why the face gets no template. None means that it can be embedded."""


class Eyes:
    """A detector and a network. Any number of threads may use them at once."""

    def __init__(self, named: Named, align: AlignSpec, min_face: int = MIN_FACE_PX) -> None:
        """Loads the detector.

        Args:
            named: the network.
            align: how its crops are made. Its smallest face is that of packed sets, and not used.
            min_face: side in px of the smallest face to look for.

        Raises:
            PersonaError: the detector cannot look for such faces.
        """
        check_min_face(min_face)
        self.named, self.align, self.min_face = named, align, min_face
        self.network = _embedder(named)
        # In onnxruntime also where torch is installed: importing torch takes far longer than
        # detecting the faces of a photo.
        self._networks = OnnxNetworks()

    def find(
        self, photo: Pixels, min_face: int | None = None, *, shrink: int = 1
    ) -> list[SeenFace]:
        """Detects every face of an upright (H, W, 3) uint8 RGB photo, from left to right.

        Args:
            photo: the photo.
            min_face: side in px of the smallest face to look for, if it is another than `Eyes`
                was made with.
            shrink: factor by which the photo was decoded smaller, for the reasons why a face is
                refused: they give sizes in px of the original.

        Raises:
            PersonaError: the photo is of another shape or type, or the detector cannot look for
                such faces.
        """
        check_pixels(photo)
        least = self.min_face if min_face is None else min_face
        check_min_face(least)
        if min(photo.shape[:2]) < least:
            return []
        (faces,) = Mtcnn(networks=self._networks, min_face_px=least).find_all([photo])
        decoded = Decoded(Image.fromarray(photo))
        height, width = photo.shape[:2]
        inside = [replace(face, box=_within(face.box, width, height)) for face in faces]
        ordered = sorted(inside, key=lambda face: face.box)
        return [self._cut(decoded, face, shrink) for face in ordered]

    def _cut(self, photo: Decoded, face: FoundFace, shrink: int) -> SeenFace:
        try:
            crop = crop_face(photo, face, self.align)
        except SkipPhoto as reason:
            return SeenFace(face, flaw=str(reason))
        return SeenFace(face, crop, quality.flaw(face, read_crop(crop.jpeg), shrink))

    def embed(self, crops: Sequence[Crop]) -> Templates:
        """Embeds crops as (N, E) float32 templates of unit length.

        Raises:
            PersonaError: an embedding is not finite, or a crop cannot be read.
        """
        parts = [np.zeros((0, self.network.embedding_size), np.float32)]
        for start in range(0, len(crops), BATCH):
            parts.append(self._embed(crops[start : start + BATCH]))
        templates_NE = np.concatenate(parts)
        if not np.isfinite(templates_NE).all():
            network = public_name(self.named.name)  # clients of a server need not know its folder
            raise PersonaError(f"{network} gives no finite numbers for these faces")
        return templates_NE

    def _embed(self, crops: Sequence[Crop]) -> Templates:
        size_px = self.align.image_size
        images, points = [], []
        for crop in crops:
            image = read_crop(crop.jpeg)
            points.append(resized(crop.landmarks_62, size_px / image.width))
            if image.width != size_px:  # stored for a network with another crop size
                image = image.resize((size_px, size_px), Image.Resampling.BILINEAR)
            images.append(np.asarray(image))
        landmarks = np.stack(points) if self.network.uses_landmarks else None
        return self.network.embed(np.stack(images), landmarks)


def carries(align: AlignSpec, eyes: Eyes) -> bool:
    """Whether kept crops of an alignment show a network the faces as it wants them.

    A network that aligns faces itself needs their landmarks. Any other one wants crops of its own
    alignment; their size may differ, and their margin a little. Of photos that were taken as they
    are (`none`) nothing is known, so they are believed.
    """
    if eyes.network.uses_landmarks:
        return align.has_landmarks
    return align.resembles(eyes.align)


def _embedder(named: Named) -> Embedder:
    """Returns what embeds crops: the network itself if it needs no torch."""
    if isinstance(named.network, Embedder):
        return named.network
    from persona.evaluation.torch_embedder import TorchEmbedder

    return TorchEmbedder(named.network)


def resized(landmarks_62: Floats | None, factor: float) -> Floats:
    """Returns a crop's landmarks and scale after resizing by `factor`; NaN where it has none."""
    if landmarks_62 is None:
        return np.full((6, 2), np.nan)
    return np.vstack([(landmarks_62[:5] + 0.5) * factor - 0.5, landmarks_62[5:] * factor])


def _within(box: Box, width: int, height: int) -> Box:
    """Returns the part of a box inside the photo; the detector only guesses the rest."""
    x0, y0, x1, y1 = box
    return max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height))


def check_pixels(photo: Pixels) -> None:
    """Raises PersonaError unless the photo is (H, W, 3) uint8."""
    if photo.dtype != np.uint8 or photo.ndim != 3 or photo.shape[2] != 3:
        raise PersonaError(f"a photo is (height, width, 3) uint8, not {photo.shape} {photo.dtype}")

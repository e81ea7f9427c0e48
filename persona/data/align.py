"""One raw photo to one aligned crop.

1. decode: any JPEG, PNG, BMP or WebP to upright 8-bit RGB, within a pixel limit
2. find the face: `mtcnn` detects it, `boxes` looks it up, `none` takes the whole photo
3. crop: the box and its margin, as facenet-pytorch 2.5.3's `extract_face` does
4. encode: JPEG, quality 95

Several faces in a photo: the one with the largest `area - 2 * squared distance from the centre of
the photo` is taken (facenet-pytorch's "center_weighted_size"): datasets centre their subject.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from persona.errors import PersonaError, SkipPhoto, unknown

ALIGNMENTS = ("mtcnn", "boxes", "none")
JPEG_QUALITY = 95
MAX_PIXELS = 100_000_000
"""A 100-megapixel photo is 300 MB decoded: more is refused as a decompression bomb."""
MIN_FACE_PX = 20
"""MTCNN's smallest face; a photo below it leaves its image pyramid empty."""
FORMATS = ("JPEG", "PNG", "BMP", "WEBP")
"""The decoders that an untrusted photo may reach."""

ImageFile.LOAD_TRUNCATED_IMAGES = False

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class AlignSpec:
    """How a set is aligned; part of its manifest."""

    method: str = "mtcnn"
    image_size: int = 160
    """Side of the square crop, px."""
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


@dataclass(frozen=True)
class Crop:
    """An aligned face."""

    jpeg: bytes
    box: Box | None
    """(x0, y0, x1, y1) px in the upright photo, before the margin; None: the whole photo."""
    probability: float | None
    """The detector's, in [0, 1]; None where nothing was detected."""


class FaceFinder(Protocol):
    """Where the face is in a photo."""

    def __call__(self, photo: Image.Image, source: str) -> tuple[Box, float | None] | None:
        """Box and probability; None: the whole photo is the face. Raises SkipPhoto: no face."""


def decode_photo(data: bytes) -> Image.Image:
    """Decodes an untrusted photo to upright 8-bit RGB.

    Raises:
        SkipPhoto: empty, truncated, too large or no image.
    """
    if not data:
        raise SkipPhoto("unreadable: empty file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # EXIF oddities; a bomb is refused below by its size
            photo = Image.open(io.BytesIO(data), formats=FORMATS)
            if photo.width * photo.height > MAX_PIXELS:
                raise SkipPhoto(f"unreadable: {photo.width} x {photo.height} px is over the limit")
            photo.load()
            return _to_rgb(ImageOps.exif_transpose(photo))
    except SkipPhoto:
        raise
    except Image.DecompressionBombError:
        raise SkipPhoto("unreadable: its pixels are over the limit") from None
    except UnidentifiedImageError:
        raise SkipPhoto("unreadable: no JPEG, PNG, BMP or WebP") from None
    except Exception as error:  # Pillow's decoders raise whatever a broken file makes them raise
        raise SkipPhoto(f"unreadable: {type(error).__name__}") from None


def _to_rgb(photo: Image.Image) -> Image.Image:
    if photo.mode.startswith(("I", "F")):
        # 16 bits a channel: scale, where Pillow's own convert would clip to white.
        grey = np.asarray(photo, dtype=np.float32)
        return Image.fromarray((grey / 257.0).clip(0, 255).astype(np.uint8)).convert("RGB")
    if photo.mode in {"RGBA", "LA", "PA"} or "transparency" in photo.info:
        opaque = Image.new("RGBA", photo.size, "white")
        return Image.alpha_composite(opaque, photo.convert("RGBA")).convert("RGB")
    return photo if photo.mode == "RGB" else photo.convert("RGB")


def crop_face(photo: Image.Image, box: Box, spec: AlignSpec) -> Image.Image:
    """Cuts `box` and its margin out and resizes it to a square.

    The arithmetic, truncation and filter are those of `extract_face` and `crop_resize` in
    facenet-pytorch 2.5.3, models/utils/detect_face.py, for Pillow images.

    Raises:
        SkipPhoto: the box lies outside the photo or has no area.
    """
    x0, y0, x1, y1 = box
    scale = spec.margin / (spec.image_size - spec.margin) / 2
    margin_x, margin_y = scale * (x1 - x0), scale * (y1 - y0)
    left, top = int(max(x0 - margin_x, 0)), int(max(y0 - margin_y, 0))
    right, bottom = int(min(x1 + margin_x, photo.width)), int(min(y1 + margin_y, photo.height))
    if right <= left or bottom <= top:
        raise SkipPhoto("no face: its box lies outside the photo or is empty")
    side = (spec.image_size, spec.image_size)
    return photo.crop((left, top, right, bottom)).resize(side, Image.Resampling.BILINEAR)


def encode_jpeg(image: Image.Image) -> bytes:
    """JPEG at quality 95, the bytes a function of the pixels alone."""
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def align_photo(data: bytes, source: str, find: FaceFinder, spec: AlignSpec) -> Crop:
    """The whole chain for one photo.

    Raises:
        SkipPhoto: with the reason.
    """
    photo = decode_photo(data)
    found = find(photo, source)
    if found is None:
        side = (spec.image_size, spec.image_size)
        return Crop(encode_jpeg(photo.resize(side, Image.Resampling.BILINEAR)), None, None)
    box, probability = found
    return Crop(encode_jpeg(crop_face(photo, box, spec)), box, probability)


class WholePhoto:
    """`none`: the photo is a face already."""

    def __call__(self, photo: Image.Image, source: str) -> None:
        """The whole photo."""


class KnownBoxes:
    """`boxes`: the dataset's own face boxes."""

    def __init__(self, boxes: dict[str, Box]) -> None:
        """`boxes`: source to (x0, y0, x1, y1) px."""
        self.boxes = boxes

    def __call__(self, photo: Image.Image, source: str) -> tuple[Box, None]:
        """The box of `source`."""
        box = self.boxes.get(source)
        if box is None:
            raise SkipPhoto("no face: the box file does not name this photo")
        return box, None


class Mtcnn:
    """`mtcnn`: facenet-pytorch's detector (Zhang et al. 2016), one photo at a time on one core."""

    def __init__(self) -> None:
        import torch
        from facenet_pytorch import MTCNN

        # One thread: processes share the cores better, and sums never depend on their number.
        torch.set_num_threads(1)
        self._detector: Any = MTCNN(
            min_face_size=MIN_FACE_PX, selection_method="center_weighted_size", post_process=False
        )

    def __call__(self, photo: Image.Image, source: str) -> tuple[Box, float]:
        """The chosen face and its detection probability."""
        if min(photo.size) < MIN_FACE_PX:
            raise SkipPhoto(f"no face: the photo is smaller than {MIN_FACE_PX} px")
        found = self._detector.detect(photo, landmarks=True)
        boxes, probabilities, _ = self._detector.select_boxes(
            *found, photo, method="center_weighted_size"
        )
        if boxes is None:
            raise SkipPhoto("no face")
        x0, y0, x1, y1 = (float(edge) for edge in boxes[0])
        return (x0, y0, x1, y1), float(np.ravel(probabilities)[0])


def build_finder(spec: AlignSpec, boxes: dict[str, Box] | None) -> FaceFinder:
    """The face finder of `spec`; `boxes` are the dataset's own."""
    if spec.method == "mtcnn":
        return Mtcnn()
    if spec.method == "none":
        return WholePhoto()
    if boxes is None:
        raise PersonaError("this dataset has no face boxes of its own: choose --align mtcnn")
    return KnownBoxes(boxes)

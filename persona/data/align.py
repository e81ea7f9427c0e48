"""One raw photo to one aligned crop.

1. decode: any JPEG, PNG, BMP or WebP to upright 8-bit RGB, within a pixel limit
2. find the face: `mtcnn` and `landmarks` detect it, `boxes` looks it up, `none` takes the whole
   photo
3. crop: the box and its margin, as facenet-pytorch 2.5.3's `extract_face` does; with `landmarks`,
   turned and scaled so that its five points lie where ArcFace's template has them
4. encode: JPEG, quality 95

The five points that a detector finds go with the crop, so that a network that wants another
alignment can make it from the crop.

Several faces in a photo: the one with the largest `area - 2 * squared distance from the centre of
the photo` is taken (facenet-pytorch's "center_weighted_size"): datasets centre their subject.
"""

from __future__ import annotations

import io
import math
import warnings
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from persona.errors import NoFace, PersonaError, SkipPhoto, unknown
from persona.landmarks import Floats, invert, move, similarity, template

ALIGNMENTS = ("mtcnn", "boxes", "landmarks", "none")
JPEG_QUALITY = 95
MAX_PIXELS = 100_000_000
"""A 100-megapixel photo is 300 MB decoded: more is refused as a decompression bomb."""
MIN_FACE_PX = 20
"""MTCNN's smallest face; a photo below it leaves its image pyramid empty."""
CENTRE_CUT = 0.0625
"""Of a centre crop, on each side: insightface's `preprocess` (src/common/face_preprocess.py) cuts
as much where it has no box."""
FORMATS = ("JPEG", "PNG", "BMP", "WEBP")
"""The decoders that an untrusted photo may reach."""

ImageFile.LOAD_TRUNCATED_IMAGES = False

Box = tuple[float, float, float, float]
"""(x0, y0, x1, y1) px in the upright photo, before the margin."""


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

    @property
    def has_landmarks(self) -> bool:
        """Whether every crop comes with its five points."""
        return self.method in {"mtcnn", "landmarks"}


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


class FaceFinder(Protocol):
    """Where the face is in a photo."""

    def __call__(self, photo: Image.Image, source: str) -> Face | None:
        """The face; None: the whole photo is one. Raises NoFace: there is none."""


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
    side = (spec.image_size, spec.image_size)
    return photo.crop(margin_box(photo, box, spec)).resize(side, Image.Resampling.BILINEAR)


def margin_box(photo: Image.Image, box: Box, spec: AlignSpec) -> tuple[int, int, int, int]:
    """`box` with its margin: left, top, right and bottom px, within the photo.

    Raises:
        SkipPhoto: it lies outside the photo or has no area.
    """
    x0, y0, x1, y1 = box
    scale = spec.margin / (spec.image_size - spec.margin) / 2
    margin_x, margin_y = scale * (x1 - x0), scale * (y1 - y0)
    left, top = int(max(x0 - margin_x, 0)), int(max(y0 - margin_y, 0))
    right, bottom = int(min(x1 + margin_x, photo.width)), int(min(y1 + margin_y, photo.height))
    if right <= left or bottom <= top:
        raise NoFace("no face: its box lies outside the photo or is empty")
    return left, top, right, bottom


def in_margin_box(photo: Image.Image, face: Face, spec: AlignSpec) -> Floats | None:
    """(6, 2) the face's points, and the scale, in what `crop_face` makes of it."""
    if face.landmarks_52 is None:
        return None
    left, top, right, bottom = margin_box(photo, face.box, spec)
    scale = np.array([spec.image_size / (right - left), spec.image_size / (bottom - top)])
    return np.vstack([(face.landmarks_52 - (left, top) + 0.5) * scale - 0.5, scale])


def crop_landmarks(
    photo: Image.Image, landmarks_52: Floats, spec: AlignSpec
) -> tuple[Image.Image, Floats]:
    """Turns, scales and cuts the face so that its points come nearest to ArcFace's template.

    insightface's `norm_crop` (utils/face_align.py), but for faces far larger than the crop, which
    are first reduced: bilinear sampling alone would skip pixels.

    Returns:
        The crop, black beyond the photo, and its points and scale, (6, 2).
    """
    matrix_23 = similarity(landmarks_52, template(spec.image_size))
    shrink = math.floor(1 / max(float(np.hypot(*matrix_23[:, 0])), 1e-6))
    if shrink > 1:
        photo = photo.reduce(shrink)
        landmarks_52 = (landmarks_52 + 0.5) / shrink - 0.5
        matrix_23 = similarity(landmarks_52, template(spec.image_size))
    back_23 = invert(matrix_23)
    # Pillow counts from the corner of the first pixel.
    back_23[:, 2] += 0.5 - back_23[:, :2] @ (0.5, 0.5)
    side = (spec.image_size, spec.image_size)
    crop = photo.transform(
        side, Image.Transform.AFFINE, tuple(back_23.ravel()), Image.Resampling.BILINEAR
    )
    scale = float(np.hypot(*matrix_23[:, 0])) / max(shrink, 1)
    return crop, np.vstack([move(landmarks_52, matrix_23), (scale, scale)])


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
    face = find(photo, source)
    if face is None:
        side = (spec.image_size, spec.image_size)
        return Crop(encode_jpeg(photo.resize(side, Image.Resampling.BILINEAR)), None, None)
    if spec.method == "landmarks" and face.landmarks_52 is not None:
        crop, landmarks_62 = crop_landmarks(photo, face.landmarks_52, spec)
        return Crop(encode_jpeg(crop), face, landmarks_62)
    crop = crop_face(photo, face.box, spec)
    return Crop(encode_jpeg(crop), face, in_margin_box(photo, face, spec))


def centre_photo(data: bytes, spec: AlignSpec) -> Crop:
    """What stands in for the face where none was found: the middle of the photo.

    Its points are where a centred face would have them, so that every network takes the crop.

    Raises:
        SkipPhoto: no image.
    """
    photo = decode_photo(data)
    cut_x, cut_y = CENTRE_CUT * photo.width, CENTRE_CUT * photo.height
    box = (cut_x, cut_y, photo.width - cut_x, photo.height - cut_y)
    points = np.vstack([template(spec.image_size), (1.0, 1.0)]) if spec.has_landmarks else None
    return Crop(encode_jpeg(crop_face(photo, box, spec)), None, points)


class WholePhoto:
    """`none`: the photo is a face already."""

    def __call__(self, photo: Image.Image, source: str) -> None:
        """The whole photo."""


class KnownBoxes:
    """`boxes`: the dataset's own face boxes."""

    def __init__(self, boxes: dict[str, Box]) -> None:
        """`boxes`: source to (x0, y0, x1, y1) px."""
        self.boxes = boxes

    def __call__(self, photo: Image.Image, source: str) -> Face:
        """The box of `source`."""
        box = self.boxes.get(source)
        if box is None:
            raise NoFace("no face: the box file does not name this photo")
        return Face(box)


class Mtcnn:
    """`mtcnn`, `landmarks`: facenet-pytorch's detector (Zhang et al. 2016), one photo at a time."""

    def __init__(self) -> None:
        import torch
        from facenet_pytorch import MTCNN

        # One thread: processes share the cores better, and sums never depend on their number.
        torch.set_num_threads(1)
        self._detector: Any = MTCNN(
            min_face_size=MIN_FACE_PX, selection_method="center_weighted_size", post_process=False
        )

    def __call__(self, photo: Image.Image, source: str) -> Face:
        """The chosen face, its detection probability and its five points."""
        if min(photo.size) < MIN_FACE_PX:
            raise NoFace(f"no face: the photo is smaller than {MIN_FACE_PX} px")
        found = self._detector.detect(photo, landmarks=True)
        boxes, probabilities, points = self._detector.select_boxes(
            *found, photo, method="center_weighted_size"
        )
        if boxes is None:
            raise NoFace("no face")
        x0, y0, x1, y1 = (float(edge) for edge in boxes[0])
        probability = float(np.ravel(probabilities)[0])
        return Face((x0, y0, x1, y1), probability, np.asarray(points[0], float))


def build_finder(spec: AlignSpec, boxes: dict[str, Box] | None) -> FaceFinder:
    """The face finder of `spec`; `boxes` are the dataset's own."""
    if spec.has_landmarks:
        return Mtcnn()
    if spec.method == "none":
        return WholePhoto()
    if boxes is None:
        raise PersonaError("this dataset has no face boxes of its own: choose --align mtcnn")
    return KnownBoxes(boxes)

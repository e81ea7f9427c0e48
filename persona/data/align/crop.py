"""Cuts a face out of its photo and makes a square crop of it."""

from __future__ import annotations

import io
import math

import numpy as np
from PIL import Image

from persona.data.align.spec import AlignSpec, Box, FoundFace
from persona.errors import SkipPhoto
from persona.landmarks import Floats, invert, move, similarity, template

JPEG_QUALITY = 95


def margin_box(size: tuple[int, int], box: Box, spec: AlignSpec) -> tuple[int, int, int, int]:
    """`box` with its margin: left, top, right and bottom in px, within a photo of `size`.

    The arithmetic and truncation are those of `extract_face` in facenet-pytorch 2.5.3,
    models/utils/detect_face.py.

    Raises:
        SkipPhoto: If the box lies outside the photo or has no area.
    """
    x0, y0, x1, y1 = box
    if all(map(math.isfinite, box)):
        scale = spec.margin / (spec.image_size - spec.margin) / 2
        margin_x, margin_y = scale * (x1 - x0), scale * (y1 - y0)
        left, top = int(max(x0 - margin_x, 0)), int(max(y0 - margin_y, 0))
        right, bottom = int(min(x1 + margin_x, size[0])), int(min(y1 + margin_y, size[1]))
        if left < right and top < bottom:
            return left, top, right, bottom
    raise SkipPhoto("no face: its box lies outside the photo or is empty")


def in_margin_box(size: tuple[int, int], face: FoundFace, spec: AlignSpec) -> Floats | None:
    """(6, 2) landmarks and scale of the face, in the crop that is made of its margin box."""
    if face.landmarks_52 is None:
        return None
    left, top, right, bottom = margin_box(size, face.box, spec)
    scale = np.array([spec.image_size / (right - left), spec.image_size / (bottom - top)])
    return np.vstack([(face.landmarks_52 - (left, top) + 0.5) * scale - 0.5, scale])


def crop_landmarks(
    photo: Image.Image, landmarks_52: Floats, spec: AlignSpec
) -> tuple[Image.Image, Floats]:
    """Warps the face so that its five points come nearest to ArcFace's template.

    This is insightface's `norm_crop` (utils/face_align.py), with one addition: a face far larger
    than the crop is reduced first, because bilinear sampling alone would skip pixels.

    Returns:
        The crop, black beyond the photo, and its (6, 2) points and scale.
    """
    matrix_23 = similarity(landmarks_52, template(spec.image_size))
    shrink = math.floor(1 / max(float(np.hypot(*matrix_23[:, 0])), 1e-6))
    if shrink > 1:
        photo = photo.reduce(shrink)
        landmarks_52 = (landmarks_52 + 0.5) / shrink - 0.5
        matrix_23 = similarity(landmarks_52, template(spec.image_size))
    back_23 = invert(matrix_23)
    # Pillow measures from the corner of the first pixel, the landmarks from its centre.
    back_23[:, 2] += 0.5 - back_23[:, :2] @ (0.5, 0.5)
    side = (spec.image_size, spec.image_size)
    crop = photo.transform(
        side, Image.Transform.AFFINE, tuple(back_23.ravel()), Image.Resampling.BILINEAR
    )
    scale = float(np.hypot(*matrix_23[:, 0])) / max(shrink, 1)
    return crop, np.vstack([move(landmarks_52, matrix_23), (scale, scale)])


def encode_jpeg(image: Image.Image) -> bytes:
    """Encodes a JPEG at quality 95. The bytes depend on the pixels alone."""
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()

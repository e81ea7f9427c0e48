"""Raw photos to aligned crops.

1. decode (`decode`): a picture of a supported kind (persona/pictures.py) becomes upright 8-bit RGB,
   within limits on pixels and work
2. find the face: `mtcnn` and `landmarks` detect it (`detect`), `boxes` looks it up (`boxes`),
   `template` and `none` take the whole photo
3. crop (`crop`): the box and its margin, as in facenet-pytorch 2.5.3's `extract_face`. `landmarks`
   warps the face so that its five points lie where ArcFace's template has them
4. encode: JPEG, quality 95

If nothing has to be detected and the photo is far larger than the crop, it is decoded at a smaller
size. With `template` and `none`, a JPEG of the requested size keeps its pixels as they are encoded,
without its metadata. A crop depends on
its photo alone: not on the other photos of the batch, nor on the number of processes.

The detected five-point landmarks are stored with the crop. A network that needs another alignment
can warp the crop accordingly. With `template` the photos have already been aligned to ArcFace's
template (InsightFace's .rec and .bin files, most sets of 112 px). Nothing is detected then, and the
landmarks are the template's.

If a photo shows several faces, the one with the largest `area - 2 * squared distance from the
centre of the photo` is taken (facenet-pytorch's "center_weighted_size"), because datasets centre
their subject.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from persona.data.align.crop import crop_landmarks, encode_jpeg, in_margin_box, margin_box
from persona.data.align.decode import Decoded, EncodedPhoto, as_crop, shrink_for
from persona.data.align.spec import (
    AlignSpec,
    Box,
    Crop,
    FoundFace,
    RawPhoto,
    default_size,
)
from persona.errors import NoFace, SkipPhoto
from persona.landmarks import Floats, template

__all__ = [
    "AlignSpec",
    "Aligner",
    "Box",
    "Crop",
    "FoundFace",
    "RawPhoto",
    "build_aligner",
    "centre_photo",
    "crop_face",
    "default_size",
]

Aligner = Callable[[Iterable[RawPhoto]], Iterator[Crop | SkipPhoto]]
"""Turns photos into crops, in order. A photo that has no crop gives the reason."""

CENTRE_CUT = 0.0625
"""Fraction that a centre crop cuts off each side. insightface's `preprocess`
(src/common/face_preprocess.py) cuts the same if it has no box."""
GROUP_PIXELS = 4_000_000
"""Pixels that are detected together: a chunk of 64 photos of 250 px. A pixel takes 12 + 3 bytes."""


def build_aligner(spec: AlignSpec, device: str = "auto") -> Aligner:
    """Builds the aligner of `spec`. A detector runs on `device`: auto, cpu or cuda."""
    if spec.detects:
        return DetectedFaces(spec, device)
    align = align_box if spec.method == "boxes" else align_whole
    return lambda photos: (_attempt(lambda photo: align(photo, spec), photo) for photo in photos)


def _attempt(align: Callable[[RawPhoto], Crop], photo: RawPhoto) -> Crop | SkipPhoto:
    try:
        return align(photo)
    except SkipPhoto as reason:
        return reason


def align_whole(photo: RawPhoto, spec: AlignSpec) -> Crop:
    """Resizes the whole photo, for `template` and `none`.

    Raises:
        SkipPhoto: If it cannot be read, or if with `template` it is not square, because its points
            cannot then be the template's.
    """
    data = photo.read()
    crop = as_crop(data, spec.image_size)
    if crop is not None:
        return Crop(crop, None, _template_points(spec, spec.image_size))
    encoded = EncodedPhoto(data)
    width, height = encoded.size
    if spec.method == "template" and width != height:
        raise SkipPhoto(f"not aligned: {width} x {height} px, an aligned crop is square")
    decoded = encoded.decode(shrink_for(width, height, spec.image_size))
    jpeg = encode_jpeg(decoded.resize((0, 0, width, height), spec.image_size))
    return Crop(jpeg, None, _template_points(spec, width), decoded.mended)


def _template_points(spec: AlignSpec, photo_px: int) -> Floats | None:
    """(6, 2) points and scale in a crop made from a photo of side `photo_px`. None for `none`."""
    if not spec.has_landmarks:
        return None
    scale = spec.image_size / photo_px
    return np.vstack([template(spec.image_size), (scale, scale)])


def align_box(photo: RawPhoto, spec: AlignSpec) -> Crop:
    """Crops a known face box, for `boxes`.

    Raises:
        SkipPhoto: If the photo cannot be read, has no box, or its box is empty or outside it.
    """
    if photo.box is None:
        raise NoFace("no face: the box file does not name this photo")
    encoded = EncodedPhoto(photo.read())
    left, top, right, bottom = region = margin_box(encoded.size, photo.box, spec)
    decoded = encoded.decode(shrink_for(right - left, bottom - top, spec.image_size))
    jpeg = encode_jpeg(decoded.resize(region, spec.image_size))
    return Crop(jpeg, FoundFace(photo.box), None, decoded.mended)


def centre_photo(photo: RawPhoto, spec: AlignSpec) -> Crop:
    """The centre crop that replaces the face if none was found.

    It gets the landmarks of a centred face, so that every network takes the crop.

    Raises:
        SkipPhoto: If the photo cannot be read, or is too narrow to be cut.
    """
    decoded = EncodedPhoto(photo.read()).decode()
    width, height = decoded.image.size
    cut_x, cut_y = CENTRE_CUT * width, CENTRE_CUT * height
    region = margin_box((width, height), (cut_x, cut_y, width - cut_x, height - cut_y), spec)
    points = np.vstack([template(spec.image_size), (1.0, 1.0)]) if spec.has_landmarks else None
    jpeg = encode_jpeg(decoded.resize(region, spec.image_size))
    return Crop(jpeg, None, points, decoded.mended)


def crop_face(photo: Decoded, face: FoundFace, spec: AlignSpec) -> Crop:
    """Crops a detected face.

    Raises:
        SkipPhoto: If its box lies outside the photo.
    """
    if spec.method == "landmarks" and face.landmarks_52 is not None:
        crop, landmarks_62 = crop_landmarks(photo.image, face.landmarks_52, spec)
        return Crop(encode_jpeg(crop), face, landmarks_62, photo.mended)
    region = margin_box(photo.image.size, face.box, spec)
    crop = photo.resize(region, spec.image_size)
    points = in_margin_box(photo.image.size, face, spec)
    return Crop(encode_jpeg(crop), face, points, photo.mended)


class DetectedFaces:
    """Detects and crops faces in many photos at once, for `mtcnn` and `landmarks`."""

    def __init__(self, spec: AlignSpec, device: str = "auto") -> None:
        from persona.data.align.detect import Mtcnn

        self.spec = spec
        self.find = Mtcnn(device, min_face_px=spec.min_face)

    def __call__(self, photos: Iterable[RawPhoto]) -> Iterator[Crop | SkipPhoto]:
        """Yields crops in order. Photos are detected in groups of about GROUP_PIXELS pixels."""
        group: list[Decoded | SkipPhoto] = []
        pixels = 0
        for photo in photos:
            decoded = self._decode(photo)
            if isinstance(decoded, Decoded):
                pixels += decoded.image.width * decoded.image.height
            group.append(decoded)
            if pixels >= GROUP_PIXELS:
                yield from self._align(group)
                group, pixels = [], 0
        yield from self._align(group)

    def _decode(self, photo: RawPhoto) -> Decoded | SkipPhoto:
        try:
            decoded = EncodedPhoto(photo.read()).decode()
        except SkipPhoto as reason:
            return reason
        if min(decoded.image.size) < self.spec.min_face:
            return NoFace(f"no face: the photo is smaller than {self.spec.min_face} px")
        return decoded

    def _align(self, group: list[Decoded | SkipPhoto]) -> Iterator[Crop | SkipPhoto]:
        images = [photo.image for photo in group if isinstance(photo, Decoded)]
        faces = iter(self.find([np.asarray(image) for image in images]))
        for photo in group:
            if isinstance(photo, SkipPhoto):
                yield photo
                continue
            face = next(faces)
            try:
                yield NoFace("no face") if face is None else crop_face(photo, face, self.spec)
            except SkipPhoto as reason:
                yield reason

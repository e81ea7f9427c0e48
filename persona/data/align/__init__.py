"""Raw photos to aligned crops.

1. decode (`decode`): any picture of a kind that is read (persona/pictures.py) to upright 8-bit
   RGB, within limits on pixels and work
2. find the face: `mtcnn` and `landmarks` detect it (`detect`), `boxes` has it looked up (`boxes`),
   `template` and `none` take the whole photo
3. crop (`crop`): the box and its margin, as facenet-pytorch 2.5.3's `extract_face` does; with
   `landmarks`, turned and scaled so that its five points lie where ArcFace's template has them
4. encode: JPEG, quality 95

Where nothing has to be detected and the photo is far larger than the crop, it is decoded smaller;
with `template` and `none`, a JPEG of the wanted size is kept as it is. A crop depends on its photo
and nothing else: not on the photos it is aligned with, nor on how many processes work.

The five points that a detector finds go with the crop, so that a network that wants another
alignment can make it from the crop. With `template` the photos were aligned to ArcFace's template
by somebody else (InsightFace's .rec and .bin files, most sets of 112 px): nothing is detected, and
the points are the template's.

Several faces in a photo: the one with the largest `area - 2 * squared distance from the centre of
the photo` is taken (facenet-pytorch's "center_weighted_size"): datasets centre their subject.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from persona.data.align.crop import crop_landmarks, encode_jpeg, in_margin_box, margin_box
from persona.data.align.decode import Decoded, EncodedPhoto, decode_photo, is_crop, shrink_for
from persona.data.align.spec import (
    ALIGNMENTS,
    AlignSpec,
    Box,
    Crop,
    Face,
    RawPhoto,
    default_size,
)
from persona.errors import NoFace, SkipPhoto
from persona.landmarks import Floats, template

__all__ = [
    "ALIGNMENTS",
    "AlignSpec",
    "Aligner",
    "Box",
    "Crop",
    "Face",
    "RawPhoto",
    "build_aligner",
    "centre_photo",
    "crop_face",
    "decode_photo",
    "default_size",
]

Aligner = Callable[[Iterable[RawPhoto]], Iterator[Crop | SkipPhoto]]
"""Photos to crops, in order; a photo that has none gives the reason."""

CENTRE_CUT = 0.0625
"""Of a centre crop, on each side: insightface's `preprocess` (src/common/face_preprocess.py) cuts
as much where it has no box."""
GROUP_PIXELS = 4_000_000
"""Photos that are in memory together, a chunk of 64 at 250 px: 12 bytes a pixel, and 3."""


def build_aligner(spec: AlignSpec, device: str = "auto") -> Aligner:
    """The chain of `spec`; a detector runs on `device`: auto, cpu or cuda."""
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
    """`template` and `none`: the photo is a face already.

    Raises:
        SkipPhoto: it cannot be read; with `template`, it is not square, so that its points cannot
            be the template's.
    """
    data = photo.read()
    if is_crop(data, spec.image_size):
        return Crop(data, None, _template_points(spec, spec.image_size))
    encoded = EncodedPhoto(data)
    width, height = encoded.size
    if spec.method == "template" and width != height:
        raise SkipPhoto(f"not aligned: {width} x {height} px, an aligned crop is square")
    decoded = encoded.decode(shrink_for(width, height, spec.image_size))
    jpeg = encode_jpeg(decoded.resize((0, 0, width, height), spec.image_size))
    return Crop(jpeg, None, _template_points(spec, width), decoded.mended)


def _template_points(spec: AlignSpec, photo_px: int) -> Floats | None:
    """(6, 2) points and scale of a crop that a photo of `photo_px` a side became; None: `none`."""
    if not spec.has_landmarks:
        return None
    scale = spec.image_size / photo_px
    return np.vstack([template(spec.image_size), (scale, scale)])


def align_box(photo: RawPhoto, spec: AlignSpec) -> Crop:
    """`boxes`: where the face is, is known.

    Raises:
        SkipPhoto: it cannot be read, has no box, or one without area or outside the photo.
    """
    if photo.box is None:
        raise NoFace("no face: the box file does not name this photo")
    encoded = EncodedPhoto(photo.read())
    left, top, right, bottom = region = margin_box(encoded.size, photo.box, spec)
    decoded = encoded.decode(shrink_for(right - left, bottom - top, spec.image_size))
    jpeg = encode_jpeg(decoded.resize(region, spec.image_size))
    return Crop(jpeg, Face(photo.box), None, decoded.mended)


def centre_photo(photo: RawPhoto, spec: AlignSpec) -> Crop:
    """What stands in for the face where none was found: the middle of the photo.

    Its points are where a centred face would have them, so that every network takes the crop.

    Raises:
        SkipPhoto: it cannot be read.
    """
    decoded = EncodedPhoto(photo.read()).decode()
    width, height = decoded.image.size
    cut_x, cut_y = CENTRE_CUT * width, CENTRE_CUT * height
    region = margin_box((width, height), (cut_x, cut_y, width - cut_x, height - cut_y), spec)
    points = np.vstack([template(spec.image_size), (1.0, 1.0)]) if spec.has_landmarks else None
    jpeg = encode_jpeg(decoded.resize(region, spec.image_size))
    return Crop(jpeg, None, points, decoded.mended)


def crop_face(photo: Decoded, face: Face, spec: AlignSpec) -> Crop:
    """Cuts a face that was found out of its photo.

    Raises:
        SkipPhoto: its box lies outside the photo.
    """
    if spec.method == "landmarks" and face.landmarks_52 is not None:
        crop, landmarks_62 = crop_landmarks(photo.image, face.landmarks_52, spec)
        return Crop(encode_jpeg(crop), face, landmarks_62, photo.mended)
    region = margin_box(photo.image.size, face.box, spec)
    crop = photo.resize(region, spec.image_size)
    points = in_margin_box(photo.image.size, face, spec)
    return Crop(encode_jpeg(crop), face, points, photo.mended)


class DetectedFaces:
    """`mtcnn`, `landmarks`: the face is looked for, in many photos at once."""

    def __init__(self, spec: AlignSpec, device: str = "auto") -> None:
        from persona.data.align.detect import Mtcnn

        self.spec = spec
        self.find = Mtcnn(device)

    def __call__(self, photos: Iterable[RawPhoto]) -> Iterator[Crop | SkipPhoto]:
        """Crops in order, found in groups of as many photos as memory should hold."""
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
        from persona.data.align.detect import MIN_FACE_PX

        try:
            decoded = EncodedPhoto(photo.read()).decode()
        except SkipPhoto as reason:
            return reason
        if min(decoded.image.size) < MIN_FACE_PX:
            return NoFace(f"no face: the photo is smaller than {MIN_FACE_PX} px")
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

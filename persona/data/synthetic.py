"""Drawn faces. An identity is a set of proportions and colours; a photo adds everything else.

1. identity: proportions, skin, hair, eyes, brows, beard, glasses are drawn once
2. pose: the position of each pixel on the face, after roll, yaw, pitch, scale and shift
3. layers from back to front: each is a soft shape in face coordinates, filled with a colour
4. camera: light direction, colour cast, exposure, blur, sensor noise, JPEG

A face detector finds these faces, and they are too plain to resemble anybody. The module needs only
numpy and Pillow and has no state: equal arguments give equal pixels.

Face coordinates: u points right and v down. The chin is at v = 1, the crown at v = -1, the middle
at u = 0. Shapes: H W pixels, the last axis is RGB in [0, 1].
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

Array = npt.NDArray[np.float32]
Colour = tuple[float, float, float]

SKINS: tuple[Colour, ...] = (
    (0.96, 0.82, 0.72),
    (0.91, 0.74, 0.61),
    (0.83, 0.63, 0.48),
    (0.71, 0.51, 0.37),
    (0.60, 0.42, 0.31),
    (0.50, 0.34, 0.25),
)
HAIRS: tuple[Colour, ...] = (
    (0.08, 0.07, 0.07),
    (0.22, 0.14, 0.09),
    (0.38, 0.25, 0.14),
    (0.66, 0.50, 0.28),
    (0.50, 0.22, 0.10),
    (0.62, 0.61, 0.60),
)
EYES: tuple[Colour, ...] = (
    (0.20, 0.12, 0.07),
    (0.36, 0.24, 0.12),
    (0.25, 0.40, 0.28),
    (0.30, 0.45, 0.62),
    (0.42, 0.46, 0.48),
)
DARK: Colour = (0.06, 0.05, 0.05)
WHITE: Colour = (0.96, 0.95, 0.93)


@dataclass(frozen=True)
class FaceIdentity:
    """The features that all photos of an identity share. Lengths are in half face heights."""

    face_width: float
    jaw: float
    """Exponent of the lower half of the outline: 2 is an ellipse, 3 nearly a box."""
    eye_spacing: float
    eye_height: float
    eye_size: float
    eye_tilt: float
    brow_gap: float
    brow_thickness: float
    brow_tilt: float
    nose_length: float
    nose_width: float
    mouth_height: float
    mouth_width: float
    lip_fullness: float
    hair_line: float
    hair_length: float
    """How far down the hair falls beside the face. Negative means short hair."""
    hair_volume: float
    beard: float
    """Density of the beard, from 0 (none) to 1 (full)."""
    glasses: bool
    mole: tuple[float, float] | None
    skin: Colour
    hair: Colour
    eyes: Colour


def _mix(rng: np.random.Generator, palette: tuple[Colour, ...]) -> Colour:
    """Draws a colour between two neighbours of a palette."""
    place = rng.uniform(0, len(palette) - 1)
    low = int(place)
    share = place - low
    high = min(low + 1, len(palette) - 1)
    red, green, blue = (
        a * (1 - share) + b * share for a, b in zip(palette[low], palette[high], strict=True)
    )
    return (red, green, blue)


def draw_identity(seed: int, index: int) -> FaceIdentity:
    """Draws identity `index` of population `seed`."""
    rng = np.random.default_rng([seed, index])

    def between(low: float, high: float) -> float:
        return float(rng.uniform(low, high))

    skin, hair = _mix(rng, SKINS), _mix(rng, HAIRS)
    # Hair is darker than the skin, because detectors have seen little else.
    hair = _shade(hair, min(1.0, 0.62 * sum(skin) / sum(hair)))
    has_beard = rng.random() < 0.3
    has_mole = rng.random() < 0.3
    mole = (between(-0.45, 0.45), between(0.25, 0.75)) if has_mole else None
    return FaceIdentity(
        face_width=between(0.62, 0.84),
        jaw=between(1.9, 3.0),
        eye_spacing=between(0.27, 0.39),
        eye_height=between(-0.14, 0.04),
        eye_size=between(0.115, 0.17),
        eye_tilt=between(-0.18, 0.18),
        brow_gap=between(0.15, 0.26),
        brow_thickness=between(0.025, 0.065),
        brow_tilt=between(-0.25, 0.25),
        nose_length=between(0.30, 0.50),
        nose_width=between(0.11, 0.21),
        mouth_height=between(0.52, 0.66),
        mouth_width=between(0.20, 0.36),
        lip_fullness=between(0.035, 0.085),
        hair_line=between(-0.72, -0.42),
        hair_length=between(-0.4, 1.5),
        hair_volume=between(1.06, 1.32),
        beard=between(0.35, 0.9) if has_beard else 0.0,
        glasses=bool(rng.random() < 0.2),
        mole=mole,
        skin=skin,
        hair=hair,
        eyes=_mix(rng, EYES),
    )


@dataclass(frozen=True)
class Circumstances:
    """The features that differ between the photos of an identity."""

    roll: float
    yaw: float
    """In radians. A feature that stands out of the face by z moves by yaw * z."""
    pitch: float
    scale: float
    """Pixels per unit of face coordinates, as a fraction of the photo's side."""
    centre: tuple[float, float]
    smile: float
    mouth_open: float
    eye_open: float
    brow_raise: float
    gaze: float
    light: tuple[float, float]
    """Direction from which the light comes, along the face's u and v."""
    contrast: float
    exposure: float
    cast: Colour
    saturation: float
    """Near 0 gives a black-and-white photo, which shows only the lightness of skin and hair."""
    hair_down: float
    """Fraction of the hair's length that hangs down, because people tie it up."""
    glasses_on: bool
    clothes: Colour
    background: tuple[Colour, Colour]


def _draw_circumstances(rng: np.random.Generator) -> Circumstances:
    def between(low: float, high: float) -> float:
        return float(rng.uniform(low, high))

    def colour(low: float, high: float) -> Colour:
        return (between(low, high), between(low, high), between(low, high))

    angle = between(0, 2 * np.pi)
    return Circumstances(
        roll=between(-0.15, 0.15),
        yaw=between(-0.3, 0.3),
        pitch=between(-0.15, 0.15),
        scale=between(0.28, 0.34),
        centre=(between(0.45, 0.55), between(0.46, 0.54)),
        smile=between(-0.3, 1.0),
        mouth_open=max(0.0, between(-0.08, 0.08)),
        eye_open=between(0.65, 1.1),
        brow_raise=between(-0.03, 0.05),
        gaze=between(-0.3, 0.3),
        light=(float(np.cos(angle)), float(np.sin(angle)) * 0.6 - 0.4),
        contrast=between(0.12, 0.5),
        exposure=between(0.7, 1.3),
        cast=colour(0.75, 1.25),
        saturation=between(0.1, 1.0),
        hair_down=between(0.0, 1.0),
        glasses_on=bool(rng.random() < 0.5),
        clothes=colour(0.05, 0.9),
        background=(colour(0.05, 0.95), colour(0.05, 0.95)),
    )


class _Canvas:
    """The pixels of a photo, and their positions in face coordinates."""

    def __init__(self, size_px: int, photo: Circumstances) -> None:
        self.size_px = size_px
        self.photo = photo
        self.unit_px = photo.scale * size_px
        self.rgb: Array = np.zeros((size_px, size_px, 3), np.float32)
        y, x = np.mgrid[0:size_px, 0:size_px].astype(np.float32)
        x = (x + 0.5) / self.unit_px - photo.centre[0] / photo.scale
        y = (y + 0.5) / self.unit_px - photo.centre[1] / photo.scale
        self.cos, self.sin = float(np.cos(photo.roll)), float(np.sin(photo.roll))
        self.u: Array = (self.cos * x + self.sin * y) / np.float32(np.cos(photo.yaw))
        self.v: Array = -self.sin * x + self.cos * y

    def near(self, u: float, v: float, radius: float) -> tuple[slice, slice]:
        """Slices of the pixels around a point, so that small features do not touch the photo."""
        u *= float(np.cos(self.photo.yaw))
        x = self.cos * u - self.sin * v + self.photo.centre[0] / self.photo.scale
        y = self.sin * u + self.cos * v + self.photo.centre[1] / self.photo.scale
        reach = radius * 1.5

        def span(place: float) -> slice:
            low, high = (int((place + side * reach) * self.unit_px) for side in (-1, 1))
            return slice(max(low, 0), max(min(high + 1, self.size_px), 0))

        return span(y), span(x)

    def ellipse(
        self,
        u: float,
        v: float,
        ru: float,
        rv: float,
        colour: Colour,
        *,
        tilt: float = 0.0,
        depth: float = 0.0,
        opacity: float = 1.0,
        soft: float = 0.02,
        above: float | None = None,
    ) -> None:
        """Fills an ellipse.

        `depth` makes it move with yaw and pitch. `soft` is the width of its edge. `above` keeps
        only the part with a smaller v.
        """
        u, v = u + self.photo.yaw * depth, v + self.photo.pitch * depth
        where = self.near(u, v, max(ru, rv) + soft)
        du, dv = self.u[where] - u, self.v[where] - v
        if tilt:
            cos, sin = np.float32(np.cos(tilt)), np.float32(np.sin(tilt))
            du, dv = cos * du + sin * dv, cos * dv - sin * du
        distance = (np.sqrt((du / ru) ** 2 + (dv / rv) ** 2) - 1) * min(ru, rv)
        mask = self.edge(np.asarray(distance, np.float32), soft)
        if above is not None:
            mask = mask * self.edge(dv - above, soft)
        self.blend(where, mask * opacity, colour)

    def edge(self, distance: Array, soft: float) -> Array:
        """A mask: 1 inside, 0 outside, and a ramp of at least one pixel in between."""
        width = max(soft, 1.2 / self.unit_px)
        return np.asarray(np.clip(0.5 - distance / np.float32(width), 0, 1), np.float32)

    def blend(self, where: tuple[slice, slice], mask: Array, colour: Colour | Array) -> None:
        """Blends a colour into the pixels, by the mask."""
        part = self.rgb[where]
        part += mask[..., None] * (np.asarray(colour, np.float32) - part)

    @property
    def everywhere(self) -> tuple[slice, slice]:
        """Slices of all pixels."""
        return slice(None), slice(None)


def _shade(colour: Colour, factor: float) -> Colour:
    red, green, blue = (min(1.0, channel * factor) for channel in colour)
    return (red, green, blue)


def _background(canvas: _Canvas, rng: np.random.Generator) -> None:
    first, second = canvas.photo.background
    ramp = np.linspace(0, 1, canvas.size_px, dtype=np.float32)
    canvas.blend(canvas.everywhere, np.ones_like(canvas.u), first)
    canvas.blend(canvas.everywhere, np.broadcast_to(ramp[:, None], canvas.u.shape), second)
    for _ in range(4):
        u, v, radius, light = rng.uniform((-2, -2, 0.2, 0.0), (2, 2, 0.8, 1.0))
        grey = (float(light),) * 3
        canvas.ellipse(
            float(u), float(v), float(radius), float(radius), grey, soft=0.5, opacity=0.5
        )


def _body(canvas: _Canvas, face: FaceIdentity) -> None:
    canvas.ellipse(0, 2.15, 1.55, 0.85, canvas.photo.clothes, soft=0.05)
    canvas.ellipse(0, 1.0, 0.36, 0.7, _shade(face.skin, 0.72), soft=0.06)


def _hair_behind(canvas: _Canvas, face: FaceIdentity) -> None:
    width = face.face_width * face.hair_volume + 0.03
    canvas.ellipse(0, -0.25, width, 0.85 * face.hair_volume, face.hair, above=0.45, soft=0.06)
    if face.hair_length > 0:
        middle = face.hair_length * canvas.photo.hair_down / 2
        canvas.ellipse(0, middle, width, middle + 0.55, _shade(face.hair, 0.85), soft=0.08)


def _head(canvas: _Canvas, face: FaceIdentity) -> None:
    photo = canvas.photo
    for side in (-1, 1):
        ear = side * (face.face_width + 0.01) - photo.yaw * 0.25
        canvas.ellipse(ear, 0.02, 0.075, 0.17, _shade(face.skin, 0.85), soft=0.03)
    u, v = canvas.u / face.face_width, canvas.v
    # A superellipse below the eyes, an ellipse above: the jaw distinguishes faces most.
    power: Array = np.where(v > 0, np.float32(face.jaw), np.float32(2.0))
    taper = 1 + 0.12 * np.clip(v, 0, 1)
    radius = (np.abs(u * taper) ** power + np.abs(v) ** power) ** (1 / power)
    mask = canvas.edge(np.asarray((radius - 1) * face.face_width, np.float32), 0.03)
    height = np.sqrt(np.clip(1.15 - u**2 - 0.8 * v**2, 0.02, None))
    light = 0.78 * height + photo.contrast * (photo.light[0] * u + photo.light[1] * v)
    shading = np.clip(0.42 + 0.62 * light, 0.25, 1.15)[..., None]
    canvas.blend(canvas.everywhere, mask, shading * np.asarray(face.skin, np.float32))
    _hair_front(canvas, face, mask)


def _hair_front(canvas: _Canvas, face: FaceIdentity, head: Array) -> None:
    line = face.hair_line + 0.55 * (canvas.u / face.face_width) ** 2 * abs(face.hair_line)
    mask = canvas.edge(canvas.v - canvas.photo.pitch * 0.2 - line, 0.07) * head
    canvas.blend(canvas.everywhere, mask, _shade(face.hair, 1.1))


def _beard(canvas: _Canvas, face: FaceIdentity) -> None:
    if not face.beard:
        return
    for u, v, ru, rv in ((0.0, 0.84, 0.46, 0.2), (0.0, face.mouth_height - 0.13, 0.27, 0.055)):
        canvas.ellipse(u, v, ru, rv, face.hair, depth=0.15, opacity=face.beard * 0.75, soft=0.14)


def _eye(canvas: _Canvas, face: FaceIdentity, side: int) -> None:
    photo = canvas.photo
    u, v, size = side * face.eye_spacing, face.eye_height, face.eye_size
    tilt = side * face.eye_tilt
    opening = size * 0.52 * photo.eye_open
    depth = 0.22
    canvas.ellipse(
        u,
        v - 0.01,
        size * 1.5,
        size * 1.05,
        _shade(face.skin, 0.55),
        depth=depth,
        opacity=0.75,
        soft=0.16,
    )
    if (
        face.glasses and photo.glasses_on
    ):  # under the eye: a dark frame, then a skin-coloured lens that leaves only its rim
        for scale, colour, opacity in ((1.75, DARK, 0.85), (1.58, _shade(face.skin, 0.8), 0.95)):
            radii = (size * scale, size * scale * 0.8)
            canvas.ellipse(u, v, *radii, colour, depth=depth, opacity=opacity)
    canvas.ellipse(u, v, size, opening, WHITE, tilt=tilt, depth=depth)
    iris = size * 0.52
    look = u + photo.gaze * size * 0.5
    canvas.ellipse(look, v, iris, min(iris, opening * 1.05), face.eyes, depth=depth)
    canvas.ellipse(look, v, iris * 0.5, min(iris * 0.5, opening), DARK, depth=depth)
    canvas.ellipse(look + iris * 0.3, v - iris * 0.35, iris * 0.2, iris * 0.2, WHITE, depth=depth)
    canvas.ellipse(
        u, v - opening * 0.95, size * 1.08, size * 0.13, DARK, tilt=tilt, depth=depth, opacity=0.85
    )
    canvas.ellipse(
        u, v + opening, size * 0.9, size * 0.06, _shade(face.skin, 0.6), depth=depth, opacity=0.6
    )
    brow = v - face.brow_gap - photo.brow_raise
    canvas.ellipse(
        u * 1.04,
        brow,
        size * 1.45,
        face.brow_thickness,
        _shade(face.hair, 0.75),
        tilt=side * face.brow_tilt,
        depth=depth,
        opacity=0.9,
        soft=0.03,
    )


def _nose(canvas: _Canvas, face: FaceIdentity) -> None:
    photo = canvas.photo
    top, tip = face.eye_height, face.eye_height + face.nose_length
    dark, bright = _shade(face.skin, 0.62), _shade(face.skin, 1.12)
    away = -1 if photo.light[0] > 0 else 1
    middle, half = (top + tip) / 2, face.nose_length / 2
    canvas.ellipse(
        away * face.nose_width * 0.55,
        middle + 0.05,
        face.nose_width * 0.4,
        half,
        dark,
        depth=0.4,
        opacity=0.5,
        soft=0.1,
    )
    canvas.ellipse(
        0, middle, face.nose_width * 0.28, half, bright, depth=0.42, opacity=0.6, soft=0.1
    )
    canvas.ellipse(0, tip + 0.01, face.nose_width, 0.055, dark, depth=0.45, opacity=0.75, soft=0.06)
    canvas.ellipse(
        0, tip - 0.04, face.nose_width * 0.75, 0.06, bright, depth=0.5, opacity=0.5, soft=0.08
    )
    for side in (-1, 1):
        nostril = side * face.nose_width * 0.5
        canvas.ellipse(
            nostril, tip + 0.015, face.nose_width * 0.26, 0.024, DARK, depth=0.45, opacity=0.8
        )


def _mouth(canvas: _Canvas, face: FaceIdentity) -> None:
    photo = canvas.photo
    v = face.mouth_height
    width = face.mouth_width * (1 + 0.15 * photo.smile)
    lips = (face.skin[0] * 0.80, face.skin[1] * 0.50, face.skin[2] * 0.50)
    gap = photo.mouth_open
    corner = 0.05 * photo.smile
    for side in (-1, 1):
        # Each half is tilted, so that a smile lifts the corners.
        u, tilt = side * width * 0.42, -side * 1.5 * corner
        canvas.ellipse(
            u,
            v - 0.02 - corner * 0.4,
            width * 0.62,
            face.lip_fullness * 0.8,
            _shade(lips, 0.9),
            tilt=tilt,
            depth=0.3,
            soft=0.03,
        )
        canvas.ellipse(
            u,
            v + 0.03 + gap - corner * 0.4,
            width * 0.55,
            face.lip_fullness,
            lips,
            tilt=tilt,
            depth=0.3,
            soft=0.03,
        )
        canvas.ellipse(
            u,
            v + gap / 2 - corner * 0.4,
            width * 0.6,
            0.014 + gap / 2,
            (0.22, 0.08, 0.08),
            tilt=tilt,
            depth=0.3,
            opacity=0.9,
        )
    shadow = _shade(face.skin, 0.7)
    canvas.ellipse(0, v + 0.13 + gap, width * 0.6, 0.03, shadow, depth=0.28, opacity=0.5, soft=0.06)


def _camera(rgb: Array, photo: Circumstances, rng: np.random.Generator) -> Image.Image:
    gain = np.asarray(photo.cast, np.float32) * np.float32(photo.exposure)
    exposed = 1 - np.exp(-1.6 * rgb * gain)  # a soft shoulder instead of clipped highlights
    grey = exposed.mean(axis=2, keepdims=True)
    exposed = grey + np.float32(photo.saturation) * (exposed - grey)
    noise = rng.standard_normal(exposed.shape, dtype=np.float32) * np.float32(
        rng.uniform(0.0, 0.02)
    )
    pixels = (np.clip(exposed / 0.8 + noise, 0, 1) * 255).astype(np.uint8)
    image = Image.fromarray(pixels)
    if rng.random() < 0.4:
        # Photos from the web have often been reduced and enlarged.
        small = int(image.width * rng.uniform(0.45, 0.8))
        image = image.resize((small, small), Image.Resampling.BILINEAR).resize(
            image.size, Image.Resampling.BILINEAR
        )
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=int(rng.integers(50, 96)))
    return Image.open(io.BytesIO(buffer.getvalue())).convert("RGB")


def draw_photo(identity: FaceIdentity, seed: int, size_px: int = 200) -> Image.Image:
    """Draws photo `seed` of an identity: a (size_px, size_px) RGB image.

    All photos with the same `seed` have the same circumstances, whoever they show. Use different
    seeds for different identities.
    """
    rng = np.random.default_rng([seed, 0xFACE])
    photo = _draw_circumstances(rng)
    canvas = _Canvas(size_px, photo)
    _background(canvas, rng)
    _hair_behind(canvas, identity)
    _body(canvas, identity)
    _head(canvas, identity)
    _beard(canvas, identity)
    for side in (-1, 1):
        _eye(canvas, identity, side)
    _nose(canvas, identity)
    _mouth(canvas, identity)
    if identity.mole is not None:
        canvas.ellipse(*identity.mole, 0.022, 0.022, (0.2, 0.12, 0.1), depth=0.25, opacity=0.8)
    return _camera(canvas.rgb, photo, rng)

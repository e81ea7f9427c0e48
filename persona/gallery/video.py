"""Recognising people in a video, with the times at which they are seen.

1. frames are sampled, `every_s` apart
2. each face of a sampled frame continues a track if it overlaps the track's last box and its
   template is similar to the track's last one, or if the templates alone are very similar;
   otherwise it starts a track. A track ends when it is not seen for GAP_S
3. each track is recognised once, by the mean of its templates. Where a liveness check is asked, a
   track is live if the mean of its scores is
4. for a copy with boxes and names the video is read again, because a track's name is known only
   when the track has ended

Memory holds one frame and the tracks, however long the video is.

Shapes: H W pixels, E embedding.
"""

from __future__ import annotations

import bisect
import contextlib
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from persona.data.align.spec import Crop
from persona.errors import PersonaError
from persona.extras import missing
from persona.files import PRIVATE, replacing
from persona.gallery import quality
from persona.gallery.faces import Pixels, SeenFace
from persona.gallery.liveness import NOT_LIVE
from persona.gallery.marks import Mark, draw_marks, mark_of
from persona.gallery.people import Gallery, Sighting
from persona.gallery.photos import MAX_WHOLE
from persona.gallery.store import Templates, unit

GAP_S = 1.0
"""Time in s without a sighting after which a track ends."""
CUT_S = 0.5
"""A video that ends more than this long (s) before its stated duration counts as cut off."""
OVERLAP = 0.3
"""Least intersection over union at which two boxes of neighbouring samples may be one face."""
NEAR = 0.1
"""Least similarity that overlapping faces need to be one face. It is low, because pose and light
change a template, and because only a cut puts another person in the same place."""
ALIKE = 0.5
"""Similarity from which two faces are one, wherever their boxes are."""
DEFAULT = 0x1
NO_FILM = 0x400 | 0x800 | 0x80000 | 0x100000
"""Dispositions (libavformat/avformat.h): attached picture, thumbnails, part of a tiled picture,
still picture."""
STILLS = re.compile(r"(^|,)(image2|\w+_pipe)(,|$)")
"""Names of FFmpeg's formats for single pictures."""

BoxWH = tuple[float, float, float, float]


@dataclass
class Track:
    """One face, from the first sample that shows it to the last."""

    boxes: list[tuple[float, BoxWH]] = field(default_factory=list)
    """Time (s) and box (x, y, width, height; px) of every sample."""
    total: Templates | None = None
    """(E,) sum of the templates of the usable faces."""
    last: Templates | None = None
    """(E,) template of the last usable face."""
    clearest: tuple[float, Templates, Crop] | None = None
    """Side in px, template and crop of the largest usable face."""
    scores: list[float] = field(default_factory=list)
    """Liveness scores of the usable faces, where somebody is asked."""
    flaw: str | None = None
    """Why the last unusable face was refused."""
    sighting: Sighting | None = None
    """Who it is."""

    @property
    def from_s(self) -> float:
        """Time in s of the first sample."""
        return self.boxes[0][0]

    @property
    def to_s(self) -> float:
        """Time in s of the last sample."""
        return self.boxes[-1][0]

    def at(self, time_s: float) -> BoxWH | None:
        """Returns the box at a time, interpolated between two samples; None outside the track."""
        if not self.from_s <= time_s <= self.to_s:
            return None
        after = bisect.bisect_left(self.boxes, time_s, key=lambda one: one[0])
        (before_s, a), (after_s, b) = self.boxes[max(after - 1, 0)], self.boxes[after]
        share = 1.0 if after_s == before_s else (time_s - before_s) / (after_s - before_s)
        x, y, width, height = (p + share * (q - p) for p, q in zip(a, b, strict=True))
        return x, y, width, height


@dataclass(frozen=True)
class Seen:
    """The tracks of a video."""

    tracks: tuple[Track, ...]
    seconds: float
    """Time in s of the last frame."""
    frames: int
    """Number of sampled frames."""
    every_s: float
    """Time in s between two samples."""
    cut_off: bool
    """Whether the file ends before the video does. The frames before the cut were used."""

    @property
    def told(self) -> list[tuple[Track, Sighting]]:
        """The tracks that have an answer, with it. Their places are the numbers of the faces."""
        return [(track, track.sighting) for track in self.tracks if track.sighting is not None]


def check_copy(out: Path) -> None:
    """Raises PersonaError unless a copy's suffix is `.mp4`, so that it replaces no other file."""
    if out.suffix.lower() != ".mp4":
        raise PersonaError(f"--annotate {out}: name it .mp4")


def recognise_video(gallery: Gallery, path: Path, *, every_s: float = 0.2) -> Seen:
    """Finds the tracks of a video and recognises each of them.

    Args:
        gallery: the gallery.
        path: the video's file.
        every_s: time in s between two sampled frames.

    Raises:
        PersonaError: the file is no video, or none of its frames can be read.
    """
    tracks: list[Track] = []
    due_s, end_s, frames = 0.0, 0.0, 0
    reader = FrameReader(path)
    for time_s, frame in reader:
        end_s = time_s
        if time_s + 1e-6 < due_s:
            continue
        due_s = time_s + every_s
        frames += 1
        _follow(gallery, tracks, time_s, reader.pixels(frame))
    if not frames:
        raise PersonaError(f"{path} has no frame that can be read: is it whole?")
    for track in tracks:
        track.sighting = _vote(gallery, track)
    return Seen(tuple(tracks), end_s, frames, every_s, reader.cut_off)


def _follow(gallery: Gallery, tracks: list[Track], time_s: float, photo: Pixels) -> None:
    """Adds the faces of a frame to the tracks that they continue, or starts tracks with them."""
    found = gallery.find_live(photo)
    # Whether a track is live is told by all of its frames, see `_vote`.
    seen = [one if score is None else replace(one, flaw=None) for one, score in found]
    scores = [score for _, score in found]
    usable = [one for one in seen if one.flaw is None and one.crop is not None]
    crops = [one.crop for one in usable if one.crop is not None]
    vectors = iter(gallery.eyes.embed(crops)) if crops else iter(())
    faces = [(one, None if one.flaw else next(vectors)) for one in seen]
    alive = [track for track in tracks if time_s - track.to_s <= GAP_S]
    pairs = sorted(
        (
            (_kinship(track, *faces[n]), number, n)
            for number, track in enumerate(alive)
            for n in range(len(faces))
        ),
        reverse=True,
    )
    taken: set[int] = set()
    grown: set[int] = set()
    for kinship, number, n in pairs:
        if kinship > 0 and number not in grown and n not in taken:
            _grow(alive[number], time_s, *faces[n], scores[n])
            grown.add(number)
            taken.add(n)
    for n, (one, template) in enumerate(faces):
        if n not in taken:
            tracks.append(track := Track())
            _grow(track, time_s, one, template, scores[n])


def _kinship(track: Track, one: SeenFace, template: Templates | None) -> float:
    """Returns how well a face continues a track; 0 means that it does not."""
    overlap = _overlap(track.boxes[-1][1], _box(one))
    if template is None or track.last is None:
        return overlap if overlap >= OVERLAP else 0.0
    similarity = float(track.last @ template)
    same = similarity >= ALIKE or (overlap >= OVERLAP and similarity >= NEAR)
    return overlap + similarity if same else 0.0


def _grow(
    track: Track, time_s: float, one: SeenFace, template: Templates | None, score: float | None
) -> None:
    track.boxes.append((time_s, _box(one)))
    if score is not None:
        track.scores.append(score)
    if template is None or one.crop is None:
        track.flaw = one.flaw
    else:
        side_px = quality.side_px(one.face)
        if track.clearest is None or side_px > track.clearest[0]:
            track.clearest = (side_px, template, one.crop)
        track.last = template
        track.total = template if track.total is None else track.total + template


def _vote(gallery: Gallery, track: Track) -> Sighting:
    box = track.boxes[-1][1]
    if track.total is None:
        return Sighting(box, None, None, None, track.flaw)
    if track.scores and not gallery.is_live(float(np.mean(track.scores))):
        return Sighting(box, None, None, None, NOT_LIVE)
    (match,) = gallery.store.nearest(unit(track.total[None]), gallery.match)
    answer = gallery.answer(box, match)
    if answer.name is None and gallery.unknown is not None and track.clearest is not None:
        _, template_E, crop = track.clearest  # one face for each time that somebody is seen
        eyes = gallery.eyes
        gallery.unknown.keep(template_E[None], [crop], eyes.named.digest, eyes.align)
    return answer


def _box(one: SeenFace) -> BoxWH:
    x0, y0, x1, y1 = one.face.box
    return x0, y0, x1 - x0, y1 - y0


def _overlap(a: BoxWH, b: BoxWH) -> float:
    """Returns the intersection over union of two boxes."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    common = max(width, 0.0) * max(height, 0.0)
    return common / max(a[2] * a[3] + b[2] * b[3] - common, 1e-9)


class FrameReader:
    """Reads the frames of a video from an untrusted file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.cut_off = False

    def __iter__(self) -> Iterator[tuple[float, Any]]:
        """Yields time (s) and frame. The time still increases where the file's clock jumps back.

        Raises:
            PersonaError: the file is no video, or its frames have too many pixels.
        """
        av = _av()
        with contextlib.ExitStack() as stack:
            # Opened here, because FFmpeg may take a name for a protocol. The whitelist keeps a
            # playlist, or another file that names files, from opening them.
            file = stack.enter_context(self.path.open("rb"))
            try:
                container = stack.enter_context(
                    av.open(file, options={"protocol_whitelist": "none"})
                )
            except (av.error.FFmpegError, OSError, ValueError):
                raise PersonaError(f"{self.path} is no photo or video that can be read") from None
            if STILLS.search(container.format.name):
                raise PersonaError(
                    f"{self.path} is a still picture of a kind that is not read: convert it to JPEG"
                )
            stream = _main_stream(container.streams.video)
            if stream is None:
                raise PersonaError(f"{self.path} has no pictures: it is sound alone")
            stream.thread_type = "AUTO"
            if stream.width * stream.height > MAX_WHOLE:
                raise PersonaError(
                    f"{self.path}: frames of {stream.width} x {stream.height} px are over the limit"
                )
            self.rate = stream.average_rate or Fraction(25)
            time_s, shift_s = 0.0, 0.0
            try:
                for number, frame in enumerate(container.decode(stream)):
                    if frame.width * frame.height > MAX_WHOLE:
                        raise PersonaError(f"{self.path}: a frame is over the limit on pixels")
                    clock_s = number / float(self.rate) if frame.time is None else frame.time
                    if clock_s + shift_s < time_s:
                        shift_s = time_s + 1 / float(self.rate) - clock_s
                    time_s = clock_s + shift_s
                    yield time_s, frame
            except (av.error.FFmpegError, OSError):
                self.cut_off = True
            promised_s = (container.duration or 0) / av.time_base
            self.cut_off |= time_s + CUT_S < promised_s

    def pixels(self, frame: Any) -> Pixels:
        """Returns a frame as upright (H, W, 3) uint8 RGB."""
        return np.ascontiguousarray(_upright(frame.to_ndarray(format="rgb24"), _matrix(frame)))


def _main_stream(streams: Sequence[Any]) -> Any:
    """Returns the main video stream: the container's default, or the largest.

    A stream of one frame, such as a cover or a poster, is used only if there is no other.
    """

    def rank(stream: Any) -> tuple[bool, bool, int]:
        default = bool(int(stream.disposition) & DEFAULT)
        return stream.frames != 1, default, stream.width * stream.height

    films = [stream for stream in streams if not int(stream.disposition) & NO_FILM]
    return max(films, key=rank, default=None)


def _matrix(frame: Any) -> tuple[int, int, int, int]:
    """Returns a, b, c, d of the display matrix: upright x = a x + c y, upright y = b x + d y."""
    for data in frame.side_data:
        if data.type.name == "DISPLAYMATRIX":
            a, b, _, c, d, *_ = struct.unpack("=9i", bytes(data)[:36])
            return a, b, c, d
    return 1, 0, 0, 1


def _upright(pixels: Pixels, matrix: tuple[int, int, int, int]) -> Pixels:
    """Turns and mirrors a frame by its display matrix, to the nearest quarter turn."""
    a, b, c, d = matrix
    if abs(a) + abs(d) >= abs(b) + abs(c):
        across, down = a, d
    else:
        pixels, across, down = pixels.swapaxes(0, 1), c, b
    return pixels[:: -1 if down < 0 else 1, :: -1 if across < 0 else 1]


def annotate_video(seen: Seen, path: Path, out: Path) -> None:
    """Writes a copy of the video (MP4, H.264, no sound) with a box and a name at every face.

    Raises:
        PersonaError: the copy cannot be written.
    """
    av = _av()
    reader = FrameReader(path)
    try:
        with replacing(out, PRIVATE) as file, av.open(file.name, "w", format="mp4") as container:
            stream: Any = None
            for time_s, frame in reader:
                photo = reader.pixels(frame)
                # 4:2:0 needs even sides.
                photo = photo[: len(photo) // 2 * 2, : photo.shape[1] // 2 * 2]
                if stream is None:
                    stream = container.add_stream("libx264", rate=reader.rate)
                    stream.height, stream.width = photo.shape[:2]
                    stream.pix_fmt = "yuv420p"
                    stream.time_base = stream.codec_context.time_base = Fraction(1, 90_000)
                image = draw_marks(photo, list(_marks(seen, time_s)))
                copy = av.VideoFrame.from_image(image)
                # The size may change within a video.
                copy = copy.reformat(stream.width, stream.height, "yuv420p")
                copy.pts, copy.time_base = round(time_s * 90_000), Fraction(1, 90_000)
                container.mux(stream.encode(copy))
            if stream is not None:
                container.mux(stream.encode(None))
    except av.error.FFmpegError as error:
        raise PersonaError(f"--annotate {out} cannot be written: {error.strerror}") from None


def _marks(seen: Seen, time_s: float) -> Iterator[Mark]:
    for number, (track, sighting) in enumerate(seen.told, start=1):
        # A track keeps its last box until the next sample shows that it is gone.
        held_s = min(time_s, track.to_s) if time_s < track.to_s + seen.every_s else time_s
        box = track.at(held_s)
        if box is not None:
            yield mark_of(sighting, box, number)


def _av() -> Any:
    try:
        import av
    except ImportError:
        raise missing("videos need PyAV", "video") from None
    av.logging.set_level(av.logging.PANIC)
    return av

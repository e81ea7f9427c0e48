"""Videos of coloured squares, which eyes for colours take for faces."""

from __future__ import annotations

import stat
import struct
import wave
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from fake_eyes import FakeEyes, gallery, photo_of
from PIL import Image

from persona.data.align.spec import Crop, FoundFace
from persona.errors import PersonaError
from persona.gallery import Gallery, video
from persona.gallery.faces import SeenFace
from persona.gallery.video import annotate_video, recognise_video

SIDE, WIDTH, HEIGHT, RATE = 24, 160, 96, 10
RED, BLUE = (220, 0, 0), (0, 0, 220)
TEMPLATE = {RED: np.eye(8, dtype=np.float32)[0], BLUE: np.eye(8, dtype=np.float32)[2]}
Scene = Callable[[float], dict[tuple[int, int, int], tuple[int, int]]]
"""Time to where the corner of each square is."""


class ColourEyes(FakeEyes):
    """A square is a face; its colour, give or take the codec's, is its template."""

    small = False

    def find(self, photo: Any, *, shrink: int = 1) -> list[SeenFace]:
        if not isinstance(photo, np.ndarray):
            return super().find(photo)
        seen = []
        for colour, template in TEMPLATE.items():
            rows, columns = np.nonzero(np.abs(photo.astype(int) - colour).sum(axis=2) < 120)
            if len(rows) > SIDE:
                box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
                x0, y0, x1, y1 = map(float, box)
                crop = Crop(template.tobytes(), None, None)
                flaw = "too small: 24 px" if self.small else None
                seen.append(SeenFace(FoundFace((x0, y0, x1, y1), 1.0), crop, flaw))
        return sorted(seen, key=lambda one: one.face.box)


@pytest.fixture
def known(tmp_path: Path) -> Iterator[Gallery]:
    """Ruby is red; nobody knows blue."""
    with gallery(tmp_path / "g.db") as some:
        some.eyes = ColourEyes()  # type: ignore[assignment]
        some.enroll("Ruby", [photo_of(TEMPLATE[RED])])
        yield some


def film(path: Path, scene: Scene, seconds: float = 3.0, larger: int = 1) -> Path:
    height, width = larger * HEIGHT, larger * WIDTH
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.gop_size = 5
        for number in range(int(seconds * RATE)):
            photo = np.full((height, width, 3), 90, np.uint8)
            for colour, (x, y) in scene(number / RATE).items():
                photo[y : y + SIDE, x : x + SIDE] = colour
            frame = av.VideoFrame.from_ndarray(photo, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def both(time_s: float) -> dict[tuple[int, int, int], tuple[int, int]]:
    """Red walks to the right all the time, past blue, who leaves after 1 s."""
    places = {RED: (8 + int(40 * time_s), 40)}
    return places | ({BLUE: (60, 34)} if time_s < 1 else {})


def test_one_person_is_one_track(known: Gallery, tmp_path: Path) -> None:
    seen = recognise_video(known, film(tmp_path / "v.mp4", both), every_s=0.2)
    assert (seen.frames, seen.cut_off) == (15, False)
    assert seen.seconds == pytest.approx(2.9)
    red, blue = seen.tracks
    assert red.sighting is not None
    assert blue.sighting is not None
    assert (red.sighting.name, red.from_s) == ("Ruby", 0.0)
    assert red.to_s == pytest.approx(2.8)
    assert (blue.sighting.name, blue.sighting.nearest) == (None, "Ruby")
    assert blue.from_s == 0.0
    assert blue.to_s == pytest.approx(0.8)
    middle = red.at(1.1)  # between two samples
    assert middle is not None
    assert middle[0] == pytest.approx(8 + 40 * 1.1, abs=3)
    assert blue.at(1.1) is None


def test_a_cut_to_another_person_is_another_track(known: Gallery, tmp_path: Path) -> None:
    def cut(time_s: float) -> dict[tuple[int, int, int], tuple[int, int]]:
        return {RED if time_s < 1.5 else BLUE: (60, 40)}

    seen = recognise_video(known, film(tmp_path / "v.mp4", cut))
    assert [track.sighting and track.sighting.name for track in seen.tracks] == ["Ruby", None]


def test_who_comes_back_is_a_new_track(known: Gallery, tmp_path: Path) -> None:
    def away(time_s: float) -> dict[tuple[int, int, int], tuple[int, int]]:
        return {} if 0.5 < time_s < 2.2 else {RED: (60, 40)}

    seen = recognise_video(known, film(tmp_path / "v.mp4", away))
    assert [(round(t.from_s, 1), round(t.to_s, 1)) for t in seen.tracks] == [(0.0, 0.4), (2.2, 2.8)]


def test_a_track_without_a_usable_face_says_why(known: Gallery, tmp_path: Path) -> None:
    known.eyes.small = True  # type: ignore[attr-defined]
    (track,) = recognise_video(known, film(tmp_path / "v.mp4", lambda _: {RED: (9, 9)})).tracks
    assert track.sighting is not None
    assert track.sighting.refused == "too small: 24 px"
    assert len(track.boxes) == 15


def test_the_copy_has_boxes_and_every_frame(known: Gallery, tmp_path: Path) -> None:
    path, out = film(tmp_path / "v.mp4", both), tmp_path / "deep" / "copy.mp4"
    seen = recognise_video(known, path)
    annotate_video(seen, path, out)
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    with av.open(str(out)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 30
    green = [int((np.abs(f.astype(int) - (0, 200, 80)).sum(axis=2) < 100).sum()) for f in frames]
    assert min(green) > SIDE
    orange = [int((np.abs(f.astype(int) - (255, 170, 0)).sum(axis=2) < 120).sum()) for f in frames]
    assert orange[5] > SIDE > orange[20]
    assert [p.name for p in out.parent.iterdir()] == ["copy.mp4"]


def three_tracks(path: Path, default: int, cover: bool = False) -> Path:
    """A small grey film of one frame or all, then Ruby's, then a larger grey one."""
    with av.open(str(path), "w") as container:
        streams: list[Any] = []
        for number, larger in enumerate((1, 1, 2)):
            stream: Any = container.add_stream("mjpeg" if cover else "libx264", rate=RATE)
            stream.width, stream.height = larger * WIDTH, larger * HEIGHT
            stream.pix_fmt = "yuvj420p" if cover else "yuv420p"
            kind = av.stream.Disposition
            stream.disposition = kind.default if number == default else kind(0)
            if cover and number != 1:
                stream.disposition = kind.attached_pic
            streams.append(stream)
        for number, stream in enumerate(streams):
            for place in range(1 if number == 0 or (cover and number == 2) else 10):
                photo = np.full((stream.height, stream.width, 3), 90, np.uint8)
                if number == 1:
                    photo[40 : 40 + SIDE, 60 : 60 + SIDE] = RED
                frame = av.VideoFrame.from_ndarray(photo, format="rgb24")
                frame.pts, frame.time_base = place, Fraction(1, RATE)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("default", "frames", "names"),
    [(1, 10, ["Ruby"]), (2, 10, []), (0, 10, [])],
    ids=["the default", "the largest", "no poster"],
)
def test_the_main_track_is_looked_at(
    known: Gallery, tmp_path: Path, default: int, frames: int, names: list[str]
) -> None:
    seen = recognise_video(known, three_tracks(tmp_path / "v.mp4", default), every_s=0.05)
    assert seen.frames == frames
    assert [track.sighting and track.sighting.name for track in seen.tracks] == names


def test_a_cover_is_never_the_main_track(known: Gallery, tmp_path: Path) -> None:
    seen = recognise_video(known, three_tracks(tmp_path / "v.mp4", 1, cover=True), every_s=0.05)
    assert seen.frames == 10
    assert seen.tracks[0].sighting is not None
    assert seen.tracks[0].sighting.name == "Ruby"


Q = 1 << 16
MATRICES = {
    "as it is": (Q, 0, 0, Q),
    "left for right": (-Q, 0, 0, Q),
    "upside down": (Q, 0, 0, -Q),
    "half a turn": (-Q, 0, 0, -Q),
    "a quarter turn clockwise": (0, Q, -Q, 0),
    "a quarter turn back": (0, -Q, Q, 0),
    "rows for columns": (0, Q, Q, 0),
    "rows for columns, turned": (0, -Q, -Q, 0),
    "none": (0, 0, 0, 0),
}


@pytest.mark.parametrize("matrix", MATRICES.values(), ids=MATRICES)
def test_a_display_matrix_turns_and_mirrors(
    matrix: tuple[int, int, int, int], tmp_path: Path
) -> None:
    """Each corner goes where the matrix takes it."""
    data = bytearray(film(tmp_path / "v.mp4", lambda _: {RED: (0, 0)}, 0.2).read_bytes())
    place = data.index(struct.pack(">9i", Q, 0, 0, 0, Q, 0, 0, 0, 1 << 30), data.index(b"tkhd"))
    a, b, c, d = matrix
    data[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    (tmp_path / "v.mp4").write_bytes(data)
    reader = video.FrameReader(tmp_path / "v.mp4")
    pixels = reader.pixels(next(iter(reader))[1])
    a, b, c, d = matrix if any(matrix) else MATRICES["as it is"]
    assert pixels.shape == ((HEIGHT, WIDTH, 3) if a else (WIDTH, HEIGHT, 3))
    # The red corner was at the left and above: it is there where both axes point away from it.
    right, below = (a or c) < 0, (d or b) < 0
    rows, columns = np.nonzero(np.abs(pixels.astype(int) - RED).sum(axis=2) < 120)
    assert (columns.mean() > pixels.shape[1] / 2) == right
    assert (rows.mean() > pixels.shape[0] / 2) == below


def test_a_still_picture_of_a_kind_that_only_ffmpeg_knows(known: Gallery, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"PAM")
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "a")
    with pytest.raises(PersonaError, match="a is a still picture of a kind that is not read"):
        recognise_video(known, tmp_path / "a")


def test_no_face(known: Gallery, tmp_path: Path) -> None:
    seen = recognise_video(known, film(tmp_path / "v.mp4", lambda _: {}, 1.0))
    assert (seen.tracks, seen.frames) == ((), 5)


def test_a_cut_video_is_looked_at_as_far_as_it_goes(known: Gallery, tmp_path: Path) -> None:
    whole = film(tmp_path / "v.mkv", both).read_bytes()
    (tmp_path / "cut.mkv").write_bytes(whole[: len(whole) * 6 // 10])
    seen = recognise_video(known, tmp_path / "cut.mkv")
    assert 0 < seen.seconds < 2.5
    assert seen.cut_off
    assert seen.tracks[0].sighting is not None
    assert seen.tracks[0].sighting.name == "Ruby"


def test_the_clock_jumps_back_and_the_frames_grow(known: Gallery, tmp_path: Path) -> None:
    parts = [film(tmp_path / "a.ts", both), film(tmp_path / "b.ts", both, larger=2)]
    (tmp_path / "both.ts").write_bytes(b"".join(part.read_bytes() for part in parts))
    seen = recognise_video(known, tmp_path / "both.ts")
    assert seen.seconds == pytest.approx(6, abs=0.3)
    ruby = seen.tracks[0]
    assert ruby.sighting is not None
    assert ruby.sighting.name == "Ruby"
    assert ruby.from_s < 0.5
    assert ruby.to_s > 5.5
    annotate_video(seen, tmp_path / "both.ts", tmp_path / "copy.mp4")
    with av.open(str(tmp_path / "copy.mp4")) as container:
        assert {(f.width, f.height) for f in container.decode(video=0)} == {(WIDTH, HEIGHT)}


def test_no_other_file_is_opened(
    known: Gallery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    film(Path("v.mp4"), both)
    Path("list.mp4").write_text("ffconcat version 1.0\nfile v.mp4\n")
    Path("concat:v.mp4").write_text("no video")
    for name in ("list.mp4", "concat:v.mp4"):
        with pytest.raises(PersonaError, match="is no photo or video that can be read"):
            recognise_video(known, Path(name))
    Path("v.mp4").rename("file:gone.mp4")
    assert recognise_video(known, Path("file:gone.mp4")).frames == 15


def test_what_is_no_video(known: Gallery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = film(tmp_path / "v.mp4", both)
    (tmp_path / "cut.mp4").write_bytes(whole.read_bytes()[:2000])  # its index is at the end
    (tmp_path / "text.mp4").write_text("hello " * 100)
    (tmp_path / "empty.mp4").write_bytes(b"")
    with wave.open(str(tmp_path / "sound.wav"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(8000))
    for name in ("cut.mp4", "text.mp4", "empty.mp4"):
        with pytest.raises(PersonaError, match=f"{name} is no photo or video that can be read"):
            recognise_video(known, tmp_path / name)
    with pytest.raises(PersonaError, match=r"sound\.wav has no pictures: it is sound alone"):
        recognise_video(known, tmp_path / "sound.wav")
    monkeypatch.setattr(video, "MAX_WHOLE", 10_000)
    with pytest.raises(PersonaError, match="frames of 160 x 96 px are over the limit"):
        recognise_video(known, whole)

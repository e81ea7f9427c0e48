"""AVIFs whose boxes claim another size than the pictures in them have."""

from __future__ import annotations

import io
import struct
import time

import numpy as np
import pytest
from helpers import decode_photo
from PIL import Image

from persona.data.align import avif
from persona.data.align.avif import coded_pixels, decoded_pixels
from persona.data.align.decode import EncodedPhoto
from persona.errors import SkipPhoto


def encode(side: tuple[int, int], mode: str = "RGB", frames: int = 1) -> bytes:
    """An AVIF of noise that Pillow writes."""
    rng = np.random.default_rng(0)
    pictures = [
        Image.fromarray(rng.integers(0, 256, (9, 7, len(mode)), dtype=np.uint8), mode).resize(side)
        for _ in range(frames)
    ]
    buffer = io.BytesIO()
    more = {"save_all": True, "append_images": pictures[1:]} if frames > 1 else {}
    pictures[0].save(buffer, "AVIF", speed=10, **more)
    return buffer.getvalue()


def box(name: bytes, *content: bytes) -> bytes:
    whole = b"".join(content)
    return struct.pack(">I4s", len(whole) + 8, name) + whole


def content(data: bytes, name: bytes) -> bytes:
    """A box of a small file, found by its name."""
    at = data.index(name) - 4
    return data[at : at + int.from_bytes(data[at : at + 4], "big")]


def coded(data: bytes) -> bytes:
    """The AV1 stream of a file with one picture."""
    return content(data, b"mdat")[8:]


def grid(size: tuple[int, int], tiles: list[bytes], claimed: tuple[int, int]) -> bytes:
    """A row of tiles; each is said to be `claimed` px."""
    picture = encode((64, 64))
    columns = struct.pack(">BBBBHH", 0, 0, 0, len(tiles) - 1, *size)
    bodies = [columns, *tiles]
    names = [b"grid", *[b"av01"] * len(tiles)]
    entries = [
        box(b"infe", struct.pack(">BxxxHH4sx", 2, number, 0, name))
        for number, name in enumerate(names, 1)
    ]
    shared = [content(picture, name) for name in (b"pixi", b"av1C", b"colr")]
    sizes = [box(b"ispe", struct.pack(">III", 0, *each)) for each in (size, claimed)]
    held = struct.pack(">II", 0, len(names))
    for number in range(1, len(names) + 1):
        held += struct.pack(">HB4B", number, 4, 4 if number == 1 else 5, 1, 0x82, 3)
    reference = struct.pack(">HH", 1, len(tiles)) + b"".join(
        struct.pack(">H", number) for number in range(2, len(names) + 1)
    )

    def meta(start: int) -> bytes:
        places, at = struct.pack(">IBBH", 0, 0x44, 0, len(names)), start
        for number, body in enumerate(bodies, 1):
            places += struct.pack(">HHHII", number, 0, 1, at, len(body))
            at += len(body)
        return box(
            b"meta",
            *(bytes(4), content(picture, b"hdlr"), box(b"pitm", struct.pack(">IH", 0, 1))),
            *(box(b"iloc", places), box(b"iinf", struct.pack(">IH", 0, len(names)), *entries)),
            *(box(b"iref", bytes(4), box(b"dimg", reference)),),
            box(b"iprp", box(b"ipco", *shared, *sizes), box(b"ipma", held)),
        )

    head = content(picture, b"ftyp")
    start = len(head) + len(meta(0)) + 8
    return head + meta(start) + box(b"mdat", *bodies)


@pytest.mark.parametrize(
    ("mode", "frames", "pictures"), [("RGB", 1, 1), ("RGBA", 1, 2), ("RGB", 3, 1), ("RGBA", 3, 2)]
)
def test_what_is_sound_is_read(mode: str, frames: int, pictures: int) -> None:
    data = encode((150, 90), mode, frames)
    assert decoded_pixels(data) == pictures * 150 * 90
    assert decode_photo(data).size == (150, 90)
    at = data.index(b"mdat") - 4
    open_ended = data[:at] + bytes(4) + data[at + 4 :]  # a length of 0: to the end of the file
    assert decoded_pixels(open_ended) == pictures * 150 * 90


def test_a_grid_is_read() -> None:
    data = grid((128, 64), [coded(encode((64, 64)))] * 2, (64, 64))
    assert decoded_pixels(data) == 2 * 64 * 64
    assert decode_photo(data).size == (128, 64)


def test_a_picture_that_is_larger_than_it_claims_is_not_decoded() -> None:
    data = encode((640, 640))
    size = content(data, b"ispe")
    for claimed, refused in (((320, 320), False), ((319, 320), True), ((1, 1), True)):
        lie = data.replace(size, box(b"ispe", struct.pack(">III", 0, *claimed)))
        if refused:
            with pytest.raises(SkipPhoto, match="an AVIF that is damaged"):
                EncodedPhoto(lie)
        else:
            assert EncodedPhoto(lie).size == claimed


def test_a_sequence_that_is_larger_than_it_claims_is_not_decoded() -> None:
    data = encode((640, 640), frames=2)
    at = data.index(b"tkhd") + 4 + 88
    assert struct.unpack_from(">II", data, at) == (640 << 16, 640 << 16)
    with pytest.raises(SkipPhoto, match="an AVIF that is damaged"):
        EncodedPhoto(data[:at] + struct.pack(">II", 64 << 16, 64 << 16) + data[at + 8 :])


def test_tiles_that_are_larger_than_they_claim_are_not_decoded() -> None:
    with pytest.raises(SkipPhoto, match="an AVIF that is damaged"):
        EncodedPhoto(grid((128, 64), [coded(encode((640, 640)))] * 2, (64, 64)))


def test_tiles_of_too_many_pixels_are_not_decoded() -> None:
    """A tile may claim its size rightly and be far larger than what is shown of it."""
    tiles = grid((20, 20), [coded(encode((640, 640)))], (640, 640))
    with pytest.raises(SkipPhoto, match=r"an AVIF that is made of 0 megapixels takes too long"):
        EncodedPhoto(tiles, max_pixels=100_000)


class Written:
    """Bits, written as `_Bits` reads them."""

    def __init__(self) -> None:
        self.bits = ""

    def put(self, *values: tuple[int, int]) -> Written:
        for value, count in values:
            self.bits += f"{value:0{count}b}" if count else ""
        return self

    def obu(self, kind: int) -> bytes:
        body = self.bits + "0" * (-len(self.bits) % 8) + "0" * 64
        data = int(body, 2).to_bytes(len(body) // 8, "big")
        return bytes((kind << 3 | 2, len(data))) + data


@pytest.mark.parametrize("timed", [False, True])
@pytest.mark.parametrize("numbered", [False, True])
@pytest.mark.parametrize("own", [False, True])
def test_a_frame_may_give_itself_another_size(timed: bool, numbered: bool, own: bool) -> None:
    header = Written().put((0, 3), (0, 1), (0, 1), (timed, 1))
    if timed:
        header.put((1, 32), (1, 32), (0, 1), (1, 1), (9, 5), (1, 32), (9, 5), (5, 5))
    header.put((1, 1), (0, 5), (0, 12), (8, 5), (1, 1))
    if timed:
        header.put((1, 1), (7, 10), (7, 10), (0, 1))
    header.put((1, 1), (9, 4), (13, 4), (13, 4), (99, 14), (49, 14), (numbered, 1))
    if numbered:
        header.put((2, 4), (1, 3))
    header.put((0, 3), (0, 4), (1, 1), (0, 2), (1, 1), (1, 1))
    frame = Written().put((0, 1), (0, 2), (1, 1), (3, 6 * timed), (0, 1), (1, 1), (1, 1))
    frame.put((5, 6 * numbered), (own, 1))
    stream = header.obu(1) + frame.obu(6)
    assert coded_pixels(stream) == ((1 << 28) if own else 100 * 50)
    assert coded_pixels(header.obu(1) + 32 * Written().put((1, 1)).obu(3)) == 0
    with pytest.raises(ValueError, match="too many frames"):
        coded_pixels(header.obu(1) + 33 * frame.obu(6))


def test_what_is_damaged_is_said_at_once() -> None:
    data = encode((64, 48), "RGBA")
    rng = np.random.default_rng(0)
    for _ in range(400):
        changed = bytearray(data)
        place = int(rng.integers(32, 500))
        changed[place] ^= 1 << int(rng.integers(8))
        try:
            assert EncodedPhoto(bytes(changed)).size[0] < 1 << 16
        except SkipPhoto as skipped:
            assert "unreadable" in str(skipped)


def test_a_file_that_would_take_long_to_read_is_refused_at_once() -> None:
    head = box(b"ftyp", b"avif", bytes(4), b"avifmif1")
    pitm = box(b"pitm", struct.pack(">IH", 0, 1))
    places = struct.pack(">IHH", 0, 0, 16_000) + struct.pack(">HHH", 1, 0, 0xFFFF) * 16_000
    owners = struct.pack(">II", 0, 1_000_000) + struct.pack(">HB", 1, 0) * 1_000_000
    padding = box(b"free") * 1_000_000
    item = box(
        b"iinf",
        struct.pack(">IH", 0, 1),
        box(b"infe", struct.pack(">IHH4sx", 2 << 24, 1, 0, b"av01")),
    )
    metas = {
        "extents": box(b"iloc", places),
        "properties": box(b"iprp", box(b"ipco"), box(b"ipma", owners)),
        "boxes": padding,
        "tiles": box(
            b"iref", bytes(4), box(b"dimg", struct.pack(">HH", 1, 0xFFFF), bytes(131_070))
        ),
    }
    started = time.process_time()
    for inside in metas.values():
        data = head + box(b"meta", bytes(4), pitm, item, inside)
        with pytest.raises(SkipPhoto, match="an AVIF that is damaged"):
            EncodedPhoto(data)
    tracks = box(b"moov", *[box(b"trak", padding[:80_000])] * 100)
    with pytest.raises(SkipPhoto, match="an AVIF that is damaged"):
        EncodedPhoto(head + tracks)
    with pytest.raises(ValueError, match="too many parts"):
        coded_pixels(b"\x7a\0" * 1_000_000)
    assert time.process_time() - started < 5


@pytest.fixture
def few_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails a test that reads more numbers than a small file has."""
    take, taken = avif._Table.take, 0

    def counted(table: avif._Table, size: int) -> int:
        nonlocal taken
        taken += 1
        assert taken < 10 * avif.MAX_ENTRIES, "the work is not bounded by the file"
        return take(table, size)

    monkeypatch.setattr(avif._Table, "take", counted)


def meta(*inside: bytes) -> bytes:
    """A file without pictures, but with these tables."""
    pitm = box(b"pitm", struct.pack(">IH", 0, 1))
    return box(b"ftyp", b"avif", bytes(4), b"avifmif1") + box(b"meta", bytes(4), pitm, *inside)


@pytest.mark.usefixtures("few_reads")
def test_a_table_does_not_read_beyond_its_box() -> None:
    greedy = box(b"dimg", struct.pack(">HH", 1, 20_000)) * (avif.MAX_BOXES - 1)
    with pytest.raises(ValueError, match="truncated"):
        decoded_pixels(meta(box(b"iref", bytes(4), greedy)) + bytes(40_000))
    places = struct.pack(">IHH", 0, 0, 20_000)
    with pytest.raises(ValueError, match="truncated"):
        decoded_pixels(meta(box(b"iloc", places)) + bytes(200_000))


@pytest.mark.usefixtures("few_reads")
def test_the_tables_of_a_file_share_one_limit() -> None:
    many = box(b"dimg", struct.pack(">HH", 1, 10_000), bytes(20_000)) * 40
    with pytest.raises(ValueError, match="too many entries"):
        decoded_pixels(meta(box(b"iref", bytes(4), many)))
    owners = struct.pack(">II", 0, 10_000) + struct.pack(">HB", 1, 0) * 10_000
    with pytest.raises(ValueError, match="too many entries"):
        decoded_pixels(meta(box(b"iprp", box(b"ipco"), box(b"ipma", owners) * 40)))

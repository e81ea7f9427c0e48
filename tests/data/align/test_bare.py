"""Metadata cost no pixels, and what would take a decoder too long does not reach it.

Files are put together from bytes here: no encoder writes them.
"""

from __future__ import annotations

import io
import re
import struct
import time
import zlib
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from helpers import decode_photo
from PIL import Image, ImageOps, PngImagePlugin

from persona.data.align.bare import is_animated_gif
from persona.data.align.decode import EncodedPhoto, as_crop
from persona.data.samples import decode_into
from persona.errors import SkipPhoto

ORIENTATION = 0x0112
KINDS = ("JPEG", "PNG", "WebP", "BMP", "TIFF", "GIF", "AVIF")


def smooth(width: int = 150, height: int = 120) -> Image.Image:
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 7, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


PICTURE = smooth()


def encode(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


JPEG, PNG = encode(PICTURE, quality=95), encode(PICTURE, "PNG")


def differs(data: bytes, image: Image.Image = PICTURE) -> float:
    """Mean difference of a decoded file from the picture, of 255."""
    decoded = np.asarray(decode_photo(data), float)
    assert decoded.shape == (image.height, image.width, 3)
    return float(np.abs(decoded - np.asarray(image.convert("RGB"), float)).mean())


def refusal(data: bytes) -> str:
    """Why a file is refused; that it takes long is a failure."""
    start = time.process_time()
    with pytest.raises(SkipPhoto) as skipped:
        decode_photo(data)
    assert time.process_time() - start < 1
    return str(skipped.value).removeprefix("unreadable: ")


def segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def chunk(name: bytes, content: bytes, damage: int = 0) -> bytes:
    checksum = zlib.crc32(name + content) ^ damage
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)


def png(samples: npt.NDArray[np.uint16], colour: int) -> bytes:
    """A PNG of 16 bits a sample."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    header = struct.pack(">IIBBBBB", samples.shape[1], samples.shape[0], 16, colour, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return PNG[:8] + b"".join(chunk(*part) for part in parts)


# --- metadata --------------------------------------------------------------------------------

HOSTILE_EXIF = b"II*\0\xff\xff\xff\xff"


@pytest.mark.parametrize(
    "metadata",
    [
        segment(0xE1, b"Exif\0\0" + b"\xff\xda\xff\xd9" * 200),
        segment(0xE1, b"Exif\0\0" + HOSTILE_EXIF),
        segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation='9'/>"),
        segment(0xE2, b"ICC_PROFILE\0\1\5abc") * 2,
        segment(0xE2, b"MPF\0II*\0\x08\0\0\0\xff\xff"),
        segment(0xED, b"Photoshop 3.0\x008BIM\4"),
        segment(0xFE, b"") * 9_000,
    ],
)
@pytest.mark.parametrize("mode", ["RGB", "CMYK"])
def test_no_metadata_of_a_jpeg_cost_its_pixels(metadata: bytes, mode: str) -> None:
    data = encode(PICTURE.convert(mode), quality=95)
    assert differs(data[:2] + metadata + data[2:]) < 2


@pytest.mark.parametrize(
    "metadata",
    [
        chunk(b"eXIf", HOSTILE_EXIF),
        chunk(b"eXIf", b"\0\x08\0\2"),
        chunk(b"zTXt", b"prompt\0\0" + zlib.compress(bytes(50_000_000))),
        chunk(b"zTXt", b"Raw profile type exif\0\0no zlib"),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0no zlib"),
        chunk(b"iCCP", b"profile\0\0" + zlib.compress(bytes(50_000_000))),
        chunk(b"iCCP", b"profile\0\7"),
        chunk(b"tEXt", b"prompt\0" + bytes(3_000_000)),
        chunk(b"tEXt", b"prompt\0abc", damage=1),
        chunk(b"tRNS", b"", damage=1),
        chunk(b"pHYs", b"1", damage=1),
        chunk(b"acTL", b"\xff" * 8) + chunk(b"fcTL", b"\xff" * 26),
    ],
)
def test_no_metadata_of_a_png_cost_its_pixels(metadata: bytes) -> None:
    for place in (33, len(PNG) - 12):  # behind the header, and behind the pixels
        assert differs(PNG[:place] + metadata + PNG[place:]) == 0


@pytest.mark.parametrize("kind", ["WebP", "TIFF", "AVIF"])
def test_a_damaged_exif_costs_no_pixels(kind: str) -> None:
    exif = Image.Exif()
    exif[0x010E] = "a picture"
    quality = {} if kind == "TIFF" else {"quality": 95}
    data = encode(PICTURE, kind, exif=exif, **quality)
    start = data.index(b"a picture") - 24
    for place in range(start, start + 24):
        if kind != "TIFF":  # whose directory of pixels is there too
            assert differs(data[:place] + b"\xff" + data[place + 1 :]) < 4
    assert differs(data) < 4


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WebP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_is_read_from_any_kind(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(encode(PICTURE, exif=exif))))
    quality = {} if kind in {"PNG", "TIFF"} else {"quality": 95}
    assert differs(encode(PICTURE, kind, exif=exif, **quality), upright) < 4


@pytest.mark.parametrize("zipped", [False, True])
def test_the_orientation_in_the_texts_of_a_png(zipped: bool) -> None:
    turned = PICTURE.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    raw = exif.tobytes()
    texts = PngImagePlugin.PngInfo()
    texts.add_text("Raw profile type exif", f"\nexif\n{len(raw):8}\n{raw.hex()}\n", zip=zipped)
    assert differs(encode(turned, "PNG", pnginfo=texts)) == 0
    texts = PngImagePlugin.PngInfo()
    texts.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="6"/>', zip=zipped)
    assert differs(encode(turned, "PNG", pnginfo=texts)) == 0


@pytest.mark.parametrize(
    "packed",
    [
        chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(bytes(3_000_000))),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(bytes(3_000_000))),
    ],
)
def test_only_the_first_text_of_a_kind_is_unpacked(
    packed: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    unpacked = 0
    begin = zlib.decompressobj

    def counted() -> object:
        nonlocal unpacked
        unpacked += 1
        return begin()

    monkeypatch.setattr(zlib, "decompressobj", counted)
    assert differs(PNG[:33] + packed * 100 + PNG[33:]) == 0
    assert unpacked == 1


# --- samples ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA"])
def test_every_kind_is_read(kind: str, mode: str) -> None:
    if (kind, mode) in {("JPEG", "P"), ("JPEG", "RGBA"), ("WebP", "P"), ("AVIF", "P")}:
        return
    image = PICTURE.convert(mode)
    assert differs(encode(image, kind, quality=95), image) < (15 if kind == "GIF" else 4)


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "I;16", "F"])
def test_tiffs_as_programs_write_them(compression: str, mode: str) -> None:
    image = PICTURE if mode in {"RGB", "CMYK"} else PICTURE.convert("L")
    stored = image if mode in {"RGB", "L"} else image.convert(mode)
    if mode == "I;16":
        stored = Image.fromarray(np.asarray(image, np.uint16) * 257)
    assert differs(encode(stored, "TIFF", compression=compression), image) < 1


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize(
    ("colour", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)], ids=["L", "RGB", "LA", "RGBA"]
)
def test_samples_of_16_bits_are_scaled_by_those_they_use(
    bits: int, colour: int, channels: int
) -> None:
    image = PICTURE if channels > 2 else PICTURE.convert("L")
    eight = np.asarray(image, np.uint32).reshape(image.height, image.width, -1)
    most = (1 << bits) - 1
    eight[0, 0] = 255  # the range is told by what is brightest
    samples = (eight * most // 255).astype(np.uint16)
    for opaque in {most, 65535}:
        alpha = np.full((*samples.shape[:2], channels - samples.shape[2]), opaque, np.uint16)
        data = png(np.concatenate([samples, alpha], axis=2), colour)
        assert differs(data, Image.fromarray(eight.squeeze().astype(np.uint8))) < 1


def test_a_tiff_of_12_bits_in_16() -> None:
    samples = (np.asarray(PICTURE, np.uint32) * 4095 // 255).astype("<u2")
    tags = {256: 150, 257: 120, 258: 16, 259: 1, 262: 2, 273: 8, 277: 3, 278: 120, 279: 108_000}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    place = 8 + samples.nbytes
    data = struct.pack("<2sHI", b"II", 42, place) + samples.tobytes()
    data += struct.pack("<H", len(tags)) + entries + bytes(4)
    assert differs(data) < 1


def test_a_bmp_without_alpha_in_its_fourth_byte_is_opaque() -> None:
    masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    header = struct.pack("<IiiHHIIiiII", 56, 150, -120, 1, 32, 3, 0, 0, 0, 0, 0) + masks
    head = struct.pack("<2sIHHI", b"BM", 70 + 4 * 150 * 120, 0, 0, 70) + header
    image = PICTURE.convert("RGBA")
    for alpha, least, most in ((0, 0, 0), (255, 0, 0), (50, 20, 255)):  # one that is used counts
        image.putalpha(alpha)
        assert least <= differs(head + image.tobytes("raw", "BGRA")) <= most


# --- animations, and files that end early ----------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "WebP", "GIF", "AVIF"])
def test_of_an_animation_the_first_frame_is_read(kind: str) -> None:
    frames = [PICTURE, PICTURE.rotate(90), PICTURE.rotate(180)]
    options = {} if kind in {"PNG", "GIF"} else {"quality": 95}
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert differs(data) < (15 if kind == "GIF" else 4)
    assert is_animated_gif(data) == (kind == "GIF")


def test_a_gif_of_one_frame_is_not_animated() -> None:
    assert not is_animated_gif(encode(PICTURE, "GIF"))
    assert not is_animated_gif(encode(PICTURE, "GIF", comment=b"x" * 999)[:-3])


@pytest.mark.parametrize("options", [{}, {"progressive": True}], ids=["baseline", "progressive"])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("end", [b"", b"\xff", bytes(5000)], ids=["none", "half", "zeros"])
def test_a_jpeg_without_its_end_mark_is_mended(
    options: dict[str, bool], mode: str, end: bytes
) -> None:
    data = encode(PICTURE.convert(mode), "JPEG", quality=95, **options)
    mended = EncodedPhoto(data[:-2] + end).decode()
    assert mended.mended == "JPEG without its end mark"
    np.testing.assert_array_equal(np.asarray(mended.image), np.asarray(decode_photo(data)))
    assert EncodedPhoto(data).decode().mended is None
    assert refusal(data[:-60] + end) == "a JPEG that is cut short"


def test_a_progressive_jpeg_without_its_last_scan_is_cut_short() -> None:
    data = encode(PICTURE, progressive=True)
    tables = data.rindex(b"\xff\xc4", 0, data.rindex(b"\xff\xda"))
    assert refusal(data[:tables]) == "a JPEG that is cut short"


@pytest.mark.parametrize("cut", [12, 16])
def test_a_png_without_its_end_is_mended(cut: int) -> None:
    mended = EncodedPhoto(PNG[:-cut]).decode()
    assert mended.mended == "PNG without its end mark"
    np.testing.assert_array_equal(np.asarray(mended.image), np.asarray(PICTURE))
    assert refusal(PNG[:-60]) == "a PNG that is cut short"


# --- what takes too long ---------------------------------------------------------------------


def scans(count: int, side: int = 4000, **options: object) -> bytes:
    """A progressive JPEG whose last scan comes so many times more."""
    data = encode(Image.new("RGB", (side, side)), "JPEG", progressive=True, **options)
    return data[:-2] + data[data.rindex(b"\xff\xda") : -2] * count + data[-2:]


def test_a_jpeg_of_many_scans_is_refused_before_it_is_decoded() -> None:
    wanted = "a JPEG of 4000 x 4000 px in over 100 scans takes too long: save it anew"
    bomb = scans(4000)
    assert refusal(bomb) == wanted
    assert refusal(bomb[:-2]) == wanted
    exif = segment(0xE1, b"Exif\0\0" + b"\xff\xd9" * 99)
    assert refusal(bomb[:2] + exif + bomb[2:]) == wanted
    # Nor does an end mark within a comment hide what comes after it.
    place = bomb.rindex(b"\xff\xda") - 1000
    place = bomb.index(b"\xff\xda", place)
    assert refusal(bomb[:place] + segment(0xFE, b"\xff\xd9") + bomb[place:]) == wanted
    assert refusal(scans(90)) == wanted.replace("over 100", "100")  # with ten of its own


def test_sound_progressive_jpegs_are_read() -> None:
    assert decode_photo(encode(smooth(1500, 1000), progressive=True)).size == (1500, 1000)
    assert decode_photo(scans(90, 160)).size == (160, 160)
    # What phones append, such as a film, is no scan.
    trailing = encode(PICTURE, progressive=True, quality=95) + b"\xff\xda" * 100_000
    assert differs(trailing) < 2


def test_a_crop_of_many_scans_is_refused_wherever_it_is_read() -> None:
    bomb = scans(2000, 160)
    assert as_crop(bomb, 160) is None
    for crop in (bomb, memoryview(bomb)):
        with pytest.raises(ValueError, match="too many scans"):
            decode_into(crop, np.empty((160, 160, 3), np.uint8))
    sound = encode(smooth(160, 160), progressive=True)
    assert as_crop(sound, 160) == sound
    decode_into(sound, np.empty((160, 160, 3), np.uint8))


@pytest.mark.parametrize(
    ("frame", "bits", "kind"),
    [
        (0xC0, 12, "12-bit JPEG"),
        (0xC1, 12, "12-bit JPEG"),
        (0xC3, 8, "lossless JPEG"),
        (0xC5, 8, "hierarchical JPEG"),
        (0xF7, 8, "JPEG-LS"),
    ],
)
def test_jpegs_that_no_decoder_reads_are_named(frame: int, bits: int, kind: str) -> None:
    place = JPEG.index(b"\xff\xc0")
    data = JPEG[: place + 1] + bytes([frame]) + JPEG[place + 2 : place + 4] + bytes([bits])
    wanted = f"{kind}, which is not supported: save it as 8-bit JPEG"
    assert refusal(data + JPEG[place + 5 :]) == wanted


def gif_of_blocks(comments: bytes = b"!\xfe" + b"\1x" * 2_000_000 + b"\0") -> bytes:
    data = encode(PICTURE, "GIF")
    table = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    return data[:table] + comments + data[table:]


def bmp_in_run_lengths() -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, 9000, 9000, 1, 8, 1, 0, 0, 0, 256, 0)
    head = struct.pack("<2sIHHI", b"BM", 0, 0, 0, 14 + 40 + 1024)
    return head + header + bytes(1024) + b"\0\0" * 9000 + b"\0\1"


def tiff(**changes: int) -> bytes:
    """A grey TIFF whose strips all lie in one place."""
    tags = {"width": 9000, "length": 9000, "bits": 8, "compression": 1, "photometric": 1}
    tags |= {"offsets": 8, "samples": 1, "rows": 1, "counts": 9} | changes
    numbers = {"width": 256, "length": 257, "bits": 258, "compression": 259, "photometric": 262}
    numbers |= {"offsets": 273, "samples": 277, "rows": 278, "counts": 279}
    numbers |= {"tile_width": 322, "tile_length": 323, "reduced": 254, "strips": 273}
    entries = sorted(
        struct.pack("<HHII", numbers[name], 4, value if name == "strips" else 1, value)
        for name, value in tags.items()
        if not (name == "offsets" and "strips" in tags)
    )
    strips = bytes(8 * changes.get("strips", 0))
    return (
        struct.pack("<2sHIH", b"II", 42, 8, len(entries)) + b"".join(entries) + bytes(68) + strips
    )


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda: JPEG[:2] + segment(0xFE, b"") * 500_000 + JPEG[2:], "a JPEG of over 10,000 seg"),
        (lambda: JPEG[:2] + b"\xff" * 30_000_000, "a JPEG that is cut short"),
        (
            lambda: scans(90)[:-2] + b"\xff" * 5_000_000 + b"\0",
            "a JPEG of 4000 x 4000 px in 100 sc",
        ),
        (lambda: PNG[:33] + chunk(b"tEXt", b"") * 500_000 + PNG[33:], "a PNG of over 200,000 ch"),
        (gif_of_blocks, "a GIF of over 200,000 blocks"),
        (lambda: gif_of_blocks(b"!\xfe\0" * 5_000_000), "a GIF of over 200,000 blocks"),
        (
            lambda: gif_of_blocks((b"!\xfe" + b"\1x" * 150_000 + b"\0") * 20),
            "a GIF of over 200,000 blocks",
        ),
        (lambda: JPEG[:-2] + segment(0xFE, b"") * 5_000_000, "a JPEG of over 10,000 segments"),
        (lambda: JPEG[:-2] + b"\xff\x01" * 5_000_000, "a JPEG of over 10,000 segments"),
        (bmp_in_run_lengths, "a BMP in run-length compression of over 2 megapixels or 1 MB"),
        (lambda: tiff(compression=50000), "a TIFF in ZSTD compression, which is not supported"),
        (lambda: tiff(compression=3), "a TIFF in CCITT compression, which is not supported"),
        (lambda: tiff(compression=77), r"a TIFF in an unknown \(77\) compression"),
        (lambda: tiff(strips=500_000), "a TIFF of over 200,000 strips"),
        (lambda: tiff(tile_width=60_000, tile_length=60_000), "a TIFF that is damaged"),
        (lambda: tiff(width=60_000, length=60_000), "60000 x 60000 px is over the limit"),
        (lambda: tiff(reduced=1), "camera raw, which is not supported"),
    ],
)
def test_what_takes_too_long_is_refused_within_a_second(
    build: Callable[[], bytes], reason: str
) -> None:
    assert re.match(reason, refusal(build()))


def test_what_takes_too_long_is_no_crop_and_no_film() -> None:
    start = time.process_time()
    sound = encode(smooth(160, 160))
    assert as_crop(sound[:-2] + segment(0xFE, b"") * 9_000 + sound[-2:], 160) == sound
    assert as_crop(sound[:-2] + segment(0xFE, b"") * 5_000_000 + sound[-2:], 160) is None
    assert not is_animated_gif(gif_of_blocks(b"!\xfe\0" * 5_000_000))
    assert time.process_time() - start < 1


def test_the_canvas_of_a_gif_or_webp_counts() -> None:
    gif = bytearray(encode(PICTURE, "GIF"))
    gif[6:10] = struct.pack("<HH", 60_000, 60_000)
    assert refusal(bytes(gif)).startswith("60000 x 60000 px is over the limit")
    webp = encode(PICTURE.convert("RGBA"), "WebP", exif=b"Exif\0\0" + HOSTILE_EXIF)
    place = webp.index(b"VP8X") + 12
    large = webp[:place] + (16_000).to_bytes(3, "little") * 2 + webp[place + 6 :]
    assert refusal(large).startswith("16001 x 16001 px is over the limit")

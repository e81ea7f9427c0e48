from __future__ import annotations

import io
import os
import pickle
import pickletools
import struct
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import NO_ALIGN, jpeg
from PIL import Image

from persona.data.pack import pack_photos
from persona.data.raw import bins, open_dataset
from persona.errors import PersonaError, SkipPhoto

SAME = [place % 2 == 0 for place in range(20)]
PHOTOS = [jpeg(number) for number in range(40)]


def write(tmp_path: Path, data: bytes) -> str:
    (tmp_path / "lfw.bin").write_bytes(data)
    return f"bin:{tmp_path / 'lfw.bin'}"


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("as_array", [False, True])
def test_files_of_any_protocol(tmp_path: Path, protocol: int, as_array: bool) -> None:
    photos = [np.frombuffer(p, np.uint8) for p in PHOTOS] if as_array else PHOTOS
    name = write(tmp_path, pickle.dumps((photos, SAME), protocol))
    dataset = open_dataset(name, tmp_path)
    index = dataset.index()
    assert [dataset.read(photo) for photo in index.photos] == PHOTOS


def fortran(photo: bytes) -> np.ndarray:
    return np.frombuffer(photo, np.uint8).reshape(-1, 1).T


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "kind",
    [
        bytearray,
        np.bytes_,
        np.void,
        np.array,
        lambda photo: np.frombuffer(bytearray(photo), np.uint8),
        lambda photo: np.frombuffer(photo, np.uint8).reshape(-1, 1),
        lambda photo: np.frombuffer(photo, np.uint8).reshape(1, -1),
        lambda photo: np.repeat(np.frombuffer(photo, np.uint8), 2)[::2],
        fortran,
    ],
)
def test_photos_of_any_type(tmp_path: Path, kind, protocol: int) -> None:
    name = write(tmp_path, pickle.dumps(([kind(p) for p in PHOTOS], SAME), protocol))
    dataset = open_dataset(name, tmp_path)
    assert [dataset.read(photo) for photo in dataset.index().photos] == PHOTOS


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("kind", [np.bool_, np.uint8, ">i4", np.int64, np.float32, object])
def test_truths_of_any_type(tmp_path: Path, kind, protocol: int) -> None:
    column = np.array(SAME).astype(kind)
    for same in (
        column,
        column[:, None],
        column[None],
        list(column),
        list(column[:, None]),
        [[bool(truth)] for truth in SAME],
        tuple(map(float, SAME)),
    ):
        if kind is object and isinstance(same, np.ndarray) and same.ndim > 1:
            continue  # no file has it
        name = write(tmp_path, pickle.dumps((PHOTOS, same), protocol))
        pairs = open_dataset(name, tmp_path).pairs()
        assert pairs is not None
        assert [pair.same for pair in pairs] == SAME


@pytest.mark.parametrize("protocol", [2, 5])
def test_photos_in_one_array(tmp_path: Path, protocol: int) -> None:
    as_objects = np.empty(len(PHOTOS), object)
    as_objects[:] = PHOTOS
    for photos in (as_objects, np.array(PHOTOS)):
        name = write(tmp_path, pickle.dumps((photos, SAME), protocol))
        dataset = open_dataset(name, tmp_path)
        assert [dataset.read(photo) for photo in dataset.index().photos] == PHOTOS


def test_python_2_strings_are_bytes(tmp_path: Path) -> None:
    items = b"".join(b"T" + struct.pack("<i", len(p)) + p for p in PHOTOS[:2])
    data = b"\x80\x02](" + items + b"e](I01\ne\x86."
    assert [op[0].name for op in pickletools.genops(data)][3] == "BINSTRING"
    dataset = open_dataset(write(tmp_path, data), tmp_path)
    assert [dataset.read(photo) for photo in dataset.index().photos] == PHOTOS[:2]


def test_pairs_are_consecutive_in_ten_folds(tmp_path: Path) -> None:
    dataset = open_dataset(write(tmp_path, pickle.dumps((PHOTOS, SAME))), tmp_path)
    packed = pack_photos(dataset, tmp_path / "set", NO_ALIGN)
    pairs = list(packed.faces.pairs())
    assert [(p.a, p.b, p.same) for p in pairs[:2]] == [(0, 1, True), (2, 3, False)]
    assert [pair.fold for pair in pairs] == [place // 2 for place in range(20)]
    assert dataset.set_name == "lfw"
    assert pickle.loads(pickle.dumps(dataset))._loaded is None


@pytest.mark.parametrize("protocol", [2, 5])
@pytest.mark.parametrize("shape", [(5, 7, 3), (5, 7), (5, 7, 1)])
def test_arrays_of_pixels(tmp_path: Path, shape: tuple[int, ...], protocol: int) -> None:
    """As a list of them, in Fortran's order, or as one array of all."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, *shape), dtype=np.uint8)
    for photos in (list(pixels), [np.asfortranarray(image) for image in pixels], pixels):
        data = pickle.dumps((photos, np.array([True])), protocol)
        dataset = open_dataset(write(tmp_path, data), tmp_path)
        for photo, image in zip(dataset.index().photos, pixels, strict=True):
            read = np.asarray(Image.open(io.BytesIO(dataset.read(photo))))
            np.testing.assert_array_equal(read, image.squeeze())


@pytest.mark.parametrize("shape", [(0, 3), (2, 3, 4), (3, 8, 8)])
def test_arrays_that_are_no_photo_are_skipped(tmp_path: Path, shape: tuple[int, ...]) -> None:
    photos = [np.zeros(shape, np.uint8), PHOTOS[0]]
    dataset = open_dataset(write(tmp_path, pickle.dumps((photos, [True]))), tmp_path)
    with pytest.raises(SkipPhoto, match="an array of shape"):
        dataset.read(dataset.index().photos[0])


def test_an_array_of_other_elements_than_pixels_is_skipped(tmp_path: Path) -> None:
    photos = [np.zeros((2, 3), "V5"), PHOTOS[0]]
    dataset = open_dataset(write(tmp_path, pickle.dumps((photos, [True]))), tmp_path)
    with pytest.raises(SkipPhoto, match="an array of void40"):
        dataset.read(dataset.index().photos[0])


class Calls:
    """Pickles as a call."""

    def __init__(self, function, *arguments) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def nested_laughs() -> bytes:
    data = b"\x80\x02]q\x00"
    for level in range(1, 60):
        data += b"](" + b"h" + bytes([level - 1]) + (b"h" + bytes([level - 1])) * 9
        data += b"eq" + bytes([level])
    return data + b"]\x86."


def encoded_again() -> bytes:
    """One text of a megabyte that becomes bytes a thousand times."""
    encode = b"c_codecs\nencode\nq\x000"
    text = b"X" + struct.pack("<I", 1 << 20) + b"x" * (1 << 20) + b"q\x010Vlatin1\nq\x020"
    calls = b"h\x00h\x01h\x02\x86R" * 1000
    return b"\x80\x02](" + encode + text + calls + b"e](" + b"\x88" * 500 + b"e\x86."


def hostile(ran: Path) -> dict[str, bytes]:
    touch = f"touch {ran}"
    python = f"__import__('os').mkdir({str(ran)!r})"
    dump = pickle.dumps
    return {
        "system": dump(Calls(os.system, touch)),
        "eval": dump(Calls(eval, python)),
        "exec": dump(Calls(exec, python), 0),
        "getattr": f"cbuiltins\ngetattr\n(cos\nsystem\nS'__call__'\ntR(S{touch!r}\ntR.".encode(),
        "dotted": b"\x80\x04\x8c\x05numpy\x8c\x0fndarray.__new__\x93.",
        "nested": b"\x80\x04\x8c\x07_codecs\x8c\x1aencode.__class__.__base__.x\x93.",
        "inst": f"(S{touch!r}\nios\nsystem\n.".encode(),
        "obj": b"(cos\nsystem\nS" + repr(touch).encode() + b"\no.",
        "newobj": b"\x80\x02cnumpy\nndarray\n)\x81.",
        "persid": b"Pid\n.",
        "ext": b"\x80\x02\x82\x01.",
        "inside": dump(([Calls(os.system, touch), PHOTOS[0]], [True])),
        "objects": dump((np.array([Calls(os.system, touch), None], object), [True])),
        "floats": dump(([np.zeros(3), np.zeros(3)], [True])),
        "encoded again": encoded_again(),
        "codec": b"c_codecs\nencode\n(Vabc\nVrot13\ntR.",
        "set a function": b"\x80\x02c_codecs\nencode\n}U\x05_callK\x01s\x86b.",
        "call an array type": b"\x80\x02cnumpy\nndarray\n(tR.",
        "laughs": nested_laughs(),
        "memo": b"\x80\x02]r\xff\xff\xff\x7f]\x86.",
        "huge bytes": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 50) + b"x.",
        "huge string": b"\x80\x02T\xff\xff\xff\x7fx.",
        "huge array8 that memory would hold": b"\x80\x05\x96" + struct.pack("<Q", 1 << 33) + b".",
        "bytearray of a size": b"cbuiltins\nbytearray\n(I9999999999\ntR.",
        "bytearray of a list": b"cbuiltins\nbytearray\n((lp0\ntR.",
        "objects in a scalar": b"\x80\x02cnumpy.core.multiarray\nscalar\n"
        b"cnumpy\ndtype\n(U\x02O8I0\nI1\ntRcos\nsystem\n\x86R.",
        "a type of a function": b"\x80\x02cnumpy\ndtype\n(cnumpy\nndarray\ntR.",
        "wide elements": b"\x80\x02cnumpy\ndtype\n(U\nV999999999ttR.",
        "a type with fields": dump((np.zeros(2, [("a", "u1")]), [True])),
        "dates": dump((PHOTOS[:2], np.array(["2020"], "M8[Y]"))),
        "half": dump((PHOTOS[:2], [np.float32(0.5)])),
        "nan": dump((PHOTOS[:2], [float("nan")])),
        "huge array8": b"\x80\x05\x96" + struct.pack("<Q", 1 << 45) + b".",
        "cut": dump((PHOTOS, SAME))[:-100],
        "empty": b"",
        "text": b"this is no pickle\n",
        "odd": dump((PHOTOS[:3], [True])),
        "no list": dump((5, 6)),
        "strings": dump((["a", "b"], [True])),
        "truths": dump((PHOTOS[:2], [3])),
        "none": dump(([], [])),
    }


@pytest.mark.parametrize("name", list(hostile(Path("x"))))
def test_hostile_pickles_are_refused_and_nothing_runs(tmp_path: Path, name: str) -> None:
    ran = tmp_path / "ran"
    path = tmp_path / "lfw.bin"
    path.write_bytes(hostile(ran)[name])
    with pytest.raises(PersonaError, match=r"lfw\.bin is (refused|no whole)") as error:
        open_dataset(f"bin:{path}", tmp_path).index()
    assert "\n" not in str(error.value)
    assert not ran.exists()


@pytest.mark.parametrize("name", ["system", "eval", "exec", "inside"])
def test_the_same_pickles_would_run(tmp_path: Path, name: str) -> None:
    """The test above could fail: Python's own unpickler runs them."""
    pickle.loads(hostile(tmp_path / "ran")[name])
    assert (tmp_path / "ran").exists()


def test_an_array_that_claims_more_than_its_bytes_is_refused(tmp_path: Path) -> None:
    data = pickle.dumps(([np.zeros(300, np.uint8)] * 2, [True]), 2)
    assert data.count(b"M,\x01") == 1
    name = write(tmp_path, data.replace(b"M,\x01", b"J\xff\xff\xff\x7f"))
    with pytest.raises(PersonaError, match="an array whose bytes do not fit its shape"):
        open_dataset(name, tmp_path).index()


def test_a_shape_of_numbers_of_megabytes_is_refused_within_a_second(tmp_path: Path) -> None:
    """Their product takes minutes."""
    data = pickle.dumps(([np.zeros((300, 1), np.uint8)] * 2, [True]), 2)
    assert data.count(b"M,\x01K\x01\x86") == 1
    huge = pickle.LONG4 + struct.pack("<i", 10_000_000) + b"\x7f" * 10_000_000
    name = write(tmp_path, data.replace(b"M,\x01K\x01\x86", huge + huge + b"\x86"))
    start = time.process_time()
    with pytest.raises(PersonaError, match="an array of another kind"):
        open_dataset(name, tmp_path).index()
    assert time.process_time() - start < 1


def test_stand_ins_call_nothing() -> None:
    assert {type(name) for name in bins._names(0).values()} == {bins._Name}

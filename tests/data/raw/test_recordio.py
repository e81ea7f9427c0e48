from __future__ import annotations

import pickle
import struct
from pathlib import Path

import pytest
from conftest import NO_ALIGN, jpeg

from persona.data.pack import pack_photos
from persona.data.raw import open_dataset
from persona.data.raw.base import Photo
from persona.data.raw.recordio import MAGIC, RecordIO
from persona.errors import PersonaError, SkipPhoto

WORD = struct.pack("<I", MAGIC)


def frame(part: int, data: bytes) -> bytes:
    return WORD + struct.pack("<I", part << 29 | len(data)) + data + bytes(-len(data) % 4)


def record(data: bytes) -> bytes:
    """As dmlc's writer: cut at every aligned magic."""
    pieces, start = [], 0
    for place in range(0, len(data) - 3, 4):
        if data[place : place + 4] == WORD:
            pieces.append(data[start:place])
            start = place + 4
    pieces.append(data[start:])
    if len(pieces) == 1:
        return frame(0, data)
    parts = [1, *[2] * (len(pieces) - 2), 3]
    return b"".join(frame(part, piece) for part, piece in zip(parts, pieces, strict=True))


def packed(labels: float | list[float], photo: bytes, key: int = 0) -> bytes:
    """mxnet.recordio.pack."""
    if isinstance(labels, list):
        tail = struct.pack(f"<{len(labels)}f", *labels)
        return struct.pack("<IfQQ", len(labels), 0, key, 0) + tail + photo
    return struct.pack("<IfQQ", 0, labels, key, 0) + photo


def write_rec(folder: Path, data: dict[int, bytes], name: str = "train") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rec, lines = b"", ""
    for key, value in data.items():
        lines += f"{key}\t{len(rec)}\n"
        rec += record(value)
    (folder / f"{name}.rec").write_bytes(rec)
    (folder / f"{name}.idx").write_text(lines)
    return folder / f"{name}.rec"


PHOTOS = {key: jpeg(key) for key in range(1, 7)}


def insightface(folder: Path) -> Path:
    """Six photos of two identities, a header, an index of identities."""
    data = {0: packed([7.0, 9.0], b"")}
    for key, photo in PHOTOS.items():
        # Labels come alone or, in later sets, as an array.
        data[key] = packed(float(key > 3) if key % 2 else [float(key > 3), 0.0], photo, key)
    data[7] = packed([1.0, 4.0], b"")
    data[8] = packed([4.0, 7.0], b"")
    return write_rec(folder, data)


def test_insightface_layout_packs_like_folders(tmp_path: Path) -> None:
    insightface(tmp_path / "faces_emore")
    dataset = open_dataset(f"recordio:{tmp_path / 'faces_emore'}", tmp_path)
    index = dataset.index()
    assert dataset.set_name == "faces_emore"
    assert index.classes == ("0000000", "0000001")
    assert [photo.identity for photo in index.photos] == ["0000000"] * 3 + ["0000001"] * 3
    again = pickle.loads(pickle.dumps(dataset))  # as a worker receives it
    assert [again.read(photo) for photo in index.photos] == list(PHOTOS.values())
    assert pack_photos(dataset, tmp_path / "set", NO_ALIGN).manifest.samples == 6


def test_the_file_may_be_named_and_a_generic_name_is_its_folders(tmp_path: Path) -> None:
    rec = insightface(tmp_path / "ms1m")
    assert open_dataset(f"recordio:{rec}", tmp_path).set_name == "ms1m"
    other = write_rec(tmp_path / "ms1m", {4: packed(1.0, PHOTOS[1])}, name="val")
    dataset = open_dataset(f"recordio:{other}", tmp_path)
    assert dataset.set_name == "val"
    assert [p.source for p in dataset.index().photos] == ["val.rec/000000004"]


def test_without_a_header_every_record_is_a_photo(tmp_path: Path) -> None:
    write_rec(tmp_path / "r", {0: packed(5.0, PHOTOS[1]), 9: packed(2.0, PHOTOS[2])})
    photos = open_dataset(f"recordio:{tmp_path / 'r'}", tmp_path).index().photos
    assert [photo.identity for photo in photos] == ["0000005", "0000002"]


def test_a_photo_that_holds_the_magic_is_put_together(tmp_path: Path) -> None:
    photo = b"abcd" + WORD + b"efgh" + WORD + WORD + b"ij"
    rec = write_rec(tmp_path / "r", {1: packed(0.0, photo), 2: packed([3.0], WORD)})
    assert rec.read_bytes().count(WORD) > 2
    dataset = open_dataset(f"recordio:{rec}", tmp_path)
    assert [dataset.read(p) for p in dataset.index().photos] == [photo, WORD]


def test_property_gives_the_class_list(tmp_path: Path) -> None:
    insightface(tmp_path / "r")
    (tmp_path / "r" / "property").write_text("4,112,112")
    dataset = open_dataset(f"recordio:{tmp_path / 'r'}", tmp_path)
    assert len(dataset.index().classes) == 4
    (tmp_path / "r" / "property").write_text("1,112,112")
    with pytest.raises(PersonaError, match="1 identities are not in its list"):
        dataset.index()
    (tmp_path / "r" / "property").write_text("many")
    with pytest.raises(PersonaError, match="property: expected <identities>,<height>,<width>"):
        dataset.index()


def test_a_header_may_promise_more_photos_than_labels_go(tmp_path: Path) -> None:
    """Glint360K has 17,091,657 photos. No identity may have a number that large."""
    data = {0: packed([17_091_658.0, 17_452_018.0], b"")}
    data |= {key: packed(0.0, PHOTOS[key], key) for key in (1, 2)}
    write_rec(tmp_path / "r", data)
    with pytest.raises(PersonaError, match="promises 17,091,657 photos, here are 2: is it cut"):
        open_dataset(f"recordio:{tmp_path / 'r'}", tmp_path).index()


@pytest.mark.parametrize(
    ("label", "promised", "doubt"),
    [
        (1, 0, 0),
        (7, 6, 0),
        (16_777_215, 16_777_214, 0),
        (16_777_219, 16_777_219, 1),  # no float32: the nearest is 16,777,220
        (17_091_658, 17_091_657, 1),
        (42_474_559, 42_474_559, 2),
    ],
)
def test_a_large_header_is_as_exact_as_its_float(
    tmp_path: Path, label: int, promised: int, doubt: int
) -> None:
    dataset = open_dataset(f"recordio:{insightface(tmp_path / 'r')}", tmp_path)
    assert isinstance(dataset, RecordIO)
    (stored,) = struct.unpack("<f", struct.pack("<f", label))
    assert dataset._promise(stored) == (promised, doubt)


@pytest.mark.parametrize("promised", [5, 6, 7])
def test_a_header_that_is_off_by_one_loses_no_photo_and_takes_no_list_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, promised: int
) -> None:
    dataset = open_dataset(f"recordio:{insightface(tmp_path / 'r')}", tmp_path)
    monkeypatch.setattr(type(dataset), "_promise", lambda *_: (promised, 1))
    index = dataset.index()
    assert [dataset.read(photo) for photo in index.photos] == list(PHOTOS.values())


def cut_rec(folder: Path) -> None:
    path = folder / "train.rec"
    path.write_bytes(path.read_bytes()[:-500])


def edit_idx(old: str, new: str):
    def edit(folder: Path) -> None:
        path = folder / "train.idx"
        path.write_text(path.read_text().replace(old, new, 1))

    return edit


def short_idx(folder: Path) -> None:
    """Cuts the index of a file without a header, which would say how many photos there are."""
    write_rec(folder, {key: packed(0.0, photo, key) for key, photo in PHOTOS.items()})
    path = folder / "train.idx"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:3]))


def edit_label(label: float):
    def edit(folder: Path) -> None:
        path = folder / "train.rec"
        data = bytearray(path.read_bytes())
        offset = int((folder / "train.idx").read_text().splitlines()[1].split()[1])
        data[offset + 12 : offset + 16] = struct.pack("<f", label)
        path.write_bytes(bytes(data))

    return edit


def edit_header(label: float):
    return edit_rec(8 + 24, struct.pack("<f", label))


def edit_rec(place: int, new: bytes):
    def edit(folder: Path) -> None:
        path = folder / "train.rec"
        data = path.read_bytes()
        path.write_bytes(data[:place] + new + data[place + len(new) :])

    return edit


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (cut_rec, r"(at byte|is at byte).*is (it|the file) cut short"),
        (edit_idx("2\t", "2\t99999"), r"line 3: record 2 is at byte 999,[\d,]+, train.rec ends at"),
        (edit_idx("2\t", "two\t"), "line 3: expected '<key><TAB><offset>'"),
        (edit_idx("2\t", "2\t4\n3\t"), "record 2 at byte .* no record begins there"),
        (edit_idx("2\t", "2" * 70_000 + "\t"), "line 3 is longer than 65,536"),
        (edit_idx("6\t", "60\t"), "promises 6 photos, here are 5"),
        (edit_idx("2\t", "1\t"), "train.rec/000000001 is in it twice"),
        (short_idx, r"train.rec goes on for [\d,]+ bytes after record 3: is it cut short"),
        (edit_label(1.5), "record 1 has the label 1.5: expected a whole number"),
        (edit_label(float("nan")), "record 1 has the label nan"),
        (edit_label(-2.0), "record 1 has the label -2"),
        (edit_header(7.5), "its header has the label 7.5: expected one more than the number of"),
        (edit_header(-1.0), "its header has the label -1: expected one more than the number of"),
        (edit_header(float("nan")), "its header has the label nan: expected one more"),
        (edit_header(float("inf")), "its header has the label inf: expected one more"),
        (edit_header(2e8), "its header has the label 200000000: .* at most 99,999,999"),
        (edit_rec(8, struct.pack("<I", 2**31)), "record 0 at byte 0: it claims 2,147,483,648"),
        (edit_rec(4, b"\xff\xff\xff\x1f"), "its 536,870,911 bytes reach beyond the file"),
        (edit_rec(4, struct.pack("<I", 2 << 29 | 32)), "in the middle of another"),
        (lambda folder: (folder / "train.idx").unlink(), "train.idx is missing"),
    ],
)
def test_broken_files_are_one_line(tmp_path: Path, break_it, message: str) -> None:
    insightface(tmp_path / "r")
    break_it(tmp_path / "r")
    with pytest.raises(PersonaError, match=message) as error:
        open_dataset(f"recordio:{tmp_path / 'r'}", tmp_path).index()
    assert "\n" not in str(error.value)


def test_minus_one_is_nobody(tmp_path: Path) -> None:
    insightface(tmp_path / "r")
    edit_label(-1.0)(tmp_path / "r")
    index = open_dataset(f"recordio:{tmp_path / 'r'}", tmp_path).index()
    assert index.nobody == ("train.rec/000000001",)
    assert len(index.photos) == 5


def test_a_record_that_breaks_later_is_skipped(tmp_path: Path) -> None:
    insightface(tmp_path / "r")
    dataset = open_dataset(f"recordio:{tmp_path / 'r'}", tmp_path)
    with pytest.raises(SkipPhoto, match="no record begins there"):
        dataset.read(Photo("train.rec/1", "0", offset=3))

from __future__ import annotations

import io
import os
import pickle
import tarfile
from pathlib import Path

import pytest
from conftest import NO_ALIGN, jpeg

from persona.data.pack import pack_photos
from persona.data.raw import open_dataset
from persona.errors import PersonaError, SkipPhoto


def write_tar(path: Path, members: dict[str, bytes | tarfile.TarInfo], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                tar.addfile(content)
                continue
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def index_of(tmp_path: Path, members: dict[str, bytes | tarfile.TarInfo]) -> dict[str, str]:
    write_tar(tmp_path / "t" / "a.tar", members)
    photos = open_dataset(f"tars:{tmp_path / 't'}", tmp_path).index().photos
    return {photo.source: photo.identity for photo in photos}


def test_pictures_of_kinds_that_are_not_read_are_counted(tmp_path: Path) -> None:
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"
    write_tar(
        tmp_path / "t/a.tar",
        {"ann/1.jfif": jpeg(1), "ann/2.JPE": jpeg(2), "ann/3.heic": heic, "ann/4.jxl": b"\xff\x0a"},
    )
    packed = pack_photos(open_dataset(f"tars:{tmp_path / 't'}", tmp_path), tmp_path / "o", NO_ALIGN)
    assert packed.manifest.samples == 2
    assert [(s.source, s.reason.split(",")[0]) for s in packed.manifest.skipped] == [
        ("a.tar/ann/3.heic", "unreadable: HEIC"),
        ("a.tar/ann/4.jxl", "unreadable: JPEG XL"),
    ]


def test_plain_tars_take_the_folder_and_pack(tmp_path: Path) -> None:
    long_name = "x" * 150
    write_tar(
        tmp_path / "t/a.tar", {"faces/ann/1.jpg": jpeg(1), f"faces/ann/{long_name}.jpg": jpeg(2)}
    )
    write_tar(
        tmp_path / "t/sub/b.tar",
        {"faces/bob/J. Doe.1.PNG": jpeg(3), "bob/._1.jpg": b"mac", "pairs.txt": b"10\t3\n"},
    )
    dataset = open_dataset(f"tars:{tmp_path / 't'}", tmp_path)
    index = dataset.index()
    assert index.classes == ("ann", "bob")
    assert index.photos[2].source == "sub/b.tar/faces/bob/J. Doe.1.PNG"
    again = pickle.loads(pickle.dumps(dataset))
    assert [again.read(photo) for photo in index.photos] == [jpeg(1), jpeg(2), jpeg(3)]
    packed = pack_photos(dataset, tmp_path / "set", NO_ALIGN)
    assert (packed.manifest.samples, packed.manifest.dataset) == (3, "t")


@pytest.mark.parametrize(
    ("members", "identity"),
    [
        ({"0.jpg": jpeg(0), "0.cls": b"12"}, "0000012"),
        ({"0.cls": b"12\n", "0.jpg": jpeg(0)}, "0000012"),
        ({"0.jpg": jpeg(0), "0.txt": b"Ann Lee"}, "Ann Lee"),
        ({"0.jpg": jpeg(0), "0.json": b'{"label": 3}'}, "0000003"),
        ({"0.jpg": jpeg(0), "0.json": b'{"identity": "ann", "class": 3}'}, "ann"),
        ({"0.jpg": jpeg(0), "0.json": b'{"label": 3}', "0.cls": b"4"}, "0000004"),
        ({"ann/0.jpg": jpeg(0), "ann/0.json": b'{"age": 3}'}, "ann"),
    ],
)
def test_identities_of_webdataset_members(tmp_path: Path, members, identity: str) -> None:
    assert list(index_of(tmp_path, members).values()) == [identity]


def test_what_was_packed_here_can_be_read_again(tmp_path: Path, train_set) -> None:
    dataset = open_dataset(f"tars:{train_set.folder}", tmp_path)
    index = dataset.index()
    assert len(index.photos) == 30
    assert index.classes == train_set.manifest.classes


def link(name: str, kind: bytes) -> dict[str, bytes | tarfile.TarInfo]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/passwd"
    return {name: info}


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (link("ann/1.jpg", tarfile.SYMTYPE), "'ann/1.jpg' is a link, device or sparse file"),
        (link("ann/1.jpg", tarfile.LNKTYPE), "'ann/1.jpg' is a link, device or sparse file"),
        (link("ann/1.jpg", tarfile.CHRTYPE), "'ann/1.jpg' is a link, device or sparse file"),
        ({"/ann/1.jpg": jpeg(1)}, "leaves the tar"),
        ({"ann/../../1.jpg": jpeg(1)}, "leaves the tar"),
        ({"1.jpg": jpeg(1)}, "1.jpg has no identity: expected"),
        ({"1.jpg": jpeg(1), "1.cls": b"-5"}, None),
        ({"1.jpg": jpeg(1), "1.json": b"{"}, "1.json is no json text"),
        ({"1.jpg": jpeg(1), "1.json": b"[" * 100_000}, "1.json is no json text"),
        ({"1.jpg": jpeg(1), "1.json": b'{"label": [1]}'}, r"has the label '\[1\]'"),
        ({"1.jpg": jpeg(1), "1.json": b'{"label": true}'}, "has the label 'True'"),
        ({"1.jpg": jpeg(1), "1.cls": b"\xff"}, "1.cls is no cls text"),
        ({"1.jpg": jpeg(1), "1.txt": b"x" * (2 << 20)}, "too many"),
        ({"notes.md": b"nothing"}, "has no photo below"),
    ],
)
def test_bad_members_are_one_line(tmp_path: Path, members, message: str | None) -> None:
    if message is None:
        assert list(index_of(tmp_path, members).values()) == ["-5"]  # a name like any other
        return
    with pytest.raises(PersonaError, match=message) as error:
        index_of(tmp_path, members)
    assert "\n" not in str(error.value)


def test_a_photo_that_is_there_twice_is_not_packed_twice(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "t" / "a.tar", {"ann/1.jpg": jpeg(1)})
    with tarfile.open(path, "a") as tar:
        tar.addfile(tarfile.TarInfo("ann/1.jpg"))
    with pytest.raises(PersonaError, match=r"^t \(all\): a\.tar/ann/1\.jpg is in it twice"):
        open_dataset(f"tars:{tmp_path / 't'}", tmp_path).index()


def test_broken_tars_are_one_line(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "t" / "a.tar", {"ann/1.jpg": bytes(5000)}).read_bytes()
    for data, message in (
        (whole[:3000], "is cut short in 'ann/1.jpg'|no whole, uncompressed tar"),
        (b"no tar" * 200, "no whole, uncompressed tar"),
        (whole[:100] + b"X" + whole[101:], "no whole, uncompressed tar"),
        (whole[:124] + b"77777777777" + whole[135:], "no whole, uncompressed tar"),
    ):
        (tmp_path / "t" / "a.tar").write_bytes(data)
        with pytest.raises(PersonaError, match=message):
            open_dataset(f"tars:{tmp_path / 't'}", tmp_path).index()
    write_tar(tmp_path / "t" / "a.tar", {"ann/1.jpg": jpeg(1)}, "w:gz")
    with pytest.raises(PersonaError, match="uncompressed tar"):
        open_dataset(f"tars:{tmp_path / 't'}", tmp_path).index()


def header(name: str, size: int, kind: bytes, text: bytes = b"") -> bytes:
    """A header and what follows it, of a tar that no library writes."""
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT) + text + bytes(-len(text) % 512)


PHOTO = header("ann/1.jpg", len(jpeg(1)), b"0", jpeg(1))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (header("p", 40 << 30, b"x"), "a header that is none"),
        (header("p", -1024, b"L"), "a header that is none"),
        (header("p", 7 << 30, b"x") + b"sparse", "it ends early"),
        (header("p", 1 << 17, b"L", bytes(1 << 17)), "a header of 131,072 bytes"),
        (PHOTO + header("ann/2.jpg", -1024, b"0"), "a header that is none"),
        (header("p", 12, b"x", b"12 size=-512"), "a pax header that is none|over 8 GB"),
        (header("p", 11, b"x", b"abc path=x\n"), "a pax header that is none"),
        (header("ann/1.jpg", len(jpeg(1)), b"S", jpeg(1)), "is a link, device or sparse"),
        (header("ann/1.jpg", 9, b"x", b"22 GNU.sparse.major=1\n"), "header that is none|sparse"),
        (PHOTO + b"damage" + PHOTO[6:], "does not match its checksum"),
        (PHOTO, "it ends early"),
        (header("ann/\x1b[2J.jpg", 0, b"0"), "leaves the tar"),
    ],
)
def test_hostile_headers_are_one_line(tmp_path: Path, data: bytes, message: str) -> None:
    """Nothing hangs, recurses, or takes the memory that a header claims."""
    (tmp_path / "t").mkdir()
    with (tmp_path / "t" / "a.tar").open("wb") as file:
        file.write(data)
        if data.endswith(b"sparse"):
            file.truncate(6 << 30)
    with pytest.raises(PersonaError, match=message) as error:
        open_dataset(f"tars:{tmp_path / 't'}", tmp_path).index()
    assert "\n" not in str(error.value) and "JFIF" not in str(error.value)


def test_headers_of_headers_do_not_recurse_and_pipes_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    header_of = header("p", 20, b"x", b"20 comment=abcdefgh\n")
    (tmp_path / "t" / "a.tar").write_bytes(header_of * 3000 + PHOTO + bytes(1024))
    os.mkfifo(tmp_path / "t" / "b.tar")
    dataset = open_dataset(f"tars:{tmp_path / 't'}", tmp_path)
    (photo,) = dataset.index().photos
    assert dataset.read(photo) == jpeg(1)


def test_a_tar_that_changes_is_skipped(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "t" / "a.tar", {"ann/1.jpg": jpeg(1)})
    dataset = open_dataset(f"tars:{path}", tmp_path)
    (photo,) = dataset.index().photos
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(SkipPhoto, match="cut short"):
        dataset.read(photo)
    path.write_bytes(bytes(700))
    with pytest.raises(SkipPhoto, match="has changed"):
        dataset.read(photo)

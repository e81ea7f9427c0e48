from __future__ import annotations

import io
import os
import pickle
import re
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from conftest import NO_ALIGN, jpeg

from persona.data.pack import pack_photos
from persona.data.raw import open_dataset
from persona.errors import PersonaError, SkipPhoto


def write_tar(path: Path, members: Mapping[str, bytes | tarfile.TarInfo], mode: str = "w") -> Path:
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


def index_of(tmp_path: Path, members: Mapping[str, bytes | tarfile.TarInfo]) -> dict[str, str]:
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
        ({"0.jpg": jpeg(0), "0.label": b"7"}, "0000007"),
        ({"0.jpg": jpeg(0), "0.json": b'{"label": 3.0}'}, "0000003"),
        ({"p/0.face.jpg": jpeg(0), "p/0.cls": b"12"}, "0000012"),
        ({"p/0.cls": b"12", "p/0.FACE.JPG": jpeg(0)}, "0000012"),
        ({"p/0.jpg": jpeg(0), "p/0.person.txt": b"Ann"}, "Ann"),
        ({"p/0.jpg": jpeg(0), "p/0.json": b'{"age": 3}', "p/0.person.cls": b"4"}, "0000004"),
        ({"p.1/0.jpg": jpeg(0), "p.1/0.cls": b"1"}, "0000001"),
        ({"0.jpg": jpeg(0), "0.txt": "Ann\u00a0Lee".encode()}, "Ann\u00a0Lee"),
        ({"ann/0.jpg": jpeg(0), "__MACOSX/0.jpg": b"", "ann/@eaDir/0.jpg/S.jpg": b""}, "ann"),
    ],
)
def test_identities_of_webdataset_members(tmp_path: Path, members, identity: str) -> None:
    assert list(index_of(tmp_path, members).values()) == [identity]


@pytest.mark.parametrize("folder", ["people/Jos\u00e9", "people/" + "x" * 150])
def test_the_name_of_a_folder_does_not_go_to_the_next_photo(tmp_path: Path, folder: str) -> None:
    entry = tarfile.TarInfo(folder)
    entry.type = tarfile.DIRTYPE
    found = index_of(tmp_path, {folder: entry, "people/bob/1.jpg": jpeg(1)})
    assert found == {"a.tar/people/bob/1.jpg": "bob"}


def test_photos_of_one_sample_have_labels_of_their_own(tmp_path: Path) -> None:
    """As have photos whose names hold dots, which webdataset takes for one sample."""
    members = {
        "p/0.left.jpg": jpeg(0),
        "p/0.right.jpg": jpeg(1),
        "p/0.left.cls": b"1",
        "p/0.right.cls": b"2",
        "p/J. Doe.1.jpg": jpeg(2),
        "p/J. Doe.1.cls": b"3",
        "p/J. Doe.2.jpg": jpeg(3),
        "p/J. Doe.2.cls": b"4",
        "p/1.left.jpg": jpeg(4),
        "p/1.right.jpg": jpeg(5),
        "p/1.cls": b"5",
    }
    identities = index_of(tmp_path, members).values()
    assert sorted(map(int, identities)) == [1, 2, 3, 4, 5, 5]


def photos(count: int, name: str = "p/{}.jpg") -> dict[str, bytes]:
    return {name.format(number): jpeg(number) for number in range(count)}


def beside(count: int, name: str, content: str) -> dict[str, bytes]:
    """A member right behind each photo."""
    members: dict[str, bytes] = {}
    for number in range(count):
        members |= {f"p/{number}.jpg": jpeg(number)}
        members |= {name.format(number): content.format(number, number % 2).encode()}
    return members


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({**photos(4), **beside(4, "labels/{}.cls", "{1}")}, "labels/0.cls and 3 more match no"),
        ({"p/0.jpg": jpeg(0), "p/0_person.cls": b"1"}, "p/0_person.cls match no photo"),
        ({**photos(4), **{f"l/{n}.txt": b"1" for n in range(4)}}, "l/0.txt and 3 more match no"),
        ({**photos(4), **{f"l/{n}.pid": b"1" for n in range(4)}}, "l/0.pid and 3 more match no"),
        (beside(4, "p/{}.pid", "{1}"), "p/0.pid and 3 more may say who is in the photos"),
        (beside(4, "p/{}.json", '{{"person_id": {1}}}'), "p/0.json and 3 more may say who"),
        ({**beside(4, "p/{}.cls", "{1}"), "p/9.jpg": jpeg(9)}, "4 photos have a label, a.tar/p/9"),
        (beside(4, "p/{}.txt", "a man {0}"), "4 of its 4 .txt differ: its .txt read as captions"),
        (beside(1, "p/{}.txt", "a photo of a man with brown hair"), "0.txt is no name"),
        (beside(4, "p/{}.json", '{{"label": null}}'), "p/0.json names null"),
        ({"p/0.jpg": jpeg(0), "p/0.a.txt": b"ann", "p/0.b.txt": b"bob"}, "0.jpg has labels that"),
    ],
)
def test_folders_and_captions_are_not_taken_for_people(
    tmp_path: Path, members: dict[str, bytes], message: str
) -> None:
    """Where labels are there that are of no photo, or may be of one under another name."""
    with pytest.raises(PersonaError, match=re.escape(message)) as error:
        index_of(tmp_path, members)
    assert "\n" not in str(error.value)


def test_labels_in_tars_of_their_own_match_no_photo(tmp_path: Path) -> None:
    write_tar(tmp_path / "t" / "images.tar", photos(4))
    write_tar(tmp_path / "t" / "labels.tar", {f"p/{n}.cls": b"1" for n in range(4)})
    with pytest.raises(PersonaError, match=r"labels.tar/p/0.cls and 3 more match no photo"):
        open_dataset(f"tars:{tmp_path / 't'}", tmp_path).index()


@pytest.mark.parametrize(
    "members",
    [
        beside(8, "p/{}.pts", "{0}.5 12.25 30 41.5"),
        beside(8, "p/{}.npy", "\0{0}"),
        {**photos(8), "p/readme.txt": b"photos of one person", "pairs.txt": b"10"},
        beside(8, "p/{}.json", '{{"age": {0}, "pose": "left"}}'),
        {**beside(8, "p/{}.tiff", "x" * 999), **photos(8)},
    ],
)
def test_what_stands_beside_photos_and_is_no_label_is_passed_over(
    tmp_path: Path, members: dict[str, bytes]
) -> None:
    assert set(index_of(tmp_path, members).values()) == {"p"}


def test_labels_without_a_photo_are_missing_photos(tmp_path: Path) -> None:
    """Where all photos have one; what is labelled may also be a picture of another kind."""
    members = {**beside(3, "p/{}.cls", "{1}"), "p/7.cls": b"1", "p/8.tif": bytes(999)}
    members["p/8.cls"] = b"1"
    write_tar(tmp_path / "t" / "a.tar", members)
    index = open_dataset(f"tars:{tmp_path / 't'}", tmp_path).index()
    assert index.classes == ("0000000", "0000001")
    assert index.missing == ("a.tar/p/7.cls",)


def test_minus_one_is_nobody(tmp_path: Path) -> None:
    members = {"0.jpg": jpeg(0), "0.cls": b"-1", "1.jpg": jpeg(1), "1.cls": b"5"}
    members |= {"2.jpg": jpeg(2), "2.json": b'{"class": -1}'}
    write_tar(tmp_path / "t" / "a.tar", members)
    dataset = open_dataset(f"tars:{tmp_path / 't'}", tmp_path)
    index = dataset.index()
    assert index.classes == ("0000005",)
    assert index.nobody == ("a.tar/0.jpg", "a.tar/2.jpg")
    manifest = pack_photos(dataset, tmp_path / "set", NO_ALIGN).manifest
    assert (manifest.samples, manifest.identities) == (1, 1)
    assert [(s.source, s.reason) for s in manifest.skipped] == [
        (source, "labelled -1, which is nobody") for source in index.nobody
    ]
    with pytest.raises(PersonaError, match="all 1 photos are labelled -1, which is nobody"):
        index_of(tmp_path, {"0.jpg": jpeg(0), "0.cls": b"-1"})


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
        ({"1.jpg": jpeg(1), "1.cls": b"-5"}, "has the label '-5': expected a name"),
        ({"1.jpg": jpeg(1), "1.json": b"{"}, "1.json is no json text"),
        ({"1.jpg": jpeg(1), "1.json": b"[" * 100_000}, "1.json is no json text"),
        ({"1.jpg": jpeg(1), "1.json": b'{"label": [1]}'}, r"has the label '\[1\]'"),
        ({"1.jpg": jpeg(1), "1.json": b'{"label": true}'}, "has the label 'True'"),
        ({"1.jpg": jpeg(1), "1.cls": b"\xff"}, "1.cls is no cls text"),
        ({"1.jpg": jpeg(1), "1.txt": b"x" * (2 << 20)}, "too many"),
        ({"notes.md": b"nothing"}, "has no photo below"),
    ],
)
def test_bad_members_are_one_line(tmp_path: Path, members, message: str) -> None:
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

from __future__ import annotations

import io
import os
import tarfile
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import webdataset

from persona.data import tars
from persona.data.pack import Packed
from persona.data.sets import shard_path, verify_set
from persona.data.shards import tar_end, tar_sample
from persona.data.tars import ShardReader, iter_members
from persona.errors import PersonaError

SUFFIXES = ("jpg", "json")


def samples(path: Path, count: int) -> dict[str, list[bytes]]:
    reader = ShardReader(path, SUFFIXES, count)
    return {
        key.decode(): [bytes(member) for member in members]
        for key, members in zip(reader.keys, reader.read(np.arange(count)), strict=True)
    }


def write(path: Path, parts: dict[str, bytes], count: int = 3) -> bytes:
    data = b"".join(tar_sample(f"{n:08d}", parts) for n in range(count))
    path.write_bytes(data + tar_end(len(data)))
    return path.read_bytes()


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset's
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_packed_sets_open_with_plain_webdataset(train_set: Packed) -> None:
    for number, shard in enumerate(train_set.manifest.shards):
        path = shard_path(train_set.faces, number)
        dataset = webdataset.WebDataset(str(path), shardshuffle=False)
        theirs = {s["__key__"]: [s["jpg"], s["json"]] for s in dataset}
        assert theirs == samples(path, shard.samples)
        assert len(theirs) == shard.samples


def test_tars_of_webdatasets_own_writer(tmp_path: Path) -> None:
    """Its times are fractions, which it writes as pax headers."""
    path = tmp_path / "x.tar"
    with webdataset.TarWriter(str(path)) as writer:
        for number in range(3):
            writer.write({"__key__": f"{number}", "jpg": b"j" * number, "json": {"n": number}})
    assert samples(path, 3) == {str(n): [b"j" * n, b'{"n": %d}' % n] for n in range(3)}


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tars_of_every_format(tmp_path: Path, kind: int) -> None:
    """Long names, folders and links among the files.

    The names of folders and links, long ones too, do not go to the file that follows.
    """
    path = tmp_path / "x.tar"
    folder = "folder.with.dots/" + "long/" * 18
    target = "6.jpg" if kind == tarfile.USTAR_FORMAT else folder + "6.jpg"
    with tarfile.open(path, "w", format=kind) as tar:
        for other in (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE):
            for name in ("Jos\u00e9", folder + "of/its/own"):
                info = tarfile.TarInfo(name)
                info.type, info.linkname = other, target
                tar.addfile(info)
        for name in ("3.jpg", "3.json"):
            tar.addfile(tarfile.TarInfo(name))
        for name, data in (("7.jpg", b"a" * 600), ("7.JSON", b"b"), ("7.txt", b"")):
            info = tarfile.TarInfo(folder + name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for other in (tarfile.DIRTYPE, tarfile.SYMTYPE):
            info = tarfile.TarInfo("folder")
            info.type = other
            tar.addfile(info)
    assert samples(path, 2) == {"3": [b"", b""], folder + "7": [b"a" * 600, b"b"]}


def test_a_pax_header_of_many_records_is_read_in_time() -> None:
    records = b"6 a=b\n" * 10_000
    start = time.process_time()
    for _ in range(10):
        assert tars._pax_name(records + b"14 path=1.jpg\n") == b"1.jpg"
    assert time.process_time() - start < 1
    with pytest.raises(tars.TarError, match="a pax header that is none"):
        tars._pax_name(records + b"abcdefgh")


def test_a_long_name_does_not_make_every_key_long(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"

    def write_key(length: int) -> None:
        with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
            tar.addfile(tarfile.TarInfo("0.jpg"))
            tar.addfile(tarfile.TarInfo("k" * length + ".jpg"))

    write_key(255)
    assert ShardReader(path, ("jpg",), 2).keys.itemsize == 255
    write_key(256)
    with pytest.raises(PersonaError, match=r"x\.tar is damaged \(sample 1: a name of over 255 byt"):
        ShardReader(path, ("jpg",), 2)


def test_members_are_those_of_tarfile(train_set: Packed) -> None:
    path = train_set.folder / "000000.tar"
    with tarfile.open(path) as tar:
        theirs = [(info.name.encode(), info.offset_data, info.size) for info in tar]
    with path.open("rb") as stream:
        assert list(iter_members(stream)) == theirs


def test_every_cut_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    data = write(path, {"jpg": b"j" * 700, "json": b"{}"})
    end = data.rindex(b"{}") + 2
    for length in [*range(0, end, 97), end - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(PersonaError, match=r"x\.tar is damaged \(it ends early"):
            samples(path, 3)


def test_every_changed_byte_of_a_header_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    data = write(path, {"jpg": b"j", "json": b"{}"}, count=1)
    for place in {*range(512)} - {154, 155}:  # what ends the checksum
        changed = bytearray(data)
        changed[place] ^= 4
        path.write_bytes(changed)
        with pytest.raises(PersonaError, match=r"x\.tar is damaged"):
            samples(path, 1)


def header(**fields: object) -> bytes:
    info = tarfile.TarInfo("0.jpg")
    for name, value in fields.items():
        setattr(info, name, value)
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"no tar at all" * 100, "a header that is none"),
        (header(size=1 << 40), "a header that is none"),
        (header(size=8**11 - 1), "it ends early"),
        (header(type=b"S"), "is a link, device or sparse file"),
        (header(type=b"x", size=1 << 17) + bytes(1 << 17), "a header of 131,072 bytes"),
        (header(type=b"x", size=512) + b"9 path=.." + bytes(503), "a pax header that is none"),
        (header(type=b"x", size=10) + b"10 size=5\n" + bytes(502), "a member that is sparse"),
        (header(type=b"x", size=11) + b"abc path=x\n" + bytes(501), "a pax header that is none"),
        (header() * 2 + bytes(1024), "two jpg"),
        (bytes(1024), "it ends early"),
        (b"", "it ends early"),
    ],
)
def test_what_is_no_shard_is_refused(tmp_path: Path, data: bytes, what: str) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(data)
    with pytest.raises(PersonaError, match=rf"x\.tar is damaged \(.*{what}"):
        samples(path, 1)


def test_a_shard_that_is_cut_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    data = write(path, {"jpg": b"j" * 700, "json": b"{}"})
    reader = ShardReader(path, SUFFIXES, 3)
    path.write_bytes(data[:600])
    with pytest.raises(PersonaError, match=r"x\.tar is damaged \(it ends early"):
        list(reader.read(np.array([1])))


def test_only_what_is_wanted_is_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    data = write(path, {"jpg": b"j", "json": b"{}"})
    path.write_bytes(data[: 2 * 2048 + 512] + b"rubbish" * 500)
    assert len(samples(path, 2)) == 2


def make_old(path: Path) -> None:
    """As a set is when it is read: a change of it shows in its time."""
    os.utime(path, (1, 1))


def test_an_index_spares_the_walk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.tar"
    write(path, {"jpg": b"j" * 700, "json": b"{}"}, count=5)
    make_old(path)
    walked = samples(path, 5)
    assert (tmp_path / ".index/x.idx").is_file()
    monkeypatch.setattr(tars, "iter_members", None)
    assert samples(path, 5) == walked
    assert list(samples(path, 2)) == ["00000000", "00000001"]
    reader = ShardReader(path, SUFFIXES, 3, frozenset({b"00000000", b"00000003"}))
    assert reader.keys.tolist() == [b"00000001", b"00000002", b"00000004"]
    assert reader.places.tolist() == [1, 2, 4]


def test_an_index_of_another_tar_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    write(path, {"jpg": b"j" * 700, "json": b"{}"})
    make_old(path)
    samples(path, 3)
    write(path, {"jpg": b"k" * 1700, "json": b"{}"})
    assert samples(path, 3)["00000002"] == [b"k" * 1700, b"{}"]  # made now: its time is another
    make_old(path)
    assert samples(path, 3)["00000002"] == [b"k" * 1700, b"{}"]  # same time, another size
    reader = ShardReader(path, ("png", "json"), 3)  # the index was made for other suffixes
    with pytest.raises(PersonaError, match=r"sample 00000002: no png"):
        list(reader.read(np.array([2, 0])))


def test_no_index_of_a_part_or_of_what_may_still_change(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    write(path, {"jpg": b"j", "json": b"{}"})
    samples(path, 3)  # as new as its time can tell
    make_old(path)
    samples(path, 2)
    assert not (tmp_path / ".index").exists()


def test_what_is_no_index_is_walked_past(tmp_path: Path) -> None:
    path, index = tmp_path / "x.tar", tmp_path / ".index/x.idx"
    write(path, {"jpg": b"j" * 700, "json": b"{}"})
    make_old(path)
    right = samples(path, 3)
    whole = index.read_bytes()
    head = whole.index(b"\n") + 1

    def forged(body: bytes) -> bytes:
        return whole[:head] + zlib.crc32(body).to_bytes(4, "little") + body

    rows = np.frombuffer(whole[-3 * 6 * 8 :], "<i8").copy()
    rows[1] = 1 << 60  # a length
    start = whole[head + 4 :]
    hostile = [whole[:length] for length in range(0, len(whole), 23)]
    hostile += [whole[:-1] + b"x", forged(b""), forged(b"\xff" * 16), forged(bytes(64))]
    hostile += [forged(start[: -rows.nbytes] + rows.tobytes()), forged(start[:-8]), b"\0" * 5000]
    for place, value in ((0, -1), (1, -1), (1, 5), (0, len(path.read_bytes()) - 9), (3, 5000)):
        rows = np.frombuffer(whole[-3 * 6 * 8 :], "<i8").copy()
        rows[place] = value
        hostile.append(forged(start[: -rows.nbytes] + rows.tobytes()))
    for count, width in ((-1, 8), (3, -1), (3, 0), (3, 1 << 62), (1 << 62, 8), (1 << 40, 0)):
        hostile.append(forged(np.array([count, width], "<i8").tobytes() + start[16:]))
    for data in hostile:
        index.write_bytes(data)
        assert samples(path, 3) == right
        assert index.read_bytes() == whole  # and mended


def test_verifying_a_set_drops_what_was_found_before(train_set: Packed) -> None:
    (train_set.folder / ".index").mkdir()
    (train_set.folder / ".index" / "000000.idx").write_bytes(b"somebody's")
    verify_set(train_set.faces)
    assert not (train_set.folder / ".index").exists()


def test_a_folder_that_is_not_ours_gets_no_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.tar"
    write(path, {"jpg": b"j", "json": b"{}"})
    make_old(path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tars, "write_atomically", full)
    assert len(samples(path, 3)) == 3
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert len(samples(path, 3)) == 3

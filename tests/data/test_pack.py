from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import resource
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import webdataset
from conftest import NO_ALIGN, SIZE_PX, jpeg, write_faces, write_lfw, write_vggface2
from PIL import Image

from persona.cli.errors import explain
from persona.data import journal, pack
from persona.data.align import AlignSpec
from persona.data.journal import PLAN, Chunk, ShardWriter
from persona.data.pack import (
    Packed,
    PackOptions,
    pack_photos,
    pack_set,
    pack_triplets,
    plan_photos,
)
from persona.data.raw import base, open_dataset
from persona.data.raw.base import Photo, RawDataset
from persona.data.raw.lfw import LFW
from persona.data.sets import FaceSet, open_set, shard_path, verify_set
from persona.data.shards import Mended, read_manifest, tar_sample, write_manifest
from persona.data.triplets import make_triplets
from persona.download import Checksum
from persona.errors import PersonaError
from persona.files import folder_lock, sha256_file, write_atomically


def contents(folder: Path) -> dict[str, bytes]:
    """What a finished set is made of."""
    return {
        path.name: path.read_bytes()
        for path in sorted(folder.iterdir())
        if not path.name.startswith(".")
    }


def test_samples_hold_crop_and_metadata(train_set: Packed) -> None:
    manifest = train_set.manifest
    assert (manifest.samples, manifest.identities, len(manifest.shards)) == (30, 6, 5)
    assert [shard.samples for shard in manifest.shards] == [7, 7, 7, 7, 2]
    with tarfile.open(train_set.folder / "000000.tar") as tar:
        members = tar.getmembers()
        assert {member.mtime for member in members} == {0}
        meta = json.load(tar.extractfile(members[1]))  # type: ignore[arg-type]
        image = Image.open(io.BytesIO(tar.extractfile(members[0]).read()))  # type: ignore[union-attr]
        image.load()
    assert image.size == (SIZE_PX, SIZE_PX)
    assert set(meta) == {"key", "identity", "class", "source", "box", "probability", "landmarks"}
    assert manifest.classes[meta["class"]] == meta["identity"]
    assert meta["source"].startswith(f"train/{meta['identity']}/")


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves its files open
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_set_opens_with_plain_webdataset(train_set: Packed) -> None:
    urls = [str(path) for path in sorted(train_set.folder.glob("*.tar"))]
    dataset = webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8").to_tuple("jpg", "json")
    samples = list(dataset)
    assert len(samples) == 30
    assert samples[0][0].shape == (SIZE_PX, SIZE_PX, 3)


def test_bytes_do_not_depend_on_workers(raw: Path, tmp_path: Path) -> None:
    dataset = open_dataset("vggface2", raw)
    alone = pack_photos(dataset, tmp_path / "a" / "s", NO_ALIGN)
    pool = pack_photos(dataset, tmp_path / "b" / "s", replace(NO_ALIGN, workers=3))
    assert contents(alone.folder) == contents(pool.folder)


def test_packed_again_it_says_so_and_changes_nothing(raw: Path, tmp_path: Path) -> None:
    dataset = open_dataset("vggface2", raw)
    first = pack_photos(dataset, tmp_path / "s", NO_ALIGN)
    before = contents(first.folder)
    again = pack_photos(dataset, tmp_path / "s", NO_ALIGN)
    assert (first.fresh, again.fresh) == (True, False)
    assert contents(again.folder) == before
    with pytest.raises(PersonaError, match=r"differs in alignment: .*--out"):
        pack_photos(dataset, tmp_path / "s", replace(NO_ALIGN, align=AlignSpec("none", 64, 0)))


def listed(folder: Path, names: str) -> RawDataset:
    """A list of a photo for each letter, which is its identity."""
    for number in range(len(names)):
        (folder / f"{number}.jpg").write_bytes(jpeg(number))
    rows = (f"{number}.jpg,{name}" for number, name in enumerate(names))
    (folder / "list.csv").write_text("\n".join(["photo,identity", *rows]))
    return open_dataset(f"list:{folder / 'list.csv'}", folder)


@pytest.mark.parametrize("killed", [True, False])
def test_with_corrected_identities_it_is_another_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: bool
) -> None:
    folder = tmp_path / "s"
    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        if killed:
            patch.setattr(pack, "merge_set", stopped)
        pack_photos(listed(tmp_path, "aabb"), folder, NO_ALIGN)
    for names in ("abab", "aabc"):
        with pytest.raises(PersonaError, match=r"differs in identities: remove .* --out"):
            pack_photos(listed(tmp_path, names), folder, NO_ALIGN)
    # Plans did not always tell identities. The names of all are then compared at least.
    earlier = json.loads((folder / PLAN).read_text())
    del earlier["identities"]
    (folder / PLAN).write_text(json.dumps(earlier))
    with pytest.raises(PersonaError, match="differs in identities"):
        pack_photos(listed(tmp_path, "aabc"), folder, NO_ALIGN)
    done = pack_photos(listed(tmp_path, "aabb"), folder, NO_ALIGN)
    assert (done.fresh, done.manifest.classes) == (killed, ("a", "b"))


def stopped(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("told", [True, False])
def test_triplets_do_not_have_identities_from_before_they_were_corrected(
    tmp_path: Path, told: bool
) -> None:
    shards, dataset = tmp_path / "shards", listed(tmp_path, "aabb")

    def drawn() -> str:
        options = {"dataset": dataset.spec, "name": "list", "split": "all", "shards": shards}
        return make_triplets(dataset.index(), 4, seed=0, **options).id  # type: ignore[arg-type]

    before = drawn()
    split = pack_photos(dataset, shards / dataset.set_name, NO_ALIGN)
    if not told:
        earlier = json.loads((split.folder / PLAN).read_text())
        del earlier["identities"]
        (split.folder / PLAN).write_text(json.dumps(earlier))
    dataset = listed(tmp_path, "cdcd")
    with pytest.raises(PersonaError, match=rf"{before} was drawn .* that had other identities"):
        pack_triplets(dataset, before, shards, NO_ALIGN)
    packed = pack_triplets(dataset, drawn(), shards, NO_ALIGN)
    with tarfile.open(packed.folder / "000000.tar") as tar:
        meta = json.load(tar.extractfile("00000000.json"))  # type: ignore[arg-type]
    assert {meta[role]["identity"] for role in ("anchor", "negative")} == {"c", "d"}


def test_a_folder_of_other_tars_is_not_written_over(tmp_path: Path) -> None:
    """As `persona shard tars:DIR --out DIR` would."""
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "000000.tar").write_bytes(tar_sample("ann/1", {"jpg": jpeg(1)}) + bytes(1024))
    before = contents(folder)
    with pytest.raises(PersonaError, match=r"has 000000\.tar, which is of no set packed here"):
        pack_photos(open_dataset(f"tars:{folder}", tmp_path), folder, NO_ALIGN)
    assert contents(folder) == before


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_packed_again_it_has_what_it_lost(raw: Path, tmp_path: Path, damage: str) -> None:
    dataset = open_dataset("lfw", raw)
    whole = pack_photos(dataset, tmp_path / "s", NO_ALIGN)
    before = contents(whole.folder)
    unchanged = (whole.folder / "000000.tar").stat().st_ino
    for name in ("000001.tar", "000003.tar", "pairs.csv"):
        os.truncate(whole.folder / name, 700)
        if damage == "gone":
            (whole.folder / name).unlink()
    again = pack_photos(dataset, tmp_path / "s", NO_ALIGN)
    assert (again.fresh, again.manifest) == (False, whole.manifest)
    assert contents(again.folder) == before
    assert (whole.folder / "000000.tar").stat().st_ino == unchanged
    lines = (raw / "LFW" / "pairs.txt").read_text().splitlines()
    (raw / "LFW" / "pairs.txt").write_text(
        "\n".join([*lines[:1], *lines[2:4], *lines[1:2], *lines[4:]])
    )
    with pytest.raises(PersonaError, match="differs in its verification pairs: remove"):
        pack_photos(dataset, tmp_path / "s", NO_ALIGN)
    (raw / "LFW" / "pairs.txt").write_text("\n".join(lines))
    # A photo that is another one now makes another shard than the manifest promises.
    for path in (raw / "LFW").rglob("*_0001.jpg"):
        path.write_bytes(jpeg(77))
    for path in whole.folder.glob("*.tar"):
        path.unlink()
    with pytest.raises(PersonaError, match=r"000000\.tar is not what it was: .* remove .* folder"):
        pack_photos(dataset, tmp_path / "s", NO_ALIGN)


def test_a_damaged_manifest_says_how_to_pack_anew(raw: Path, tmp_path: Path) -> None:
    dataset = open_dataset("lfw", raw)
    folder = pack_photos(dataset, tmp_path / "s", NO_ALIGN).folder
    (folder / "manifest.json").write_text("{")
    with pytest.raises(PersonaError, match=r"manifest\.json is not valid JSON .* remove it"):
        pack_photos(dataset, tmp_path / "s", NO_ALIGN)
    (folder / "manifest.json").unlink()
    assert pack_photos(dataset, tmp_path / "s", NO_ALIGN).fresh


@pytest.mark.parametrize("stop_after", [0, 1, 3, 4, 6])
def test_stopped_anywhere_it_goes_on_to_the_same_bytes(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_after: int
) -> None:
    monkeypatch.setattr(pack, "CHUNK", 4)
    dataset = open_dataset("vggface2", raw)
    whole = pack_photos(dataset, tmp_path / "whole" / "s", NO_ALIGN)

    class Stop(Exception):  # noqa: N818
        """Stands for a kill: nothing is cleaned up after it."""

    folder = tmp_path / "cut" / "s"
    append, count = ShardWriter.append, 0

    def dying(self: ShardWriter, chunk: Chunk, items: int) -> None:
        nonlocal count
        if count == stop_after:
            # Half a chunk reached the disk, and half a journal line.
            self._tar.write(chunk.data[:700])
            self._journal.write(b'{"size": 99')
            raise Stop
        count += 1
        append(self, chunk, items)

    monkeypatch.setattr(ShardWriter, "append", dying)
    with pytest.raises(Stop):
        pack_photos(dataset, folder, NO_ALIGN)
    assert not (folder / "manifest.json").exists()
    monkeypatch.setattr(ShardWriter, "append", append)
    done = []
    work = pack.PhotoPacker.__call__

    def counting(self: pack.PhotoPacker, tasks):
        done.append(len(tasks))
        return work(self, tasks)

    monkeypatch.setattr(pack.PhotoPacker, "__call__", counting)
    pack_photos(dataset, folder, NO_ALIGN)
    assert contents(folder) == contents(whole.folder)
    assert len(done) == 9 - stop_after  # 30 photos are 4 shards of 2 chunks and one of 1


def test_killed_between_record_and_rename(raw: Path, tmp_path: Path) -> None:
    dataset = open_dataset("vggface2", raw)
    whole = pack_photos(dataset, tmp_path / "whole" / "s", NO_ALIGN)
    folder = tmp_path / "cut" / "s"

    def dying(path: Path, data: bytes) -> None:
        write_atomically(path, data)
        if path.name == ".000002.json":
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal, "write_atomically", dying)
        with pytest.raises(KeyboardInterrupt):
            pack_photos(dataset, folder, NO_ALIGN)
    assert (folder / ".000002.json").exists() and not (folder / "000002.tar").exists()
    pack_photos(dataset, folder, NO_ALIGN)
    assert contents(folder) == contents(whole.folder)


def test_sigkill_of_the_real_command(tmp_path: Path) -> None:
    """Kills `persona shard` with its workers at work, runs it again, compares the bytes."""
    write_vggface2(tmp_path, identities=60, photos=30, size_px=200, different=50)
    command = [sys.executable, "-m", "persona", "shard", "vggface2", "--align", "none"]
    command += ["--raw", str(tmp_path), "--shard-size", "2000", "--workers", "2", "--shards"]
    subprocess.run([*command, str(tmp_path / "whole")], check=True, capture_output=True)
    process = subprocess.Popen(
        [*command, str(tmp_path / "cut")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    folder = tmp_path / "cut" / "vggface2-train"
    deadline = time.monotonic() + 60
    while sum(path.read_bytes().count(b"\n") for path in folder.glob(".*.jsonl")) < 5:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (folder / "manifest.json").exists()
    again = subprocess.run([*command, str(tmp_path / "cut")], check=True, capture_output=True)
    assert b"going on in 000000.tar after" in again.stderr
    assert contents(folder) == contents(tmp_path / "whole" / "vggface2-train")


def test_a_second_run_into_the_same_folder_is_refused(raw: Path, tmp_path: Path) -> None:
    with (
        folder_lock(tmp_path / "s", doing="packing into"),
        pytest.raises(PersonaError, match="another process is packing into"),
    ):
        pack_photos(open_dataset("vggface2", raw), tmp_path / "s", NO_ALIGN)


def test_skipped_photos_are_named_with_reasons(raw: Path, tmp_path: Path) -> None:
    root = raw / "VGGFace2" / "train"
    (root / "n000002/0001_01.jpg").write_bytes(b"")
    (root / "n000003/0002_01.jpg").write_bytes(jpeg(5, 100)[:800])
    (root / "n000004/0003_01.jpg").unlink()
    manifest = pack_photos(open_dataset("vggface2", raw), tmp_path / "s", NO_ALIGN).manifest
    assert manifest.samples == 27
    reasons = {photo.source: photo.reason for photo in manifest.skipped}
    assert reasons["train/n000002/0001_01.jpg"] == "unreadable: empty file"
    assert reasons["train/n000003/0002_01.jpg"].startswith("unreadable")
    assert reasons["train/n000004/0003_01.jpg"] == "listed, not on disk"


def test_a_photo_of_too_many_bytes_is_skipped_unread(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (raw / "VGGFace2/train/n000002/0001_01.jpg").write_bytes(jpeg(1) + bytes(100_000))
    monkeypatch.setattr(base, "MAX_PHOTO_BYTES", 100_000)
    manifest = pack_photos(open_dataset("vggface2", raw), tmp_path / "s", NO_ALIGN).manifest
    assert manifest.samples == 29
    (skipped,) = manifest.skipped
    assert skipped.source == "train/n000002/0001_01.jpg"
    size = len(jpeg(1)) + 100_000
    assert skipped.reason == f"unreadable: {size:,} bytes are over the limit"


def test_pictures_of_every_kind_are_packed_or_counted(tmp_path: Path) -> None:
    folder = tmp_path / "raw" / "ann"
    folder.mkdir(parents=True)
    for suffix in ("jpg", "jfif", "jpe", "JPG", "png", "webp", "bmp", "tiff", "gif", "avif"):
        form = {"jfif": "JPEG", "jpe": "JPEG"}.get(suffix)
        Image.open(io.BytesIO(jpeg(1))).save(folder / f"{suffix}.{suffix}", form)
    (folder / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    (folder / "raw.DNG").write_bytes(b"II*\0")
    (folder / "no_end.jpg").write_bytes(jpeg(2)[:-2])
    (folder / "notes.txt").write_text("no picture")
    dataset = open_dataset(f"folders:{tmp_path / 'raw'}", tmp_path)
    manifest = pack_photos(dataset, tmp_path / "out", NO_ALIGN).manifest
    assert manifest.samples == 11
    assert {photo.source: photo.reason for photo in manifest.skipped} == {
        "ann/phone.heic": "unreadable: HEIC, which is not supported: convert it to JPEG",
        "ann/raw.DNG": "unreadable: a TIFF that is damaged",
    }
    assert manifest.mended == (Mended("ann/no_end.jpg", "JPEG without its end mark"),)
    assert read_manifest(tmp_path / "out") == manifest


def test_photos_that_cannot_be_reached_are_not_skipped(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that goes away for a while takes no photo out of the set."""
    whole = pack_photos(open_dataset("lfw", raw), tmp_path / "a" / "s", NO_ALIGN)
    root = raw / "LFW"
    planned = plan_photos(open_dataset("lfw", raw), tmp_path / "s", NO_ALIGN)
    root.rename(raw / "unmounted")
    with pytest.raises(
        PersonaError, match=r"LFW cannot be read \(No such file or directory\): .* go"
    ):
        pack_set(planned, NO_ALIGN)
    (raw / "unmounted").rename(root)
    read, count = LFW.read, 0

    def stale(self: LFW, photo: Photo) -> bytes:
        nonlocal count
        count += 1
        if count == 9:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return read(self, photo)

    with monkeypatch.context() as patch:
        patch.setattr(LFW, "read", stale)
        with pytest.raises(PersonaError, match=r"LFW cannot be read \(Stale file handle\)"):
            pack_photos(open_dataset("lfw", raw), tmp_path / "s", NO_ALIGN)
    assert contents(pack_photos(open_dataset("lfw", raw), tmp_path / "s", NO_ALIGN).folder) == (
        contents(whole.folder)
    )


def test_too_many_skips_stop_the_run(raw: Path, tmp_path: Path) -> None:
    for path in list((raw / "VGGFace2" / "train").glob("*/*.jpg"))[:25]:
        path.write_bytes(b"")
    with pytest.raises(PersonaError, match=r"photos were skipped, more than 50% of 30.*--max-skip"):
        pack_photos(open_dataset("vggface2", raw), tmp_path / "s", NO_ALIGN)
    options = replace(NO_ALIGN, max_skipped=1.0)
    assert pack_photos(open_dataset("vggface2", raw), tmp_path / "s", options).manifest.samples == 5


def test_boxes_are_cut_out(raw: Path, tmp_path: Path) -> None:
    root = raw / "VGGFace2"
    (root / "bb_landmark").mkdir()
    lines = ["NAME_ID,X,Y,W,H"]
    for line in (root / "train_list.txt").read_text().split():
        lines.append(f"{line.removesuffix('.jpg')},4,4,20,20")
    (root / "bb_landmark/loose_bb_train.csv").write_text("\n".join(lines[:-1]) + "\n")
    options = replace(NO_ALIGN, align=AlignSpec("boxes", 48, 4))
    manifest = pack_photos(open_dataset("vggface2", raw), tmp_path / "s", options).manifest
    assert manifest.samples == 29
    assert manifest.skipped[0].reason == "no face: the box file does not name this photo"


def test_pairs_are_packed_by_key(lfw_set: Packed) -> None:
    pairs = lfw_set.faces.pairs()
    assert len(pairs) == lfw_set.manifest.pairs == 12
    assert sum(pair.same for pair in pairs) == 6
    assert {pair.fold for pair in pairs} == {0, 1}
    assert all(pair.a is not None and pair.b is not None for pair in pairs)


def test_pairs_of_absent_photos_are_kept_and_counted(tmp_path: Path) -> None:
    root = write_lfw(tmp_path)
    (root / "Person_A" / "Person_A_0001.jpg").unlink()
    packed = pack_photos(open_dataset("lfw", tmp_path), tmp_path / "s", NO_ALIGN)
    pairs = packed.faces.pairs()
    assert len(pairs) == 12
    assert sum(pair.a is None or pair.b is None for pair in pairs) == 2
    assert packed.manifest.skipped[0].reason == "listed, not on disk"
    with pytest.raises(PersonaError, match=r"2 of 12 pairs name photos that are not there"):
        pack_photos(open_dataset("lfw", tmp_path), tmp_path / "t", replace(NO_ALIGN, max_skipped=0))


@pytest.mark.parametrize("split_is_packed", [True, False])
def test_triplets_hold_three_photos(raw: Path, tmp_path: Path, split_is_packed: bool) -> None:
    dataset, shards = open_dataset("vggface2", raw, "test"), tmp_path / "shards"
    index = dataset.index()
    card = make_triplets(index, 20, dataset="vggface2", split="test", seed=0, shards=shards)
    if split_is_packed:
        pack_photos(dataset, shards / dataset.set_name, NO_ALIGN)
    packed = pack_triplets(dataset, card.id, shards, NO_ALIGN)
    assert (packed.manifest.kind, packed.manifest.samples) == ("triplets", 20)
    assert not (packed.folder / ".crops").exists()
    (packed.folder / "000000.tar").unlink()
    assert not pack_triplets(dataset, card.id, shards, NO_ALIGN).fresh
    assert not (packed.folder / ".crops").exists()
    with tarfile.open(packed.folder / "000000.tar") as tar:
        names = [member.name for member in tar.getmembers()[:4]]
        meta = json.load(tar.extractfile("00000000.json"))  # type: ignore[arg-type]
        assert names == [
            f"00000000.{part}" for part in ("anchor.jpg", "json", "negative.jpg", "positive.jpg")
        ]
    assert meta["anchor"]["identity"] == meta["positive"]["identity"]
    assert meta["anchor"]["source"] != meta["positive"]["source"]
    assert meta["anchor"]["identity"] != meta["negative"]["identity"]


def test_triplets_give_the_same_bytes_from_raw_and_from_the_packed_split(
    raw: Path, tmp_path: Path
) -> None:
    dataset = open_dataset("vggface2", raw, "test")
    sets = []
    for shards in (tmp_path / "one", tmp_path / "two"):
        index = dataset.index()
        card = make_triplets(index, 20, dataset="vggface2", split="test", seed=0, shards=shards)
        if shards.name == "two":
            pack_photos(dataset, shards / dataset.set_name, NO_ALIGN)
        sets.append(contents(pack_triplets(dataset, card.id, shards, NO_ALIGN).folder))
    assert sets[0] == sets[1]


def test_triplets_without_a_face_are_left_out_and_named(raw: Path, tmp_path: Path) -> None:
    dataset, shards = open_dataset("vggface2", raw, "test"), tmp_path / "shards"
    index = dataset.index()
    card = make_triplets(index, 20, dataset="vggface2", split="test", seed=0, shards=shards)
    (dataset.root / index.photos[0].source).write_bytes(b"broken")
    manifest = pack_triplets(dataset, card.id, shards, NO_ALIGN).manifest
    assert manifest.samples + len(manifest.skipped) == 20
    assert "no crop of its" in manifest.skipped[0].reason


def test_triplets_of_photos_that_all_fail_are_all_left_out(raw: Path, tmp_path: Path) -> None:
    dataset, shards = open_dataset("vggface2", raw, "test"), tmp_path / "shards"
    index = dataset.index()
    card = make_triplets(index, 20, dataset="vggface2", split="test", seed=0, shards=shards)
    for photo in index.photos:
        (dataset.root / photo.source).write_bytes(b"broken")
    with pytest.raises(
        PersonaError, match=r"none of 20 triplets could be packed; .* no crop of its"
    ):
        pack_triplets(dataset, card.id, shards, replace(NO_ALIGN, max_skipped=1))


def test_triplets_of_damaged_crops_are_refused(raw: Path, tmp_path: Path) -> None:
    dataset, shards = open_dataset("vggface2", raw, "test"), tmp_path / "shards"
    index = dataset.index()
    card = make_triplets(index, 20, dataset="vggface2", split="test", seed=0, shards=shards)
    crops = pack_photos(dataset, shards / dataset.set_name, NO_ALIGN)
    tar = shard_path(crops.faces, 0)
    without_class = tar.read_bytes().replace(b'"class"', b'"glass"')
    sample = {"jpg": b"", "json": b"{}"}
    names = [tar_sample(f"face{n}", sample) for n in range(crops.manifest.shards[0].samples)]
    for data, what in (
        (without_class, r"sample \d+: KeyError"),
        (b"".join(names).ljust(len(without_class), b"\0"), "a key that is no number"),
    ):
        tar.write_bytes(data)
        first = replace(crops.manifest.shards[0], sha256=hashlib.sha256(data).hexdigest())
        others = crops.manifest.shards[1:]
        write_manifest(crops.folder, replace(crops.manifest, shards=(first, *others)))
        with pytest.raises(PersonaError, match=rf"000000.tar is damaged \({what}\)"):
            pack_triplets(dataset, card.id, shards, NO_ALIGN)


def test_triplets_of_another_split_are_refused(raw: Path, tmp_path: Path) -> None:
    test = open_dataset("vggface2", raw, "test")
    card = make_triplets(test.index(), 5, dataset="vggface2", split="test", seed=0, shards=tmp_path)
    with pytest.raises(PersonaError, match=r"drawn from vggface2 \(test\), not from .*\(train\)"):
        pack_triplets(open_dataset("vggface2", raw), card.id, tmp_path, NO_ALIGN)


def test_a_file_that_cannot_be_read_hides_no_other_damage(
    train_set: Packed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error of a bad sector names no file, and may come anywhere in it."""
    first, last = (train_set.folder / f"{number:06d}.tar" for number in (0, 1))
    digest = hashlib.file_digest
    last.unlink()

    def read(file: Any, kind: Any) -> Any:
        if file.name == str(first):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return digest(file, kind)

    monkeypatch.setattr(hashlib, "file_digest", read)
    said = rf"{first} cannot be read \(Input/output error\); {last} is missing: restore these"
    with pytest.raises(PersonaError, match=said):
        verify_set(train_set.faces)
    for reader in (sha256_file, Checksum("sha256", "0").fits):
        with pytest.raises(OSError, match="Input/output error") as raised:
            reader(first)
        assert raised.value.filename == str(first)


def test_damage_is_found(train_set: Packed) -> None:
    name, folder = train_set.manifest.name, train_set.folder
    verify_set(train_set.faces)
    path = folder / "000001.tar"
    data = bytearray(path.read_bytes())
    data[600] ^= 1
    path.write_bytes(data)
    open_set(name, folder.parent)  # same size: only verify reads the bytes
    with pytest.raises(PersonaError, match=r"000001\.tar does not match its checksum"):
        verify_set(train_set.faces)
    path.write_bytes(data[:-512])
    with pytest.raises(PersonaError, match=r"000001\.tar has .* bytes, its manifest says"):
        open_set(name, folder.parent)
    path.unlink()
    with pytest.raises(PersonaError, match=r"000001\.tar is missing"):
        open_set(name, folder.parent)


def test_each_damaged_file_is_named(lfw_set: Packed) -> None:
    faces = open_set("lfw", lfw_set.folder.parent)
    for name in ("000000.tar", "000002.tar", "pairs.csv"):
        data = (lfw_set.folder / name).read_bytes()
        (lfw_set.folder / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(
        PersonaError, match=r"000000\.tar does .*/000002\.tar does .*/pairs\.csv does"
    ):
        faces.verify()


def test_triplets_have_no_metadata_of_single_photos(raw: Path, tmp_path: Path) -> None:
    dataset = open_dataset("vggface2", raw, "test")
    options = {"dataset": "vggface2", "split": "test", "shards": tmp_path}
    card = make_triplets(dataset.index(), 5, seed=0, **options)  # type: ignore[arg-type]
    faces = pack_triplets(dataset, card.id, tmp_path, NO_ALIGN).faces
    with pytest.raises(PersonaError, match=f"set {card.id} holds triplets: choose"):
        faces.metas()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 99}, "has version 99, this is version 3"),
        ({"samples": 31}, "contradicts itself"),
        ({"shards": "none"}, "is no manifest"),
        ({"name": "a\u202eb"}, "is no manifest"),
        ({"kind": "sculptures"}, "contradicts itself"),
    ],
)
def test_foreign_manifests_are_refused(train_set: Packed, change, message: str) -> None:
    path = train_set.folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(PersonaError, match=message):
        read_manifest(train_set.folder)


def test_a_set_may_be_called_as_people_are(train_set: Packed) -> None:
    path = train_set.folder / "manifest.json"
    for name in ("نیک\u200cنام", "Jean\u00a0Paul"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"name": name}))
        assert read_manifest(train_set.folder).name == name


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("name",), ["s"]),
        (("dataset",), "\x1b[2J"),
        (("identities",), -1),
        (("pairs",), 1.5),
        (("align", "image_size"), 160.5),
        (("shards", 0, "samples"), 10**9),
        (("shards", 0, "samples"), -7),
        (("shards", 0, "samples"), float("inf")),
        (("shards", 0, "bytes"), float("inf")),
        (("shards", 0, "sha256"), "../../etc/passwd"),
        (("shards", 0, "no_face"), [-1]),
        (("pairs_sha256",), "../../etc/passwd"),
    ],
)
def test_hostile_manifests_are_refused(train_set: Packed, place, value: object) -> None:
    path = train_set.folder / "manifest.json"
    manifest = part = json.loads(path.read_text())
    for name in place[:-1]:
        part = part[name]
    part[place[-1]] = value
    if place[-1] == "samples" and isinstance(value, int):
        manifest["samples"] = sum(shard["samples"] for shard in manifest["shards"])
    path.write_text(json.dumps(manifest))
    with pytest.raises(PersonaError, match=r"no manifest|cannot be in|checksums that are none"):
        open_set("vggface2-train", train_set.folder.parent)


@pytest.mark.parametrize("text", ['{"version": ' + "9" * 5000 + "}", "[" * 200_000])
def test_hostile_json_is_one_line(train_set: Packed, text: str) -> None:
    (train_set.folder / "manifest.json").write_text(text)
    with pytest.raises(PersonaError, match=r"is not valid JSON"):
        open_set("vggface2-train", train_set.folder.parent)


def test_pairs_that_are_none_are_one_line(lfw_set: Packed) -> None:
    (lfw_set.folder / "pairs.csv").write_bytes(b"a,b\nx")
    digest = hashlib.sha256(b"a,b\nx").hexdigest()
    with pytest.raises(PersonaError, match=r"pairs\.csv holds no pairs of keys"):
        FaceSet(lfw_set.folder, replace(lfw_set.manifest, pairs_sha256=digest)).pairs()


def test_a_manifest_cannot_name_files_outside_its_folder(train_set: Packed) -> None:
    path = train_set.folder / "manifest.json"
    path.write_text(path.read_text().replace("000000.tar", "../../secret.tar"))
    with pytest.raises(PersonaError, match="names a shard"):
        read_manifest(train_set.folder)


def test_unknown_sets_say_what_to_run(raw: Path, train_set: Packed) -> None:
    shards = train_set.folder.parent
    assert open_set("vggface2", shards).name == "vggface2-train"
    with pytest.raises(PersonaError, match="`persona shard lfw` for FaceNet"):
        open_set("lfw", shards)
    with pytest.raises(PersonaError, match="did you mean 'vggface2-train'"):
        open_set("vggface2-trian", shards)
    dataset = open_dataset("vggface2", raw, "test")
    card = make_triplets(
        dataset.index(), 5, dataset="vggface2", split="test", seed=0, shards=shards
    )
    with pytest.raises(PersonaError, match=f"not packed yet.*--triplets {card.id}"):
        open_set(card.id, shards)


def test_a_full_disk_loses_nothing(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = open_dataset("vggface2", raw)
    append, calls = ShardWriter.append, 0

    def full(self: ShardWriter, chunk: Chunk, items: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "000002.tar.partial")
        append(self, chunk, items)

    monkeypatch.setattr(ShardWriter, "append", full)
    with pytest.raises(OSError, match="No space left"):
        pack_photos(dataset, tmp_path / "s", NO_ALIGN)
    manifest = pack_photos(dataset, tmp_path / "s", NO_ALIGN).manifest
    assert manifest.samples == 30


def test_a_full_disk_is_told_with_its_place(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    monkeypatch.setattr(pack, "CHUNK", 4)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (9_000, before[1]))
        with pytest.raises(OSError, match="File too large") as error:
            pack_photos(open_dataset("vggface2", raw), tmp_path / "s", NO_ALIGN)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert explain(error.value) == (
        f"{tmp_path / 's'}: the file is larger than this system allows",
        1,
    )
    assert (
        pack_photos(open_dataset("vggface2", raw), tmp_path / "s", NO_ALIGN).manifest.samples == 30
    )


@pytest.mark.parametrize(
    "options", [{"workers": -1}, {"shard_size": 0}, {"shard_size": 10**12}, {"max_skipped": 2}]
)
def test_absurd_options(options: dict[str, int]) -> None:
    with pytest.raises(PersonaError, match="choose"):
        PackOptions(**options)  # type: ignore[arg-type]


def test_default_shards_are_about_100_mb() -> None:
    assert 8_000 < PackOptions().samples_per_shard(1) < 12_000


def write_boxes(path: Path, boxes: dict[str, str]) -> Path:
    lines = [f"{source},{numbers}" for source, numbers in boxes.items()]
    path.write_text("\n".join(["source,x,y,width,height", *lines]) + "\n")
    return path


def test_boxes_from_a_csv(raw: Path, tmp_path: Path) -> None:
    dataset = open_dataset("lfw", raw)
    sources = [photo.source for photo in dataset.index().photos]
    boxes = dict.fromkeys(sources[2:], "4,4,20,20")
    boxes |= {sources[0]: "40,4,20,20", sources[1]: "4,4,0,20", "Nobody/1.jpg": "1,1,9,9"}
    options = replace(
        NO_ALIGN,
        align=AlignSpec("boxes", 48, 4),
        boxes=write_boxes(tmp_path / "boxes.csv", boxes),
    )
    packed = pack_photos(dataset, tmp_path / "s", options)
    assert packed.manifest.samples == len(sources) - 2
    assert {photo.source: photo.reason for photo in packed.manifest.skipped} == {
        "Nobody/1.jpg": "it has a box, but is not there",
        sources[0]: "no face: its box lies outside the photo or is empty",
        sources[1]: "no face: its box lies outside the photo or is empty",
    }
    assert not pack_photos(dataset, tmp_path / "s", options).fresh
    write_boxes(tmp_path / "boxes.csv", dict.fromkeys(sources, "5,4,20,20"))
    with pytest.raises(PersonaError, match=r"differs in boxes: remove"):
        pack_photos(dataset, tmp_path / "s", options)


def test_photos_without_a_face_or_a_centre_are_skipped(raw: Path, tmp_path: Path) -> None:
    """In a set with pairs, a photo without a box is read for its centre crop."""
    dataset = open_dataset("lfw", raw)
    sources = [photo.source for photo in dataset.index().photos]
    (dataset.root / sources[0]).write_bytes(b"no photo")
    Image.new("RGB", (64, 1)).save(dataset.root / sources[1])
    options = replace(
        NO_ALIGN,
        align=AlignSpec("boxes", 48, 4),
        boxes=write_boxes(tmp_path / "boxes.csv", dict.fromkeys(sources[3:], "4,4,20,20")),
    )
    manifest = pack_photos(dataset, tmp_path / "s", options).manifest
    assert manifest.samples == len(sources) - 2
    assert sum(len(shard.no_face) for shard in manifest.shards) == 1
    skipped = {photo.source: photo.reason for photo in manifest.skipped}
    assert skipped.keys() == {sources[0], sources[1]}
    assert skipped[sources[0]].startswith("unreadable")


def test_boxes_that_are_not_of_this_dataset(raw: Path, tmp_path: Path) -> None:
    boxes = write_boxes(tmp_path / "boxes.csv", {"a.jpg": "1,1,9,9", "b.jpg": "1,1,9,9"})
    options = replace(NO_ALIGN, align=AlignSpec("boxes", 48, 4), boxes=boxes)
    with pytest.raises(PersonaError, match=r"2 of 2 boxes are of photos .* first is a\.jpg"):
        pack_photos(open_dataset("lfw", raw), tmp_path / "s", options)
    with pytest.raises(PersonaError, match=r"lfw has no face boxes of its own: .* --boxes"):
        pack_photos(open_dataset("lfw", raw), tmp_path / "s", replace(options, boxes=None))
    with pytest.raises(PersonaError, match=r"--boxes goes with --align boxes, not with none"):
        replace(NO_ALIGN, boxes=boxes)
    with pytest.raises(PersonaError, match=r"did you mean 'cuda'"):
        replace(NO_ALIGN, device="cude")


def test_own_boxes_of_absent_photos_are_counted(raw: Path, tmp_path: Path) -> None:
    root = raw / "VGGFace2"
    (root / "bb_landmark").mkdir()
    listed = (root / "train_list.txt").read_text().split()
    names = [name.removesuffix(".jpg") for name in listed]
    names += [f"{names[0].partition('/')[0]}/9999_01", "n999999/0001_01"]
    lines = ["NAME_ID,X,Y,W,H", *(f"{name},4,4,20,20" for name in names)]
    (root / "bb_landmark/loose_bb_train.csv").write_text("\n".join(lines) + "\n")
    options = replace(NO_ALIGN, align=AlignSpec("boxes", 48, 4))
    manifest = pack_photos(open_dataset("vggface2", raw), tmp_path / "s", options).manifest
    assert manifest.samples == 30
    (skipped,) = manifest.skipped  # an identity that is absent as a whole is no fault
    assert skipped.source.endswith("9999_01.jpg") and "not there" in skipped.reason


def test_faces_of_the_wanted_size_keep_their_bytes(raw: Path, tmp_path: Path) -> None:
    packed = pack_photos(open_dataset("lfw", raw), tmp_path / "s", NO_ALIGN)
    with tarfile.open(packed.folder / "000000.tar") as tar:
        image, meta = tar.getmembers()[:2]
        kept = tar.extractfile(image).read()  # type: ignore[union-attr]
        source = json.load(tar.extractfile(meta))["source"]  # type: ignore[arg-type]
    assert kept == (raw / "LFW" / source).read_bytes()


def test_detected_faces_have_the_same_bytes_on_any_number_of_workers(tmp_path: Path) -> None:
    write_faces(tmp_path / "raw")
    options = PackOptions(shard_size=8, workers=0, device="cpu")
    sets = [
        pack_photos(open_dataset("lfw", tmp_path / "raw"), tmp_path / name, replacing)
        for name, replacing in (("a", options), ("b", replace(options, workers=2)))
    ]
    assert sets[0].manifest.samples >= 18
    assert sets[0].manifest.shards == sets[1].manifest.shards

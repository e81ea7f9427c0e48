from __future__ import annotations

import errno
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import NO_ALIGN, jpeg

from persona.data.pack import pack_photos, packing_order
from persona.data.raw import open_dataset, parquet
from persona.errors import PersonaError, SkipPhoto

NAMES = ["zoe", "ann", "bob"]
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write(
    path: Path, labels: list[Any], *, group: int = 4, names: list[str] | None = None, **columns: Any
) -> Path:
    """A file as the datasets library writes it."""
    images = [{"bytes": jpeg(number), "path": f"{number}.jpg"} for number in range(len(labels))]
    table = pa.table(columns or {"image": pa.array(images, IMAGE), "label": labels})
    if names is not None:
        features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
        info = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": info})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=group)
    return path


def test_class_names_come_from_the_metadata_and_packing_needs_no_disk(tmp_path: Path) -> None:
    write(tmp_path / "hf/data/train-0.parquet", [0, 1, 2, 1, 0, 2, 1], names=NAMES)
    write(tmp_path / "hf/data/test-0.parquet", [1, 1], names=NAMES)
    dataset = open_dataset(f"parquet:{tmp_path / 'hf'}", tmp_path, "train")
    index = dataset.index()
    assert dataset.set_name == "hf-train"
    assert index.classes == ("ann", "bob", "zoe")
    assert [p.identity for p in index.photos] == ["zoe", "ann", "bob", "ann", "zoe", "bob", "ann"]
    again = pickle.loads(pickle.dumps(dataset))
    assert [again.read(photo) for photo in index.photos] == [jpeg(n) for n in range(7)]
    assert pack_photos(dataset, tmp_path / "set", NO_ALIGN).manifest.samples == 7
    whole = open_dataset(f"parquet:{tmp_path / 'hf'}", tmp_path)
    assert (whole.set_name, len(whole.index().photos)) == ("hf", 9)


def test_plain_bytes_and_labels_that_name_themselves(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", [0], jpg=[jpeg(1), jpeg(2)], identity=["ann", "bob"])
    dataset = open_dataset(f"parquet:{path}", tmp_path)
    assert dataset.set_name == "a"
    assert dataset.index().classes == ("ann", "bob")
    path = write(tmp_path / "b.parquet", [7, 12])
    assert open_dataset(f"parquet:{path}", tmp_path).index().classes == ("0000007", "0000012")


@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize(
    "kind",
    [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.dictionary(pa.int32(), pa.string()),
        pa.dictionary(pa.int8(), pa.large_string()),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "image",
    [
        pa.binary(),
        pa.large_binary(),
        pa.binary_view(),
        pa.dictionary(pa.int32(), pa.binary()),
        pa.struct([("bytes", pa.large_binary()), ("path", pa.large_string())]),
    ],
    ids=str,
)
def test_all_of_arrows_texts_and_bytes(tmp_path: Path, image: Any, kind: Any, stored: bool) -> None:
    names = ["ann", "bob\u00a0lee", "ann", "\u0645\u06cc\u200c\u0646"]
    photos = [jpeg(number) for number in range(4)]
    columns = []
    values = [{"bytes": p, "path": ""} for p in photos] if pa.types.is_struct(image) else photos
    for wanted, given in ((image, values), (kind, names)):
        if pa.types.is_dictionary(wanted):
            column = pa.array(given, wanted.value_type).dictionary_encode().cast(wanted)
        else:
            column = pa.array(given, wanted)
        columns.append(column)
    path = tmp_path / "a.parquet"
    table = pa.table(columns, names=["image", "label"])
    pq.write_table(table, path, row_group_size=3, store_schema=stored)
    dataset = open_dataset(f"parquet:{path}", tmp_path)
    index = dataset.index()
    assert [photo.identity for photo in index.photos] == names
    assert [dataset.read(photo) for photo in index.photos] == photos


@pytest.mark.parametrize("label", ["a\nb", "a\u2028b", "a\x85", "a\x1b[2J"])
def test_a_name_is_one_line(tmp_path: Path, label: str) -> None:
    path = write(tmp_path / "a.parquet", [label])
    with pytest.raises(PersonaError, match="has the label"):
        open_dataset(f"parquet:{path}", tmp_path).index()


def test_minus_one_is_nobody(tmp_path: Path) -> None:
    """Which is what the datasets library writes where a split has no labels."""
    for labels, names in (([1, -1], NAMES), ([1, -1], None), (["ann", "-1"], None)):
        path = write(tmp_path / "a.parquet", labels, names=names)
        index = open_dataset(f"parquet:{path}", tmp_path).index()
        assert len(index.photos) == 1
        assert index.nobody == ("a.parquet/00000/0000001",)


def test_what_systems_leave_beside_files_is_no_file(tmp_path: Path) -> None:
    path = write(tmp_path / "p" / "a.parquet", [0, 1])
    for litter in ("._a.parquet", "__MACOSX/a.parquet", "@eaDir/a.parquet"):
        (path.parent / litter).parent.mkdir(exist_ok=True)
        (path.parent / litter).write_bytes(b"no parquet")
    assert len(open_dataset(f"parquet:{path.parent}", tmp_path).index().photos) == 2


def test_packing_keeps_to_a_window_of_row_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.parquet", [n % 5 for n in range(60)], group=5)
    monkeypatch.setattr(parquet, "MAX_BLOCKS", 3)
    dataset = open_dataset(f"parquet:{path}", tmp_path)
    index = dataset.index()
    order = packing_order(dataset, index.photos).tolist()
    assert sorted(order) == list(range(60))
    windows = [{index.photos[p].source[:15] for p in order[i : i + 15]} for i in range(0, 60, 15)]
    assert [len(window) for window in windows] == [3] * 4
    assert len(set().union(*windows)) == 12
    assert sorted(order[:15]) != order[:15]

    reads: list[int] = []
    read_column = parquet._read_column

    def counted(file: Any, group: int, column: str) -> Any:
        reads.append(group)
        return read_column(file, group, column)

    monkeypatch.setattr(parquet, "_read_column", counted)
    for place in order:
        assert dataset.read(index.photos[place])
    assert sorted(reads) == list(range(12))  # each once


def test_datasets_without_blocks_keep_their_order(raw: Path) -> None:
    import hashlib

    dataset = open_dataset("vggface2", raw)
    photos = dataset.index().photos
    digests = [hashlib.blake2b(p.source.encode(), digest_size=16).digest() for p in photos]
    order = packing_order(dataset, photos).tolist()
    assert order == sorted(range(len(photos)), key=digests.__getitem__)


def bad_metadata(path: Path) -> Path:
    table = pa.table({"image": pa.array([{"bytes": b"x", "path": ""}], IMAGE), "label": [0]})
    pq.write_table(table.replace_schema_metadata({"huggingface": "{"}), path)
    return path


def twice_named(path: Path) -> None:
    columns = [pa.array([{"bytes": b"x", "path": ""}], IMAGE), pa.array([0]), pa.array([1])]
    pq.write_table(pa.table(columns, names=["image", "label", "label"]), path)


def bad_name(path: Path) -> None:
    data = write(path, [0], jpg=[jpeg(1)], name=["a"]).read_bytes()
    path.write_bytes(data.replace(b"name", b"n\xffme"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda p: write(p, [0], pixels=[1.5], label=[0]),
            "no image column .* among pixels \\(double\\)",
        ),
        (lambda p: write(p, [0], image=[b"x"], age=[1.5]), "no label column .*, age \\(double\\)"),
        (
            lambda p: write(p, [0], image=[b"x"], label=[1.5]),
            r"column \(whole numbers or text\) among image \(binary\), label \(double\)",
        ),
        (lambda p: write(p, [0], names=["ann", "bob", "ann"]), "of 'label' name 'ann' twice"),
        (twice_named, "has two columns called 'label'"),
        (lambda p: write(p, [0, 3], names=NAMES), "row 1 of group 0: label 3 is none of the 3"),
        (lambda p: write(p, [0, -2]), "row 1 of group 0 has the label '-2'"),
        (lambda p: write(p, [0, None]), "has the label 'None'"),
        (bad_metadata, "its Hugging Face metadata is damaged"),
        (lambda p: p.write_bytes(b"PAR1 no PAR1"), "is no whole parquet file"),
        (lambda p: p.write_bytes(b""), "is no whole parquet file"),
        (bad_name, "is no whole parquet file"),
        (lambda p: p.write_bytes(write(p, [0] * 9).read_bytes()[:-40]), "is no whole parquet file"),
    ],
)
def test_broken_files_are_one_line(tmp_path: Path, make, message: str) -> None:
    path = tmp_path / "a.parquet"
    make(path)
    with pytest.raises(PersonaError, match=message) as error:
        open_dataset(f"parquet:{path}", tmp_path).index()
    assert "\n" not in str(error.value)


def test_a_damaged_row_group_stops_the_run_in_one_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", [0, 1])
    dataset = open_dataset(f"parquet:{path}", tmp_path)
    photos = dataset.index().photos
    data = bytearray(path.read_bytes())
    data[4:60] = b"\xff" * 56
    path.write_bytes(bytes(data))
    with pytest.raises(PersonaError, match="is no whole parquet file"):
        dataset.read(photos[0])


def test_rows_without_bytes_are_skipped(tmp_path: Path) -> None:
    images = pa.array(
        [{"bytes": None, "path": "/etc/passwd"}, {"bytes": jpeg(1), "path": ""}], IMAGE
    )
    path = write(tmp_path / "a.parquet", [0], image=images, label=[0, 1])
    dataset = open_dataset(f"parquet:{path}", tmp_path)
    with pytest.raises(SkipPhoto, match="its row holds no bytes"):
        dataset.read(dataset.index().photos[0])


def test_a_photo_that_comes_often_takes_memory_once(tmp_path: Path) -> None:
    """A file of 400 kB that would be 180 MB of values."""
    path = tmp_path / "a.parquet"
    photo = jpeg(1) + bytes(300_000)
    images = pa.array([{"bytes": photo, "path": ""}] * 600, IMAGE)
    write(path, [0], group=600, image=images, label=["x" * 200] * 600)
    del images
    assert path.stat().st_size < 1_000_000
    dataset = open_dataset(f"parquet:{path}", tmp_path)
    photos = dataset.index().photos
    before = pa.total_allocated_bytes()
    assert dataset.read(photos[599]) == photo
    assert pa.total_allocated_bytes() - before < 10_000_000


def test_a_file_that_may_not_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arrow's own error has the number alone."""

    def refused(path: Path) -> None:
        raise PermissionError(errno.EACCES, "Failed to open local file")

    monkeypatch.setattr(pq, "ParquetFile", refused)
    path = write(tmp_path / "a.parquet", [0])
    with pytest.raises(PermissionError) as error:
        open_dataset(f"parquet:{path}", tmp_path).index()
    assert error.value.filename == str(path)


def test_a_file_that_changes_is_skipped_and_pipes_are_passed_over(tmp_path: Path) -> None:
    path = write(tmp_path / "p" / "a.parquet", [0, 1, 2])
    os.mkfifo(tmp_path / "p" / "b.parquet")
    dataset = open_dataset(f"parquet:{tmp_path / 'p'}", tmp_path)
    photos = dataset.index().photos
    write(path, [0])
    with pytest.raises(SkipPhoto, match="its file has changed"):
        dataset.read(photos[2])


def test_large_row_groups_and_differing_files_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "p/a.parquet", [0, 1])
    write(tmp_path / "p/b.parquet", [0], jpg=[jpeg(1)], label=[0])
    with pytest.raises(PersonaError, match=r"b\.parquet has other columns"):
        open_dataset(f"parquet:{tmp_path / 'p'}", tmp_path).index()
    for limit in ("MAX_GROUP_BYTES", "MAX_GROUP_ROWS"):
        with monkeypatch.context() as patch:
            patch.setattr(parquet, limit, 1)
            with pytest.raises(PersonaError, match="write it anew with smaller ones"):
                open_dataset(f"parquet:{tmp_path / 'p'}", tmp_path).index()
    (tmp_path / "none").mkdir()
    with pytest.raises(PersonaError, match=r"\*\.parquet is missing"):
        open_dataset(f"parquet:{tmp_path / 'none'}", tmp_path).index()

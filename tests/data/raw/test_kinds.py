"""What holds for every kind of raw dataset: its photos are read by worker processes, too."""

from __future__ import annotations

import csv
import io
import pickle
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import NO_ALIGN, jpeg
from test_recordio import insightface

from persona.data.pack import pack_photos
from persona.data.raw import DATASET_KINDS, open_dataset

PHOTOS = {f"{person}/{number}.jpg": jpeg(number) for person in "ab" for number in range(4)}


def folders(place: Path) -> Path:
    for name, data in PHOTOS.items():
        (place / "people" / name).parent.mkdir(parents=True, exist_ok=True)
        (place / "people" / name).write_bytes(data)
    return place / "people"


def tars(place: Path) -> Path:
    with tarfile.open(place / "people.tar", "w") as tar:
        for name, data in PHOTOS.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return place / "people.tar"


def parquet(place: Path) -> Path:
    table = pa.table({"jpg": list(PHOTOS.values()), "identity": [name[0] for name in PHOTOS]})
    pq.write_table(table, place / "people.parquet")
    return place / "people.parquet"


def photo_list(place: Path) -> Path:
    root = folders(place)
    with (root / "people.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["photo", "identity"], *([n, n[0]] for n in PHOTOS)])
    return root / "people.csv"


def verification_bin(place: Path) -> Path:
    same = [pair % 2 == 0 for pair in range(20)]
    (place / "lfw.bin").write_bytes(pickle.dumps(([jpeg(n) for n in range(40)], same)))
    return place / "lfw.bin"


def recordio(place: Path) -> Path:
    insightface(place / "people")
    return place / "people"


MAKERS: dict[str, Callable[[Path], Path]] = {
    "folders": folders,
    "tars": tars,
    "parquet": parquet,
    "list": photo_list,
    "bin": verification_bin,
    "recordio": recordio,
}


@pytest.mark.parametrize("kind", sorted(DATASET_KINDS))
def test_workers_read_the_photos_of_every_kind(kind: str, tmp_path: Path) -> None:
    if kind not in MAKERS:
        pytest.fail(f"make a small dataset of the kind {kind} here")
    dataset = open_dataset(f"{kind}:{MAKERS[kind](tmp_path)}", tmp_path)
    alone = pack_photos(dataset, tmp_path / "alone", NO_ALIGN)
    pool = pack_photos(dataset, tmp_path / "pool", replace(NO_ALIGN, workers=2))
    assert alone.manifest.samples == pool.manifest.samples > 0
    digests = [[shard.sha256 for shard in one.manifest.shards] for one in (alone, pool)]
    assert digests[0] == digests[1]

"""A set on this machine is read against its checksums: each file once a run, for all workers."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import NO_ALIGN
from helpers import persona_error_here, persona_here
from onnx_files import SETTINGS, write_model

from persona.config import AugmentConfig
from persona.data.kept_targets import file_names, targets_folder
from persona.data.pack import Packed, pack_photos, pack_triplets
from persona.data.raw import open_dataset
from persona.data.sets import FaceSet, open_faces, open_set
from persona.data.storage import CheckedFolder
from persona.data.stream import build_loader
from persona.data.triplets import make_triplets
from persona.errors import PersonaError
from persona.models.sources import load_network
from persona.targets import TargetOptions, make_targets

OLD = 1_600_000_000
"""A time before any test: what was changed since has another."""


def flip(path: Path, place: int, bit: int = 0) -> None:
    """Changes one bit of a file."""
    data = bytearray(path.read_bytes())
    data[place] ^= 1 << bit
    path.write_bytes(data)


def photos(faces: FaceSet, **options: Any) -> list[torch.Tensor]:
    loader = build_loader(faces, batch_size=5, training=False, **options)
    return [batch.images.clone() for batch in loader]


@pytest.fixture
def hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What was read against a checksum since, in this process and in those that it forks."""
    log, digest = tmp_path / "hashed", hashlib.file_digest

    def noting(file: Any, kind: str) -> Any:
        with log.open("a") as lines:
            lines.write(f"{Path(file.name).name}\n")
        return digest(file, kind)

    def read() -> list[str]:
        found = sorted(log.read_text().splitlines()) if log.exists() else []
        log.unlink(missing_ok=True)
        return found

    monkeypatch.setattr("hashlib.file_digest", noting)
    return read


def test_a_flipped_bit_is_never_read_as_other_pixels(train_set: Packed) -> None:
    path = train_set.folder / "000002.tar"
    whole, silent = path.read_bytes(), 0
    for place in np.linspace(600, len(whole) - 2000, 12).astype(int).tolist():
        path.write_bytes(whole)
        flip(path, place, bit=place % 8)
        with contextlib.suppress(PersonaError):
            unchecked = open_set("vggface2-train", train_set.folder.parent, verify=False)
            photos(unchecked)
            silent += 1
        faces = open_set("vggface2-train", train_set.folder.parent)
        for read in (photos, FaceSet.metas, lambda faces: open_faces(faces, 2)):
            with pytest.raises(PersonaError, match=r"000002\.tar does not match its checksum: res"):
                read(faces)
    assert silent  # which is what checking is for
    path.write_bytes(whole)
    assert len(photos(faces)) == 6  # and it is looked at again once it was restored


def test_each_file_is_checked_once_a_run_whatever_reads_it(train_set: Packed, hashed: Any) -> None:
    shards = sorted(shard.name for shard in train_set.manifest.shards)
    faces = open_set("vggface2-train", train_set.folder.parent)
    assert hashed() == []
    for workers in (2, 0, 3):
        photos(faces, workers=workers)
        open_faces(open_set("vggface2-train", train_set.folder.parent), 1)
        pickle.loads(pickle.dumps(faces)).metas()  # a worker that is no fork
        assert hashed() == (shards if workers == 2 else [])
    os.utime(train_set.folder / shards[3], (OLD, OLD))
    photos(faces, workers=2)
    assert hashed() == [shards[3]]
    photos(train_set.faces)
    assert hashed() == []


def test_marks_that_cannot_be_kept_cost_a_reading_and_no_more(
    train_set: Packed, tmp_path: Path, hashed: Any
) -> None:
    faces = FaceSet(CheckedFolder(train_set.folder, tmp_path / "absent"), train_set.manifest)
    for _ in range(2):
        photos(faces)
        assert set(hashed()) == {shard.name for shard in train_set.manifest.shards}


def test_kept_targets_are_checked_too(train_set: Packed, tmp_path: Path) -> None:
    net = write_model(tmp_path / "net.onnx", side=32)
    net.with_suffix(".yaml").write_text(SETTINGS.replace("16", "32"))
    faces = open_set("vggface2-train", train_set.folder.parent)
    named = load_network(f"onnx:{net}", tmp_path)
    targets, fresh = make_targets(faces, named, TargetOptions(workers=0), Accelerator(cpu=True))
    assert fresh
    options = {"augment": AugmentConfig(), "targets": targets}
    assert len(photos(faces, **options)) == 6
    for name in file_names(1):
        path = targets_folder(train_set.folder, named.name) / name
        whole = path.read_bytes()
        flip(path, len(whole) - 3)
        with pytest.raises(PersonaError, match=rf"{name} does not match its checksum"):
            photos(faces, **options)
        path.write_bytes(whole)


def test_triplets_are_not_copied_from_changed_shards(raw: Path, tmp_path: Path) -> None:
    dataset, shards = open_dataset("vggface2", raw, "test"), tmp_path / "shards"
    card = make_triplets(
        dataset.index(), 20, dataset="vggface2", split="test", seed=0, shards=shards
    )
    packed = pack_photos(dataset, shards / dataset.set_name, NO_ALIGN)
    flip(packed.folder / "000000.tar", 1200)
    with pytest.raises(PersonaError, match=r"000000\.tar does not match its checksum"):
        pack_triplets(dataset, card.id, shards, NO_ALIGN)


def test_a_user_may_go_without(lfw_set: Packed, tmp_path: Path) -> None:
    flip(lfw_set.folder / "000001.tar", 700)  # in the first photo's tables or pixels
    command = ("evaluate", "--set", "lfw", "--student", "mobilenet_v3_small", "--workers", "0")
    line = persona_error_here(*command, home=tmp_path)
    assert "000001.tar does not match its checksum" in line
    flip(lfw_set.folder / "000001.tar", 700)
    flip(lfw_set.folder / "000001.tar", -1)  # after the end of the tar, which nobody reads
    assert "000001.tar does not match" in persona_error_here(*command, home=tmp_path)
    assert persona_here(*command, "--no-verify", "--resamples", "0", home=tmp_path)["pairs"] == 12

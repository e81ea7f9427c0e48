"""Photos that are nearly the same, by kept embeddings: found, listed and left out of a training."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import NO_ALIGN, SIZE_PX, jpeg
from helpers import distill_error, distill_here, persona_error_here, persona_here
from onnx_files import SETTINGS, SIDE, write_model

from persona.config import AugmentConfig, DistillConfig
from persona.data import near
from persona.data.kept_targets import (
    TargetFile,
    Targets,
    file_names,
    targets_folder,
    write_targets,
)
from persona.data.mixed import KEYS, MixedSet, open_mixed
from persona.data.near import find_duplicates, find_near, iter_vectors, kept_vectors
from persona.data.pack import pack_photos
from persona.data.raw import open_dataset
from persona.data.sets import FaceSet, open_faces, open_set
from persona.data.stream import build_loader
from persona.data.views import IDENTITY, MIRROR
from persona.distill.exclusion import Excluded, Exclusion, exclude, read_near
from persona.errors import PersonaError
from persona.files import sha256_file
from persona.workspace import Workspace

TEACHER = "facenet-vggface2"
WIDTH = 16


def keep(
    faces: FaceSet,
    vectors: dict[int, np.ndarray[Any, Any]],
    digest: str = "d",
    teacher: str = TEACHER,
) -> None:
    """Writes targets with these embeddings, by key."""
    place = targets_folder(Path(str(faces.folder)), teacher)
    place.mkdir(parents=True, exist_ok=True)
    files = []
    for number, shard in enumerate(faces.manifest.shards):
        keys = open_faces(faces, number).numbers()
        rows = np.stack([np.stack([vectors[key], -vectors[key]]) for key in keys.tolist()])
        features, views = (place / name for name in file_names(number))
        np.save(features, rows.astype(np.float16))
        np.save(views, np.stack([np.stack([IDENTITY, MIRROR])] * len(keys)))
        digests = sha256_file(features), sha256_file(views)
        files.append(TargetFile(shard.sha256, len(keys), *digests))
    known = (teacher, digest, WIDTH, "none", 0, "x", None, 2, AugmentConfig(), 0, tuple(files))
    write_targets(place, Targets(*known))


def drawn(count: int, seed: int) -> dict[int, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(seed)
    return {key: rng.normal(size=WIDTH) for key in range(count)}


@pytest.fixture
def place(tmp_path: Path) -> Workspace:
    """Sets `one` (30 photos of 3 people) and `two` (20), with targets.

    Photos 3 and 4 of `one` are photos 0 and 1 of `two`, and its photos 10, 11 and 12 are the same.
    """
    for name, count, first in (("one", 30, 0), ("two", 20, 500)):
        for number in range(count):
            path = tmp_path / "photos" / name / f"p{number % 3}" / f"{number:02d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(jpeg(first + number))
        dataset = open_dataset(f"folders:{tmp_path / 'photos' / name}", tmp_path)
        pack_photos(dataset, tmp_path / "shards" / name, NO_ALIGN)
    place = Workspace.locate(home=tmp_path)
    one, two = drawn(30, 1), drawn(20, 2)
    for mine, theirs in ((3, 0), (4, 1)):
        one[mine] = 5 * two[theirs] + 0.1  # the length of an embedding does not count
    one[11] = one[12] = one[10] + 0.01
    keep(open_set("one", place.shards), one)
    keep(open_set("two", place.shards), two)
    return place


def sets(place: Workspace) -> tuple[FaceSet, FaceSet]:
    return open_set("one", place.shards), open_set("two", place.shards)


def test_near_photos_of_another_set_are_found(
    place: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = sets(place)
    pairs = (one, kept_vectors(one, TEACHER)), (two, kept_vectors(two, TEACHER))
    found = find_near(*pairs, 0.9)
    assert {(near.key, near.other) for near in found} == {(3, 0), (4, 1)}
    for row in found:
        assert row.key in open_faces(one, row.shard).numbers()
    # In blocks of any size; and as all products of all embeddings say.
    monkeypatch.setattr(near, "BLOCK", 4)
    monkeypatch.setattr(near, "OTHERS", 3)
    assert find_near(*pairs, 0.9) == found
    some = find_near(*pairs, 0.3)
    mine, theirs = (np.concatenate([v for *_, v in iter_vectors(*pair)]) for pair in pairs)
    assert len(some) == ((mine @ theirs.T).max(axis=1) >= 0.3).sum() > 2


@pytest.mark.parametrize("block", [2, 5, 1024])
def test_the_first_of_near_duplicates_stays(
    place: Workspace, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(near, "BLOCK", block)
    one, _ = sets(place)
    found = find_duplicates(one, kept_vectors(one, TEACHER), 0.99)
    order = [key for _, keys, _ in iter_vectors(one, kept_vectors(one, TEACHER)) for key in keys]
    first, *others = sorted((10, 11, 12), key=order.index)
    assert sorted(near.key for near in found) == sorted(others)
    assert {near.other for near in found} <= {first, others[0]}


def test_photos_that_are_left_out_do_not_come(place: Workspace) -> None:
    one, two = sets(place)
    targets = [kept_vectors(faces, TEACHER) for faces in (two, one)]
    near = find_near((one, targets[1]), (two, targets[0]), 0.9)
    excluded = Exclusion([Excluded(1, row, "two") for row in near])
    mix = open_mixed("two,one", place.shards)
    mix = mix.without([excluded.of_part(0), excluded.of_part(1)])
    keys = []
    loader = build_loader(
        mix, batch_size=3, training=True, augment=AugmentConfig(), targets=targets
    )
    vectors = {key + KEYS: value for key, value in drawn(30, 1).items()} | drawn(20, 2)
    for batch in loader:
        keys += batch.keys.tolist()
        assert batch.targets is not None
        for key, view, row_E in zip(keys[-3:], batch.views, batch.targets, strict=True):
            if key - KEYS not in {
                11,
                12,
            }:  # the kept row is that of the photo, whatever is left out
                del view
                cosine = abs(row_E.double().numpy() @ vectors[key])
                cosine /= np.linalg.norm(row_E.double()) * np.linalg.norm(vectors[key])
                assert cosine > 0.999
    assert len(keys) == len(set(keys)) == 48
    assert {KEYS + 3, KEYS + 4}.isdisjoint(keys)


def test_a_run_counts_and_lists_what_it_leaves_out(
    place: Workspace, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    options = ("--exclude-near", "two:0.9", "--exclude-duplicates", "0.99", "--targets", "kept")
    recipe = ("-o", "losses={embedding_cosine: {}}", "--teacher", TEACHER, "-e", "1")
    run = distill_here("--train-set", "one", *options, *recipe, home=tmp_path)
    assert "4 photos are left out as near others by the teacher" in caplog.text
    assert "p0/" not in caplog.text
    with (tmp_path / "runs" / run / "excluded.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {(row["set"], row["near_set"]) for row in rows} == {("one", "two"), ("one", "one")}
    assert {int(row["key"]) for row in rows if row["near_set"] == "two"} == {3, 4}
    assert all(float(row["cosine"]) >= 0.9 for row in rows)


def test_the_embeddings_of_another_file_of_its_name_are_refused(
    place: Workspace, tmp_path: Path
) -> None:
    file = write_model(tmp_path / "net.onnx", side=SIZE_PX, width=WIDTH)
    file.with_suffix(".yaml").write_text(SETTINGS.replace(str(SIDE), str(SIZE_PX)))
    for faces, count in zip(sets(place), (30, 20), strict=True):
        keep(faces, drawn(count, 1), "of another file", "onnx:net.onnx")
    base = ("--train-set", "one", "--teacher", f"onnx:{file}", "--targets", "online")
    for options in (("--exclude-near", "two"), ("--exclude-duplicates", "0.9")):
        line = distill_error(*base, *options, home=tmp_path)
        assert f"set one keeps embeddings of another onnx:{file}, with other weights" in line


def test_the_command_lists_them(place: Workspace, tmp_path: Path) -> None:
    found = persona_here("shards", "duplicates", "one", "--cosine", "0.99", home=tmp_path)
    assert found["teacher"] == TEACHER and len(found["duplicates"]) == 2
    photos = {row[side] for row in found["duplicates"] for side in ("photo", "same_as")}
    assert photos == {"p1/01.jpg", "p1/04.jpg", "p1/07.jpg"}  # the keys 10 to 12
    assert persona_here("shards", "duplicates", "two", home=tmp_path)["duplicates"] == []


def test_what_cannot_be_compared_is_one_line(place: Workspace, tmp_path: Path) -> None:
    one, two = sets(place)
    base = ("--train-set", "one", "--teacher", TEACHER)
    for options, message in (
        ((*base, "--exclude-near", "two:2"), "write SET:COSINE"),
        ((*base, "--exclude-near", ":0.5"), "write SET:COSINE"),
        ((*base, "--exclude-near", "nobody"), "unknown set 'nobody'"),
        ((*base, "--exclude-duplicates", "1.5"), "exclude_duplicates"),
        (
            (*base[:2], "--teacher", "none", "--exclude-duplicates", "0.9"),
            "name one with --teacher",
        ),
        (
            (*base[:2], "--teacher", "facenet-casia-webface", "--exclude-near", "two"),
            "set one keeps none of facenet-casia-webface: run `persona targets one",
        ),
    ):
        assert message in distill_error(*options, home=tmp_path)
    keep(two, drawn(20, 2), digest="other")
    assert "of two teachers called" in distill_error(*base, "--exclude-near", "two", home=tmp_path)
    config = DistillConfig(teacher=TEACHER, train_set="one")
    mix = MixedSet.of(one)
    assert exclude(config, place, mix, None) == (mix, Exclusion())
    command = ("shards", "duplicates", "one")
    assert "keeps none of t: run `persona targets one --teacher t`" in persona_error_here(
        *command, "--teacher", "t", home=tmp_path
    )
    targets_folder(place.shards / "one", TEACHER).rename(tmp_path / "away")
    line = persona_error_here(*command, home=tmp_path)
    assert "set one keeps embeddings of no teacher: name one teacher with --teacher" in line


def test_a_colon_may_belong_to_the_name() -> None:
    assert read_near("lfw") == ("lfw", 0.5)
    assert read_near("lfw:0.7") == ("lfw", 0.7)
    assert read_near("https://host:80/lfw") == ("https://host:80/lfw", 0.5)
    assert read_near("https://host:80/lfw:0.25") == ("https://host:80/lfw", 0.25)
    for text in ("lfw:nan", "lfw:-1", ":0.5"):
        with pytest.raises(PersonaError, match="write SET:COSINE"):
            read_near(text)

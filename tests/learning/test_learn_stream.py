"""Who comes when, and which photos are learned from."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from conftest import NO_ALIGN, jpeg

from persona.data.pack import pack_photos
from persona.data.raw import open_dataset
from persona.data.sets import FaceSet, open_set, shard_path
from persona.errors import PersonaError
from persona.learning.photos import Photos
from persona.learning.stream import build_experience, draw_batch, in_groups, in_order


@pytest.fixture
def photos(tmp_path: Path) -> Photos:
    """Ann has one photo, Ben two, Cat ten."""
    for seed, (name, number) in enumerate(
        [("Ann", 0), *(("Ben", n) for n in range(2)), *(("Cat", n) for n in range(10))]
    ):
        path = tmp_path / "raw" / name / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(seed))
    dataset = open_dataset(f"folders:{tmp_path / 'raw'}", tmp_path)
    pack_photos(dataset, tmp_path / "shards" / "people", NO_ALIGN)
    return Photos([open_set("people", tmp_path / "shards", verify=False)])


def test_photos_are_those_of_the_set(photos: Photos) -> None:
    assert photos.names == ("Ann", "Ben", "Cat")
    assert np.bincount(photos.identity).tolist() == [1, 2, 10]
    images = photos.images(np.array([0, 5, 0]))
    assert images.shape == (3, 3, 32, 32)
    assert (images[0] == images[2]).all()
    assert len(set(map(photos.jpeg, range(13)))) == 13
    assert sorted(photos.keys().tolist()) == list(range(13))


def test_a_photo_is_found_among_several_sets(photos: Photos) -> None:
    both = Photos([*photos.sets, *photos.sets])
    assert both.names == photos.names
    assert both.of_set(1).tolist() == list(range(13, 26))
    second = both.of_set(1)
    assert (both.identity[second] == photos.identity).all()
    assert [both.jpeg(photo) for photo in second] == [photos.jpeg(photo) for photo in range(13)]
    shards, places = both.places(np.array([25, 0, 7]))
    # Shards of seven.
    assert (shards.tolist(), places.tolist()) == ([1, 0, 1], [5, 0, 0])
    chosen = np.array([1, 14, 5])
    assert both.sizes[chosen].tolist() == [len(both.jpeg(photo)) for photo in chosen]
    assert both.landmarks(chosen).isnan().all()  # --align none finds none


DAMAGES = {
    '"class":0': ('"class":-', "a sample's json: JSONDecodeError"),
    '"class":2': ('"class":7', "a class index outside the manifest's list"),
    '"class":': ('"klass":', "a sample's json: KeyError"),
    ".json": (".jsom", "sample 0: no json"),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_damaged_shards_are_named(photos: Photos, what: str) -> None:
    faces = photos.sets[0]
    new, message = DAMAGES[what]
    for number in range(len(faces.manifest.shards)):
        path = shard_path(faces, number)
        path.write_bytes(with_checksums(path.read_bytes().replace(what.encode(), new.encode())))
    with pytest.raises(PersonaError, match=re.escape(message)) as error:
        Photos(photos.sets)
    assert str(error.value).startswith(f"shard {faces.folder}/00000")


def with_checksums(data: bytes) -> bytes:
    """A tar whose headers are right again."""
    found = bytearray(data)
    for start in range(0, len(data), 512):
        header = found[start : start + 512]
        if header[257:262] == b"ustar":
            header[148:156] = b" " * 8
            found[start + 148 : start + 156] = b"%06o\0 " % sum(header)
    return bytes(found)


def test_nobody_is_measured_on_what_was_learned(photos: Photos) -> None:
    everything = np.arange(13)
    experience = build_experience(photos, 0, photos.names, everything, 0.2, 0)
    both = np.concatenate([experience.train, experience.test])
    assert sorted(both.tolist()) == list(range(13))
    # Never all of somebody, and of two photos one.
    assert np.bincount(photos.identity[experience.train]).tolist() == [1, 1, 8]
    assert np.bincount(photos.identity[experience.test], minlength=3).tolist() == [0, 1, 2]
    again = build_experience(photos, 0, ["Cat"], everything, 0.2, 0)
    assert set(again.test.tolist()) <= set(experience.test.tolist())  # whatever the company
    assert not len(build_experience(photos, 0, photos.names, everything, 0.0, 0).test)


def test_a_set_that_is_packed_again_holds_out_the_same_photos(
    photos: Photos, tmp_path: Path
) -> None:
    for seed, name in ((20, "Aaron"), (21, "Bob")):
        path = tmp_path / "raw" / name / "0.jpg"
        path.parent.mkdir()
        path.write_bytes(jpeg(seed))
    dataset = open_dataset(f"folders:{tmp_path / 'raw'}", tmp_path)
    pack_photos(dataset, tmp_path / "shards" / "more", NO_ALIGN)
    more = Photos([open_set("more", tmp_path / "shards", verify=False)])

    def held_out(of: Photos, seed: int) -> set[bytes]:
        everything = np.arange(len(of))
        return set(map(of.jpeg, build_experience(of, 0, of.names, everything, 0.2, seed).test))

    assert len({frozenset(held_out(photos, seed)) for seed in range(5)}) > 1
    for seed in range(5):
        assert held_out(more, seed) == held_out(photos, seed)


def test_the_order_is_the_seed_s(photos: Photos) -> None:
    orders = {tuple(in_order(photos, np.arange(13), seed)) for seed in range(20)}
    assert len(orders) == 6
    assert in_order(photos, np.arange(13), 3) == in_order(photos, np.arange(13), 3)


def test_groups_differ_by_one() -> None:
    assert in_groups(list("abcde"), 2) == [["a", "b"], ["c", "d", "e"]]
    with pytest.raises(PersonaError, match="2 identities do not make 3 experiences"):
        in_groups(["a", "b"], 3)


def test_batches_of_all_processes_go_through_the_pool() -> None:
    pool = np.arange(100, 110)
    drawn = [draw_batch(pool, 3, step, rank, 2, 0, 0) for step in range(5) for rank in range(2)]
    first, second, third = np.split(np.concatenate(drawn), [10, 20])
    assert sorted(first.tolist()) == sorted(second.tolist()) == pool.tolist()
    assert set(third.tolist()) <= set(pool.tolist())
    assert first.tolist() != second.tolist()
    assert draw_batch(np.array([7]), 4, 0, 0, 1, 0).tolist() == [7, 7, 7, 7]


def test_crops_of_two_sizes_are_refused(photos: Photos) -> None:
    import dataclasses

    faces = photos.sets[0]
    folder, manifest = faces.folder, faces.manifest
    align = dataclasses.replace(manifest.align, image_size=64)
    other = dataclasses.replace(manifest, align=align)
    with pytest.raises(PersonaError, match="crops of 64 px, the other set 32 px"):
        Photos([faces, FaceSet(folder, other)])
    triplets = dataclasses.replace(manifest, kind="triplets")
    with pytest.raises(PersonaError, match="holds triplets: learning takes a set of photos"):
        Photos([FaceSet(folder, triplets)])

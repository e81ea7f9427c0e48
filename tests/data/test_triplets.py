from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import write_vggface2

from persona.data import triplets
from persona.data.raw import Index, Photo, open_dataset
from persona.data.triplets import (
    coverage,
    draw_triplets,
    list_triplets,
    load_triplets,
    make_triplets,
)
from persona.errors import PersonaError


def index_of(*counts: int) -> Index:
    """An index with `counts[i]` photos of identity i."""
    photos = tuple(
        Photo(f"n{identity:04d}/{photo:04d}.jpg", f"n{identity:04d}")
        for identity, count in enumerate(counts)
        for photo in range(count)
    )
    return Index(photos, tuple(sorted({p.identity for p in photos})), ())


@pytest.mark.parametrize(
    ("counts", "num"), [((5,) * 20, 300), ((2, 2), 8), ((1, 1, 1, 3), 18), ((9, 1, 4, 2, 7), 200)]
)
def test_triplets_are_valid_and_different(counts: tuple[int, ...], num: int) -> None:
    index = index_of(*counts)
    drawn = draw_triplets(index, num, seed=3)
    assert drawn.shape == (num, 3)
    identities = np.array([photo.identity for photo in index.photos])
    anchor, positive, negative = drawn.T
    assert (identities[anchor] == identities[positive]).all()
    assert (anchor != positive).all()
    assert (identities[anchor] != identities[negative]).all()
    assert len({tuple(row) for row in drawn.tolist()}) == num


def test_each_identity_once_before_any_twice() -> None:
    index = index_of(*(4,) * 30)
    identities = np.array([photo.identity for photo in index.photos])
    drawn = draw_triplets(index, 90, seed=0)
    for lap in range(3):
        part = identities[drawn[30 * lap : 30 * lap + 30, 0]]
        assert len(set(part)) == 30
    half = identities[drawn[:15][:, [0, 2]]]
    assert len(set(half.ravel())) == 30  # anchors and negatives together


def test_photos_are_covered_evenly() -> None:
    index = index_of(*(6,) * 20)
    used = Counter(draw_triplets(index, 40, seed=0).ravel().tolist())
    assert len(used) == 120  # 40 triplets of 3 photos: every photo, none twice
    assert set(used.values()) == {1}


def test_single_photos_are_used_as_negatives() -> None:
    index = index_of(2, 2, 1, 1)
    drawn = draw_triplets(index, 2, seed=0)
    assert {index.photos[n].identity for n in drawn[:, 2]} == {"n0002", "n0003"}


def test_same_seed_same_triplets_other_seed_others() -> None:
    index = index_of(*(5,) * 10)
    np.testing.assert_array_equal(draw_triplets(index, 50, 1), draw_triplets(index, 50, 1))
    assert not np.array_equal(draw_triplets(index, 50, 1), draw_triplets(index, 50, 2))


@pytest.mark.parametrize(
    ("counts", "num", "message"),
    [
        ((3, 3), 0, "choose 1 to"),
        ((3, 3), -5, "choose 1 to"),
        ((3, 3), 10**12, "choose 1 to"),
        ((5,), 1, "at least two identities"),
        ((1, 1, 1), 1, "every one has a single one"),
        ((2, 2), 9, "no more than 8"),
    ],
)
def test_impossible_wishes(counts: tuple[int, ...], num: int, message: str) -> None:
    with pytest.raises(PersonaError, match=message):
        draw_triplets(index_of(*counts), num, 0)


def test_cost_a_triplet_does_not_grow_with_the_dataset(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted, not timed: three cards are dealt a triplet, and no photo is looked at twice."""
    deals = 0
    deal = triplets._Deck.deal

    def counting(self: triplets._Deck, unlike: int = -1) -> int:
        nonlocal deals
        deals += 1
        return deal(self, unlike)

    monkeypatch.setattr(triplets._Deck, "deal", counting)
    for identities in (50, 2000):
        deals = 0
        draw_triplets(index_of(*(10,) * identities), 400, 0)
        assert deals == 3 * 400


def test_ids_are_stable_and_files_reload(tmp_path: Path) -> None:
    write_vggface2(tmp_path)
    index = open_dataset("vggface2", tmp_path, "test").index()
    options = {"dataset": "vggface2", "split": "test", "shards": tmp_path / "shards"}
    first = make_triplets(index, 20, seed=0, **options)  # type: ignore[arg-type]
    again = make_triplets(index, 20, seed=0, **options)  # type: ignore[arg-type]
    other = make_triplets(index, 20, seed=1, **options)  # type: ignore[arg-type]
    assert first == again
    assert first.id != other.id
    cards, wrong = list_triplets(tmp_path / "shards")
    assert ({card.id for card in cards}, wrong) == ({first.id, other.id}, [])
    card, indices = load_triplets(first.id, tmp_path / "shards")
    measured = coverage(card, indices, index)
    assert measured.class_coverage == 1.0
    assert measured.image_coverage == len(np.unique(indices)) / 30


def test_damage_and_change_are_noticed(tmp_path: Path) -> None:
    root = write_vggface2(tmp_path)
    dataset = open_dataset("vggface2", tmp_path, "test")
    card = make_triplets(
        dataset.index(), 5, dataset="vggface2", split="test", seed=0, shards=tmp_path / "s"
    )
    _, indices = load_triplets(card.id, tmp_path / "s")
    next((root / "test").glob("*/*.jpg")).unlink()
    with pytest.raises(PersonaError, match=r"was drawn from 30 photos .* now lists 29"):
        coverage(card, indices, dataset.index())
    path = tmp_path / "s" / card.id / "triplets.npy"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(PersonaError, match="missing or damaged"):
        load_triplets(card.id, tmp_path / "s")
    with pytest.raises(PersonaError, match=f"unknown triplet set 'nope'.*{card.id}"):
        load_triplets("nope", tmp_path / "s")


def test_what_was_drawn_is_known_whatever_its_hash() -> None:
    """Against a set, of triplets that crowd a full table."""
    wanted: dict[tuple[int, int, int], None] = {}
    drawn = triplets._Drawn(500)
    rng = random.Random(0)
    while len(wanted) < 500:
        triplet = (rng.randrange(9), rng.randrange(9), rng.randrange(9))
        assert (triplet in drawn) == (triplet in wanted)
        if triplet not in wanted:
            drawn.add(triplet)
            wanted[triplet] = None
    assert drawn.rows().tolist() == [list(triplet) for triplet in wanted]

"""Triplets: anchor and positive show one person in two photos, the negative shows another.

1. one pass over the index groups photos by identity
2. anchors go round all identities that have two photos, in a shuffled order
3. negatives go round all identities, starting where the anchors have not been
4. each identity deals its photos like a shuffled deck, so that none comes twice before all came

A set has an ID made of its content, and lies in `shards/<ID>/` before and after it is packed.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from array import array
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from persona.config import from_dict
from persona.data.raw.base import Index
from persona.errors import PersonaError, shown, unknown
from persona.files import read_json, sha256_file, write_atomically, write_json

CARD = "triplets.json"
INDICES = "triplets.npy"
VERSION = 1
MAX_TRIPLETS = 100_000_000

ROLES = ("anchor", "positive", "negative")

Triplet = tuple[int, int, int]


@dataclass(frozen=True)
class TripletCard:
    """What is known of a triplet set."""

    id: str
    dataset: str
    """What opens it: a name or KIND:PATH."""
    split: str
    seed: int
    triplets: int
    photos: int
    """Photos in the raw index that the indices point into."""
    index_sha256: str
    """Of the raw index: packing refuses another one."""
    indices_sha256: str
    version: int = VERSION


class _Drawn:
    """Triplets in the order of drawing, none twice: 20 to 28 bytes of each."""

    def __init__(self, num: int) -> None:
        self._rows = array("i")
        self._slots = array("i", [-1]) * (1 << (2 * num - 1).bit_length())
        """Open addressing: the triplet's number stands where its hash says, or behind that."""

    def _slot(self, triplet: Triplet) -> int:
        """Where the triplet stands, or would."""
        mask = len(self._slots) - 1
        slot = hash(triplet) & mask
        while (start := 3 * self._slots[slot]) >= 0:
            if tuple(self._rows[start : start + 3]) == triplet:
                break
            slot = (slot + 1) & mask
        return slot

    def __len__(self) -> int:
        return len(self._rows) // 3

    def __contains__(self, triplet: Triplet) -> bool:
        return self._slots[self._slot(triplet)] >= 0

    def add(self, triplet: Triplet) -> None:
        """Appends one that is not there yet."""
        self._slots[self._slot(triplet)] = len(self)
        self._rows.extend(triplet)

    def rows(self) -> npt.NDArray[np.int32]:
        """(N, 3): all of them."""
        return np.frombuffer(self._rows, np.int32).reshape(-1, 3)


class _Deck:
    """Deals the photos of one identity: shuffled anew whenever all were dealt."""

    __slots__ = ("cards", "position", "rng")

    def __init__(self, cards: array[int], rng: random.Random) -> None:
        self.cards = cards
        self.rng = rng
        self.position = len(cards)

    def deal(self, unlike: int = -1) -> int:
        if self.position == len(self.cards):
            self.rng.shuffle(self.cards)
            self.position = 0
        card = self.cards[self.position]
        if card == unlike and len(self.cards) > 1:
            # The deck was shuffled between the two photos of a pair: swap the repeat away.
            other = (self.position + 1) % len(self.cards)
            self.cards[self.position], self.cards[other] = self.cards[other], card
            card = self.cards[self.position]
        self.position += 1
        return card


def draw_triplets(index: Index, num: int, seed: int) -> npt.NDArray[np.int32]:
    """Draws `num` different triplets; each costs O(1) after one pass over the index.

    Returns:
        (num, 3) int32: anchor, positive and negative as places in `index.photos`.

    Raises:
        PersonaError: `num` is out of range, or the index cannot give that many.
    """
    if not 1 <= num <= MAX_TRIPLETS:
        raise PersonaError(f"{num} triplets: choose 1 to {MAX_TRIPLETS:,}")
    if not index.classes:
        raise PersonaError("triplets are drawn by identity, and this dataset's photos have none")
    photos_of: dict[str, array[int]] = {}
    for place, photo in enumerate(index.photos):
        photos_of.setdefault(photo.identity, array("i")).append(place)
    total = len(index.photos)
    distinct = sum(len(p) * (len(p) - 1) * (total - len(p)) for p in photos_of.values())
    if len(photos_of) < 2:
        raise PersonaError("triplets need at least two identities with photos; there is one")
    if distinct == 0:
        raise PersonaError("triplets need an identity with two photos; every one has a single one")
    if num > distinct:
        raise PersonaError(f"{num:,} triplets: these photos can form no more than {distinct:,}")

    rng = random.Random(seed)
    anchors, negatives = _rounds(photos_of, rng)
    decks = {identity: _Deck(photos, rng) for identity, photos in photos_of.items()}
    drawn = _Drawn(num)
    turn = 0
    while len(drawn) < num:
        anchor_id = anchors[turn % len(anchors)]
        negative_id = next(negatives)
        if negative_id == anchor_id:
            negative_id = next(negatives)
        turn += 1
        anchor = decks[anchor_id].deal()
        triplet = (anchor, decks[anchor_id].deal(unlike=anchor), decks[negative_id].deal())
        if triplet in drawn:
            # Decks repeat where the photos are few: any pick that is new will do.
            fresh = _fresh(triplet, photos_of[anchor_id], index, drawn, rng)
            if fresh is None:
                continue  # this anchor identity is used up
            triplet = fresh
        drawn.add(triplet)
    return drawn.rows()


def _rounds(
    photos_of: dict[str, array[int]], rng: random.Random
) -> tuple[list[str], Iterator[str]]:
    """The anchors' round, and the negatives' endless one.

    Both walk one shuffled order. The negatives take the identities that can be no anchor first and
    then start half-way, so that no identity comes twice in any role before each came once.
    """
    order = sorted(photos_of)
    rng.shuffle(order)
    anchors = [identity for identity in order if len(photos_of[identity]) > 1]
    single = [identity for identity in order if len(photos_of[identity]) == 1]
    start = min(len(anchors), -(-len(order) // 2))
    negatives = single + anchors[start:] + anchors[:start]

    def endless() -> Iterator[str]:
        while True:
            yield from negatives

    return anchors, endless()


def _fresh(
    triplet: Triplet, own: array[int], index: Index, drawn: _Drawn, rng: random.Random
) -> Triplet | None:
    """A triplet of the same anchor identity that was not drawn yet; None if there is none."""
    total = len(index.photos)
    for _ in range(64):
        anchor, positive = rng.sample(own, 2)
        candidate = (anchor, positive, rng.randrange(total))
        identity = index.photos[anchor].identity
        if candidate not in drawn and index.photos[candidate[2]].identity != identity:
            return candidate
    # Nearly used up, so the set is small: look at all of them.
    identity = index.photos[triplet[0]].identity
    others = [p for p in range(total) if index.photos[p].identity != identity]
    for anchor in own:
        for positive in own:
            for negative in others:
                if anchor != positive and (anchor, positive, negative) not in drawn:
                    return (anchor, positive, negative)
    return None


def make_triplets(
    index: Index, num: int, *, dataset: str, split: str, seed: int, shards: Path, name: str = ""
) -> TripletCard:
    """Draws triplets and stores them in `shards/<ID>/`; the same call gives the same ID.

    Args:
        index: the raw photos.
        num: how many triplets.
        dataset: what opens the raw dataset again.
        split: its split.
        seed: another seed, another set.
        shards: where the set goes.
        name: the dataset's in the ID, if that is not `dataset`.
    """
    name = name or dataset
    indices = draw_triplets(index, num, seed)
    source = index.digest
    digest = hashlib.sha256(f"{VERSION} {name} {split} {source} ".encode())
    digest.update(indices.data)
    set_id = f"{name}-{split}-t{num}-{digest.hexdigest()[:8]}"
    folder = shards / set_id
    # Stored without pickle, so that an untrusted file can at worst be refused.
    write_atomically(folder / INDICES, _npy_bytes(indices))
    card = TripletCard(
        id=set_id,
        dataset=dataset,
        split=split,
        seed=seed,
        triplets=num,
        photos=len(index.photos),
        index_sha256=source,
        indices_sha256=sha256_file(folder / INDICES),
    )
    write_json(folder / CARD, asdict(card))  # last: a folder without a card holds no set
    return card


def _npy_bytes(array: npt.NDArray[np.int32]) -> bytes:
    import io

    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def list_triplets(shards: Path) -> list[TripletCard]:
    """Every triplet set below `shards`, by ID."""
    return [read_card(path.parent) for path in sorted(shards.glob(f"*/{CARD}"))]


def read_card(folder: Path) -> TripletCard:
    """Reads and checks a card."""
    path = folder / CARD
    value = read_json(path, what="triplet card")
    version = value.get("version", VERSION) if isinstance(value, dict) else VERSION
    if version != VERSION:
        raise PersonaError(
            f"{path} has version {shown(version)}, this is version {VERSION}: make it anew"
        )
    try:
        card = from_dict(TripletCard, value, where=str(path))
    except (TypeError, AttributeError):
        raise PersonaError(f"{path} is no triplet card of this version") from None
    if not 0 < card.triplets <= MAX_TRIPLETS or card.photos < 0:
        raise PersonaError(f"{path} cannot be: it counts {card.triplets:,} triplets")
    return card


def load_triplets(set_id: str, shards: Path) -> tuple[TripletCard, npt.NDArray[np.int32]]:
    """Card and (N, 3) int32 indices of a set.

    Raises:
        PersonaError: unknown ID (with the known ones), or a damaged file.
    """
    known = [path.parent.name for path in shards.glob(f"*/{CARD}")]
    if set_id not in known:
        raise unknown("triplet set", set_id, known, where=str(shards))
    card = read_card(shards / set_id)
    path = shards / set_id / INDICES
    if not path.is_file() or sha256_file(path) != card.indices_sha256:
        raise PersonaError(f"{path} is missing or damaged: run `persona triplets make` again")
    try:
        # Mapped first: a header that tells of more than the file holds takes no memory.
        indices = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError):
        indices = None
    if indices is None or (indices.shape, indices.dtype) != ((card.triplets, 3), np.int32):
        raise PersonaError(f"{path} is not what its card says: run `persona triplets make` again")
    return card, np.array(indices)


@dataclass(frozen=True)
class Coverage:
    """How much of a raw split a triplet set touches."""

    id: str
    triplets: int
    class_coverage: float
    """Identities in any role, of those with photos."""
    image_coverage: float
    """Photos in any role, of all."""


def coverage(card: TripletCard, indices: npt.NDArray[np.int32], index: Index) -> Coverage:
    """Measures a set against the raw index it was drawn from."""
    check_index(card, index)
    used = np.zeros(len(index.photos), bool)
    used[indices.ravel()] = True
    identities = {photo.identity for photo in itertools.compress(index.photos, used)}
    return Coverage(
        id=card.id,
        triplets=card.triplets,
        class_coverage=len(identities) / index.identities,
        image_coverage=int(used.sum()) / len(index.photos),
    )


def check_index(card: TripletCard, index: Index) -> None:
    """Raises PersonaError if the raw photos are not those the set was drawn from."""
    if index.digest != card.index_sha256:
        raise PersonaError(
            f"{card.id} was drawn from {card.photos} photos of {card.dataset} ({card.split}); "
            f"the folder now lists {len(index.photos)} others: restore them or make a new set"
        )

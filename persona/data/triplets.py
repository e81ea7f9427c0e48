"""Triplets: anchor and positive are two photos of one identity, the negative shows another one.

1. one pass over the index groups the photos by identity
2. anchors cycle through all identities that have two photos, in a shuffled order
3. negatives cycle through all identities, starting with those that the anchors come to last
4. each identity deals its photos like a shuffled deck: no photo comes twice before all came once

The ID of a set is made of its content. The set lies in `shards/<ID>/` before and after packing.
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
from persona.names import command_line

CARD = "triplets.json"
INDICES = "triplets.npy"
VERSION = 1
MAX_TRIPLETS = 100_000_000

ROLES = ("anchor", "positive", "negative")

Triplet = tuple[int, int, int]


@dataclass(frozen=True)
class TripletCard:
    """The metadata of a triplet set."""

    id: str
    dataset: str
    """The name that opens the dataset: a registered name or KIND:PATH."""
    split: str
    seed: int
    triplets: int
    photos: int
    """Number of photos in the raw index that the indices refer to."""
    index_sha256: str
    """Digest of the raw index. Packing refuses another index."""
    indices_sha256: str
    version: int = VERSION
    labels_sha256: str | None = None
    """Digest of the classes and of each photo's identity. Older cards have None."""

    @property
    def packing_command(self) -> str:
        """The command that packs the set."""
        named = ("--split", self.split, "--triplets", self.id)
        return command_line("shard", self.dataset, *named)


class _Drawn:
    """A list of distinct triplets in the order of drawing. It takes 20 to 28 bytes per triplet."""

    def __init__(self, num: int) -> None:
        self._rows = array("i")
        self._slots = array("i", [-1]) * (1 << (2 * num - 1).bit_length())
        """Hash table with open addressing. A slot holds the triplet's number, or -1."""

    def _slot(self, triplet: Triplet) -> int:
        """The slot that holds the triplet, or the free slot for it."""
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
        """Appends a triplet that is not in the list."""
        self._slots[self._slot(triplet)] = len(self)
        self._rows.extend(triplet)

    def rows(self) -> npt.NDArray[np.int32]:
        """(N, 3) int32: all triplets."""
        return np.frombuffer(self._rows, np.int32).reshape(-1, 3)


class _Deck:
    """Deals the photos of one identity. It shuffles them whenever all have been dealt."""

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
            # The deck was shuffled between the two photos of a pair, so swap the repeat away.
            other = (self.position + 1) % len(self.cards)
            self.cards[self.position], self.cards[other] = self.cards[other], card
            card = self.cards[self.position]
        self.position += 1
        return card


def draw_triplets(index: Index, num: int, seed: int) -> npt.NDArray[np.int32]:
    """Draws `num` distinct triplets. Each costs O(1) after one pass over the index.

    Returns:
        (num, 3) int32: anchor, positive and negative as positions in `index.photos`.

    Raises:
        PersonaError: If `num` is out of range, or the index has fewer triplets.
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
            # With few photos the decks repeat. Any new triplet of this identity is taken then.
            fresh = _fresh(triplet, photos_of[anchor_id], index, drawn, rng)
            if fresh is None:
                continue  # all triplets of this anchor identity are drawn
            triplet = fresh
        drawn.add(triplet)
    return drawn.rows()


def _rounds(
    photos_of: dict[str, array[int]], rng: random.Random
) -> tuple[list[str], Iterator[str]]:
    """The order of the anchor identities, and an endless iterator over the negative ones.

    Both follow one shuffled order. The negatives begin with the identities that have one photo,
    then start half-way. No identity then comes twice in any role before each came once.
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
    """A new triplet of the same anchor identity. None if all are drawn."""
    total = len(index.photos)
    for _ in range(64):
        anchor, positive = rng.sample(own, 2)
        candidate = (anchor, positive, rng.randrange(total))
        identity = index.photos[anchor].identity
        if candidate not in drawn and index.photos[candidate[2]].identity != identity:
            return candidate
    # Few triplets are left, so the set is small: search all of them.
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
    """Draws triplets and stores them in `shards/<ID>/`. Equal arguments give an equal ID.

    Args:
        index: The index of the raw photos.
        num: Number of triplets.
        dataset: The name that opens the raw dataset again.
        split: Its split.
        seed: Seed of the drawing.
        shards: Folder in which the set's folder is made.
        name: The dataset's name in the ID. Empty means `dataset`.
    """
    name = name or dataset
    indices = draw_triplets(index, num, seed)
    source = index.digest
    digest = hashlib.sha256(f"{VERSION} {name} {split} {source} ".encode())
    digest.update(indices.data)
    set_id = f"{name}-{split}-t{num}-{digest.hexdigest()[:8]}"
    folder = shards / set_id
    # Stored without pickle, so that loading an untrusted file cannot run code.
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
        labels_sha256=index.labels_digest,
    )
    write_json(folder / CARD, asdict(card))  # last: a folder without a card holds no set
    return card


def _npy_bytes(array: npt.NDArray[np.int32]) -> bytes:
    import io

    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def list_triplets(shards: Path) -> tuple[list[TripletCard], list[str]]:
    """The readable cards of triplet sets below `shards`, by ID, and the errors of the others."""
    cards, wrong = [], []
    for path in sorted(shards.glob(f"*/{CARD}")):
        try:
            cards.append(read_card(path.parent))
        except PersonaError as error:
            wrong.append(str(error))
    return cards, wrong


def read_card(folder: Path) -> TripletCard:
    """Reads and checks a card. The file is not trusted."""
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
    """Reads the card and the (N, 3) int32 indices of a set.

    Raises:
        PersonaError: If the ID is unknown (the message lists the known ones), or a file is damaged.
    """
    known = [path.parent.name for path in shards.glob(f"*/{CARD}")]
    if set_id not in known:
        raise unknown("triplet set", set_id, known, where=str(shards))
    card = read_card(shards / set_id)
    path = shards / set_id / INDICES
    if not path.is_file() or sha256_file(path) != card.indices_sha256:
        raise PersonaError(f"{path} is missing or damaged: run `persona triplets make` again")
    try:
        # Mapped first, so that a false size in the header allocates no memory.
        indices = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError):
        indices = None
    if indices is None or (indices.shape, indices.dtype) != ((card.triplets, 3), np.int32):
        raise PersonaError(f"{path} is not what its card says: run `persona triplets make` again")
    return card, np.array(indices)


@dataclass(frozen=True)
class Coverage:
    """The fraction of a raw split that a triplet set uses."""

    id: str
    triplets: int
    class_coverage: float
    """Fraction of the identities with photos that occur in any role."""
    image_coverage: float
    """Fraction of all photos that occur in any role."""


def coverage(card: TripletCard, indices: npt.NDArray[np.int32], index: Index) -> Coverage:
    """Measures a triplet set against the raw index that it was drawn from."""
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
    """Raises PersonaError if the raw photos or their identities are not those of the drawing."""
    if index.digest != card.index_sha256:
        raise PersonaError(
            f"{card.id} was drawn from {card.photos} photos of {card.dataset} ({card.split}); "
            f"the folder now lists {len(index.photos)} others: restore them or make a new set"
        )
    if card.labels_sha256 not in {None, index.labels_digest}:
        raise PersonaError(
            f"{card.id} was drawn from photos of {card.dataset} ({card.split}) that had other "
            "identities: restore those or make a new set"
        )

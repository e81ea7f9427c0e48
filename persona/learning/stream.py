"""What comes when: identities in groups, photos to learn from and photos to measure on.

All of it is a function of the seed, so that a run that is taken up sees the same stream.

Shapes: N photos of an experience, B batch.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from persona.data.views import mix_seeds
from persona.errors import PersonaError
from persona.learning.photos import Ints, Photos, group


@dataclass(frozen=True)
class Experience:
    """Identities that come together, and their photos."""

    number: int
    identities: tuple[str, ...]
    train: Ints
    """(N,) photos to learn from."""
    test: Ints
    """Photos of the same identities to measure on."""


def build_experience(
    photos: Photos, number: int, identities: Sequence[str], chosen: Ints, hold_out: float, seed: int
) -> Experience:
    """The experience of some identities, from the photos among `chosen`.

    Of each identity the share `hold_out` is measured on, at least one photo and never all.
    """
    train, test = [], []
    place_of = {name: place for place, name in enumerate(photos.names)}
    of_identity = group(photos.identity[chosen])
    for name in identities:
        place = place_of[name]
        mine = chosen[of_identity[place]]
        mine = np.random.default_rng(mix_seeds(seed, place)).permutation(mine)
        held = min(len(mine) - 1, max(1, round(hold_out * len(mine)))) if hold_out else 0
        test.append(mine[:held])
        train.append(mine[held:])
    return Experience(
        number, tuple(identities), np.sort(np.concatenate(train)), np.sort(np.concatenate(test))
    )


def in_order(photos: Photos, chosen: Ints, seed: int) -> list[str]:
    """The identities of the photos `chosen`, in an order drawn by the seed."""
    present = [photos.names[place] for place in np.unique(photos.identity[chosen])]
    order = np.random.default_rng(mix_seeds(seed, len(present))).permutation(len(present))
    return [present[place] for place in order]


def in_groups(names: Sequence[str], count: int) -> list[list[str]]:
    """`count` groups that differ by one identity at most.

    Raises:
        PersonaError: fewer identities than groups.
    """
    if count > len(names):
        raise PersonaError(
            f"{len(names)} identities do not make {count} experiences: "
            f"choose --experiences {max(len(names), 1)} or fewer"
        )
    bounds = [len(names) * number // count for number in range(count + 1)]
    return [list(names[a:b]) for a, b in itertools.pairwise(bounds)]


def draw_batch(pool: Ints, size: int, step: int, rank: int, ranks: int, *seeds: int) -> Ints:
    """(B,) photos of one step on one process.

    The pool is shuffled and gone through, shuffled anew and gone through again, without an end;
    each step's processes take neighbouring pieces.
    """
    places = (step * ranks + rank) * size + np.arange(size)
    rounds, within = np.divmod(places, len(pool))
    drawn = np.empty(size, np.int64)
    for number in np.unique(rounds).tolist():
        here = rounds == number
        drawn[here] = pool[_shuffled(len(pool), *seeds, number)[within[here]]]
    return drawn


@functools.lru_cache(maxsize=2)  # a round lasts for many steps
def _shuffled(count: int, *seeds: int) -> Ints:
    return np.random.default_rng(mix_seeds(*seeds)).permutation(count)

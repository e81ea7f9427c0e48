"""The stream of experiences: groups of identities with their training and test photos.

The stream depends only on the photos, the settings and the seed, so a resumed run sees the same
one.

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
from persona.evaluation.search import rows_of_each
from persona.learning.memory import priority_of
from persona.learning.photos import Ints, Photos

HELD_OUT = 1
"""Seed, beside the run's, of the hash by which photos are held out."""


@dataclass(frozen=True)
class Experience:
    """A group of identities that are learned together, and their photos."""

    number: int
    """Place in the stream, from 0. -1 for identities that the student already knows."""
    identities: tuple[str, ...]
    """Names of the identities."""
    train: Ints
    """(N,) numbers of the training photos."""
    test: Ints
    """Numbers of the test photos of the same identities."""


def build_experience(
    photos: Photos, number: int, identities: Sequence[str], chosen: Ints, hold_out: float, seed: int
) -> Experience:
    """Builds the experience of some identities from the photos among `chosen`.

    Of each identity's photos a share `hold_out` becomes test photos: at least one photo, if
    `hold_out` is above 0, but never all. They are those of the lowest hash of their bytes, so they
    stay the same in a set that is packed again with other people or more photos.
    """
    key = mix_seeds(seed, HELD_OUT)  # not the reservoir's, which would keep the next ones first
    train, test = [], []
    place_of = {name: place for place, name in enumerate(photos.names)}
    of_identity = rows_of_each(photos.identity[chosen])
    for name in identities:
        place = place_of[name]
        mine = chosen[of_identity[place]]
        held = min(len(mine) - 1, max(1, round(hold_out * len(mine)))) if hold_out else 0
        if held:
            hashes = [priority_of(photos.jpeg(photo), key) for photo in mine.tolist()]
            mine = mine[np.argsort(hashes, kind="stable")]
        test.append(mine[:held])
        train.append(mine[held:])
    return Experience(
        number, tuple(identities), np.sort(np.concatenate(train)), np.sort(np.concatenate(test))
    )


def in_order(photos: Photos, chosen: Ints, seed: int) -> list[str]:
    """Names of the identities of the photos `chosen`, in a random order by seed."""
    present = [photos.names[place] for place in np.unique(photos.identity[chosen])]
    order = np.random.default_rng(mix_seeds(seed, len(present))).permutation(len(present))
    return [present[place] for place in order]


def in_groups(names: Sequence[str], count: int) -> list[list[str]]:
    """Splits names into `count` groups whose sizes differ by one at most.

    Raises:
        PersonaError: there are fewer names than groups.
    """
    if count > len(names):
        raise PersonaError(
            f"{len(names)} identities do not make {count} experiences: "
            f"choose --experiences {max(len(names), 1)} or fewer"
        )
    bounds = [len(names) * number // count for number in range(count + 1)]
    return [list(names[a:b]) for a, b in itertools.pairwise(bounds)]


def draw_batch(pool: Ints, size: int, step: int, rank: int, ranks: int, *seeds: int) -> Ints:
    """(B,) numbers of the photos of one step on one process.

    The pool is shuffled for each round, and rounds follow each other without end. The processes of
    a step take neighbouring pieces of it.

    Args:
        pool: numbers of the photos to draw from.
        size: photos to draw.
        step: number of the step, from 0.
        rank: this process.
        ranks: number of processes.
        seeds: seeds of the shuffles.
    """
    places = (step * ranks + rank) * size + np.arange(size)
    rounds, within = np.divmod(places, len(pool))
    drawn = np.empty(size, np.int64)
    for number in np.unique(rounds).tolist():
        here = rounds == number
        drawn[here] = pool[_shuffled(len(pool), *seeds, number)[within[here]]]
    return drawn


@functools.lru_cache(maxsize=2)  # a round serves many steps
def _shuffled(count: int, *seeds: int) -> Ints:
    return np.random.default_rng(mix_seeds(*seeds)).permutation(count)

"""What is kept of photos that were learned: JPEG bytes under a budget.

Two ways to choose, both by a priority that each exemplar carries:

- `reservoir`: the priority is drawn once for each photo, by a keyed hash of its bytes; those with
  the lowest stay. It is Vitter's reservoir (1985, algorithm R) written as a random sort: what
  is kept at any time is a uniform sample of the photos that passed, however often each passed.
- `herding`: the priority is the photo's rank among its identity's exemplars (Rebuffi et al. 2017,
  algorithms 4 and 5); all identities keep the same number of ranks.

Shapes: N photos of an identity, E embedding, M exemplars, K identities.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from persona.data.views import mix_seeds
from persona.errors import PersonaError
from persona.learning.photos import Ints

PIECE = 1024
"""Photos that are in memory beside those that stay while an experience passes."""


@dataclass(frozen=True)
class Exemplar:
    """A photo that is kept."""

    priority: int
    label: int
    jpeg: bytes
    logits: Tensor | None = None
    """(K,) float32 when it was learned, of the identities known then."""

    @property
    def bytes(self) -> int:
        """What it takes: photo and logits."""
        return len(self.jpeg) + (0 if self.logits is None else self.logits.nbytes)


@dataclass(frozen=True)
class Budget:
    """How much may be kept."""

    photos: int
    bytes: int | None = None

    @classmethod
    def of(cls, photos: int, megabytes: float | None) -> Budget:
        """From `--memory` and `--memory-mb`."""
        return cls(photos, None if megabytes is None else round(megabytes * 1e6))

    def check(self, method: str) -> None:
        """Raises PersonaError if nothing can be kept."""
        if not self.photos or self.bytes == 0:
            raise PersonaError(
                f"method {method} keeps photos, and the memory budget is 0: give --memory a number "
                "of photos, or choose a method that keeps none (finetune, ncm, lwf, ewc, anchor)"
            )

    def check_smallest(self, sizes: Sequence[int], *, each: bool = False) -> None:
        """Raises PersonaError if photos of these bytes do not fit; `each`: of an identity each."""
        too_large = self.bytes is not None and sum(sizes) > self.bytes
        if each and (too_large or len(sizes) > self.photos):
            raise PersonaError(
                f"the memory budget does not hold one photo of each of {len(sizes)} identities: "
                "give it more (--memory, --memory-mb), or choose replay or der++"
            )
        if too_large:
            raise PersonaError(
                f"a memory of {self.bytes} bytes holds no photo: the smallest takes "
                f"{sizes[0]:,}: give --memory-mb more"
            )

    def holds(self, exemplars: list[Exemplar]) -> bool:
        """Whether these fit."""
        return len(exemplars) <= self.photos and (
            self.bytes is None or sum(e.bytes for e in exemplars) <= self.bytes
        )


Choice = Callable[[list[Exemplar], Budget], list[Exemplar]]


def reservoir(exemplars: list[Exemplar], budget: Budget) -> list[Exemplar]:
    """Those of lowest priority, as many as fit; who is larger than the budget never passed."""
    if budget.bytes is not None:
        exemplars = [e for e in exemplars if e.bytes <= budget.bytes]
    ordered = sorted(exemplars, key=lambda e: e.priority)[: budget.photos]
    if budget.bytes is not None:
        taken = np.cumsum([e.bytes for e in ordered])
        ordered = ordered[: int(np.searchsorted(taken, budget.bytes, side="right"))]
    return ordered


def herding(exemplars: list[Exemplar], budget: Budget) -> list[Exemplar]:
    """The same number of first ranks of every identity, as many as fit.

    Raises:
        PersonaError: not one for each.
    """
    known = len({e.label for e in exemplars})
    ordered = sorted(exemplars, key=lambda e: (e.label, e.priority))
    ranks = budget.photos // known if known else 0
    ranks = min(ranks, 1 + max((e.priority for e in exemplars), default=0))
    while ranks and not budget.holds([e for e in ordered if e.priority < ranks]):
        ranks -= 1
    if known and not ranks:
        budget.check_smallest([e.bytes for e in ordered if not e.priority], each=True)
    return [e for e in ordered if e.priority < ranks]


def priority_of(jpeg: bytes, seed: int) -> int:
    """A reservoir's draw for a photo: 63 bits of a hash that the seed keys."""
    digest = hashlib.blake2b(jpeg, digest_size=8, key=seed.to_bytes(8, "little")).digest()
    return int.from_bytes(digest, "little") >> 1


def herd(embeddings_NE: Tensor, wanted: int) -> list[int]:
    """The places of up to `wanted` photos whose running mean stays nearest to the mean of all.

    Rebuffi et al. 2017 (iCaRL, arXiv:1611.07725), algorithm 4:
    `p_k = argmin_x || mu - (phi(x) + sum of phi(p_1 … p_{k-1})) / k ||`, without repetition. As in
    the authors' code means are not brought to unit length here.

    Args:
        embeddings_NE: (N, E) of unit length.
        wanted: how many.
    """
    mean_E = embeddings_NE.mean(dim=0)
    total_E = torch.zeros_like(mean_E)
    free_N = torch.ones(len(embeddings_NE), dtype=torch.bool)
    chosen: list[int] = []
    for rank in range(1, min(wanted, len(embeddings_NE)) + 1):
        distance_N = (mean_E - (total_E + embeddings_NE) / rank).norm(dim=1)
        distance_N[~free_N] = float("inf")
        best = int(distance_N.argmin())
        chosen.append(best)
        free_N[best] = False
        total_E = total_E + embeddings_NE[best]
    return chosen


@dataclass
class Memory:
    """The exemplars, never more than the budget."""

    budget: Budget
    choose: Choice
    exemplars: list[Exemplar] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.exemplars)

    @property
    def bytes(self) -> int:
        """Of photos and logits."""
        return sum(e.bytes for e in self.exemplars)

    def add(self, exemplars: Iterable[Exemplar]) -> None:
        """Takes some in and lets go of what does not fit; who is in it already stays as it is.

        Raises:
            PersonaError: not one photo fits.
        """
        passing = iter(exemplars)
        while piece := list(itertools.islice(passing, PIECE)):
            known = {(e.label, e.jpeg): e for e in self.exemplars}
            for exemplar in piece:
                known.setdefault((exemplar.label, exemplar.jpeg), exemplar)
            before = list(known.values())
            self.exemplars = self.choose(before, self.budget)
            if not self.exemplars:
                self.budget.check_smallest([min(e.bytes for e in before)])

    def draw(self, count: int, *seeds: int) -> list[Exemplar]:
        """`count` exemplars by seed, as different as there are; empty if nothing is kept."""
        if not self.exemplars:
            return []
        rng = np.random.default_rng(mix_seeds(*seeds))
        places: Ints = np.concatenate(
            [rng.permutation(len(self)) for _ in range(-(-count // len(self)))]
        )[:count]
        return [self.exemplars[place] for place in places.tolist()]

    def state(self) -> dict[str, Any]:
        """As tensors, for a checkpoint."""
        jpegs = b"".join(e.jpeg for e in self.exemplars)
        return {
            "priorities": torch.tensor([e.priority for e in self.exemplars], dtype=torch.int64),
            "labels": torch.tensor([e.label for e in self.exemplars], dtype=torch.int64),
            "lengths": torch.tensor([len(e.jpeg) for e in self.exemplars], dtype=torch.int64),
            "jpegs": torch.from_numpy(np.frombuffer(jpegs, np.uint8).copy()),
            "logits": [e.logits for e in self.exemplars],
        }

    def load(self, state: dict[str, Any]) -> None:
        """Takes up `state`, or what the budget holds of it.

        Raises:
            PersonaError: herding: not one photo of each identity.
        """
        ends = torch.cumsum(state["lengths"], 0).tolist()
        jpegs = state["jpegs"].numpy().tobytes()
        columns = (state["priorities"].tolist(), state["labels"].tolist(), state["logits"])
        kept = [
            Exemplar(priority, label, jpegs[end - length : end], logits)
            for priority, label, logits, length, end in zip(
                *columns, state["lengths"].tolist(), ends, strict=True
            )
        ]
        self.exemplars = self.choose(kept, self.budget)

"""Memory of learned photos: JPEG bytes under a budget.

There are two ways to choose which photos are kept. Both use a priority that each exemplar has:

- `reservoir`: the priority is a keyed hash of the photo's bytes. The photos with the lowest
  priorities are kept. This is Vitter's reservoir (1985, algorithm R) as a random sort: the kept
  photos are at any time a uniform sample of the photos offered, however often each was offered.
- `herding`: the priority is the photo's rank among the exemplars of its identity (Rebuffi et al.
  2017, algorithms 4 and 5). All identities keep the same number of ranks.

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
"""Photos that are offered at once. So many are in memory in addition to those that are kept."""


@dataclass(frozen=True)
class Exemplar:
    """A learned photo that the memory keeps."""

    priority: int
    """Lower priorities are kept first."""
    label: int
    jpeg: bytes
    logits: Tensor | None = None
    """(K,) float32 logits from when it was learned, for the identities known then."""

    @property
    def bytes(self) -> int:
        """Size of the photo and its logits in bytes."""
        return len(self.jpeg) + (0 if self.logits is None else self.logits.nbytes)


@dataclass(frozen=True)
class Budget:
    """How much may be kept: a number of photos, and bytes if given. Both limits hold."""

    photos: int
    bytes: int | None = None

    @classmethod
    def of(cls, photos: int, megabytes: float | None) -> Budget:
        """Budget from `--memory` (photos) and `--memory-mb` (MB)."""
        return cls(photos, None if megabytes is None else round(megabytes * 1e6))

    def check(self, method: str) -> None:
        """Raises PersonaError if the budget is 0."""
        if not self.photos or self.bytes == 0:
            raise PersonaError(
                f"method {method} keeps photos, and the memory budget is 0: give --memory a number "
                "of photos, or choose a method that keeps none (finetune, ncm, lwf, ewc, anchor)"
            )

    def check_smallest(self, sizes: Sequence[int], *, each: bool = False) -> None:
        """Raises PersonaError if photos of these sizes in bytes do not fit together.

        With `each` there is one photo per identity, and their number must fit too.
        """
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
        """Whether these exemplars fit."""
        return len(exemplars) <= self.photos and (
            self.bytes is None or sum(e.bytes for e in exemplars) <= self.bytes
        )


Choice = Callable[[list[Exemplar], Budget], list[Exemplar]]


def reservoir(exemplars: list[Exemplar], budget: Budget) -> list[Exemplar]:
    """The exemplars of lowest priority, as many as fit. One larger than the budget is ignored."""
    if budget.bytes is not None:
        exemplars = [e for e in exemplars if e.bytes <= budget.bytes]
    ordered = sorted(exemplars, key=lambda e: e.priority)[: budget.photos]
    if budget.bytes is not None:
        taken = np.cumsum([e.bytes for e in ordered])
        ordered = ordered[: int(np.searchsorted(taken, budget.bytes, side="right"))]
    return ordered


def herding(exemplars: list[Exemplar], budget: Budget) -> list[Exemplar]:
    """The first ranks of every identity, the same number for each and as many as fit.

    Raises:
        PersonaError: one exemplar per identity does not fit.
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
    """Priority of a photo in a reservoir: 63 bits of a hash of its bytes, keyed by the seed."""
    digest = hashlib.blake2b(jpeg, digest_size=8, key=seed.to_bytes(8, "little")).digest()
    return int.from_bytes(digest, "little") >> 1


def herd(embeddings_NE: Tensor, wanted: int) -> list[int]:
    """Places of up to `wanted` photos whose running mean stays nearest to the mean of all.

    Rebuffi et al. 2017 (iCaRL, arXiv:1611.07725), algorithm 4:
    `p_k = argmin_x || mu - (phi(x) + sum of phi(p_1 … p_{k-1})) / k ||`, without repetition. Means
    are not scaled to unit length here, as in the authors' code.

    Args:
        embeddings_NE: (N, E) embeddings of unit length.
        wanted: most photos to choose.
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
    """The kept exemplars, which never exceed the budget."""

    budget: Budget
    choose: Choice
    exemplars: list[Exemplar] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.exemplars)

    @property
    def bytes(self) -> int:
        """Size of all photos and logits in bytes."""
        return sum(e.bytes for e in self.exemplars)

    def add(self, exemplars: Iterable[Exemplar]) -> None:
        """Offers exemplars to the memory and drops what does not fit.

        A photo that is already kept with the same label is not replaced.

        Raises:
            PersonaError: not even one photo fits.
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
        """Draws `count` exemplars by seed. Empty if nothing is kept.

        An exemplar is repeated only if there are fewer than `count`.
        """
        if not self.exemplars:
            return []
        rng = np.random.default_rng(mix_seeds(*seeds))
        places: Ints = np.concatenate(
            [rng.permutation(len(self)) for _ in range(-(-count // len(self)))]
        )[:count]
        return [self.exemplars[place] for place in places.tolist()]

    def state(self) -> dict[str, Any]:
        """The exemplars as tensors, for a checkpoint."""
        jpegs = b"".join(e.jpeg for e in self.exemplars)
        return {
            "priorities": torch.tensor([e.priority for e in self.exemplars], dtype=torch.int64),
            "labels": torch.tensor([e.label for e in self.exemplars], dtype=torch.int64),
            "lengths": torch.tensor([len(e.jpeg) for e in self.exemplars], dtype=torch.int64),
            "jpegs": torch.from_numpy(np.frombuffer(jpegs, np.uint8).copy()),
            "logits": [e.logits for e in self.exemplars],
        }

    def load(self, state: dict[str, Any]) -> None:
        """Restores what `state` returned, as far as the budget allows.

        Raises:
            PersonaError: one photo of each identity does not fit, for herding.
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

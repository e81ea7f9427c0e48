"""Who is nearest: a row a person (`mean`) or a template (`max`) in memory.

Up to EXACT rows every probe is compared with all of them. Beyond, FAISS proposes: an inverted file
over 8-bit codes names a few people, and only they are compared. What changed since FAISS was built
is compared too, so nothing is missed because it is new.

Shapes: N rows, E embedding, P probes.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from persona.extras import install_command
from persona.gallery.store import Templates, unit

log = logging.getLogger(__name__)

EXACT = 100_000
"""Rows that are all compared."""
CANDIDATES = 32
"""Rows that FAISS proposes for a probe."""
LISTS_PER_ROOT, PROBED = 2, 128
"""Of the inverted file: how many lists a square root of rows, and how many are looked through."""
TRAINED_PER_LIST = 64
REBUILT_AT = 0.05
"""FAISS is built anew when this share of rows changed since."""


class Index:
    """Rows with their owners; grows, and is made anew where somebody is forgotten."""

    def __init__(self, width: int, match: str, exact: int = EXACT) -> None:
        self.match, self.exact = match, exact
        self.names: list[str] = []
        """Of people, in the order they came."""
        self._number: dict[str, int] = {}
        self._rows: Templates = np.zeros((64, width), np.float32)
        """Of unit length; those beyond `_count` are free."""
        self._sums: npt.NDArray[np.float64] = np.zeros((64 if match == "mean" else 0, width))
        self._owner: npt.NDArray[np.int64] = np.zeros(64, np.int64)
        self._count = 0
        self._faiss: Any = None
        self._changed: set[int] = set()
        """Rows that FAISS has not seen as they are."""

    def __len__(self) -> int:
        return self._count

    def add(self, names: Sequence[str], templates_NE: Templates) -> None:
        """Templates of people, new ones or such that are there."""
        if not len(names):
            return
        for name in names:
            if name not in self._number:
                self._number[name] = len(self.names)
                self.names.append(name)
        owner_N = np.array([self._number[name] for name in names])
        if self.match == "mean":
            self._reserve(len(self.names))
            np.add.at(self._sums, owner_N, templates_NE)
            touched = np.unique(owner_N)
            self._rows[touched] = unit(self._sums[touched])
            self._count = len(self.names)
            self._owner[: self._count] = np.arange(self._count)
        else:
            touched = np.arange(self._count, self._count + len(names))
            self._reserve(self._count + len(names))
            self._rows[touched], self._owner[touched] = templates_NE, owner_N
            self._count += len(names)
        if self._faiss is not None:
            self._changed.update(touched.tolist())

    def _reserve(self, rows: int) -> None:
        """Room by doubling, so that enrolling one by one copies each row a few times at most."""
        lacking = max(rows, 2 * len(self._rows)) - len(self._rows)
        if rows > len(self._rows):
            self._rows = np.pad(self._rows, ((0, lacking), (0, 0)))
            self._owner = np.pad(self._owner, (0, lacking))
            if self.match == "mean":
                self._sums = np.pad(self._sums, ((0, lacking), (0, 0)))

    def nearest(
        self, probes_PE: Templates, *, without: str | None = None
    ) -> list[tuple[str, float] | None]:
        """Name and cosine similarity of the nearest person to each probe; None: there is nobody."""
        if not self._count:
            return [None] * len(probes_PE)
        left_out = -1 if without is None else self._number.get(without, -1)
        if self._count > self.exact and (proposed_PN := self._propose(probes_PE)) is not None:
            return [
                self._best(self._rows[rows] @ probe_E, rows, left_out)
                for probe_E, rows in zip(probes_PE, proposed_PN, strict=True)
            ]
        everybody = np.arange(self._count)
        scores_PN = probes_PE @ self._rows[: self._count].T
        return [self._best(scores_N, everybody, left_out) for scores_N in scores_PN]

    def _best(
        self, scores_N: Templates, rows_N: npt.NDArray[np.int64], left_out: int
    ) -> tuple[str, float] | None:
        if left_out >= 0:
            scores_N = np.where(self._owner[rows_N] == left_out, -np.inf, scores_N)
        place = int(scores_N.argmax())
        score = float(scores_N[place])
        return None if score == -np.inf else (self.names[self._owner[rows_N[place]]], score)

    def _propose(self, probes_PE: Templates) -> list[npt.NDArray[np.int64]] | None:
        """Rows that may be nearest to each probe; None: FAISS is not installed."""
        if self._faiss is None or len(self._changed) > REBUILT_AT * self._count:
            faiss = _faiss(self._count)
            if faiss is None:
                return None
            self._faiss = self._build(faiss)
            self._changed.clear()
        _, found_PN = self._faiss.search(np.ascontiguousarray(probes_PE), CANDIDATES)
        changed = np.array(sorted(self._changed), np.int64)
        return [np.union1d(found[found >= 0], changed) for found in found_PN]

    def _build(self, faiss: Any) -> Any:
        """An inverted file over all rows as they are."""
        rows_NE = self._rows[: self._count]
        lists = int(LISTS_PER_ROOT * np.sqrt(self._count))
        drawn = np.random.default_rng(0).permutation(self._count)[: TRAINED_PER_LIST * lists]
        index = faiss.index_factory(rows_NE.shape[1], f"IVF{lists},SQ8", faiss.METRIC_INNER_PRODUCT)
        index.cp.min_points_per_centroid = 1
        index.train(rows_NE[np.sort(drawn)])
        index.add(rows_NE)
        index.nprobe = PROBED
        return index


@functools.cache
def _warn(line: str) -> None:
    """Once a process."""
    log.warning(line)


def _faiss(rows: int) -> Any:
    try:
        import faiss
    except ImportError:
        _warn(
            f"{rows:,} templates are compared one by one; for an index: {install_command('faiss')}"
        )
        return None
    return faiss

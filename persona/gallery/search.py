"""Search for the nearest person in memory, with one row per person (`mean`) or template (`max`).

With up to EXACT rows, each probe is compared with all of them. With more, FAISS proposes a few
candidates from an inverted file over 8-bit codes, and only these are compared exactly. Rows that
changed after the FAISS index was built are always compared, so new rows are never missed.

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
"""Largest number of rows that are all compared with each probe."""
CANDIDATES = 32
"""Rows that FAISS proposes for each probe."""
LISTS_PER_ROOT, PROBED = 2, 128
"""The inverted file has LISTS_PER_ROOT lists times the square root of the number of rows, of which
PROBED are searched for each probe."""
TRAINED_PER_LIST = 64
"""Rows per list on which the inverted file is trained."""
REBUILT_AT = 0.05
"""Share of changed rows from which the FAISS index is built anew."""


class TemplateIndex:
    """Rows and the people they belong to. It only grows: a removal needs a new index."""

    def __init__(self, width: int, match: str, exact: int = EXACT) -> None:
        self.match, self.exact = match, exact
        self.names: list[str] = []
        """Names of the people, in the order in which they were added."""
        self._number: dict[str, int] = {}
        self._rows: Templates = np.zeros((64, width), np.float32)
        """Rows of unit length. Those after `_count` are free."""
        self._sums: npt.NDArray[np.float64] = np.zeros((64 if match == "mean" else 0, width))
        self._owner: npt.NDArray[np.int64] = np.zeros(64, np.int64)
        self._count = 0
        self._faiss: Any = None
        self._changed: set[int] = set()
        """Rows that changed after the FAISS index was built."""

    def __len__(self) -> int:
        return self._count

    def add(self, names: Sequence[str], templates_NE: Templates) -> None:
        """Adds (N, E) templates with the names of their people, who may be new or known."""
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
        """Makes room by doubling, so that adding rows one by one copies each only a few times."""
        lacking = max(rows, 2 * len(self._rows)) - len(self._rows)
        if rows > len(self._rows):
            self._rows = np.pad(self._rows, ((0, lacking), (0, 0)))
            self._owner = np.pad(self._owner, (0, lacking))
            if self.match == "mean":
                self._sums = np.pad(self._sums, ((0, lacking), (0, 0)))

    def nearest(
        self, probes_PE: Templates, *, without: str | None = None
    ) -> list[tuple[str, float] | None]:
        """Finds the nearest person to each of the (P, E) probes.

        Args:
            probes_PE: probes of unit length.
            without: name of a person to leave out.

        Returns:
            Name and cosine similarity for each probe, or None where there is nobody.
        """
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
        """Returns candidate rows for each probe, or None if FAISS is not installed."""
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
        """Builds an inverted file over all rows."""
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
    """Logs a warning once per process."""
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

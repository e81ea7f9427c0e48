"""Figures of identification 1:N from embeddings.

Similarities are computed in blocks, so that a 100,000 x 100,000 matrix is never in memory.

The terms are those of ISO/IEC 19795-1: a mated probe's identity is in the gallery, a non-mated
probe's is not.

Shapes: N probes, M of them mated, G gallery templates, E embedding, K ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from persona.errors import PersonaError
from persona.evaluation.metrics import Bools, Floats, Ints, resolves

Embeddings = npt.NDArray[np.float32]

BLOCK = 16_000_000
"""Similarities in memory at once: 64 MB, and twice that while they are compared."""
FPIRS = (1e-2, 1e-3)
"""False positive identification rates (FPIR) at which TPIR is reported."""


@dataclass(frozen=True)
class Search:
    """Result of searching each probe in a gallery."""

    best: npt.NDArray[np.float32]
    """(N,) highest cosine similarity."""
    place: Ints
    """(N,) place of the gallery template that has it."""
    rank: Ints
    """(N,) rank of the correct template, from 1. Templates of equal similarity rank before it.
    0 marks a non-mated probe."""


def search(
    probe_NE: Embeddings, gallery_GE: Embeddings, mate_N: Ints, block: int = BLOCK
) -> Search:
    """Compares every probe with every gallery template.

    Args:
        probe_NE: (N, E) float32 embeddings of unit length.
        gallery_GE: (G, E) float32 templates of unit length.
        mate_N: (N,) gallery place of each probe's identity; -1 if it is not in the gallery.
        block: similarities in memory at once.

    Raises:
        PersonaError: the gallery is empty.
    """
    if not len(gallery_GE):
        raise PersonaError("the gallery holds nobody")
    best = np.empty(len(probe_NE), np.float32)
    place, rank = np.empty(len(probe_NE), np.int64), np.zeros(len(probe_NE), np.int64)
    rows = max(1, block // len(gallery_GE))
    for start in range(0, len(probe_NE), rows):
        part = slice(start, start + rows)
        similarity = probe_NE[part] @ gallery_GE.T
        place[part] = similarity.argmax(axis=1)
        mate = mate_N[part]
        own = np.take_along_axis(similarity, np.maximum(mate, 0)[:, None], axis=1)
        best[part] = similarity.max(axis=1)
        ahead = np.count_nonzero(similarity >= own, axis=1)
        rank[part] = np.where(mate >= 0, ahead, 0)
    return Search(best, place, rank)


def cmc(rank_M: Ints, ranks: int) -> Floats:
    """(K,) share of mated probes whose identity is among the first 1, 2, … K answers."""
    return np.array([np.mean(rank_M <= k) for k in range(1, ranks + 1)])


def tpir_at_fpir(best_N: npt.NDArray[Any], rank_N: Ints, fpir: float) -> float | None:
    """TPIR at rank 1 (also called DIR): share of mated probes ranked first and above the threshold.

    The threshold is the lowest at which at most a share `fpir` of the non-mated probes is answered.
    None means that there are too few non-mated probes to resolve `fpir`, or no mated ones.
    """
    found = accepted(best_N, rank_N, fpir)
    return None if found is None else float(found.mean())


def accepted(best_N: npt.NDArray[Any], rank_N: Ints, fpir: float) -> Bools | None:
    """(M,) whether each mated probe is identified at that FPIR. None as in `tpir_at_fpir`."""
    mated = rank_N > 0
    strangers = np.sort(best_N[~mated])[::-1]
    if not mated.any() or not resolves(fpir, len(strangers)):
        return None
    allowed = int(fpir * len(strangers) + 1e-9)
    threshold = strangers[allowed] if allowed < len(strangers) else -np.inf
    return np.asarray((rank_N[mated] == 1) & (best_N[mated] > threshold))


def rows_of_each(values_N: Ints) -> dict[int, Ints]:
    """Rows of each value, rising, by value; the values rise too."""
    order = np.argsort(values_N, kind="stable")
    found, starts = np.unique(values_N[order], return_index=True)
    bounds = pairwise([*starts.tolist(), len(order)])
    return {value: order[a:b] for value, (a, b) in zip(found.tolist(), bounds, strict=True)}


def pool(embeddings_NE: Embeddings, owner_N: Ints, count: int) -> Embeddings:
    """(count, E) float32 mean of each owner's embeddings, scaled to unit length.

    An owner without embeddings gets zeros.

    Args:
        embeddings_NE: (N, E) float32 embeddings.
        owner_N: (N,) owner of each, from 0 to count - 1.
        count: number of owners.
    """
    sums = np.zeros((count, embeddings_NE.shape[1]))
    np.add.at(sums, owner_N, embeddings_NE)
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    return np.asarray(sums / np.maximum(lengths, 1e-12), np.float32)

"""Figures of identification 1:N, from embeddings in blocks: a 100,000 x 100,000 similarity never
lies in memory.

ISO/IEC 19795-1's terms: a mated probe's identity is in the gallery, a non-mated one's is not.

Shapes: N probes, M of them mated, G gallery templates, E embedding, K ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from persona.errors import PersonaError
from persona.evaluation.metrics import Bools, Floats, Ints, resolves

Embeddings = npt.NDArray[np.float32]

BLOCK = 16_000_000
"""Similarities held at once: 64 MB, and twice that while they are compared."""
FPIRS = (1e-2, 1e-3)


@dataclass(frozen=True)
class Search:
    """What a gallery answers to each probe."""

    best: npt.NDArray[np.float32]
    """(N,) the highest similarity."""
    place: Ints
    """(N,) the gallery template that has it."""
    rank: Ints
    """(N,) of the right template, from 1, equal scores counted against it; 0: non-mated."""


def search(
    probe_NE: Embeddings, gallery_GE: Embeddings, mate_N: Ints, block: int = BLOCK
) -> Search:
    """Compares every probe with every gallery template.

    Args:
        probe_NE: of unit length.
        gallery_GE: of unit length.
        mate_N: the gallery place of each probe's identity; -1: it is not there.
        block: similarities held at once.
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
    """Open-set identification rate at rank 1 (DIR): found first and above the threshold.

    The threshold is the lowest at which at most a share `fpir` of the non-mated probes is answered.
    None: too few non-mated probes to resolve it, or no mated one.
    """
    found = accepted(best_N, rank_N, fpir)
    return None if found is None else float(found.mean())


def accepted(best_N: npt.NDArray[Any], rank_N: Ints, fpir: float) -> Bools | None:
    """(M,) whether each mated probe is identified at that FPIR; None as `tpir_at_fpir`."""
    mated = rank_N > 0
    strangers = np.sort(best_N[~mated])[::-1]
    if not mated.any() or not resolves(fpir, len(strangers)):
        return None
    allowed = int(fpir * len(strangers) + 1e-9)
    threshold = strangers[allowed] if allowed < len(strangers) else -np.inf
    return np.asarray((rank_N[mated] == 1) & (best_N[mated] > threshold))


def pool(embeddings_NE: Embeddings, owner_N: Ints, count: int) -> Embeddings:
    """(count, E) the mean of each owner's embeddings, of unit length; zero for one without any."""
    sums = np.zeros((count, embeddings_NE.shape[1]))
    np.add.at(sums, owner_N, embeddings_NE)
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    return np.asarray(sums / np.maximum(lengths, 1e-12), np.float32)

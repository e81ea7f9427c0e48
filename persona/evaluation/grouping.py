"""Groups faces into people from their embeddings, without names, and measures such groups.

1. each face is linked to its nearest neighbours, as far as they reach the threshold
2. Chinese whispers (Biemann 2006, ACL TextGraphs): each face starts as a group of its own and
   repeatedly takes the group to which the weight of its links is largest
3. groups whose mean embeddings reach the threshold as well are joined: a face has few links, so a
   person with many photos could otherwise fall into several groups

Time grows with the number of links. Neighbours are exact up to `EXACT` faces. Beyond that, FAISS
proposes them from an inverted file, where it is installed.

Shapes: N faces, E embedding, L links, G groups.
"""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from persona.evaluation.metrics import Ints
from persona.extras import install_command

log = logging.getLogger(__name__)

Embeddings = npt.NDArray[np.float32]

NEIGHBOURS = 24
"""Most links of a face."""
EXACT = 20_000
"""Largest number of faces whose neighbours are searched by comparing all pairs."""
BLOCK = 16_000_000
"""Similarities in memory at once: 64 MB."""
ROUNDS = 30
"""Most rounds of whispering. It usually ends after ten."""
PARTS = 16
"""Parts of a round. The faces of one part take their new groups at the same time."""
LISTS_PER_ROOT, PROBED = 2, 24
"""The inverted file has LISTS_PER_ROOT lists times the square root of N, of which PROBED are
searched for each face."""
ESTIMATED_FROM = 4_000
"""Most faces from which a threshold is estimated."""
DEVIATIONS = 4.0
"""Distance of an estimated threshold from the median similarity, in standard deviations."""
LOWEST, HIGHEST = 0.2, 0.5
"""Range of an estimated threshold."""


class Links(NamedTuple):
    """Links between faces. Every link is there in both directions, sorted by its first face."""

    source: Ints
    """(L,) number of a face."""
    target: Ints
    """(L,) number of the face it is linked to."""
    weight: npt.NDArray[np.float32]
    """(L,) cosine similarity."""


def group_faces(embedding_NE: Embeddings, threshold: float, *, seed: int = 0) -> Ints:
    """Groups faces into people.

    Args:
        embedding_NE: (N, E) float32 embeddings of unit length.
        threshold: lowest cosine similarity of two faces of one person.
        seed: seed for the order of whispering.

    Returns:
        (N,) number of each face's group. The largest group is 0; of equally large ones the one with
        the first face comes first.

    Example:
        >>> import numpy as np
        >>> group_faces(np.eye(3, dtype=np.float32)[[0, 1, 1]], 0.5).tolist()
        [1, 0, 0]
    """
    if not len(embedding_NE):
        return np.zeros(0, np.int64)
    links = link(embedding_NE, threshold)
    groups = whisper(links, len(embedding_NE), seed)
    return ranked(join(embedding_NE, groups, threshold))


def link(embedding_NE: Embeddings, threshold: float) -> Links:
    """Links each face to its nearest neighbours that reach the threshold."""
    count = len(embedding_NE)
    most = min(NEIGHBOURS, count - 1)
    sources, targets, weights = [], [], []
    if most > 0:
        propose = None if count <= EXACT else _approximate(embedding_NE, most)
        rows = max(1, BLOCK // count)
        for start in range(0, count, rows):
            own = np.arange(start, min(start + rows, count))
            if propose is None:
                near, similarity = _exact(embedding_NE, own, most)
            else:
                near, similarity = propose(own)
            kept = (similarity >= threshold) & (near >= 0) & (near != own[:, None])
            sources.append(np.repeat(own, kept.sum(axis=1)))
            targets.append(near[kept])
            weights.append(similarity[kept])
    if not sources:
        nobody = np.zeros(0, np.int64)
        return Links(nobody, nobody, np.zeros(0, np.float32))
    source, target = np.concatenate(sources), np.concatenate(targets).astype(np.int64)
    return _both_ways(source, target, np.concatenate(weights), count)


def _exact(embedding_NE: Embeddings, own: Ints, most: int) -> tuple[Ints, Any]:
    similarity = embedding_NE[own] @ embedding_NE.T
    similarity[np.arange(len(own)), own] = -2
    near = np.argpartition(similarity, -most, axis=1)[:, -most:]
    return near, np.take_along_axis(similarity, near, axis=1)


def _approximate(embedding_NE: Embeddings, most: int) -> Any:
    """Returns a function from faces to their neighbours by FAISS, or None without it."""
    try:
        import faiss
    except ImportError:
        log.warning(
            "%d faces: all pairs are compared; %s makes it fast",
            *(len(embedding_NE), install_command("faiss")),
        )
        return None
    lists = int(LISTS_PER_ROOT * np.sqrt(len(embedding_NE)))
    index: Any = faiss.index_factory(
        embedding_NE.shape[1], f"IVF{lists},Flat", faiss.METRIC_INNER_PRODUCT
    )
    index.cp.seed = 0
    drawn = np.random.default_rng(0).permutation(len(embedding_NE))[: 64 * lists]
    index.train(np.ascontiguousarray(embedding_NE[drawn]))
    index.add(np.ascontiguousarray(embedding_NE))
    index.nprobe = PROBED

    def propose(own: Ints) -> tuple[Ints, Any]:
        similarity, near = index.search(embedding_NE[own], most + 1)
        return near, similarity

    return propose


def _both_ways(source: Ints, target: Ints, weight: Any, count: int) -> Links:
    key = np.concatenate([source * count + target, target * count + source])
    key, first = np.unique(key, return_index=True)
    return Links(key // count, key % count, np.concatenate([weight, weight])[first])


def whisper(links: Links, count: int, seed: int) -> Ints:
    """Chinese whispers: (N,) a group of each face, named by the number of one of its faces."""
    rng = np.random.default_rng(seed)
    group = np.arange(count)
    starts = np.searchsorted(links.source, np.arange(count + 1))
    linked = np.flatnonzero(np.diff(starts))
    for _ in range(ROUNDS):
        changed = 0
        for part in np.array_split(rng.permutation(linked), PARTS):
            if len(part):
                best = _heaviest(links, starts, np.sort(part), group)
                changed += int((group[np.sort(part)] != best).sum())
                group[np.sort(part)] = best
        if not changed:
            break
    return group


def _heaviest(links: Links, starts: Ints, faces: Ints, group: Ints) -> Ints:
    """The group to which the links of each face weigh most; of equal ones the lowest."""
    lengths = starts[faces + 1] - starts[faces]
    offsets = np.repeat(starts[faces] - np.concatenate([[0], np.cumsum(lengths)[:-1]]), lengths)
    at = np.arange(lengths.sum()) + offsets
    owner = np.repeat(np.arange(len(faces)), lengths)
    named = group[links.target[at]]
    order = np.lexsort((named, owner))
    owner, named, weight = owner[order], named[order], links.weight[at][order]
    fresh = np.flatnonzero(np.diff(owner, prepend=-1) | np.diff(named, prepend=-1))
    total = np.add.reduceat(weight, fresh)
    owner, named = owner[fresh], named[fresh]
    order = np.lexsort((named, -total, owner))
    first = np.flatnonzero(np.diff(owner[order], prepend=-1))
    best: Ints = named[order][first]
    return best


def join(embedding_NE: Embeddings, group: Ints, threshold: float) -> Ints:
    """Joins groups whose pairs of faces reach the threshold on average.

    The mean similarity of all pairs of two groups is the product of their mean embeddings. A single
    face needs links to join, so that two faces are not joined by less than step 1 asks for.
    """
    while True:
        names, group = np.unique(group, return_inverse=True)
        sizes = np.bincount(group)
        several = np.flatnonzero(sizes > 1)
        if len(several) < 2:
            return group
        total_GE = np.zeros((len(names), embedding_NE.shape[1]), np.float32)
        np.add.at(total_GE, group, embedding_NE)
        mean_GE = (total_GE[several] / sizes[several][:, None]).astype(np.float32)
        near = _nearest_means(mean_GE, threshold)
        if not len(near):
            return group
        taken: set[int] = set()
        onto = np.arange(len(names))
        for a, b in near:  # the most similar first; each group joins once a round
            if a not in taken and b not in taken:
                taken |= {a, b}
                onto[several[a]] = several[b]
        group = onto[group]


def _nearest_means(mean_GE: Embeddings, threshold: float) -> list[tuple[int, int]]:
    """Pairs of a group and the most similar other one that reach the threshold, the best first."""
    rows = max(1, BLOCK // len(mean_GE))
    found = []
    for start in range(0, len(mean_GE), rows):
        own = np.arange(start, min(start + rows, len(mean_GE)))
        near, similarity = _exact(mean_GE, own, 1)
        for a, b, value in zip(own, near[:, 0], similarity[:, 0], strict=True):
            if value >= threshold:
                found.append((-float(value), int(a), int(b)))
    return [(a, b) for _, a, b in sorted(found)]


def ranked(group: Ints) -> Ints:
    """Numbers groups by their size, the largest first, and then by their first face."""
    _, first, group, sizes = np.unique(
        group, return_index=True, return_inverse=True, return_counts=True
    )
    order = np.lexsort((first, -sizes))
    number = np.empty(len(order), np.int64)
    number[order] = np.arange(len(order))
    return number[group]


def estimate_threshold(embedding_NE: Embeddings, *, seed: int = 0) -> float:
    """Estimates a threshold from the faces themselves, for photos without any calibration.

    Most pairs of a photo collection show two people. Their similarities are close to a normal
    distribution whose median and deviation are read from the lower half of all similarities, which
    pairs of one person hardly reach. Of few people, or of one alone, this gives too high a value,
    so it is bounded.
    """
    rng = np.random.default_rng(seed)
    drawn = rng.permutation(len(embedding_NE))[:ESTIMATED_FROM]
    some = embedding_NE[np.sort(drawn)]
    if len(some) < 2:
        return HIGHEST
    similarity = (some @ some.T)[np.triu_indices(len(some), 1)]
    low, middle = np.quantile(similarity, [0.1587, 0.5])
    return float(np.clip(middle + DEVIATIONS * (middle - low), LOWEST, HIGHEST))


def pairwise_f(group: Ints, label: Ints) -> tuple[float, float, float]:
    """Precision, recall and F of the pairs of faces that are in one group.

    Args:
        group: (N,) group of each face.
        label: (N,) person of each face.

    Example:
        >>> import numpy as np
        >>> pairwise_f(np.array([0, 0, 1]), np.array([0, 0, 0]))
        (1.0, 0.3333333333333333, 0.5)
    """
    both = _pairs(np.unique(np.stack([group, label]), axis=1, return_counts=True)[1])
    grouped, right = (_pairs(np.unique(side, return_counts=True)[1]) for side in (group, label))
    precision = both / grouped if grouped else 1.0
    recall = both / right if right else 1.0
    return precision, recall, _harmonic(precision, recall)


def b_cubed(group: Ints, label: Ints) -> tuple[float, float, float]:
    """B-cubed precision, recall and F (Bagga and Baldwin 1998): means over faces.

    A face's precision is the share of its group that shows its person, its recall the share of its
    person's faces that are in its group.

    Example:
        >>> import numpy as np
        >>> b_cubed(np.array([0, 0, 1]), np.array([0, 0, 0]))
        (1.0, 0.5555555555555555, 0.7142857142857143)
    """
    cells, counts = np.unique(np.stack([group, label]), axis=1, return_counts=True)
    sizes = dict(zip(*np.unique(group, return_counts=True), strict=True))
    people = dict(zip(*np.unique(label, return_counts=True), strict=True))
    total = len(group)
    precision = sum(n * n / sizes[g] for (g, _), n in zip(cells.T, counts, strict=True)) / total
    recall = sum(n * n / people[k] for (_, k), n in zip(cells.T, counts, strict=True)) / total
    return float(precision), float(recall), _harmonic(float(precision), float(recall))


def _pairs(counts: Ints) -> int:
    return int((counts.astype(np.int64) * (counts - 1) // 2).sum())


def _harmonic(a: float, b: float) -> float:
    return 2 * a * b / (a + b) if a + b else 0.0

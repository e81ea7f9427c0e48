"""Groups faces into people from their embeddings, without names.

1. each face is linked to its nearest neighbours, as far as they reach the threshold
2. Chinese whispers (Biemann 2006, ACL TextGraphs): each face starts as a group of its own and
   repeatedly takes the group to which the weight of its links is largest
3. groups whose mean embeddings reach the threshold as well are joined: a face has few links, so a
   person with many photos could otherwise fall into several groups

Up to `EXACT` faces, neighbours are found by comparing all pairs. More faces are divided into cells
by spherical k-means, and each face is compared with those of the cells nearest to it. This is an
inverted file. All faces that ask one cell are compared in one product, so it needs no library, and
the number of compared pairs grows linearly with the number of faces.

Shapes: N faces, E embedding, L links, G groups, K cells.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from persona.evaluation.metrics import Ints

Embeddings = npt.NDArray[np.float32]
Weights = npt.NDArray[np.float32]

SEED = 0
"""Seed of the draws, so that the same faces give the same groups."""
NEIGHBOURS = 24
"""Most links of a face."""
EXACT = 8_000
"""Largest number of faces whose neighbours are searched by comparing all pairs."""
BLOCK = 16_000_000
"""Similarities in memory at once: 64 MB."""
CELL, PROBED = 100, 24
"""Mean number of faces of a cell, and number of cells with which each face is compared."""
ONE_THREAD, COLUMNS = 1 << 18, 100
"""Largest number of multiplications that OpenBLAS does on one thread, and columns of a product."""
SAMPLE, ITERATIONS = 16, 4
"""Faces per cell from which its centre is found, and iterations of k-means."""
ROUNDS = 30
"""Most rounds of whispering. It usually ends after ten."""
PARTS = 16
"""Parts of a round. The faces of one part take their new groups at the same time."""
ESTIMATED_FROM = 4_000
"""Most faces from which a threshold is estimated."""
STRANGERS = 0.01
"""Mean number of strangers that a face would reach at an estimated threshold, if the similarities
of two people were distributed normally. Their real distribution has more of high ones."""
LOWEST, HIGHEST = 0.2, 0.5
"""Range of an estimated threshold."""


class Links(NamedTuple):
    """Links between faces. Every link is there in both directions, sorted by its first face."""

    source: Ints
    """(L,) number of a face."""
    target: Ints
    """(L,) number of the face it is linked to."""
    weight: Weights
    """(L,) cosine similarity."""


def group_faces(embedding_NE: Embeddings, threshold: float) -> Ints:
    """Groups faces into people.

    Args:
        embedding_NE: (N, E) float32 embeddings of unit length.
        threshold: lowest cosine similarity of two faces of one person.

    Returns:
        (N,) number of each face's group. The largest group is 0; of equally large ones the one with
        the first face comes first.

    Example:
        >>> import numpy as np
        >>> group_faces(np.eye(3, dtype=np.float32)[[0, 1, 1]], 0.5).tolist()
        [1, 0, 0]
    """
    return group_linked(embedding_NE, link(embedding_NE, threshold), threshold)


def group_linked(embedding_NE: Embeddings, links: Links, threshold: float) -> Ints:
    """Groups faces as `group_faces` does, by links that are known. Those below are left out."""
    if not len(embedding_NE):
        return np.zeros(0, np.int64)
    kept = links.weight >= threshold
    links = Links(links.source[kept], links.target[kept], links.weight[kept])
    groups = whisper(links, len(embedding_NE), SEED)
    return ranked(join(embedding_NE, groups, threshold))


def link(embedding_NE: Embeddings, threshold: float, most: int = NEIGHBOURS) -> Links:
    """Links each face to its `most` nearest neighbours that reach the threshold."""
    found = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))]
    held = 0
    for own, others in _compared(embedding_NE):
        similarity = _similarities(embedding_NE[own], embedding_NE[others])
        at = np.flatnonzero(similarity >= threshold)
        source, target = own[at // len(others)], others[at % len(others)]
        two = source != target
        found.append((source[two], target[two], similarity.ravel()[at][two]))
        held += int(two.sum())
        if held > BLOCK // 2:  # one person may have most of the faces
            found, held = [_nearest(found, most)], 0
    return _both_ways(*_nearest(found, most), len(embedding_NE))


def _compared(embedding_NE: Embeddings) -> Iterator[tuple[Ints, Ints]]:
    """Yields faces and those with which they are compared; each pair of faces at most once."""
    count = len(embedding_NE)
    if count <= EXACT:
        everybody = np.arange(count)
        for start in range(0, count, rows := max(1, BLOCK // max(1, count))):
            yield everybody[start : start + rows], everybody
        return
    cells = count // CELL
    near_NP = _nearest_cells(embedding_NE, _centres(embedding_NE, cells), min(PROBED, cells))
    members = _by_cell(near_NP[:, :1], cells)
    for asking, asked in zip(_by_cell(near_NP, cells), members, strict=True):
        for start in range(0, len(asking), rows := max(1, BLOCK // max(1, len(asked)))):
            yield asking[start : start + rows], asked


def _centres(embedding_NE: Embeddings, count: int) -> Embeddings:
    """Spherical k-means on a sample: (K, E) centres of unit length."""
    rng = np.random.default_rng(0)
    sample_SE = embedding_NE[np.sort(rng.permutation(len(embedding_NE))[: SAMPLE * count])]
    centre_KE = sample_SE[np.sort(rng.permutation(len(sample_SE))[:count])]
    for _ in range(ITERATIONS):
        cell, total = _sums(sample_SE, _nearest_cells(sample_SE, centre_KE, 1)[:, 0])
        centre_KE[cell] = total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-12)
    return centre_KE


def _nearest_cells(embedding_NE: Embeddings, centre_KE: Embeddings, most: int) -> Ints:
    """(N, P) the cells nearest to each face, the nearest first and the others in any order."""
    near_NP = np.empty((len(embedding_NE), most), np.int64)
    for start in range(0, len(embedding_NE), rows := max(1, BLOCK // len(centre_KE))):
        similarity = _similarities(embedding_NE[start : start + rows], centre_KE)
        first = similarity.argmax(axis=1)
        if most > 1:
            similarity[np.arange(len(first)), first] = 2
            near = np.argpartition(similarity, (-most, -1), axis=1)[:, : -most - 1 : -1]
            near_NP[start : start + rows] = near
        near_NP[start : start + rows, 0] = first
    return near_NP


def _by_cell(cell_NP: Ints, cells: int) -> list[Ints]:
    """The faces of each cell."""
    flat = cell_NP.ravel()
    faces = np.argsort(flat, kind="stable") // cell_NP.shape[1]
    return np.split(faces, np.cumsum(np.bincount(flat, minlength=cells))[:-1])


def _similarities(a_ME: Embeddings, b_NE: Embeddings) -> Embeddings:
    """(M, N) products of two sets of embeddings, computed on one thread.

    OpenBLAS puts larger products on all cores, and its threads spin while they wait for each other:
    beside another process that computes, this took 15 times as long.
    """
    similarity_MN = np.empty((len(a_ME), len(b_NE)), np.float32)
    width = a_ME.shape[1]
    rows = max(1, ONE_THREAD // (COLUMNS * width))
    tiles = len(a_ME) // rows
    whole = tiles * rows
    for start in range(0, len(b_NE), COLUMNS):
        right = np.ascontiguousarray(b_NE[start : start + COLUMNS].T)
        part = similarity_MN[:, start : start + COLUMNS]
        tiled = a_ME[:whole].reshape(tiles, rows, width) @ right
        part[:whole] = tiled.reshape(whole, right.shape[1])
        part[whole:] = a_ME[whole:] @ right
    return similarity_MN


def _sums(embedding_NE: Embeddings, group_N: Ints) -> tuple[Ints, Embeddings]:
    """The groups that have members, rising, and (G, E) the sum of the embeddings of each."""
    order = np.argsort(group_N, kind="stable")
    starts = np.flatnonzero(np.diff(group_N[order], prepend=-1))
    total_GE: Embeddings = np.add.reduceat(embedding_NE[order], starts, axis=0)
    return group_N[order][starts], total_GE


def _nearest(found: Sequence[tuple[Ints, Ints, Weights]], most: int) -> tuple[Ints, Ints, Weights]:
    """The `most` heaviest links of each source."""
    source, target, weight = (np.concatenate(column) for column in zip(*found, strict=True))
    order = np.lexsort((target, -weight, source))
    source = source[order]
    starts = np.flatnonzero(np.diff(source, prepend=-1))
    rank = np.arange(len(source)) - np.repeat(starts, np.diff(starts, append=len(source)))
    kept = order[rank < most]
    return source[rank < most], target[kept], weight[kept]


def _both_ways(source: Ints, target: Ints, weight: Weights, count: int) -> Links:
    key = np.concatenate([source * count + target, target * count + source])
    key, first = np.unique(key, return_index=True)
    return Links(key // count, key % count, np.concatenate([weight, weight])[first])


def whisper(links: Links, count: int, seed: int) -> Ints:
    """Chinese whispers: (N,) a group of each face, named by the number of one of its faces."""
    rng = np.random.default_rng(seed)
    group = np.arange(count)
    starts = np.searchsorted(links.source, np.arange(count + 1))
    stale = np.diff(starts) > 0
    for _ in range(ROUNDS):
        # Only faces with a neighbour that changed its group can change theirs.
        for part in np.array_split(rng.permutation(np.flatnonzero(stale)), PARTS):
            faces = np.sort(part)
            stale[faces] = False
            if len(faces):
                best = _heaviest(links, starts, faces, group)
                changed = faces[group[faces] != best]
                group[faces] = best
                stale[links.target[_links_of(starts, changed)]] = True
        if not stale.any():
            break
    return group


def _links_of(starts: Ints, faces: Ints) -> Ints:
    """The places of all links of some faces, face by face."""
    lengths = starts[faces + 1] - starts[faces]
    ends = np.cumsum(lengths)
    places: Ints = np.arange(lengths.sum()) + np.repeat(starts[faces] - (ends - lengths), lengths)
    return places


def _heaviest(links: Links, starts: Ints, faces: Ints, group: Ints) -> Ints:
    """The group to which the links of each face weigh most; of equal ones the lowest."""
    at = _links_of(starts, faces)
    owner = np.repeat(np.arange(len(faces)), starts[faces + 1] - starts[faces])
    key = owner * len(group) + group[links.target[at]]
    order = np.argsort(key, kind="stable")
    key = key[order]
    fresh = np.flatnonzero(np.diff(key, prepend=-1))
    total = np.add.reduceat(links.weight[at][order], fresh)
    owner, named = key[fresh] // len(group), key[fresh] % len(group)
    first = np.flatnonzero(np.diff(owner, prepend=-1))
    heaviest = np.flatnonzero(total == np.maximum.reduceat(total, first)[owner])
    best: Ints = named[heaviest[np.unique(owner[heaviest], return_index=True)[1]]]
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
        _, total_GE = _sums(embedding_NE, group)
        mean_GE = total_GE[several] / sizes[several, None]
        near = link(mean_GE.astype(np.float32), threshold, most=1)
        if not len(near.source):
            return group
        taken = np.zeros(len(several), bool)
        onto = np.arange(len(names))
        # The most similar first; each group joins once a round.
        for place in np.lexsort((near.target, near.source, -near.weight)).tolist():
            a, b = near.source[place], near.target[place]
            if not taken[a] and not taken[b]:
                taken[[a, b]] = True
                onto[several[a]] = several[b]
        group = onto[group]


def ranked(group: Ints) -> Ints:
    """Numbers groups by their size, the largest first, and then by their first face."""
    _, first, group, sizes = np.unique(
        group, return_index=True, return_inverse=True, return_counts=True
    )
    order = np.lexsort((first, -sizes))
    number = np.empty(len(order), np.int64)
    number[order] = np.arange(len(order))
    return number[group]


def estimate_threshold(embedding_NE: Embeddings) -> float:
    """Estimates a threshold from the faces themselves, for photos without any calibration.

    Most pairs of a photo collection show two people. Their similarities are close to a normal
    distribution whose median and deviation are read from the lower half of all similarities, which
    pairs of one person hardly reach. The more faces there are, the more strangers each is compared
    with, and the higher is the threshold. Of few people, or of one alone, this gives too high a
    value, so it is bounded.
    """
    rng = np.random.default_rng(SEED)
    drawn = rng.permutation(len(embedding_NE))[:ESTIMATED_FROM]
    some = embedding_NE[np.sort(drawn)]
    if len(some) < 2:
        return HIGHEST
    similarity = (some @ some.T)[np.triu_indices(len(some), 1)]
    low, middle = np.quantile(similarity, [0.1587, 0.5])
    deviations = NormalDist().inv_cdf(1 - STRANGERS / len(embedding_NE))
    return float(np.clip(middle + deviations * (middle - low), LOWEST, HIGHEST))

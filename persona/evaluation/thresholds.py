"""Thresholds for a false accept rate (FAR), chosen on the pairs of one or several sets.

A threshold is the lowest cosine similarity at which at most the share `far` of the impostor pairs
is accepted.

Shapes: N samples, E embedding, P pairs, K identities.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

import numpy as np

from persona.errors import PersonaError
from persona.evaluation.metrics import Ints, resolves
from persona.evaluation.search import Embeddings, rows_of_each
from persona.evaluation.spread import has_collapsed, spread, tell_collapse
from persona.evaluation.statistics import RESAMPLES, SEED, Interval, interval_of

if TYPE_CHECKING:
    from persona.data.sets import FaceSet
    from persona.evaluation.processes import Processes
    from persona.models.sources import Named

log = logging.getLogger(__name__)

SAME = 1 - 1e-5
"""Cosine similarity from which two embeddings count as those of one photo."""
MAX_SAMPLES = 20_000
"""Largest number of samples, which gives 200 million pairs. See `thin_out` for a larger set."""
BLOCK = 512
TAIL = 20
"""Number of the highest impostor pairs that an interval rests on, as a multiple of those that the
threshold accepts."""


def faces_of(named: Named, faces: FaceSet, processes: Processes) -> tuple[Embeddings, Ints]:
    """Embeds the faces of a set, and returns at most `MAX_SAMPLES`. A note says if there are more.

    Returns:
        (N, E) float32 embeddings of unit length, and the (N,) label of each.

    Raises:
        PersonaError: the set holds triplets, names nobody or has crops of another kind than the
            network's, or the network has collapsed.
    """
    from persona.evaluation.embed import embed_set
    from persona.evaluation.protocols.base import note_other_crops

    manifest = faces.manifest
    if manifest.kind != "photos":
        raise PersonaError(f"set {manifest.name} holds triplets: choose a set of photos")
    faces.check_people("a threshold")
    manifest.check_crops(named.name, named.image_size, named.network.uses_landmarks)
    if processes.is_main_process:
        note_other_crops(named, manifest)
    embedded = embed_set(named.network, faces, processes)
    # The set has centre crops of photos without a face, but a gallery refuses such photos.
    no_face = [key for shard in manifest.shards for key in shard.no_face]
    rows = np.flatnonzero(~np.isin(embedded.keys, no_face))
    rows = rows[thin_out(embedded.labels[rows, 0])]
    embedding_NE, label_N = embedded.embeddings[rows, 0], embedded.labels[rows, 0]
    if processes.is_main_process and (told := compared(faces, label_N)):
        log.info("%s are compared, of %s people", told, f"{len(np.unique(label_N)):,}")
    found = spread(embedding_NE, label_N)
    if has_collapsed(found):
        raise PersonaError(tell_collapse(named.name, found, f"set {manifest.name}"))
    return embedding_NE, label_N


def compared(faces: FaceSet, labels_N: Ints) -> str:
    """How many faces of a set were compared, as text. It is empty if all were.

    `labels_N` are those that `faces_of` returned.
    """
    manifest = faces.manifest
    count = manifest.samples - len(manifest.no_face)
    if count <= len(labels_N):
        return ""
    return f"{len(labels_N):,} of the {count:,} faces of {manifest.name}"


def thin_out(labels_N: Ints) -> Ints:
    """Chooses at most `MAX_SAMPLES` samples, so that people keep two photos and make genuine pairs.

    All people stay if two photos of each are few enough; then each has at most as many photos as
    fit. Of more people, some are taken at even distances, with two photos each. Photos of a person
    are taken at even distances, too.

    Args:
        labels_N: (N,) label of each sample.

    Returns:
        The places of the chosen samples, rising.
    """
    if len(labels_N) <= MAX_SAMPLES:
        return np.arange(len(labels_N))
    rows_K = list(rows_of_each(labels_N).values())
    counts_K, photos = np.array([len(rows) for rows in rows_K]), 2
    if np.minimum(counts_K, photos).sum() > MAX_SAMPLES:
        rows_K = [rows_K[place] for place in evenly(len(rows_K), MAX_SAMPLES // photos)]
    else:
        while np.minimum(counts_K, photos + 1).sum() <= MAX_SAMPLES:
            photos += 1
    return np.sort(np.concatenate([rows[evenly(len(rows), photos)] for rows in rows_K]))


def evenly(count: int, most: int) -> Ints:
    """At most `most` places below `count`, at even distances."""
    return np.linspace(0, count - 1, min(count, most)).round().astype(np.int64)


def threshold_at(
    embeddings_NE: Embeddings,
    labels_N: Ints,
    far: float,
    where: str,
    *,
    probes_NE: Embeddings | None = None,
) -> tuple[float, float, int]:
    """Chooses the threshold on embeddings.

    Args:
        embeddings_NE: (N, E) embeddings of unit length.
        labels_N: (N,) labels of the identities.
        far: the false accept rate.
        where: name of the set in errors.
        probes_NE: (N, E) embeddings of the same photos by another network, for the later photo of
            each pair. None takes the same embeddings for both.

    Returns:
        The threshold, the TAR at it, and the number of impostor pairs.

    Raises:
        PersonaError: there are too few impostor pairs to resolve `far`, or no genuine pair.
    """
    counts = np.unique(labels_N, return_counts=True)[1]
    genuine = int((counts * (counts - 1) // 2).sum())
    impostors = len(labels_N) * (len(labels_N) - 1) // 2 - genuine
    if not genuine:
        raise PersonaError(f"{where} has no two photos of one person: choose another set")
    if not resolves(far, impostors):
        least = f"--far {_least(impostors)} or more" if impostors else "a set of several people"
        # A set of more faces is thinned out, to half as many if each person has one.
        larger = ", or a larger set" if len(labels_N) < MAX_SAMPLES // 2 else ""
        raise PersonaError(
            f"the {impostors:,} pairs of two people in {where} cannot resolve a FAR of {far:g}: "
            f"choose {least}{larger}"
        )
    allowed = int(far * impostors + 1e-9)
    highest_P = np.zeros(0, np.float32)
    same_P = []
    later_NE = embeddings_NE if probes_NE is None else probes_NE
    for start in range(0, len(labels_N), BLOCK):
        rows = np.arange(start, min(start + BLOCK, len(labels_N)))
        scores = embeddings_NE[rows] @ later_NE.T
        later = np.arange(len(labels_N)) > rows[:, None]
        same = labels_N[rows, None] == labels_N
        same_P.append(scores[later & same])
        highest_P = np.concatenate([highest_P, scores[later & ~same]])
        # Only the highest scores can still become the threshold.
        if len(highest_P) > allowed + 1:
            highest_P = np.partition(highest_P, -allowed - 1)[-allowed - 1 :]
    # The threshold lies just above the highest impostor score that may not be accepted.
    first = highest_P.min() if len(highest_P) > allowed else np.float32(-1)
    threshold = float(np.nextafter(first, np.float32(2)))
    if threshold >= SAME:
        raise PersonaError(
            f"{where} has the same photo under several people's names, so that no similarity is "
            f"enough for a FAR of {far:g}: mend the set, or choose a larger --far"
        )
    tar = float(np.mean(np.concatenate(same_P) >= np.float32(threshold)))
    return threshold, tar, impostors


def _least(impostors: int) -> str:
    """Returns the lowest FAR, in two digits, that this number of impostor pairs can resolve."""
    digits = 1 - math.floor(math.log10(1 / impostors))
    return f"{math.ceil(10**digits / impostors) / 10**digits:.2g}"


def threshold_interval(
    embeddings_NE: Embeddings, labels_N: Ints, far: float, resamples: int = RESAMPLES
) -> Interval | None:
    """95 % interval of the threshold of `threshold_at`. Identities are resampled.

    Each resample weights a pair by the product of how often its two identities were drawn. It is
    computed on the highest impostor pairs alone, `TAIL` times as many as the threshold accepts.
    None means that the interval cannot be told, for example because one pair decides it.

    Args:
        embeddings_NE: (N, E) embeddings of unit length.
        labels_N: (N,) labels of the identities.
        far: the false accept rate.
        resamples: number of resamples.
    """
    _, label_N, counts_K = np.unique(labels_N, return_inverse=True, return_counts=True)
    total = (int(counts_K.sum()) ** 2 - int((counts_K**2).sum())) // 2
    wanted = TAIL * (int(far * total + 1e-9) + 1)
    scores_P = np.zeros(0, np.float32)
    pairs_P2 = np.zeros((0, 2), np.int64)
    for start in range(0, len(label_N), BLOCK):
        rows = np.arange(start, min(start + BLOCK, len(label_N)))
        scores = embeddings_NE[rows] @ embeddings_NE.T
        others = label_N[rows, None] != label_N
        a, b = np.nonzero(others & (np.arange(len(label_N)) > rows[:, None]))
        scores_P = np.concatenate([scores_P, scores[a, b]])
        pairs_P2 = np.concatenate([pairs_P2, np.stack([label_N[rows[a]], label_N[b]], axis=1)])
        highest = np.argsort(-scores_P, kind="stable")[:wanted]
        scores_P, pairs_P2 = scores_P[highest], pairs_P2[highest]
    rng = np.random.default_rng(SEED)
    found_R = np.full(resamples, np.nan)
    for place in range(resamples):
        drawn_K = np.bincount(
            rng.integers(0, len(counts_K), len(counts_K)), minlength=len(counts_K)
        )
        faces_K = drawn_K * counts_K
        impostors = (int(faces_K.sum()) ** 2 - int((faces_K**2).sum())) / 2
        accepted_P = np.cumsum(drawn_K[pairs_P2[:, 0]] * drawn_K[pairs_P2[:, 1]])
        first = int(np.searchsorted(accepted_P, far * impostors, side="right"))
        if first < len(scores_P):
            found_R[place] = scores_P[first]
    return interval_of(found_R)

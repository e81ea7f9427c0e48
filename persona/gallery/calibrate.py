"""Choosing a gallery's threshold on all pairs of a packed set.

The threshold is the lowest at which at most the share `far` of the impostor pairs is accepted. This
false accept rate holds for one comparison. Against a gallery of N people it is up to N times as
high.

Shapes: N samples, E embedding, P pairs.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from persona.data.sets import FaceSet
from persona.errors import PersonaError
from persona.evaluation.metrics import resolves
from persona.evaluation.processes import Processes
from persona.evaluation.spread import has_collapsed, spread, tell_collapse
from persona.gallery.store import SAME, Templates, Threshold
from persona.models.sources import Named

MAX_SAMPLES = 20_000
"""Largest number of samples, which gives 200 million pairs. From a larger set, as many samples are
taken at even distances."""
BLOCK = 512


def calibrate(named: Named, faces: FaceSet, processes: Processes, far: float) -> Threshold:
    """Chooses the threshold for a false accept rate; its source names the set and the TAR.

    Raises:
        PersonaError: the set has too few pairs, or crops of another kind than the network's, or the
            network has collapsed.
    """
    from persona.evaluation.embed import embed_set

    manifest = faces.manifest
    if manifest.kind != "photos":
        raise PersonaError(f"set {manifest.name} holds triplets: choose a set of photos")
    manifest.check_crops(named.name, named.image_size, named.network.uses_landmarks)
    embedded = embed_set(named.network, faces, processes)
    # The set has centre crops of photos without a face, but a gallery refuses such photos.
    no_face = [key for shard in manifest.shards for key in shard.no_face]
    rows = np.flatnonzero(~np.isin(embedded.keys, no_face))
    rows = rows[np.linspace(0, len(rows) - 1, min(len(rows), MAX_SAMPLES)).round().astype(int)]
    embedding_NE, label_N = embedded.embeddings[rows, 0], embedded.labels[rows, 0]
    found = spread(embedding_NE, label_N)
    if has_collapsed(found):
        raise PersonaError(tell_collapse(named.name, found, f"set {manifest.name}"))
    value, tar, impostors = threshold_at(embedding_NE, label_N, far, manifest.name)
    source = f"FAR {far:g} on {manifest.name} ({impostors:,} pairs of two people), TAR {tar:.4f}"
    return Threshold(value, source, far)


def threshold_at(
    embeddings_NE: Templates, labels_N: npt.NDArray[np.int64], far: float, where: str
) -> tuple[float, float, int]:
    """Chooses the threshold on embeddings.

    Args:
        embeddings_NE: (N, E) embeddings of unit length.
        labels_N: (N,) labels of the identities.
        far: the false accept rate.
        where: name of the set in errors.

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
        raise PersonaError(
            f"the {impostors:,} pairs of two people in {where} cannot resolve a FAR of {far:g}: "
            f"choose {least}, or a larger set"
        )
    allowed = int(far * impostors + 1e-9)
    highest_P = np.zeros(0, np.float32)
    same_P = []
    for start in range(0, len(labels_N), BLOCK):
        rows = np.arange(start, min(start + BLOCK, len(labels_N)))
        scores = embeddings_NE[rows] @ embeddings_NE.T
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

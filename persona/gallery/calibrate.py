"""Choosing a gallery's threshold on the pairs of a packed set.

The false accept rate holds for one comparison. Against a gallery of N people it is up to N times as
high.
"""

from __future__ import annotations

from persona.data.sets import FaceSet
from persona.evaluation.processes import Processes, join_processes
from persona.evaluation.thresholds import compared, faces_of, threshold_at
from persona.figure_names import power
from persona.gallery.people import card_threshold_at, open_eyes
from persona.gallery.store import Store, Threshold
from persona.models.sources import Named
from persona.workspace import Workspace


def calibrate(named: Named, faces: FaceSet, processes: Processes, far: float) -> Threshold:
    """Chooses the threshold for a false accept rate; its source names the set and the TAR.

    Raises:
        PersonaError: the set has too few pairs, or crops of another kind than the network's, or the
            network has collapsed.
    """
    embeddings, labels = faces_of(named, faces, processes)
    value, tar, impostors = threshold_at(embeddings, labels, far, faces.name)
    told = compared(faces, labels)
    pairs = f"{impostors:,} pairs of two people" + (f" among {told}" if told else "")
    source = f"FAR {power(far)} on {faces.name} ({pairs}), TAR {tar:.4f}"
    return Threshold(value, source, far)


def calibrate_gallery(
    store: Store,
    model: str | None,
    place: Workspace,
    *,
    faces: FaceSet | None = None,
    far: float = 1e-3,
    threshold: float | None = None,
) -> Threshold:
    """Chooses the threshold of a gallery and stores it there.

    Args:
        store: the open gallery.
        model: the network. None means the gallery's own.
        place: the folders of sets and models.
        faces: a packed set of people. None takes the threshold on the network's card.
        far: false accept rate of one comparison on that set, or by the card.
        threshold: the cosine similarity to store instead, as it is.

    Raises:
        PersonaError: the gallery cannot be written or belongs to another network, perhaps since it
            was calibrated; or the set does not resolve the rate, or the card has no threshold for
            it.
    """
    store.check_writable()
    eyes = open_eyes(store, model, place)
    if threshold is not None:
        chosen = Threshold(threshold, "set by hand")
    elif faces is None:
        chosen = card_threshold_at(eyes.named, place, far)
    else:
        chosen = calibrate(eyes.named, faces, join_processes(eyes.named.network), far)
    store.set_threshold(chosen, eyes.named.digest)
    return chosen

"""Which figures a set can give: verification of pairs, match of triplets, class of photos.

Shapes: N samples, R roles, E embedding, P pairs.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator

from persona.data.shards import KeyPair, Manifest, read_pairs
from persona.data.storage import SetFolder
from persona.errors import PersonaError, unknown
from persona.evaluation.embed import Embedded, embed_set
from persona.evaluation.metrics import cosine_scores, match_accuracy, verification
from persona.files import write_atomically
from persona.models.store import NamedNetwork

MEASURES = ("verification", "match", "class")


@dataclass(frozen=True)
class Evaluation:
    """The figures of one network on one set; what does not apply is None."""

    model: str
    set: str
    measure: str
    accuracy: float
    accuracy_std: float | None = None
    auc: float | None = None
    eer: float | None = None
    tar_at_far: dict[str, float] | None = None
    pairs: int | None = None
    """Pairs measured."""
    impostors: int | None = None
    """Of them impostor pairs: a FAR below 1 / impostors cannot be resolved."""
    triplets: int | None = None
    photos: int | None = None
    no_face: int | None = None
    """Pairs or triplets left out because a face of theirs was not found."""

    def to_json(self) -> dict[str, Any]:
        """The figures that apply."""
        return {name: value for name, value in vars(self).items() if value is not None}


def default_measure(manifest: Manifest) -> str:
    """Match for triplets, verification where there are pairs, else class."""
    if manifest.kind == "triplets":
        return "match"
    return "verification" if manifest.pairs else "class"


def evaluate(
    named: NamedNetwork,
    folder: SetFolder,
    manifest: Manifest,
    accelerator: Accelerator,
    *,
    measure: str | None = None,
    scores: Path | None = None,
    batch_size: int = 128,
    workers: int = 0,
    quiet: bool = False,
) -> Evaluation:
    """Embeds a set on all processes and measures it.

    Args:
        named: the network, on the accelerator's device.
        folder: where the packed set lies.
        manifest: its manifest.
        accelerator: device and processes.
        measure: one of MEASURES; None: the set's own.
        scores: where to write one row a pair (`fold,same,score`), by the main process.
        batch_size: samples a forward on each process.
        workers: loader processes of each process.
        quiet: no progress bar.

    Raises:
        PersonaError: the set cannot give the measure, or its crops are not of the network's kind.
    """
    measure = measure or default_measure(manifest)
    check_measure(measure, named, manifest)
    if scores is not None and measure != "verification":
        raise PersonaError(f"scores are of pairs: --scores goes with verification, not {measure}")
    embedded = embed_set(
        named.network,
        folder,
        manifest,
        accelerator,
        batch_size=batch_size,
        workers=workers,
        classify=measure == "class",
        quiet=quiet,
    )
    if measure == "verification":
        path = scores if accelerator.is_main_process else None
        return _verification(named.name, folder, manifest, embedded, path)
    return _MEASURE[measure](named.name, manifest, embedded)


def check_measure(measure: str, named: NamedNetwork, manifest: Manifest) -> None:
    """Raises PersonaError if this set cannot give this measure for this network."""
    if measure not in MEASURES:
        raise unknown("measure", measure, MEASURES)
    if measure == "verification" and not manifest.pairs:
        raise PersonaError(
            f"set {manifest.name} has no verification pairs: choose --measure "
            f"{default_measure(manifest)}, or a set like lfw"
        )
    if measure == "match" and manifest.kind != "triplets":
        raise PersonaError(f"set {manifest.name} holds photos, no triplets: match needs triplets")
    if measure == "class" and not same_classes(named, manifest):
        raise PersonaError(
            f"the identities of set {manifest.name} are not those that {named.name} was trained "
            f"on ({named.trained_on}): class accuracy means nothing there; choose another --measure"
        )
    manifest.check_crops(named.name, named.image_size, named.network.uses_landmarks)


def same_classes(named: NamedNetwork, manifest: Manifest) -> bool:
    """Whether a network's logits stand for the set's identities, in the same order."""
    count = named.network.num_classes
    return count > 0 and manifest.knows(named.trained_on, count, named.classes)


def _verification(
    model: str, folder: SetFolder, manifest: Manifest, embedded: Embedded, scores_path: Path | None
) -> Evaluation:
    row_of = {int(key): row for row, key in enumerate(embedded.keys)}
    listed = read_pairs(folder, manifest)
    found: list[tuple[KeyPair, int, int]] = []
    for pair in listed:
        a, b = (None if key is None else row_of.get(key) for key in (pair.a, pair.b))
        if a is not None and b is not None:
            found.append((pair, a, b))
    if not found:
        raise PersonaError(f"set {manifest.name}: no pair has both faces; see its manifest's skips")
    embeddings_NE = embedded.embeddings[:, 0]
    scores_P = cosine_scores(
        embeddings_NE[[a for _, a, _ in found]], embeddings_NE[[b for _, _, b in found]]
    )
    same_P = np.array([pair.same for pair, _, _ in found])
    folds_P = np.array([pair.fold for pair, _, _ in found])
    figures = verification(scores_P, same_P, folds_P)
    if scores_path is not None:
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(["fold", "same", "score"])
        for (pair, _, _), score in zip(found, scores_P.tolist(), strict=True):
            writer.writerow([pair.fold, int(pair.same), repr(score)])
        write_atomically(scores_path, buffer.getvalue().encode())
    return Evaluation(
        model=model,
        set=manifest.name,
        measure="verification",
        no_face=len(listed) - len(found),
        **vars(figures),
    )


def _match(model: str, manifest: Manifest, embedded: Embedded) -> Evaluation:
    anchor, positive, negative = np.moveaxis(embedded.embeddings, 1, 0)
    return Evaluation(
        model=model,
        set=manifest.name,
        measure="match",
        accuracy=match_accuracy(anchor, positive, negative),
        triplets=len(embedded.keys),
        no_face=len(manifest.skipped),
    )


def _class(model: str, manifest: Manifest, embedded: Embedded) -> Evaluation:
    return Evaluation(
        model=model,
        set=manifest.name,
        measure="class",
        accuracy=float(np.mean(embedded.predicted == embedded.labels)),
        photos=embedded.labels.size,
        no_face=len(manifest.skipped),
    )


_MEASURE: dict[str, Callable[[str, Manifest, Embedded], Evaluation]] = {
    "match": _match,
    "class": _class,
}

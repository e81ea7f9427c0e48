"""Class accuracy: the share of photos whose identity is among the network's highest logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from persona.data.shards import Manifest
from persona.errors import PersonaError
from persona.evaluation.protocols.base import (
    Evaluation,
    Options,
    Protocol,
    Subject,
    logit_places,
)
from persona.evaluation.sentences import Sentence
from persona.evaluation.statistics import Interval, bootstrap_interval
from persona.models.sources import Named

TOP = 5
OTHER = "choose a set with pairs such as lfw, or in `persona evaluate` another --measure"


@dataclass(frozen=True)
class ClassFigures(Evaluation):
    """Share of photos whose identity has the highest logit, or one of the five highest."""

    model: str
    set: str
    measure: str
    accuracy: float | None = None
    photos: int | None = None
    no_face: int | None = None
    absent: int | None = None
    top_5: float | None = None
    intervals: dict[str, Interval | None] | None = None
    resampled: str | None = None
    flip: bool | None = None
    no_face_policy: str | None = None
    spread: float | None = None

    shown = (("accuracy", "accuracy"), ("top-5", "top_5"), ("spread", "spread"))
    counted = ("photos", "no_face", "absent")

    def in_words(self) -> Sentence:
        """How many photos are named rightly, at once and among five names."""
        return Sentence(
            self.told("accuracy"),
            f" of {self.set}'s {self.photos:,} photos are named rightly"
            f"{self.spread_of('accuracy')}; for {self.told('top_5')} of them, the right name is "
            f"among the first {TOP}.",
        )


class Classes(Protocol):
    """Class accuracy on a set whose identities are all among those the network was trained on."""

    name = "class"
    result = ClassFigures

    def check(self, named: Named, manifest: Manifest, options: Options) -> None:
        """Raises PersonaError if an identity of the set has no logit."""
        if not named.network.num_classes:
            raise PersonaError(
                f"{named.name} gives embeddings alone, no classes: class accuracy is not for it; "
                f"{OTHER}"
            )
        if logit_places(named, manifest) is None:
            raise _unknown(named, manifest)

    def figures(self, subject: Subject) -> dict[str, Any]:
        """Top-1 and top-5 accuracy. Intervals resample identities."""
        embedded = subject.embed(subject.faces, top=TOP)
        places_K = logit_places(subject.named, subject.manifest)
        assert places_K is not None
        place_NR = places_K[embedded.labels]
        if (place_NR < 0).any():
            raise _unknown(subject.named, subject.manifest)
        hit_NRT = embedded.predicted == place_NR[..., None]
        first, among = hit_NRT[..., 0].ravel(), hit_NRT.any(axis=2).ravel()
        figures: dict[str, Any] = {
            "accuracy": float(first.mean()),
            "photos": embedded.labels.size,
            "no_face": subject.manifest.left_out[0],
            "absent": subject.manifest.left_out[1],
            "top_5": float(among.mean()),
        }
        resamples, labels = subject.options.resamples, embedded.labels.ravel()
        if resamples:
            figures["intervals"] = {
                "accuracy": bootstrap_interval(first, labels, resamples=resamples),
                "top_5": bootstrap_interval(among, labels, resamples=resamples),
            }
            figures["resampled"] = "identities"
        return figures


def _unknown(named: Named, manifest: Manifest) -> PersonaError:
    return PersonaError(
        f"the identities of set {manifest.name} are not, or not all, among those that {named.name} "
        f"was trained on ({named.trained_on}): class accuracy means nothing there; {OTHER}"
    )

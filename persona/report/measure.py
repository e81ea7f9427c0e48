"""Measures what the report page shows of one network on one set.

Shapes: N samples, P pairs, E embedding.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from persona.data.sets import FaceSet
from persona.data.stream import build_loader
from persona.data.transforms import normalise
from persona.evaluation.embed import Embedded
from persona.evaluation.groups import as_number, group_figures, groups_of
from persona.evaluation.metrics import FARS, Floats, Folds, PairFigures
from persona.evaluation.pairs import PairScores
from persona.evaluation.protocols import Subject, check_measure
from persona.evaluation.protocols.verification import VerificationOptions, pair_scores
from persona.evaluation.spread import has_collapsed, tell_collapse
from persona.evaluation.statistics import Interval, verification_intervals
from persona.extras import missing
from persona.models.output import FaceNetwork, for_inference
from persona.models.sources import NamedNetwork
from persona.report.looks import ModelLook

WORST = 24
"""Most pairs shown of each kind of mistake."""
TIMED_FACES = 16
"""Faces in the batch that is timed."""
TIMED_TURNS = 8
"""Times that each network is timed."""
MAX_GROUPS = 12
"""Most groups that an annotation may make to be shown."""
MAP_PEOPLE, MAP_PHOTOS = 20, 30
"""Most people, and most photos of each, in a map of embeddings."""


@dataclass(frozen=True)
class Group:
    """The accuracy on one group of pairs."""

    by: str
    """Annotation that makes the groups, with `-gap` for the difference of a number."""
    name: str
    pairs: int
    accuracy: float
    interval: Interval | None


@dataclass(frozen=True)
class Measured:
    """All that was measured of one network on one set."""

    look: ModelLook
    """Its short name and how it is drawn."""
    teacher: bool
    figures: PairFigures
    intervals: dict[str, Interval | None]
    resampled: str
    scores: PairScores
    decided: Folds
    groups: list[Group]
    embedded: Embedded
    parameters: int | None
    """Number of parameters. None if the file does not tell, or only with the package `onnx`."""
    bytes: int
    """Size of the network's file in bytes."""
    cpu_ms: float
    """Time per face on this machine's CPU in batches of TIMED_FACES, in ms."""
    collapse: str | None = None
    """Message that the network has collapsed. None if it has not."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Counts about the pairs, see `pair_scores`."""

    @property
    def name(self) -> str:
        """Short name."""
        return self.look.name

    @property
    def threshold(self) -> float:
        """Median of the folds' cosine thresholds."""
        return float(np.median(self.decided.thresholds))

    @cached_property
    def margins(self) -> Floats:
        """(P,) score of each pair minus the threshold of its fold."""
        fold = np.searchsorted(self.decided.numbers, self.scores.fold)
        margin: Floats = self.scores.score - self.decided.thresholds[fold]
        return margin

    def worst(self, *, genuine: bool) -> list[int]:
        """Places of the `WORST` wrongly decided pairs, the furthest from their threshold first.

        With `genuine` they are false rejects, otherwise false accepts.
        """
        beyond = -self.margins if genuine else self.margins
        wrong = ~self.decided.right & ~self.scores.failed & (self.scores.same == genuine)
        places = np.flatnonzero(wrong)
        order = np.argsort(-beyond[places], kind="stable")[:WORST]
        return [int(place) for place in places[order]]


def measure(
    named: NamedNetwork,
    faces: FaceSet,
    accelerator: Accelerator,
    *,
    look: ModelLook,
    teacher: bool,
    size: int,
    cpu_ms: float,
    batch_size: int = 128,
    workers: int | None = None,
    resamples: int = 1000,
) -> Measured:
    """Embeds a set once and computes all that the page shows.

    Args:
        named: the network, on the accelerator's device.
        faces: the packed set.
        accelerator: device and processes.
        look: short name of the network and how it is drawn.
        teacher: whether the network is shown as the teacher.
        size: size of the network's file in bytes.
        cpu_ms: time per face from `time_on_cpu`, in ms.
        batch_size: samples in one forward pass.
        workers: loader processes. None chooses the number by the device.
        resamples: bootstrap resamples for the intervals.

    Raises:
        PersonaError: the set has no pairs, or its crops do not fit the network.
    """
    check_measure("verification", named, faces.manifest)
    subject = Subject(named, faces, accelerator, VerificationOptions(), batch_size, workers)
    embedded = subject.embed(faces)
    scores, facts = pair_scores(subject, embedded)
    decided = scores.decide()
    units = scores.units()
    return Measured(
        look=look,
        teacher=teacher,
        figures=scores.figures(FARS, decided),
        intervals=verification_intervals(scores.curve(decided), units, resamples=resamples),
        resampled=units.kind,
        scores=scores,
        decided=decided,
        groups=measure_groups(scores, decided, faces.metas(), resamples),
        embedded=embedded,
        parameters=named.network.count_parameters(),
        bytes=size,
        cpu_ms=cpu_ms,
        collapse=tell_collapse(look.name, subject.spread, f"set {faces.name}")
        if has_collapsed(subject.spread)
        else None,
        facts=facts,
    )


def measure_groups(
    scores: PairScores, decided: Folds, metas: dict[int, dict[str, Any]], resamples: int
) -> list[Group]:
    """Accuracy of each group, for every annotation of the set that makes 2 to 12 groups.

    Annotations that are numbers are grouped by the difference of the two photos' numbers.
    """
    values: dict[str, set[str]] = {}
    for meta in metas.values():
        for name, value in (meta.get("attributes") or {}).items():
            values.setdefault(name, set()).add(str(value))
    groups = []
    for column, found in sorted(values.items()):
        numbers = all(as_number(value) is not None for value in found)
        by = f"{column}-gap" if numbers else column
        group_P = groups_of(scores, metas, by)
        if not 2 <= len(set(group_P.tolist()) - {""}) <= MAX_GROUPS:
            continue
        for name, figures in group_figures(scores, decided, group_P, (), resamples).items():
            interval = figures["intervals"]["accuracy"]
            groups.append(Group(by, name, figures["pairs"], figures["accuracy"], interval))
    return groups


@torch.inference_mode()
def time_on_cpu(networks: Sequence[FaceNetwork], faces: FaceSet) -> list[float]:
    """Time per face of each network's forward pass on real crops of a set, in ms.

    It is the minimum over all turns, since other work of the machine only adds time. Each turn runs
    two passes and times the second one: during the first, threads of the runtime before may still
    be awake. Afterwards the networks are in eval mode on the CPU.
    """
    batch = next(iter(build_loader(faces, batch_size=TIMED_FACES, training=False)))
    images = normalise(batch.images).contiguous(memory_format=torch.channels_last)
    folded = [for_inference(network.to("cpu")) for network in networks]
    least_s = [math.inf] * len(folded)
    for _ in range(TIMED_TURNS):
        for place, network in enumerate(folded):
            network.features(images, batch.landmarks)
            before_s = time.perf_counter()
            network.features(images, batch.landmarks)
            least_s[place] = min(least_s[place], time.perf_counter() - before_s)
    return [time_s * 1000 / len(images) for time_s in least_s]


def embedding_map(embedded: Embedded) -> dict[str, Any]:
    """Map of embeddings in two dimensions by t-SNE with cosine distance and a fixed seed.

    It shows the MAP_PEOPLE people with the most photos, and at most MAP_PHOTOS of each.

    Returns:
        Lists `x` and `y` of coordinates, `label` of class indices and `key` of photos, all of
        length N. They are empty if there are fewer than 6 photos.
    """
    labels = embedded.labels[:, 0]
    found, counts = np.unique(labels, return_counts=True)
    chosen = found[np.argsort(-counts, kind="stable")[:MAP_PEOPLE]]
    rows = np.concatenate([np.flatnonzero(labels == label)[:MAP_PHOTOS] for label in chosen])
    if len(rows) < 6:
        return {"x": [], "y": [], "label": [], "key": []}
    try:
        from sklearn.manifold import TSNE
    except ImportError:
        raise missing("a report needs scikit-learn", "report") from None

    perplexity = min(30.0, (len(rows) - 1) / 3)
    tsne = TSNE(perplexity=perplexity, metric="cosine", init="random", random_state=0)
    place = tsne.fit_transform(embedded.embeddings[rows, 0].astype(np.float64))
    return {
        "x": place[:, 0].tolist(),
        "y": place[:, 1].tolist(),
        "label": labels[rows].tolist(),
        "key": embedded.keys[rows].tolist(),
    }

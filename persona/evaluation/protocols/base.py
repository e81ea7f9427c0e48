"""What a protocol is: a name, how its pairs or templates are built, which figures come out.

Another protocol is one file with one subclass, imported in this package's `__init__`:

    class Clustering(Protocol):
        name = "clustering"
        chosen_by = "accuracy"

        def check(self, named, manifest, options):
            ...

        def figures(self, subject):
            ...
            return {"accuracy": purity}
"""

from __future__ import annotations

import html
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from persona.data.shards import Manifest
from persona.data.storage import SetFolder
from persona.errors import PersonaError, unknown
from persona.evaluation.embed import Embedded, embed_set
from persona.evaluation.metrics import FARS
from persona.evaluation.processes import Processes
from persona.evaluation.spread import has_collapsed, spread, tell_collapse
from persona.evaluation.statistics import Interval
from persona.models.sources import Named

_REGISTRY: dict[str, Protocol] = {}


@dataclass(frozen=True)
class Options:
    """What a user may choose about an evaluation, beside the set and the measure."""

    flip: bool = False
    """Add the embedding of the mirror image."""
    no_face: str = "centre"
    """What becomes of photos without a face, see persona/evaluation/pairs.py."""
    pairs: Path | None = None
    """A list of the user's own."""
    by: str | None = None
    """Annotation to give figures by."""
    fars: Sequence[float] = FARS
    resamples: int = 0
    """Of the intervals; 0: none."""
    trained: tuple[str, ...] | None = None
    """Identities whose pairs are left out."""
    scores: Path | None = None
    """Where to write a row a pair, by the main process."""
    overlap_names: Path | None = None
    """Where to write the identities that were trained on, by the main process."""
    gallery: tuple[SetFolder, Manifest] | None = None
    """The set that probes are looked up in."""
    templates: Path | None = None
    """Folder of IJB's lists of templates and media."""


@dataclass(frozen=True)
class Evaluation:
    """The figures of one network on one set; what does not apply is None."""

    model: str
    set: str
    measure: str
    accuracy: float | None = None
    accuracy_std: float | None = None
    auc: float | None = None
    eer: float | None = None
    tar_at_far: dict[str, float | None] | None = None
    """None in it: the impostor pairs are too few to resolve that FAR."""
    pairs: int | None = None
    """Pairs measured."""
    triplets: int | None = None
    photos: int | None = None
    no_face: int | None = None
    """Pairs with a photo that shows no face; photos, and triplets for any reason, left out."""
    absent: int | None = None
    """Pairs with a photo that the set does not hold; photos that it should hold."""
    impostors: int | None = None
    folds: list[float] | None = None
    """Accuracy on each."""
    threshold_at_far: dict[str, float | None] | None = None
    """Of the cosine, the lowest with that FAR."""
    top_5: float | None = None
    rank_1: float | None = None
    rank_5: float | None = None
    cmc: list[float] | None = None
    """Share found among the first 1, 2, … answers."""
    tpir_at_fpir: dict[str, float | None] | None = None
    """None in it: the non-mated probes are too few to resolve that FPIR."""
    gallery: int | None = None
    """Templates in the gallery."""
    probes: int | None = None
    """Mated probes: their identity is in the gallery."""
    non_mated: int | None = None
    """Non-mated probes of the open-set search."""
    intervals: dict[str, Interval | None] | None = None
    """95 % intervals, by figure; None: resamples cannot tell, as where there are no errors."""
    resampled: str | None = None
    """What the intervals were resampled over."""
    by: str | None = None
    groups: dict[str, dict[str, Any]] | None = None
    ungrouped: int | None = None
    """Pairs of two groups, or not annotated."""
    gap: float | None = None
    """Accuracy of the best group less that of the worst, of those with pairs of both kinds."""
    overlap: int | None = None
    """Identities of the set that were trained on."""
    overlap_pairs: int | None = None
    """Pairs left out for them."""
    duplicates: int | None = None
    """Pairs listed more than once; each counts as often as it is listed."""
    unknown_photos: list[str] | None = None
    """Paths of the user's list that are no photo of the set."""
    flip: bool | None = None
    no_face_policy: str | None = None
    margin: float | None = None
    """Mean over triplets: how much closer the positive is to the anchor, as a cosine."""
    spread: float | None = None
    """Of the embeddings, see persona/evaluation/spread.py; None: the set shows one person."""

    @property
    def chosen_by(self) -> str:
        """The figure by which the epochs of a training are compared."""
        return _REGISTRY[self.measure].chosen_by

    @property
    def score(self) -> float:
        """Its value."""
        value: float = getattr(self, self.chosen_by)
        return value

    @property
    def collapse(self) -> str | None:
        """What is to be said if the network has collapsed; None: it has not."""
        if not has_collapsed(self.spread):
            return None
        return tell_collapse(self.model, self.spread, f"set {self.set}")

    def _repr_html_(self) -> str:
        """The single figures as a table, for notebooks."""
        single = {n: v for n, v in self.to_json().items() if isinstance(v, str | int | float)}
        rows = "".join(
            f"<tr><th>{html.escape(name.replace('_', ' '))}</th><td>{html.escape(shown)}</td></tr>"
            for name, shown in (
                (name, f"{value:.4f}" if isinstance(value, float) else str(value))
                for name, value in single.items()
            )
        )
        return f"<table>{rows}</table>"

    def to_json(self) -> dict[str, Any]:
        """The figures that apply."""
        figures = {name: value for name, value in vars(self).items() if value is not None}
        return figures | ({"collapsed": True} if self.collapse else {})


@dataclass(frozen=True)
class Subject:
    """A network on a set, as a protocol sees it."""

    named: Named
    folder: SetFolder
    manifest: Manifest
    accelerator: Processes
    options: Options
    batch_size: int = 128
    workers: int | None = None
    quiet: bool = False
    spreads: list[float] = field(default_factory=list)
    """Of the sets that were embedded so far."""

    def embed(self, folder: SetFolder, manifest: Manifest, top: int = 0) -> Embedded:
        """A set through the network, on all processes."""
        embedded = embed_set(
            self.named.network,
            folder,
            manifest,
            self.accelerator,
            batch_size=self.batch_size,
            workers=self.workers,
            top=top,
            flip=self.options.flip,
            quiet=self.quiet,
        )
        rows = embedded.embeddings.reshape(-1, embedded.embeddings.shape[2])
        found = spread(rows, embedded.labels.ravel())
        self.spreads.extend([] if found is None else [found])
        return embedded

    @property
    def spread(self) -> float | None:
        """The smallest so far; None: no set showed two people."""
        return min(self.spreads, default=None)


class Protocol(ABC):
    """One way to measure a network on a set."""

    name: ClassVar[str]
    options: ClassVar[frozenset[str]] = frozenset()
    """Of `Options`, those that mean something here beside flip and resamples."""
    chosen_by: ClassVar[str] = "accuracy"
    """The field of `Evaluation` by which the epochs of a training are compared: one that seldom
    has the same value twice, as a share of few trials often has."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        _REGISTRY[cls.name] = cls()

    @abstractmethod
    def check(self, named: Named, manifest: Manifest, options: Options) -> None:
        """Raises PersonaError if this set cannot give these figures for this network."""

    @abstractmethod
    def figures(self, subject: Subject) -> dict[str, Any]:
        """Fields of `Evaluation`."""


def protocols() -> dict[str, Protocol]:
    """Every registered protocol by name."""
    return dict(_REGISTRY)


def default_measure(manifest: Manifest, options: Options = Options()) -> str:
    """What the options ask for; else match of triplets, verification of pairs, class of photos."""
    if manifest.kind == "triplets":
        return "match"
    if options.templates:
        return "templates"
    if options.gallery:
        return "identification"
    return "verification" if manifest.pairs or options.pairs else "class"


def check_measure(
    measure: str,
    named: Named,
    manifest: Manifest,
    options: Options = Options(),
) -> None:
    """Raises PersonaError if this set cannot give this measure for this network."""
    protocol = _REGISTRY.get(measure)
    if protocol is None:
        raise unknown("measure", measure, _REGISTRY)
    for name in ("pairs", "by", "trained", "scores", "overlap_names", "gallery", "templates"):
        if getattr(options, name) is not None and name not in protocol.options:
            shown = {"trained": "exclude-overlap"}.get(name, name.replace("_", "-"))
            meant = sorted(p.name for p in _REGISTRY.values() if name in p.options)
            raise PersonaError(
                f"--{shown} goes with --measure {' or '.join(meant)}, not with {measure}"
            )
    protocol.check(named, manifest, options)
    manifest.check_crops(named.name, named.image_size, named.network.uses_landmarks)


def logit_places(named: Named, manifest: Manifest) -> npt.NDArray[np.int64] | None:
    """(K,) which logit stands for each of the set's classes, -1 where none does.

    They are the same list, or identities are found by name; None: too few are for all that the
    set's photos show.
    """
    count = named.network.num_classes
    if count and manifest.knows(named.trained_on, count, named.classes):
        return np.arange(count)
    known = {name: place for place, name in enumerate(named.classes or ())}
    places_K = np.array([known.get(name, -1) for name in manifest.classes], np.int64)
    return places_K if 0 < manifest.identities <= (places_K >= 0).sum() else None


def evaluate(
    named: Named,
    folder: SetFolder,
    manifest: Manifest,
    accelerator: Processes,
    *,
    measure: str | None = None,
    options: Options = Options(),
    batch_size: int = 128,
    workers: int | None = None,
    quiet: bool = False,
) -> Evaluation:
    """Embeds a set on all processes and measures it.

    Args:
        named: the network, on the accelerator's device.
        folder: the packed set's folder.
        manifest: its manifest.
        accelerator: processes and their device, see `join_processes`.
        measure: a protocol's name; None: the set's own.
        options: what else the user chose.
        batch_size: samples a forward on each process.
        workers: loader processes of each process.
        quiet: no progress bar.

    Raises:
        PersonaError: the set cannot give the measure, or its crops are not of the network's kind.
    """
    measure = measure or default_measure(manifest, options)
    check_measure(measure, named, manifest, options)
    subject = Subject(named, folder, manifest, accelerator, options, batch_size, workers, quiet)
    figures = _REGISTRY[measure].figures(subject)
    flip = True if options.flip else None
    return Evaluation(
        *(named.name, manifest.name, measure), **figures, flip=flip, spread=subject.spread
    )

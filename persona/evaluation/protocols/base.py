"""What a protocol is: a name, how its pairs or templates are built, which figures come out.

Another protocol is one file with one subclass; defining it registers it:

    @dataclass(frozen=True)
    class ClusteringFigures(Evaluation):
        model: str
        ...
        shown = (("purity", "accuracy"), ("spread", "spread"))
        counted = ("photos", "no_face", "absent")

    class Clustering(Protocol):
        name = "clustering"
        result = ClusteringFigures
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

from persona import registry
from persona.data.shards import Manifest
from persona.data.storage import SetFolder
from persona.errors import PersonaError
from persona.evaluation.embed import Embedded, embed_set
from persona.evaluation.metrics import FARS
from persona.evaluation.processes import Processes
from persona.evaluation.spread import has_collapsed, spread, tell_collapse
from persona.evaluation.statistics import Interval, interval_text
from persona.models.sources import Named
from persona.registry import Registry

NOT_RESOLVABLE = "not resolvable"


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
class Table:
    """Rows as a command prints them; the first column names what the others are of."""

    titles: tuple[str, ...]
    rows: list[list[str | None]]
    notes: tuple[str, ...] = ()
    """Lines about them."""


class Evaluation:
    """The figures of one network on one set. Each protocol has its own dataclass of them.

    A figure that was not measured is None and is neither printed nor written. JSON has the fields
    in the order of the dataclass, which gives `flip`, `spread` and whichever it fills of the fields
    below; they mean the same in all.
    """

    shown: ClassVar[tuple[tuple[str, str], ...]] = ()
    """Title and field of each figure of a table, in its order."""
    rates: ClassVar[tuple[tuple[str, str, str], ...]] = ()
    """Title, field and name in `intervals` of figures by rate, as "TAR @ FAR" of `tar_at_far`."""
    counted: ClassVar[tuple[str, ...]] = ()
    """Fields that are counts, which end the table."""
    unit: ClassVar[str] = "photos"
    """What is counted where something lacks a face."""
    model: str
    set: str
    measure: str
    accuracy: float | None = None
    no_face: int | None = None
    """Pairs with a photo that shows no face; photos, and triplets for any reason, left out."""
    absent: int | None = None
    """Pairs with a photo that the set does not hold; photos that it should hold."""
    intervals: dict[str, Interval | None] | None = None
    """95 % intervals, by figure; None: resamples cannot tell, as where there are no errors."""
    resampled: str | None = None
    """What the intervals were resampled over."""
    flip: bool | None = None
    no_face_policy: str | None = None
    spread: float | None = None
    """Of the embeddings, see persona/evaluation/spread.py; None: the set shows one person."""

    @property
    def chosen_by(self) -> str:
        """The figure by which the epochs of a training are compared."""
        return PROTOCOLS.find(self.measure).chosen_by

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

    def tables(self) -> list[Table]:
        """The figures with their intervals, then what more there is to print."""
        intervals = self.intervals or {}
        rows: list[list[str | None]] = []

        def add(title: str, value: float | None, name: str, deviation: float | None = None) -> None:
            shown = NOT_RESOLVABLE if value is None else f"{value:.4f}"
            if deviation is not None:
                shown += f" ± {deviation:.4f}"
            rows.append([title, shown, interval_text(intervals.get(name))])

        for title, name in self.shown:
            if (value := getattr(self, name)) is not None:
                add(title, value, name, getattr(self, f"{name}_std", None))
        for title, name, short in self.rates:
            for rate, value in (getattr(self, name) or {}).items():
                add(f"{title} {rate}", value, f"{short}@{rate}")
        for name in self.counted:
            if (count := getattr(self, name)) is not None:
                rows.append([name.replace("_", " "), str(count), None])
        titles = ("figure", "value", *(("95 % interval",) if intervals else ()))
        return [Table(titles, [row[: len(titles)] for row in rows])]

    def notes(self) -> list[str]:
        """What was noticed and counted on the way, a line each."""
        lines = [f"warning: {self.collapse}"] if self.collapse else []
        for title, name, _ in self.rates:
            rates = getattr(self, name) or {}
            unresolved = [rate for rate, value in rates.items() if value is None]
            if unresolved:
                kind = title.rpartition(" ")[2]
                trials = self.trials(kind)
                lines.append(f"note: {trials} cannot resolve {kind} {', '.join(unresolved)}")
        if self.intervals and self.intervals.get("accuracy", ...) is None:
            lines.append(
                "note: no interval where all resamples agree: no errors are no proof of none"
            )
        fate = "counted as wrong" if self.no_face_policy == "fail" else "left out"
        if self.no_face:
            found = {"photos": "show no face", "triplets": "lack a photo"}.get(
                self.unit, "have a photo without a face"
            )
            centre = "the middle of the photo stands in for the face"
            what = centre if self.no_face_policy == "centre" else fate
            lines.append(f"note: {self.no_face} {self.unit} {found}: {what}")
        if self.absent:
            photos = self.unit == "photos"
            found = "are absent" if photos else "have a photo that the set does not hold"
            lines.append(f"note: {self.absent} {self.unit} {found}: {fate}")
        return lines

    def trials(self, rate: str) -> str:
        """How many trials a rate (`FAR`) was to be resolved by, in words."""
        return "too few trials"

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
    result: ClassVar[type[Any]]
    """The dataclass of its figures, an `Evaluation`; it begins with `model`, `set`, `measure`."""
    options: ClassVar[frozenset[str]] = frozenset()
    """Of `Options`, those that mean something here beside flip and resamples."""
    needs_identities: ClassVar[bool] = True
    """Whether it compares photos by who they show."""
    chosen_by: ClassVar[str] = "accuracy"
    """The field of `result` by which the epochs of a training are compared: one that seldom
    has the same value twice, as a share of few trials often has."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        PROTOCOLS.add(cls.name, cls)

    @abstractmethod
    def check(self, named: Named, manifest: Manifest, options: Options) -> None:
        """Raises PersonaError if this set cannot give these figures for this network."""

    @abstractmethod
    def figures(self, subject: Subject) -> dict[str, Any]:
        """Fields of `result`."""


PROTOCOLS: Registry[type[Protocol]] = registry.PROTOCOLS


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
    protocol = PROTOCOLS.find(measure)
    for name in ("pairs", "by", "trained", "scores", "overlap_names", "gallery", "templates"):
        if getattr(options, name) is not None and name not in protocol.options:
            shown = {"trained": "exclude-overlap"}.get(name, name.replace("_", "-"))
            meant = [n for n, p in PROTOCOLS.load_all().items() if name in p.options]
            raise PersonaError(
                f"--{shown} goes with --measure {' or '.join(meant)}, not with {measure}"
            )
    if protocol.needs_identities:
        manifest.check_labelled(f"measure {measure}")
    protocol().check(named, manifest, options)
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
    protocol = PROTOCOLS.find(measure)()
    figures = protocol.figures(subject)
    flip = True if options.flip else None
    evaluation: Evaluation = protocol.result(
        *(named.name, manifest.name, measure), **figures, flip=flip, spread=subject.spread
    )
    return evaluation

"""Base of the evaluation protocols: a protocol has a name and measures a network on a set.

A new protocol is one file with one subclass of `Protocol`. Defining the class registers it:

    @dataclass(frozen=True)
    class ClusteringFigures(Evaluation):
        model: str
        ...
        shown = (("purity", "accuracy"), ("spread", "spread"))
        counted = ("photos", "no_face", "absent")

    @dataclass(frozen=True)
    class ClusteringOptions(Options):
        neighbours: int = between(1, 100, default=5)

    class Clustering(Protocol):
        name = "clustering"
        result = ClusteringFigures
        chosen_by = "accuracy"
        config_class = ClusteringOptions

        def check(self, named, manifest, options):
            ...

        def figures(self, subject):
            ...
            return {"accuracy": purity}

Then `persona evaluate --measure clustering -o neighbours=10` measures it.
"""

from __future__ import annotations

import html
import logging
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from persona import registry
from persona.config import Checked, between, build_chosen, from_dict
from persona.data.align.spec import AlignSpec
from persona.data.sets import FaceSet
from persona.data.shards import Manifest
from persona.evaluation.embed import Embedded, embed_set
from persona.evaluation.pair_lists import LEAST_PEOPLE
from persona.evaluation.pairs import names_across
from persona.evaluation.processes import Processes
from persona.evaluation.sentences import Sentence, spread_of
from persona.evaluation.spread import has_collapsed, spread, tell_collapse
from persona.evaluation.statistics import Interval, interval_text
from persona.figure_names import RATES, label_of, power
from persona.models.sources import Named
from persona.registry import Registry

log = logging.getLogger(__name__)

NOT_RESOLVABLE = "not resolvable"


@dataclass(frozen=True)
class Options(Checked):
    """What a user may choose about every evaluation, apart from the set and the measure.

    A protocol with more options derives a class from this one.
    """

    flip: bool = False
    """Add the embedding of the mirrored photo to that of the photo; for classes, its logits."""
    resamples: int = between(0, 100_000, default=0)
    """Bootstrap resamples for the intervals. 0 computes no intervals."""


@dataclass(frozen=True)
class Table:
    """A table as a command prints it. The first column names the row."""

    titles: tuple[str, ...]
    """Title of each column."""
    rows: list[list[str | None]]
    """Text of each cell, row by row."""
    notes: tuple[str, ...] = ()
    """Lines to print below the table."""


class Evaluation:
    """The figures of one network on one set. Each protocol has its own dataclass of figures.

    A figure that was not measured is None and is neither printed nor written. The JSON has the
    fields in the order of the dataclass. The dataclass repeats those of the fields below that it
    fills; `flip` and `spread` are in all. The fields mean the same in every protocol.
    """

    shown: ClassVar[tuple[tuple[str, str], ...]] = ()
    """Title and field of each single figure, in the order of the table."""
    rates: ClassVar[tuple[tuple[str, str], ...]] = ()
    """Name in `intervals` and field of the figures by rate, such as ("tar", "tar_at_far")."""
    counted: ClassVar[tuple[str, ...]] = ()
    """Fields that are counts. They end the table."""
    unit: ClassVar[str] = "photos"
    """What `no_face` and `absent` count: photos, pairs or triplets."""
    model: str
    """Name of the network."""
    set: str
    """Name of the set."""
    measure: str
    """Name of the protocol."""
    accuracy: float | None = None
    no_face: int | None = None
    """Number of pairs with a photo that shows no face, or of photos without a face that were left
    out, or of triplets that were left out for any reason."""
    no_centre: int | None = None
    """Number of pairs among `no_face` that policy `centre` leaves out: the set holds nothing of
    their photo, not even its centre crop."""
    absent: int | None = None
    """Number of pairs with a photo that the set does not hold, or of photos that it lacks."""
    intervals: dict[str, Interval | None] | None = None
    """95 % interval by figure. None means that the resamples give no interval, for example because
    there are no errors."""
    resampled: str | None = None
    """What was resampled for the intervals: `identities` or `pairs`."""
    flip: bool | None = None
    """True if the embedding of the mirrored photo was added, otherwise None."""
    no_face_policy: str | None = None
    """Policy for photos without a face, see persona/evaluation/pairs.py."""
    spread: float | None = None
    """Spread of the embeddings, see persona/evaluation/spread.py. None means that the set shows
    only one person."""

    if TYPE_CHECKING:  # the figures of a protocol's own dataclass

        def __getattr__(self, name: str) -> Any: ...

    @property
    def chosen_by(self) -> str:
        """Name of the figure by which the epochs of a training run are compared."""
        return PROTOCOLS.find(self.measure).chosen_by

    @property
    def score(self) -> float:
        """Value of the figure that `chosen_by` names."""
        value: float = getattr(self, self.chosen_by)
        return value

    @property
    def collapse(self) -> str | None:
        """Message that says that the network has collapsed, or None if it has not."""
        if not has_collapsed(self.spread):
            return None
        return tell_collapse(self.model, self.spread, f"set {self.set}")

    def sentence(self) -> Sentence:
        """The sentence that closes the evaluation. A collapsed network gets no other praise."""
        if self.collapse:
            return Sentence(
                "Nothing can be said",
                f" about {self.model} on {self.set}: it gives different people nearly one "
                "embedding, whatever its figures are.",
            )
        return self.in_words()

    def in_words(self) -> Sentence:
        """The figures in a sentence, for a network that has not collapsed.

        A protocol overrides this with a sentence of its own.
        """
        name = self.chosen_by
        title = next((title for title, field in self.shown if field == name), label_of(name))
        return Sentence(
            self.told(name),
            f" is the {title} of {self.model} on {self.set}{self.spread_of(name)}.",
        )

    def told(self, name: str) -> str:
        """A figure that was measured as text, with the digits of the table."""
        return f"{getattr(self, name):.4f}"

    def spread_of(self, name: str) -> str:
        """The 95 % interval of a figure in brackets, or nothing if there is none."""
        return spread_of((self.intervals or {}).get(name))

    def tables(self) -> list[Table]:
        """The tables to print: first the figures with their intervals, then any others."""
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
        for short, name in self.rates:
            for rate, value in (getattr(self, name) or {}).items():
                add(label_of(f"{short}@{rate}"), value, f"{short}@{rate}")
        for name in self.counted:
            if (count := getattr(self, name)) is not None:
                rows.append([name.replace("_", " "), str(count), None])
        titles = ("figure", "value", *(("95 % interval",) if intervals else ()))
        return [Table(titles, [row[: len(titles)] for row in rows])]

    def notes(self) -> list[str]:
        """Warnings and notes about the measurement, one line each."""
        lines = [f"warning: {self.collapse}"] if self.collapse else []
        for short, name in self.rates:
            rates = getattr(self, name) or {}
            unresolved = [power(rate) for rate, value in rates.items() if value is None]
            if unresolved:
                kind = RATES.get(short, short).rpartition("@")[2]
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
            left = self.no_centre or 0
            if self.no_face_policy == "centre" and self.no_face > left:
                lines.append(f"note: {self.no_face - left} {self.unit} {found}: {centre}")
            elif self.no_face_policy != "centre":
                left = self.no_face
            if left:
                lines.append(f"note: {left} {self.unit} {found}: {fate}")
        if self.absent:
            photos = self.unit == "photos"
            found = "are absent" if photos else "have a photo that the set does not hold"
            lines.append(f"note: {self.absent} {self.unit} {found}: {fate}")
        return lines

    def trials(self, rate: str) -> str:
        """Number and kind of the trials that a rate (such as `FAR`) rests on, as text."""
        return "too few trials"

    def _repr_html_(self) -> str:
        """HTML table of the single figures, for notebooks."""
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
        """The figures that were measured, and `collapsed` if the network has collapsed."""
        figures = {name: value for name, value in vars(self).items() if value is not None}
        return figures | ({"collapsed": True} if self.collapse else {})


@dataclass(frozen=True)
class Subject:
    """A network on a set, with the options: what a protocol measures."""

    named: Named
    faces: FaceSet
    accelerator: Processes
    options: Any
    """Options of the protocol, an instance of its `config_class`."""
    batch_size: int = 128
    workers: int | None = None
    quiet: bool = False
    spreads: list[float] = field(default_factory=list)
    """Spread of each set embedded so far, see persona/evaluation/spread.py."""

    @property
    def manifest(self) -> Manifest:
        """The manifest of the set."""
        return self.faces.manifest

    def embed(self, faces: FaceSet, top: int = 0) -> Embedded:
        """Embeds a set on all processes and notes its spread.

        `top` is the number of highest classes of each photo to keep in `predicted`.
        """
        embedded = embed_set(
            self.named.network,
            faces,
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
        """The smallest spread so far. None means that no set showed two people."""
        return min(self.spreads, default=None)


class Protocol(ABC):
    """One way to measure a network on a set."""

    name: ClassVar[str]
    """Name of the protocol, as `--measure` takes it."""
    result: ClassVar[type[Any]]
    """Dataclass of its figures, an `Evaluation`. It begins with `model`, `set`, `measure`."""
    config_class: ClassVar[type[Options]] = Options
    """Dataclass of its options."""
    needs_identities: ClassVar[bool] = True
    """Whether it needs the identity of each photo."""
    chosen_by: ClassVar[str] = "accuracy"
    """Field of `result` by which the epochs of a training run are compared. Choose one that seldom
    has the same value twice; a share of few trials often has."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        PROTOCOLS.add(cls.name, cls)

    @abstractmethod
    def check(self, named: Named, manifest: Manifest, options: Any) -> None:
        """Raises PersonaError if this set cannot give these figures for this network.

        `options` is an instance of its `config_class`.
        """

    @abstractmethod
    def figures(self, subject: Subject) -> dict[str, Any]:
        """Measures the network. Returns the fields of `result` by name."""


PROTOCOLS: Registry[type[Protocol]] = registry.PROTOCOLS


def default_measure(
    manifest: Manifest, given: Collection[str] = (), *, named: Named | None = None
) -> str:
    """The protocol that fits a set, the names of the options that are given, and a network.

    Triplets give `match`. The options `templates` and `gallery` choose `templates` and
    `identification`. Otherwise pairs give `verification`. Photos without pairs give `class` for a
    network that knows their identities, and else `verification`, with pairs drawn of them.
    """
    if manifest.kind == "triplets":
        return "match"
    if "templates" in given:
        return "templates"
    if "gallery" in given:
        return "identification"
    if manifest.pairs or "pairs" in given:
        return "verification"
    knows = named is None or logit_places(named, manifest) is not None
    return "class" if knows or manifest.identities < LEAST_PEOPLE else "verification"


def build_options(measure: str, given: Mapping[str, Any]) -> Options:
    """Builds the options of a protocol from those that are given, by name.

    A plain value, as `-o NAME=VALUE` gives it, is checked against the type of its field.

    Raises:
        PersonaError: the protocol does not take an option, or a value is of the wrong type or out
            of range.
    """
    options: Options = build_chosen(PROTOCOLS, measure, given, flags={"trained": "exclude-overlap"})
    return options


def check_measure(
    measure: str, named: Named, manifest: Manifest, options: Options | None = None
) -> None:
    """Raises PersonaError if this set cannot give this measure for this network.

    `options` is an instance of the protocol's `config_class`. None takes the defaults.
    """
    protocol = PROTOCOLS.find(measure)
    if protocol.needs_identities:
        manifest.check_labelled(f"measure {measure}")
    protocol().check(named, manifest, options or protocol.config_class())
    manifest.check_crops(named.name, named.image_size, named.network.uses_landmarks)


def note_other_crops(named: Named, manifest: Manifest) -> None:
    """Notes that a set is aligned in another way than the network's training crops.

    It is no error: a set is measured as it is, and several networks on one set may differ.
    """
    if named.alignment is None or named.network.uses_landmarks:
        return
    own, align = from_dict(AlignSpec, named.alignment, where=named.name), manifest.align
    if not own.resembles(align):
        log.warning(
            "note: set %s is packed with --align %s, %s was trained on crops of `%s`: pack the set "
            "so, or its figures are too low",
            *(manifest.name, align.method, named.name, own.options),
        )


def logit_places(named: Named, manifest: Manifest) -> npt.NDArray[np.int64] | None:
    """(K,) int64 logit of each of the set's classes, or -1 for a class without a logit.

    If the network was trained on the same list of classes, the places agree. Otherwise classes are
    found by name, numbers only if they are of the same dataset (`names_across`). None means that
    fewer classes have a logit than the set's photos show identities.
    """
    count, classes = named.network.num_classes, named.classes
    if classes is not None:
        classes = tuple(names_across(classes, named.classes_of, manifest))
    if count and manifest.knows(named.trained_on, count, classes):
        return np.arange(count)
    known = {name: place for place, name in enumerate(classes or ())}
    places_K = np.array([known.get(name, -1) for name in manifest.classes], np.int64)
    return places_K if 0 < manifest.identities <= (places_K >= 0).sum() else None


def evaluate(
    named: Named,
    faces: FaceSet,
    accelerator: Processes,
    *,
    measure: str | None = None,
    options: Mapping[str, Any] | None = None,
    batch_size: int = 128,
    workers: int | None = None,
    quiet: bool = False,
) -> Evaluation:
    """Embeds a set on all processes and measures it.

    Args:
        named: the network, on the accelerator's device.
        faces: the packed set.
        accelerator: processes and their device, see `join_processes`.
        measure: name of a protocol. None takes `default_measure`.
        options: options of the protocol, by name. Those that are missing or None have their
            defaults.
        batch_size: samples in one forward pass on each process.
        workers: loader processes of each process. None chooses the number by the device.
        quiet: show no progress bar.

    Raises:
        PersonaError: the set cannot give the measure, its crops do not fit the network, or the
            protocol does not take an option.
    """
    given = {name: value for name, value in (options or {}).items() if value is not None}
    measure = measure or default_measure(faces.manifest, given, named=named)
    chosen = build_options(measure, given)
    check_measure(measure, named, faces.manifest, chosen)
    if accelerator.is_main_process:
        note_other_crops(named, faces.manifest)
    subject = Subject(named, faces, accelerator, chosen, batch_size, workers, quiet)
    protocol = PROTOCOLS.find(measure)()
    figures = protocol.figures(subject)
    flip = True if chosen.flip else None
    evaluation: Evaluation = protocol.result(
        *(named.name, faces.name, measure), **figures, flip=flip, spread=subject.spread
    )
    return evaluation

"""The configuration of a distillation run: defaults < YAML file < command line, merged once.

A recipe is a YAML file with some of `DistillConfig`'s names. Its `losses` are a weighted list: the
terms it names are the terms that count, with nothing added from the defaults.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from persona.errors import PersonaError, shown, unknown
from persona.files import write_atomically

T = TypeVar("T")

LARGEST_YAML = 1 << 16
"""Characters: a recipe has a few hundred."""
DEEPEST_YAML = 20
LONGEST_NUMBER = 100

PRECISIONS = ("no", "fp16", "bf16")
OPTIMIZERS = ("adam", "adamw", "sgd")
SCHEDULES = ("multistep", "cosine", "constant")
TRACKERS = ("wandb", "tensorboard", "mlflow", "comet_ml", "aim")
"""Beside the JSONL file; opened in persona/training/tracking.py."""
STUDENTS = ("mobilenet_v3_small", "mobilenet_v3_large")
POOLINGS = ("average", "depthwise")
ACTIVATIONS = ("default", "prelu")
PENALTIES = ("arcface", "cosface")
TARGETS = ("auto", "kept", "online")
COMPILERS = ("no", "inductor", "eager", "aot_eager", "cudagraphs")
"""torch.compile backends."""
EPOCHS = 20
"""Length of a distillation for which nothing else is asked."""
LENGTHS = {"epochs": 100_000, "steps": 1_000_000_000, "photos": 10**12}
"""What the length of a distillation is counted in, and the most of it."""
NOT_LEARNED = frozenset({"workers", "cache", "verify"})
"""Of a config, what says how photos come and not what is learned: a run may go on with another."""
METHODS = (
    *("finetune", "joint", "ncm", "lwf", "ewc", "replay", "replay-herding", "icarl", "der++"),
    "anchor",
)
"""Of continual learning, one file each in persona/learning/methods/."""


# --- losses: one class a term, documented with its module in persona/training/losses/ ------------


@dataclass(frozen=True)
class Ranged:
    """Numbers that must be within `_RANGES`."""

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if item.name in _RANGES:
                _check(item.name, value, *_RANGES[item.name])


_RANGES = {
    "weight": (0, 1e6),
    "temperature": (0.01, 1000),
    "margin": (0, 3),
    "scale": (0.1, 1000),
    "h": (0, 10),
    "momentum": (0, 1),
    "photos": (3, 4096),
    "decay": (0, 1),
    "alpha": (0, 1e6),
    "beta": (0, 1e6),
}


@dataclass(frozen=True)
class Term(Ranged):
    """What every loss term has."""

    weight: float = 1.0


@dataclass(frozen=True)
class SoftTargetsConfig(Term):
    """Hinton et al. 2015."""

    temperature: float = 4.0


@dataclass(frozen=True)
class HardLabelsConfig(Term):
    """Cross-entropy with the identity."""


@dataclass(frozen=True)
class EmbeddingCosineConfig(Term):
    """1 - cosine of student's and teacher's embedding."""


@dataclass(frozen=True)
class EmbeddingL2Config(Term):
    """Squared distance of student's and teacher's vector."""

    unit: bool = False
    """Of the embeddings (unit length), rather than of the vectors before normalisation."""


@dataclass(frozen=True)
class EmbeddingAngularConfig(Term):
    """ShrinkTeaNet, Duong et al. 2019."""


@dataclass(frozen=True)
class RkdDistanceConfig(Term):
    """Park et al. 2019, distances."""


@dataclass(frozen=True)
class RkdAngleConfig(Term):
    """Park et al. 2019, angles."""

    photos: int = 128
    """Of a batch: the term's cost grows with their cube."""


@dataclass(frozen=True)
class SimilarityConfig(Term):
    """Tung and Mori 2019."""


@dataclass(frozen=True)
class ArcFaceConfig(Term):
    """Deng et al. 2019."""

    margin: float = 0.5
    scale: float = 64.0


@dataclass(frozen=True)
class CosFaceConfig(Term):
    """Wang et al. 2018."""

    margin: float = 0.35
    scale: float = 64.0


@dataclass(frozen=True)
class AdaFaceConfig(Term):
    """Kim et al. 2022."""

    margin: float = 0.4
    h: float = 0.333
    scale: float = 64.0
    momentum: float = 0.99


@dataclass(frozen=True)
class AdaDistillConfig(Term):
    """Boutros et al. 2024."""

    penalty: str = "arcface"
    margin: float = 0.45
    scale: float = 64.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _among("penalty", self.penalty, PENALTIES)


@dataclass(frozen=True)
class TripletConfig(Term):
    """Schroff et al. 2015."""

    margin: float = 0.2


@dataclass(frozen=True)
class LossesConfig:
    """The terms of the objective: those that are not None, each times its weight."""

    soft_targets: SoftTargetsConfig | None = None
    hard_labels: HardLabelsConfig | None = None
    embedding_cosine: EmbeddingCosineConfig | None = None
    embedding_l2: EmbeddingL2Config | None = None
    embedding_angular: EmbeddingAngularConfig | None = None
    rkd_distance: RkdDistanceConfig | None = None
    rkd_angle: RkdAngleConfig | None = None
    similarity: SimilarityConfig | None = None
    arcface: ArcFaceConfig | None = None
    cosface: CosFaceConfig | None = None
    adaface: AdaFaceConfig | None = None
    adadistill: AdaDistillConfig | None = None
    triplet: TripletConfig | None = None

    def __post_init__(self) -> None:
        if not any(term.weight for term in self.terms().values()):
            given = ", ".join(self.terms())
            raise PersonaError(
                f"the weights of {given} sum to 0: there is nothing to learn"
                if given
                else "the recipe names no loss: there is nothing to learn; give `losses` a term"
            )

    def terms(self) -> dict[str, Term]:
        """Name to term, of those that are there."""
        found = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        return {name: term for name, term in found.items() if term is not None}


REFERENCE_LOSSES = {
    "soft_targets": {"weight": 0.9, "temperature": 4.0},
    "hard_labels": {"weight": 0.1},
}
"""`0.9 * T² * KL + 0.1 * CE`, the reference recipe."""
HARD_LOSSES = {"hard_labels": {"weight": 1.0}}
"""Without a teacher."""
OPTIONS = {"losses.soft_targets.temperature": "--temperature"}
"""What the command line calls an option of a loss."""


# --- continual learning: the options of a method, documented with it ------------------------------


@dataclass(frozen=True)
class LwfConfig(Term):
    """Li and Hoiem 2016."""

    temperature: float = 2.0


@dataclass(frozen=True)
class EwcConfig(Term):
    """Kirkpatrick et al. 2017, online: Schwarz et al. 2018."""

    weight: float = 100.0
    decay: float = 0.9
    """Of the earlier experiences' Fisher information."""
    photos: int = 64
    """Of an experience that its Fisher information is estimated from, one at a time."""


@dataclass(frozen=True)
class DerConfig(Ranged):
    """Buzzega et al. 2020."""

    alpha: float = 0.5
    """Of the kept logits."""
    beta: float = 0.5
    """Of the kept labels."""


@dataclass(frozen=True)
class AnchorConfig(Term):
    """The original teacher's embedding of the new photos."""

    weight: float = 10.0


# --- the rest of a run ----------------------------------------------------------------------------


@dataclass(frozen=True)
class StudentConfig:
    """The network that is trained; documented in persona/models/student.py."""

    architecture: str = "mobilenet_v3_small"
    width: float = 1.0
    """Of every layer of the convolutions, as a multiple."""
    first_stride: int = 2
    """1 keeps twice the resolution, at about four times the cost."""
    last_stride: int = 2
    """1 leaves out the last reduction: a crop of 112 px keeps 7 x 7 places in the last maps instead
    of 4 x 4, at about 1.6 times the multiplications."""
    pooling: str = "average"
    """`depthwise`: a global depthwise convolution, which can weigh the places of a face."""
    activation: str = "default"
    """`prelu` in place of hard-swish and ReLU."""
    embedding_size: int | None = None
    """None: the teacher's, or 512 without one."""
    norm_momentum: float = 0.1
    """Of batch norm's running statistics. torchvision has 0.01, TensorFlow's habit, with which a
    student of a few hundred steps is evaluated with the statistics of an earlier one."""
    imagenet: bool = False
    """Start from torchvision's ImageNet weights."""

    def __post_init__(self) -> None:
        _among("student", self.architecture, STUDENTS)
        _check("width", self.width, 0.35, 1.0)
        _check("first_stride", self.first_stride, 1, 2)
        _check("last_stride", self.last_stride, 1, 2)
        _among("pooling", self.pooling, POOLINGS)
        _among("activation", self.activation, ACTIVATIONS)
        _check("norm_momentum", self.norm_momentum, 0.0001, 1)
        if self.embedding_size is not None:
            _check("embedding_size", self.embedding_size, 8, 4096)
        if self.imagenet and self.width != 1.0:
            raise PersonaError(
                f"ImageNet weights are of width 1.0, not {self.width:g}: leave one of them out"
            )


@dataclass(frozen=True)
class OptimConfig:
    """The reference: Adam, its rate divided by 10 at 1/4, 1/2 and 3/4 of the steps."""

    optimizer: str = "adam"
    lr: float = 0.001
    schedule: str = "multistep"
    warmup_epochs: float = 0.0
    """In which the rate rises from 0."""
    weight_decay: float = 0.0
    """Of weight matrices and kernels; never of norms and biases."""
    momentum: float = 0.9
    """Of sgd."""
    clip_norm: float = 0.0
    """Gradients are scaled down to this norm; 0: never."""
    ema_decay: float = 0.0
    """Of the running mean of the student's weights; 0: none is kept."""

    def __post_init__(self) -> None:
        _among("optimizer", self.optimizer, OPTIMIZERS)
        _check("lr", self.lr, 1e-9, 10)
        _among("schedule", self.schedule, SCHEDULES)
        _check("warmup_epochs", self.warmup_epochs, 0, 100_000)
        _check("weight_decay", self.weight_decay, 0, 1)
        _check("momentum", self.momentum, 0, 0.9999)
        _check("clip_norm", self.clip_norm, 0, 1e6)
        _check("ema_decay", self.ema_decay, 0, 0.99999)


@dataclass(frozen=True)
class AugmentConfig:
    """How a photo is changed on its way to the networks; probabilities and strengths in [0, 1]."""

    flip: bool = True
    """Mirrored with probability 1/2."""
    crop: float = 0.0
    """The largest share of the side that a random crop leaves out, before scaling back."""
    low_resolution: float = 0.0
    """Probability of being reduced two to four times and enlarged again."""
    grey: float = 0.0
    """Probability of losing its colour."""
    jitter: float = 0.0
    """Strength: brightness, contrast and saturation are multiplied by 1 - jitter to 1 + jitter."""
    erase: float = 0.0
    """Probability of a grey square, a tenth to four tenths of the side, over a random place."""

    def __post_init__(self) -> None:
        _check("crop", self.crop, 0, 0.5)
        for name in ("low_resolution", "grey", "jitter", "erase"):
            _check(name, getattr(self, name), 0, 1)

    @property
    def beyond_flip(self) -> bool:
        """Whether anything but mirroring happens."""
        return any((self.crop, self.low_resolution, self.grey, self.jitter, self.erase))


@dataclass(frozen=True)
class DistillConfig:
    """Everything that a run depends on; written beside it."""

    teacher: str = "facenet-vggface2"
    train_set: str = "vggface2"
    test_set: str = "lfw"
    """`none`: no evaluation, the last epoch is kept."""
    epochs: int | None = None
    """Length of the run; 20 where none of `epochs`, `steps` and `photos` is given."""
    steps: int | None = None
    """Length of the run in optimizer steps."""
    photos: int | None = None
    """Length of the run in photos seen by all processes; each counts whenever it is seen."""
    evaluate_steps: int | None = None
    """Optimizer steps between evaluations; None: one after each epoch."""
    batch_size: int = 128
    """Samples a step on each process."""
    workers: int = 4
    """Loader processes of each process."""
    cache: str | None = None
    """Folder that keeps the files of sets named by a URL; none: they go when they were read."""
    verify: bool = True
    """Files of a set on this machine are checked against their checksums before their first use."""
    targets: str = "auto"
    """The teacher's vectors: `kept` beside the shards, computed `online`, or kept if there."""
    mixed_precision: str = "no"
    """Of the student."""
    teacher_precision: str = "auto"
    """Of an online teacher; `auto`: bf16 where the processor computes in it, else the student's."""
    compile: str = "no"
    """A torch.compile backend (`inductor`) for student and online teacher."""
    sync_batch_norm: bool = False
    """Batch norm over the batches of all GPUs."""
    gradient_accumulation_steps: int = 1
    seed: int = 0
    checkpoint_steps: int = 500
    """Optimizer steps between checkpoints, beside the one at each epoch's end."""
    tracker: str = "wandb"
    """Names of trackers with commas between, or `none`; metrics.jsonl is always written."""
    student: StudentConfig = field(default_factory=StudentConfig)
    losses: LossesConfig = field(
        default_factory=lambda: from_dict(LossesConfig, REFERENCE_LOSSES, where="the defaults")
    )
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)

    def __post_init__(self) -> None:
        lengths = {name: getattr(self, name) for name in LENGTHS}
        given = [name for name, value in lengths.items() if value is not None]
        if len(given) > 1:
            raise PersonaError(
                f"{' and '.join(given)} are lengths of the same run: give one of them"
            )
        if not given:
            object.__setattr__(self, "epochs", EPOCHS)
        for name in given:
            _check(name, lengths[name], 1, LENGTHS[name])
        if self.evaluate_steps is not None:
            _check("evaluate_steps", self.evaluate_steps, 1, 1_000_000_000)
        _check("batch_size", self.batch_size, 2, 1_000_000)  # batch norm cannot learn from one
        _check("workers", self.workers, 0, 1024)
        _check("gradient_accumulation_steps", self.gradient_accumulation_steps, 1, 100_000)
        _check("seed", self.seed, 0, 2**31 - 1)
        _check("checkpoint_steps", self.checkpoint_steps, 1, 1_000_000_000)
        _among("mixed_precision", self.mixed_precision, PRECISIONS)
        _among("compile", self.compile, COMPILERS)
        _among("teacher_precision", self.teacher_precision, ("auto", *PRECISIONS))
        _among("targets", self.targets, TARGETS)
        tracker_names(self.tracker)


LEARN_OPTIM: dict[str, Any] = {"lr": 0.0001, "schedule": "constant"}
"""With ten times the rate a few people's photos ruin the embedding of all others."""


@dataclass(frozen=True)
class LearnConfig:
    """Everything that a run of continual learning depends on; written beside it."""

    student: str
    """Model ID."""
    on: str
    """The set of those who are to be learned."""
    method: str
    old: str | None = None
    """A set of those whom the student knows, for what a method keeps of them."""
    teacher: str | None = None
    """Of `anchor`; None: the one that the student was distilled from."""
    experiences: int = 1
    """The set's identities come in so many groups, one after another."""
    steps: int = 200
    """Of each experience."""
    batch_size: int = 32
    """Photos a step on each process, those out of the memory included."""
    memory: int = 200
    """Photos that may be kept."""
    memory_mb: float | None = None
    """10^6 bytes that these photos, and what is kept with them, may take."""
    hold_out: float = 0.2
    """Share of each identity's photos that is measured on and not trained on."""
    mixed_precision: str = "no"
    seed: int = 0
    checkpoint_steps: int = 100
    tracker: str = "wandb"
    cache: str | None = None
    verify: bool = True
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(**LEARN_OPTIM))
    lwf: LwfConfig = field(default_factory=LwfConfig)
    ewc: EwcConfig = field(default_factory=EwcConfig)
    der: DerConfig = field(default_factory=DerConfig)
    anchor: AnchorConfig = field(default_factory=AnchorConfig)

    def __post_init__(self) -> None:
        _among("method", self.method, METHODS)
        _check("experiences", self.experiences, 1, 10_000)
        _check("steps", self.steps, 1, 10_000_000)
        _check("batch_size", self.batch_size, 4, 1_000_000)  # der++ takes quarters
        _check("memory", self.memory, 0, 100_000_000)
        if self.memory_mb is not None:
            _check("memory_mb", self.memory_mb, 0, 1e9)
        _check("hold_out", self.hold_out, 0, 0.9)
        _check("seed", self.seed, 0, 2**31 - 1)
        _check("checkpoint_steps", self.checkpoint_steps, 1, 1_000_000_000)
        _among("mixed_precision", self.mixed_precision, PRECISIONS)
        tracker_names(self.tracker)


def _check(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # also what is no number, and of any length
        raise PersonaError(f"{name} {shown(value)}: choose {low:g} to {high:g}")


def _among(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise unknown(name, value, known)


def tracker_names(trackers: str) -> tuple[str, ...]:
    """`wandb,tensorboard` as names; none of `none`.

    Raises:
        PersonaError: an unknown name, or one that is given twice.
    """
    names = tuple(name.strip() for name in trackers.split(","))
    if names == ("none",):
        return ()
    for name in names:
        known = TRACKERS if len(names) > 1 else (*TRACKERS, "none")
        _among("tracker", name, known)
    if len(set(names)) < len(names):
        raise PersonaError(f"tracker {trackers}: each of them once")
    return names


_TOO_DEEP = f"over {DEEPEST_YAML} values inside each other"


class _Loader(yaml.SafeLoader):
    """Plain values without aliases, of which a few lines stand for gigabytes."""

    depth = 0

    def fetch_flow_collection_start(self, kind: Any) -> None:
        """Refuses brackets before the scanner looks for a key behind all of them."""
        if self.flow_level >= DEEPEST_YAML:
            raise yaml.MarkedYAMLError(problem=_TOO_DEEP, problem_mark=self.get_mark())
        super().fetch_flow_collection_start(kind)

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Refuses what no recipe holds."""
        if self.check_event(yaml.AliasEvent):
            mark = self.get_mark()
            raise yaml.MarkedYAMLError(
                problem="aliases are not read: write it out", problem_mark=mark
            )
        self.depth += 1
        if self.depth > DEEPEST_YAML:
            raise yaml.MarkedYAMLError(problem=_TOO_DEEP)
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1

    def construct_number(self, node: yaml.ScalarNode) -> Any:
        """Refuses numbers that take seconds to read, as one of 30,000 digits to the base of 60."""
        if len(node.value) > LONGEST_NUMBER:
            raise yaml.MarkedYAMLError(problem="a very long number", problem_mark=node.start_mark)
        whole = node.tag.endswith("int")
        return self.construct_yaml_int(node) if whole else self.construct_yaml_float(node)


for _kind in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader.construct_number)


def parse_yaml(text: str, what: str) -> Any:
    """The one way in which YAML is read, all of which may come from a stranger.

    Raises:
        PersonaError: it is no YAML, too long or deep, or has aliases; the message begins with
            `what`.
    """
    if len(text) > LARGEST_YAML:
        raise PersonaError(f"{what} has over {LARGEST_YAML:,} characters: none is so long")
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        place = "" if error.problem_mark is None else f" (line {error.problem_mark.line + 1})"
        refused = f": {error.problem}" if error.context is None and error.problem else ""
        raise PersonaError(f"{what} is not valid YAML{place}{refused}") from None
    except Exception:  # PyYAML raises whatever its conversions do: KeyError, OverflowError, …
        raise PersonaError(f"{what} is not valid YAML") from None


def read_yaml(path: Path, what: str) -> Any:
    """What a YAML file holds.

    Raises:
        PersonaError: it cannot be read, or see `parse_yaml`.
    """
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(LARGEST_YAML + 1)
    except OSError as error:
        raise PersonaError(f"cannot read {what} {path}: {error.strerror}") from None
    except ValueError:
        raise PersonaError(f"{what} {path} is not valid YAML: it is no UTF-8") from None
    return parse_yaml(text, f"{what} {path}")


def load_config(
    path: Path | None, overrides: Mapping[str, Any], *, base: Mapping[str, Any] | None = None
) -> DistillConfig:
    """Merges defaults < `base` < the YAML file < `overrides` (dotted names), once.

    Raises:
        PersonaError: no file, no YAML, an unknown key (naming the nearest), a value of another type
            or out of range.
    """
    values: dict[str, Any] = {}
    if path is not None:
        values = read_yaml(path, "config") or {}
        if not isinstance(values, dict):
            raise PersonaError(f"config {path} must be a mapping of names to values")
    values = {**(base or {}), **values}
    if any(overrides.get(name) is not None for name in LENGTHS):  # in whatever the file counts
        values = {name: value for name, value in values.items() if name not in LENGTHS}
    teacher = overrides.get("teacher", values.get("teacher"))
    # Copied: the command line's values are written into it.
    reference = HARD_LOSSES if teacher == "none" else REFERENCE_LOSSES
    values.setdefault("losses", {name: dict(term) for name, term in reference.items()})
    for dotted, value in overrides.items():
        *groups, name = dotted.split(".")
        _check_term(dotted, values["losses"], overrides, path)
        target = values
        for depth, group in enumerate(groups, start=1):
            if target.get(group) is None:
                target[group] = {}
            target = target[group]
            if not isinstance(target, dict):
                where = ".".join(groups[:depth])
                raise PersonaError(f"{where}: expected a mapping of names to values")
        target[name] = value
    places = [*([str(path)] if path else []), *(["the command line"] if overrides else [])]
    return from_dict(DistillConfig, values, where=" and ".join(places) or "the recipe")


def _check_term(dotted: str, losses: Any, overrides: Mapping[str, Any], path: Path | None) -> None:
    """An option of a loss is no wish for that loss; its weight, or the loss itself, is.

    Raises:
        PersonaError: nothing names the loss that an option is of.
    """
    *groups, name = dotted.split(".")
    if groups[:1] != ["losses"] or len(groups) != 2 or name == "weight":
        return
    term = ".".join(groups)
    known = groups[1] in {item.name for item in dataclasses.fields(LossesConfig)}
    asked = {term, f"{term}.weight", "losses"} & overrides.keys()
    if known and not asked and isinstance(losses, Mapping) and groups[1] not in losses:
        raise PersonaError(
            f"{OPTIONS.get(dotted, dotted)} is of the loss {groups[1]}, which "
            f"{path or 'the recipe'} does not have: leave it out, or add the loss with -o "
            f"{term}.weight=1"
        )


def from_dict(kind: type[T], values: Mapping[str, Any], *, where: str, prefix: str = "") -> T:
    """Builds a config dataclass from plain values, strictly."""
    hints = get_type_hints(kind)
    known = {item.name for item in dataclasses.fields(kind)}  # type: ignore[arg-type]
    built: dict[str, Any] = {}
    for name, value in values.items():
        if name not in known:
            key = name if isinstance(name, str) else shown(name)
            raise unknown("key", f"{prefix}{key}", [prefix + k for k in known], where=where)
        built[name] = _convert(hints[name], value, where=where, name=f"{prefix}{name}")
    return kind(**built)


def _convert(hint: Any, value: Any, *, where: str, name: str) -> Any:
    allowed = get_args(hint) if get_origin(hint) in {Union, UnionType} else (hint,)
    nested = dataclasses.is_dataclass(allowed[0])
    if value is None and NoneType in allowed:
        if not nested:
            return None
        value = {}  # a term that is named, without options: all its defaults
    allowed = tuple(kind for kind in allowed if kind is not NoneType)
    if nested:
        if not isinstance(value, Mapping):
            raise PersonaError(f"{name} in {where}: expected a mapping of names to values")
        return from_dict(allowed[0], value, where=where, prefix=f"{name}.")
    if get_origin(allowed[0]) is tuple:
        if not isinstance(value, list):
            raise PersonaError(f"{name} in {where}: expected a list, found {shown(value)}")
        item = get_args(allowed[0])[0]
        return tuple(_convert(item, one, where=where, name=name) for one in value)
    allowed = tuple(get_origin(kind) or kind for kind in allowed)  # of dict[str, Any]: dict
    if float in allowed and not isinstance(value, bool | float):
        with contextlib.suppress(ValueError, TypeError, OverflowError):
            return float(value)  # YAML 1.1 reads 1e-3 as a string, and 1 as an integer
    if str in allowed and value is False:
        return "no"  # YAML 1.1 reads a bare `no` as false
    if isinstance(value, bool) != (bool in allowed) or not isinstance(value, allowed):
        wanted = " or ".join(getattr(kind, "__name__", str(kind)) for kind in allowed)
        raise PersonaError(f"{name} in {where}: expected {wanted}, found {shown(value)}")
    return value


def to_dict(config: DistillConfig) -> dict[str, Any]:
    """Plain nested values, as `from_dict` reads them; losses that do not count are left out."""
    values = dataclasses.asdict(config)
    values["losses"] = {name: term for name, term in values["losses"].items() if term is not None}
    return values


def differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two nested mappings, for a person: `optim.lr: 0.001 is now 0.5`."""
    before, after = _flat(was), _flat(now)
    return [
        f"{name}: {before.get(name)} is now {after.get(name)}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted name."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        nested = isinstance(value, Mapping)
        found |= _flat(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value}
    return found


def save_config(path: Path, config: DistillConfig) -> None:
    """Writes a resolved config as YAML that `--config` takes again."""
    write_atomically(path, yaml.safe_dump(to_dict(config), sort_keys=False).encode())

"""The configuration of a run, merged once: defaults < YAML file < command line.

A recipe is a YAML file with some of `DistillConfig`'s names. Its `losses` are a weighted list: the
terms it names are the terms that count, with nothing added from the defaults.

Each loss, learning method and backbone has its options as a frozen dataclass in its own file, which
the registries (persona/registry.py) import when a config names it. What a field may hold stands at
the field:

    @dataclass(frozen=True)
    class ArcFaceConfig(Term):
        margin: float = between(0, 3, default=0.5)
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, ClassVar, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from persona.errors import PersonaError, shown, unknown
from persona.files import write_atomically
from persona.registry import BACKBONES, LOSSES, METHODS, TRACKERS

T = TypeVar("T")
RunConfig = TypeVar("RunConfig", "DistillConfig", "LearnConfig")
Hints = Mapping[str, Callable[[], Any]]
"""Names of values, and what gives their types."""

LARGEST_YAML = 1 << 16
"""Characters: a recipe has a few hundred."""
DEEPEST_YAML = 20
LONGEST_NUMBER = 100

PRECISIONS = ("no", "fp16", "bf16")
OPTIMIZERS = ("adam", "adamw", "sgd")
SCHEDULES = ("multistep", "cosine", "constant")
POOLINGS = ("average", "depthwise")
TARGETS = ("auto", "kept", "online")
COMPILERS = ("no", "inductor", "eager", "aot_eager", "cudagraphs")
"""torch.compile backends."""
EPOCHS = 20
"""Length of a distillation for which nothing else is asked."""
LENGTHS = {"epochs": 100_000, "steps": 1_000_000_000, "photos": 10**12}
"""What the length of a distillation is counted in, and the most of it."""
NOT_LEARNED = frozenset({"workers", "cache", "verify"})
"""Of a config, what says how photos come and not what is learned: a run may go on with another."""


# --- what a field may hold ------------------------------------------------------------------------


def between(low: float, high: float, *, default: Any = dataclasses.MISSING) -> Any:
    """A dataclass field of a number from `low` to `high`; None is let through."""
    return field(default=default, metadata={"check": partial(_check_range, low=low, high=high)})


def among(known: Iterable[str], *, default: Any = dataclasses.MISSING) -> Any:
    """A dataclass field of one of the names in `known`."""
    return field(default=default, metadata={"check": partial(_check_name, known=known)})


def checked(check: Callable[[str, Any], object], *, default: Any = dataclasses.MISSING) -> Any:
    """A dataclass field that `check` is called with, by name and value; None is let through."""
    return field(default=default, metadata={"check": check})


def _check_range(name: str, value: float, *, low: float, high: float) -> None:
    if not low <= value <= high:  # also what is no number, and of any length
        raise PersonaError(f"{name} {shown(value)}: choose {low:g} to {high:g}")


def _check_name(name: str, value: str, *, known: Iterable[str]) -> None:
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
        known = [*TRACKERS, *(["none"] if len(names) == 1 else [])]
        _check_name("tracker", name, known=known)
    if len(set(names)) < len(names):
        raise PersonaError(f"tracker {trackers}: each of them once")
    return names


def _check_trackers(_name: str, value: str) -> None:
    tracker_names(value)


class Checked:
    """A dataclass whose fields hold what they may, as `between` and `among` say."""

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, item.name)
            if value is not None and "check" in item.metadata:
                item.metadata["check"](item.name, value)


INLINE: dict[str, Any] = {"inline": True}
"""Metadata of a field that holds the values of others: in a file they stand beside its own."""


# --- losses ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Term(Checked):
    """What every loss term has; a loss with more options derives from it."""

    weight: float = between(0, 1e6, default=1.0)


@dataclass(frozen=True)
class LossesConfig:
    """The terms of the objective, each times its weight, in the order in which they are named."""

    terms: Mapping[str, Term] = field(metadata=INLINE)

    def __post_init__(self) -> None:
        if not any(term.weight for term in self.terms.values()):
            given = ", ".join(self.terms)
            raise PersonaError(
                f"the weights of {given} sum to 0: there is nothing to learn"
                if given
                else "the recipe names no loss: there is nothing to learn; give `losses` a term"
            )

    @classmethod
    def further(cls, _values: Mapping[str, Any]) -> Hints:
        """Every loss's options, or nothing for its defaults."""
        return {name: partial(_options_of, name) for name in LOSSES}


def _options_of(loss: str) -> Any:
    return LOSSES.find(loss).config_class | None


REFERENCE_LOSSES = {
    "soft_targets": {"weight": 0.9, "temperature": 4.0},
    "hard_labels": {"weight": 0.1},
}
"""`0.9 * T² * KL + 0.1 * CE`, the reference recipe."""
HARD_LOSSES = {"hard_labels": {"weight": 1.0}}
"""Without a teacher."""
OPTIONS = {"losses.soft_targets.temperature": "--temperature"}
"""What the command line calls an option of a loss."""


# --- the rest of a run ----------------------------------------------------------------------------


@dataclass(frozen=True, init=False)
class StudentConfig(Checked):
    """The network that is trained; documented in persona/models/student.py.

    The options of its backbone (`width` and the like of MobileNetV3) are given and written beside
    the others: `StudentConfig("mobilenet_v3_small", width=0.5)`.
    """

    architecture: str
    """A backbone, see persona/models/backbones/."""
    backbone: Any = field(metadata=INLINE)
    """Its options, an instance of its `config_class`."""
    pooling: str = among(POOLINGS)
    """`depthwise`: a global depthwise convolution, which can weigh the places of a face."""
    embedding_size: int | None = between(8, 4096)
    """None: the teacher's, or 512 without one."""
    norm_momentum: float = between(0.0001, 1)
    """Of batch norm's running statistics. torchvision has 0.01, TensorFlow's habit, with which a
    student of a few hundred steps is evaluated with the statistics of an earlier one."""

    def __init__(
        self,
        architecture: str = "mobilenet_v3_small",
        *,
        backbone: Any = None,
        pooling: str = "average",
        embedding_size: int | None = None,
        norm_momentum: float = 0.1,
        **options: Any,
    ) -> None:
        """`options` are the backbone's, in place of `backbone`, which holds them already.

        Raises:
            PersonaError: no such backbone, or a value out of range.
            TypeError: an option that the backbone does not have.
        """
        config_class = BACKBONES.find(architecture, called="student").config_class
        if not isinstance(backbone, config_class):
            backbone = config_class(**(backbone or {}), **options)
        values = {
            "architecture": architecture,
            "backbone": backbone,
            "pooling": pooling,
            "embedding_size": embedding_size,
            "norm_momentum": norm_momentum,
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)
        self.__post_init__()

    @classmethod
    def further(cls, values: Mapping[str, Any]) -> Hints:
        """The options of the backbone that is named, or of the default one."""
        name = values.get("architecture", cls().architecture)
        if not isinstance(name, str):
            return {}
        return _hints(BACKBONES.find(name, called="student").config_class)


@dataclass(frozen=True)
class OptimConfig(Checked):
    """The reference: Adam, its rate divided by 10 at 1/4, 1/2 and 3/4 of the steps."""

    optimizer: str = among(OPTIMIZERS, default="adam")
    lr: float = between(1e-9, 10, default=0.001)
    schedule: str = among(SCHEDULES, default="multistep")
    warmup_epochs: float = between(0, 100_000, default=0.0)
    """In which the rate rises from 0."""
    weight_decay: float = between(0, 1, default=0.0)
    """Of weight matrices and kernels; never of norms and biases."""
    momentum: float = between(0, 0.9999, default=0.9)
    """Of sgd."""
    clip_norm: float = between(0, 1e6, default=0.0)
    """Gradients are scaled down to this norm; 0: never."""
    ema_decay: float = between(0, 0.99999, default=0.0)
    """Of the running mean of the student's weights; 0: none is kept."""


@dataclass(frozen=True)
class AugmentConfig(Checked):
    """How a photo is changed on its way to the networks; probabilities and strengths in [0, 1]."""

    flip: bool = True
    """Mirrored with probability 1/2."""
    crop: float = between(0, 0.5, default=0.0)
    """The largest share of the side that a random crop leaves out, before scaling back."""
    low_resolution: float = between(0, 1, default=0.0)
    """Probability of being reduced two to four times and enlarged again."""
    grey: float = between(0, 1, default=0.0)
    """Probability of losing its colour."""
    jitter: float = between(0, 1, default=0.0)
    """Strength: brightness, contrast and saturation are multiplied by 1 - jitter to 1 + jitter."""
    erase: float = between(0, 1, default=0.0)
    """Probability of a grey square, a tenth to four tenths of the side, over a random place."""

    @property
    def beyond_flip(self) -> bool:
        """Whether anything but mirroring happens."""
        return any((self.crop, self.low_resolution, self.grey, self.jitter, self.erase))


@dataclass(frozen=True)
class DistillConfig(Checked):
    """Everything that a run depends on; written beside it."""

    saved_as: ClassVar = "config.yaml"
    called: ClassVar = "run", "recipe"
    """What messages call a run, and its config."""

    teacher: str = "facenet-vggface2"
    train_set: str = "vggface2"
    test_set: str = "lfw"
    """`none`: no evaluation, the last epoch is kept."""
    epochs: int | None = between(1, LENGTHS["epochs"], default=None)
    """Length of the run; 20 where none of `epochs`, `steps` and `photos` is given."""
    steps: int | None = between(1, LENGTHS["steps"], default=None)
    """Length of the run in optimizer steps."""
    photos: int | None = between(1, LENGTHS["photos"], default=None)
    """Length of the run in photos seen by all processes; each counts whenever it is seen."""
    evaluate_steps: int | None = between(1, 1_000_000_000, default=None)
    """Optimizer steps between evaluations; None: one after each epoch."""
    batch_size: int = between(2, 1_000_000, default=128)  # batch norm cannot learn from one
    """Samples a step on each process."""
    workers: int = between(0, 1024, default=4)
    """Loader processes of each process."""
    cache: str | None = None
    """Folder that keeps the files of sets named by a URL; none: they go when they were read."""
    verify: bool = True
    """Files of a set on this machine are checked against their checksums before their first use."""
    targets: str = among(TARGETS, default="auto")
    """The teacher's vectors: `kept` beside the shards, computed `online`, or kept if there."""
    mixed_precision: str = among(PRECISIONS, default="no")
    """Of the student."""
    teacher_precision: str = among(("auto", *PRECISIONS), default="auto")
    """Of an online teacher; `auto`: bf16 where the processor computes in it, else the student's."""
    compile: str = among(COMPILERS, default="no")
    """A torch.compile backend (`inductor`) for student and online teacher."""
    sync_batch_norm: bool = False
    """Batch norm over the batches of all GPUs."""
    gradient_accumulation_steps: int = between(1, 100_000, default=1)
    seed: int = between(0, 2**31 - 1, default=0)
    checkpoint_steps: int = between(1, 1_000_000_000, default=500)
    """Optimizer steps between checkpoints, beside the one at each epoch's end."""
    tracker: str = checked(_check_trackers, default="wandb")
    """Names of trackers with commas between, or `none`; metrics.jsonl is always written."""
    student: StudentConfig = field(default_factory=StudentConfig)
    losses: LossesConfig = field(
        default_factory=lambda: from_dict(LossesConfig, REFERENCE_LOSSES, where="the defaults")
    )
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [name for name in LENGTHS if getattr(self, name) is not None]
        if len(given) > 1:
            raise PersonaError(
                f"{' and '.join(given)} are lengths of the same run: give one of them"
            )
        if not given:
            object.__setattr__(self, "epochs", EPOCHS)


LEARN_OPTIM: dict[str, Any] = {"lr": 0.0001, "schedule": "constant"}
"""With ten times the rate a few people's photos ruin the embedding of all others."""


@dataclass(frozen=True)
class LearnConfig(Checked):
    """Everything that a run of continual learning depends on; written beside it."""

    saved_as: ClassVar = "learn.yaml"
    called: ClassVar = "run of learning", "config"
    """What messages call a run, and its config."""

    student: str
    """Model ID."""
    on: str
    """The set of those who are to be learned."""
    method: str = among(METHODS)
    old: str | None = None
    """A set of those whom the student knows, for what a method keeps of them."""
    teacher: str | None = None
    """Of `anchor`; None: the one that the student was distilled from."""
    experiences: int = between(1, 10_000, default=1)
    """The set's identities come in so many groups, one after another."""
    steps: int = between(1, 10_000_000, default=200)
    """Of each experience."""
    batch_size: int = between(4, 1_000_000, default=32)  # der++ takes quarters
    """Photos a step on each process, those out of the memory included."""
    memory: int = between(0, 100_000_000, default=200)
    """Photos that may be kept."""
    memory_mb: float | None = between(0, 1e9, default=None)
    """10^6 bytes that these photos, and what is kept with them, may take."""
    hold_out: float = between(0, 0.9, default=0.2)
    """Share of each identity's photos that is measured on and not trained on."""
    mixed_precision: str = among(PRECISIONS, default="no")
    seed: int = between(0, 2**31 - 1, default=0)
    checkpoint_steps: int = between(1, 1_000_000_000, default=100)
    tracker: str = checked(_check_trackers, default="wandb")
    cache: str | None = None
    verify: bool = True
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(**LEARN_OPTIM))
    methods: Mapping[str, Any] = field(default_factory=dict, metadata=INLINE)
    """The options of methods that have some, by `config_name`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        # Those of Persona's own methods stand in every config, others' where they are used.
        wanted = [METHODS.find(name) for name in sorted({*METHODS.built_in, self.method})]
        options = {one.config_name: one.config_class() for one in wanted if one.config_class}
        object.__setattr__(self, "methods", {**options, **self.methods})

    @classmethod
    def further(cls, _values: Mapping[str, Any]) -> Hints:
        """Every method's options."""
        with_options = [one for one in METHODS.load_all().values() if one.config_class]
        return {one.config_name: partial(_itself, one.config_class) for one in with_options}


def _itself(value: T) -> T:
    return value


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
    """Merges defaults < `base` < the YAML file < `overrides` (dotted names) into a recipe.

    Without losses in the file, they are the reference's; without a teacher, hard labels.

    Raises:
        PersonaError: no file, no YAML, an unknown key (naming the nearest), a value of another type
            or out of range.
    """
    values = {**(base or {}), **read_values(path)}
    teacher = overrides.get("teacher", values.get("teacher"))
    # Copied: the command line's values are written into it.
    reference = HARD_LOSSES if teacher == "none" else REFERENCE_LOSSES
    values.setdefault("losses", {name: dict(term) for name, term in reference.items()})
    return build_config(DistillConfig, values, overrides, path)


def load_learn_config(
    overrides: Mapping[str, Any], *, base: Mapping[str, Any] | None = None
) -> LearnConfig:
    """Merges defaults < `base` < `overrides` (dotted names) into a config of learning.

    Raises:
        PersonaError: as `load_config`.
    """
    return build_config(LearnConfig, {"optim": dict(LEARN_OPTIM), **(base or {})}, overrides)


def resume_config(
    kind: type[RunConfig], runs: Path, run: str, overrides: Mapping[str, Any]
) -> RunConfig:
    """The config of an earlier run, whose values `overrides` may name again but not change.

    Only how photos come (`NOT_LEARNED`) may be another than it was.

    Raises:
        PersonaError: no such run, its config is damaged, or a value would change.
    """
    noun, config = kind.called
    known = [path.parent.name for path in runs.glob(f"*/{kind.saved_as}")]
    if run not in known:
        raise unknown(noun, run, known, where=str(runs))
    path = runs / run / kind.saved_as
    try:
        was = build_config(kind, read_yaml(path, "config"), {}, path)
    except (AttributeError, TypeError):  # no mapping, or a value that has no default is missing
        raise PersonaError(f"{path} is damaged: start a new run") from None
    wanted = build_config(kind, read_values(path), overrides, path)
    free = NOT_LEARNED & {item.name for item in dataclasses.fields(kind)}
    was = dataclasses.replace(was, **{name: getattr(wanted, name) for name in free})
    if was != wanted:
        differing = "; ".join(differences(to_dict(was), to_dict(wanted)))
        raise PersonaError(
            f"run {run} has another {config} ({differing}): resume it without these options, or "
            "start a new run"
        )
    return was


def read_values(path: Path | None) -> dict[str, Any]:
    """The values in a config file; none without a file.

    Raises:
        PersonaError: it cannot be read, is no YAML or no mapping.
    """
    values = {} if path is None else read_yaml(path, "config") or {}
    if not isinstance(values, dict):
        raise PersonaError(f"config {path} must be a mapping of names to values")
    return values


def build_config(
    kind: type[T],
    values: dict[str, Any],
    overrides: Mapping[str, Any],
    path: Path | None = None,
) -> T:
    """A config of `values`, which come from a file or a caller, and of dotted names over them.

    Raises:
        PersonaError: an unknown key, a value of another type, missing or out of range; the message
            names the places that it may come from.
    """
    if issubclass(kind, DistillConfig) and any(overrides.get(name) is not None for name in LENGTHS):
        # In whatever the file counts the length of the run.
        values = {name: value for name, value in values.items() if name not in LENGTHS}
    for dotted, value in overrides.items():
        _check_term(dotted, values.get("losses"), overrides, path)
        *groups, name = dotted.split(".")
        target = values
        for depth, group in enumerate(groups, start=1):
            if target.get(group) is None:
                target[group] = {}
            target = target[group]
            if not isinstance(target, dict):
                where = ".".join(groups[:depth])
                if where in overrides:
                    raise PersonaError(f"{dotted}: {where} has no such option")
                raise PersonaError(f"{where}: expected a mapping of names to values")
        target[name] = value
    places = [*([str(path)] if path else []), *(["the command line"] if overrides else [])]
    return from_dict(kind, values, where=" and ".join(places) or "the recipe")


def read_options(
    options: Mapping[str, Any], texts: Iterable[str], twice: Callable[[str, Any], None]
) -> dict[str, Any]:
    """The options of a command that are given, and those of `--option NAME=VALUE`, by dotted name.

    Args:
        options: by dotted name; None: not given.
        texts: each `optim.lr=0.01`; the value is read as YAML.
        twice: told of a name that is given again, and of the value that counts: the last.

    Raises:
        PersonaError: a text that is no name and value.
    """
    given = {name: value for name, value in options.items() if value is not None}
    for text in texts:
        name, value = _parse_option(text)
        if name in given:
            twice(name, value)
        given[name] = value
    return given


def _parse_option(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not value.strip():
        raise PersonaError(f"--option {text}: give a value, as in optim.lr=0.01")
    try:
        return name.strip(), parse_yaml(value, "it")
    except PersonaError:
        raise PersonaError(f"--option {text[:60]}: {value[:40]!r} is no YAML value") from None


def _check_term(dotted: str, losses: Any, overrides: Mapping[str, Any], path: Path | None) -> None:
    """An option of a loss is no wish for that loss; its weight, or the loss itself, is.

    Raises:
        PersonaError: nothing names the loss that an option is of.
    """
    *groups, name = dotted.split(".")
    if groups[:1] != ["losses"] or len(groups) != 2 or name == "weight":
        return
    term = ".".join(groups)
    asked = {term, f"{term}.weight", "losses"} & overrides.keys()
    named = not isinstance(losses, Mapping) or groups[1] in losses
    if groups[1] in LOSSES and not asked and not named:
        raise PersonaError(
            f"{OPTIONS.get(dotted, dotted)} is of the loss {groups[1]}, which "
            f"{path or 'the recipe'} does not have: leave it out, or add the loss with -o "
            f"{term}.weight=1"
        )


# --- plain values to dataclasses and back ---------------------------------------------------------


def from_dict(kind: type[T], values: Mapping[str, Any], *, where: str, prefix: str = "") -> T:
    """Builds a config dataclass from plain values, strictly.

    A dataclass with an `INLINE` field says by its class method `further` which names belong into
    that field.
    """
    items = dataclasses.fields(kind)  # type: ignore[arg-type]
    inline = next((item.name for item in items if item.metadata.get("inline")), "")
    hints, further = _hints(kind), {}
    if inline:
        del hints[inline]
        further = kind.further(values)  # type: ignore[attr-defined]
        hints |= further
    built: dict[str, Any] = {inline: {}} if inline else {}
    for name, value in values.items():
        if name not in hints:
            key = name if isinstance(name, str) else shown(name)
            raise unknown("key", f"{prefix}{key}", [prefix + known for known in hints], where=where)
        target = built[inline] if name in further else built
        target[name] = _convert(hints[name](), value, where=where, name=f"{prefix}{name}")
    return kind(**built)


def _hints(kind: type[Any]) -> dict[str, Callable[[], Any]]:
    """The fields of a dataclass, and what gives their types."""
    hints = get_type_hints(kind)
    return {item.name: partial(_itself, hints[item.name]) for item in dataclasses.fields(kind)}


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


def to_dict(config: Any) -> dict[str, Any]:
    """Plain nested values of a config dataclass, as `from_dict` reads them."""
    values: dict[str, Any] = {}
    for item in dataclasses.fields(config):
        value = _plain(getattr(config, item.name))
        values |= value if item.metadata.get("inline") else {item.name: value}
    return values


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return value


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


def save_config(path: Path, config: Any) -> None:
    """Writes a resolved config as YAML that `--config` takes again."""
    write_atomically(path, yaml.safe_dump(to_dict(config), sort_keys=False).encode())

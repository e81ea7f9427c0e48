"""The configuration of a run, merged once: defaults < YAML file < command line.

A recipe is a YAML file that sets some fields of `DistillConfig`. Its `losses` are a weighted list.
If a recipe has `losses`, only the terms that it names count; the defaults add none.

Each loss, augmentation, learning method and backbone declares its options as a frozen dataclass in
its own file. The registries (persona/registry.py) import the file when a config names it. A field's
declaration states the values that the field accepts:

    @dataclass(frozen=True)
    class ArcFaceConfig(Term):
        margin: float = between(0, 3, default=0.5)
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, ClassVar, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from persona.errors import PersonaError, shown, unknown
from persona.files import write_atomically
from persona.registry import AUGMENTATIONS, BACKBONES, LOSSES, METHODS, TRACKERS, Registry
from persona.workspace import user_path

T = TypeVar("T")
RunConfig = TypeVar("RunConfig", "DistillConfig", "LearnConfig")
PLAIN = (str, bool, int, float, list, dict)
"""Types of the values that YAML gives."""
Hints = Mapping[str, Callable[[], Any]]
"""Names of values, each with a function that returns the value's type."""

LARGEST_YAML = 1 << 16
"""Most characters in a YAML file. A recipe has a few hundred."""
DEEPEST_YAML = 20
"""Most levels of nesting in a YAML file."""
LONGEST_NUMBER = 100
"""Most characters of a number in a YAML file."""

PRECISIONS = ("no", "fp16", "bf16")
OPTIMIZERS = ("adam", "adamw", "muon", "sgd")
SCHEDULES = ("multistep", "cosine", "constant")
POOLINGS = ("average", "depthwise", "full")
FIXED_SIZE = ("depthwise", "full")
"""Poolings that weigh the places of the last maps. Their students take crops of one size."""
TARGETS = ("auto", "kept", "online")
COMPILERS = ("no", "inductor", "eager", "aot_eager", "cudagraphs")
"""Backends of torch.compile."""
EPOCHS = 20
"""Default length of a distillation, in epochs."""
LENGTHS = {"epochs": 100_000, "steps": 1_000_000_000, "photos": 10**12}
"""Units in which the length of a distillation may be given, and the largest value of each."""
STANDARD = ("flip", "crop", "low_resolution", "colour", "erase")
"""Augmentations whose columns every view has, in this order, which is that of views kept on disk.
Other augmentations add columns only where they are in use."""
NOT_LEARNED = frozenset({"workers", "cache", "verify", "tracker", "checkpoint_steps"})
"""Fields that say how photos are read and what is written, not what is learned. A resumed run may
change them."""


# --- what a field may hold ------------------------------------------------------------------------


def between(low: float, high: float, *, default: Any = dataclasses.MISSING) -> Any:
    """A dataclass field that holds a number from `low` to `high`, or None."""
    return field(default=default, metadata={"check": partial(_check_range, low=low, high=high)})


def among(known: Iterable[str], *, default: Any = dataclasses.MISSING) -> Any:
    """A dataclass field that holds one of the names in `known`, or None."""
    return field(default=default, metadata={"check": partial(_check_name, known=known)})


def checked(check: Callable[[str, Any], object], *, default: Any = dataclasses.MISSING) -> Any:
    """A dataclass field whose name and value are passed to `check`, unless the value is None."""
    return field(default=default, metadata={"check": check})


def _check_range(name: str, value: float, *, low: float, high: float) -> None:
    if not low <= value <= high:  # NaN fails this comparison too; `shown` shortens long numbers
        raise PersonaError(f"{name} {shown(value)}: choose {low:g} to {high:g}")


def _check_name(name: str, value: str, *, known: Iterable[str]) -> None:
    if value not in known:
        raise unknown(name, value, known)


def tracker_names(trackers: str) -> tuple[str, ...]:
    """Splits `wandb,tensorboard` into names. `none` gives an empty tuple.

    Raises:
        PersonaError: a name is unknown or given twice.
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
    """A dataclass that checks its fields as `between`, `among` and `checked` declare."""

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, item.name)
            if value is not None and "check" in item.metadata:
                item.metadata["check"](item.name, value)


INLINE: dict[str, Any] = {"inline": True}
"""Metadata of a field whose values stand in a config file beside the other fields, not below it."""


# --- losses ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Term(Checked):
    """Options that every loss term has. A loss with more options derives a class from this one."""

    weight: float = between(0, 1e6, default=1.0)
    """Factor of the term in the total loss. 0 switches the term off."""


@dataclass(frozen=True)
class LossesConfig:
    """The terms of the objective, in the order in which the config names them.

    The total loss is the sum of the terms, each times its weight.

    Raises:
        PersonaError: no term is named, or all weights are 0.
    """

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
        """The options of every loss. A loss without options in the file has its defaults."""
        return {name: partial(_options_of, name) for name in LOSSES}


def _options_of(loss: str) -> Any:
    return LOSSES.find(loss).config_class | None


REFERENCE_LOSSES = {
    "soft_targets": {"weight": 0.9, "temperature": 4.0},
    "hard_labels": {"weight": 0.1},
}
"""The losses of the reference recipe: `0.9 * T² * KL + 0.1 * CE`."""
HARD_LOSSES = {"hard_labels": {"weight": 1.0}}
"""The losses of a training without a teacher."""
OPTIONS = {"losses.soft_targets.temperature": "--temperature"}
"""Names of loss options on the command line."""


# --- the rest of a run ----------------------------------------------------------------------------


@dataclass(frozen=True, init=False)
class StudentConfig(Checked):
    """Options of the student, the network that is trained (persona/models/student.py).

    The options of the backbone, such as `width` of MobileNetV3, stand beside the other fields:
    `StudentConfig("mobilenet_v3_small", width=0.5)`.
    """

    architecture: str
    """Name of the backbone, see persona/models/backbones/."""
    backbone: Any = field(metadata=INLINE)
    """Options of the backbone, an instance of its `config_class`."""
    pooling: str = among(POOLINGS)
    """`average`; `depthwise`: a global depthwise convolution that learns to weigh positions;
    `full`: a linear layer over all positions and channels. The default is the backbone's."""
    embedding_size: int | None = between(8, 4096)
    """Dimensions of the embedding. None means the teacher's, or 512 without a teacher. If the two
    differ, a projection head is trained with the student, see persona/training/projection.py."""
    norm_momentum: float = between(0.0001, 1)
    """Momentum of batch norm's running statistics. torchvision's MobileNetV3 uses 0.01, as
    TensorFlow does. That is too slow for a training of a few hundred steps: the student would be
    evaluated with outdated statistics."""

    def __init__(
        self,
        architecture: str = "mobilenet_v3_small",
        *,
        backbone: Any = None,
        pooling: str | None = None,
        embedding_size: int | None = None,
        norm_momentum: float = 0.1,
        **options: Any,
    ) -> None:
        """Takes the options of the backbone as keywords (`options`) or as `backbone`.

        Raises:
            PersonaError: the backbone is unknown, or a value is out of range.
            TypeError: the backbone does not have one of the options.
        """
        found = BACKBONES.find(architecture, called="student")
        config_class = found.config_class
        if not isinstance(backbone, config_class):
            backbone = config_class(**(backbone or {}), **options)
        values = {
            "architecture": architecture,
            "backbone": backbone,
            "pooling": found.pooling if pooling is None else pooling,
            "embedding_size": embedding_size,
            "norm_momentum": norm_momentum,
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)
        self.__post_init__()

    @classmethod
    def further(cls, values: Mapping[str, Any]) -> Hints:
        """The options of the backbone that `values` name, or of the default backbone."""
        name = values.get("architecture", cls().architecture)
        if not isinstance(name, str):
            return {}
        return _hints(BACKBONES.find(name, called="student").config_class)


@dataclass(frozen=True)
class OptimConfig(Checked):
    """Options of the optimizer and its schedule.

    The defaults are the reference recipe: Adam with a learning rate that is divided by 10 at 1/4,
    1/2 and 3/4 of the steps.
    """

    optimizer: str = among(OPTIMIZERS, default="adam")
    """`adam`, `adamw`, `sgd`, or `muon`, which steps matrices along their orthogonalised momentum
    and all other parameters as `adamw` does."""
    lr: float = between(1e-9, 10, default=0.001)
    schedule: str = among(SCHEDULES, default="multistep")
    warmup_epochs: float = between(0, 100_000, default=0.0)
    """Epochs in which the learning rate rises linearly from 0."""
    weight_decay: float = between(0, 1, default=0.0)
    """Weight decay of weight matrices and kernels. Norm layers and biases have none."""
    momentum: float = between(0, 0.9999, default=0.9)
    """Momentum of SGD."""
    clip_norm: float = between(0, 1e6, default=0.0)
    """Largest L2 norm of the gradient; larger ones are scaled down. 0 means no clipping."""
    ema_decay: float = between(0, 0.99999, default=0.0)
    """Decay of the EMA of the student's weights. 0 means that no EMA is kept."""


@dataclass(frozen=True, init=False)
class AugmentConfig:
    """The augmentations of the training photos (persona/data/augmentations/), with their options.

    The options of all augmentations stand beside each other: `AugmentConfig(crop=0.2, blur=0.1)`.
    """

    options: Mapping[str, Any] = field(metadata=INLINE)
    """The options of the standard augmentations, and of each other one that is in use."""

    def __init__(self, options: Mapping[str, Any] | None = None, **more: Any) -> None:
        """Takes the options as keywords (`more`) or as a mapping (`options`).

        Raises:
            PersonaError: a value is out of range.
            TypeError: no augmentation has one of the options.
        """
        built = _build({**(options or {}), **more})
        plain = {name: value for one in built for name, value in vars(one.options).items()}
        object.__setattr__(self, "options", plain)

    @cached_property
    def augmentations(self) -> tuple[Any, ...]:
        """The augmentations that have columns in a view, in the order of the columns."""
        return tuple(_build(self.options))

    @property
    def beyond_flip(self) -> bool:
        """Whether there is any augmentation besides mirroring."""
        return any(one.in_use for one in self.augmentations if one.name != "flip")

    @classmethod
    def further(cls, values: Mapping[str, Any]) -> Hints:
        """The options of the augmentations."""
        owners = _owners(values)
        return {name: _hints(owner.config_class)[name] for name, owner in owners.items()}


def _build(options: Mapping[str, Any]) -> list[Any]:
    """Builds the standard augmentations, and those others that the options put to use."""
    owners = _owners(options)
    if not options.keys() <= owners.keys():
        unknown_ones = ", ".join(sorted(options.keys() - owners.keys()))
        raise TypeError(f"no augmentation has an option {unknown_ones}")
    others = {owners[name].name for name in options} - {*STANDARD}
    built = []
    for kind in map(AUGMENTATIONS.find, (*STANDARD, *sorted(others))):
        given = {name: value for name, value in options.items() if owners[name] is kind}
        built.append(kind(kind.config_class(**given)))
    return [one for one in built if one.name in STANDARD or one.in_use]


def _owners(wanted: Iterable[Any]) -> dict[str, Any]:
    """Maps the options of augmentations to the class that each belongs to.

    Other packages are only imported if an option in `wanted` is not Persona's own.

    Raises:
        PersonaError: two augmentations have an option of one name.
    """
    owners: dict[str, Any] = {}
    for names in (STANDARD, AUGMENTATIONS.built_in, AUGMENTATIONS.load_all):
        found = names() if callable(names) else {name: AUGMENTATIONS.find(name) for name in names}
        for owner in found.values():
            for item in dataclasses.fields(owner.config_class):
                other = owners.setdefault(item.name, owner)
                if other is not owner:
                    raise PersonaError(
                        f"augmentation {owner.name!r} has the option {item.name!r} of "
                        f"{other.name!r}: choose another name for it"
                    )
        if owners.keys() >= set(wanted):
            break
    return owners


@dataclass(frozen=True)
class MixConfig(Checked):
    """Mixing of two photos of a batch into one, which student and teacher then look at.

    With both kinds, each photo takes one of them at random. The teacher runs online.
    """

    mixup: float | None = between(0.01, 10, default=None)
    """Photos are blended, by shares from a Beta(mixup, mixup) distribution. 1 is uniform."""
    cutmix: float | None = between(0.01, 10, default=None)
    """A rectangle of the other photo is pasted. Its area is from a Beta(cutmix, cutmix)
    distribution."""

    @property
    def in_use(self) -> bool:
        """Whether photos are mixed."""
        return self != MixConfig()


@dataclass(frozen=True)
class DistillConfig(Checked):
    """The config of a distillation, saved in the run's folder.

    Raises:
        PersonaError: a value is out of range, or more than one of `epochs`, `steps` and `photos`
            is given.
    """

    saved_as: ClassVar = "config.yaml"
    called: ClassVar = "run", "recipe"
    """Names of a run and of its config in messages."""

    teacher: str = "facenet-vggface2"
    """Name of the teacher, `none`, or names of several with commas between them."""
    from_model: str | None = None
    """Student to go on from: an ID, `hf://OWNER/NAME`, or the folder of a model. Its architecture
    and options are those of `student`, whose `width` may be larger."""
    train_set: str = "vggface2"
    """The set to train on, or several with weights, such as `utk,aaf*2` (persona/data/mixed.py)."""
    exclude_near: str | None = None
    """Set, perhaps with a cosine similarity, such as `lfw:0.5`. Train photos at least as near to
    one of its photos, by the teacher's kept embeddings, are left out."""
    exclude_duplicates: float | None = between(0, 1, default=None)
    """Cosine similarity from which a photo is left out as nearly the same as an earlier one of its
    set, by the teacher's kept embeddings."""
    test_set: str = "lfw"
    """Set that chooses the best student. `none` means no evaluation: the last student is kept."""
    epochs: int | None = between(1, LENGTHS["epochs"], default=None)
    """Length of the run in epochs; 20 if none of `epochs`, `steps` and `photos` is given."""
    steps: int | None = between(1, LENGTHS["steps"], default=None)
    """Length of the run in optimizer steps."""
    photos: int | None = between(1, LENGTHS["photos"], default=None)
    """Length of the run in photos that all processes see. A photo counts each time it is seen."""
    evaluate_steps: int | None = between(1, 1_000_000_000, default=None)
    """Optimizer steps between evaluations. None means one evaluation after each epoch."""
    batch_size: int = between(2, 1_000_000, default=128)  # batch norm cannot learn from one sample
    """Samples in a batch of one process."""
    workers: int = between(0, 1024, default=4)
    """Loader processes of each training process."""
    cache: str | None = None
    """Folder that keeps downloaded shards. None means that they are deleted after reading."""
    verify: bool = True
    """Whether files of a local set are checked against their checksums before first use."""
    targets: str = among(TARGETS, default="auto")
    """Where the teacher's embeddings come from: `kept` beside the shards, computed `online`, or
    `auto`: kept if they are there, else online."""
    mixed_precision: str = among(PRECISIONS, default="no")
    """Precision of the student's forward pass."""
    teacher_precision: str = among(("auto", *PRECISIONS), default="auto")
    """Precision of an online teacher. `auto` is bf16 where the device computes in it, otherwise the
    student's precision."""
    compile: str = among(COMPILERS, default="no")
    """torch.compile backend for the student and an online teacher, as `inductor`."""
    sync_batch_norm: bool = False
    """Whether batch norm uses the statistics of all GPUs' batches."""
    gradient_accumulation_steps: int = between(1, 100_000, default=1)
    """Batches per optimizer step on each process."""
    seed: int = between(0, 2**31 - 1, default=0)
    checkpoint_steps: int = between(1, 1_000_000_000, default=500)
    """Optimizer steps between checkpoints. The end of each epoch writes another one."""
    tracker: str = checked(_check_trackers, default="wandb")
    """Names of trackers, separated by commas, or `none`. metrics.jsonl is always written."""
    student: StudentConfig = field(default_factory=StudentConfig)
    losses: LossesConfig = field(
        default_factory=lambda: from_dict(LossesConfig, REFERENCE_LOSSES, where="the defaults")
    )
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    mix: MixConfig = field(default_factory=MixConfig)
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


@dataclass(frozen=True)
class LearnOptimConfig(OptimConfig):
    """Options of the optimizer in continual learning.

    The default learning rate is a tenth of that of a distillation, and constant. With ten times as
    much, the photos of a few people ruin the embeddings of all others.

    Raises:
        PersonaError: a value is out of range, or `ema_decay` is given: learning keeps no EMA.
    """

    lr: float = between(1e-9, 10, default=0.0001)
    schedule: str = among(SCHEDULES, default="constant")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ema_decay:
            raise PersonaError("learning keeps no EMA of the weights: leave optim.ema_decay out")


@dataclass(frozen=True)
class LearnConfig(Checked):
    """The config of a run of continual learning, saved in the run's folder."""

    saved_as: ClassVar = "learn.yaml"
    called: ClassVar = "run of learning", "config"
    """Names of a run and of its config in messages."""

    student: str
    """ID of the model that learns."""
    on: str
    """Set of the new identities to learn."""
    method: str = among(METHODS)
    old: str | None = None
    """Set of identities that the student already knows, from which a method keeps exemplars."""
    teacher: str | None = None
    """Teacher of the method `anchor`. None means the one that the student was distilled from."""
    experiences: int = between(1, 10_000, default=1)
    """Number of groups into which the set's identities are split. They are learned in turn."""
    steps: int = between(1, 10_000_000, default=200)
    """Optimizer steps of each experience."""
    batch_size: int = between(4, 1_000_000, default=32)  # der++ takes quarters
    """Photos in a batch of one process, replayed photos of the memory included."""
    memory: int = between(0, 100_000_000, default=200)
    """Most photos in the memory."""
    memory_mb: float | None = between(0, 1e9, default=None)
    """Largest size of the memory in MB (10^6 bytes): photos and all that is kept with them."""
    hold_out: float = between(0, 0.9, default=0.2)
    """Share of each identity's photos that is kept for evaluation and not trained on."""
    mixed_precision: str = among(PRECISIONS, default="no")
    seed: int = between(0, 2**31 - 1, default=0)
    checkpoint_steps: int = between(1, 1_000_000_000, default=100)
    tracker: str = checked(_check_trackers, default="wandb")
    cache: str | None = None
    verify: bool = True
    optim: LearnOptimConfig = field(default_factory=LearnOptimConfig)
    methods: Mapping[str, Any] = field(default_factory=dict, metadata=INLINE)
    """Options of the methods that have any, by `config_name`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        # Every config holds the options of all built-in methods; of others, only the one in use.
        wanted = [METHODS.find(name) for name in sorted({*METHODS.built_in, self.method})]
        options = {one.config_name: one.config_class() for one in wanted if one.config_class}
        object.__setattr__(self, "methods", {**options, **self.methods})

    @classmethod
    def further(cls, _values: Mapping[str, Any]) -> Hints:
        """The options of every method."""
        with_options = [one for one in METHODS.load_all().values() if one.config_class]
        return {one.config_name: partial(_itself, one.config_class) for one in with_options}


def _itself(value: T) -> T:
    return value


_TOO_DEEP = f"over {DEEPEST_YAML} values inside each other"


class _Loader(yaml.SafeLoader):
    """A YAML loader of plain values. It refuses aliases: a few lines can expand to gigabytes."""

    depth = 0

    def fetch_flow_collection_start(self, kind: Any) -> None:
        """Refuses deep brackets here, before the scanner looks for a key behind all of them."""
        if self.flow_level >= DEEPEST_YAML:
            raise yaml.MarkedYAMLError(problem=_TOO_DEEP, problem_mark=self.get_mark())
        super().fetch_flow_collection_start(kind)

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Refuses aliases and values that are nested too deeply."""
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

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Refuses a key that stands twice: YAML silently drops all but the last of its values."""
        known = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag.endswith(":merge"):
                continue
            if (key.tag, key.value) in known:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {shown(key.value)} stands twice: keep one of them",
                    problem_mark=key.start_mark,
                )
            known.add((key.tag, key.value))
        return super().construct_mapping(node, deep)

    def construct_number(self, node: yaml.ScalarNode) -> Any:
        """Refuses long numbers: one of 30,000 digits in base 60 takes seconds to read."""
        if len(node.value) > LONGEST_NUMBER:
            raise yaml.MarkedYAMLError(problem="a very long number", problem_mark=node.start_mark)
        whole = node.tag.endswith("int")
        return self.construct_yaml_int(node) if whole else self.construct_yaml_float(node)


for _kind in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader.construct_number)


def parse_yaml(text: str, what: str) -> Any:
    """Parses untrusted YAML. All YAML is read by this function.

    Raises:
        PersonaError: the text is no YAML, too long or too deep, or has aliases. The message begins
            with `what`.
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
    """Reads and parses a YAML file.

    Raises:
        PersonaError: the file cannot be read, is no UTF-8, or `parse_yaml` refuses it.
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

    If the file names no losses, they are those of the reference recipe, or hard labels if the
    teacher is `none`.

    Raises:
        PersonaError: the file is missing or no YAML, a key is unknown (the message names the
            nearest), or a value has the wrong type or is out of range.
    """
    values = {**(base or {}), **read_values(path)}
    teacher = overrides.get("teacher", values.get("teacher"))
    # Copied, because `build_config` writes the command line's values into it.
    reference = HARD_LOSSES if teacher == "none" else REFERENCE_LOSSES
    values.setdefault("losses", {name: dict(term) for name, term in reference.items()})
    return build_config(DistillConfig, values, overrides, path)


def load_learn_config(
    overrides: Mapping[str, Any], *, base: Mapping[str, Any] | None = None
) -> LearnConfig:
    """Merges defaults < `base` < `overrides` (dotted names) into a config of continual learning.

    Raises:
        PersonaError: a key is unknown (the message names the nearest), or a value has the wrong
            type or is out of range.
    """
    return build_config(LearnConfig, dict(base or {}), overrides)


def resume_config(
    kind: type[RunConfig],
    runs: Path,
    run: str,
    overrides: Mapping[str, Any],
    wanted: RunConfig | None = None,
) -> RunConfig:
    """Loads the config of an earlier run that is resumed.

    Args:
        kind: the kind of config.
        runs: the folder of runs.
        run: ID of the run.
        overrides: values by dotted name. They may repeat those of the run, but may change only the
            fields in `NOT_LEARNED`.
        wanted: the whole config, for which the same holds. None means that there are only
            `overrides`.

    Raises:
        PersonaError: there is no such run, its config is damaged, or a value would change.
    """
    path, config = find_run(kind, runs, run), kind.called[1]
    try:
        was = build_config(kind, read_yaml(path, "config"), {}, path)
    except (AttributeError, TypeError):  # no mapping, or a required value is missing
        raise PersonaError(f"{path} is damaged: start a new run") from None
    mend = "resume it with the same values"
    if wanted is None:
        wanted = build_config(kind, read_values(path), overrides, path)
        mend = "resume it without these options"
    free = NOT_LEARNED & {item.name for item in dataclasses.fields(kind)}
    was = dataclasses.replace(was, **{name: getattr(wanted, name) for name in free})
    if was != wanted:
        differing = "; ".join(differences(to_dict(was), to_dict(wanted)))
        raise PersonaError(
            f"run {run} has another {config} ({differing}): {mend}, or start a new run"
        )
    return was


def find_run(kind: type[DistillConfig] | type[LearnConfig], runs: Path, run: str) -> Path:
    """Finds the config file of an earlier run.

    Raises:
        PersonaError: there is no such run.
    """
    known = [path.parent.name for path in runs.glob(f"*/{kind.saved_as}")]
    if run not in known:
        raise unknown(kind.called[0], run, known, where=str(runs))
    return runs / run / kind.saved_as


def read_values(path: Path | None) -> dict[str, Any]:
    """Reads the values of a config file. Without a file they are empty.

    Raises:
        PersonaError: the file cannot be read, is no YAML or no mapping.
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
    """Builds a config from `values` and the `overrides` (dotted names), which take precedence.

    `values` come from the file at `path` or from a caller. An override that is a mapping replaces
    the whole group of `values`. Overrides of single values in that group count as well, in whatever
    order they are given.

    Raises:
        PersonaError: a key is unknown, or a value is missing, out of range or of the wrong type.
            The message names the places that the value may come from.
    """
    if issubclass(kind, DistillConfig) and any(overrides.get(name) is not None for name in LENGTHS):
        # The command line's length replaces the file's, also where their units differ.
        values = {name: value for name, value in values.items() if name not in LENGTHS}
    # Groups come before their values, which would be lost if the group replaced them.
    for dotted, value in sorted(overrides.items(), key=lambda item: item[0].count(".")):
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
        # Copied, because values of the group are written into it.
        target[name] = copy.deepcopy(value) if isinstance(value, dict) else value
    places = [*([str(path)] if path else []), *(["the command line"] if overrides else [])]
    return from_dict(kind, values, where=" and ".join(places) or "the recipe")


def read_options(
    options: Mapping[str, Any],
    texts: Iterable[str],
    twice: Callable[[str, Any], None],
    *,
    defaults: Mapping[str, Any] | None = None,
    fixed: Collection[str] = (),
) -> dict[str, Any]:
    """Collects the options of a command and of its `--option NAME=VALUE`, by dotted name.

    Args:
        options: options by dotted name. None means that the option is not given.
        texts: texts like `optim.lr=0.01`. The value is read as YAML.
        twice: called with a name that is given again, and with its last value, which counts.
        defaults: the command's own values of options that are not given.
        fixed: names of values that the command sets itself, so that no text may give them.

    Raises:
        PersonaError: a text is not a name and a value, its name is fixed, or `check_given_once`
            refuses the names.
    """
    given = {name: value for name, value in options.items() if value is not None}
    for text in texts:
        name, value = _parse_option(text)
        if name in fixed:
            raise PersonaError(f"-o {name}: this command sets {name} itself: leave it out")
        if name in given:
            twice(name, value)
        given[name] = value
    check_given_once(given)
    return {**(defaults or {}), **given}


def check_given_once(given: Mapping[str, Any]) -> None:
    """Checks that no mapping, as `optim`, gives a value that is also given alone, as `optim.lr`.

    Raises:
        PersonaError: one does.
    """
    for group, values in given.items():
        if not isinstance(values, Mapping):
            continue
        for name in flat(values, f"{group}."):
            if name in given:
                raise PersonaError(
                    f"{name} is given twice, once in {group}={{…}}: leave one of them out"
                )


def _parse_option(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not value.strip():
        raise PersonaError(f"--option {text}: give a value, as in optim.lr=0.01")
    try:
        return name.strip(), parse_yaml(value, "it")
    except PersonaError:
        raise PersonaError(f"--option {text[:60]}: {value[:40]!r} is no YAML value") from None


def _check_term(dotted: str, losses: Any, overrides: Mapping[str, Any], path: Path | None) -> None:
    """Refuses an option of a loss that the config does not have.

    Giving such an option does not add the loss. Giving its weight, or the loss itself, does.

    Raises:
        PersonaError: neither the config nor another override names the loss.
    """
    *groups, name = dotted.split(".")
    if groups[:1] != ["losses"] or len(groups) != 2 or name == "weight":
        return
    term = ".".join(groups)
    asked = {term, f"{term}.weight"} & overrides.keys()
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

    The class method `further` of a dataclass with an `INLINE` field lists the names of that field.

    Raises:
        PersonaError: a key is unknown (the message names the nearest), or a value has the wrong
            type or is out of range.
        TypeError: a value without a default is missing.
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


def build_given(kind: type[T], given: Mapping[str, Any], *, where: str) -> T:
    """Builds a dataclass of options from those that a program or `-o NAME=VALUE` gives by name.

    Plain values are checked against the type of their field. Others are taken as they are.

    Raises:
        PersonaError: as in `from_dict`.
    """
    plain = {name: value for name, value in given.items() if isinstance(value, PLAIN)}
    built: Any = from_dict(kind, plain, where=where)
    whole: T = dataclasses.replace(built, **{n: v for n, v in given.items() if n not in plain})
    return whole


def names_of(kind: type[Any]) -> list[str]:
    """The names of the options that a dataclass holds."""
    return [item.name for item in dataclasses.fields(kind)]


def build_chosen(
    registry: Registry[Any],
    name: str,
    given: Mapping[str, Any],
    *,
    flags: Mapping[str, str] | None = None,
) -> Any:
    """Builds the options of one class of a registry from those that are given, by name.

    Args:
        registry: classes with a dataclass of options, their `config_class`. A flag of the command
            line that is called as the registry's kind chooses one of them.
        name: the name of the class.
        given: the options.
        flags: options whose flag has another name.

    Raises:
        PersonaError: the class does not take an option (the message names those that do), or a
            value is of the wrong type or out of range.
    """
    kind = registry.find(name).config_class
    own = names_of(kind)
    for option in (option for option in given if option not in own):
        classes = registry.load_all().items()
        known = [n for n, other in classes if option in names_of(other.config_class)]
        if not known:
            raise unknown("option", option, own, where=f"{registry.kind} {name}")
        shown = f"-o {option}"
        if any(n in registry.built_in for n in known):
            shown = f"--{(flags or {}).get(option, option.replace('_', '-'))}"
        raise PersonaError(
            f"{shown} goes with --{registry.kind} {' or '.join(known)}, not with {name}"
        )
    return build_given(kind, given, where=f"the options of {registry.kind} {name}")


def _hints(kind: type[Any]) -> dict[str, Callable[[], Any]]:
    """The fields of a dataclass, each with a function that returns its type."""
    hints = get_type_hints(kind)
    return {item.name: partial(_itself, hints[item.name]) for item in dataclasses.fields(kind)}


def _convert(hint: Any, value: Any, *, where: str, name: str) -> Any:
    allowed = get_args(hint) if get_origin(hint) in {Union, UnionType} else (hint,)
    nested = dataclasses.is_dataclass(allowed[0])
    if value is None and NoneType in allowed:
        if not nested:
            return None
        value = {}  # a term that is named without options has its defaults
    allowed = tuple(kind for kind in allowed if kind is not NoneType)
    if nested:
        if not isinstance(value, Mapping):
            raise PersonaError(f"{name} in {where}: expected a mapping of names to values")
        return from_dict(allowed[0], value, where=where, prefix=f"{name}.")
    if get_origin(allowed[0]) in (tuple, Sequence):  # a text is a sequence too, of letters
        if not isinstance(value, list):
            raise PersonaError(f"{name} in {where}: expected a list, found {shown(value)}")
        item = get_args(allowed[0])[0]
        return tuple(_convert(item, one, where=where, name=name) for one in value)
    allowed = tuple(get_origin(kind) or kind for kind in allowed)  # dict[str, Any] becomes dict
    if float in allowed and not isinstance(value, bool):
        with contextlib.suppress(ValueError, TypeError, OverflowError):
            # YAML 1.1 reads 1e-3 as a string, and 1 as an integer. NumPy's floats are no YAML.
            return float(value)
    if Path in allowed and isinstance(value, str):
        value = user_path(value)
    if str in allowed and value is False:
        return "no"  # YAML 1.1 reads a bare `no` as false
    if isinstance(value, bool) != (bool in allowed) or not isinstance(value, allowed):
        wanted = " or ".join(getattr(kind, "__name__", str(kind)) for kind in allowed)
        raise PersonaError(f"{name} in {where}: expected {wanted}, found {shown(value)}")
    return str(value) if isinstance(value, str) else value  # NumPy's texts are no YAML either


def to_dict(config: Any) -> dict[str, Any]:
    """Converts a config dataclass to plain nested values, which `from_dict` reads."""
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
    """Lists the differences of two nested mappings as text: `optim.lr: 0.001 is now 0.5`."""
    before, after = flat(was), flat(now)
    return [
        f"{name}: {before.get(name)} is now {after.get(name)}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens nested values to dotted names.

    Example:
        >>> flat({"epochs": 2, "steps": None, "optim": {"lr": 0.1}})
        {'epochs': 2, 'steps': None, 'optim.lr': 0.1}
    """
    found: dict[str, Any] = {}
    for name, value in values.items():
        nested = isinstance(value, Mapping)
        found |= flat(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value}
    return found


def save_config(path: Path, values: Mapping[str, Any]) -> None:
    """Writes the plain values of a resolved config (`to_dict`) as YAML, which `--config` reads."""
    write_atomically(path, yaml.safe_dump(dict(values), sort_keys=False).encode())

"""The configuration of a distillation run: defaults < YAML file < command line, merged once."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from persona.errors import PersonaError, unknown
from persona.files import write_atomically

T = TypeVar("T")

PRECISIONS = ("no", "fp16", "bf16")
SCHEDULES = ("multistep", "constant")
TRACKERS = ("wandb", "none")
STUDENTS = ("mobilenet_v3_small", "mobilenet_v3_large")


@dataclass(frozen=True)
class LossConfig:
    """`soft_weight * T² * KL + hard_weight * CE`: the reference recipe's weights."""

    temperature: float = 4.0
    soft_weight: float = 0.9
    hard_weight: float = 0.1

    def __post_init__(self) -> None:
        _check("temperature", self.temperature, 0.01, 1000)
        _check("soft_weight", self.soft_weight, 0, 1e6)
        _check("hard_weight", self.hard_weight, 0, 1e6)
        if not self.soft_weight + self.hard_weight:
            raise PersonaError("soft_weight and hard_weight are both 0: there is nothing to learn")


@dataclass(frozen=True)
class OptimConfig:
    """Adam, its rate divided by 10 at 1/4, 1/2 and 3/4 of the steps."""

    lr: float = 0.001
    schedule: str = "multistep"

    def __post_init__(self) -> None:
        _check("lr", self.lr, 1e-9, 10)
        _among("schedule", self.schedule, SCHEDULES)


@dataclass(frozen=True)
class DistillConfig:
    """Everything that a run depends on; written beside it."""

    student: str = "mobilenet_v3_small"
    teacher: str = "facenet-vggface2"
    train_set: str = "vggface2"
    test_set: str = "lfw"
    """`none`: no evaluation, the last epoch is kept."""
    epochs: int = 20
    batch_size: int = 128
    """Samples a step on each process."""
    workers: int = 4
    """Loader processes of each process."""
    mixed_precision: str = "no"
    gradient_accumulation_steps: int = 1
    seed: int = 0
    checkpoint_steps: int = 500
    """Optimizer steps between checkpoints, beside the one at each epoch's end."""
    tracker: str = "wandb"
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)

    def __post_init__(self) -> None:
        _among("student", self.student, STUDENTS)
        _check("epochs", self.epochs, 1, 100_000)
        _check("batch_size", self.batch_size, 2, 1_000_000)  # batch norm cannot learn from one
        _check("workers", self.workers, 0, 1024)
        _check("gradient_accumulation_steps", self.gradient_accumulation_steps, 1, 100_000)
        _check("seed", self.seed, 0, 2**31 - 1)
        _check("checkpoint_steps", self.checkpoint_steps, 1, 1_000_000_000)
        _among("mixed_precision", self.mixed_precision, PRECISIONS)
        _among("tracker", self.tracker, TRACKERS)


def _check(name: str, value: float, low: float, high: float) -> None:
    if not math.isfinite(value) or not low <= value <= high:
        raise PersonaError(f"{name} {value}: choose {low:g} to {high:g}")


def _among(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise unknown(name, value, known)


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
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except OSError as error:
            raise PersonaError(f"cannot read config {path}: {error.strerror}") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            line = getattr(getattr(error, "problem_mark", None), "line", None)
            place = "" if line is None else f" (line {line + 1})"
            raise PersonaError(f"config {path} is not valid YAML{place}") from None
        if not isinstance(values, dict):
            raise PersonaError(f"config {path} must be a mapping of names to values")
    values = {**(base or {}), **values}
    for dotted, value in overrides.items():
        group, _, name = dotted.rpartition(".")
        target = values.setdefault(group, {}) if group else values
        if not isinstance(target, dict):
            raise PersonaError(f"{group}: expected a mapping of names to values")
        target[name] = value
    return from_dict(DistillConfig, values, where=str(path) if path else "the command line")


def from_dict(kind: type[T], values: Mapping[str, Any], *, where: str, prefix: str = "") -> T:
    """Builds a config dataclass from plain values, strictly."""
    hints = get_type_hints(kind)
    known = {item.name for item in dataclasses.fields(kind)}  # type: ignore[arg-type]
    built: dict[str, Any] = {}
    for name, value in values.items():
        if name not in known:
            raise unknown("key", f"{prefix}{name}", [prefix + k for k in known], where=where)
        built[name] = _convert(hints[name], value, where=where, name=f"{prefix}{name}")
    return kind(**built)


def _convert(hint: Any, value: Any, *, where: str, name: str) -> Any:
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise PersonaError(f"{name} in {where}: expected a mapping of names to values")
        return from_dict(hint, value, where=where, prefix=f"{name}.")  # type: ignore[arg-type]
    allowed = get_args(hint) if get_origin(hint) in {Union, UnionType} else (hint,)
    if float in allowed and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if str in allowed and value is False:
        return "no"  # YAML 1.1 reads a bare `no` as false
    if isinstance(value, bool) != (bool in allowed) or not isinstance(value, allowed):
        wanted = " or ".join(getattr(kind, "__name__", str(kind)) for kind in allowed)
        raise PersonaError(f"{name} in {where}: expected {wanted}, found {value!r}")
    return value


def to_dict(config: DistillConfig) -> dict[str, Any]:
    """Plain nested values, as `from_dict` reads them."""
    return dataclasses.asdict(config)


def save_config(path: Path, config: DistillConfig) -> None:
    """Writes a resolved config as YAML that `--config` takes again."""
    write_atomically(path, yaml.safe_dump(to_dict(config), sort_keys=False).encode())

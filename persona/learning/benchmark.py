"""`persona learn benchmark`: all methods on one stream of identities, under one budget.

1. identities are put in an order by seed: a base, then so many experiences
2. the student learns the base: by a method's own loss where that is another than cross-entropy
   (`own_base`), else once an order, and the methods take it up from there
3. each method learns the experiences; after each, everything is measured

- seen: accuracy on the test photos of all identities so far
- R, up to the diagonal: on those of one experience, told from all identities so far
- R beyond it, and b: on those of an experience to come, told from its own people by the means of
  their training photos: what the space gives before anybody trained on them
- outside: pairs of photos of people who are not in the stream: what a face model must not lose

    runs/benchmark-<digest>/order-<seed>-<method>.json   what one method did over one order

The digest is of student, sets and settings. A run that is there is not run again, so that a
benchmark that was killed goes on, and one with more orders or methods begins where the smaller one
ended. A method whose loss is not finite has failed over that order, and the others go on.

Shapes: T experiences, N photos, P pairs.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import io
import json
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from persona.config import NOT_LEARNED, LearnConfig, to_dict
from persona.data.shards import Manifest, open_set
from persona.data.storage import SetFolder
from persona.data.targets import TargetReader
from persona.errors import PersonaError
from persona.files import folder_lock, read_json, write_atomically, write_json
from persona.learning import metrics
from persona.learning.learner import Learner
from persona.learning.means import ClassMeans
from persona.learning.methods import METHODS, Context
from persona.learning.outside import Outside, left_out, pairs_of_set
from persona.learning.photos import Photos
from persona.learning.run import open_anchor
from persona.learning.stream import Experience, build_experience, in_groups, in_order
from persona.models import store
from persona.models.cards import Card, find_model
from persona.models.student import Student
from persona.report.plain import Curves
from persona.training.devices import agree, build_accelerator
from persona.training.meter import NotFiniteError
from persona.training.teacher import Teacher
from persona.workspace import Workspace, user_path

log = logging.getLogger(__name__)

VERSION = 2
"""Of how methods learn and what is measured: runs of another one are not taken up."""
HIGHER = ("incremental", "final", "backward", "forward")
FIGURES = (*HIGHER, "forgetting", "outside_auc", "outside_eer", "seconds", "kept_bytes")
"""Of a method, as mean and standard deviation over the orders."""


def benchmark(
    config: LearnConfig,
    workspace: Workspace,
    *,
    chosen: Sequence[str],
    base: float,
    seeds: int,
    test_set: str | None,
    told: Callable[[str], None] = lambda _line: None,
) -> dict[str, Any]:
    """Runs all methods over `seeds` orders of the identities; the figures as JSON holds them.

    Args:
        config: student, set, steps, memory and options; its method and seed are the first.
        workspace: where sets and models lie.
        chosen: names of methods.
        base: share of the identities that are learned first.
        seeds: how many orders.
        test_set: of people outside the stream; None: a fifth of the set's identities stay outside.
        told: gets a line after each method.

    Raises:
        PersonaError: what a user can mend.
    """
    if not 0 < base < 1:
        raise PersonaError(f"base {base}: choose a share between 0 and 1")
    accelerator = build_accelerator(config.mixed_precision)
    parent = find_model(config.student, workspace.models)
    cache = user_path(config.cache) if config.cache else None
    new, *others = (
        open_set(name, workspace.shards, cache, verify=config.verify)
        for name in (config.on, test_set)
        if name is not None
    )
    for _, manifest in (new, *others):
        manifest.check_crops(f"student {parent.id}", parent.image_size, False)
    photos, other = Photos([new]), others[0] if others else None
    bench = Bench(config, workspace, parent, new, photos, accelerator, base, other)
    first = bench.order(config.seed)
    folder = bench.folder
    for method in chosen:  # what a method cannot work with is found before the first step
        bench.learner(bench.student(), method, config.seed).check(first.stream)
    wanted = [(seed, m) for seed in range(config.seed, config.seed + seeds) for m in chosen]
    with ExitStack() as stack:
        if accelerator.is_main_process:
            stack.enter_context(folder_lock(folder, doing="running the benchmark of"))
        done = agree(
            accelerator, [read_run(folder, *which, bench.teacher_of(which[1])) for which in wanted]
        )
        there = sum(run is not None for run in done)
        if there:
            told(f"{there} of {len(done)} runs are in {folder} already; without it all run anew")
        order, runs = first, []
        failed: list[dict[str, Any]] = []
        for (seed, method), run in zip(wanted, done, strict=True):
            if run is not None:
                runs.append(run)
                continue
            if order.seed != seed:
                order = bench.order(seed)
            try:
                runs.append(run := bench.run(method, order))
            except NotFiniteError as error:
                if accelerator.num_processes > 1:
                    raise  # the others wait for this one's gradients
                failed.append({"method": method, "seed": seed, "reason": str(error)})
                told(f"order {seed}, {method}: failed: {error}")
                continue
            if accelerator.is_main_process:
                write_json(run_path(folder, seed, method), run)
            figures = {name: run[name] for name in ("incremental", "final", "forgetting")}
            shown = ", ".join(f"{name} {value:.3f}" for name, value in figures.items())
            told(f"order {seed}, {method}: {shown}, {run['seconds']:.0f} s")
    accelerator.end_training()
    stream = first.stream
    return {
        "student": parent.id,
        "set": new[1].name,
        "outside": test_set or f"a fifth of {new[1].name}",
        "identities": [len(e.identities) for e in stream],
        "photos": {"train": [len(e.train) for e in stream], "test": [len(e.test) for e in stream]},
        "steps": [bench.steps_of(e, stream) for e in stream],
        "batch_size": config.batch_size,
        "memory": {"photos": config.memory, "mb": config.memory_mb},
        "seeds": seeds,
        "methods": {
            method: summary(
                [run for run in runs if run["method"] == method],
                [run["seed"] for run in failed if run["method"] == method],
            )
            for method in chosen
        },
        "runs": runs,
        "failed": failed,
    }


def run_path(folder: Path, seed: int, method: str) -> Path:
    """Where the figures of one method over one order are kept."""
    return folder / f"order-{seed}-{method}.json"


def read_run(folder: Path, seed: int, method: str, teacher: str) -> dict[str, Any] | None:
    """The figures of a run that came to its end; None where there are none.

    Raises:
        PersonaError: the file is damaged, or the teacher was not the one of this digest.
    """
    path = run_path(folder, seed, method)
    if not path.exists():
        return None
    found = read_json(path, what="run of a benchmark")
    if (
        not isinstance(found, dict)
        or (found.get("seed"), found.get("method")) != (seed, method)
        or not found.keys() >= {*FIGURES, "seen", "outside_before"}
    ):
        raise PersonaError(f"{path} is no run of {method} over order {seed}: remove it")
    if found.get("teacher", "") != teacher:
        raise PersonaError(
            f"{path} is of a teacher with other weights: restore them, or remove the file"
        )
    return found


@dataclass
class Order:
    """One order of the identities, and what the student was worth before it."""

    seed: int
    stream: list[Experience]
    outside: Outside
    start: list[float]
    """(T,) b: accuracies before the stream."""
    outside_before: dict[str, Any]
    ready: Student | None = None
    """The student that knows the base by cross-entropy, once there is one."""


@dataclass
class Bench:
    """What the runs share."""

    config: LearnConfig
    workspace: Workspace
    parent: Card
    new: tuple[SetFolder, Manifest]
    photos: Photos
    accelerator: Accelerator
    base: float
    test_set: tuple[SetFolder, Manifest] | None
    anchor: tuple[Teacher | None, TargetReader | None, str] | None = None
    """The teacher, its kept vectors and the digest of both, once they are open."""

    @cached_property
    def folder(self) -> Path:
        """Where the runs are kept."""
        return self.workspace.runs / f"benchmark-{self.digest()}"

    def teacher_of(self, method: str) -> str:
        """Digest of the teacher that a method asks; empty: none."""
        return self.anchor[2] if method == "anchor" and self.anchor is not None else ""

    def digest(self) -> str:
        """Of all that a run depends on but its method and order, in 12 hex digits."""
        config = to_dict(self.config)
        without = NOT_LEARNED | {"method", "tracker"}
        origin = {
            "version": VERSION,
            "config": {k: v for k, v in config.items() if k not in without},
            "student": self.parent.weights_sha256,
            "set": self.new[1].digest,
            "base": self.base,
            "outside": self.test_set and self.test_set[1].digest,
            "processes": self.accelerator.num_processes,
        }
        return hashlib.sha256(json.dumps(origin, sort_keys=True).encode()).hexdigest()[:12]

    def student(self) -> Student:
        """The student as it is stored, less its last layer: the stream begins with nobody."""
        stored = store.load_model(self.parent, self.workspace.models)
        config = dataclasses.replace(stored.config, embedding_size=stored.embedding_size)
        bare = Student(config, 0, head="none", image_size=stored.image_size)
        kept = bare.state_dict().keys()
        bare.load_state_dict({n: v for n, v in stored.state_dict().items() if n in kept})
        return bare

    def order(self, seed: int) -> Order:
        """The experiences of one order, the base first, and who is outside."""
        everything = np.arange(len(self.photos))
        names = in_order(self.photos, everything, seed)
        if self.test_set is None:
            away, names = names[: len(names) // 5], names[len(names) // 5 :]
            outside = left_out(self.photos, away, seed, self.new[1].name)
        else:
            outside = pairs_of_set(*self.test_set, self.photos)
        first = round(self.base * len(names))
        if first < 2 or len(names) - first < self.config.experiences:
            raise PersonaError(
                f"{len(names)} identities do not make a base of {self.base:g} and "
                f"{self.config.experiences} experiences: choose fewer --experiences or another "
                "--base"
            )
        groups = [names[:first], *in_groups(names[first:], self.config.experiences)]
        experiences = [
            build_experience(
                self.photos, number, group, everything, self.config.hold_out, self.config.seed
            )
            for number, group in enumerate(groups)
        ]
        if not all(len(e.test) for e in experiences):
            raise PersonaError(
                f"an experience of set {self.new[1].name} has no photo to measure on: give "
                "--hold-out a share above 0, or fewer --experiences"
            )
        context = self.learner(self.student(), "finetune", seed).context
        start = [to_come(context, experience) for experience in experiences]
        return Order(seed, experiences, outside, start, outside.measure(context))

    def learn_base(self, method: str, order: Order) -> Learner:
        """A learner of the method that has learned the base."""
        seed, experience = order.seed, order.stream[0]
        steps = self.steps_of(experience, order.stream)
        if METHODS.find(method).own_base:
            learner = self.learner(self.student(), method, seed, steps)
            learner.learn(experience)
            # From here on by the steps of a later experience.
            learner.config = dataclasses.replace(learner.config, steps=self.config.steps)
            return learner
        if order.ready is None:
            plain = self.learner(self.student(), "finetune", seed, steps)
            plain.learn(experience)
            order.ready = plain.student
        learner = self.learner(copy.deepcopy(order.ready), method, seed)
        learner.adopt(experience)
        return learner

    def steps_of(self, experience: Experience, stream: Sequence[Experience]) -> int:
        """As many an identity in the base as in the later experiences."""
        later = stream[1:]
        share = len(experience.identities) * len(later) / sum(len(e.identities) for e in later)
        return self.config.steps if experience.number else max(1, round(self.config.steps * share))

    def learner(
        self, student: Student, method: str, seed: int, steps: int | None = None
    ) -> Learner:
        """A learner of a method, with nothing learned yet."""
        config = dataclasses.replace(
            self.config, method=method, seed=seed, steps=steps or self.config.steps
        )
        teacher, targets = None, None
        if method == "anchor":
            if self.anchor is None:
                arguments = (self.workspace, self.parent, self.new, self.accelerator)
                self.anchor = open_anchor(config, *arguments)
            teacher, targets, _ = self.anchor
        return Learner(
            *(config, student, (), self.photos, self.accelerator),
            folder=self.folder / f"order-{seed}-{method}",
            teacher=teacher,
            targets=targets,
            quiet=True,
        )

    def run(self, method: str, order: Order) -> dict[str, Any]:
        """One method over one order."""
        stream, outside, seed = order.stream, order.outside, order.seed
        matrix: list[list[float]] = []
        seen: list[float] = []
        beyond: list[dict[str, Any]] = []
        seconds = 0.0
        learner = self.learn_base(method, order)
        for experience in stream:
            if experience.number:
                start_s = time.perf_counter()
                learner.learn(experience)
                seconds += time.perf_counter() - start_s
            so_far = stream[: experience.number + 1]
            tests = [learner.right(e.test) for e in so_far]
            later = [to_come(learner.context, e) for e in stream[len(so_far) :]]
            matrix.append([*(float(right.float().mean()) for right in tests), *later])
            seen.append(float(torch.cat(tests).float().mean()))
            beyond.append(outside.measure(learner.context))
        kept = learner.method.kept_bytes()
        return {
            "method": method,
            "seed": seed,
            "teacher": self.teacher_of(method),
            "accuracy": matrix,
            "start": order.start,
            "seen": seen,
            "incremental": metrics.incremental_accuracy(seen),
            "final": seen[-1],
            "average": metrics.average_accuracy(matrix),
            "backward": metrics.backward_transfer(matrix),
            "forward": metrics.forward_transfer(matrix, order.start),
            "forgetting": metrics.forgetting(matrix),
            "outside_before": order.outside_before,
            "outside": beyond,
            "outside_auc": beyond[-1]["auc"],
            "outside_eer": beyond[-1]["eer"],
            "seconds": seconds,
            "kept": kept,
            "kept_bytes": sum(kept.values()),
        }


def to_come(context: Context, experience: Experience) -> float:
    """Accuracy on an experience that has not been learned, among its own identities."""
    identity = context.photos.identity
    places, train_labels = np.unique(identity[experience.train], return_inverse=True)
    means = ClassMeans(context.student.embedding_size)
    means.add(context.embed(experience.train), torch.from_numpy(train_labels))
    test_labels = torch.from_numpy(np.searchsorted(places, identity[experience.test]))
    return float((means.nearest(context.embed(experience.test)) == test_labels).float().mean())


def summary(runs: Sequence[dict[str, Any]], failed: Sequence[int]) -> dict[str, Any]:
    """Mean and standard deviation of each figure over the orders; null where there is none.

    Of a method that failed over some orders there is none: those left would flatter it.
    """
    found: dict[str, Any] = {"failed": list(failed)}
    for name in FIGURES:
        values = [run[name] for run in runs]
        there = not failed and not any(value is None for value in values)
        found[name] = float(np.mean(values)) if there else None
        spread = len(values) > 1 and there
        found[f"{name}_std"] = float(np.std(values, ddof=1)) if spread else None
    return found


def draw(found: dict[str, Any], path: Path) -> None:
    """The accuracy on all identities so far over the experiences, a line a method, as PNG."""
    lines = {
        method: np.mean([r["seen"] for r in found["runs"] if r["method"] == method], 0).tolist()
        for method, figures in found["methods"].items()
        if not figures["failed"]
    }
    x = [float(number) for number in range(len(found["identities"]))]
    curves = Curves("learning", ("experience", "accuracy on all so far"), x, lines)
    buffer = io.BytesIO()
    curves.image().save(buffer, "PNG")
    write_atomically(path, buffer.getvalue())

"""`persona learn benchmark`: all methods on the same stream of identities, with the same budget.

1. The identities are put in a random order by seed: first a base, then a number of experiences.
2. The student learns the base. With a method whose `own_base` is set it learns by that method's
   loss. For all other methods it learns once per order, by cross-entropy, and they start from that
   student.
3. Each method learns the experiences. After each experience these figures are measured:

- seen: accuracy on the test photos of all identities so far.
- R up to the diagonal: accuracy on the test photos of one experience, among all identities so far.
- R beyond the diagonal, and b: accuracy on the test photos of an experience to come, among its own
  identities and by the class means of their training photos. It shows what the embeddings are worth
  before anybody trained on these people.
- outside: verification on pairs of photos of people who are not in the stream. It shows whether the
  student stays a good face model.

    runs/benchmark-<digest>/order-<seed>-<method>.json   figures of one method over one order

The digest is of student, sets and settings. A run whose file is there is not repeated. A benchmark
that was killed therefore continues, and one with more orders or methods reuses what is there. If
the loss of a method is not finite, that method has failed for that order and the others continue.

Shapes: T experiences, N photos, P pairs.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
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
from persona.data.ensembles import Reader
from persona.data.sets import FaceSet, open_set
from persona.errors import PersonaError
from persona.files import folder_lock, read_json, write_json
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
from persona.models.student import Student, without_head
from persona.report.plots import Line, line_plot, write_plot
from persona.training.devices import agree, build_accelerator
from persona.training.meter import NotFiniteError
from persona.training.teacher import Teacher
from persona.workspace import Workspace, user_path

log = logging.getLogger(__name__)

VERSION = 3
"""Version of how methods learn and what is measured. Runs of another version are not reused."""
HIGHER = ("incremental", "final", "backward", "forward")
FIGURES = (*HIGHER, "forgetting", "outside_auc", "outside_eer", "seconds", "kept_bytes")
"""Figures of a method that are given as mean and standard deviation over the orders."""


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
    """Runs the chosen methods over `seeds` orders of the identities.

    Args:
        config: student, set, steps, memory and options. Its seed is that of the first order; its
            method is not used.
        workspace: folders of sets, models and runs.
        chosen: names of the methods.
        base: share of the identities in the base, between 0 and 1.
        seeds: number of orders.
        test_set: a set of people outside the stream. None leaves a fifth of the set's identities
            out of the stream.
        told: called with a line of text after each method.

    Returns:
        The figures, in the form of the JSON.

    Raises:
        PersonaError: something is wrong that the user can mend.
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
    for faces in (new, *others):
        faces.manifest.check_crops(f"student {parent.id}", parent.image_size, False)
    photos, other = Photos([new]), others[0] if others else None
    bench = Bench(config, workspace, parent, new, photos, accelerator, base, other)
    first = bench.order(config.seed)
    folder = bench.folder
    for method in chosen:  # finds user errors before the first step
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
                    raise  # other processes wait for this one's gradients
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
        "set": new.name,
        "outside": test_set or f"a fifth of {new.name}",
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
    """Path of the file with the figures of one method over one order."""
    return folder / f"order-{seed}-{method}.json"


def read_run(folder: Path, seed: int, method: str, teacher: str) -> dict[str, Any] | None:
    """The figures of a finished run, or None if there is no file.

    Raises:
        PersonaError: the file is damaged, or its teacher has another digest than `teacher`.
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
    """One order of the identities, and the figures of the student before it."""

    seed: int
    stream: list[Experience]
    """The base, then the experiences."""
    outside: Outside
    start: list[float]
    """(T,) accuracies b before the stream."""
    outside_before: dict[str, Any]
    """Figures of `outside` before the stream."""
    ready: Student | None = None
    """The student that has learned the base by cross-entropy. None until it has."""


@dataclass
class Bench:
    """What all runs of a benchmark share."""

    config: LearnConfig
    workspace: Workspace
    parent: Card
    new: FaceSet
    photos: Photos
    accelerator: Accelerator
    base: float
    test_set: FaceSet | None
    anchor: tuple[Teacher | None, Reader | None, str] | None = None
    """The teacher, its precomputed embeddings and the digest of both. None until opened."""

    @cached_property
    def folder(self) -> Path:
        """Folder of the runs' files."""
        return self.workspace.runs / f"benchmark-{self.digest()}"

    def teacher_of(self, method: str) -> str:
        """Digest of the teacher that a method uses, or an empty string if it uses none."""
        return self.anchor[2] if method == "anchor" and self.anchor is not None else ""

    def digest(self) -> str:
        """Digest, in 12 hex digits, of all that a run depends on except method and order."""
        config = to_dict(self.config)
        # With `checkpoint_steps`, as ever: the folders of older benchmarks are still found.
        without = NOT_LEARNED - {"checkpoint_steps"} | {"method"}
        origin = {
            "version": VERSION,
            "config": {k: v for k, v in config.items() if k not in without},
            "student": self.parent.weights_sha256,
            "set": self.new.digest,
            "base": self.base,
            "outside": self.test_set and self.test_set.digest,
            "processes": self.accelerator.num_processes,
        }
        return hashlib.sha256(json.dumps(origin, sort_keys=True).encode()).hexdigest()[:12]

    def student(self) -> Student:
        """The stored student without its last layer, since the stream begins with no identity."""
        return without_head(store.load_model(self.parent, self.workspace.models))

    def order(self, seed: int) -> Order:
        """Builds the experiences of one order, the base first, and the pairs outside of it.

        Raises:
            PersonaError: there are too few identities, photos or pairs.
        """
        everything = np.arange(len(self.photos))
        names = in_order(self.photos, everything, seed)
        if self.test_set is None:
            away, names = names[: len(names) // 5], names[len(names) // 5 :]
            outside = left_out(self.photos, away, seed, self.new.name)
        else:
            outside = pairs_of_set(self.test_set, self.photos)
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
                f"an experience of set {self.new.name} has no photo to measure on: give "
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
            # Later experiences have fewer or more steps than the base.
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
        """Steps of an experience. The base gets as many per identity as later experiences do."""
        later = stream[1:]
        share = len(experience.identities) * len(later) / sum(len(e.identities) for e in later)
        return self.config.steps if experience.number else max(1, round(self.config.steps * share))

    def learner(
        self, student: Student, method: str, seed: int, steps: int | None = None
    ) -> Learner:
        """A learner with a method that has learned nothing yet."""
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
        """Runs one method over one order. Returns its figures, in the form of the JSON."""
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
    """Accuracy on an experience that has not been learned, by class means of its own identities."""
    identity = context.photos.identity
    places, train_labels = np.unique(identity[experience.train], return_inverse=True)
    means = ClassMeans(context.student.embedding_size)
    means.add(context.embed(experience.train), torch.from_numpy(train_labels))
    test_labels = torch.from_numpy(np.searchsorted(places, identity[experience.test]))
    return float((means.nearest(context.embed(experience.test)) == test_labels).float().mean())


def summary(runs: Sequence[dict[str, Any]], failed: Sequence[int]) -> dict[str, Any]:
    """Mean and standard deviation of each figure over the orders, or None.

    A method that failed for some orders has no figures: the other orders would flatter it.

    Args:
        runs: finished runs of one method.
        failed: seeds of the orders for which it failed.
    """
    found: dict[str, Any] = {"failed": list(failed)}
    for name in FIGURES:
        values = [run[name] for run in runs]
        there = not failed and not any(value is None for value in values)
        found[name] = float(np.mean(values)) if there else None
        spread = len(values) > 1 and there
        found[f"{name}_std"] = float(np.std(values, ddof=1)) if spread else None
    return found


def outside_before(found: dict[str, Any]) -> dict[str, float]:
    """AUC and EER outside of the stream before its first experience, as means over the runs."""
    return {
        name: float(np.mean([run["outside_before"][name] for run in found["runs"]]))
        for name in ("auc", "eer")
    }


def draw(found: dict[str, Any], path: Path) -> None:
    """Draws the accuracy on all identities so far by experience, one line per method.

    Args:
        found: figures of `benchmark`. Methods that failed are left out.
        path: an .svg, .pdf or .png file.

    Raises:
        PersonaError: every method failed, or the plot cannot be drawn (see `write_plot`).
    """
    x = [float(number) for number in range(len(found["identities"]))]
    lines = []
    for method, figures in found["methods"].items():
        if figures["failed"]:
            continue
        seen = np.mean([run["seen"] for run in found["runs"] if run["method"] == method], 0)
        spread = figures["final_std"]
        note = f"{seen[-1]:.3f}" + ("" if spread is None else f" ± {spread:.3f}")
        lines.append(Line(method, x, seen.tolist(), note))
    if not lines:
        raise PersonaError(f"every method failed, so there is nothing to draw in {path}")
    chance = (1 / np.cumsum(found["identities"])).tolist()
    figure = line_plot(
        *("Accuracy of learning methods", lines),
        ("experience (0 is the base)", "accuracy on all people so far"),
        Line("chance", x, chance),
    )
    figure.layout["xaxis"]["dtick"] = 1
    write_plot(figure, path)

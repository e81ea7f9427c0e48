"""`persona sweep`: a grid of distillations over options and seeds, each measured on one set.

1. The file is read, and the config of every run is built. An unknown option ends the command here.
2. What has a result is done. Each other run is a process of `python -m persona.distill`, one after
   another, or one on each GPU. `--resume auto` takes up a run that was cut off.
3. The student of each run is measured by a process of `persona evaluate`.
4. persona/distill/sweep_table.py makes the tables, after each run, and the curves.

    OUT/runs/DIGEST/recipe.yaml     the config of a run; DIGEST is a hash of it and the measurement
    OUT/runs/DIGEST/runs/ID/        its run, as in any folder of runs
    OUT/runs/DIGEST/result.json     its figures, written last
    OUT/beside/DIGEST/result.json   figures of a network that is only measured

A file:

    recipe: ../embedding.yaml       # optional, from the folder of the file
    base: {epochs: 12}              # values of all runs: a group (optim: {…}) replaces that of the
                                    # recipe, a dotted name (optim.lr) changes one value of it
    vary:                           # every combination is a run for each seed
      loss:                         # named variants of any values
        labels: {losses: {hard_labels: {weight: 1.0}}}
        embedding: {losses: {embedding_cosine: {weight: 1.0}}}
      optim.lr: [0.001, 0.002]      # values of one option
    seeds: [0, 1, 2]
    measure: {set: lfw, figures: [accuracy, auc, eer], model: ema, beside: [teacher]}
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

from persona.config import (
    Checked,
    DistillConfig,
    among,
    from_dict,
    load_config,
    names_of,
    read_yaml,
    save_config,
    to_dict,
)
from persona.distill.apart import RECIPE, Failed, Process, answer, end, start
from persona.errors import PersonaError, shown, unknown
from persona.files import folder_lock, read_json, write_json
from persona.models.sources import spell
from persona.registry import PROTOCOLS
from persona.workspace import Workspace

log = logging.getLogger(__name__)

RESULT = "result.json"
TEACHER = "teacher"
"""Name in `beside` that stands for the teacher of the first run."""
MOST_RUNS = 10_000
POLL_S = 0.2


@dataclass(frozen=True)
class Measurement(Checked):
    """How the students are measured."""

    set: str
    """A packed set, as in `persona evaluate --set`."""
    figures: tuple[str, ...] = ("accuracy", "auc", "eer")
    """Fields of the evaluation's JSON. The paired tests are of each."""
    model: str = among(("best", "ema"), default="best")
    """`best` is the student that the run kept, `ema` the running mean of its weights."""
    beside: tuple[str, ...] = ()
    """Networks that are only measured. `teacher` stands for the teacher of the first run."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of the measure, as `persona evaluate -o`."""


@dataclass(frozen=True)
class _File(Checked):
    """The keys of a sweep's file."""

    measure: dict[str, Any]
    vary: dict[str, Any] = field(default_factory=dict)
    base: dict[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0,)
    recipe: str | None = None


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep."""

    variant: dict[str, str]
    """The value of each axis, as text."""
    config: DistillConfig
    measure: Measurement

    @property
    def seed(self) -> int:
        """The seed of the run."""
        return self.config.seed

    @property
    def title(self) -> str:
        """The values of its axes and its seed, for messages."""
        axes = ", ".join(f"{axis}: {value}" for axis, value in self.variant.items())
        return f"{axes or 'the recipe'}, seed {self.seed}"

    @property
    def digest(self) -> str:
        """A hash of its config and of its measurement. It does not depend on names of variants."""
        measured = {k: v for k, v in vars(self.measure).items() if k not in {"beside", "figures"}}
        return _digest({"config": to_dict(self.config), "measure": measured})


@dataclass(frozen=True)
class Sweep:
    """The runs of a file, and how they are measured."""

    runs: tuple[SweepRun, ...]
    measure: Measurement

    @property
    def beside(self) -> list[str]:
        """Names of the networks that are only measured, each once: its result has one folder."""
        teacher = self.runs[0].config.teacher
        names = (teacher if name == TEACHER else name for name in self.measure.beside)
        return list(dict.fromkeys(map(spell, names)))


def read_sweep(path: Path, given: Mapping[str, Any]) -> Sweep:
    """Reads a sweep's file and builds the config of every run.

    Args:
        path: the YAML file.
        given: options of the command line, by dotted name. They win over the file in all runs.

    Raises:
        PersonaError: the file cannot be read, a key or an option of a run is unknown or wrong (the
            message names the run), or no measure has a figure or an option of `measure`.
    """
    values = read_yaml(path, "sweep")
    if not isinstance(values, dict):
        raise PersonaError(f"sweep {path} must be a mapping of names to values")
    if "measure" not in values:
        raise PersonaError(f"sweep {path} lacks `measure`: name a set, as measure: {{set: lfw}}")
    file = from_dict(_File, values, where=str(path))
    if "set" not in file.measure:
        raise PersonaError(f"sweep {path}: `measure` lacks the set, as measure: {{set: lfw}}")
    measure = from_dict(Measurement, file.measure, where=str(path), prefix="measure.")
    _check_measurement(path, measure)
    recipe = None if file.recipe is None else path.parent / file.recipe
    vary = {str(name): axis for name, axis in file.vary.items()}  # 7 is read as a number
    axes = [_read_axis(path, name, axis) for name, axis in vary.items()]
    seeds = list(dict.fromkeys(file.seeds))
    count = len(seeds)
    for axis in axes:
        count *= len(axis)
    if not 0 < count <= MOST_RUNS:
        raise PersonaError(f"sweep {path} has {count} runs: give it 1 to {MOST_RUNS:,}")
    runs = []
    for chosen in itertools.product(*axes):
        variant = dict(zip(vary, (label for label, _ in chosen), strict=True))
        for seed in seeds:
            merged = _merged(
                {"tracker": "none"}, file.base, *(own for _, own in chosen), {"seed": seed}, given
            )
            told = ", ".join(f"{axis}: {label}" for axis, label in variant.items()) or "base"
            try:
                config = load_config(recipe, merged)
            except PersonaError as error:
                text = str(error).replace("the command line", "the sweep")
                raise PersonaError(f"sweep {path}, {told}: {text}") from None
            if measure.model == "ema" and not config.optim.ema_decay:
                raise PersonaError(
                    f"sweep {path}, {told}: measure.model is ema, and the run keeps none: give "
                    "optim.ema_decay, as 0.999, or measure the model best"
                )
            runs.append(SweepRun(variant, config, measure))
    same = len(runs) - len({run.digest for run in runs})
    if same:
        raise PersonaError(
            f"sweep {path} has {same} run(s) equal to another one: two variants are the same, or "
            "an option of the command line sets what the file varies"
        )
    return Sweep(tuple(runs), measure)


def _check_measurement(path: Path, measure: Measurement) -> None:
    """Checks the figures and the options of a measurement, before anything is trained.

    Which measure fits the set is only known where the set is packed. What none has is wrong anyhow.

    Raises:
        PersonaError: no measure has such a figure or option, or takes the values of the options.
    """
    from persona.evaluation.protocols.base import build_options

    figures: set[str] = set()
    options: set[str] = set()
    taking = []
    for called, protocol in PROTOCOLS.load_all().items():
        hints = get_type_hints(protocol.result)
        figures |= {name for name, hint in hints.items() if _is_number(hint)}
        own = names_of(protocol.config_class)
        options |= set(own)
        if measure.options.keys() <= set(own):
            taking.append(called)
    for name in measure.figures:
        if name not in figures:
            raise unknown("figure", name, figures, where=f"{path}, measure.figures")
    for name in measure.options:
        if name not in options:
            raise unknown("option", str(name), options, where=f"{path}, measure.options")
    if not taking:
        named = ", ".join(measure.options)
        raise PersonaError(f"sweep {path}, measure.options: no measure has all of {named}")
    refused = []
    for called in taking:
        try:
            build_options(called, measure.options)
        except PersonaError as error:
            refused.append(error)
    if len(refused) == len(taking):
        raise PersonaError(f"sweep {path}, measure.options: {refused[0]}")


def _is_number(hint: Any) -> bool:
    return {*(get_args(hint) or [hint])} <= {int, float, NoneType}


def _read_axis(path: Path, name: str, axis: Any) -> list[tuple[str, dict[str, Any]]]:
    """The labels and values of an axis: named variants, or the values of the option `name`.

    Raises:
        PersonaError: it is neither.
    """
    if isinstance(axis, dict) and axis:
        wrong = [label for label, own in axis.items() if not isinstance(own, dict)]
        if not wrong:
            return [(str(label), own) for label, own in axis.items()]
    elif isinstance(axis, list) and axis:
        return [(_label(value), {name: value}) for value in axis]
    raise PersonaError(
        f"sweep {path}: vary.{name} is {shown(axis)}: give a list of values of the option {name}, "
        "or named variants, each a mapping of options"
    )


def _label(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _merged(*groups: Mapping[str, Any]) -> dict[str, Any]:
    """Options by dotted name. Later groups win, also where they set a whole mapping."""
    merged: dict[str, Any] = {}
    for group in groups:
        # 7 is read as a number; `load_config` says that it is no option
        own = {str(key): value for key, value in group.items()}
        kept = {
            name: value
            for name, value in merged.items()
            if not any(name == new or name.startswith(f"{new}.") for new in own)
        }
        merged = {**kept, **own}
    return merged


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# --- running ------------------------------------------------------------------------------------


Job = Iterator[Process]
"""Starts the processes of a run one after another. Each has ended before the next is asked for."""


@dataclass(frozen=True)
class SweepRunner:
    """Runs what a sweep lacks, and keeps the results in a folder."""

    place: Workspace
    out: Path
    told: Callable[[str], None]
    """Receives a line for each run that begins, ends or fails."""

    def run(
        self,
        sweep: Sweep,
        devices: Sequence[str | None],
        finished: Callable[[], None] = lambda: None,
    ) -> list[str]:
        """Runs everything that has no result yet.

        Args:
            sweep: the runs.
            devices: the GPUs to use at the same time, as in CUDA_VISIBLE_DEVICES. None stands for
                whatever the processes find.
            finished: called as soon as a result is in the folder, first for those that were there
                already.

        Returns:
            A line for each run that failed.
        """
        with folder_lock(self.out, doing="sweeping in"):
            jobs: list[tuple[str, Callable[[dict[str, str]], Job]]] = []
            for name in sweep.beside:
                if self.beside_of(sweep, name) is None:
                    jobs.append((name, _bound(self._measure_beside, sweep, name)))
            for run in sweep.runs:
                if self.result_of(run) is None:
                    jobs.append((run.title, _bound(self._train, run)))
            done = len(sweep.runs) + len(sweep.beside) - len(jobs)
            if done:
                self.told(f"{done} of {len(sweep.runs) + len(sweep.beside)} are done already")
                finished()
            return self._work(jobs, devices, finished)

    def result_of(self, run: SweepRun) -> dict[str, Any] | None:
        """The result of a run. None if it has none yet."""
        return _read_result(self._folder(run) / RESULT)

    def beside_of(self, sweep: Sweep, name: str) -> dict[str, Any] | None:
        """The result of a network that is only measured. None if it has none yet."""
        return _read_result(self._beside_folder(sweep, name) / RESULT)

    def runs_of(self, run: SweepRun) -> Path:
        """The folder of runs that holds a run of the sweep."""
        return self._folder(run) / "runs"

    def _folder(self, run: SweepRun) -> Path:
        return self.out / "runs" / run.digest

    def _beside_folder(self, sweep: Sweep, name: str) -> Path:
        of = [spell(name), sweep.measure.set, sweep.measure.options]
        return self.out / "beside" / _digest(of)

    def _work(
        self,
        jobs: Sequence[tuple[str, Callable[[dict[str, str]], Job]]],
        devices: Sequence[str | None],
        finished: Callable[[], None],
    ) -> list[str]:
        waiting = list(jobs)
        active: dict[int, tuple[str, Job, Process]] = {}
        failed: list[str] = []
        try:
            while waiting or active:
                for slot, device in enumerate(devices):
                    title, process = "", None
                    if slot in active:
                        title, job, before = active[slot]
                        if before.poll() is None:
                            continue
                        del active[slot]
                    elif waiting:
                        title, begin = waiting.pop(0)
                        self.told(f"{title}: begins, {len(waiting)} wait")
                        where = {} if device is None else {"CUDA_VISIBLE_DEVICES": device}
                        job = begin(where)
                    else:
                        continue
                    try:
                        process = next(job, None)
                    except Failed as error:
                        failed.append(f"{title}: {error}")
                        self.told(f"{title}: failed: {error}")
                        continue
                    if process is None:
                        finished()
                    else:
                        active[slot] = title, job, process
                if active:
                    time.sleep(POLL_S)
        finally:
            end([process for _, _, process in active.values()])
        return failed

    def _train(self, run: SweepRun, where: dict[str, str]) -> Job:
        folder = self._folder(run)
        begun = folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        save_config(folder / RECIPE, to_dict(run.config))
        from persona.distill.start import find_newest  # torch

        start_s = time.perf_counter()
        config = replace(run.config, teacher=spell(run.config.teacher))
        found = find_newest(config, self.runs_of(run))
        if found is not None and found[1]:  # it was cut off before it was measured
            model = found[0]
        else:
            command = [
                *("persona.distill", f"--config={folder / RECIPE}", "--resume=auto", "--json"),
                *(f"--runs={self.runs_of(run)}", f"--shards={self.place.shards}"),
                f"--models={self.place.models}",
            ]
            process = start(command, folder, where)
            yield process
            model = str(answer(process, folder).get("id"))
        took_s = time.perf_counter() - start_s
        made = {path.name for path in self.runs_of(run).glob("*")}
        name = next((one for one in made if model.startswith(one)), model)
        student = f"{name}-ema" if run.measure.model == "ema" else model
        process = self._evaluate(run.measure, student, folder, where)
        yield process
        figures = answer(process, folder)
        check_figures(run.measure, figures)
        result = {"variant": run.variant, "seed": run.seed, "run": name, "model": student}
        # The time of a run that was cut off is not known.
        result |= {"seconds": None if begun else round(took_s, 1), "figures": figures}
        write_json(folder / RESULT, result)
        self.told(f"{run.title}: {_told(run.measure, figures)}")

    def _measure_beside(self, sweep: Sweep, name: str, where: dict[str, str]) -> Job:
        folder = self._beside_folder(sweep, name)
        folder.mkdir(parents=True, exist_ok=True)
        process = self._evaluate(sweep.measure, name, folder, where)
        yield process
        figures = answer(process, folder)
        check_figures(sweep.measure, figures)
        write_json(folder / RESULT, {"model": name, "figures": figures})
        self.told(f"{name}: {_told(sweep.measure, figures)}")

    def _evaluate(
        self, measure: Measurement, model: str, folder: Path, where: dict[str, str]
    ) -> Process:
        options = [
            f"--option={name}={json.dumps(v, default=str)}" for name, v in measure.options.items()
        ]
        command = ["persona", "evaluate", f"--set={measure.set}", f"--model={model}", "--json"]
        command += [f"--shards={self.place.shards}", f"--models={self.place.models}", *options]
        return start(command, folder, where)


def _bound(job: Callable[..., Job], *arguments: Any) -> Callable[[dict[str, str]], Job]:
    return lambda where: job(*arguments, where)


def _read_result(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    found = read_json(path, what="result")
    return found if isinstance(found, dict) and isinstance(found.get("figures"), dict) else None


def check_figures(measure: Measurement, figures: dict[str, Any]) -> None:
    """Checks that an evaluation has the figures that a sweep compares.

    Raises:
        Failed: a figure is missing.
    """
    missing = [name for name in measure.figures if not isinstance(figures.get(name), int | float)]
    if missing:
        raise Failed(
            f"set {measure.set} has no figure {', '.join(missing)}: name others in measure.figures"
        )


def _told(measure: Measurement, figures: dict[str, Any]) -> str:
    return ", ".join(f"{name} {figures[name]:.4f}" for name in measure.figures)

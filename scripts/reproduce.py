"""Distils a student from a teacher on real photos, with its controls, and measures all on LFW.

    ./scripts/reproduce real --faces ../shared/faces/real --minutes 60 --controls

DIR holds `unlabelled/*.tar` (training photos without identities), `selection.tar` (labelled photos,
`PERSON/PHOTO.jpg`, of people who are in neither of the others) and `LFW/` with its `pairs.txt`. All
photos are aligned to ArcFace's template at 112 px.

1. Pack the photos. 2. Keep the teacher's embeddings. 3. Measure how fast a training step is, and
train for as many photos as fit into the minutes. 4. Evaluate on pairs of the people of
`selection.tar` and on LFW's official pairs.

A step that is done is not done again: stop the script and start it when you like. What chooses (the
recipe, its options) looks at the selection pairs alone; LFW is only reported.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import persona
from persona import Callback, FaceSet, Model, Moment, PersonaError, Workspace

RECIPE = Path("configs/faces_112.yaml")
WARM_UP, TIMED = 4, 12
"""Steps before the timed ones, and timed ones."""
MOST_MINUTES = 60 * 24 * 30
TRAINED, CHOOSING, REPORTED = "unlabelled", "selection", "LFW"


@dataclasses.dataclass(frozen=True)
class Run:
    """One row of the table: a training, or a network that is only measured."""

    name: str
    faces: FaceSet | None = None
    """The set it is trained on. None means that it is not trained."""
    teacher: str | None = None
    """None means that it learns from labels alone."""
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    network: str | None = None
    """What is measured of a run without a training."""


class Clock(Callback):
    """Measures the seconds of a training step."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step(self, moment: Moment) -> None:
        """Notes the time; ends the training after enough steps."""
        self.times.append(time.perf_counter())
        if len(self.times) > WARM_UP + TIMED:
            moment.stop()

    @property
    def seconds(self) -> float:
        """Seconds of a step, as the mean of the timed ones."""
        return (self.times[-1] - self.times[WARM_UP]) / (len(self.times) - 1 - WARM_UP)


class Started(Callback):
    """Writes the ID of a run to a file, so that the script can continue it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_step(self, moment: Moment) -> None:
        """Writes the ID after the first step."""
        if not self.path.exists():
            self.path.write_text(moment.run, encoding="utf-8")


class Experiment:
    """The sets, the teacher and the results so far, in one folder."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        """Packs the photos and keeps the teacher's embeddings of those to train on."""
        self.arguments = arguments
        self.place = Workspace.locate(home=arguments.home)
        self.teacher = f"onnx:{arguments.teacher.resolve()}"
        faces: Path = arguments.faces
        shard = {"align": "template", "image_size": 112, "workspace": self.place}
        shard["workers"] = len(os.sched_getaffinity(0))
        self.train = persona.shard(f"tars:{faces / TRAINED}", unlabelled=True, **shard)
        self.selection = persona.shard(f"tars:{faces / CHOOSING}.tar", **shard)
        # The official LFW under its own name; its folder may lie anywhere.
        raw = dataclasses.replace(self.place, raw=faces)
        self.lfw = persona.shard("lfw", **shard | {"workspace": raw})
        self.path = arguments.home / "results.jsonl"
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        self.results = {row["run"]: row for row in map(json.loads, lines)}

    def load(self, name: str) -> Model:
        """Loads a network from this folder's models."""
        return persona.load(name, workspace=self.place)

    def photos(self, run: Run) -> int:
        """How many photos a training sees: as many as fit into the minutes."""
        known = self.arguments.home / "photos"
        if not known.exists():
            clock = Clock()
            self.distill(run, WARM_UP + TIMED + 2, callbacks=[clock], tell=False)
            rate = self.arguments.batch_size / clock.seconds
            count = max(1, int(rate * self.arguments.minutes * 60))
            known.write_text(f"{count}\n", encoding="utf-8")
            say(f"{rate:,.0f} photos/s: {count:,} photos in {self.arguments.minutes:g} minutes")
        return int(known.read_text())

    def distill(
        self,
        run: Run,
        steps: int,
        *,
        callbacks: list[Callback],
        resume: str | None = None,
        tell: bool = True,
    ) -> Model:
        """Trains the student of a run for so many steps."""
        assert run.faces is not None
        options = {"steps": steps, "batch_size": self.arguments.batch_size, **run.options}
        options["seed"] = self.arguments.seed
        if tell:
            say(f"{run.name}: {steps:,} steps of {self.arguments.batch_size} photos")
        return persona.distill(
            self.arguments.student,
            teacher=None if run.teacher is None else self.load(run.teacher),
            train=run.faces,
            recipe=RECIPE,
            options=options,
            callbacks=callbacks,
            resume=resume,
            workspace=self.place,
        )

    def do(self, run: Run) -> None:
        """Trains and measures one row of the table, unless it is there."""
        if run.name in self.results:
            return
        start_s, seen, name = time.monotonic(), 0, run.network
        if run.faces is not None:
            if run.teacher is not None:
                run.faces.keep_targets(
                    self.load(run.teacher), views=self.arguments.views, recipe=RECIPE
                )
            steps = max(1, self.photos(run) // self.arguments.batch_size)
            seen = steps * self.arguments.batch_size
            started = self.arguments.home / f"{run.name.replace(' ', '-')}.run"
            resume = started.read_text(encoding="utf-8") if started.exists() else None
            student = self.distill(run, steps, callbacks=[Started(started)], resume=resume)
            started.unlink(missing_ok=True)
            # The recipe keeps an EMA; the run may have chosen either model.
            name = f"{student.name.removesuffix('-ema')}-ema"
        assert name is not None
        row = {
            "run": run.name,
            "model": name,
            "photos_seen": seen,
            "photos": 0 if run.faces is None else len(run.faces),
            "hours": round((time.monotonic() - start_s) / 3600, 3),
            **self.measure(name),
        }
        self.results[run.name] = row
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def measure(self, name: str) -> dict[str, Any]:
        """A network on the selection pairs and on LFW."""
        model = self.load(name)
        chosen = model.evaluate(self.selection, measure="verification")  # of drawn pairs
        reported = model.evaluate(self.lfw, resamples=self.arguments.resamples)
        return {"selection": chosen.to_json(), "lfw": reported.to_json()}


def rows_of(experiment: Experiment) -> list[Run]:
    """The rows of the table, in their order."""
    teacher, student = experiment.teacher, experiment.arguments.student
    rows = [
        Run("teacher", network=teacher),
        Run("untrained", network=student),
        Run("distilled, no labels", experiment.train, teacher),
    ]
    if experiment.arguments.controls:
        labels = {"losses": {"arcface": {"weight": 1.0}}}
        drawn, _ = persona.draw_faces(240, workspace=experiment.place)
        drawn_set = persona.shard(
            drawn, align="landmarks", image_size=112, workspace=experiment.place
        )
        rows += [
            Run("labels alone", experiment.selection, None, labels),
            Run("distilled from drawn faces", drawn_set, teacher),
        ]
    return rows


def table(results: list[dict[str, Any]]) -> str:
    """The results as a Markdown table."""
    lines = [
        "| network | photos | photos seen | selection AUC | LFW accuracy | 95 % | "
        "TAR@FAR=1e-3 | hours |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in results:
        lfw, chosen = row["lfw"], row["selection"]
        low, high = lfw["intervals"]["accuracy"] or (float("nan"),) * 2
        tar = next((v for k, v in lfw["tar_at_far"].items() if float(k) == 1e-3), None)
        cells = (
            *(row["run"], f"{row['photos']:,}", f"{row['photos_seen']:,}"),
            *(f"{chosen['auc']:.4f}", f"{lfw['accuracy']:.4f}", f"{low:.4f} to {high:.4f}"),
            *("–" if tar is None else f"{tar:.4f}", f"{row['hours']:.2f}"),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def hardware() -> str:
    """The commit, the processor and the versions, as a line."""
    import torch

    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor()
    cores = len(os.sched_getaffinity(0))
    return (
        f"commit {commit}, {cores} cores, {device or platform.machine()}, torch {torch.__version__}"
    )


def say(line: str) -> None:
    """Writes a line to stderr."""
    sys.stderr.write(f"{line}\n")


def check(arguments: argparse.Namespace) -> None:
    """Checks the options and that the photos and the teacher are there.

    Raises:
        PersonaError: something is missing or out of range.
    """
    if not 0 < arguments.minutes <= MOST_MINUTES:
        raise PersonaError(f"--minutes {arguments.minutes:g}: choose more than 0")
    faces: Path = arguments.faces
    wanted = [faces / TRAINED, faces / f"{CHOOSING}.tar", faces / REPORTED / "pairs.txt"]
    missing = [str(path) for path in wanted if not path.exists()]
    if not missing and not list((faces / TRAINED).glob("*.tar")):
        missing = [str(faces / TRAINED / "*.tar")]
    if not arguments.teacher.is_file():
        missing.append(str(arguments.teacher))
    if missing:
        raise PersonaError(f"missing: {', '.join(missing)}; name the folder by --faces")


def main() -> None:
    """Does what is missing, then prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=["real"])
    parser.add_argument("--faces", type=Path, required=True, help="folder of the photos")
    parser.add_argument("--teacher", type=Path, help="ONNX file of the teacher")
    parser.add_argument("--home", type=Path, default=Path("reproduced"), help="folder of results")
    parser.add_argument("--minutes", type=float, default=60, help="minutes of each training")
    parser.add_argument("--student", default="mobilenet_v3_small")
    parser.add_argument("--views", type=int, default=4, help="kept views of each photo")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--controls", action="store_true", help="train the controls too")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.teacher is None:
        arguments.teacher = arguments.faces.parent / "teachers" / "mobilefacenet.onnx"
    try:
        check(arguments)
        experiment = Experiment(arguments)
        for run in rows_of(experiment):
            experiment.do(run)
    except PersonaError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted: run the command again and it continues")
    results = list(experiment.results.values())
    if arguments.json:
        print(json.dumps({"hardware": hardware(), "runs": results}, indent=2))
    else:
        print(table(results) + f"\n{hardware()}; recipe {RECIPE}, seed {arguments.seed}.")


if __name__ == "__main__":
    main()

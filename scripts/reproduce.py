"""Distils a student from a teacher on real photos, with its controls, and measures all on LFW.

    ./scripts/reproduce real --faces DIR --teacher FILE --minutes 10 --controls --curves

DIR holds `unlabelled/*.tar` (training photos without identities), `selection.tar` (labelled photos,
`PERSON/PHOTO.jpg`, of people who are in neither of the others) and `LFW/` with its `pairs.txt`. All
photos are aligned to ArcFace's template at 112 px. The teacher is an ONNX file that `--teacher`
names, by default `../teachers/mobilefacenet.onnx`, as seen from DIR.

1. Pack the photos. Those to train on are drawn into four parts, so that trainings on fewer photos
   take the first parts alone. 2. Keep the teacher's embeddings. 3. Measure how fast a training step
is, and train for as many photos as fit into the minutes. 4. Evaluate on pairs of the people of
`selection.tar` and on LFW's official pairs, compare with each control, and write the page.

`--controls` trains the same student, for as many photos, from labels alone, from drawn faces, and
from a worse teacher. `--curves` trains it for a ninth and a third of the photos, and on fewer
distinct ones.

A step that is done is not done again: stop the script and start it when you like. A folder of
results belongs to the options that it was begun with; `--controls`, `--curves` and `--out` may be
added later. What chooses (the recipe, its options) looks at the selection pairs alone; LFW is only
reported.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import json
import math
import os
import random
import subprocess
import sys
import tarfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import persona
from persona import Callback, FaceSet, Model, Moment, PersonaError, Workspace
from persona.files import read_json, sha256_file, write_atomically, write_json
from persona.workers import processor_name

RECIPE = Path("configs/faces_112.yaml")
WARM_UP, TIMED = 4, 12
"""Steps before the timed ones, and timed ones."""
NOTED_S = 10.0
"""Seconds of training of which a kill may lose the count."""
MOST_MINUTES = 60 * 24 * 30
FEWEST_RESAMPLES = 100
"""`persona compare` takes no fewer."""
TRAINED, CHOOSING, REPORTED = "unlabelled", "selection", "LFW"
PARTS = {"first-3000": 3_000, "next-7000": 7_000, "next-20000": 20_000, "rest": None}
"""The sets to train on and their photos. Each training on fewer photos takes the first ones."""
PHOTOS = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
PACKED, PARTIAL = "photos.tar", "photos.tar.partial"
SHARES = {"a ninth of the steps": 1 / 9, "a third of the steps": 1 / 3}
DRAWN_PEOPLE = 240
PLAIN_VIEWS = 2
"""The photo and its mirror image. Only further views need augmentations."""
FLIPPED = " (the photo and its mirror image, so the recipe's other augmentations are off)"
WORSE = "persona-s"
ROLE = "distilled, no labels"
EXTRAPOLATED = 1_000_000, 5_000_000


@dataclasses.dataclass(frozen=True)
class Run:
    """One row of the table: a training, or a network that is only measured."""

    name: str
    sets: Sequence[FaceSet] = ()
    """The sets it is trained on. None of them means that it is not trained."""
    teacher: str | None = None
    """None means that it learns from labels alone."""
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    share: float = 1.0
    """Its steps over those of the other trainings."""
    network: str | None = None
    """What is measured of a run without a training."""

    @property
    def photos(self) -> int:
        """The number of distinct photos it is trained on."""
        return sum(len(faces) for faces in self.sets)


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
        """Seconds of a step. The median is what a step takes beside short other work."""
        timed = self.times[WARM_UP:]
        return median(b - a for a, b in itertools.pairwise(timed))


class Started(Callback):
    """Keeps the ID and the seconds of a row's training in a file, so that the script continues it.

    The seconds are those of all starts of the script, and not of the last one alone.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        known = read_json(path, what="a training that was begun") if path.exists() else {}
        self.run: str | None = known.get("run")
        self.before_s: float = known.get("seconds", 0.0)
        self.noted_s = self.before_s
        self.start_s = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds of the wall clock so far."""
        return self.before_s + time.monotonic() - self.start_s

    def note(self) -> None:
        """Writes the file."""
        self.noted_s = self.seconds
        write_json(self.path, {"run": self.run, "seconds": self.noted_s})

    def on_step(self, moment: Moment) -> None:
        """Writes the ID after the first step, and the seconds from time to time."""
        if self.run != moment.run or self.seconds - self.noted_s > NOTED_S:
            self.run = moment.run
            self.note()


class Experiment:
    """The sets, the teacher and the results so far, in one folder."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        """Packs the photos."""
        self.arguments = arguments
        self.home: Path = arguments.home
        self.place = Workspace.locate(home=self.home)
        self.teacher = f"onnx:{arguments.teacher.resolve()}"
        faces: Path = arguments.faces
        self.parts = [
            self.shard(f"tars:{part}", unlabelled=True)
            for part in split_photos(faces / TRAINED, self.home / "parts", options_of(arguments))
        ]
        self.selection = self.shard(f"tars:{faces / CHOOSING}.tar")
        # The official LFW under its own name; its folder may lie anywhere.
        self.lfw = self.shard("lfw", workspace=dataclasses.replace(self.place, raw=faces))
        self.path = self.home / "results.jsonl"
        self.results = read_results(self.path)

    def shard(self, dataset: str, **options: Any) -> FaceSet:
        """Packs crops of 112 px that are aligned already."""
        workers = len(os.sched_getaffinity(0))
        usual: dict[str, Any] = {"align": "template", "image_size": 112, "workspace": self.place}
        return persona.shard(dataset, **usual | {"workers": workers} | options)

    def load(self, name: str) -> Model:
        """Loads a network from this folder's models."""
        return persona.load(name, workspace=self.place)

    def photos(self, run: Run) -> int:
        """How many photos a whole training sees: as many as fit into the minutes."""
        known = self.home / "photos"
        if self.arguments.photos:
            return int(self.arguments.photos)
        if not known.exists():
            clock = Clock()
            self.distill(run, WARM_UP + TIMED + 2, callbacks=[clock], tell=False)
            rate = self.arguments.batch_size / clock.seconds
            count = max(1, int(rate * self.arguments.minutes * 60))
            write_atomically(known, f"{count}\n".encode())
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
        options = {"steps": steps, "batch_size": self.arguments.batch_size, **run.options}
        options["seed"] = self.arguments.seed
        if self.arguments.views <= PLAIN_VIEWS:
            options["augment"] = {"flip": True}
        if tell:
            say(f"{run.name}: {steps:,} steps of {self.arguments.batch_size} photos")
        return persona.distill(
            self.arguments.student,
            teacher=None if run.teacher is None else self.load(run.teacher),
            train=list(run.sets),
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
        seen, name, seconds, started = 0, run.network, 0.0, None
        if run.sets:
            started = Started(self.home / f"{run.name.replace(' ', '-')}.run")
            try:
                seen, name = self.train(run, started)
            finally:
                started.note()
            seconds = started.seconds
        assert name is not None
        self.results[run.name] = {
            "run": run.name,
            "model": name,
            "photos_seen": seen,
            "photos": run.photos,
            "hours": round(seconds / 3600, 3),
            "hardware": hardware(),
            **self.measure(name, chosen=self.selection not in run.sets),
        }
        self.keep_results()
        if started is not None:  # only now: a training is not lost if measuring it is interrupted
            started.path.unlink()

    def train(self, run: Run, started: Started) -> tuple[int, str]:
        """Trains the student of a row, or goes on with it; returns the photos seen and its name."""
        if run.teacher is not None:
            for faces in run.sets:
                faces.keep_targets(
                    self.load(run.teacher), views=self.arguments.views, recipe=RECIPE
                )
                started.note()
        steps = max(1, round(run.share * self.photos(run) / self.arguments.batch_size))
        student = self.distill(run, steps, callbacks=[started], resume=started.run)
        # The recipe keeps an EMA; the run may have chosen either model.
        return steps * self.arguments.batch_size, f"{student.name.removesuffix('-ema')}-ema"

    def keep_results(self) -> None:
        """Writes all rows, so that a killed process leaves those of before or these."""
        lines = (json.dumps(row) + "\n" for row in self.results.values())
        write_atomically(self.path, "".join(lines).encode())

    def measure(self, name: str, *, chosen: bool) -> dict[str, Any]:
        """A network on LFW, and on the selection pairs unless it was trained on their people."""
        model = self.load(name)
        row: dict[str, Any] = {"selection": None}
        if chosen:
            found = model.evaluate(self.selection, measure="verification")  # of drawn pairs
            row["selection"] = found.to_json()
        row["lfw"] = model.evaluate(self.lfw, resamples=self.arguments.resamples).to_json()
        return row

    def compare(self, other: str) -> dict[str, Any]:
        """The paired test of the distilled student and another row, on LFW's accuracy."""
        known = self.results[other].get("compared")
        if known is None:
            names = [self.results[row]["model"] for row in (ROLE, other)]
            on = ["--set", str(self.lfw.folder), "--json"]
            on += ["--resamples", str(self.arguments.resamples)]
            told = subprocess.run(
                [sys.executable, "-m", "persona", "compare", *names, *on],
                env=os.environ | {"PERSONA_HOME": str(self.home)},
                stdout=subprocess.PIPE,
                check=True,
            )
            known = json.loads(told.stdout)["differences"]["accuracy"]
            self.results[other]["compared"] = known
            self.keep_results()
        return dict(known)


def options_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options that all rows share, by name. What is asked for beside them may change."""
    length = {"--minutes": arguments.minutes}
    if arguments.photos:
        length = {"--photos": arguments.photos}
    return {
        "--teacher": f"{arguments.teacher.name} ({sha256_file(arguments.teacher)[:12]})",
        "--student": arguments.student,
        "--views": arguments.views,
        "--batch-size": arguments.batch_size,
        "--resamples": arguments.resamples,
        "--seed": arguments.seed,
        **length,
    }


def read_results(path: Path) -> dict[str, dict[str, Any]]:
    """The rows that are done, by name. A line that is no JSON is left out: its row is made again.

    Earlier versions of this script left half a line where they were killed.
    """
    results = {}
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except ValueError:
            say(f"{path} line {number} is damaged: its row is made again")
        else:
            results[row["run"]] = row
    return results


def check_inputs(known: Path, inputs: Mapping[str, Any], faces: Path) -> None:
    """Checks that a folder of results was made of these photos, with these options.

    Raises:
        PersonaError: it was not.
    """
    made = read_json(known, what="a list of inputs")
    if made["tars"] != inputs["tars"]:
        raise PersonaError(
            f"{known.parent} was made of other photos than {faces}: choose another --home"
        )
    was, now = made.get("options", {}), inputs["options"]
    if was != now:
        first, second = (
            " ".join(f"{name} {one[name]}" for name in one if one[name] != other.get(name))
            for one, other in ((was, now), (now, was))
        )
        raise PersonaError(
            f"{known.parent} was made with {first or 'options that it does not name'}, and not "
            f"with {second}: give the same options, or choose another --home"
        )


def split_photos(faces: Path, home: Path, options: Mapping[str, Any]) -> list[Path]:
    """Draws the photos of all tars of a folder into the parts; returns the folders of the parts.

    Args:
        faces: the folder of the tars.
        home: where the parts lie, and what they were made of (`inputs.json`).
        options: the options of all rows, `--seed` among them.

    Raises:
        PersonaError: a tar is damaged, there are no photos, or the parts were made of others.
    """
    folders = {name: home / name for name in PARTS}
    tars = sorted(faces.glob("*.tar"))
    inputs = {"options": options, "tars": {path.name: path.stat().st_size for path in tars}}
    known = home / "inputs.json"
    if known.exists():
        check_inputs(known, inputs, faces)
    # The inputs are written last: without them the parts may be of another seed.
    if not known.exists() or not all((folder / PACKED).is_file() for folder in folders.values()):
        photos = [(path, name) for path in tars for name in photos_of(path)]
        if not photos:
            raise PersonaError(f"the tars in {faces} hold no photos: put tars of photos there")
        random.Random(options["--seed"]).shuffle(photos)
        part_of: dict[tuple[Path, str], str] = {}
        start = 0
        for part, count in PARTS.items():
            some = photos[start:] if count is None else photos[start : start + count]
            part_of |= dict.fromkeys(some, part)
            start += len(some)
        for folder in folders.values():
            folder.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            written = {
                name: stack.enter_context(tarfile.open(folder / PARTIAL, "w"))
                for name, folder in folders.items()
            }
            for path in tars:
                with tarfile.open(path) as tar:
                    for member in tar:
                        where = part_of.get((path, member.name))
                        if where is None:  # no photo
                            continue
                        data = tar.extractfile(member)
                        member.name = f"{path.stem}/{member.name}"
                        written[where].addfile(member, data)
        for folder in folders.values():
            (folder / PARTIAL).rename(folder / PACKED)
        write_json(known, inputs)
    return [folder for folder in folders.values() if photos_of(folder / PACKED)]


def photos_of(path: Path) -> list[str]:
    """Names of the photos in a tar.

    Raises:
        PersonaError: the file is no tar, or damaged.
    """
    try:
        with tarfile.open(path) as tar:
            names = [member.name for member in tar if member.isfile()]
    except (tarfile.TarError, EOFError):
        raise PersonaError(f"{path} is no tar, or damaged: replace it") from None
    return [name for name in names if Path(name).suffix.lower() in PHOTOS]


def rows_of(experiment: Experiment) -> list[Run]:
    """The rows of the table, in their order."""
    teacher, student = experiment.teacher, experiment.arguments.student
    parts = experiment.parts
    rows = [
        Run("teacher", network=teacher),
        Run("untrained", network=student),
        Run(ROLE, parts, teacher),
    ]
    if experiment.arguments.controls:
        labels = {"losses": {"arcface": {"weight": 1.0}}}
        drawn, _ = persona.draw_faces(DRAWN_PEOPLE, workspace=experiment.place)
        drawn_set = experiment.shard(drawn, align="landmarks")
        rows += [
            Run("labels alone", [experiment.selection], None, labels),
            Run("distilled from drawn faces", [drawn_set], teacher),
            Run(f"distilled from {WORSE}", parts, WORSE),
        ]
    if experiment.arguments.curves:
        rows += [Run(name, parts, teacher, share=share) for name, share in SHARES.items()]
        for count in range(1, len(parts)):
            some = Run("", parts[:count])
            rows.append(Run(f"{some.photos:,} photos", some.sets, teacher))
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
            *("–" if chosen is None else f"{chosen['auc']:.4f}", f"{lfw['accuracy']:.4f}"),
            *(f"{low:.4f} to {high:.4f}", "–" if tar is None else f"{tar:.4f}"),
            f"{row['hours']:.2f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def comparisons(experiment: Experiment, rows: list[Run]) -> str:
    """The distilled student against each control, as Markdown."""
    lines = ["| the distilled student against | LFW accuracy, difference | 95 % | p |"]
    lines.append("|---|--:|--:|--:|")
    for run in rows:
        if run.name != ROLE and run.name not in SHARES and "photos" not in run.name:
            found = experiment.compare(run.name)
            low, high = found["interval"] or (float("nan"),) * 2
            p = "–" if found["p"] is None else f"{found['p']:.4f}"
            lines.append(
                f"| {run.name} | {found['difference']:+.4f} | {low:+.4f} to {high:+.4f} | {p} |"
            )
    return "\n".join(lines) + "\n"


def power_law(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Fits error = a * count ** -b to (count, error), by least squares of the logarithms."""
    x, y = ([math.log(value) for value in column] for column in zip(*points, strict=True))
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    slope = sum((u - mean_x) * (v - mean_y) for u, v in zip(x, y, strict=True)) / sum(
        (u - mean_x) ** 2 for u in x
    )
    return math.exp(mean_y - slope * mean_x), -slope


def curves(results: dict[str, dict[str, Any]], drawn_to: Path) -> str:
    """What more steps and more photos bring, with fitted power laws, as Markdown and a figure."""
    whole = results[ROLE]
    along = {
        "photos seen": [row for name, row in results.items() if name in SHARES] + [whole],
        "distinct photos": [r for name, r in results.items() if name.endswith(" photos")] + [whole],
    }
    keys = {"photos seen": "photos_seen", "distinct photos": "photos"}
    lines = [
        "| over | LFW error, measured | fitted | "
        + " | ".join(f"extrapolated to {count:,}" for count in EXTRAPOLATED)
        + " |",
        "|---|---|---|" + "--:|" * len(EXTRAPOLATED),
    ]
    drawn = {}
    for name, rows in along.items():
        points = sorted((row[keys[name]], 1 - row["lfw"]["accuracy"]) for row in rows)
        a, b = power_law(points)
        told = ", ".join(f"{error:.4f} at {count:,}" for count, error in points)
        # An error that did not fall is no law to go on with.
        ahead = " | ".join(f"{a * n**-b:.3f}" if b > 0 else "–" for n in EXTRAPOLATED)
        lines.append(f"| {name} | {told} | {a:.3g} N^({-b:.3f}) | {ahead} |")
        drawn[name] = ([count for count, _ in points], [error for _, error in points])
    axes = ("photos (distinct, or seen)", "LFW error")
    try:
        persona.draw_lines(drawn, drawn_to, title="LFW error over photos", axes=axes)
    except PersonaError as error:
        say(f"no figure is drawn: {error}")
    return "\n".join(lines) + "\n"


def hardware() -> str:
    """The commit, the processor and the versions, as a line."""
    import torch

    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else processor()
    cores = len(os.sched_getaffinity(0))
    return (
        f"commit {commit}, {cores} of {os.cpu_count()} cores, {device}, torch {torch.__version__}"
    )


def processor() -> str:
    """The processor's name and the vector instructions that matter, where Linux tells them."""
    path = Path("/proc/cpuinfo")
    flags = path.read_text().split() if path.exists() else []
    known = [name for name in ("avx2", "avx512_vnni", "amx_tile") if name in flags]
    return " ".join([processor_name(), *(["with"] if known else []), *known])


def page(experiment: Experiment, rows: list[Run]) -> str:
    """Everything that was measured, as Markdown."""
    arguments, results = experiment.arguments, experiment.results
    plain = arguments.views <= PLAIN_VIEWS
    drawn_to = (arguments.out or experiment.home / "results.md").with_suffix(".svg")
    # Each row says what it ran on: a later run may only write the page.
    known = {results[run.name].get("hardware", "hardware not noted") for run in rows}
    measured_with = "; ".join(sorted(known))
    told = [
        "# A student of real photos, and its controls\n",
        f"Written by `scripts/reproduce real`. Every trained row is the same student, "
        f"{arguments.student} from random weights, with the same recipe ({RECIPE}), batches of "
        f"{arguments.batch_size} photos, {arguments.views} kept views{FLIPPED if plain else ''} "
        f"and seed {arguments.seed}. From labels alone it learns by ArcFace. The selection AUC is "
        "of drawn pairs of people who are in no training but that from labels alone. LFW is its "
        "official 6,000 pairs; the intervals resample its people.\n",
        table([results[run.name] for run in rows]),
        f"Measured with {measured_with}. Hours are of the wall clock, beside other work if there "
        "was any, and hold the teacher's embeddings where they were not kept before.\n",
    ]
    if arguments.controls:
        told += [
            "## Against each control\n",
            "The paired test swaps the two students' decisions on LFW's pairs at random, "
            f"{arguments.resamples:,} times: a p of {1 / (arguments.resamples + 1):.4f} is the "
            "smallest that it can find.\n",
            comparisons(experiment, rows),
        ]
    if arguments.curves and len(experiment.parts) > 1:
        told += [
            "## How many photos\n",
            "Power laws, fitted to the measured errors by least squares of the logarithms. What "
            "lies beyond the measured counts is extrapolated and was not measured. Distinct "
            "photos are compared at one number of photos seen, so that more of them are seen "
            "less often each.\n",
            curves(results, drawn_to),
            f"![LFW error over photos]({drawn_to.name})\n",
        ]
    return "\n".join(told)


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
    if arguments.photos is not None and arguments.photos < 1:
        raise PersonaError(f"--photos {arguments.photos}: choose 1 or more")
    if arguments.resamples < FEWEST_RESAMPLES:
        raise PersonaError(f"--resamples {arguments.resamples}: choose {FEWEST_RESAMPLES} or more")
    faces: Path = arguments.faces
    wanted = [faces / TRAINED, faces / f"{CHOOSING}.tar", faces / REPORTED / "pairs.txt"]
    missing = [str(path) for path in wanted if not path.exists()]
    if not missing and not list((faces / TRAINED).glob("*.tar")):
        missing = [str(faces / TRAINED / "*.tar")]
    if missing:
        raise PersonaError(f"missing: {', '.join(missing)}; name the folder by --faces")
    if not arguments.teacher.is_file():
        raise PersonaError(f"missing: {arguments.teacher}; name an ONNX file by --teacher")


def main() -> None:
    """Does what is missing, then prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=["real"])
    parser.add_argument("--faces", type=Path, required=True, help="folder of the photos")
    place = "FACES/../teachers/mobilefacenet.onnx"
    parser.add_argument("--teacher", type=Path, help=f"ONNX file of the teacher (default: {place})")
    parser.add_argument("--home", type=Path, default=Path("reproduced"), help="folder of results")
    parser.add_argument("--minutes", type=float, default=60, help="minutes of each training")
    parser.add_argument("--photos", type=int, help="photos that each training sees, not minutes")
    parser.add_argument("--student", default="mobilenet_v3_small")
    parser.add_argument("--views", type=int, default=4, help="kept views of each photo")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--controls", action="store_true", help="train the controls too")
    parser.add_argument("--curves", action="store_true", help="train on fewer photos, too")
    parser.add_argument("--out", type=Path, help="write the tables to this Markdown file, too")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.teacher is None:
        arguments.teacher = arguments.faces.parent / "teachers" / "mobilefacenet.onnx"
    try:
        check(arguments)
        experiment = Experiment(arguments)
        rows = rows_of(experiment)
        for run in rows:
            experiment.do(run)
        told = page(experiment, rows)
    except PersonaError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted: run the command again and it continues")
    if arguments.out:
        arguments.out.write_text(told, encoding="utf-8")
    if arguments.json:
        runs = list(experiment.results.values())
        print(json.dumps({"hardware": hardware(), "runs": runs}, indent=2))
    else:
        print(told)


if __name__ == "__main__":
    main()

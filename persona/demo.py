"""The demo: draws faces, distils a student and evaluates it, with the commands of a user.

1. Faces are drawn and packed: many people for the teacher, an album of a few others for the
   student, triplets of others again to choose the best epoch by, and pairs of others again to
   evaluate on.
2. The teacher, a larger student, is trained on the many people. No released weights are taken, so
   that the demo is the same on every machine and downloads nothing.
3. A student is distilled from the photos of the album. The control is the same student, trained on
   the same photos by their labels alone.
4. Teacher, both students and an untrained one are evaluated. A report and a sheet of pairs are
   written.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw

from persona.errors import PersonaError
from persona.extras import check_training
from persona.workspace import HOME_VARIABLE, Workspace

if TYPE_CHECKING:
    from persona.data.raw.synthetic import Population

CROP_PX = 64
"""Side of the crops in px."""
TRIPLETS = 150
ALBUM = 24
"""People of the student's photos."""
TEACHER_STEPS, STUDENT_STEPS = 300, 360
SHORT_RUN = (*("-o", "optim.schedule=cosine"), *("-b", "32"), *("-w", "1"), *("--tracker", "none"))
"""The default schedule divides the learning rate by ten after a quarter of the run, which would
stop the learning of such a short run."""
VIEWS = ("-o", "augment.crop=0.15", "-o", "augment.jitter=0.2")
"""All see such views of each photo: so few photos would else be learned by heart."""
RELATIONS = (
    "losses={relation_bank: {size: 512, teacher_temperature: 0.1, student_temperature: 0.1}}"
)
"""How a face relates to others in the teacher's eyes. It needs no identities."""
SAME_SUMS = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_CBWR": "AVX2",
    "OMP_NUM_THREADS": "1",
}
"""Environment that holds the libraries to AVX2 and one thread a process, so that the order of sums
depends less on the machine. Processors with other vector units still differ."""
REPORT, SHEET = "report.html", "pairs.png"
SHEET_PAIRS = 6
"""Pairs of one person on the sheet, and as many of two people."""


def run_demo(home: Path, told: Callable[[str], None]) -> list[dict[str, Any]]:
    """Runs the demo in a folder.

    Args:
        home: folder for everything that it makes.
        told: called with each line that tells what is done.

    Returns:
        For each model its `role`, `parameters`, `bytes` and evaluations: `match` on the triplets,
        `verification` on the pairs.

    Raises:
        PersonaError: an extra is not installed, or one of the commands fails.
    """
    check_training("the demo")
    from persona.data.raw.synthetic import Synthetic, SyntheticAlbum, SyntheticLFW

    commands = UserCommands(home, told)
    place = Workspace.locate(home=home)
    triplets = draw_people(commands, place)
    pack = ["shard", "--image-size", str(CROP_PX)]
    sets = [[*pack, Synthetic.name, "--split", "test", "--triplets", triplets]]
    sets.append([*pack, Synthetic.name])

    # The best epoch is chosen on the triplets, so that the pairs are only used for the final
    # evaluation.
    common = ["--test-set", triplets, *SHORT_RUN]
    learns = ["mobilenet_v3_small", "--train-set", SyntheticAlbum.name, *VIEWS, *common]
    learns += ["--steps", str(STUDENT_STEPS), "--evaluate-steps", str(STUDENT_STEPS // 3)]
    untrained = "mobilenet_v3_small"

    def pack_others() -> None:
        for name in (SyntheticAlbum.name, SyntheticLFW.name):
            commands.persona(*pack, name, "--workers", "1", beside=True)

    def evaluations(model: str) -> list[list[str]]:
        sets = (triplets, SyntheticLFW.name)
        return [["evaluate", "--set", name, "--model", model] for name in sets]

    def evaluate_others() -> list[list[Any]]:
        several = (teacher, control.result(), untrained)
        return [[commands.persona(*e, beside=True) for e in evaluations(m)] for m in several]

    # Such small networks train no faster on two cores. So one core distils: the teacher, then the
    # student. The other one does what needs neither.
    with ThreadPoolExecutor(1) as beside:
        others = beside.submit(pack_others)
        commands.side_by_side(sets)
        control = beside.submit(commands.distill, *learns, "--teacher", "none", beside=True)
        seen = people_of_demo().train_identities
        commands.say(f"The teacher sees {seen} people, and their labels.")
        several = ["--train-set", Synthetic.name, *VIEWS, *common]
        several += ["--steps", str(TEACHER_STEPS), "--evaluate-steps", str(TEACHER_STEPS // 2)]
        teacher = commands.distill("mobilenet_v3_large", "--teacher", "none", *several)
        others.result()
        measured = beside.submit(evaluate_others)
        commands.say(f"The student sees {ALBUM} other people, and learns from the teacher.")
        from_teacher = ["--teacher", teacher, "-o", RELATIONS, "-o", "teacher_precision=no"]
        student = commands.distill(*learns, *from_teacher)
        of_student = commands.side_by_side(evaluations(student))
        of_teacher, of_control, of_untrained = measured.result()
    commands.say("Beside them, the same student learned from labels alone. All were evaluated:")
    commands.tell_beside()
    report = str(home / REPORT)
    shown = ["--set", SyntheticLFW.name, "--out", report]
    commands.persona("report", student, control.result(), "--teacher", teacher, *shown)
    draw_sheet(place, {"teacher": teacher, "student": student}).save(home / SHEET)
    models = [
        ("teacher", teacher, of_teacher),
        ("distilled student", student, of_student),
        ("same student, labels alone", control.result(), of_control),
        ("untrained student", untrained, of_untrained),
    ]
    return [
        {"role": role, "match": match, "verification": pairs, **size_of(model, place)}
        for role, model, (match, pairs) in models
    ]


def draw_people(commands: UserCommands, place: Workspace) -> str:
    """Draws all photos; returns the ID of the triplets."""
    from persona.data.raw.synthetic import Synthetic, draw_datasets

    population = people_of_demo()
    commands.told(
        f"drawing {population.train_identities} people for the teacher, {ALBUM} others for the "
        f"student and {untrained_people()} others to test on"
    )
    draw_datasets(place.raw, population, workers=len(os.sched_getaffinity(0)))
    made = commands.persona("triplets", "make", str(TRIPLETS), Synthetic.name, "--split", "test")
    return str(made["id"])


def people_of_demo() -> Population:
    """How many people are drawn for what."""
    from persona.data.raw.synthetic import Population

    return Population(album_identities=ALBUM)


def untrained_people() -> int:
    """Number of people in the evaluations that no model of the demo was trained on."""
    population = people_of_demo()
    return population.test_identities + population.lfw_identities


def draw_sheet(place: Workspace, models: Mapping[str, str]) -> Image.Image:
    """Draws pairs of the evaluation, each with the similarity that the models give it.

    Args:
        place: the folders of photos and models.
        models: a title and the name of each model.
    """
    import persona
    from persona.data.raw.synthetic import SyntheticLFW

    folder = place.raw / SyntheticLFW.folder
    lines = [line.split() for line in (folder / "pairs.txt").read_text().splitlines()[1:]]
    loaded = {title: persona.load(name, workspace=place) for title, name in models.items()}
    side, gap = 96, 8
    sheet = Image.new("RGB", (4 * (2 * side + 2 * gap), SHEET_PAIRS // 2 * (side + 40)), "white")
    draw = ImageDraw.Draw(sheet)
    for kind, same in enumerate((True, False)):
        drawn = 0
        # The pairs of a fold are of few people, so that every seventh pair is shown.
        for line in [line for line in lines if (len(line) == 3) == same][::7]:
            first, second = (line[0], line[1]), (line[0], line[2])
            if not same:
                second = (line[2], line[3])
            photos = [folder / p / f"{p}_{int(n):04d}.jpg" for p, n in (first, second)]
            try:
                scores = [
                    persona.verify(*photos, model=model, threshold=0.0).similarity
                    for model in loaded.values()
                ]
            except PersonaError:  # no face was found in one of the drawings
                continue
            row, column = divmod(drawn, 2)
            x, y = (2 * kind + column) * (2 * side + 2 * gap) + gap, row * (side + 40) + gap
            for number, photo in enumerate(photos):
                with Image.open(photo) as image:
                    sheet.paste(image.resize((side, side)), (x + number * side, y))
            told = ", ".join(f"{t} {s:.2f}" for t, s in zip(loaded, scores, strict=True))
            draw.text((x, y + side + 2), "one person" if same else "two people", "black")
            draw.text((x, y + side + 14), told, "black")
            drawn += 1
            if drawn == SHEET_PAIRS:
                break
    return sheet


def size_of(name: str, place: Workspace) -> dict[str, int]:
    """Returns the parameters and bytes on disk of a model.

    For an untrained network the bytes are computed from its parameters.
    """
    from persona.models.cards import CARD, read_card

    if (place.models / name / CARD).is_file():
        card = read_card(place.models / name)
        return {"parameters": card.parameters, "bytes": card.bytes}
    from persona.models.sources import load_network
    from persona.models.student import count_parameters

    parameters = count_parameters(load_network(name, place.models).network)
    return {"parameters": parameters, "bytes": 4 * parameters}


class UserCommands:
    """Runs commands as a user would type them, tells them, and returns their JSON."""

    def __init__(self, home: Path, told: Callable[[str], None]) -> None:
        self.told = told
        self.environment = os.environ | SAME_SUMS | {HOME_VARIABLE: str(home)}
        self._beside: list[str] = []

    def say(self, text: str) -> None:
        """Tells a line below an empty one."""
        self.told("")
        self.told(text)

    def persona(self, *arguments: str, beside: bool = False) -> Any:
        """Runs `persona ARGUMENTS` and returns its JSON."""
        command = [sys.executable, "-m", "persona", *arguments]
        return self._run(["persona", *arguments], command, beside=beside)

    def side_by_side(self, commands: Sequence[Sequence[str]]) -> list[Any]:
        """Runs several `persona` commands, two at once: they mostly spend their time on imports."""
        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(lambda arguments: self.persona(*arguments), commands))

    def distill(self, *arguments: str, beside: bool = False) -> str:
        """Runs `accelerate launch -m persona.distill ARGUMENTS` and returns the model's ID."""
        launch = ["launch", "--num_processes", "1", "--num_machines", "1"]
        launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "-m", "persona.distill"]
        card = self._run(
            ["accelerate", "launch", "-m", "persona.distill", *arguments],
            [sys.executable, "-m", "accelerate.commands.accelerate_cli", *launch, *arguments],
            beside=beside,
        )
        return str(card["id"])

    def tell_beside(self) -> None:
        """Tells the commands that ran beside others, each with its own messages."""
        while self._beside:
            self.told(self._beside.pop(0))

    def _run(self, shown: Sequence[str], command: Sequence[str], *, beside: bool) -> Any:
        """Runs a command. With `beside` its messages wait, so as not to cut those of another."""
        said = ["", f"$ {shlex.join(shown)}"]
        if not beside:
            list(map(self.told, said))
        done = subprocess.run(
            [*command, "--json"],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if beside else None,
            check=False,
        )
        if beside:
            self._beside += [*said, *done.stderr.decode(errors="replace").splitlines()]
        if done.returncode:
            self.tell_beside()
            raise PersonaError(f"`{shlex.join(shown)}` failed: its own message is above")
        return json.loads(done.stdout)

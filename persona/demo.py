"""The demo: draws faces, distils a student and evaluates it, with the commands of a user.

1. Faces are drawn and packed: people to train on, triplets of others to choose the best epoch by,
   and pairs of others again to evaluate on.
2. The teacher is FaceNet if its weights can be had. Otherwise a larger student is trained.
3. A student is distilled. Teacher, student and an untrained student are evaluated.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from persona.errors import PersonaError
from persona.extras import check_training
from persona.workspace import HOME_VARIABLE, Workspace

FACENET = "facenet-vggface2"
TRIPLETS = 150


@dataclass(frozen=True)
class Recipe:
    """The settings in which the demo's two teachers differ."""

    image_size: int
    teacher_epochs: int
    student_epochs: int
    batch_size: int
    extra: tuple[str, ...]
    """Further options of the student's distillation."""


DRAWN_TEACHER = Recipe(64, teacher_epochs=10, student_epochs=12, batch_size=32, extra=())
# FaceNet's identities are not the drawn ones, so only its logits can be learned from, not labels.
FACENET_TEACHER = Recipe(160, 0, student_epochs=4, batch_size=32, extra=("--hard-weight", "0"))


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
    from persona.data.raw.synthetic import Population, Synthetic, SyntheticLFW, draw_datasets

    commands = UserCommands(home, told)
    place = Workspace.locate(home=home)
    population = Population()
    told(
        f"drawing {population.train_identities} people to train on and "
        f"{population.test_identities + population.lfw_identities} others to test on"
    )
    draw_datasets(place.raw, population, workers=len(os.sched_getaffinity(0)))
    recipe = DRAWN_TEACHER if not facenet_at_hand(place, told) else FACENET_TEACHER

    size = ["--image-size", str(recipe.image_size)]
    commands.persona("shard", Synthetic.name, *size)
    triplets = commands.persona(
        "triplets", "make", str(TRIPLETS), Synthetic.name, "--split", "test"
    )["id"]
    commands.side_by_side(
        [
            ["shard", SyntheticLFW.name, *size],
            ["shard", Synthetic.name, "--split", "test", "--triplets", triplets, *size],
        ]
    )

    # The best epoch is chosen on the triplets, so that the pairs are only used for the final
    # evaluation. The default schedule divides the learning rate by ten after a quarter of the run,
    # which would stop the learning of such a short run.
    common = ["--train-set", Synthetic.name, "--test-set", triplets, "-o", "optim.schedule=cosine"]
    common += ["-b", str(recipe.batch_size), "-w", "1", "--tracker", "none"]
    teacher = FACENET
    if recipe is DRAWN_TEACHER:
        epochs = str(recipe.teacher_epochs)
        teacher = commands.distill("mobilenet_v3_large", "--teacher", "none", "-e", epochs, *common)
    epochs = str(recipe.student_epochs)
    student = commands.distill(
        "mobilenet_v3_small", "--teacher", teacher, "-e", epochs, *recipe.extra, *common
    )

    models = {
        "teacher": ("--model", teacher),
        "distilled student": ("--model", student),
        "untrained student": ("--model", "mobilenet_v3_small"),
    }
    figures = commands.side_by_side(
        [
            ["evaluate", "--set", name, *model]
            for model in models.values()
            for name in (triplets, SyntheticLFW.name)
        ]
    )
    return [
        {"role": role, "match": match, "verification": pairs, **size_of(model[1], place)}
        for (role, model), match, pairs in zip(
            models.items(), figures[::2], figures[1::2], strict=True
        )
    ]


def untrained_people() -> int:
    """Number of people in the evaluations that no model of the demo was trained on."""
    from persona.data.raw.synthetic import Population

    population = Population()
    return population.test_identities + population.lfw_identities


def facenet_at_hand(place: Workspace, told: Callable[[str], None]) -> bool:
    """Whether FaceNet's weights are here or can be downloaded; tells it if not."""
    from persona.models.weights import FACENETS, download_weights, find_weights, weight_places

    release = FACENETS[FACENET]
    try:
        if find_weights(release, place.models) is None:
            target = weight_places(release, place.models)[-1]
            download_weights(release, target, timeout_s=5, rounds=1)
    except PersonaError:
        told(
            "FaceNet's weights are neither cached nor downloadable: a mobilenet_v3_large is "
            "trained on the drawn faces and stands in as the teacher"
        )
        return False
    return True


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
        self.environment = os.environ | {HOME_VARIABLE: str(home)}

    def persona(self, *arguments: str) -> Any:
        """Runs `persona ARGUMENTS` and returns its JSON."""
        return self._run(["persona", *arguments], [sys.executable, "-m", "persona", *arguments])

    def side_by_side(self, commands: Sequence[Sequence[str]]) -> list[Any]:
        """Runs several `persona` commands, two at once: they mostly spend their time on imports."""
        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(lambda arguments: self.persona(*arguments), commands))

    def distill(self, *arguments: str) -> str:
        """Runs `accelerate launch -m persona.distill ARGUMENTS` and returns the model's ID."""
        launch = ["launch", "--num_processes", "1", "--num_machines", "1"]
        launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "-m", "persona.distill"]
        card = self._run(
            ["accelerate", "launch", "-m", "persona.distill", *arguments],
            [sys.executable, "-m", "accelerate.commands.accelerate_cli", *launch, *arguments],
        )
        return str(card["id"])

    def _run(self, shown: Sequence[str], command: Sequence[str]) -> Any:
        self.told("")
        self.told(f"$ {shlex.join(shown)}")
        done = subprocess.run(
            [*command, "--json"], env=self.environment, stdout=subprocess.PIPE, check=False
        )
        if done.returncode:
            raise PersonaError(f"`{shlex.join(shown)}` failed: its own message is above")
        return json.loads(done.stdout)

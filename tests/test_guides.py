"""The commands of the README and of the documentation: they exist, and those of a page run.

Every line of a `bash` block is a command, or several with `&&` between them. A block after
`<!-- not run: reason -->`, and a command that is indented by four blanks, are only parsed as the
command parses them, with its recipe.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from helpers import ONE_THREAD, reset_accelerate
from onnx_files import write_model
from typer.main import get_command
from typer.testing import CliRunner

from persona.cli.errors import _UsageError
from persona.config import DistillConfig, differences, load_config, to_dict
from persona.data.raw.synthetic import Population, draw_datasets
from persona.errors import PersonaError
from persona.models.cards import shipped_card, shipped_ids

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", *DOCS.rglob("*.md")])
BLOCK = re.compile(r"^(<!-- not run: [^\n]+ -->\n)?```bash\n(.*?)^```", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(
    r"^ {4}((?:persona |accelerate launch |python scripts/|\./scripts/)(?:.*\\\n)*.*)", re.MULTILINE
)
LAUNCH = "accelerate launch"
SETTINGS = (
    "input_size: 112\nalignment: five-point\nmean: [127.5, 127.5, 127.5]\nstd: [128, 128, 128]\n"
)


def commands_of(page: Path, *, run: bool = False) -> list[list[str]]:
    """The commands of a page as words; with `run` those alone that can be run here."""
    found = []
    for not_run, block in BLOCK.findall(page.read_text(encoding="utf-8")):
        if not (run and not_run):
            found += split(block)
    return found


def split(block: str) -> list[list[str]]:
    """The commands of a block, each as words."""
    lines = re.sub(r"\\\n\s*", " ", block).replace(" && ", "\n").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def indented_of(page: Path) -> list[list[str]]:
    """The commands of a page that are indented, as words."""
    return [words for found in INDENTED.findall(page.read_text("utf-8")) for words in split(found)]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def test_there_are_pages_with_commands() -> None:
    assert sum(len(commands_of(page)) for page in PAGES) > 40
    assert sum(len(indented_of(page)) for page in PAGES) > 40


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_and_options_exist(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What the classes of that page take is known where they are installed (test_extending.py).
    own = page.name == "extending.md"
    for words in [*commands_of(page), *indented_of(page)]:
        check_command(words, monkeypatch, recipe=not own)


@pytest.mark.parametrize(
    "wrong",
    [
        "persona evaluate lfw",
        "persona shards merge",
        "persona verify a.jpg",
        "persona distill --config configs/nope.yaml",
        "persona distill --config configs/embedding.yaml -o optim.learning_rate=3",
        "accelerate launch --config_file configs/nope.yaml -m persona.distill",
        "accelerate launch --no_such 2 -m persona.distill",
        "python scripts/nope.py",
        "./scripts/bench_students.py --no-such",
        "./scripts/reproduce real --no-such",
    ],
)
def test_a_wrong_command_is_found(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises((_UsageError, PersonaError, AssertionError, SystemExit)):
        check_command(wrong.split(), monkeypatch)


@pytest.mark.parametrize("name", shipped_ids())
def test_the_guide_has_the_last_command_of_a_shipped_student(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = shipped_card(name).config
    commands = map(without_launcher, commands_of(DOCS / "guides" / "persona-s.md"))
    recipes = [
        to_dict(recipe_of(words, monkeypatch))
        for words in commands
        if words[:2] == ["persona", "distill"]
    ]
    (said,) = [
        recipe
        for recipe in recipes
        if recipe["photos"] == card["photos"]
        and recipe["student"]["architecture"] == card["student"]["architecture"]
    ]
    assert (said["from_model"] is None) == (card["from_model"] is None)
    for option in ("width", "pooling", "first_stride", "last_stride"):
        assert said["student"][option] == card["student"][option]
    # The IDs of runs are others, one set was packed as two halves, and checkpoints change nothing.
    free = {"from_model", "train_set", "checkpoint_steps", "student"}
    assert not differences(
        {key: value for key, value in card.items() if key not in free},
        {key: value for key, value in said.items() if key in card and key not in free},
    )


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_photos_as_published_are_not_taken_as_aligned(page: Path) -> None:
    """`--align template` detects nothing; LFW as `persona download` fetches it is not aligned."""
    for words in map(without_launcher, commands_of(page)):
        if words[:3] == ["persona", "shard", "lfw"] and "--raw" not in words:
            assert "template" not in words, f"{name_of(page)}: {shlex.join(words)}"


def without_launcher(words: list[str]) -> list[str]:
    """A command without its variables, and Accelerate's way of starting a distillation as ours."""
    while "=" in words[0]:
        words = words[1:]
    if words[:2] == LAUNCH.split():
        return ["persona", "distill", *words[words.index("-m") + 2 :]]
    return words


def check_command(
    words: list[str], monkeypatch: pytest.MonkeyPatch, *, recipe: bool = True
) -> None:
    """A command of a page can be given so: its options, arguments and files of this project."""
    from persona.cli.app import app

    for word in words:
        value = word.rpartition("=")[2]
        assert not value.startswith("configs/") or (ROOT / value).exists(), f"no {value}"
    if words[0] == "python" or "scripts/" in words[0]:
        check_script(words[1:] if words[0] == "python" else words)
    if LAUNCH in " ".join(words):
        check_launcher(words)
    words = without_launcher(words)
    if words[0] == "persona":
        check(get_command(app), words)
    if recipe and words[:2] == ["persona", "distill"]:
        recipe_of(words, monkeypatch)


def check_script(words: list[str]) -> None:
    """The script is there, and the one in Python names each option in its source."""
    if words[0] == "-m":
        return
    script = ROOT / words[0]
    assert script.is_file(), f"no {script}"
    source = script.with_suffix(".py")  # scripts/NAME starts scripts/NAME.py
    text = source.read_text("utf-8") if source.is_file() else None
    for word in words[1:]:
        option = word.partition("=")[0]
        assert text is None or not option.startswith("--") or f'"{option}"' in text, (words, option)


def check_launcher(words: list[str]) -> None:
    """Accelerate takes the options before `-m`."""
    from accelerate.commands.launch import launch_command_parser

    launch_command_parser().parse_args(words[words.index("launch") + 1 :])


def recipe_of(words: list[str], monkeypatch: pytest.MonkeyPatch) -> DistillConfig:
    """The config of a `persona distill`. What is in the folders of a reader is not looked for."""
    from persona.cli.distill import app

    found: list[DistillConfig] = []

    def resolve(file: Path | None, given: dict[str, Any], *_: Any) -> None:
        found.append(load_config(file, given))
        raise typer.Exit

    with monkeypatch.context() as patched:
        patched.setattr("persona.distill.start.resolve_config", resolve)
        patched.chdir(ROOT)
        result = CliRunner().invoke(app, words[2:], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return found[0]


def check(command: Any, words: list[str], above: Any = None) -> None:
    """Parses the words after a command's name, and those of the commands below it.

    A command refuses arguments that are missing or too many. Nothing of it is run.
    """
    name, *words = words
    if not hasattr(command, "commands"):
        command.make_context(name, words, parent=above)
        return
    context = command.context_class(command, info_name=name, parent=above)
    _, rest, _ = command.make_parser(context).parse_args(words)
    if rest:
        name, below, rest = command.resolve_command(context, rest)
        check(below, [name, *rest], context)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a reader of the guides has it, with drawn faces and a tiny teacher."""
    home = tmp_path_factory.mktemp("guides")
    raw = home / "data" / "raw"
    population = Population(
        train_identities=4, test_identities=4, lfw_identities=20, photos=5, pairs_per_fold=4
    )
    draw_datasets(raw, population, workers=2)
    (raw / "Synthetic").rename(raw / "VGGFace2")
    (raw / "SyntheticLFW").rename(raw / "LFW")
    for name, identity in zip(
        ("ada", "bob", "eve", "joe"), sorted((raw / "VGGFace2" / "train").iterdir()), strict=True
    ):
        for number, photo in enumerate(sorted(identity.iterdir()), 1):
            target = home / "photos" / name / f"{number}.jpg"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(photo, target)
    shutil.copytree(home / "photos", home / "holidays" / "2026")
    shutil.copytree(home / "photos" / "ada", home / "crops")
    write_model(home / "teacher.onnx", side=112, width=64)
    (home / "teacher.yaml").write_text(SETTINGS)
    groups = [f"{person.name},{'ab'[n % 2]}" for n, person in enumerate((raw / "LFW").glob("*_*"))]
    (home / "groups.csv").write_text("identity,group\n" + "\n".join(groups) + "\n")
    rows = [
        f"{p.parent.name},{p.relative_to(home)}" for p in sorted((home / "photos").rglob("*.jpg"))
    ]
    (home / "people.csv").write_text("\n".join(["name,photo", *rows]) + "\n")
    (home / "configs").symlink_to(ROOT / "configs")
    return home


@pytest.mark.heavy
@pytest.mark.parametrize(
    "page", [page for page in PAGES if commands_of(page, run=True)], ids=name_of
)
def test_commands_run(page: Path, drawn: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """All commands of a page, in their order, in a fresh copy of the reader's folder."""
    from persona.cli.app import app

    home = tmp_path / "home"
    shutil.copytree(drawn, home, symlinks=True)
    monkeypatch.chdir(home)
    fixed = {"PERSONA_HOME": str(home), "ACCELERATE_USE_CPU": "true", **ONE_THREAD}
    for words in commands_of(page, run=True):
        if words[0] == "persona":
            result = CliRunner().invoke(app, words[1:], env=fixed)
            reset_accelerate()
            assert result.exit_code == 0, (words, result.output, result.exception)
            continue
        environment = dict(os.environ) | fixed
        environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
        done = subprocess.run(
            shlex.join(words) if "=" not in words[0] else f"{words[0]} {shlex.join(words[1:])}",
            shell=True,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, (words, done.stderr)

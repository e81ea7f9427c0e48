"""The commands of the README and of the documentation: they exist, and those of a page run.

Every line of a `bash` block is a command, or several with `&&` between them. A block after
`<!-- not run: reason -->` is only compared with the options that the commands have.
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
from helpers import ONE_THREAD, reset_accelerate
from onnx_files import write_model
from typer.main import get_command
from typer.testing import CliRunner

from persona.data.raw.synthetic import Population, draw_datasets

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", *DOCS.rglob("*.md")])
BLOCK = re.compile(r"^(<!-- not run: [^\n]+ -->\n)?```bash\n(.*?)^```", re.MULTILINE | re.DOTALL)
LAUNCH = "accelerate launch"
SETTINGS = (
    "input_size: 112\nalignment: five-point\nmean: [127.5, 127.5, 127.5]\nstd: [128, 128, 128]\n"
)


def commands_of(page: Path, *, run: bool = False) -> list[list[str]]:
    """The commands of a page as words; with `run` those alone that can be run here."""
    found = []
    for not_run, block in BLOCK.findall(page.read_text(encoding="utf-8")):
        if run and not_run:
            continue
        lines = re.sub(r"\\\n\s*", " ", block).replace(" && ", "\n").splitlines()
        found += [words for line in lines if (words := shlex.split(line, comments=True))]
    return found


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def test_there_are_pages_with_commands() -> None:
    assert sum(len(commands_of(page)) for page in PAGES) > 40


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_and_options_exist(page: Path) -> None:
    from persona.cli.app import app

    for words in map(without_launcher, commands_of(page)):
        if words[0] == "persona":
            check(get_command(app), words)


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


def check(command: Any, words: list[str], above: Any = None) -> None:
    """Parses the words after a command's name, and those of the commands below it."""
    name, *words = words
    context = command.context_class(command, info_name=name, parent=above)
    _, rest, _ = command.make_parser(context).parse_args(words)
    if rest and hasattr(command, "commands"):
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

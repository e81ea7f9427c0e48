"""The command that installs an extra, in each environment that Persona may run in."""

from __future__ import annotations

import importlib.util
import re
import shutil
import sys
import tomllib
from pathlib import Path

import pytest

from persona import extras
from persona.extras import DISTRIBUTION, install_command, missing

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout, in which `persona` is imported from, in an environment without pip and uv."""
    root = tmp_path / "a checkout"
    (root / "persona").mkdir(parents=True)
    (root / "pyproject.toml").touch()
    monkeypatch.setattr(extras, "__file__", str(root / "persona" / "extras.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.setattr(sys, "executable", "/my env/bin/python")
    return root


def test_a_checkout_is_named_by_its_folder(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    what = f"pip install --python '/my env/bin/python' -e '{checkout}[s3]'"
    assert install_command("s3") == f"uv {what}"
    (checkout / ".tools" / "bin").mkdir(parents=True)
    (checkout / ".tools" / "bin" / "uv").touch()
    assert install_command("s3") == f"'{checkout}/.tools/bin/uv' {what}"
    monkeypatch.setattr(shutil, "which", lambda _: "/usr/bin/uv")
    assert install_command("s3") == f"uv {what}"
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    assert install_command("s3") == f"'/my env/bin/python' -m pip install -e '{checkout}[s3]'"


def test_a_wheel_is_named_by_its_distribution(checkout: Path) -> None:
    (checkout / "pyproject.toml").unlink()
    assert install_command("s3").endswith(f"'/my env/bin/python' '{DISTRIBUTION}[s3]'")


def test_no_page_installs_the_project_from_an_index() -> None:
    """It is on none, so whoever registers its name there could give our users any code."""
    pages = list(ROOT.glob("*.md"))
    for folder in ("docs", "configs", "examples", "notebooks", "scripts"):
        pages += [path for path in (ROOT / folder).rglob("*") if path.is_file()]
    by_name = re.compile(rf"\binstall\b[^\n]*(?<![\w/.-]){DISTRIBUTION}\b".encode())
    found = [path for path in pages if by_name.search(path.read_bytes())]
    assert len(pages) > 100 and not found


def test_an_error_is_one_line_that_ends_in_the_command() -> None:
    assert str(missing("videos need PyAV", "video")) == (
        f"videos need PyAV: {install_command('video')}"
    )


def test_every_extra_that_is_named_exists() -> None:
    assert PROJECT["name"] == DISTRIBUTION
    known = set(PROJECT["optional-dependencies"])
    named = set()
    for path in (ROOT / "persona").rglob("*.py"):
        text = path.read_text()
        named |= set(re.findall(r'(?:missing\(.*|install_command\()["\'](\w+)["\']\)', text))
    assert named and named <= known


def test_nothing_tells_to_install_another_project() -> None:
    texts = [*(ROOT / "persona").rglob("*.py"), *(ROOT / "docs").glob("*.md")]
    texts += [*ROOT.glob("*.toml"), ROOT / "README.md", *(ROOT / "examples").iterdir()]
    for path in texts:
        assert not re.search(r"(?<![\w-])persona\\*\[", path.read_text()), path


@pytest.mark.parametrize("name", ["requirements.txt", "scripts/uv.txt"])
def test_what_the_scripts_install_is_pinned_by_hashes_alone(name: str) -> None:
    pinned = (ROOT / name).read_text()
    requirements = re.split(r"\n(?=\w)", re.sub(r"^#.*\n", "", pinned, flags=re.MULTILINE).strip())
    assert all(
        re.match(r"[\w.-]+(\[\w+\])?==[^\n]*\\\n +--hash=sha256:", one) for one in requirements
    )
    assert "://" not in pinned  # a mirror has the same files

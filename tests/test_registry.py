from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import environment
from plug_ins import install

from persona.errors import PersonaError
from persona.registry import DATASETS, LOSSES, METHODS, Registry

GROUP = "persona.test_things"


def registry(group: str = GROUP) -> Registry[type]:
    """One of losses that has read no entry points yet."""
    return Registry("thing", "persona.training.losses", group)


def test_names_are_known_without_importing_what_they_name() -> None:
    code = (
        "import sys\nfrom persona import registry as r\n"
        "known = [r.LOSSES, r.METHODS, r.BACKBONES, r.PROTOCOLS, r.DATASETS, r.DATASET_KINDS]\n"
        "print(*[len(list(one)) for one in known])\n"
        "print({'torch', 'numpy', 'persona.training.losses'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    counts, imported = done.stdout.splitlines()
    assert min(map(int, counts.split())) >= 2
    assert imported == "set()"


def test_importing_a_class_of_personas_reads_no_other_source() -> None:
    """Reading those of all datasets takes 30 ms, and `persona recognise` imports their base."""
    code = (
        "import persona.data.raw.base\nfrom persona import registry as r\n"
        "print(len(r.DATASET_KINDS._items))\n"
        "print('built_in' in vars(r.DATASETS) or 'built_in' in vars(r.DATASET_KINDS))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    registered, read = done.stdout.split()
    assert registered != "0" and read == "False"


def test_a_name_is_read_from_the_source_whatever_its_file_is_called() -> None:
    assert METHODS.built_in["der++"] == "persona.learning.methods.der_plus_plus"
    assert METHODS.built_in["replay-herding"] == "persona.learning.methods.replay"
    assert "abc" not in METHODS and METHODS.get("abc") is None
    assert list(DATASETS) == sorted(DATASETS)


def test_everything_is_called_what_its_source_says() -> None:
    for name in LOSSES.built_in:
        assert LOSSES.find(name).name == name
    for name in METHODS.built_in:
        assert METHODS.find(name).name == name


def test_an_unknown_name_is_told_with_the_nearest() -> None:
    with pytest.raises(PersonaError, match=r"unknown loss 'arcfase'; did you mean 'arcface'"):
        LOSSES.find("arcfase")
    with pytest.raises(PersonaError, match=r"unknown head 'arcfase' in my.yaml; did you mean"):
        LOSSES.find("arcfase", called="head", where="my.yaml")


def test_a_name_of_personas_own_cannot_be_taken() -> None:
    class Mine:
        name = "arcface"

    with pytest.raises(PersonaError, match=r"'arcface' of \w*test_registry has the name of one of"):
        LOSSES.add("arcface", Mine)
    assert LOSSES.find("arcface").__module__ == "persona.training.losses.arcface"


def test_a_package_that_is_broken_is_named_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "broken_faces.py").write_text("raise RuntimeError('no GPU\\nat all')")
    (tmp_path / "empty_faces.py").write_text("")
    points = {"odd": "broken_faces:Odd", "gone": "nowhere:Gone", "empty": "empty_faces"}
    install(tmp_path, "broken-faces", {GROUP: points})
    monkeypatch.syspath_prepend(tmp_path)
    things = registry()
    assert {"odd", "gone", "empty"} <= set(things)
    with pytest.raises(PersonaError) as raised:
        things.find("odd")
    assert str(raised.value) == (
        "the thing 'odd' of package broken-faces cannot be loaded (RuntimeError: no GPU): mend or "
        "remove broken-faces"
    )
    with pytest.raises(PersonaError, match=r"broken-faces cannot be loaded \(ModuleNotFoundError"):
        things.find("gone")
    with pytest.raises(PersonaError, match="broken-faces defines no thing called 'empty'"):
        things.find("empty")
    with caplog.at_level(logging.WARNING):
        assert not {"odd", "gone", "empty"} & things_of(things).keys()
    assert caplog.text.count("broken-faces") >= 3


def things_of(things: Registry[type]) -> dict[str, type]:
    """All that load, without Persona's own, which are in another registry."""
    things.built_in = {}
    return things.load_all()


def test_of_two_packages_with_one_name_the_first_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    install(tmp_path, "one-faces", {GROUP: {"thing": "one:Thing", "arcface": "one:Arc"}})
    install(tmp_path, "two-faces", {GROUP: {"thing": "two:Thing"}})
    monkeypatch.syspath_prepend(tmp_path)
    things = registry()
    assert things.built_in["arcface"] == "persona.training.losses.arcface"
    assert "thing" in set(things)
    assert caplog.text.count("is left out") == 2
    assert "'arcface' of package one-faces is left out: Persona has one of that name" in caplog.text


def test_a_broken_package_breaks_no_help_and_no_other_command(tmp_path: Path) -> None:
    (tmp_path / "broken_faces.py").write_text("raise RuntimeError")
    groups = ("losses", "datasets", "backbones", "methods", "protocols", "dataset_kinds")
    points = {f"persona.{group}": {"odd": "broken_faces:Odd"} for group in groups}
    install(tmp_path, "broken-faces", points)
    code = "import sys\nfrom persona.cli import main\nsys.argv[1:] = sys.argv[1].split()\nmain()"

    def said(command: str) -> tuple[int, str, str]:
        done = subprocess.run(
            [sys.executable, "-c", code, command],
            env=environment(tmp_path, PYTHONPATH=f"{tmp_path}:{Path(__file__).parents[1]}"),
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr

    for command in ("--help", "distill --help", "learn --help", "evaluate --help"):
        assert said(command)[::2] == (0, "")
    code_, out, err = said("datasets")
    assert code_ == 0 and "vggface2" in out
    assert err.count("of package broken-faces cannot be loaded") == 2
    code_, _, err = said("shard odd")
    assert (code_, err.strip()) == (
        1,
        "error: the dataset 'odd' of package broken-faces cannot be loaded (RuntimeError: ): mend "
        "or remove broken-faces",
    )

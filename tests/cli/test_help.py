"""What the commands say of themselves, and of a command line that is none."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from helpers import environment
from rich.text import Text
from typer.main import get_command

from persona.cli.app import app
from persona.cli.commands import REGISTRIES
from persona.cli.errors import explain
from persona.cli.output import keep_brackets


def commands(command: Any, *names: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield names, command
    for name, below in getattr(command, "commands", {}).items():
        yield from commands(below, *names, name)


PLAIN = dict(commands(get_command(app)))


def named(text: str) -> str:
    """A help text with the names of the registries that it mentions."""
    for placeholder, registry in REGISTRIES.items():
        text = text.replace(placeholder, ", ".join(registry))
    return text


@pytest.mark.parametrize("names", PLAIN, ids=" ".join)
def test_no_help_text_loses_a_bracket(
    names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is printed on a terminal so wide that no line breaks has each text as it was written."""
    monkeypatch.setenv("TERMINAL_WIDTH", "1000")
    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", 1000)
    command = get_command(app)
    keep_brackets(command)
    for name in names:
        command = command.commands[name]  # type: ignore[attr-defined]
    with command.make_context("persona", [], resilient_parsing=True) as context:
        command.get_help(context)  # Rich prints it
    shown = " ".join(capsys.readouterr().out.split())
    for text in [PLAIN[names].help, *(getattr(one, "help", "") for one in PLAIN[names].params)]:
        assert " ".join(named(text or "").split()) in shown
    for below in getattr(PLAIN[names], "commands", {}).values():
        assert Text(below.get_short_help_str(1000)).plain in shown


def texts(path: Path) -> Iterator[str]:
    """The texts in a module. What an f-string puts in is VALUE."""
    tree = ast.parse(path.read_text())
    joined = [node for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)]
    parts = {id(part) for node in joined for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
            yield node.value
    for node in joined:
        yield "".join(
            str(getattr(part, "value", "")) if isinstance(part, ast.Constant) else "VALUE"
            for part in node.values
        )


def fault_of(words: list[str]) -> str | None:
    """What is wrong with the words after `persona`. Words that are not of a command end it."""
    names: tuple[str, ...] = ()
    words = [word.rstrip(".:'\"") for word in words]
    while words and (*names, words[0]) in PLAIN:
        names += (words.pop(0),)
    if not names:
        return None
    options = {
        name: one for one in PLAIN[names].params for name in (*one.opts, *one.secondary_opts)
    }
    room = sum(
        one.nargs if one.nargs > 0 else 99
        for one in PLAIN[names].params
        if one.param_type_name == "argument"
    )
    while words:
        name, _, value = words.pop(0).partition("=")
        if name.startswith("-"):
            if name not in {*options, "--help"}:
                return f"{' '.join(names)} has no {name}"
            if not (value or name == "--help" or options[name].is_flag) and words:
                words.pop(0)
        elif name.isupper():
            room -= 1
        else:
            break
    return f"{' '.join(names)} takes fewer arguments" if room < 0 else None


def test_every_command_that_a_text_names_can_be_given_so() -> None:
    found = {}
    for path in (Path(__file__).parents[2] / "persona").rglob("*.py"):
        for text in texts(path):
            for said in re.findall(r"(?<![-\w/.])persona ([a-z][^`\n;,)]*)", text):
                found[path.name, said] = fault_of(said.split())
    assert len(found) > 150
    assert not {place: fault for place, fault in found.items() if fault is not None}
    assert fault_of(["gallery", "calibrate", "SET"]) == "gallery calibrate takes fewer arguments"
    assert fault_of(["gallery", "list", "--no-such"]) == "gallery list has no --no-such"


def test_only_the_named_command_is_built() -> None:
    """Building all of them takes longer than most commands need to start."""
    for words, kept in (
        (["recognise", "verify.jpg"], ["recognise"]),
        (["--debug", "gallery", "list"], ["gallery"]),
        (["recognize", "a.jpg"], sorted(PLAIN[()].commands)),  # the error proposes others
        (["--help"], sorted(PLAIN[()].commands)),
    ):
        assert sorted(get_command(app.narrowed(words)).commands) == kept  # type: ignore[attr-defined]
    assert sorted(get_command(app).commands) == sorted(PLAIN[()].commands)  # type: ignore[attr-defined]


def test_the_hints_are_there_to_be_lost() -> None:
    texts = [
        param.help or "" for one in PLAIN.values() for param in one.params if hasattr(param, "help")
    ]
    assert sum("[default: " in text for text in texts) > 60


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("distil",), "persona: no such command 'distil'; did you mean 'distill'?"),
        (("models", "lst"), "persona models: no such command 'lst'; did you mean 'list'?"),
        (("xyz",), "persona: no such command 'xyz'; see persona --help"),
        (
            ("distill", "--tempreature", "3"),
            "persona distill: no option --tempreature; did you mean --temperature?",
        ),
        (("shard",), "persona shard: missing argument 'dataset'; see persona shard --help"),
        (("evaluate", "--set"), "option '--set' requires an argument; see --help"),
        (
            ("distill", "-e", "x"),
            "persona distill: invalid value for '--epochs' / '-e': Input should be a valid integer,"
            " unable to parse string as an integer; see persona distill --help",
        ),
    ],
)
def test_a_wrong_command_line_is_one_line_with_what_is_nearest(
    arguments: tuple[str, ...], line: str
) -> None:
    with pytest.raises(typer.BadParameter.__mro__[1]) as raised:
        command = get_command(app)
        with command.make_context("persona", list(arguments)) as context:
            command.invoke(context)
    assert explain(raised.value) == (line, 2)


def test_it_is_alone_on_stderr_and_without_a_command_the_help_is_shown(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "persona"]
    options: Any = {"env": environment(tmp_path), "capture_output": True, "text": True}
    wrong = subprocess.run([*command, "distil"], **options, check=False)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr == "error: persona: no such command 'distil'; did you mean 'distill'?\n"
    done = subprocess.run(command, **options, check=False)
    assert (done.returncode, done.stderr) == (2, "")
    assert "distill" in done.stdout


def test_one_option_names_the_network() -> None:
    for name in ("evaluate", "verify", "embed", "enroll", "recognise", "serve", "learn"):
        options = {option for p in PLAIN[(name,)].params for option in p.opts}
        assert "--model" in options and "--student" not in options
        assert ("--teacher" in options) == (name == "learn")  # there it is another network

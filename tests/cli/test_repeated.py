"""An option that is given twice: the last one counts, and that is said."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import _here

from persona.cli.app import app
from persona.cli.commands import told_twice
from persona.config import read_options
from persona.errors import PersonaError


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("datasets", "--raw", "a", "--raw", "b"), "note: --raw is given 2 times: the last, b, "),
        (
            ("learn", "--on", "x", "--steps", "1", "--steps", "2", "--steps", "3"),
            "note: --steps is given 3 times: the last, 3, counts",
        ),
        (
            ("models", "list", "--models", "m", "--models=n"),
            "--models is given 2 times: the last, n",
        ),
        (
            ("learn", "--student", "a", "--on", "x", "--model", "b"),
            "note: --model is given 2 times: the last, b, counts",
        ),
        (("datasets", "--json", "--json"), None),
        (("datasets", "--raw", "a"), None),
    ],
)
def test_which_value_counts_is_said(
    arguments: tuple[str, ...], said: str | None, tmp_path: Path
) -> None:
    stderr = _here(app, arguments, tmp_path).stderr
    assert said in stderr if said is not None else "times" not in stderr


def test_values_of_a_recipe_named_twice(capsys: pytest.CaptureFixture[str]) -> None:
    options = {"optim.lr": 0.1, "epochs": 3, "seed": None}
    assert read_options(options, ["optim.lr=0.2", "seed=4"], told_twice) == {
        "optim.lr": 0.2,
        "epochs": 3,
        "seed": 4,
    }
    assert capsys.readouterr().err == "note: optim.lr is given 2 times: the last, 0.2, counts\n"
    read_options({}, ["a=1", "b=2", "a=3"], told_twice)
    assert capsys.readouterr().err == "note: a is given 2 times: the last, 3, counts\n"


def test_what_a_command_gives_itself(capsys: pytest.CaptureFixture[str]) -> None:
    """Its default is nothing that was given before, and what it fixes is not dropped silently."""
    given = read_options(
        {"resamples": None}, ["resamples=9"], told_twice, defaults={"resamples": 5}
    )
    assert given == {"resamples": 9} and not capsys.readouterr().err
    assert read_options({}, [], told_twice, defaults={"resamples": 5}) == {"resamples": 5}
    with pytest.raises(PersonaError, match=r"^-o on: this command sets on itself: leave it out$"):
        read_options({}, ["on=celeb"], told_twice, fixed=("on",))


def test_a_value_named_alone_and_in_its_group() -> None:
    with pytest.raises(PersonaError, match=r"^optim\.lr is given twice, once in optim="):
        read_options({"optim.lr": 0.1}, ["optim={lr: 0.2}"], told_twice)

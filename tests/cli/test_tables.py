from __future__ import annotations

import io
import re
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from persona.api import embedding
from persona.cli import group
from persona.cli.output import TableColumn, note, print_page, print_sentence, print_table
from persona.evaluation.sentences import Sentence

ID = "mobilenet_v3_small-20261129-054434-0385-ema"
COLUMNS = (TableColumn("id", whole=True), TableColumn("architecture"), TableColumn("created"))
ROW = (ID, "a mobile network", "2026-11-29 05:44")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def printed(columns: int, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    out, err = Terminal(), io.StringIO()
    monkeypatch.setenv("COLUMNS", str(columns))
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        print_table(COLUMNS, [ROW])
    return re.sub(r"\x1b\[[\d;]*m", "", out.getvalue()), err.getvalue()


@pytest.mark.parametrize(("width", "left_out"), [(120, 0), (80, 1), (60, 2), (20, 2)])
def test_an_id_is_never_cut_and_the_last_columns_go_first(
    width: int, left_out: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, err = printed(width, monkeypatch)
    assert ID in out
    assert [cell in out for cell in ROW].count(False) == left_out
    told = ["architecture", "created"][2 - left_out :]
    assert err == (
        f"left out, because the terminal is too narrow: {', '.join(told)}\n" if told else ""
    )
    if width >= 60:
        assert max(map(len, out.splitlines())) <= width


def test_on_a_pipe_nothing_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(COLUMNS, [ROW])
    out, err = capsys.readouterr()
    assert all(cell in out for cell in ROW) and not err


def in_terminal(columns: int, monkeypatch: pytest.MonkeyPatch, call: Any) -> tuple[str, str]:
    """What a call prints on stdout and stderr of a terminal, styles included."""
    out, err = Terminal(), Terminal()
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        call()
    return out.getvalue(), err.getvalue()


SENTENCE = Sentence("1.4 points above", f" the other on lfw (95 % 0.9 to 1.9, {ID}).", f"{ID} is ")


def test_the_headline_of_a_sentence_is_bold_and_notes_are_dim(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, _ = in_terminal(200, monkeypatch, lambda: print_sentence(SENTENCE))
    assert "is \x1b[1m1.4 points above\x1b[0m the other" in out
    _, err = in_terminal(200, monkeypatch, lambda: note("6 pairs"))
    assert err == "\x1b[2m6 pairs\x1b[0m\n"
    _, err = in_terminal(200, monkeypatch, lambda: note("warning: it has collapsed"))
    assert err == "warning: it has collapsed\n"
    print_sentence(SENTENCE)
    note("6 pairs\x1b")
    assert capsys.readouterr() == (f"{SENTENCE}\n", "6 pairs\\x1b\n")


SHA = "0123456789abcdef" * 4
SECTIONS = [
    ("Training", [("set", "one of many words that are broken between words " * 3), ("run", ID)]),
    ("Files", [("weights-0123456789ab.safetensors", "3,712,345 bytes"), ("", SHA)]),
]


@pytest.mark.parametrize("width", [120, 80, 74])
def test_a_page_fits_and_cuts_no_word(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    lead = f"A network that is called {ID} and has learned from another one, {ID}."
    out, _ = in_terminal(width, monkeypatch, lambda: print_page(ID, lead, SECTIONS))
    assert out.startswith(f"\x1b[1m{ID}\x1b[0m\n")
    plain = re.sub(r"\x1b\[[\d;]*m", "", out)
    assert max(map(len, plain.splitlines())) <= width
    words = " ".join([ID, lead, *(" ".join([t, *map(" ".join, rows)]) for t, rows in SECTIONS)])
    assert plain.split() == words.split()
    assert "\n\nTraining\n  set  one of many" in plain and f"\n  run  {ID}\n" in plain
    after = plain.splitlines()[plain.splitlines().index("Training") + 2]
    assert after.startswith("       ") and after[7] != " "


def test_a_page_on_a_pipe_is_plain_and_unbroken(capsys: pytest.CaptureFixture[str]) -> None:
    print_page(ID, "A \x1b[2J network.", SECTIONS)
    out, _ = capsys.readouterr()
    assert "\x1b" not in out and "A \\x1b[2J network." in out
    assert len(out.splitlines()) == 10


def test_photos_without_a_face_are_told_apart_by_the_words_of_the_api(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding, "NO_FACE", "nobody is in it")
    found: Any = SimpleNamespace(
        names={}, groups={}, people=0, faces=0, threshold=0.5, source="set", duplicates={}
    )
    found.left_out = {"a.jpg": "nobody is in it", "b.jpg": "truncated"}
    group._tell(found, 2, None)
    told = capsys.readouterr()
    assert "1 photo without a face" in told.err
    assert "1 photo is left out, such as b.jpg: truncated" in told.err

from __future__ import annotations

import io
import re
import time

import pytest

from persona.progress import progress_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def watch(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """What a bar writes to a terminal, 200 columns wide."""
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)  # in the test itself, or pytest takes it back
    return stream


def last_line(terminal: Terminal) -> str:
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    return re.split(r"[\r\n]+", plain.strip())[-1]


def rate(terminal: Terminal) -> float:
    found = re.search(r"([\d,.]+) photos/s", last_line(terminal))
    assert found is not None, last_line(terminal)
    return float(found[1].replace(",", ""))


def test_the_closing_rate_is_units_over_wall_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though they come in lots; those of an earlier run, whenever they are told, do not count."""
    terminal = watch(monkeypatch)
    start = time.perf_counter()
    with progress_bar("packing", total=1000, unit="photos", done=300) as advance:
        advance(400, earlier=True)
        time.sleep(0.5)
        advance(150)
        advance(150)
    seconds = time.perf_counter() - start
    assert "1000/1000" in last_line(terminal)
    assert 300 / seconds <= rate(terminal) <= 300 / 0.5


def test_a_bar_that_ends_at_once_says_its_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = watch(monkeypatch)
    with progress_bar("packing", total=3, unit="photos") as advance:
        advance(3)
    assert rate(terminal) > 3


def test_what_took_no_work_has_no_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = watch(monkeypatch)
    with progress_bar("packing", total=3, unit="photos", done=3):
        time.sleep(0.01)
    assert "– photos/s" in last_line(terminal)


def test_without_a_total_the_rate_is_that_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = watch(monkeypatch)
    with progress_bar("unpacking", total=0, unit="photos") as advance:
        time.sleep(0.2)
        advance(100)
    assert 0 < rate(terminal) <= 500


def test_nobody_watches_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("packing", total=3, unit="photos") as advance:
        advance(3, earlier=True)
    assert capsys.readouterr() == ("", "")

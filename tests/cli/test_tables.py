from __future__ import annotations

import io
import re
import sys

import pytest

from persona.cli.output import TableColumn, print_table

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

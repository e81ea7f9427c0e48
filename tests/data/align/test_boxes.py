from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest

from persona.data.align.boxes import read_boxes
from persona.errors import PersonaError

HEADER = "source,x,y,width,height\n"


def test_boxes_are_read(tmp_path: Path) -> None:
    path = tmp_path / "boxes.csv"
    path.write_text("\ufeff" + HEADER + '"a, b/1.jpg",1,2.5,10,20\n\nc.jpg,-3,0,0,-1\n')
    assert read_boxes(path) == {"a, b/1.jpg": (1, 2.5, 11, 22.5), "c.jpg": (-3, 0, -3, -1)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"line 1: expected the header source,x,y,width,height"),
        ("a.jpg,1,2,3,4\n", r"line 1: expected the header"),
        (HEADER, r"has no box: expected"),
        (
            HEADER + "a.jpg,1,2,3\n",
            r"line 2: expected source,x,y,width,height, found 'a.jpg,1,2,3'",
        ),
        (HEADER + "a.jpg,1,2,3,4,5\n", r"line 2: expected"),
        (HEADER + "a.jpg,1,2,3,4\nb.jpg,1,2,x,4\n", r"line 3: expected .*'b.jpg,1,2,x,4'"),
        (HEADER + "a.jpg,1,2,nan,4\n", r"line 2: a source and four finite numbers"),
        (HEADER + ",1,2,3,4\n", r"line 2: a source and four finite numbers"),
        (HEADER + "a.jpg,1,2,3,4\na.jpg,1,2,3,4\n", r"line 3: a.jpg has a box already"),
        (HEADER + 'a.jpg,"1\n', r"line 2: unexpected end of data"),
    ],
)
def test_faults_are_named_with_their_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "boxes.csv"
    path.write_text(text)
    with pytest.raises(PersonaError, match=message):
        read_boxes(path)


def test_files_that_are_no_csv(tmp_path: Path) -> None:
    with pytest.raises(PersonaError, match="no such file"):
        read_boxes(tmp_path / "none.csv")
    with pytest.raises(PersonaError, match="is a folder: expected a CSV of source,x,y"):
        read_boxes(tmp_path)
    (tmp_path / "x.csv").write_bytes(HEADER.encode() + b"\xff\xfe,1,2,3,4\n")
    with pytest.raises(PersonaError, match="is not in UTF-8: save it as UTF-8"):
        read_boxes(tmp_path / "x.csv")


def test_a_spreadsheet_may_write_semicolons_and_decimal_commas(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("source;x;y;width;height\na.jpg;1,5;2;3;4\n", encoding="utf-8-sig")
    assert read_boxes(path) == {"a.jpg": (1.5, 2, 4.5, 6)}


def test_a_line_without_an_end_is_not_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    with path.open("w") as file:
        file.write(HEADER + "a.jpg,1,2,3,4\n")
        for _ in range(32):
            file.write("x" * (1 << 20))
    tracemalloc.start()
    with pytest.raises(PersonaError, match="line 3 is longer than 65,536 characters"):
        read_boxes(path)
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()

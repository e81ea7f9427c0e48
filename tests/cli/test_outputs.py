"""An output that cannot be written is refused before the work whose result it would hold."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest
from helpers import persona_error_here

import persona

COMMANDS = {
    "embed": ("embed", "nowhere", "--out", "x.npz"),
    "group": ("group", "nowhere", "--out", "x.csv"),
    "scores": ("evaluate", "--set", "nowhere", "--scores", "x.csv"),
    "names": ("evaluate", "--set", "nowhere", "--overlap-names", "x.txt"),
    "audit": ("gallery", "audit", "--out", "x.html"),
    "unknown": ("gallery", "unknown", "--out", "x.html"),
    "refused": ("gallery", "import", "people.csv", "--refused", "x.csv"),
    "export": ("export", "persona-s", "--set", "nowhere", "--out", "x.onnx"),
    "page": ("export", "persona-s", "--set", "nowhere", "--format", "web", "--out", "x"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_file_lies_where_the_folder_should_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The inputs do not exist, either: whether the output can be written is asked first."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "people.csv").write_text("name,photo\nAda,ada.jpg\n")
    *command, out = COMMANDS[name]
    error = persona_error_here(*command, f"file/{out}", home=tmp_path)
    assert error.startswith(f"file/{out}")
    assert f" cannot be written: {tmp_path / 'file'} is no folder" in error
    assert {path.name for path in tmp_path.iterdir()} == {"file", "people.csv"}


def test_a_report_that_cannot_be_written(tmp_path: Path) -> None:
    faces = cast(persona.FaceSet, None)  # nothing is looked at
    (tmp_path / "report.html").mkdir()
    with pytest.raises(persona.PersonaError, match=r"report\.html is a folder: name a file"):
        persona.write_report(["persona-s"], faces, out=tmp_path / "report.html")

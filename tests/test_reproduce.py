"""scripts/reproduce.py: the parts it draws, its power law, and its refusals."""

from __future__ import annotations

import io
import runpy
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from persona.errors import PersonaError

SCRIPT = Path(__file__).parents[1] / "scripts" / "reproduce.py"


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT))


def write_tar(path: Path, count: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number in range(count):
            data = f"{path.stem} {number}".encode()
            member = tarfile.TarInfo(f"{number}.jpg")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def contents(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {m.name: file.read() for m in tar if (file := tar.extractfile(m)) is not None}


def test_the_parts_hold_each_photo_once_and_depend_on_the_seed_alone(
    script: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = script["split_photos"]
    monkeypatch.setitem(split.__globals__, "PARTS", {"few": 3, "more": 4, "rest": None})
    write_tar(tmp_path / "faces" / "a.tar", 6)
    write_tar(tmp_path / "faces" / "b.tar", 6)
    found = []
    for home, seed in (("one", 0), ("two", 0), ("three", 1)):
        parts = split(tmp_path / "faces", tmp_path / home, seed)
        found.append([contents(part / "photos.tar") for part in parts])
    first, second, other = found
    assert [len(part) for part in first] == [3, 4, 5]
    everything = {name: data for part in first for name, data in part.items()}
    assert everything == {f"{t}/{n}.jpg": f"{t} {n}".encode() for t in "ab" for n in range(6)}
    assert first == second != other


def test_a_part_without_photos_is_left_out(
    script: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = script["split_photos"]
    monkeypatch.setitem(split.__globals__, "PARTS", {"few": 3, "rest": None})
    write_tar(tmp_path / "faces" / "a.tar", 2)
    assert [part.name for part in split(tmp_path / "faces", tmp_path / "home", 0)] == ["few"]


@pytest.mark.parametrize(
    ("content", "told"), [(b"", "no tar, or damaged"), (b"x" * 2000, "no tar, or damaged")]
)
def test_a_damaged_tar_is_named(
    script: dict[str, Any], tmp_path: Path, content: bytes, told: str
) -> None:
    write_tar(tmp_path / "faces" / "a.tar", 2)
    (tmp_path / "faces" / "b.tar").write_bytes(content)
    with pytest.raises(PersonaError, match=rf"b\.tar is {told}"):
        script["split_photos"](tmp_path / "faces", tmp_path / "home", 0)


def test_what_is_no_photo_is_left_out_and_mended_photos_are_taken(
    script: dict[str, Any], tmp_path: Path
) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("read.txt"))
    (tmp_path / "faces").mkdir()
    (tmp_path / "a.tar").rename(tmp_path / "faces" / "a.tar")
    with pytest.raises(PersonaError, match="hold no photos"):
        script["split_photos"](tmp_path / "faces", tmp_path / "home", 0)
    write_tar(tmp_path / "faces" / "a.tar", 2)
    parts = script["split_photos"](tmp_path / "faces", tmp_path / "home", 0)
    assert len(contents(parts[0] / "photos.tar")) == 2
    write_tar(tmp_path / "faces" / "a.tar", 30)
    with pytest.raises(PersonaError, match=r"other photos.*--home"):
        script["split_photos"](tmp_path / "faces", tmp_path / "home", 0)


def test_the_power_law_is_found_again(script: dict[str, Any]) -> None:
    points = [(count, 2.5 * count**-0.4) for count in (100, 1_000, 30_000)]
    assert script["power_law"](points) == pytest.approx((2.5, 0.4))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--minutes", "0"], "--minutes 0: choose more than 0"),
        (["--minutes", "nan"], "--minutes nan: choose more than 0"),
        (["--photos", "0"], "--photos 0: choose 1 or more"),
        ([], "selection.tar"),
    ],
)
def test_what_is_missing_or_out_of_range_is_told_in_one_line(
    tmp_path: Path, options: list[str], told: str
) -> None:
    write_tar(tmp_path / "unlabelled" / "a.tar", 1)
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "real", "--faces", str(tmp_path), *options],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert told in done.stderr and done.stderr.count("\n") == 1

"""scripts/draw_views.py: the views it stores, what it does when it is run again, its refusals."""

from __future__ import annotations

import io
import runpy
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
import torch

SCRIPT = Path(__file__).parents[1] / "scripts" / "draw_views.py"
RECIPE = str(Path(__file__).parents[1] / "configs" / "faces_112.yaml")
PHOTOS, PER_TAR = 70, 50


@pytest.fixture
def script() -> dict[str, Any]:
    found = runpy.run_path(str(SCRIPT))
    found["draw"].__globals__["PER_TAR"] = PER_TAR  # no multiple of the batch
    return found


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    stream = np.random.default_rng(0)
    for part in "ab":
        with tarfile.open(folder / f"{part}.tar", "w") as tar:
            for number in range(PHOTOS // 2):
                grey = np.full((32, 32, 3), stream.integers(256), dtype=np.uint8)
                add(tar, f"{number}.jpg", simplejpeg.encode_jpeg(grey))
    return folder


def stored(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.glob("*.tar"))}


def names_in(out: Path) -> list[str]:
    names = []
    for path in sorted(out.glob("*.tar")):
        with tarfile.open(path) as tar:
            names += tar.getnames()
    return names


def test_interrupted_views_are_gone_on_with_and_the_same(
    script: dict[str, Any], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "views"
    command = [str(photos), str(out), "--config", RECIPE, "--seed", "3", "--blend", "0.5"]
    script["main"](command)
    whole = stored(out)
    assert list(whole) == ["p00.tar", "p01.tar"]
    assert names_in(out) == [f"{number:06d}.jpg" for number in range(PHOTOS)]
    assert capsys.readouterr().out == f"{out}: 70 views\n"
    written = [(out / name).stat().st_mtime_ns for name in whole]
    script["main"](command)
    assert [(out / name).stat().st_mtime_ns for name in whole] == written
    for name in whole:
        (out / name).unlink()
        script["main"](command)
        assert stored(out) == whole
    script["main"]([*command[:1], str(tmp_path / "others"), *command[2:5], "4", *command[6:]])
    assert not set(stored(tmp_path / "others").values()) & set(whole.values())
    with pytest.raises(SystemExit, match="holds other views"):
        script["main"]([*command[:5], "4", *command[6:]])
    assert stored(out) == whole


def test_a_blended_photo_keeps_at_least_half_of_itself(script: dict[str, Any]) -> None:
    images = torch.zeros(32, 3, 2, 2, dtype=torch.uint8)
    images[:16] = 200
    mixed = script["blend"](images, 1.0, np.random.default_rng(0))
    assert (mixed[:16] >= 100).all() and (mixed[16:] <= 100).all()
    assert ((mixed != images).flatten(1).all(dim=1)).sum() > 8
    assert torch.equal(script["blend"](images, 0.0, np.random.default_rng(0)), images)


def test_refusals_are_one_line(script: dict[str, Any], photos: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "views")
    with pytest.raises(SystemExit, match=r"has no \*.tar of photos"):
        script["main"]([str(tmp_path), out, "--config", RECIPE])
    with tarfile.open(photos / "c.tar", "w") as tar:
        add(tar, "notes.txt", b"no photo")
    with pytest.raises(SystemExit, match=r"notes\.txt is not a JPEG"):
        script["main"]([str(photos), out, "--config", RECIPE])
    with tarfile.open(photos / "c.tar", "w") as tar:
        add(tar, "large.jpg", simplejpeg.encode_jpeg(np.zeros((64, 64, 3), dtype=np.uint8)))
    with pytest.raises(SystemExit, match="several sizes"):
        script["main"]([str(photos), out, "--config", RECIPE])
    (photos / "c.tar").write_bytes(b"no tar")
    with pytest.raises(SystemExit, match="cannot be read as a tar"):
        script["main"]([str(photos), out, "--config", RECIPE])
    for share in ("1.5", "nan"):
        with pytest.raises(SystemExit):
            script["main"]([str(photos), out, "--config", RECIPE, "--blend", share])

"""docs/extending.md, word for word, as a package outside Persona that its commands find and use."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from conftest import jpeg
from helpers import environment
from plug_ins import install

DOC = Path(__file__).parents[1] / "docs" / "extending.md"
BLOCK = re.compile(r"^`([\w/.]+)`\n\n```\w+\n(.*?)^```", re.MULTILINE | re.DOTALL)

USE = r"""
import json
from pathlib import Path

from helpers import distill_here, persona_here, persona_error_here

home = Path({home!r})
flat = ("--align", "none", "--image-size", "32", "-w", "1")
found = {{}}
found["datasets"] = [row["dataset"] for row in persona_here("datasets", home=home)]
found["set"] = persona_here("shard", "passports", *flat, home=home)
found["kind"] = persona_here("shard", "folders-jpg:" + {raw!r}, *flat, home=home)
common = ("-e", "1", "--train-set", "passports")
teacher = distill_here("plain", "--teacher", "none", *common, home=home)
options = ("-o", "losses.huber.weight=1", "-o", "losses.huber.delta=0.5", "--tracker", "lines")
options += ("-o", "augment.vignette=0.5")
student = distill_here(
    *("plain", "-o", "student.channels=16", "--teacher", teacher, *common, *options), home=home
)
found["lines"] = (home / "runs" / student / "lines.txt").read_text()
found["card"] = persona_here("models", "show", student, home=home)
found["learned"] = persona_here(
    *("learn", "--student", student, "--on", "passports", "--method", "slow", "--steps", "2"),
    *("-b", "4", "--tracker", "none", "-o", "slow.weight=0.01"),
    home=home,
)
found["evaluation"] = persona_here(
    *("evaluate", "--set", "passports", "--student", student, "--measure", "nearest"),
    *("-o", "most=10"),
    home=home,
)
common = ("evaluate", "--set", "passports", "--student", student)
found["most"] = persona_error_here(*common, "--measure", "nearest", "-o", "most=1", home=home)
found["taken"] = persona_error_here(*common, "--measure", "class", "-o", "most=3", home=home)
export = ("export", student, "--format", "onnx-gz")
found["export"] = persona_here(*export, "-o", "level=1", "--out", {out!r}, home=home)
found["level"] = persona_error_here(*export, "-o", "level=10", home=home)
found["stray"] = persona_error_here("export", student, "-o", "level=3", home=home)
found["range"] = persona_error_here("distill", "plain", "-o", "student.channels=4", home=home)
found["key"] = persona_error_here("distill", "plain", "-o", "student.width=1", home=home)
found["strength"] = persona_error_here("distill", "-o", "augment.vignette=2", home=home)
import numpy as np
from persona.data.align.spec import FoundFace
from persona.gallery.liveness import open_liveness

grey_red = np.full((40, 80, 3), 90, np.uint8)
grey_red[:, 40:] = (255, 0, 0)
boxes = [FoundFace((0.0, 0.0, 40.0, 40.0)), FoundFace((40.0, 0.0, 80.0, 40.0))]
check = open_liveness("colourful", 0.1)
found["live"] = [check.threshold, *check.scores(grey_red, boxes)]
found["nearest"] = persona_error_here(
    *("serve", "--port", "0", "--liveness", "colourfull", "--model", student, "--threshold", "0.5"),
    home=home,
)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the commands gave with the package of the documentation on the path."""
    home = tmp_path_factory.mktemp("home")
    site = home / "site"
    blocks = dict(BLOCK.findall(DOC.read_text()))
    project = tomllib.loads(blocks.pop("pyproject.toml"))["project"]
    for name, text in blocks.items():
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text(text)
    install(site, project["name"], project["entry-points"])
    for number in range(12):
        path = home / "data" / "raw" / "Passports" / f"person{number // 4}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(number))
    out = str(home / "student.onnx.gz")
    code = USE.format(home=str(home), out=out, raw=str(home / "data" / "raw" / "Passports"))
    tests = Path(__file__).parent
    places = f"{site}:{tests}:{tests.parent}"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(home, PYTHONPATH=places),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def test_every_example_is_in_a_file_of_the_package() -> None:
    text = DOC.read_text()
    blocks = BLOCK.findall(text)
    assert len(blocks) == text.count("```") / 2 == 10
    assert all(len(body.splitlines()) < 45 for _, body in blocks)


def test_a_dataset_and_a_kind_of_ones_own_are_packed(found: dict[str, Any]) -> None:
    assert "passports" in found["datasets"]
    assert found["set"]["samples"] == found["kind"]["samples"] == 12


def test_a_backbone_and_a_loss_of_ones_own_are_trained(found: dict[str, Any]) -> None:
    card = found["card"]
    assert (card["architecture"], card["student"]["channels"]) == ("plain", 16)
    assert card["config"]["losses"]["huber"] == {"weight": 1, "delta": 0.5}
    assert card["parameters"] < 20_000 + 512 * 16 + 3 * 513


def test_an_augmentation_of_ones_own_is_drawn(found: dict[str, Any]) -> None:
    assert found["card"]["config"]["augment"]["vignette"] == 0.5
    assert "vignette 2.0: choose 0 to 1" in found["strength"]


def test_a_tracker_of_ones_own_gets_the_figures(found: dict[str, Any]) -> None:
    assert "'loss'" in found["lines"] and "images_per_s" in found["lines"]


def test_a_method_of_ones_own_learns(found: dict[str, Any]) -> None:
    assert found["learned"]["learned"]["method"] == "slow"
    assert found["learned"]["config"]["slow"] == {"weight": 0.01}


def test_a_protocol_of_ones_own_measures(found: dict[str, Any]) -> None:
    assert found["evaluation"]["measure"] == "nearest"
    assert 0 <= found["evaluation"]["rank_1"] <= 1 and found["evaluation"]["photos"] == 10


def test_a_format_of_ones_own_is_exported_and_checked(found: dict[str, Any]) -> None:
    assert (found["export"]["format"], found["export"]["faces"]) == ("onnx-gz", 12)
    assert found["export"]["worst_cosine"] > 0.9999
    assert gzip.decompress(Path(found["export"]["path"]).read_bytes()).startswith(b"\x08")


def test_their_options_are_checked_as_personas_own(found: dict[str, Any]) -> None:
    assert "channels 4: choose 8 to 512" in found["range"]
    assert "unknown key 'student.width'" in found["key"]
    assert "most 1: choose 2 to 100000" in found["most"]
    assert "level 10: choose 0 to 9" in found["level"]
    assert "-o level goes with --format onnx-gz, not with onnx" in found["stray"]
    assert "-o most goes with --measure nearest, not with class" in found["taken"]


def test_a_liveness_check_of_ones_own_is_asked(found: dict[str, Any]) -> None:
    assert found["live"] == [0.1, 0.0, 1.0]
    assert "unknown liveness check 'colourfull'" in found["nearest"]
    assert "colourful" in found["nearest"].partition("colourfull")[2]

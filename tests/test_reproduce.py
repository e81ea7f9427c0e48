"""scripts/reproduce.py: the parts it draws, its power law, and its refusals."""

from __future__ import annotations

import argparse
import io
import json
import runpy
import subprocess
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from persona import Moment
from persona.errors import PersonaError

OPTIONS = {"--seed": 0}
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
        parts = split(tmp_path / "faces", tmp_path / home, {"--seed": seed})
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
    assert [part.name for part in split(tmp_path / "faces", tmp_path / "home", OPTIONS)] == ["few"]


@pytest.mark.parametrize(
    ("content", "told"), [(b"", "no tar, or damaged"), (b"x" * 2000, "no tar, or damaged")]
)
def test_a_damaged_tar_is_named(
    script: dict[str, Any], tmp_path: Path, content: bytes, told: str
) -> None:
    write_tar(tmp_path / "faces" / "a.tar", 2)
    (tmp_path / "faces" / "b.tar").write_bytes(content)
    with pytest.raises(PersonaError, match=rf"b\.tar is {told}"):
        script["split_photos"](tmp_path / "faces", tmp_path / "home", OPTIONS)


def test_what_is_no_photo_is_left_out_and_mended_photos_are_taken(
    script: dict[str, Any], tmp_path: Path
) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("read.txt"))
    (tmp_path / "faces").mkdir()
    (tmp_path / "a.tar").rename(tmp_path / "faces" / "a.tar")
    with pytest.raises(PersonaError, match="hold no photos"):
        script["split_photos"](tmp_path / "faces", tmp_path / "home", OPTIONS)
    write_tar(tmp_path / "faces" / "a.tar", 2)
    parts = script["split_photos"](tmp_path / "faces", tmp_path / "home", OPTIONS)
    assert len(contents(parts[0] / "photos.tar")) == 2
    write_tar(tmp_path / "faces" / "a.tar", 30)
    with pytest.raises(PersonaError, match=r"other photos.*--home"):
        script["split_photos"](tmp_path / "faces", tmp_path / "home", OPTIONS)


def given(teacher: Path, **options: Any) -> argparse.Namespace:
    teacher.write_bytes(b"weights")
    usual = {"student": "s", "views": 4, "batch_size": 64, "resamples": 1000, "seed": 0}
    length = {"minutes": 60.0, "photos": None}
    return argparse.Namespace(**usual | length | {"teacher": teacher} | options)


@pytest.mark.parametrize(
    ("now", "told"),
    [
        ({"student": "t"}, "--student s, and not with --student t"),
        ({"views": 2}, "--views 4, and not with --views 2"),
        ({"batch_size": 32}, "--batch-size 64, and not with --batch-size 32"),
        ({"resamples": 100}, "--resamples 1000, and not with --resamples 100"),
        ({"minutes": 1.0}, "--minutes 60.0, and not with --minutes 1.0"),
        ({"photos": 9}, "--minutes 60.0, and not with --photos 9"),
        ({"seed": 1}, "--seed 0, and not with --seed 1"),
    ],
)
def test_a_folder_of_results_belongs_to_its_options(
    script: dict[str, Any], tmp_path: Path, now: dict[str, Any], told: str
) -> None:
    write_tar(tmp_path / "faces" / "a.tar", 2)
    split, options_of = script["split_photos"], script["options_of"]
    first = options_of(given(tmp_path / "t.onnx"))
    for _ in range(2):  # the same options are taken again
        split(tmp_path / "faces", tmp_path / "home", first)
    with pytest.raises(PersonaError, match=rf"home was made with {told}: .*--home"):
        split(tmp_path / "faces", tmp_path / "home", options_of(given(tmp_path / "t.onnx", **now)))


def test_a_folder_of_results_belongs_to_its_teacher(script: dict[str, Any], tmp_path: Path) -> None:
    first = script["options_of"](given(tmp_path / "t.onnx"))
    (tmp_path / "elsewhere").mkdir()
    assert script["options_of"](given(tmp_path / "elsewhere" / "t.onnx")) == first
    other = given(tmp_path / "t.onnx")
    other.teacher.write_bytes(b"others")
    assert script["options_of"](other) != first


def test_a_folder_that_does_not_name_its_options_is_refused(
    script: dict[str, Any], tmp_path: Path
) -> None:
    write_tar(tmp_path / "faces" / "a.tar", 2)
    script["split_photos"](tmp_path / "faces", tmp_path / "home", OPTIONS)
    known = tmp_path / "home" / "inputs.json"
    before = {"seed": 0, "tars": json.loads(known.read_text())["tars"]}
    known.write_text(json.dumps(before))
    with pytest.raises(PersonaError, match="options that it does not name, and not with --seed 0:"):
        script["split_photos"](tmp_path / "faces", tmp_path / "home", OPTIONS)


def test_parts_that_were_not_finished_are_drawn_again(
    script: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tar(tmp_path / "faces" / "a.tar", 30)
    split = script["split_photos"]
    monkeypatch.setitem(split.__globals__, "PARTS", {"few": 10, "rest": None})
    found = []
    for seed in (0, 1):
        split(tmp_path / "faces", tmp_path / "home", {"--seed": seed})
        found.append(contents(tmp_path / "home" / "few" / "photos.tar"))
        (tmp_path / "home" / "inputs.json").unlink()  # killed before it was written
    assert found[0] != found[1]


def test_half_a_line_of_results_is_made_again(
    script: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "results.jsonl"
    assert script["read_results"](path) == {}
    row = {"run": "teacher", "hours": 0.0}
    path.write_text(json.dumps(row) + "\n" + '{"run": "untrai')
    assert script["read_results"](path) == {"teacher": row}
    assert f"{path} line 2 is damaged: its row is made again\n" in capsys.readouterr().err


class Experiments:
    """Experiments of one folder that train nothing."""

    def __init__(self, script: dict[str, Any], home: Path) -> None:
        self.script, self.home = script, home
        self.resumed: list[str | None] = []

    def start(self, **methods: Any) -> Any:
        experiment = object.__new__(self.script["Experiment"])
        experiment.home, experiment.path = self.home, self.home / "results.jsonl"
        experiment.results = self.script["read_results"](experiment.path)
        experiment.selection = []
        experiment.arguments = SimpleNamespace(photos=640, batch_size=64, views=2, resamples=100)
        experiment.measure = lambda name, chosen: {"lfw": {"accuracy": 0.5}}
        experiment.distill = self.distill
        for name, method in methods.items():
            setattr(experiment, name, method)
        return experiment

    def distill(self, run: Any, steps: int, *, callbacks: Any, resume: str | None) -> Any:
        self.resumed.append(resume)
        for callback in callbacks:
            callback.on_step(Moment("run-1", 1, 0, {}))
        return SimpleNamespace(name="run-1")


def interrupt(*_: Any, **__: Any) -> Any:
    raise KeyboardInterrupt


def test_a_training_is_kept_until_it_is_measured_and_its_hours_are_of_all_starts(
    script: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiments, run = Experiments(script, tmp_path), script["Run"]("a row", [[]])
    now = iter(range(0, 360_000_000, 3600))  # every look at the clock takes an hour
    clock = SimpleNamespace(monotonic=lambda: next(now))
    monkeypatch.setitem(script["Experiment"].do.__globals__, "time", clock)
    with pytest.raises(KeyboardInterrupt):
        experiments.start(measure=interrupt).do(run)
    first_s = json.loads((tmp_path / "a-row.run").read_text())["seconds"]
    assert first_s >= 3600
    experiment = experiments.start()
    experiment.do(run)
    assert experiments.resumed == [None, "run-1"]
    assert experiment.results["a row"]["hours"] > first_s / 3600 + 0.9
    assert not (tmp_path / "a-row.run").exists()
    assert script["read_results"](experiment.path) == experiment.results


def test_a_kill_while_results_are_written_leaves_those_of_before(
    script: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = Experiments(script, tmp_path).start()
    experiment.do(script["Run"]("one", network="n"))
    before = experiment.path.read_bytes()
    experiment.results |= {"student": {"model": "s"}, script["ROLE"]: {"model": "r"}}
    experiment.lfw = SimpleNamespace(folder=tmp_path)
    asked: list[str] = []

    def compare(command: list[str], **_: Any) -> Any:
        asked.extend(command)
        return SimpleNamespace(stdout='{"differences": {"accuracy": {"p": 0.5}}}')

    monkeypatch.setattr(subprocess, "run", compare)
    with monkeypatch.context() as context:
        context.setattr(Path, "replace", interrupt)  # by which a finished file gets its name
        with pytest.raises(KeyboardInterrupt):
            experiment.compare("student")
    assert experiment.path.read_bytes() == before
    assert asked[asked.index("--resamples") + 1] == "100"


def test_the_power_law_is_found_again(script: dict[str, Any]) -> None:
    points = [(count, 2.5 * count**-0.4) for count in (100, 1_000, 30_000)]
    assert script["power_law"](points) == pytest.approx((2.5, 0.4))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--minutes", "0"], "--minutes 0: choose more than 0"),
        (["--minutes", "nan"], "--minutes nan: choose more than 0"),
        (["--photos", "0"], "--photos 0: choose 1 or more"),
        (["--resamples", "99"], "--resamples 99: choose 100 or more"),
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


def test_a_missing_teacher_is_named_by_its_own_option(
    script: dict[str, Any], tmp_path: Path
) -> None:
    faces = tmp_path / "faces"
    write_tar(faces / "unlabelled" / "a.tar", 1)
    (faces / "selection.tar").touch()
    (faces / "LFW").mkdir()
    (faces / "LFW" / "pairs.txt").touch()
    asked = given(tmp_path / "t.onnx", faces=faces)
    script["check"](asked)
    asked.teacher.unlink()
    with pytest.raises(PersonaError, match=r"^missing: .*t\.onnx; name an ONNX file by --teacher$"):
        script["check"](asked)

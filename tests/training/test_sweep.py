"""`persona sweep`: its file, what it runs and resumes, and its tables."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import NO_ALIGN, write_lfw, write_vggface2
from helpers import environment, persona_error_here, persona_here, run

from persona.cli.sweep import _devices
from persona.config import to_dict
from persona.data.pack import pack_photos
from persona.data.raw import open_dataset
from persona.distill import apart, start, sweep_table
from persona.distill.sweep import Sweep, SweepRunner, read_sweep
from persona.distill.sweep_table import sign_flip_p
from persona.errors import PersonaError
from persona.workspace import Workspace

SWEEPS = Path(__file__).parents[2] / "configs" / "sweeps"
FILE = """
base:
  teacher: none
  test_set: none
  steps: 2
vary:
  loss:
    labels: {losses: {hard_labels: {weight: 1.0}}}
    "half & half": {losses: {hard_labels: {weight: 0.5}}}
  optim.lr: [0.001, 0.01]
seeds: [0, 1, 2]
measure: {set: lfw, figures: [accuracy, auc], beside: [mobilenet_v3_small]}
"""

FAKE = '''
"""Stands in for `persona.distill` and `persona evaluate`, and for their figures."""
import json, os, signal, sys
from pathlib import Path
options = dict(one.lstrip("-").split("=", 1) for one in sys.argv[1:] if "=" in one)
with open(__file__ + ".calls", "a") as file:
    file.write(sys.argv[1] + "\\n")
with open(__file__ + ".gpus", "a") as file:
    file.write(os.environ.get("CUDA_VISIBLE_DEVICES", "any") + "\\n")
if sys.argv[1] == "persona.distill":
    import yaml
    config = yaml.safe_load(Path(options["config"]).read_text())
    if config["seed"] == 99:
        sys.exit("error: no luck")
    if config["seed"] == 98:
        os.kill(os.getppid(), signal.SIGKILL)
    lr, weight = config["optim"]["lr"], config["losses"]["hard_labels"]["weight"]
    run = Path(options["runs"]) / f"run-{lr}-{weight}-{config['seed']}"
    run.mkdir(parents=True, exist_ok=True)
    (run / "metrics.jsonl").write_text(
        "".join(json.dumps({"step": s, "epoch": 0, "loss": lr / s}) + "\\n" for s in (1, 2))
    )
    print(json.dumps({"id": run.name}))
else:
    name = options["model"]
    lr, weight, seed = (map(float, name.split("-")[1:4]) if "run" in name else (0, 0, 0))
    accuracy = 0.5 + lr * 10 + seed / 100 + weight / 10
    print(json.dumps({"accuracy": accuracy, "auc": accuracy / 2, "model": name}))
'''


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "grid.yaml"
    path.write_text(FILE)
    return path


def edited(file: Path, before: str, after: str) -> Path:
    text = file.read_text()
    assert before in text
    file.write_text(text.replace(before, after))
    return file


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Processes of the sweep are a script that writes down each of its calls."""
    script = tmp_path / "fake.py"
    script.write_text(FAKE)
    monkeypatch.setattr(apart, "python", lambda: [sys.executable, str(script)])
    return Path(f"{script}.calls")


def runner_of(tmp_path: Path, told: list[str] | None = None) -> SweepRunner:
    lines = told if told is not None else []
    return SweepRunner(Workspace.locate(home=tmp_path), tmp_path / "out", lines.append)


def test_every_combination_is_a_run(file: Path) -> None:
    found = read_sweep(file, {"batch_size": 5})
    assert len(found.runs) == 2 * 2 * 3 == len({run.digest for run in found.runs})
    last = found.runs[-1]
    assert last.variant == {"loss": "half & half", "optim.lr": "0.01"} and last.seed == 2
    assert to_dict(last.config)["losses"]["hard_labels"]["weight"] == 0.5
    assert (last.config.optim.lr, last.config.steps, last.config.batch_size) == (0.01, 2, 5)
    assert last.config.tracker == "none"  # not the default
    assert last.title == "loss: half & half, optim.lr: 0.01, seed 2"


def test_a_recipe_lies_below_the_file_and_the_command_line_above_it(file: Path) -> None:
    recipe = file.with_name("recipe.yaml")
    recipe.write_text("epochs: 3\noptim: {lr: 0.5, weight_decay: 0.25}\nbatch_size: 7\n")
    edited(file, "base:", "recipe: recipe.yaml\nbase:")
    edited(file, "vary:\n", "  optim: {weight_decay: 0.125}\nvary:\n")
    config = read_sweep(file, {"optim.weight_decay": 0.5}).runs[0].config
    assert (config.optim.lr, config.optim.weight_decay) == (0.001, 0.5)
    assert (config.steps, config.batch_size) == (2, 7)


def test_a_group_and_a_value_of_it_in_one_place_both_count(file: Path) -> None:
    edited(file, "vary:\n", "  optim.ema_decay: 0.5\n  optim: {weight_decay: 0.125}\nvary:\n")
    optim = read_sweep(file, {}).runs[0].config.optim
    assert (optim.lr, optim.ema_decay, optim.weight_decay) == (0.001, 0.5, 0.125)
    given = {"optim.clip_norm": 5, "optim": {"schedule": "cosine"}}
    edited(file, "  optim.lr: [0.001, 0.01]\n", "")
    optim = read_sweep(file, given).runs[0].config.optim
    assert (optim.schedule, optim.clip_norm, optim.ema_decay) == ("cosine", 5, 0)


@pytest.mark.parametrize("path", sorted(SWEEPS.glob("*.yaml")), ids=lambda path: path.name)
def test_the_sweeps_of_the_project_are_right(path: Path) -> None:
    found = read_sweep(path, {"teacher": "onnx:teacher.onnx"})
    runs = {"students.yaml": 9, "ablation.yaml": 9}
    assert len(found.runs) == runs.get(path.name, 12)
    assert found.beside == ["onnx:teacher.onnx", "mobilenet_v3_small"]


def test_a_network_beside_counts_once_however_it_is_spelt(file: Path) -> None:
    """Two jobs would write into one folder."""
    edited(file, "teacher: none", "teacher: onnx:net.onnx")
    twice = "[teacher, net.onnx, mobilenet_v3_small, onnx:net.onnx, mobilenet_v3_small]"
    edited(file, "[mobilenet_v3_small]", twice)
    assert read_sweep(file, {}).beside == ["onnx:net.onnx", "mobilenet_v3_small"]


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("steps: 2", "stepz: 2", "loss: labels, optim.lr: 0.001: unknown key 'stepz'"),
        ("optim.lr:", "optim.lrr:", "unknown key 'optim.lrr' in the sweep; did you mean"),
        ("weight: 0.5", "weigth: 0.5", "half & half, optim.lr: 0.001: unknown key"),
        ("0.01]", "much]", "optim.lr: much: optim.lr in the sweep: expected float"),
        ("[0.001, 0.01]", "0.01", "vary.optim.lr is 0.01: give a list of values"),
        ("[0.001, 0.01]", "[]", "vary.optim.lr is []: give a list of values"),
        ("[0.001, 0.01]", "[0.001, 0.001]", "6 run(s) equal to another one"),
        ("seeds: [0, 1, 2]", "seeds: []", "has 0 runs: give it 1 to 10,000"),
        ("seeds: [0, 1, 2]", "seads: [0]", "unknown key 'seads'"),
        ("measure: {set: lfw, ", "measure: {", "`measure` lacks the set"),
        ("measure:", "measures:", "lacks `measure`: name a set"),
        ("beside: [", "besides: [", "unknown key 'measure.besides'"),
        ("accuracy, auc", "acuracy", "unknown figure 'acuracy' in"),
        ("accuracy, auc", "tar_at_far", "unknown figure 'tar_at_far' in"),
        ("beside: [", "options: {flipp: true}, beside: [", "unknown option 'flipp' in"),
        (
            "beside: [",
            "options: {fars: [low]}, beside: [",
            "measure.options: fars in the options of measure verification: expected float",
        ),
        ("beside: [", "options: {resamples: many}, beside: [", "expected int, found 'many'"),
        (
            "beside: [",
            "options: {templates: ijbc, pairs: p.csv}, beside: [",
            "measure.options: no measure has all of templates, pairs",
        ),
        ("beside: [", "model: ema, beside: [", "optim.lr: 0.001: measure.model is ema, and the"),
        ("  steps: 2", "  steps: 2\n  7: 2", "optim.lr: 0.001: unknown key '7' in the sweep"),
        (
            "{hard_labels: {weight: 0.5}}",
            "{hard_labels: {weight: 0.5}}, 8: 1",
            "& half, optim.lr: 0.001: unknown key '8'",
        ),
        ("  optim.lr:", "  9:", "loss: labels, 9: 0.001: unknown key '9' in the sweep"),
        ("[0.001, 0.01]", "[2024-01-01]", '2024-01-01": optim.lr in the sweep: expected float'),
    ],
)
def test_a_wrong_file_is_refused_by_name(file: Path, before: str, after: str, said: str) -> None:
    with pytest.raises(PersonaError) as error:
        read_sweep(edited(file, before, after), {})
    assert said in str(error.value) and str(file) in str(error.value)
    assert "command line" not in str(error.value).replace("an option of the command line", "")


def test_what_is_done_is_not_done_again(file: Path, fake: Path, tmp_path: Path) -> None:
    found = read_sweep(file, {})
    told: list[str] = []
    runner = runner_of(tmp_path, told)
    begun = 0

    def interrupting(line: str) -> None:
        nonlocal begun
        begun += line.count("begins")
        if begun == 4:
            raise KeyboardInterrupt
        told.append(line)

    with pytest.raises(KeyboardInterrupt):
        SweepRunner(runner.place, runner.out, interrupting).run(found, [None])
    assert fake.read_text().split() == ["persona", *["persona.distill", "persona"] * 2]
    assert runner.run(found, [None, None, None]) == []  # three at the same time
    assert fake.read_text().split().count("persona.distill") == 12
    assert "3 of 13 are done already" in told
    assert runner.run(found, [None]) == []
    assert fake.read_text().split().count("persona.distill") == 12
    # A new seed and another name of a variant: the other runs stay as they are.
    edited(edited(file, "[0, 1, 2]", "[0, 1, 2, 3]"), " labels:", " labels alone:")
    more = read_sweep(file, {})
    assert runner.run(more, [None]) == []
    assert fake.read_text().split().count("persona.distill") == 12 + 4
    rows = sweep_table.tabulate(more, runner)
    assert [row.name for row in rows][:2] == ["mobilenet_v3_small", "labels alone / 0.001"]


def test_jobs_take_the_visible_gpus_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others may work on the GPUs that CUDA_VISIBLE_DEVICES leaves out."""
    monkeypatch.setattr("persona.cli.launch.count_gpus", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert _devices(None) == ["0", "1"]
    assert _devices(4) == ["0", "1", "0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert _devices(None) == ["2", "3"]
    assert _devices(1) == ["2"]
    assert _devices(3) == ["2", "3", "2"]
    monkeypatch.setattr("persona.cli.launch.count_gpus", lambda: 0)
    assert (_devices(None), _devices(2)) == ([None], [None, None])


def test_a_run_sees_its_gpu_alone(
    file: Path, fake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    found = read_sweep(edited(file, "[0, 1, 2]", "[0]"), {})
    assert runner_of(tmp_path).run(found, ["2", "3"]) == []
    gpus = fake.with_suffix(".gpus").read_text().split()
    assert len(gpus) == 2 * 4 + 1 and set(gpus) == {"2", "3"}


def test_tables_are_written_after_each_run(file: Path, fake: Path, tmp_path: Path) -> None:
    """They are there whenever a sweep ends, and say that they are not of all runs."""
    found = read_sweep(file, {})
    runner = runner_of(tmp_path)
    table, seen = runner.out / "table.csv", []

    def finished() -> None:
        rows = sweep_table.tabulate(found, runner)
        sweep_table.write_tables(rows, found.measure.figures, runner.out)
        lines = csv.DictReader(table.read_text().splitlines())
        seen.append([int(line["seeds"]) for line in lines])
        if len(seen) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runner.run(found, [None], finished)
    assert seen == [[0] * 5, *([0, n, 0, 0, 0] for n in (1, 2, 3)), [0, 3, 1, 0, 0]]
    planned = [line["seeds_planned"] for line in csv.DictReader(table.read_text().splitlines())]
    assert planned == ["0", "3", "3", "3", "3"]
    markdown = (runner.out / "table.md").read_text()
    assert "| labels / 0.001 | 3 | 0.620 ± 0.010 |" in markdown
    assert "| labels / 0.01 | 1 of 3 | 0.700 | +0.090 |" in markdown
    assert "| half & half / 0.01 | 0 of 3 |  |" in markdown
    assert r"labels / 0.01 & 1 of 3 & 0.700" in (runner.out / "table.tex").read_text()
    assert sweep_table.count_done(sweep_table.tabulate(found, runner)) == (5, 13)
    table.unlink()  # as if the command had been killed between a result and its tables
    runner.run(found, [None], finished)
    assert table.is_file()


def test_a_run_that_was_cut_off_at_its_end_is_only_measured(
    file: Path, fake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its training has ended, so `--resume auto` would begin another one."""
    asked: list[Any] = []

    def newest(config: Any, runs: Path) -> tuple[str, bool]:
        asked.append((config.seed, runs))
        return "run-0.5-0-1", config.seed == 1

    monkeypatch.setattr(start, "find_newest", newest)
    found, runner = read_sweep(file, {}), runner_of(tmp_path)
    runner.run(
        replace(found, runs=found.runs[:2], measure=replace(found.measure, beside=())), [None]
    )
    assert asked == [(run.seed, runner.runs_of(run)) for run in found.runs[:2]]
    calls = fake.read_text().splitlines()
    assert [("persona.distill" in call) for call in calls] == [True, False, False]
    result = runner.result_of(found.runs[1])
    assert result is not None
    assert result["run"] == "run-0.5-0-1"
    assert result["model"] == "run-0.5-0-1" + "-ema" * (found.measure.model == "ema")


def test_tables_of_what_is_done(file: Path, fake: Path, tmp_path: Path) -> None:
    """`--tables` trains nothing, and needs neither the set nor the teacher."""
    told = ("sweep", str(file), "--out", str(tmp_path / "out"), "--tables")
    assert persona_here(*told, home=tmp_path)["rows"][1]["seeds"] == []
    assert not (tmp_path / "out").exists()
    runner = runner_of(tmp_path)
    first = read_sweep(file, {}).runs[0]
    runner.run(Sweep((first,), first.measure), [None])
    calls = fake.read_text()
    answer: Any = persona_here(*told, home=tmp_path)
    assert (answer["done"], answer["planned"], answer["failed"]) == (2, 13, [])
    assert [row["seeds"] for row in answer["rows"]] == [[], [0], [], [], []]
    assert "| labels / 0.001 | 1 of 3 | 0.610 |" in (tmp_path / "out" / "table.md").read_text()
    printed = run("persona", *told, home=tmp_path)
    assert "labels / 0.001" in printed.stdout and "1 of 3" in printed.stdout
    assert "unfinished: 2 of 13 are done" in printed.stderr
    assert fake.read_text() == calls
    listed = persona_here(*told[:-1], "--dry-run", home=tmp_path)
    assert listed["out"] == str(tmp_path / "out")
    assert [row["done"] for row in listed["runs"]] == [True] + [False] * 11
    assert list(listed["runs"][0]) == ["run", "variant", "seed", "done"]
    line = persona_error_here(*told, "--dry-run", home=tmp_path)
    assert "give one of them" in line
    edited(file, "figures: [accuracy, auc]", "figures: [accuracy, auk]")
    line = persona_error_here(*told, home=tmp_path)
    assert "unknown figure 'auk'" in line and "measure.figures" in line


def test_a_run_that_fails_is_told_and_the_others_go_on(
    file: Path, fake: Path, tmp_path: Path
) -> None:
    found = read_sweep(edited(file, "[0, 1, 2]", "[99, 1]"), {})
    runner = runner_of(tmp_path)
    failed = runner.run(found, [None])
    assert len(failed) == 4
    assert failed[0].startswith("loss: labels, optim.lr: 0.001, seed 99: no luck (")
    rows = sweep_table.tabulate(found, runner)
    assert [row.seeds for row in rows] == [[], *[[1]] * 4]
    assert sweep_table.cells(rows, [])[1][1] == "1 of 2"
    edited(file, "figures: [accuracy, auc]", "figures: [accuracy, eer]")
    (line, *_) = runner_of(tmp_path / "other").run(read_sweep(file, {}), [None])
    assert "set lfw has no figure eer: name others in measure.figures" in line


def test_the_error_of_an_earlier_attempt_is_not_told_again(tmp_path: Path) -> None:
    """The log goes on from attempt to attempt."""
    module = tmp_path / "attempt.py"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(apart, "python", lambda: [sys.executable, str(module)])
        for source, said in (
            ("import sys; sys.exit('error: the disk is full')", "the disk is full ("),
            ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "exit code -9 ("),
            ("import sys; sys.exit('a trace without an error line')", "a trace without an error"),
        ):
            module.write_text(source)
            process = apart.start([], tmp_path, {})
            process.wait()
            with pytest.raises(apart.Failed) as failed:
                apart.answer(process, tmp_path)
            assert str(failed.value).startswith(said)
    assert "the disk is full" in (tmp_path / "log.txt").read_text()


def test_tables_and_curves(file: Path, fake: Path, tmp_path: Path) -> None:
    found, runner = read_sweep(file, {}), runner_of(tmp_path)
    runner.run(found, [None, None])
    rows = sweep_table.tabulate(found, runner)
    beside, first, second, third, _ = rows
    assert (beside.name, beside.seeds) == ("mobilenet_v3_small", [])
    accuracy = first.figures["accuracy"]
    assert [accuracy.mean, accuracy.std] == pytest.approx([0.62, 0.01])
    assert (accuracy.difference, accuracy.p, accuracy.pairs) == (None, None, 0)
    accuracy = second.figures["accuracy"]  # ten times the rate
    assert [accuracy.difference, accuracy.p, accuracy.pairs] == pytest.approx([0.09, 0.25, 3])
    assert third.figures["auc"].difference == pytest.approx(-0.025)

    sweep_table.write_tables(rows, found.measure.figures, tmp_path)
    table = list(csv.DictReader((tmp_path / "table.csv").read_text().splitlines()))
    assert table[2]["loss"] == "labels" and table[2]["optim.lr"] == "0.01"
    assert float(table[2]["accuracy_difference"]) == pytest.approx(0.09)
    assert table[0]["accuracy_std"] == "" and float(table[0]["accuracy_mean"]) == 0.5
    runs = list(csv.DictReader((tmp_path / "runs.csv").read_text().splitlines()))
    assert len(runs) == 12 and runs[0]["model"] == "run-0.001-1.0-0"
    markdown = (tmp_path / "table.md").read_text().splitlines()
    assert markdown[0].startswith("| runs | seeds | accuracy | to the first (p) | AUC |")
    assert "| labels / 0.01 | 3 | 0.710 ± 0.010 | +0.090 (0.25) |" in markdown[4]
    latex = (tmp_path / "table.tex").read_text()
    assert r"half \& half / 0.001 & 3 & 0.570 $\pm$ 0.010 & -0.050 (0.25)" in latex
    assert latex.startswith(r"\begin{tabular}{lrrrrrr}")

    figure = sweep_table.curves_figure(rows, found, runner)
    assert [trace["y"] for trace in figure.traces][:2] == [[0.001, 0.0005], [0.01, 0.005]]
    assert "labels / 0.001 0.001" in figure.alt and "loss over optimizer step" in figure.alt
    with pytest.raises(PersonaError, match="no run of this sweep has recorded"):
        sweep_table.curves_figure(rows[:1], found, runner)


def test_p_values_of_sign_flips() -> None:
    assert sign_flip_p([0.1]) is None
    assert sign_flip_p([0.1, 0.1]) == 0.5
    assert sign_flip_p([0.1, 0.2, 0.3, 0.4, 0.5]) == 2 / 32
    assert sign_flip_p([0.1, -0.1, 0.2, -0.2]) == 1
    assert sign_flip_p([0.0, 0.0]) == 1
    gains = np.random.default_rng(0).normal(0.3, 0.3, 20).tolist()
    p = sign_flip_p(gains)
    assert p is not None and 0 < p < 0.05
    assert p == sign_flip_p(gains)


KILLED = """
import os, signal, sys
from pathlib import Path
from persona.distill import apart
apart.python = lambda: [sys.executable, "-c", "import time; time.sleep(60)"]
folder = Path(sys.argv[1])
print(apart.start([], folder, {}).pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


FAKED = """
import sys
from persona.distill import apart
apart.python = lambda: [sys.executable, sys.argv[-1]]
from persona.cli.app import app
app(sys.argv[1:-1])
"""


def test_a_killed_sweep_leaves_its_tables(file: Path, fake: Path, tmp_path: Path) -> None:
    write_lfw(tmp_path / "raw")
    pack_photos(open_dataset("lfw", tmp_path / "raw"), tmp_path / "shards" / "lfw", NO_ALIGN)
    edited(file, "[0, 1, 2]", "[0, 98]")
    script = str(fake).removesuffix(".calls")
    done = subprocess.run(
        [sys.executable, "-c", FAKED, "sweep", str(file), script],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    (table,) = (tmp_path / "sweeps").glob("*/table.csv")
    lines = list(csv.DictReader(table.read_text().splitlines()))
    assert [(line["seeds"], line["seeds_planned"]) for line in lines[:3]] == [
        ("0", "0"),
        ("1", "2"),
        ("0", "2"),
    ]


def test_its_processes_end_with_a_killed_sweep(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    for _ in range(100):
        try:
            state = Path(f"/proc/{int(done.stdout)}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return
        if state == "Z":
            return
        time.sleep(0.1)
    os.kill(int(done.stdout), signal.SIGKILL)
    raise AssertionError("the process goes on")


def test_a_real_sweep(tmp_path: Path) -> None:
    """Two runs of the real commands."""
    write_vggface2(tmp_path / "raw")
    write_lfw(tmp_path / "raw")
    for dataset in (
        open_dataset("vggface2", tmp_path / "raw"),
        open_dataset("lfw", tmp_path / "raw"),
    ):
        pack_photos(dataset, tmp_path / "shards" / dataset.set_name, NO_ALIGN)
    path = tmp_path / "real.yaml"
    path.write_text(
        "base: {teacher: none, test_set: none, steps: 2, batch_size: 5, workers: 0,\n"
        "  student: {width: 0.35, embedding_size: 32}, optim: {ema_decay: 0.5}}\n"
        "vary: {optim.lr: [0.001, 0.01]}\n"
        "measure: {set: lfw, figures: [accuracy], model: ema}\n"
    )
    line = persona_error_here("sweep", str(path), "-o", "optim.sched=cosine", home=tmp_path)
    assert "unknown key 'optim.sched' in the sweep; did you mean 'optim.schedule'" in line
    assert not (tmp_path / "sweeps").exists()
    answer: Any = persona_here("sweep", str(path), home=tmp_path)
    assert [row["seeds"] for row in answer["rows"]] == [[0], [0]] and answer["failed"] == []
    out = Path(answer["out"])
    assert out == tmp_path / "sweeps" / "real"
    (result, _) = sorted(out.glob("runs/*/result.json"))
    found = json.loads(result.read_text())
    assert found["model"] == f"{found['run']}-ema" and found["figures"]["model"] == found["model"]
    assert (out / "table.tex").is_file() and (out / "runs.csv").is_file()

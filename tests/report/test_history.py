"""What a run's folder tells: finished, still going, stopped; damaged lines are counted."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from persona.config import DistillConfig, save_config
from persona.report.history import read_history, read_metrics


def write_run(folder: Path, *records: object, tail: str = "") -> Path:
    save_config(folder / "config.yaml", DistillConfig(epochs=3))
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "metrics.jsonl").write_text(lines + tail)
    return folder


def age(folder: Path, hours: float) -> None:
    for path in folder.iterdir():
        os.utime(path, (time.time() - hours * 3600,) * 2)


def test_damaged_lines_are_skipped_and_counted(tmp_path: Path) -> None:
    tail = '{"step": 3, "loss"\nnull\n{"loss": 1}\n\udcff'.encode(errors="surrogateescape")
    folder = write_run(tmp_path / "r", {"step": 1, "loss": 2.0}, {"step": 2, "loss": float("nan")})
    with (folder / "metrics.jsonl").open("ab") as file:
        file.write(tail)
    records, damaged = read_metrics(folder / "metrics.jsonl")
    assert (len(records), damaged) == (2, 4)
    assert read_history(folder, has_model=True).curves == {"loss": [(1, 2.0)]}


@pytest.mark.parametrize(
    ("epoch", "hours", "state"), [(1, 0, "still going"), (1, 5, "stopped"), (3, 5, "finished")]
)
def test_states(tmp_path: Path, epoch: int, hours: float, state: str) -> None:
    folder = write_run(tmp_path / "r", {"step": 1, "epoch": epoch, "loss": 1.0})
    age(folder, hours)
    history = read_history(folder, has_model=False)
    assert history.state == state
    if state == "stopped":
        assert "epoch 2 of 3 and wrote nothing for 5 hours" in history.told
        assert "--resume r" in history.told and "saved no model" in history.told


def test_a_loss_that_was_not_finite(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r", {"step": 1, "epoch": 0, "loss": 1.0})
    (folder / "not_finite.json").write_text("{}")
    assert "not finite" in read_history(folder, has_model=True).state


def test_a_run_before_its_first_record(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r")
    (folder / "metrics.jsonl").unlink()
    history = read_history(folder, has_model=False)
    assert (history.state, history.curves) == ("still going", {})

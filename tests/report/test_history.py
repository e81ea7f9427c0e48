"""What a run's folder tells: finished, still going, stopped; damaged lines are counted."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from persona.config import DistillConfig, save_config, to_dict
from persona.files import folder_lock
from persona.report.history import read_history, read_metrics
from persona.training.checkpoint import Progress, save_checkpoint


def write_run(folder: Path, *records: object, tail: str = "") -> Path:
    save_config(folder / "config.yaml", to_dict(DistillConfig(epochs=3)))
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "metrics.jsonl").write_text(lines + tail)
    return folder


def age(folder: Path, hours: float) -> None:
    for path in folder.iterdir():
        os.utime(path, (time.time() - hours * 3600,) * 2)


def test_damaged_lines_are_skipped_and_counted(tmp_path: Path) -> None:
    tail = '{"step": 3, "loss"\nnull\n{"loss": 1}\n\udcff'.encode(errors="surrogateescape")
    folder = write_run(tmp_path / "r", {"step": 1, "loss": 2.0}, {"step": 2, "loss": float("nan")})
    huge = b'\n{"step": 1%b}\n{"step": 1%b}\n%b\n{"step": 4, "loss": 1%b}'
    zeros = b"0" * 400
    with (folder / "metrics.jsonl").open("ab") as file:
        file.write(tail)
        file.write(huge % (zeros, b"0" * 5000, b"[" * 200_000, zeros))
    records, damaged = read_metrics(folder / "metrics.jsonl")
    assert (len(records), damaged) == (3, 7)
    assert read_history(folder, has_model=True).curves == {"loss": [(1, 2.0)]}


@pytest.mark.parametrize(("epoch", "state"), [(1, "stopped"), (3, "finished")])
def test_states(tmp_path: Path, epoch: int, state: str) -> None:
    folder = write_run(tmp_path / "r", {"step": 1, "epoch": epoch, "loss": 1.0})
    age(folder, hours=5)
    history = read_history(folder, has_model=False)
    assert history.state == state
    if state == "stopped":
        assert "epoch 2 of 3, 5 hours ago: it crashed" in history.told
        assert "--resume r" in history.told and "saved no model" in history.told


def test_a_run_goes_on_for_as_long_as_its_process_holds_it(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r", {"step": 1, "epoch": 1, "loss": 1.0})
    age(folder, hours=5)
    with folder_lock(folder, doing="training in"):
        assert read_history(folder, has_model=True).state == "still going"
    told = read_history(folder, has_model=True).told
    assert "epoch 2 of 3, moments ago: it crashed" in told


def test_a_run_that_a_callback_ended_did_not_crash(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r", {"step": 1, "epoch": 1, "loss": 1.0})
    (folder / "ended").touch()
    history = read_history(folder, has_model=True)
    assert history.state == "finished"
    assert history.told == "A callback ended it in epoch 2 of 3."


def test_the_last_epoch_is_known_by_its_checkpoint_alone(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r", {"step": 1, "epoch": 2, "loss": 1.0})
    save_checkpoint(folder, Progress(epoch=3), 1, {"student": {}})
    assert read_history(folder, has_model=True).state == "finished"
    (folder / "checkpoint.pt").write_bytes(b"half")
    assert read_history(folder, has_model=True).state == "stopped"


def test_a_loss_that_was_not_finite(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r", {"step": 1, "epoch": 0, "loss": 1.0})
    (folder / "not_finite.json").write_text("{}")
    assert "not finite" in read_history(folder, has_model=True).state


def test_a_run_before_its_first_record(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r")
    (folder / "metrics.jsonl").unlink()
    history = read_history(folder, has_model=False)
    assert (history.state, history.curves) == ("stopped", {})

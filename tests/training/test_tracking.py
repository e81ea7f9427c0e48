"""Where metrics go: the JSONL file, Accelerate's trackers, and what of a run may leave by them.

W&B is the real one, offline. The others are not installed: modules of their names stand in, which
write down what they are called with.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from accelerate.state import PartialState
from PIL import Image

from persona.config import DistillConfig, tracker_names
from persona.errors import PersonaError
from persona.registry import TRACKERS
from persona.training.trackers.base import Sink, Start
from persona.training.tracking import Tracker, check_trackers

SECRET = "secret-place"

STAND_IN = '''
import json, os, pathlib

def note(name, /, *arguments, **options):
    with open(os.environ["CALLS"], "a") as file:
        file.write(json.dumps([name, repr(arguments), repr(options)]) + "\\n")

class Thing:
    """Whatever is asked of it is written down; it is its own answer."""
    __version__, MAX_PARAM_VAL_LENGTH, MAX_PARAMS_TAGS_PER_BATCH = "3.50.0", 6000, 100
    def __init__(self, name): self.__dict__["name"] = name
    def __call__(self, /, *arguments, **options):
        note(self.name, *arguments, **options)
        if os.environ.get("BREAKS") == self.name.rpartition(".")[2]: raise ConnectionError("gone")
        return Thing(self.name)
    def __getattr__(self, name):
        if name.startswith("__"): raise AttributeError(name)
        return Thing(f"{self.name}.{name}")
    def __setitem__(self, name, value): note(f"{self.name}[]", name, value)
    def __setattr__(self, name, value): note(f"{self.name}.{name} =", value)
    def __len__(self): return 0

me, __version__ = Thing(__name__), "3.50.0"
def __getattr__(name):
    if name.startswith("__"): raise AttributeError(name)
    return getattr(me, name)
'''


class Calls:
    """What the stand-ins were called with."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self) -> list[list[str]]:
        return [json.loads(line) for line in self.path.read_text().splitlines()]

    def named(self, end: str) -> list[str]:
        return [f"{given} {options}" for name, given, options in self() if name.endswith(end)]


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Calls]:
    """Stand-ins for the packages that are not installed."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    modules = tmp_path / "modules"
    modules.mkdir()
    for name in ("tensorboardX", "mlflow", "comet_ml", "aim"):
        (modules / f"{name}.py").write_text(STAND_IN)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(str(modules))
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    # Whatever is installed here: the stand-in, not TensorBoard itself.
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    yield Calls(tmp_path / "calls")
    PartialState._reset_state()  # Accelerate's trackers make one


def open_tracker(folder: Path, trackers: str, step: int = 0, **config: Any) -> Tracker:
    folder.mkdir(parents=True, exist_ok=True)
    return Tracker(folder, run_id="run-1", config=config, trackers=trackers, step=step)


def test_there_are_these() -> None:
    assert [*TRACKERS] == ["aim", "comet_ml", "mlflow", "tensorboard", "wandb"]


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("none", ()),
        ("wandb", ("wandb",)),
        ("wandb, tensorboard", ("wandb", "tensorboard")),
        ("wandb,none", "unknown tracker 'none'"),
        ("wandb,wandb", "tracker wandb,wandb: each of them once"),
        ("wandbb", "did you mean 'wandb'?"),
        ("", "unknown tracker ''"),
    ],
)
def test_several_trackers_are_named_with_commas(given: str, wanted: tuple[str, ...] | str) -> None:
    if isinstance(wanted, tuple):
        assert tracker_names(given) == wanted
        assert DistillConfig(tracker=given).tracker == given
    else:
        with pytest.raises(PersonaError) as caught:
            DistillConfig(tracker=given)
        assert wanted in str(caught.value)


@pytest.mark.parametrize(
    ("trackers", "line"),
    [
        ("mlflow", "mlflow is not installed: install it or choose --tracker none"),
        ("wandb,comet_ml", "comet-ml is not installed: install it or choose --tracker wandb"),
        ("tensorboard", "tensorboard is not installed: install it or choose --tracker none"),
    ],
)
def test_a_package_that_is_missing_is_named(
    trackers: str, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("mlflow", "comet_ml", "tensorboard", "tensorboardX"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(PersonaError) as caught:
        check_trackers(trackers)
    assert str(caught.value) == line
    check_trackers("none")


def test_the_jsonl_is_written_with_and_without_trackers(tmp_path: Path, calls: Calls) -> None:
    texts = []
    for trackers in ("none", "tensorboard"):
        folder = tmp_path / trackers
        with open_tracker(folder, trackers) as tracker:
            tracker.log(1, epoch=0, loss=0.5)
            tracker.log(2, epoch=0, loss=0.25)
        with open_tracker(folder, trackers, step=1) as tracker:  # killed after step 1
            tracker.log(2, epoch=0, loss=0.125)
        texts.append((folder / "metrics.jsonl").read_text())
    assert texts[0] == texts[1]
    assert [json.loads(line)["loss"] for line in texts[0].splitlines()] == [0.5, 0.125]
    assert "purge_step" not in calls.named("SummaryWriter")[0]
    assert "'purge_step': 2" in calls.named("SummaryWriter")[1]


@pytest.mark.parametrize("name", ["tensorboard", "mlflow", "comet_ml", "aim"])
def test_what_a_tracker_gets(
    name: str, tmp_path: Path, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Figures, curves and the config without its paths; nothing of the machine is asked for."""
    monkeypatch.setattr(sys, "argv", [f"/home/ada/{SECRET}/run.py", f"--cache=/home/{SECRET}"])
    config: dict[str, Any] = {
        "cache": SECRET,
        "teacher": f"/home/ada/{SECRET}/x",
        "steps": None,
        "optim": {"lr": 0.5},
    }
    with open_tracker(tmp_path / "run-1", name, **config) as tracker:
        tracker.log(3, epoch=1, loss=0.25)
        tracker.log_curve(3, "test/ROC", ["far", "tar"], [[0.0, 1.0]], Image.new("RGB", (4, 2)))
    text = (tmp_path / "calls").read_text()
    assert SECRET not in text
    assert "optim.lr" in text and "'teacher': 'x'" in text and "0.25" in text and "run-1" in text
    assert "None" not in "".join(calls.named("params")) and "'steps'" not in text
    ended = {"tensorboard": "close", "mlflow": "end_run", "comet_ml": "end", "aim": "close"}
    assert calls.named(f".{ended[name]}")
    if name == "tensorboard":
        assert calls.named("add_images") and "'global_step': 3" in calls.named("add_images")[0]
    if name == "mlflow":
        assert "'mlflow.user': 'persona'" in calls.named("start_run")[0]
        assert "'mlflow.source.name': 'persona'" in calls.named("start_run")[0]
    if name == "comet_ml":
        (settings,) = calls.named("ExperimentConfig")
        for quiet in ("log_code", "parse_args", "log_env_host", "auto_output_logging"):
            assert f"'{quiet}': False" in settings
    if name == "aim":
        (settings,) = calls.named(".Run")
        assert "'log_system_params': False, 'capture_terminal_logs': False" in settings


def test_a_tracker_that_cannot_start_is_one_line_and_the_others_end(
    tmp_path: Path, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BREAKS", "start_run")
    with pytest.raises(PersonaError) as caught:
        open_tracker(tmp_path / "run", "tensorboard,mlflow")
    assert str(caught.value) == (
        "cannot start the MLflow run (ConnectionError): look at MLFLOW_TRACKING_URI, or choose "
        "--tracker none"
    )
    assert calls.named("SummaryWriter.close")


def test_a_tracker_that_fails_later_costs_no_training(
    tmp_path: Path, calls: Calls, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("BREAKS", "log_metrics")
    with open_tracker(tmp_path / "run", "mlflow,tensorboard") as tracker:
        tracker.log(1, loss=0.5)
        tracker.log(2, loss=0.25)
    assert len(calls.named("add_scalar")) == 2 and len(calls.named("log_metrics")) == 1
    assert caplog.text.count("tracker mlflow failed (ConnectionError) and gets no more") == 1
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 2


def test_a_damaged_line_of_the_metrics_is_left_out(tmp_path: Path, calls: Calls) -> None:
    file = tmp_path / "run" / "metrics.jsonl"
    file.parent.mkdir()
    file.write_bytes(b'{"step": 0, "loss": 1}\n{"step": 0\n[]\n{}\n\x00\n\xff\n{"step": 5}\n')
    with open_tracker(tmp_path / "run", "tensorboard") as tracker:
        tracker.log(1, loss=0.5)
    assert [json.loads(line)["step"] for line in file.read_text().splitlines()] == [0, 1]


def test_wandb_and_another_at_once(
    tmp_path: Path, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    with open_tracker(tmp_path / "run", "wandb,tensorboard", epochs=2) as tracker:
        tracker.log(1, loss=0.5)
        tracker.log_curve(1, "test/ROC", ["far", "tar"], [[0.0, 1.0]], Image.new("RGB", (4, 2)))
    assert calls.named("add_scalar")
    (run,) = (tmp_path / "run" / "wandb").glob("offline-run-*")
    assert list(run.glob("files/media/images/test/ROC/*"))


def test_a_tracker_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Defining the class is all; it needs no package."""
    monkeypatch.setattr(TRACKERS, "_items", dict(TRACKERS._items))
    told: list[Any] = []

    class Own(Sink):
        name = "own"

        @classmethod
        def open(cls, start: Start) -> Sink:
            told.append((start.run_id, start.config))
            return cls()

        def log(self, step: int, figures: Any) -> None:
            told.append((step, dict(figures)))

        def close(self, *, failed: bool) -> None:
            told.append(failed)

    check_trackers("own")
    with (
        pytest.raises(ZeroDivisionError),
        open_tracker(tmp_path / "run", "own", epochs=2) as tracker,
    ):
        tracker.log(1, loss=0.5)
        tracker.log_curve(1, "test/ROC", ["far", "tar"], [[0.0, 1.0]], Image.new("RGB", (4, 2)))
        raise ZeroDivisionError
    assert told == [("run-1", {"epochs": 2}), (1, {"loss": 0.5}), True]

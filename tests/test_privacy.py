"""Nothing is reported to the makers of the packages that Persona uses."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from onnx_files import write_model

RUN = """
import sys
import persona
import onnxruntime
onnxruntime.InferenceSession(sys.argv[1])
"""
REPORTS = {
    "ORT_DISABLE_TELEMETRY": ("1", "0"),
    "HF_HUB_DISABLE_TELEMETRY": ("1", "0"),
    "WANDB_ERROR_REPORTING": ("false", "true"),
}


def test_onnxruntime_makes_no_identifier_of_the_device(tmp_path: Path) -> None:
    path = write_model(tmp_path / "network.onnx")
    plain = {name: value for name, value in os.environ.items() if name not in REPORTS}
    home = {"HOME": str(tmp_path / "home"), "XDG_CACHE_HOME": str(tmp_path / "home" / "cache")}
    (tmp_path / "home").mkdir()
    subprocess.run([sys.executable, "-c", RUN, str(path)], env=plain | home, check=True)
    assert list((tmp_path / "home").rglob("*onnxruntime*")) == []


@pytest.mark.parametrize("name", REPORTS)
def test_reports_are_off_unless_the_user_wants_them(name: str) -> None:
    off, wanted = REPORTS[name]
    told = f"import persona, os; print(os.environ[{name!r}])"
    plain = {key: value for key, value in os.environ.items() if key != name}
    for env, expected in ((plain, off), (plain | {name: wanted}, wanted)):
        done = subprocess.run(
            [sys.executable, "-c", told], env=env, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == expected

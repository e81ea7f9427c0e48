"""Scripts of measurements: what a kill leaves behind, and where they keep what they run."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from persona.errors import PersonaError

SCRIPTS = Path(__file__).parents[1] / "scripts"


def test_a_kill_while_a_set_is_copied_leaves_no_half_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_set = runpy.run_path(str(SCRIPTS / "ablation.py"))["copy_set"]
    packed, target = tmp_path / "packed", tmp_path / "views-2"
    (packed / "targets").mkdir(parents=True)
    (packed / "0.tar").write_bytes(b"shard")

    def interrupted(_: Path, into: Path, **__: object) -> None:
        into.mkdir()
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(shutil, "copytree", interrupted)
        with pytest.raises(KeyboardInterrupt):
            copy_set(packed, target)
    assert not target.exists()
    copy_set(packed, target)
    assert [path.name for path in target.iterdir()] == ["0.tar"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["packed", "views-2"]


def test_an_option_of_a_backbone_that_is_given_twice_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    build = runpy.run_path(str(SCRIPTS / "bench_backbones.py"))["build"]
    with pytest.raises(PersonaError, match=r"^width is given twice$"):
        build("mobilenet_v3_small,width=0.5,width=1")


def test_bytecode_of_a_benchmark_lies_in_its_own_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    monkeypatch.setitem(os.environ, "TMPDIR", str(tmp_path / "shared"))
    run = runpy.run_path(str(SCRIPTS / "bench_recognise.py"))["run"]
    told = run([sys.executable, "-c", "import sys; print(sys.pycache_prefix)"], tmp_path)
    assert told == f"{tmp_path / 'bytecode'}\n"


def test_the_notebooks_look_for_a_chromium_first(tmp_path: Path) -> None:
    """With --look, scripts/browser installs nothing, whoever runs it."""
    for name in ("lab", "notebooks"):
        assert "\n./scripts/browser --look" in (SCRIPTS / name).read_text()
    environment = {"PATH": str(tmp_path), "PERSONA_CHROMIUM": "own"}
    for name in ("apt-get", "id"):
        (tmp_path / name).write_text(f"#!/bin/sh\necho {name} >> {tmp_path}/called; echo 0\n")
        (tmp_path / name).chmod(0o755)
    command = [shutil.which("bash") or "bash", str(SCRIPTS / "browser"), "--look"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr.startswith("no Chromium: install one")
    assert not (tmp_path / "called").exists()
    (tmp_path / "own").write_text("#!/bin/sh\n")
    (tmp_path / "own").chmod(0o755)
    assert subprocess.run(command, env=environment, check=False).returncode == 0

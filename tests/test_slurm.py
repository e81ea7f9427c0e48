"""The Slurm templates, with stand-ins for Slurm that run what would be submitted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import NO_ALIGN
from helpers import environment

from persona.data.pack import pack_photos
from persona.data.raw import open_dataset

SCRIPTS = Path(__file__).parents[1] / "scripts" / "slurm"

# `sbatch [OPTIONS] SCRIPT …` runs a copy of the script, as Slurm does; with `--array=1-N` it runs
# the tasks, last to first. `--wrap` is refused: Slurm gives its text to sh, which may be dash.
SBATCH = """
while [[ "${1:-}" == --* ]]; do case "$1" in
    --array=*) range=${1#--array=}; shift ;;
    --wrap=*) echo "not run by bash: $1" >&2; exit 1 ;;
    *) shift ;;
esac; done
cp "$1" spooled
shift
if [ -n "${range:-}" ]; then
    for task in $(seq "${range#*-}" -1 "${range%-*}"); do
        SLURM_ARRAY_TASK_ID=$task SLURM_CPUS_PER_TASK=1 bash spooled "$@" >&2
    done
else
    bash spooled "$@" >&2
fi
echo 77
"""
SRUN = """
while [[ "$1" == --* ]]; do echo "$1" >> srun; shift; done
for node in 0 1; do SLURM_NODEID=$node "$@"; done
"""
# `scontrol requeue Incomplete JOB` leaves a cancelled job as it is; without the word it is queued
# again.
SCONTROL = """
case $1 in
    requeue) [[ "$2" = Incomplete && -e cancelled ]] || echo "${@: -1}" >> requeued ;;
    *) printf '%s\\n' first second ;;
esac
"""
NODES = {"SLURM_GPUS_ON_NODE": "4", "SLURM_CPUS_PER_TASK": "32"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A project folder whose environment holds the stand-ins."""
    bin_ = tmp_path / "project" / ".venv" / "bin"
    bin_.mkdir(parents=True)
    (bin_ / "activate").write_text(f"export PATH={bin_}:$PATH\n")
    dump = f'exec {sys.executable} -c "import json, sys; print(json.dumps(sys.argv[1:]))" "$@"'
    for name, body in {
        "persona": f'exec {sys.executable} -m persona "$@"',
        "sbatch": SBATCH,
        "srun": SRUN,
        "scontrol": SCONTROL,
        "accelerate": dump,
    }.items():
        (bin_ / name).write_text(f"#!/usr/bin/env bash\nset -eu\n{body}\n")
        (bin_ / name).chmod(0o755)
    return tmp_path / "project"


def run(script: str, *arguments: str, folder: Path, **more: str) -> str:
    path = f"{folder / '.venv' / 'bin'}:{os.environ['PATH']}"
    return subprocess.run(
        ["bash", str(SCRIPTS / script), *arguments],
        cwd=folder,
        env=environment(folder, PATH=path, **more),
        text=True,
        check=True,
        stdout=subprocess.PIPE,
    ).stdout


@pytest.mark.parametrize("path", sorted(SCRIPTS.iterdir()), ids=lambda path: path.name)
def test_templates_parse(path: Path) -> None:
    subprocess.run(["bash", "-n", str(path)], check=True)
    assert os.access(path, os.X_OK)


def test_an_array_of_tasks_and_its_merge_make_the_set(raw: Path, folder: Path) -> None:
    packed = pack_photos(open_dataset("vggface2", raw), folder / "local" / "s", NO_ALIGN)
    options = ["--align", "none", "--image-size", "32", "--margin", "0", "--shard-size", "7"]
    options += ["--raw", str(raw)]
    out = run("shard.sbatch", "2", "vggface2-train", "vggface2", *options, folder=folder)
    assert out == "packing: job 77, then merging: job 77\n"
    made = folder / "shards" / "vggface2-train"
    assert sorted(p.name for p in made.glob("*.tar")) == [s.name for s in packed.manifest.shards]
    for shard in packed.manifest.shards:
        assert (made / shard.name).read_bytes() == (packed.folder / shard.name).read_bytes()
    assert (made / "manifest.json").is_file()


@pytest.mark.parametrize("form", [["--shards", "{}"], ["--shards={}"]])
def test_the_merge_looks_where_the_tasks_pack(folder: Path, form: list[str]) -> None:
    (folder / ".venv" / "bin" / "persona").write_text('#!/bin/bash\necho "$*" >> asked\n')
    place = folder / "with a space"
    options = [word.format(place) for word in form]
    run("shard.sbatch", "1", "a set", "lfw", *options, "--align", "boxes", folder=folder)
    packing, merging = (folder / "asked").read_text().splitlines()
    told = " ".join(options)
    assert packing == f"shard lfw {told} --align boxes --workers 1 --task 1/1"
    assert merging == f"shards merge a set {told}"


def test_every_node_is_launched_with_its_rank(folder: Path) -> None:
    out = run(
        "distill.sbatch",
        "mobilenet_v3_large",
        "--name",
        "two words",
        folder=folder,
        SLURM_JOB_NODELIST="n[1-2]",
        SLURM_NNODES="2",
        SLURM_JOB_ID="123456",
        **NODES,
    )
    from accelerate.commands.launch import launch_command_parser

    launches = [
        launch_command_parser().parse_args(json.loads(line)[1:]) for line in out.splitlines()
    ]
    assert [launch.machine_rank for launch in launches] == [0, 1]
    for launch in launches:
        assert (launch.num_machines, launch.num_processes) == (2, 8)
        assert (launch.main_process_ip, launch.main_process_port) == ("first", 23456)
        assert (launch.module, launch.training_script) == (True, "persona.distill")
        assert launch.training_script_args[:2] == ["--resume", "auto"]
        assert launch.training_script_args[2:] == ["mobilenet_v3_large", "--name", "two words"]
    assert not (folder / "requeued").exists()
    # Slurm gives a launcher one core where srun is not told how many.
    assert "--cpus-per-task=32" in (folder / "srun").read_text().splitlines()


ENDS = {
    # Before the time limit Slurm signals the script, and srun passes SIGTERM on to its tasks.
    "told": ("trap 'exit 1' TERM; kill -USR1 $PPID; sleep 60 & wait", 1, True),
    "told, and done": ("trap 'exit 0' TERM; kill -USR1 $PPID; sleep 60 & wait", 0, False),
    # Both begin with SIGTERM to the script. For Slurm a cancelled job is complete.
    "preempted": ("trap 'exit 1' TERM; kill -TERM $PPID; sleep 60 & wait", 1, True),
    "cancelled": (
        "touch cancelled; trap 'exit 1' TERM; kill -TERM $PPID; sleep 60 & wait",
        1,
        False,
    ),
    "its processes were told": ("exit 75", 75, True),
    "an error": ("exit 1", 1, False),
}


@pytest.mark.parametrize("end", ENDS)
def test_a_job_that_was_told_to_end_is_queued_again(end: str, folder: Path) -> None:
    srun, code, requeued = ENDS[end]
    (folder / ".venv" / "bin" / "srun").write_text(f"#!/usr/bin/env bash\n{srun}\n")
    slurm = {"SLURM_JOB_NODELIST": "n1", "SLURM_NNODES": "1", **NODES}
    path = f"{folder / '.venv' / 'bin'}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", str(SCRIPTS / "distill.sbatch")],
        cwd=folder,
        env=environment(folder, PATH=path, SLURM_JOB_ID="7", **slurm),
        check=False,
        timeout=30,
    )
    assert done.returncode == code
    assert (folder / "requeued").exists() == requeued

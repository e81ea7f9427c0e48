"""One run on two hosts, which are two network namespaces with a cable between them.

Accelerate starts a process on each. Making a namespace takes root or its capabilities.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch
from conftest import NO_ALIGN, write_vggface2
from helpers import DISTILL, TESTS, TWO_PROCESSES, environment
from little import LITTLE
from pair import Pair

from persona.data.pack import pack_photos
from persona.data.raw import open_dataset

pytestmark = pytest.mark.heavy

OPTIONS = (LITTLE, "--teacher", "none", "-e", "3", "--seed", "3", "--checkpoint-steps", "2")
CABLE = "veth0"
PORT = 29500
DIES = """
import os, signal, sys
sys.path.insert(0, sys.argv.pop(1))
import little  # the backbone
from persona.cli.distill import main
from persona.distill.recipe import Distillation

dying = sys.argv.pop(1), int(sys.argv.pop(1))
after = Distillation.after_step

def after_step(self, *arguments):
    if dying == (os.environ["RANK"], self.run.progress.step):
        os.kill(os.getpid(), signal.SIGKILL)
    after(self, *arguments)

Distillation.after_step = after_step
main()
"""
"""Takes the folder of `little`, a rank, and the step in which the process of that rank dies."""


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], capture_output=True, text=True, check=True)


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[str, str]]:
    """The names of two namespaces, 10.77.0.1 and 10.77.0.2."""
    if shutil.which("ip") is None:
        pytest.skip("there is no `ip` (iproute2) to make network namespaces with")
    names = f"persona-{os.getpid()}-0", f"persona-{os.getpid()}-1"
    made = []
    try:
        try:
            for name in names:
                ip("netns", "add", name)
                made.append(name)
            ends = (f"{CABLE} netns {names[0]} type veth peer name", f"{CABLE} netns {names[1]}")
            ip("link", "add", *ends[0].split(), *ends[1].split())
            for number, name in enumerate(names, 1):
                ip("-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", CABLE)
                ip("-n", name, "link", "set", "lo", "up")
                ip("-n", name, "link", "set", CABLE, "up")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces are not allowed here: {error.stderr.strip()}")
        yield names
    finally:
        for name in made:
            ip("netns", "del", name)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    write_vggface2(folder / "raw")
    dataset = open_dataset("vggface2", folder / "raw")
    pack_photos(dataset, folder / "shards" / dataset.set_name, NO_ALIGN)
    return folder


def weights(home: Path, model: str) -> dict[str, torch.Tensor]:
    (file,) = (home / "models" / model).glob("*.safetensors")
    return safetensors.torch.load_file(file)


def launch(
    hosts: tuple[str, str], script: Path, *arguments: str, home: Path
) -> list[tuple[int, str]]:
    """Runs a script on both hosts with Accelerate's launcher: exit codes and errors."""
    started = []
    for rank, name in enumerate(hosts):
        command = (
            *("ip", "netns", "exec", name, sys.executable, "-m", "accelerate.commands.launch"),
            *("--config_file", str(TWO_PROCESSES), "--num_machines", "2", "--num_processes", "2"),
            *("--machine_rank", str(rank), "--main_process_ip", "10.77.0.1"),
            *("--main_process_port", str(PORT), str(script), *arguments),
        )
        started.append(
            subprocess.Popen(
                command,
                env=environment(home, GLOO_SOCKET_IFNAME=CABLE),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        )
    try:
        told = [process.communicate(timeout=240)[1] for process in started]
    finally:
        for process in started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
    return [(process.returncode, text) for process, text in zip(started, told, strict=True)]


@pytest.mark.parametrize("dying", ["0", "1"])
def test_a_run_of_which_one_host_died_ends_in_the_same_weights(
    dying: str, hosts: tuple[str, str], home: Path, tmp_path: Path, pair: Pair
) -> None:
    (tmp_path / "shards").symlink_to(home / "shards")
    script = tmp_path / "dies.py"
    script.write_text(DIES)
    arguments = (*DISTILL, *OPTIONS, "--resume", "auto")

    # Step 5 is inside the second epoch of three steps, one step after a checkpoint.
    ended = launch(hosts, script, TESTS, dying, "5", *arguments, home=tmp_path)
    (run,) = (tmp_path / "runs").iterdir()
    assert [code for code, _ in ended] == [1, 1], ended
    lost = "error: another process of this run ended: its own line says why"
    assert [lost in told for _, told in ended] == [dying != "0", dying != "1"], ended
    progress = torch.load(run / "checkpoint.pt", weights_only=True)["progress"]
    assert (progress["epoch"], progress["batch"], progress["step"]) == (1, 1, 4)

    resumed = launch(hosts, script, TESTS, dying, "0", *arguments, home=tmp_path)
    assert [code for code, _ in resumed] == [0, 0], resumed
    assert [folder.name for folder in (tmp_path / "runs").iterdir()] == [run.name]
    progress = torch.load(run / "checkpoint.pt", weights_only=True)["progress"]
    assert (progress["epoch"], progress["step"]) == (3, 9)

    whole = weights(home, pair.distill(*DISTILL, *OPTIONS, home=home))  # nobody interrupts it
    after = weights(tmp_path, run.name)
    assert whole.keys() == after.keys()
    for name, value in whole.items():
        assert torch.equal(value, after[name]), name

"""Starting a training on all GPUs of this machine with Accelerate's launcher."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

import typer
import yaml

from persona.cli import signals
from persona.errors import PersonaError, Preempted

log = logging.getLogger(__name__)

CONFIG = Path("accelerate_config.yaml")
LAUNCHED = ("RANK", "ACCELERATE_MIXED_PRECISION")
"""Environment variables that torchrun and `accelerate launch` set for their processes."""
ONE_MACHINE = (
    *("--multi_gpu", "--num_machines", "1"),
    *("--mixed_precision", "no", "--dynamo_backend", "no"),
)
ENDED_EARLY = "told to end: run the command with --resume RUN to go on from its last checkpoint"


def launch_on_gpus(module: str, arguments: Sequence[str]) -> None:
    """Runs a module with one process per GPU, and then exits with the exit code of these.

    It returns only if this process must do the work itself, because it was launched already or
    there are fewer than two GPUs.

    Raises:
        Preempted: this process was told to end (SIGTERM, SIGUSR1), and so were the others.
        PersonaError: a process was killed, or Accelerate cannot use its config file. A process
            reports its other errors itself.
    """
    if any(name in os.environ for name in LAUNCHED):
        return
    processes = count_gpus()
    if processes < 2:
        return
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    known = CONFIG.is_file()
    log.info("launching on %d GPUs%s", processes, f" as {CONFIG} says" if known else "")
    options = ["--config_file", str(CONFIG)] if known else [*ONE_MACHINE]
    # Port 0 takes any free port: another run may use the default one.
    options += ["--num_processes", str(processes), "--main_process_port", "0"]
    # The launcher forwards SIGTERM to its processes, but not SIGUSR1.
    signal.signal(signal.SIGUSR1, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    # The processes report their errors themselves.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        launch_command(launch_command_parser().parse_args([*options, "-m", module, *arguments]))
    except SignalException as stop:
        signals.received = stop.sigval
        if stop.sigval == signal.SIGINT:  # the processes got it too, and one has printed a line
            raise typer.Exit(signals.EXIT_SIGNAL + signal.SIGINT) from None
        raise Preempted(ENDED_EARLY) from None
    except (ValueError, TypeError, yaml.YAMLError) as error:
        reason = str(error).partition("\n")[0]
        raise PersonaError(f"Accelerate cannot launch as {CONFIG} says: {reason}") from None
    except subprocess.CalledProcessError as error:  # Accelerate's config file asks for one process
        raise typer.Exit(error.returncode) from None
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        if failure.exitcode < 0:
            raise PersonaError(
                f"a training process was killed ({signal.Signals(-failure.exitcode).name}), "
                "perhaps for memory: --resume RUN goes on from the last checkpoint"
            ) from None
        raise typer.Exit(failure.exitcode) from None
    raise typer.Exit


def count_gpus() -> int:
    """Returns the number of GPUs that may be used."""
    import torch
    from accelerate.utils.environment import parse_flag_from_env

    return 0 if parse_flag_from_env("ACCELERATE_USE_CPU") else torch.cuda.device_count()

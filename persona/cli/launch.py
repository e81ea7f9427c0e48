"""A training on all GPUs of this machine, started with Accelerate's own launcher."""

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
from persona.errors import PersonaError

log = logging.getLogger(__name__)

CONFIG = Path("accelerate_config.yaml")
LAUNCHED = ("RANK", "ACCELERATE_MIXED_PRECISION")
"""Variables that torchrun and `accelerate launch` set for the processes that they start."""
ONE_MACHINE = (
    *("--multi_gpu", "--num_machines", "1"),
    *("--mixed_precision", "no", "--dynamo_backend", "no"),
)
INTERRUPTED = "interrupted: run the command with --resume RUN to go on from its last checkpoint"


def launch_on_gpus(module: str, arguments: Sequence[str]) -> None:
    """Runs a module on each GPU, and ends with its exit code.

    Returns where this process does the work itself: it was launched, or there is one device for it.

    Raises:
        PersonaError: a process was killed. What else went wrong, that process has said.
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
    # Any port: another run may have the default one.
    options += ["--num_processes", str(processes), "--main_process_port", "0"]
    # What a process has to say, it says itself.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        launch_command(launch_command_parser().parse_args([*options, "-m", module, *arguments]))
    except SignalException as stop:
        signals.received = stop.sigval
        if stop.sigval == signal.SIGINT:  # which the processes got too
            raise typer.Exit(signals.EXIT_SIGNAL + signal.SIGINT) from None
        raise KeyboardInterrupt(INTERRUPTED) from None
    except (ValueError, TypeError, yaml.YAMLError) as error:
        reason = str(error).partition("\n")[0]
        raise PersonaError(f"Accelerate cannot launch as {CONFIG} says: {reason}") from None
    except subprocess.CalledProcessError as error:  # its config file asks for one process
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
    """GPUs that may be used."""
    import torch
    from accelerate.utils.environment import parse_flag_from_env

    return 0 if parse_flag_from_env("ACCELERATE_USE_CPU") else torch.cuda.device_count()

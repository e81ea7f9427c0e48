"""What the starter of this process (`accelerate launch`, torchrun or a shell) told it."""

from __future__ import annotations

import json
import logging
import os
import time
from pathlib import Path
from typing import Any

from persona.files import whole_number
from persona.workers import usable_cores

THREADS = "OMP_NUM_THREADS"
WAITING = "OMP_WAIT_POLICY"
SHARED = "PERSONA_SHARED_THREADS"
"""Variable with the number of threads that this module has set. It tells processes started by this
one that the number was not chosen by the user."""
LAUNCHED = ("ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID")
"""Variables of which a launcher sets at least one."""


def is_first() -> bool:
    """Whether this is the first process of a run, which prints messages for all."""
    return int(os.environ.get("RANK", "0")) == 0


def tell_launcher(line: str) -> bool:
    """Tells the launcher why this process fails. Returns whether there is one that prints it.

    torchrun and `accelerate launch` print a trace of their own when a process fails, and close it
    with what each process wrote into its error file (torch 2.15,
    torch/distributed/elastic/multiprocessing/errors). The reason is then the last line that a user
    sees, and not buried above the trace.
    """
    name = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not name:
        return False
    try:
        Path(name).write_text(json.dumps({"message": line, "timestamp": int(time.time())}))
    except OSError:
        return False
    return True


def quiet_others() -> None:
    """Silences the log of the other processes, which would repeat every message."""
    if not is_first():
        logging.getLogger("persona").setLevel(logging.ERROR)


def launcher_options(*names: str) -> dict[str, Any]:
    """Reads the options of `accelerate launch` and its config file from the environment.

    Accelerate itself passes gradient accumulation on to DeepSpeed alone, so its variable is only
    there if the user has set it.

    Args:
        names: options to return. Without names, all are returned.
    """
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION")
    accumulation = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS")
    dynamo = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower()
    options: dict[str, Any] = {}
    if dynamo != "no":
        options["compile"] = dynamo
    if precision and precision != "no":
        options["mixed_precision"] = precision
    steps = whole_number(accumulation or "")
    if steps is not None and steps > 1:
        options["gradient_accumulation_steps"] = steps
    return {name: value for name, value in options.items() if not names or name in names}


def share_threads() -> None:
    """Gives this process its share of the cores. It must run before torch is imported.

    By default `accelerate launch` and torchrun give each process one thread, while torch alone
    takes all cores. The same run would then have another speed, and sums that differ in their last
    digits. A number of threads that the user chose is kept.

    Threads that wait for each other sleep instead of spinning. If another process holds a core, a
    training step on two spinning threads took over ten times as long as on one thread. On two
    sleeping threads it took as long as on one.
    """
    os.environ.setdefault(WAITING, "PASSIVE")
    if not _named_by_user():
        beside = max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        os.environ[THREADS] = os.environ[SHARED] = str(max(1, usable_cores() // beside))


def _named_by_user() -> bool:
    """Whether the user chose the number of threads, and not a launcher by itself."""
    value = os.environ.get(THREADS)
    if value == os.environ.get(SHARED):
        return False
    if value != "1" or not any(name in os.environ for name in LAUNCHED):
        return bool(value)
    # Launchers set one thread by themselves. If the user asked for it, it is in the launcher's own
    # environment or command line.
    parent = Path(f"/proc/{os.getppid()}")
    try:
        told = (parent / "environ").read_bytes().split(b"\0")
        options = (parent / "cmdline").read_bytes().split(b"\0")
    except OSError:  # not on Linux
        return False
    return any(entry.startswith(f"{THREADS}=".encode()) for entry in told) or any(
        b"num_cpu_threads_per_process" in option.replace(b"-", b"_") for option in options
    )

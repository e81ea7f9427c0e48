"""What this process was told by whoever started it: `accelerate launch`, torchrun, or a shell."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from persona.files import whole_number
from persona.workers import usable_cores

THREADS = "OMP_NUM_THREADS"
WAITING = "OMP_WAIT_POLICY"
SHARED = "PERSONA_SHARED_THREADS"
"""What this module put there, for processes that this one starts: it is no user's."""
LAUNCHED = ("ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID")
"""Variables of which a launcher sets at least one."""


def is_first() -> bool:
    """Whether this is the process that speaks."""
    return int(os.environ.get("RANK", "0")) == 0


def quiet_others() -> None:
    """One voice: the other processes would say everything again."""
    if not is_first():
        logging.getLogger("persona").setLevel(logging.ERROR)


def launcher_options(*names: str) -> dict[str, Any]:
    """What `accelerate launch` and its config file say, through the environment it sets.

    With `names`, of these values alone.
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
    """Gives this process its share of the cores, however it was started; before torch is imported.

    `accelerate launch` and torchrun give each process one thread where nothing is said, and torch
    by itself takes all cores: the same run then has other sums, at another speed. A number of
    threads that the user named stays.

    Threads that wait for each other sleep rather than spin: where another process holds a core, a
    training step on two spinning threads took over ten times as long as on one, and on two sleeping
    ones as long.
    """
    os.environ.setdefault(WAITING, "PASSIVE")
    if not _named_by_user():
        beside = max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        os.environ[THREADS] = os.environ[SHARED] = str(max(1, usable_cores() // beside))


def _named_by_user() -> bool:
    """Whether the number of threads is the user's rather than a launcher's own."""
    value = os.environ.get(THREADS)
    if value == os.environ.get(SHARED):
        return False
    if value != "1" or not any(name in os.environ for name in LAUNCHED):
        return bool(value)
    # One thread is what launchers set by themselves; were they told to, it stands with them.
    parent = Path(f"/proc/{os.getppid()}")
    try:
        told = (parent / "environ").read_bytes().split(b"\0")
        options = (parent / "cmdline").read_bytes().split(b"\0")
    except OSError:  # no Linux
        return False
    return any(entry.startswith(f"{THREADS}=".encode()) for entry in told) or any(
        b"num_cpu_threads_per_process" in option.replace(b"-", b"_") for option in options
    )

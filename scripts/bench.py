"""What the benchmarks share: rounds in turns, and what machine and commit they ran on."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any

from persona.workers import processor_name


def in_turns(cases: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """What each case measures, in turns: what slows the machine down slows all of them."""
    speeds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, case in cases.items():
            speeds[name].append(case())
    return speeds


def medians(speeds: Mapping[str, list[float]]) -> dict[str, float]:
    """The median of each case."""
    return {name: statistics.median(values) for name, values in speeds.items()}


def spread(speeds: Mapping[str, list[float]]) -> dict[str, float]:
    """The largest over the smallest of each case."""
    return {name: round(max(values) / min(values), 3) for name, values in speeds.items()}


def ratio(speeds: list[float], others: list[float]) -> float:
    """The median of the rounds' ratios: a machine that grows slower does so for both."""
    return statistics.median(speed / other for speed, other in zip(speeds, others, strict=True))


def commit() -> str:
    """The short hash of what is checked out."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip()


def told(known: Mapping[str, Any]) -> str:
    """What `facts` gives, as one line."""
    return ", ".join(f"{name} {value}" for name, value in known.items())


def facts(*packages: str) -> dict[str, Any]:
    """The machine, the commit and the versions of `packages`."""
    return {
        "processor": processor_name(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
        "commit": commit(),
    }

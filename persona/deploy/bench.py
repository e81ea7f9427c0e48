"""What models cost on this machine, side by side: `persona bench MODEL...`.

1. each model through PyTorch, and through onnxruntime as `persona export` writes it; a file
   through its own runtime alone
2. in turns, round by round, so that a machine whose speed wanders slows all of them alike
3. peak memory in a process of its own, which loads the model and embeds one face after another

The network alone is measured: no decoding, no alignment. No torch is imported before it is needed,
so that the memory of a file in onnxruntime is what a device would see.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from persona.errors import PersonaError
from persona.models.sources import ONNX, source_of, spell
from persona.progress import progress_bar

BATCH = 32
WARM_UP = 5
Run = Callable[[], object]


@dataclass(frozen=True)
class Subject:
    """A model in a runtime."""

    model: str
    """As the user named it."""
    runtime: str
    """`torch`, `onnxruntime` or `litert`."""
    source: str
    """The name under which it is opened."""


@dataclass(frozen=True)
class Cost:
    """What one subject costs."""

    model: str
    runtime: str
    parameters: int | None
    macs: int | None
    """Multiply-accumulates of one face."""
    bytes: int
    """Of the file."""
    latency_p50_ms: float
    """One face, one thread."""
    latency_p95_ms: float
    faces_per_s: float
    """Batches of 32, all threads."""
    peak_memory_mb: float
    """Of a process that embeds one face after another."""
    latency_ratio: float
    """To the first model's p50."""


def bench(names: Sequence[str], models: Path, *, rounds: int = 10, runs: int = 20) -> list[Cost]:
    """Measures every model, in the order given.

    Args:
        names: of networks, see persona/models/sources.py.
        models: the model store.
        rounds: turns.
        runs: single faces a turn; a tenth as many batches.

    Raises:
        PersonaError: unknown, or a file that does not load.
    """
    with tempfile.TemporaryDirectory() as scratch:
        facts = [_prepare(spell(name), models, Path(scratch)) for name in names]
        subjects = [subject for found in facts for subject in found]
        built = [_open(subject, models, threads=1) for subject, *_ in subjects]
        wide = [_open(subject, models, threads=_cores()) for subject, *_ in subjects]
        latency_s: list[list[float]] = [[] for _ in subjects]
        speed: list[list[float]] = [[] for _ in subjects]
        with progress_bar("measuring", total=rounds * len(subjects), unit="turns") as advance:
            for _turn in range(rounds):
                for place in range(len(subjects)):
                    one, many = built[place](1), wide[place](BATCH)
                    _use_threads(1)
                    for _ in range(WARM_UP):
                        one()
                    latency_s[place] += [_timed(one) for _ in range(runs)]
                    _use_threads(_cores())
                    many()
                    batches = max(1, runs // 10)
                    took_s = sum(_timed(many) for _ in range(batches))
                    speed[place].append(batches * BATCH / took_s)
                    advance(1)
        memory = [_peak_memory(subject, models) for subject, *_ in subjects]
    median_s = [float(np.median(times)) for times in latency_s]
    return [
        Cost(
            model=subject.model,
            runtime=subject.runtime,
            parameters=parameters,
            macs=macs,
            bytes=size,
            latency_p50_ms=1e3 * median_s[place],
            latency_p95_ms=1e3 * float(np.percentile(latency_s[place], 95)),
            faces_per_s=float(np.median(speed[place])),
            peak_memory_mb=memory[place] / 1e6,
            latency_ratio=median_s[place] / median_s[0],
        )
        for place, (subject, parameters, macs, size) in enumerate(subjects)
    ]


def versions() -> dict[str, Any]:
    """The machine and what ran on it."""
    import onnxruntime
    import torch

    return {
        "cores": _cores(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "onnxruntime": onnxruntime.__version__,
    }


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _use_threads(count: int) -> None:
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(count)


def _timed(run: Run) -> float:
    before_s = time.perf_counter()
    run()
    return time.perf_counter() - before_s


def _prepare(
    name: str, models: Path, scratch: Path
) -> list[tuple[Subject, int | None, int | None, int]]:
    """Subjects of a name, each with parameters, MACs and bytes of its file."""
    source = source_of(name, models)
    runner = source.open_runner(name, models, threads=1)  # says what is wrong with the file
    if runner is not None:
        file = source.file(name, models)
        parameters, macs = source.costs(name, models)
        size = 0 if file is None else file.stat().st_size
        return [(Subject(name, runner.runtime, name), parameters, macs, size)]
    from persona.models.student import Student

    network, card = source.open(name, models).network, source.card(name, models)
    parameters, macs = network.count_parameters(), _count_macs(network)
    size = 4 * (parameters or 0)
    subjects = []
    if isinstance(network, Student) and card is not None:
        from persona.deploy.export import build_graph

        size = card.bytes
        data = build_graph(network, card)
        path = scratch / f"{name}.onnx"
        path.write_bytes(data)
        exported = ONNX.prefix + str(path)
        subjects.append((Subject(name, "onnxruntime", exported), parameters, macs, len(data)))
    return [(Subject(name, "torch", name), parameters, macs, size), *subjects]


def _count_macs(network: Any) -> int:
    """Of convolutions and matrix products of one face, to its embedding."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    side = getattr(network, "image_size", 160)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        network.eval().features(torch.zeros(1, 3, side, side))
    return int(counter.get_total_flops()) // 2  # a multiplication and an addition each


def _open(subject: Subject, models: Path, threads: int) -> Callable[[int], Run]:
    """From a batch size to a run on that many random faces."""
    if subject.runtime == "torch":
        return _open_torch(subject.source, models)
    runner = source_of(subject.source, models).open_runner(subject.source, models, threads)
    assert runner is not None
    return runner.on


def _open_torch(name: str, models: Path) -> Callable[[int], Run]:
    import torch

    from persona.models.output import for_inference

    network = for_inference(source_of(name, models).open(name, models).network)
    side = getattr(network, "image_size", 160)

    def on(count: int) -> Run:
        images = torch.rand(count, 3, side, side).contiguous(memory_format=torch.channels_last)

        def run() -> object:
            with torch.inference_mode():
                return network.embed(images)

        return run

    return on


def _peak_memory(subject: Subject, models: Path) -> int:
    """Bytes, of a fresh process."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_report_peak, args=(subject, models, theirs))
    process.start()
    theirs.close()
    try:
        return int(ours.recv())
    except EOFError:
        raise PersonaError(
            f"{subject.model} in {subject.runtime} could not be run in a process of its own: "
            "is there memory left?"
        ) from None
    finally:
        process.join()


def _report_peak(subject: Subject, models: Path, pipe: Any) -> None:
    run = _open(subject, models, threads=1)(1)
    _use_threads(1)
    for _ in range(WARM_UP):
        run()
    pipe.send(_high_water())


def _high_water() -> int:
    """The most bytes that this process held.

    On Linux not `ru_maxrss`: a process inherits that from the one that started it.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(li for li in status.read_text().splitlines() if li.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

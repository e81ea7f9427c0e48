"""`persona bench MODEL...`: measures what models cost on this machine, side by side.

1. Each model runs in PyTorch, and in onnxruntime as `persona export` writes it. A file runs only in
   its own runtime.
2. The models take turns in rounds, so that changes in the machine's speed affect all of them alike.
3. Peak memory is measured in a separate process, which loads the model and embeds one face after
   another.

Only the network is measured, without decoding and alignment. torch is not imported before it is
needed, so that the memory of a file in onnxruntime is what a device would use.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
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
class InRuntime:
    """A model in one runtime."""

    model: str
    """Name of the model, as the user gave it."""
    runtime: str
    """`torch`, `onnxruntime` or `litert`."""
    source: str
    """Name under which it is opened."""


@dataclass(frozen=True)
class Cost:
    """What one model costs in one runtime."""

    model: str
    runtime: str
    parameters: int | None
    """Number of parameters. None if it is not known."""
    macs: int | None
    """Multiply-accumulates for one face. None if not known."""
    bytes: int
    """Size of the file in bytes."""
    latency_p50_ms: float
    """Median time for one face on one thread, in ms."""
    latency_p95_ms: float
    """95th percentile of the same, in ms."""
    faces_per_s: float
    """Throughput in batches of 32 on all threads, in faces per s."""
    peak_memory_mb: float
    """Peak memory of a process that embeds one face after another, in MB."""
    latency_ratio: float
    """Median latency divided by that of the first subject."""


def bench(names: Sequence[str], models: Path, *, rounds: int = 10, runs: int = 20) -> list[Cost]:
    """Measures models and returns the costs in the order of the names.

    Args:
        names: names of networks, see persona/models/sources.py.
        models: the model store.
        rounds: number of rounds.
        runs: single faces per model and round. A tenth as many batches are timed too.

    Raises:
        PersonaError: a name is unknown, or a file does not load.
    """
    with tempfile.TemporaryDirectory() as scratch, _using_threads() as use_threads:
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
                    use_threads(1)
                    for _ in range(WARM_UP):
                        one()
                    latency_s[place] += [_timed(one) for _ in range(runs)]
                    use_threads(_cores())
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
    """The machine and the versions of what runs on it, by name. What is absent is left out."""
    import onnxruntime

    found = {
        "cores": _cores(),
        "machine": platform.machine(),
        "python": platform.python_version(),
    }
    with contextlib.suppress(ImportError):  # as in the light installation
        import torch

        # Its metadata would not say for which kind of device it was built.
        found["torch"] = torch.__version__
    return {**found, "onnxruntime": onnxruntime.__version__}


def _cores() -> int:
    return len(os.sched_getaffinity(0))


@contextlib.contextmanager
def _using_threads() -> Iterator[Callable[[int], None]]:
    """Yields a function that sets the number of torch's threads, if torch is imported.

    After the block, torch has as many as before.
    """
    before: int | None = None

    def use(count: int) -> None:
        nonlocal before
        torch = sys.modules.get("torch")
        if torch is not None:
            before = before or torch.get_num_threads()
            torch.set_num_threads(count)

    try:
        yield use
    finally:
        if before is not None:
            use(before)


def _timed(run: Run) -> float:
    before_s = time.perf_counter()
    run()
    return time.perf_counter() - before_s


def _prepare(
    name: str, models: Path, scratch: Path
) -> list[tuple[InRuntime, int | None, int | None, int]]:
    """The subjects of a name, each with its parameters, MACs and file size in bytes."""
    source = source_of(name, models)
    runner = source.open_runner(name, models, threads=1)  # raises an error if the file is wrong
    if runner is not None:
        file = source.file(name, models)
        parameters, macs = source.costs(name, models)
        size = 0 if file is None else file.stat().st_size
        return [(InRuntime(name, runner.runtime, name), parameters, macs, size)]
    from persona.models.student import Student

    network, card = source.open(name, models).network, source.card(name, models)
    parameters, macs = network.count_parameters(), count_macs(network)
    size = 4 * (parameters or 0)
    subjects = []
    if isinstance(network, Student) and card is not None:
        from persona.deploy.graph import build_graph

        size = card.bytes
        data = build_graph(network, card)
        # A name may be a folder's path, and a path after the scratch folder would lead out of it.
        path = scratch / f"{len(list(scratch.iterdir()))}.onnx"
        path.write_bytes(data)
        exported = ONNX.prefix + str(path)
        subjects.append((InRuntime(name, "onnxruntime", exported), parameters, macs, len(data)))
    return [(InRuntime(name, "torch", name), parameters, macs, size), *subjects]


def count_macs(network: Any) -> int:
    """Counts the multiply-accumulates of the convolutions and matrix products for one face."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    side = getattr(network, "image_size", 160)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        network.eval().features(torch.zeros(1, 3, side, side))
    return int(counter.get_total_flops()) // 2  # one MAC is two operations


def _open(subject: InRuntime, models: Path, threads: int) -> Callable[[int], Run]:
    """A function that makes a run on a given number of random faces."""
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


def _peak_memory(subject: InRuntime, models: Path) -> int:
    """Peak memory of a new process that runs the subject, in bytes."""
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


def _report_peak(subject: InRuntime, models: Path, pipe: Any) -> None:
    run = _open(subject, models, threads=1)(1)
    with _using_threads() as use_threads:
        use_threads(1)
        for _ in range(WARM_UP):
            run()
    pipe.send(_high_water())


def _high_water() -> int:
    """Peak memory of this process in bytes.

    On Linux it is read from /proc, since a process inherits `ru_maxrss` from its parent.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(li for li in status.read_text().splitlines() if li.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

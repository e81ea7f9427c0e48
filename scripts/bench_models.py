#!/usr/bin/env python
"""The table of models: what each reaches on a set with pairs, and what it costs on one core.

    ./scripts/bench_peers dlib                             # once, for --dlib
    ./scripts/bench_models.py persona-s onnx:FILE onnx:FILE-int8.onnx --set lfw --dlib [--json]

All in one run, in turns. A time is the median of single faces on one thread, of the network alone:
no decoding, no alignment. dlib's network (dlib_face_recognition_resnet_model_v1) takes crops of its
own alignment, so its accuracy is not measured here; its author reports 0.9938 on LFW.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bench import facts, told

DLIB = Path(".tools/dlib/bin/python")
DLIB_FACES = 40
DLIB_WORKER = """
import os, sys, time
import dlib, face_recognition_models as models
import numpy as np
path = models.face_recognition_model_location()
network = dlib.face_recognition_model_v1(path)
chip = np.random.default_rng(0).integers(0, 256, (150, 150, 3), dtype=np.uint8)
times = []
for turn in range(int(sys.argv[1]) + 3):
    start = time.perf_counter()
    network.compute_face_descriptor(chip)
    times.append(time.perf_counter() - start)
print(1e3 * float(np.median(times[3:])), os.path.getsize(path))
"""


def dlib_cost() -> tuple[float, int]:
    """Median ms of dlib's network for one chip of 150 px, and the bytes of its file."""
    command = ["taskset", "-c", "0", str(DLIB), "-c", DLIB_WORKER, str(DLIB_FACES)]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return float(told[0]), int(told[1])


def measure(names: list[str], set_name: str, *, dlib: bool, resamples: int) -> list[dict[str, Any]]:
    """A row for each model, and one for dlib."""
    import persona
    from persona import Workspace
    from persona.deploy.bench import bench

    place = Workspace.locate()
    before = dlib_cost() if dlib else None
    costs: dict[str, Any] = {}
    for cost in bench(names, place.models):  # a student runs in torch first, then in onnxruntime
        costs[cost.model] = cost
    after = dlib_cost() if dlib else None
    faces = persona.open_set(set_name, workspace=place)
    rows = []
    for name in names:
        figures = persona.load(name, workspace=place).evaluate(faces, resamples=resamples).to_json()
        cost = costs[name]
        tar = next((v for k, v in figures["tar_at_far"].items() if float(k) == 1e-3), None)
        rows.append(
            {
                "model": Path(name).name,
                "accuracy": figures["accuracy"],
                "interval": figures["intervals"]["accuracy"],
                "tar": tar,
                "parameters": cost.parameters,
                "bytes": cost.bytes,
                "ms": cost.latency_p50_ms,
                "runtime": cost.runtime,
            }
        )
    if before is not None and after is not None:
        ms, size = (before[0] + after[0]) / 2, before[1]
        rows.append({"model": "dlib", "bytes": size, "ms": ms, "runtime": "dlib"})
    return rows


def table(rows: list[dict[str, Any]], set_name: str) -> str:
    """The rows as a Markdown table."""
    lines = [
        f"| model | {set_name} accuracy | 95 % | TAR@FAR=1e-3 | parameters | MB | ms | in |",
        "|---|--:|--:|--:|--:|--:|--:|---|",
    ]
    for row in rows:
        accuracy, interval, tar = row.get("accuracy"), row.get("interval"), row.get("tar")
        cells = (
            row["model"],
            "–" if accuracy is None else f"{accuracy:.4f}",
            f"{interval[0]:.4f} to {interval[1]:.4f}" if interval else "–",
            "–" if tar is None else f"{tar:.3f}",
            f"{row['parameters'] / 1e6:.2f} M" if row.get("parameters") else "–",
            f"{row['bytes'] / 1e6:.1f}",
            f"{row['ms']:.1f}",
            row["runtime"],
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="+", metavar="MODEL", help="IDs and onnx:FILE")
    parser.add_argument("--set", default="lfw", help="packed set with pairs")
    parser.add_argument("--dlib", action="store_true", help="dlib's network beside them")
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.dlib and not DLIB.exists():
        sys.exit(f"error: {DLIB} is not there: run ./scripts/bench_peers dlib first")
    start_s = time.monotonic()
    rows = measure(
        arguments.models, arguments.set, dlib=arguments.dlib, resamples=arguments.resamples
    )
    machine = facts("torch", "onnxruntime")
    if arguments.json:
        print(json.dumps({"machine": machine, "models": rows}, indent=2))
    else:
        seconds = time.monotonic() - start_s
        print(table(rows, arguments.set), f"\n{told(machine)}; {seconds:.0f} s", sep="\n")


if __name__ == "__main__":
    main()

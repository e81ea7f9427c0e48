#!/usr/bin/env python
"""The table of students: what each backbone costs on crops of 112 px, and what it is exported as.

    ./scripts/bench_backbones.py [mobilefacenet timm:resnet18 mobilenet_v3_small,last_stride=1]

A student has 128 dimensions, no last layer and random weights, whose norms have seen drawn faces:
the time of a network does not depend on what it learned. A time is the median of single faces on
one thread, in ms, all files of a student in turns. int8 has integers in every layer that has a
kernel for them; `persona export` may keep some of these in float32. Why a format refuses a student
is told below the table.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench import facts, in_turns, medians

from persona.config import StudentConfig, read_options
from persona.data.transforms import normalise
from persona.deploy.bench import count_macs
from persona.deploy.faces import drawn_faces
from persona.deploy.graph import (
    EMBEDDING,
    ExportOptions,
    build_with_cost,
    graph_input,
    split_prelu,
)
from persona.deploy.litert import to_litert
from persona.deploy.quantise import find_ranges, lower, quantise
from persona.errors import PersonaError
from persona.models.cards import Card
from persona.models.output import for_inference
from persona.models.sources import source_of
from persona.models.store import save_model
from persona.models.student import Student, count_parameters

SIDE_PX, EMBEDDING_SIZE, FACES, WARM_UP, RUNS = 112, 128, 32, 5, 20
STUDENTS = (
    "mobilenet_v3_small",
    "mobilenet_v3_small,last_stride=1",
    "mobilenet_v3_small,first_stride=1",
    "mobilenet_v3_small,first_stride=1,width=0.5",
    "mobilenet_v3_large",
    "mobilenet_v3_large,last_stride=1",
    "mobilefacenet",
    "timm:edgenext_xx_small",
    "timm:ghostnet_100",
    "timm:mobilenetv4_conv_small",
    "timm:resnet18",
)
FORMATS = ("torch", "ONNX", "ONNX int8", "LiteRT", "LiteRT int8")
TITLES = ("student", "last maps", "parameters (million)", "MACs (million)", *FORMATS)


def build(name: str) -> Student:
    """A student whose batch norms have seen drawn faces."""

    def twice(key: str, _value: object) -> None:
        raise PersonaError(f"{key} is given twice")

    architecture, *given = name.split(",")
    options = read_options({}, given, twice)
    torch.manual_seed(0)
    config = StudentConfig(
        architecture, embedding_size=EMBEDDING_SIZE, norm_momentum=0.5, **options
    )
    student = Student(config, 0, head="none", image_size=SIDE_PX).train()
    images = normalise(torch.from_numpy(drawn_faces(SIDE_PX, FACES)).permute(0, 3, 1, 2))
    with torch.no_grad():
        for _ in range(3):
            student(images)
    return student.eval()


def store(student: Student, models: Path) -> Card:
    """The card of the student, as the exports take it."""
    names = ("teacher", "temperature", "score", "train_set", "test_set")
    known: dict[str, Any] = dict.fromkeys(names, None) | {"epochs": 0, "scores": {}, "config": {}}
    return save_model(models, student, model_id="student", classes=(), **known)


def write(student: Student, folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    """The names of the files that a student becomes by format, and why others are refused."""
    import onnx

    wholes = onnx.load_from_string(
        build_with_cost(student, store(student, folder), ExportOptions(), {})[0]
    )
    batches = np.array_split(graph_input(drawn_faces(SIDE_PX, FACES)), 4)
    ranges = find_ranges(lower(wholes).model, batches) | find_ranges(wholes, batches)
    files, refused = {}, {}
    for precision, model in (("", wholes), (" int8", quantise(wholes, ranges, ()))):
        path = folder / f"student{precision.strip()}"
        Path(f"{path}.onnx").write_bytes(split_prelu(model.SerializeToString()))
        files[f"ONNX{precision}"] = f"onnx:{path}.onnx"
        try:
            Path(f"{path}.tflite").write_bytes(to_litert(model, EMBEDDING, {}))
            files[f"LiteRT{precision}"] = f"litert:{path}.tflite"
        except PersonaError as error:
            refused[f"LiteRT{precision}"] = str(error)
    return files, refused


def open_run(name: str, models: Path) -> Callable[[], object]:
    """A file on one random face."""
    runner = source_of(name, models).open_runner(name, models, threads=1)
    assert runner is not None
    return runner.on(1)


def open_torch(student: Student) -> Callable[[], object]:
    """The student in PyTorch on one random face."""
    network = for_inference(student)
    image = torch.rand(1, 3, SIDE_PX, SIDE_PX).contiguous(memory_format=torch.channels_last)

    def run() -> object:
        with torch.inference_mode():
            return network.embed(image)

    return run


def median_ms(run: Callable[[], object]) -> float:
    """Median time of a run in ms."""
    for _ in range(WARM_UP):
        run()
    times = []
    for _ in range(RUNS):
        start_s = time.perf_counter()
        run()
        times.append(1e3 * (time.perf_counter() - start_s))
    return statistics.median(times)


def measure(name: str, rounds: int) -> tuple[list[str], dict[str, str]]:
    """The cells of a row, and why formats are refused."""
    student = build(name)
    cells = [f"{student.channels} x {student.maps_side()} x {student.maps_side()}"]
    cells += [f"{count_parameters(student) / 1e6:.2f}", f"{count_macs(student) / 1e6:.0f}"]
    with tempfile.TemporaryDirectory() as scratch:
        files, refused = write(student, Path(scratch))
        runs = {form: open_run(file, Path(scratch)) for form, file in files.items()}
        runs["torch"] = open_torch(student)
        cases = {form: functools.partial(median_ms, run) for form, run in runs.items()}
        found_ms = medians(in_turns(cases, rounds))
    cells += [f"{found_ms[form]:.2f}" if form in found_ms else "–" for form in FORMATS]
    architecture, *options = name.split(",")
    told = "".join(f", `{option.replace('=', ': ')}`" for option in options)
    return [f"`{architecture}`{told}", *cells], refused


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("students", nargs="*", default=STUDENTS, metavar="STUDENT[,OPTION=VALUE]")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"| {' | '.join(TITLES)} |\n|---|{'--:|' * (len(TITLES) - 1)}")
    lines: list[str] = []
    for name in arguments.students:
        cells, refused = measure(name, arguments.rounds)
        print(f"| {' | '.join(cells)} |", flush=True)
        lines += [f"{name}, {form}: {why}" for form, why in refused.items()]
    packages = facts("torch", "onnxruntime", "ai-edge-litert", "timm")
    print("", *lines, ", ".join(f"{key} {value}" for key, value in packages.items()), sep="\n")


if __name__ == "__main__":
    main()

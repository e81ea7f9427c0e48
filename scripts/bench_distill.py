#!/usr/bin/env python
"""How fast a training step is: this project's against a plain loop of the same recipe.

    ./scripts/bench_distill.py [--quick] [--json] [--student mobilenet_v3_large] [--batch-size 128]

Side by side in one run, in turns, medians of several rounds, first batches dropped. Weights and
photos are random: a step takes as long on them.

- plain: the reference recipe as one would write it down: FaceNet online and the student in float32,
  one process, Pillow and torch's own DataLoader, tensors as they come; in a process of its own,
  because this project sets up the C library's memory for its own
- online: this project's step and loader, with the teacher
- kept: the same with kept targets
- resident: the kept step on one batch that is on the device already

With `--teacher onnx:FILE` it measures the making of kept targets instead, in views a second:

- targets: `persona targets`, from opening the set to the card
- sessions: onnxruntime on as many faces that are in memory already, a session of one thread on each
  core
- session: the same in one session of as many threads, which is onnxruntime's default
"""

from __future__ import annotations

import argparse
import functools
import io
import json
import logging
import multiprocessing
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from bench import commit, facts, in_turns, medians, ratio, spread

CLASSES = 8631
SIZE_PX = 160
IDENTITIES = 16
DISTINCT = 64
"""Photos that are drawn; the others are copies."""
RUNTIME_BATCH = 8
"""Faces in a run of the teacher's runtime alone."""


def noise_photos() -> list[bytes]:
    """Smooth noise, which takes as many bytes as a face."""
    from PIL import Image

    rng = np.random.default_rng(0)
    faces = []
    for _ in range(DISTINCT):
        coarse = Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        smooth = coarse.resize((SIZE_PX, SIZE_PX), Image.Resampling.BICUBIC)
        smooth.save(buffer, "JPEG", quality=95)
        faces.append(buffer.getvalue())
    return faces


def write_photos(folder: Path, photos: int) -> None:
    """Noise in VGGFace2's layout."""
    faces = noise_photos()
    names = []
    for number in range(photos):
        name = f"n{number % IDENTITIES:06d}/{number:06d}_01.jpg"
        path = folder / "VGGFace2" / "train" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(faces[number % DISTINCT])
        names.append(name)
    (folder / "VGGFace2" / "train_list.txt").write_text("".join(f"{n}\n" for n in sorted(names)))


def prepare(home: Path, photos: int) -> None:
    """Raw photos, and FaceNet with random weights."""
    import torch
    from facenet_pytorch import InceptionResnetV1

    from persona.models.weights import FACENETS
    from persona.workspace import Workspace

    place = Workspace.locate(home=home)
    write_photos(place.raw, photos)
    torch.manual_seed(0)
    weights = place.models / "teachers" / FACENETS["facenet-vggface2"].file
    weights.parent.mkdir(parents=True)
    torch.save(InceptionResnetV1(classify=True, num_classes=CLASSES).state_dict(), weights)


def pack(home: Path, photos: int) -> None:
    """Packs the photos, as part of a set with FaceNet's 8,631 classes."""
    from persona.data.align import AlignSpec
    from persona.data.pack import PackOptions, pack_photos
    from persona.data.raw import open_dataset
    from persona.data.shards import write_manifest
    from persona.workspace import Workspace

    place = Workspace.locate(home=home)
    train = open_dataset("vggface2", place.raw, "train")
    options = PackOptions(align=AlignSpec("none", SIZE_PX, 0), workers=2, shard_size=photos // 4)
    packed = pack_photos(train, place.shards / train.set_name, options)
    classes = tuple(f"n{number:06d}" for number in range(CLASSES))
    write_manifest(packed.folder, replace(packed.manifest, classes=classes))


def plain_steps(home: Path, arguments: argparse.Namespace) -> Iterator[Callable[[], int]]:
    """The reference recipe, written down plainly; each item does one step."""
    import torch
    import torch.nn.functional as F
    from facenet_pytorch import InceptionResnetV1
    from PIL import Image
    from torch import nn
    from torch.utils.data import DataLoader, Dataset
    from torchvision import models

    from persona.models.weights import FACENETS

    class Photos(Dataset[Any]):
        def __init__(self) -> None:
            root = home / "data" / "raw" / "VGGFace2" / "train"
            self.paths = sorted(root.glob("*/*.jpg"))

        def __len__(self) -> int:
            return len(self.paths)

        def __getitem__(self, place: int) -> tuple[torch.Tensor, int]:
            image = np.asarray(Image.open(self.paths[place]).convert("RGB"))
            tensor = torch.from_numpy(image.copy()).permute(2, 0, 1).float()
            if torch.rand(()) < 0.5:
                tensor = tensor.flip(2)
            return (tensor - 127.5) / 128, int(self.paths[place].parent.name[1:])

    class PlainStudent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            network = getattr(models, arguments.student)(weights=None)
            self.features, self.pool = network.features, nn.AdaptiveAvgPool2d(1)
            self.linear = nn.Linear(network.classifier[0].in_features, 512, bias=False)
            self.norm = nn.BatchNorm1d(512, eps=0.001)
            self.logits = nn.Linear(512, CLASSES)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            pooled = self.pool(self.features(images)).flatten(1)
            return self.logits(self.norm(self.linear(pooled)))

    device = torch.device(arguments.device)
    teacher = InceptionResnetV1(classify=True, num_classes=CLASSES)
    weights = home / "models" / "teachers" / FACENETS["facenet-vggface2"].file
    teacher.load_state_dict(torch.load(weights, weights_only=True))
    teacher.eval().to(device)
    student = PlainStudent().to(device).train()
    optimizer = torch.optim.Adam(student.parameters(), lr=0.001)
    temperature = 4.0
    while True:
        loader = DataLoader(
            Photos(),
            arguments.batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=arguments.workers,
            multiprocessing_context="fork" if arguments.workers else None,
            pin_memory=device.type == "cuda",
        )
        for images, labels in loader:

            def step(images: torch.Tensor = images, labels: torch.Tensor = labels) -> int:
                images, labels = images.to(device), labels.to(device)
                with torch.no_grad():
                    target = teacher(images)
                found = student(images)
                soft = F.kl_div(
                    F.log_softmax(found / temperature, 1),
                    F.softmax(target / temperature, 1),
                    reduction="batchmean",
                )
                loss = 0.9 * temperature**2 * soft + 0.1 * F.cross_entropy(found, labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                loss.item()
                return len(images)

            yield step


def plain_process(pipe: Any, home: Path, arguments: argparse.Namespace) -> None:
    """Serves `measure` of the plain loop over a pipe."""
    steps = plain_steps(home, arguments)
    measure(steps, 0, 1)  # warm, while the other process packs and loads
    pipe.send(None)
    while True:
        pipe.send(measure(steps, *pipe.recv()))


class Plain:
    """The plain loop in a process of its own, idle but while it is measured."""

    def __init__(self, home: Path, arguments: argparse.Namespace) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=plain_process, args=(theirs, home, arguments))
        self.process.start()

    def wait(self) -> None:
        """Until it is loaded and warm."""
        self.pipe.recv()

    def measure(self, drop: int, count: int) -> float:
        """Images a second."""
        self.pipe.send((drop, count))
        return float(self.pipe.recv())

    def __enter__(self) -> Plain:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.join()


def random_targets(faces: Any, teacher: Path, head: Any) -> None:
    """What `persona targets` would keep, of random vectors: only its speed is wanted here."""
    from persona.config import AugmentConfig
    from persona.data.kept_targets import (
        HEAD,
        TargetFile,
        Targets,
        file_names,
        photo_views,
        targets_folder,
        write_targets,
    )
    from persona.data.storage import on_disk
    from persona.files import sha256_file
    from persona.models.store import save_head

    name, augment = "facenet-vggface2", AugmentConfig()
    place = targets_folder(on_disk(faces.folder, "keeping targets"), name)
    place.mkdir(parents=True)
    rng = np.random.default_rng(0)
    files = []
    for number, shard in enumerate(faces.manifest.shards):
        features, views = (place / file for file in file_names(number))
        np.save(features, rng.normal(size=(shard.samples, 2, 512)).astype(np.float16))
        np.save(views, np.stack([photo_views(augment, 2, 0, 0, 0)] * shard.samples))
        files.append(
            TargetFile(shard.sha256, shard.samples, sha256_file(features), sha256_file(views))
        )
    save_head(place / HEAD, head)
    digest = sha256_file(teacher)
    known = (name, digest, 512, "linear", CLASSES, "vggface2", None, 2, augment, 0, tuple(files))
    known = (*known, sha256_file(place / HEAD))
    write_targets(place, Targets(*known))


def targets_speed(home: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Views a second of `persona targets` and of its teacher's runtime alone, in turns."""
    from accelerate import Accelerator

    from persona.data.align import AlignSpec
    from persona.data.pack import PackOptions, pack_photos
    from persona.data.raw import open_dataset
    from persona.data.storage import on_disk
    from persona.models.sources import load_network, source_of, spell
    from persona.targets import TargetOptions, make_targets
    from persona.workspace import Workspace

    place = Workspace.locate(home=home)
    named = load_network(spell(arguments.teacher), place.models)
    options = TargetOptions(batch_size=arguments.batch_size, workers=arguments.workers)
    photos = (4 if arguments.quick else 16) * arguments.batch_size // options.views
    side = named.image_size or arguments.image_size
    align = AlignSpec("template", side, 0)
    write_photos(place.raw, photos)
    train = open_dataset("vggface2", place.raw, "train")
    packed = pack_photos(
        train, place.shards / train.set_name, PackOptions(align=align, workers=2, shard_size=photos)
    )
    accelerator = Accelerator(cpu=True)
    views = photos * options.views
    cores, source = len(os.sched_getaffinity(0)), source_of(spell(arguments.teacher), place.models)

    def open_runs(count: int) -> list[Callable[[], object]]:
        threads = cores // count
        runners = [source.open_runner(named.name, place.models, threads) for _ in range(count)]
        return [runner.on(RUNTIME_BATCH) for runner in runners if runner is not None]

    runs = {"sessions": open_runs(cores), "session": open_runs(1)}
    folder = on_disk(packed.folder, "keeping targets") / "targets"

    def timed(name: str) -> float:
        shutil.rmtree(folder, ignore_errors=True)
        start_s = time.perf_counter()
        if name == "targets":
            make_targets(packed.faces, named, options, accelerator)
        else:
            turns = views // (len(runs[name]) * RUNTIME_BATCH)
            with ThreadPoolExecutor(cores) as pool:
                list(pool.map(lambda run: [run() for _ in range(turns)], runs[name]))
        return views / (time.perf_counter() - start_s)

    cases = {name: functools.partial(timed, name) for name in ("targets", *runs)}
    for case in cases.values():  # warm up
        case()
    speeds = in_turns(cases, 2 if arguments.quick else 3)
    return {
        "targets_over_sessions": ratio(speeds["targets"], speeds["sessions"]),
        "targets_over_session": ratio(speeds["targets"], speeds["session"]),
        "views_per_s": {name: round(value, 1) for name, value in medians(speeds).items()},
        "spread": spread(speeds),
        "photos": photos,
        **facts("torch", "onnxruntime"),
    }


def build_run(home: Path, arguments: argparse.Namespace, targets: str) -> Any:
    """A run of this project, ready to step."""
    from accelerate import Accelerator

    from persona.config import load_config
    from persona.distill.recipe import Distillation
    from persona.training.devices import DDP_OPTIONS
    from persona.workspace import Workspace

    options = {
        "student.architecture": arguments.student,
        "batch_size": arguments.batch_size,
        "workers": arguments.workers,
        "mixed_precision": arguments.precision,
        "test_set": "none",
        "tracker": "none",
        "targets": targets,
    }
    config = load_config(None, options)
    accelerator = Accelerator(
        mixed_precision=arguments.precision,
        step_scheduler_with_optimizer=False,
        kwargs_handlers=[DDP_OPTIONS],
        cpu=arguments.device == "cpu",
    )
    return Distillation(config, Workspace.locate(home=home), accelerator, None)


def run_steps(run: Any, *, resident: bool = False) -> Iterator[Callable[[], int]]:
    """This project's steps, through its loader or on one batch over and over."""
    from persona.data.stream import to_device

    run.trainer.task.train()
    epoch, inputs = 0, run.inputs
    while True:
        if resident:  # one batch: no process
            inputs = replace(inputs, config=replace(run.config, workers=0))
        for batch in to_device(inputs.loader(run.accelerator, epoch), run.accelerator.device):
            while True:

                def step(batch: Any = batch) -> int:
                    total, _ = run.trainer.train_step(batch, 0)
                    total.item()
                    return len(batch.images)

                yield step
                if not resident:
                    break
        epoch += 1


def measure(steps: Iterator[Callable[[], int]], drop: int, count: int) -> float:
    """Images a second over `count` steps, waiting for data included, after `drop` others."""
    for _ in range(drop):
        next(steps)()
    start_s, images = time.perf_counter(), 0
    for _ in range(count):
        images += next(steps)()
    return images / (time.perf_counter() - start_s)


def processes(home: Path, arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Images a second, one thread a process, kept targets, in turns.

    Of one process, of two that train together, and of two that know nothing of each other: what
    the machine loses by itself when both cores work.
    """
    found: dict[str, list[float]] = {"one": [], "apart": [], "together": []}
    for _ in range(5):
        found["one"].append(worker_speed(home, arguments, together=1, apart=1))
        found["apart"].append(worker_speed(home, arguments, together=1, apart=2))
        found["together"].append(worker_speed(home, arguments, together=2, apart=1))
    return found


def worker_speed(home: Path, arguments: argparse.Namespace, *, together: int, apart: int) -> float:
    """Images a second of all, in so many groups at once of so many processes each."""
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", str(together), "--standalone"]
    mode = [__file__, "--worker", str(home), "--student", arguments.student]
    command = [sys.executable, *launch, *mode, "--batch-size", str(arguments.batch_size)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    pipe = subprocess.PIPE
    groups = [
        subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True)
        for _ in range(apart)
    ]
    speed = 0.0
    for group in groups:
        out, said = group.communicate()
        if group.returncode:
            raise SystemExit(said)
        speed += float(out)
    return speed


def worker(arguments: argparse.Namespace) -> None:
    """One of `processes`: rank 0 prints the images a second of all."""
    from persona.memory import keep_freed_memory

    keep_freed_memory()  # as distill() does
    arguments.workers = 0
    run = build_run(Path(arguments.worker), arguments, "kept")
    speed = measure(run_steps(run, resident=True), 2, 8)
    if run.accelerator.is_main_process:
        print(speed * run.accelerator.num_processes)
    run.accelerator.end_training()


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two rounds, no second process")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--student", default="mobilenet_v3_small")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--precision", default="no", help="of the student")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--teacher", metavar="onnx:FILE", help="measure targets of this network")
    parser.add_argument("--image-size", type=int, default=112, help="if the teacher takes any")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    logging.getLogger("persona").setLevel(logging.ERROR)
    if arguments.worker:
        worker(arguments)
        return
    with tempfile.TemporaryDirectory() as folder:
        if arguments.teacher:
            print(json.dumps(targets_speed(Path(folder), arguments), indent=2))
            return
        report(bench(Path(folder), arguments), arguments)


def bench(home: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Raw medians and ratios."""
    from persona.memory import keep_freed_memory

    if arguments.device == "cpu":
        keep_freed_memory()  # as distill() does
    # Epochs of so many batches that starting the loader's workers weighs as little as in real ones.
    photos = 32 * arguments.batch_size
    prepare(home, photos)
    with Plain(home, arguments) as plain:  # imports and loads while the photos are packed
        pack(home, photos)
        return compare(home, plain, arguments)


def compare(home: Path, plain: Plain, arguments: argparse.Namespace) -> dict[str, Any]:
    """The steps in turns."""
    import torch

    from persona.data.sets import open_set
    from persona.models.sources import load_network
    from persona.models.weights import FACENETS

    faces = open_set("vggface2", home / "shards")
    weights = home / "models" / "teachers" / FACENETS["facenet-vggface2"].file
    teacher = load_network("facenet-vggface2", home / "models").network
    random_targets(faces, weights, teacher.head())
    kept = build_run(home, arguments, "kept")
    head = sum(
        1
        for module in (kept.trainer.task.teacher.head, kept.trainer.task.teacher.network)
        if module is not None
        for parameter in module.parameters()
        if parameter.shape[:1] == (CLASSES,) and parameter.ndim == 2
    )
    assert head == 1, "the teacher's last layer is held more than once"
    online = build_run(home, arguments, "online")
    # Loaders fork first: later, all that training holds would be copied as it is written.
    steps = {
        "kept": run_steps(kept),
        "resident": run_steps(kept, resident=True),
        "online": run_steps(online),
    }

    def timed(name: str, drop: int, count: int) -> float:
        return plain.measure(drop, count) if name == "plain" else measure(steps[name], drop, count)

    # Steps to drop, more than are loaded ahead, and steps to time.
    counts = {"plain": (1, 3), "online": (3, 6), "kept": (4, 12), "resident": (1, 12)}
    if arguments.quick:
        counts = {"plain": (0, 1), "online": (0, 1), "kept": (3, 3), "resident": (0, 2)}
    plain.wait()
    for name in steps:  # warm up, each by itself
        timed(name, 0, 1)
    speeds: dict[str, list[float]] = {name: [] for name in counts}
    for _ in range(2 if arguments.quick else 5):
        for name, (drop, count) in counts.items():
            speeds[name].append(timed(name, drop, count))
    median = medians(speeds)
    result: dict[str, Any] = {
        "kept_over_plain": ratio(speeds["kept"], speeds["plain"]),
        "online_over_plain": ratio(speeds["online"], speeds["plain"]),
        "loader_over_resident": ratio(speeds["kept"], speeds["resident"]),
    }
    if not arguments.quick and arguments.device == "cpu":
        by_process = processes(home, arguments)
        result["two_processes_efficiency"] = ratio(by_process["together"], by_process["one"]) / 2
        result["together_over_apart"] = ratio(by_process["together"], by_process["apart"])
        speeds |= by_process
        median |= medians(by_process)
    return result | {
        "images_per_s": {name: round(value, 1) for name, value in median.items()},
        "spread": spread(speeds),
        "student": arguments.student,
        "batch_size": arguments.batch_size,
        "precision": arguments.precision,
        "teacher_precision": str(online.trainer.task.teacher.dtype or torch.float32).removeprefix(
            "torch."
        ),
        "device": torch.cuda.get_device_name() if arguments.device == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit(),
    }


def report(result: dict[str, Any], arguments: argparse.Namespace) -> None:
    """One JSON document, or a table."""
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    text = io.StringIO()
    text.write("| step | images/s | of plain |\n|---|--:|--:|\n")
    for name, speed in result["images_per_s"].items():
        ratio = speed / result["images_per_s"]["plain"]
        text.write(f"| {name} | {speed:.1f} | {ratio:.2f} |\n")
    for name in ("loader_over_resident", "two_processes_efficiency", "together_over_apart"):
        if name in result:
            text.write(f"\n{name}: {result[name]:.3f}")
    told = ("student", "batch_size", "precision", "teacher_precision", "device", "threads")
    text.write("\n" + ", ".join(f"{name} {result[name]}" for name in (*told, "torch", "commit")))
    print(text.getvalue())


if __name__ == "__main__":
    main()

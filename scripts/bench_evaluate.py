#!/usr/bin/env python
"""What evaluating a set of LFW's size costs beyond the student's own forward pass.

    ./scripts/bench_evaluate.py [--quick] [--json] [--student mobilenet_v3_large]

In turns, medians of several rounds. Weights and photos are random: both take as long on them.

- forward: the student over as many batches, on one batch that is there already
- folded: the same with the batch norms folded into the convolutions, as evaluate runs it
- evaluate: this project, from shards to figures with their intervals
- reference: a map-style dataset of files, Pillow and torch's own DataLoader in one process, each
  face embedded once, and the figures by scikit-learn
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from bench import facts, in_turns, medians, spread
from bench_distill import DISTINCT, SIZE_PX, noise_photos

FACES = 13_233
PEOPLE = 5_749
FOLDS, PER_KIND = 10, 300


def write_lfw(raw: Path, faces: int) -> None:
    """Photos of as many people and with as many pairs, for their number, as LFW's."""
    per_kind = max(10, faces * PER_KIND // FACES)
    people = max(2 * FOLDS, faces * PEOPLE // FACES)
    photos = noise_photos()
    root = raw / "LFW"
    counts = [faces // people + (number < faces % people) for number in range(people)]
    names = [f"Person_{number:05d}" for number in range(people)]
    for number, (name, count) in enumerate(zip(names, counts, strict=True)):
        (root / name).mkdir(parents=True)
        for photo in range(1, count + 1):
            path = root / name / f"{name}_{photo:04d}.jpg"
            path.write_bytes(photos[(number + photo) % DISTINCT])
    rng = np.random.default_rng(0)
    lines = [f"{FOLDS}\t{per_kind}"]
    for _ in range(FOLDS):
        lines += [f"{names[n]}\t1\t2" for n in rng.integers(people, size=per_kind)]
        for a, step in zip(
            rng.integers(people, size=per_kind),
            rng.integers(1, people, size=per_kind),
            strict=True,
        ):
            lines.append(f"{names[a]}\t1\t{names[(a + step) % people]}\t1")
    (root / "pairs.txt").write_text("\n".join(lines) + "\n")


def reference(root: Path, network: Any, batch_size: int) -> dict[str, float]:
    """The evaluation as one would write it down."""
    import torch
    from PIL import Image
    from sklearn.metrics import roc_auc_score
    from torch.utils.data import DataLoader, Dataset

    paths = sorted(root.glob("*/*.jpg"))

    class Photos(Dataset[Any]):
        def __len__(self) -> int:
            return len(paths)

        def __getitem__(self, place: int) -> torch.Tensor:
            image = np.asarray(Image.open(paths[place]).convert("RGB"))
            return (torch.from_numpy(image.copy()).permute(2, 0, 1).float() - 127.5) / 128

    with torch.inference_mode():
        loader = DataLoader(Photos(), batch_size)
        embeddings = torch.cat([network.embed(images) for images in loader]).numpy()
    row = {path.name: place for place, path in enumerate(paths)}
    scores, same = [], []
    for line in (root / "pairs.txt").read_text().splitlines()[1:]:
        fields = line.split("\t")
        a, i, b, j = (*fields[:2], *(fields[2:] if len(fields) == 4 else (fields[0], fields[2])))
        one, two = (row[f"{name}_{int(n):04d}.jpg"] for name, n in ((a, i), (b, j)))
        scores.append(float(embeddings[one] @ embeddings[two]))
        same.append(len(fields) == 3)
    score, label = np.array(scores), np.array(same)
    fold, accuracies = np.arange(len(score)) * FOLDS // len(score), []
    for number in range(FOLDS):
        test = fold == number
        levels = np.arange(-1, 1, 0.005)
        right = [np.mean((score[~test] > level) == label[~test]) for level in levels]
        accuracies.append(np.mean((score[test] > levels[np.argmax(right)]) == label[test]))
    return {"accuracy": float(np.mean(accuracies)), "auc": float(roc_auc_score(label, score))}


def seconds(work: Callable[[], Any]) -> float:
    """How long it takes."""
    start_s = time.perf_counter()
    work()
    return time.perf_counter() - start_s


def bench(home: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Medians and ratios."""
    import torch
    from accelerate import Accelerator

    from persona.data.align import AlignSpec
    from persona.data.pack import PackOptions, pack_photos
    from persona.data.raw import open_dataset
    from persona.evaluation.protocols import evaluate
    from persona.memory import keep_freed_memory
    from persona.models.output import FaceNetwork, for_inference
    from persona.models.sources import load_network

    faces = 1_280 if arguments.quick else FACES
    write_lfw(home / "raw", faces)
    dataset = open_dataset("lfw", home / "raw")
    packed = pack_photos(
        dataset, home / "lfw", PackOptions(align=AlignSpec("none", SIZE_PX, 0), workers=2)
    )
    keep_freed_memory()
    accelerator = Accelerator(cpu=True)
    named = load_network(arguments.student, home)
    network = named.network.eval().to(memory_format=torch.channels_last)
    size = arguments.batch_size
    batch = torch.randn(size, 3, SIZE_PX, SIZE_PX).to(memory_format=torch.channels_last)

    folded = for_inference(network)

    @torch.inference_mode()
    def forward(network: FaceNetwork) -> None:
        for _ in range(faces // size):
            network.embed(batch)
        if faces % size:
            network.embed(batch[: faces % size])

    def ours() -> None:
        evaluate(
            named,
            packed.faces,
            accelerator,
            options={"resamples": 1000},
            batch_size=size,
            workers=arguments.workers,
            quiet=True,
        )

    cases = {
        "forward": lambda: forward(network),
        "folded": lambda: forward(folded),
        "evaluate": ours,
        "reference": lambda: reference(home / "raw" / "LFW", network, size),
    }
    with torch.inference_mode():
        network.embed(batch)  # warm up
        folded.embed(batch)
    times = in_turns({name: lambda work=work: seconds(work) for name, work in cases.items()}, 3)
    median = medians(times)
    return {
        "evaluate_over_forward": median["evaluate"] / median["forward"],
        "evaluate_over_folded": median["evaluate"] / median["folded"],
        "evaluate_over_reference": median["evaluate"] / median["reference"],
        "seconds": {name: round(value, 3) for name, value in median.items()},
        "spread": spread(times),
        "faces": faces,
        "student": arguments.student,
        "batch_size": size,
        "workers": arguments.workers,
        "threads": torch.get_num_threads(),
        **facts("torch", "numpy"),
    }


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the faces")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--student", default="mobilenet_v3_small")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--workers", type=int, help="loader processes of ours")
    arguments = parser.parse_args()
    logging.getLogger("persona").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        result = bench(Path(folder), arguments)
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    print("| | s | of the forward pass |\n|---|--:|--:|")
    for name, value in result["seconds"].items():
        print(f"| {name} | {value:.2f} | {value / result['seconds']['forward']:.2f} |")
    shown = ("faces", "student", "batch_size", "workers", "threads", "torch", "commit")
    print("\n" + ", ".join(f"{name} {result[name]}" for name in shown))


if __name__ == "__main__":
    main()

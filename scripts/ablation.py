#!/usr/bin/env python
"""Which loss helps, and how many kept views: the experiments of docs/experiments.md.

    ./scripts/ablation.py --faces ../shared/faces --home /tmp/ablation

Teacher: faces/teachers/mobilefacenet.onnx. Trained on faces/raw/VGGFace2 and drawn faces; tested on
faces/raw/LFW, whose people are in neither. Every run has the same budget; the last epoch's
running mean of the weights is measured, so that nothing is chosen on the test set. A run that is
done is not done again: stop it and start it when you like.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from persona.config import load_config
from persona.data.align import AlignSpec
from persona.data.pack import PackOptions, pack_photos
from persona.data.raw import open_dataset
from persona.data.raw.synthetic import Population, Synthetic, draw_datasets
from persona.workspace import Workspace

SIZE_PX = 112
DRAWN = 240
RESULTS = "results.jsonl"
SEEDS = (0, 1, 2)

OPTIM = {
    "optimizer": "adamw",
    "lr": 0.002,
    "weight_decay": 0.05,
    "schedule": "cosine",
    "warmup_epochs": 1.0,
    "clip_norm": 5.0,
    "ema_decay": 0.99,
}
HARD, COSINE = {"hard_labels": {"weight": 0.1}}, {"embedding_cosine": {"weight": 1.0}}
RELATIONAL = {
    "rkd_distance": {"weight": 1.0},
    "rkd_angle": {"weight": 2.0, "photos": 64},
}
LOSSES: dict[str, dict[str, Any]] = {
    "hard labels": {"hard_labels": {"weight": 1.0}},
    "+ embedding": HARD | COSINE,
    "+ embedding + relational": HARD | COSINE | RELATIONAL,
    "+ embedding + AdaDistill": HARD | COSINE | {"adadistill": {"weight": 0.05}},
}
STRONG = {
    "crop": 0.2,
    "low_resolution": 0.2,
    "grey": 0.1,
    "jitter": 0.3,
    "erase": 0.1,
}
# The embedding alone; 2 views hold nothing but the mirror image, the others all of STRONG.
VIEWS = {"2 kept views": 2, "8 kept views": 8, "24 kept views": 24, "online": 0}


def prepare(faces: Path, home: Path) -> Workspace:
    """Raw folders and packed sets: the real portraits and drawn faces in one, LFW in the other."""
    place = Workspace.locate(home=home)
    cores = len(os.sched_getaffinity(0))
    draw_datasets(place.raw, Population(train_identities=DRAWN), workers=cores)
    mixed = place.raw / "VGGFace2"
    if not (mixed / "train_list.txt").exists():
        lines = []
        sources = {
            "": faces / "raw" / "VGGFace2" / "train",
            "n9": place.raw / Synthetic.folder / "train",
        }
        for prefix, source in sources.items():
            for photo in sorted(source.glob("*/*.jpg")):
                name = photo.parent.name
                name = f"{prefix}{name[2:]}" if prefix else name
                target = mixed / "train" / name / photo.name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.unlink(missing_ok=True)
                target.symlink_to(photo.resolve())
                lines.append(f"{name}/{photo.name}\n")
        (mixed / "train_list.txt").write_text("".join(sorted(lines)))
    options = PackOptions(align=AlignSpec("landmarks", SIZE_PX, 0), workers=cores)
    train = open_dataset("vggface2", place.raw, "train")
    pack_photos(train, place.shards / train.set_name, options)
    pack_photos(open_dataset("lfw", faces / "raw"), place.shards / "lfw", options)
    for views in filter(None, VIEWS.values()):
        if not (place.shards / f"views-{views}").exists():
            shutil.copytree(
                place.shards / train.set_name,
                place.shards / f"views-{views}",
                ignore=shutil.ignore_patterns("targets"),
            )
    return place


def main() -> None:
    """Runs what is missing, then prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faces", type=Path, required=True)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    place = prepare(arguments.faces, arguments.home)
    path = arguments.home / RESULTS
    lines = path.read_text().splitlines() if path.exists() else []
    results = {row["run"]: row for row in map(json.loads, lines)}
    teacher = f"onnx:{arguments.faces.resolve() / 'teachers' / 'mobilefacenet.onnx'}"

    from accelerate import Accelerator

    from persona.config import AugmentConfig
    from persona.data.sets import open_set
    from persona.distill import distill
    from persona.evaluation.protocols import evaluate
    from persona.models.sources import load_network
    from persona.targets import TargetOptions, keep_targets

    lfw = open_set("lfw", place.shards)

    def measure(name: str) -> dict[str, Any]:
        named = load_network(name, place.models)
        return evaluate(named, lfw, Accelerator(), quiet=True).to_json()

    def note(run: str, figures: dict[str, Any], seconds: float) -> None:
        results[run] = {"run": run, "seconds": round(seconds, 1), **figures}
        with path.open("a") as file:
            file.write(json.dumps(results[run]) + "\n")
        sys.stderr.write(f"{run}: accuracy {figures['accuracy']:.4f}, AUC {figures['auc']:.4f}\n")

    def train(run: str, seed: int, losses: dict[str, Any], **options: Any) -> None:
        if run in results:
            return
        config = load_config(
            None,
            {
                "teacher": teacher,
                "test_set": "none",
                "epochs": arguments.epochs,
                "batch_size": 64,
                "workers": 1,
                "tracker": "none",
                "seed": seed,
                "losses": losses,
                "optim": OPTIM,
                **options,
            },
        )
        start_s = time.perf_counter()
        model = distill(config, place)
        took_s = time.perf_counter() - start_s
        note(run, measure(f"{model}-ema"), took_s)

    for views in filter(None, VIEWS.values()):
        faces = open_set(f"views-{views}", place.shards)
        augment = AugmentConfig(**STRONG) if views > 2 else AugmentConfig()
        options = TargetOptions(views=views, augment=augment)
        keep_targets(faces, teacher, place.models, options)
    if "teacher" not in results:
        note("teacher", measure(teacher), 0)
    if "untrained student" not in results:
        note("untrained student", measure("mobilenet_v3_small"), 0)
    for seed in SEEDS:
        for name, losses in LOSSES.items():
            train(f"losses / {name} / {seed}", seed, losses, train_set="views-2", targets="kept")
        for name, views in VIEWS.items():
            augment = {} if views == 2 else STRONG
            options = {"train_set": f"views-{views or 2}", "targets": "kept" if views else "online"}
            train(f"views / {name} / {seed}", seed, COSINE, augment=augment, **options)
    report(results, as_json=arguments.json)


def report(results: dict[str, dict[str, Any]], *, as_json: bool) -> None:
    """Mean and spread over the seeds, as JSON or as the table of the docs."""
    rows = []
    groups: dict[str, list[dict[str, Any]]] = {}
    for run, row in results.items():
        groups.setdefault(run.rpartition(" / ")[0] or run, []).append(row)
    for name, group in groups.items():
        row = {"runs": name, "seeds": len(group)}
        for key in ("accuracy", "auc", "eer", "seconds"):
            values = [item[key] for item in group]
            row[key] = round(statistics.mean(values), 4)
            row[f"{key}_spread"] = round(statistics.stdev(values), 4) if len(values) > 1 else 0.0
        rows.append(row)
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    print("| runs | seeds | accuracy | AUC | EER | seconds a run |\n|---|--:|--:|--:|--:|--:|")
    for row in rows:
        cells = [f"{row[k]:.3f} ± {row[k + '_spread']:.3f}" for k in ("accuracy", "auc", "eer")]
        print(f"| {row['runs']} | {row['seeds']} | {' | '.join(cells)} | {row['seconds']:.0f} |")


if __name__ == "__main__":
    main()

#!/usr/bin/env python
"""Which loss helps, and how many kept views: the experiments of docs/experiments.md.

    ./scripts/ablation.py --faces ../shared/faces --home /tmp/ablation

Teacher: faces/teachers/mobilefacenet.onnx. Trained on faces/raw/VGGFace2 and drawn faces; tested on
faces/raw/LFW, whose people are in neither. This script packs the sets and keeps the teacher's
embeddings. The runs are those of configs/sweeps/, by `persona sweep`. What
is done is not done again: stop it and start it when you like.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

from persona.config import AugmentConfig, load_config
from persona.data.align import AlignSpec
from persona.data.pack import PackOptions, pack_photos
from persona.data.raw import open_dataset
from persona.data.raw.synthetic import Population, Synthetic, draw_datasets
from persona.data.sets import open_set
from persona.files import scratch_folder
from persona.workspace import Workspace

ROOT = Path(__file__).parents[1]
SIZE_PX = 112
DRAWN = 240
VIEWS = (2, 8, 24)
"""Kept views of the sets `views-N`. 2 views hold nothing but the mirror image."""


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
    for views in VIEWS:
        copy_set(place.shards / train.set_name, place.shards / f"views-{views}")
    return place


def copy_set(packed: Path, target: Path) -> None:
    """Copies a packed set without its targets, unless it is there. A kill leaves no half copy."""
    if not target.exists():
        with scratch_folder(target.parent, target.name) as scratch:
            copied = scratch / target.name
            shutil.copytree(packed, copied, ignore=shutil.ignore_patterns("targets"))
            copied.rename(target)


def main() -> None:
    """Packs what is missing, and runs both sweeps."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--faces", type=Path, required=True)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    place = prepare(arguments.faces, arguments.home)
    teacher = f"onnx:{arguments.faces.resolve() / 'teachers' / 'mobilefacenet.onnx'}"

    from persona.targets import TargetOptions, keep_targets

    strong = load_config(ROOT / "configs" / "strong_views.yaml", {"teacher": teacher}).augment
    for views in VIEWS:
        augment = strong if views > 2 else AugmentConfig()
        faces = open_set(f"views-{views}", place.shards)
        keep_targets(faces, teacher, place.models, TargetOptions(views=views, augment=augment))
    for sweep in ("losses", "views"):
        command = [sys.executable, "-m", "persona", "sweep"]
        command += [str(ROOT / "configs" / "sweeps" / f"{sweep}.yaml")]
        command += ["-o", f"teacher={teacher}", "-o", f"epochs={arguments.epochs}"]
        command += ["--json"] if arguments.json else []
        environment = {**os.environ, "PERSONA_HOME": str(arguments.home.resolve())}
        subprocess.run(command, env=environment, check=True)


if __name__ == "__main__":
    main()

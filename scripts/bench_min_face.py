#!/usr/bin/env python
"""What looking only for larger faces saves in a gallery, and what it loses.

    ./scripts/bench_min_face.py FOLDER [--json] [--min-face 20,40,60] [--model persona-s]

Of each photo of the folder, every face is found, cropped and judged as `persona recognise` does it,
on one thread, for each smallest face in turn. The first value is what the others are compared with:

- ms: processor time per photo, from pixels to crops, as the median over rounds
- faces, usable: how many are found, and how many of these are large and sharp enough
- lost: share of the first value's usable faces that are not found, or not usable
- moved: share of the others whose crop has other pixels
- cosine: mean and smallest similarity of the embeddings of those
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

from bench import facts, in_turns, medians, spread, told

ROUNDS = 3
MATCHED = 0.4
"""Overlap (intersection over union) from which on two boxes are of one face."""


def overlap(one: Sequence[float], other: Sequence[float]) -> float:
    """Intersection over union of two boxes."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return width * height / (sum(areas) - width * height)


def compare(model: Any, before: Sequence[Any], after: Sequence[Any]) -> dict[str, float]:
    """What becomes of the usable faces of some photos, each a list of faces, in another search."""
    import numpy as np

    count, lost, pairs = 0, 0, []
    for ours, theirs in zip(before, after, strict=True):
        usable = [face for face in theirs if face.flaw is None]
        for face in (face for face in ours if face.flaw is None):
            count += 1
            nearest = max(usable, key=lambda one: overlap(one.box, face.box), default=None)
            if nearest is None or overlap(nearest.box, face.box) < MATCHED:
                lost += 1
            else:
                pairs.append((face, nearest))
    moved = [(a, b) for a, b in pairs if not np.array_equal(a.crop, b.crop)]
    found = {"lost": lost / max(1, count), "moved": len(moved) / max(1, len(pairs))}
    if moved:
        one, other = (model.embed([pair[side] for pair in moved]) for side in (0, 1))
        cosine_N = (one * other).sum(axis=1)
        found |= {"cosine": float(cosine_N.mean()), "cosine_least": float(cosine_N.min())}
    return found


def measure(folder: Path, sizes: Sequence[int], name: str) -> dict[str, Any]:
    """Every figure, by smallest face."""
    import numpy as np
    from PIL import Image

    import persona
    from persona.api.embedding import find_photos

    model = persona.load(name)
    photos = [np.asarray(Image.open(path).convert("RGB")) for path in find_photos(folder)]
    found: dict[int, list[Any]] = {}

    def look(min_face: int) -> float:
        begun_s = time.process_time()
        found[min_face] = [model.find(photo, min_face=min_face) for photo in photos]
        return (time.process_time() - begun_s) / len(photos) * 1000

    for size in sizes:  # warms up
        look(size)
    times = in_turns({str(size): lambda size=size: look(size) for size in sizes}, ROUNDS)
    rows = {}
    for size in sizes:
        faces = [face for some in found[size] for face in some]
        rows[str(size)] = {
            "ms": medians(times)[str(size)],
            "spread": spread(times)[str(size)],
            "faces": len(faces),
            "usable": sum(face.flaw is None for face in faces),
            **compare(model, found[sizes[0]], found[size]),
        }
    return {"photos": len(photos), "model": model.name, "by_min_face": rows}


def table(result: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lines = [
        "| smallest face | processor ms | faces | usable | lost | moved | cosine | least |",
        "|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for size, row in result["by_min_face"].items():
        cells = [f"{size} px", f"{row['ms']:.1f}", row["faces"], row["usable"]]
        for name in ("lost", "moved", "cosine", "cosine_least"):
            cells.append(f"{row[name]:.3f}" if name in row else "–")
        lines.append(f"| {' | '.join(map(str, cells))} |")
    spreads = (f"{size} px {row['spread']:.2f}" for size, row in result["by_min_face"].items())
    return "\n".join([*lines, "", f"{result['photos']} photos; slowest over fastest round: "]) + (
        ", ".join(spreads)
    )


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="a folder of photos, and those below it")
    parser.add_argument("--min-face", default="20,40,60", metavar="PX,PX")
    parser.add_argument("--model", default="persona-s")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    sizes = [int(size) for size in arguments.min_face.split(",")]
    result = measure(arguments.folder, sizes, arguments.model)
    known = facts("onnxruntime", "numpy", "pillow")
    if arguments.json:
        print(json.dumps({**result, **known}, indent=2))
    else:
        print(table(result), told(known), sep="\n")


if __name__ == "__main__":
    main()

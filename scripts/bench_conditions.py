#!/usr/bin/env python
"""How networks do on photos unlike those they learned from: small, dark, compressed, masked.

    ./scripts/bench_conditions.py MODEL MODEL... --set selection [--json]

Both photos of each pair are changed in the same way. The first model is the one that the others are
compared with, for example the teacher. A set without pairs is measured on pairs that are drawn of
its people. The crops must be aligned to ArcFace's template, because the mask is drawn by it.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from bench import facts, told
from PIL import Image, ImageDraw

import persona
from persona.data.sets import FaceSet
from persona.evaluation.metrics import verification
from persona.evaluation.pair_lists import pairs_of
from persona.landmarks import template

BATCH = 64
FAR = 1e-2
MASK = (150, 190, 215)
"""RGB of a surgical mask."""
Change = Callable[[Image.Image], Image.Image]


def smaller(side_px: int) -> Change:
    """Reduces the whole crop to a side, and enlarges it again."""
    method = Image.Resampling.BILINEAR
    return lambda crop: crop.resize((side_px, side_px), method).resize(crop.size, method)


def compressed(quality: int) -> Change:
    """Stores the crop as a JPEG of this quality."""

    def change(crop: Image.Image) -> Image.Image:
        file = io.BytesIO()
        crop.save(file, "JPEG", quality=quality)
        return Image.open(file).convert("RGB")

    return change


def masked(crop: Image.Image) -> Image.Image:
    """Draws a mask from below the nose's tip down to the chin."""
    crop = crop.copy()
    side = crop.width
    points = template(side)
    (_, top), (left, _), (right, _) = points[2], points[3], points[4]
    top, wide = top - 0.03 * side, 0.2 * side
    outline = [
        *((left - wide, top - 0.05 * side), ((left + right) / 2, top - 0.02 * side)),
        *((right + wide, top - 0.05 * side), (right + 0.6 * wide, 0.98 * side)),
        (left - 0.6 * wide, 0.98 * side),
    ]
    ImageDraw.Draw(crop).polygon(outline, MASK)
    return crop


CHANGES: dict[str, Change] = {
    "as they are": lambda crop: crop,
    "crops of 32 px": smaller(32),
    "crops of 24 px": smaller(24),
    "crops of 16 px": smaller(16),
    "JPEG, quality 20": compressed(20),
    "a quarter of the light": lambda crop: crop.point(lambda value: round(value / 4)),
    "grey": lambda crop: crop.convert("L").convert("RGB"),
    "mask over mouth and chin": masked,
}


def read_crops(faces: FaceSet) -> tuple[npt.NDArray[np.uint8], Any, npt.NDArray[np.int64]]:
    """All crops (N, H, W, 3) of a set, their landmarks (N, 6, 2), and their keys (N,)."""
    images, points, keys = [], [], []
    for batch in faces.loader(batch_size=BATCH):
        images.append(batch.images.permute(0, 2, 3, 1).numpy().copy())
        points.append(batch.landmarks.numpy().copy())
        keys.append(batch.keys.numpy().copy())
    return np.concatenate(images), np.concatenate(points), np.concatenate(keys)


def measure(names: list[str], faces: FaceSet) -> list[dict[str, Any]]:
    """A row for each change, with the figures of each model."""
    crops, points, keys = read_crops(faces)
    pairs = pairs_of(faces)
    place = {int(key): row for row, key in enumerate(keys)}
    a, b = (np.array([place[int(key)] for key in side]) for side in (pairs.a, pairs.b))
    models = {name: persona.load(name).sight.network for name in names}
    rows = []
    for title, change in CHANGES.items():
        changed = np.stack([np.asarray(change(Image.fromarray(crop))) for crop in crops])
        row: dict[str, Any] = {"condition": title}
        for name, network in models.items():
            vectors = np.concatenate(
                [
                    network.embed(changed[first : first + BATCH], points[first : first + BATCH])
                    for first in range(0, len(changed), BATCH)
                ]
            )
            scores = (vectors[a] * vectors[b]).sum(axis=1)
            found = verification(scores, pairs.same, pairs.fold, (FAR,))
            tar = next(iter(found.tar_at_far.values()))
            row[name] = {"accuracy": found.accuracy, "auc": found.auc, "tar": tar}
        rows.append(row)
    return rows


def table(rows: list[dict[str, Any]], names: list[str]) -> str:
    """The rows as a Markdown table."""
    titles = [
        f"{name.rpartition('/')[2]}: {what}" for name in names for what in ("accuracy", "TAR")
    ]
    lines = [f"| photos | {' | '.join(titles)} |", "|---|" + "--:|" * len(titles)]
    for row in rows:
        cells = [f"{row[name][what]:.3f}" for name in names for what in ("accuracy", "tar")]
        lines.append(f"| {row['condition']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--set", default="selection", help="packed set of people or pairs")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    faces = persona.open_set(arguments.set)
    rows = measure(arguments.models, faces)
    machine = facts("onnxruntime")
    if arguments.json:
        print(json.dumps({"machine": machine, "set": faces.name, "rows": rows}, indent=2))
    else:
        print(
            table(rows, arguments.models),
            f"\nset {faces.name}, TAR at FAR {FAR:g}; {told(machine)}",
            sep="\n",
        )


if __name__ == "__main__":
    main()

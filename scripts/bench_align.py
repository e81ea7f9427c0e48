#!/usr/bin/env python
"""How fast photos become packed crops: against facenet-pytorch, and against a plain copy.

    ./scripts/bench_align.py [--quick] [--json] [--faces DIR]

Side by side in one run, in turns, medians of several rounds; models are loaded and warm. The photos
are drawn faces of 250 px, or those of --faces. On the CPU, on the same cores:

- single: facenet-pytorch's MTCNN one by one, Pillow around it, JPEGs in memory, torch's own threads
- batched: the same, 64 photos of one size in each call
- mtcnn, boxes: this project's worker processes, one a core, from files to the bytes of a tar
- copy: `tarfile` over a folder of aligned 160 px JPEGs
- pack: `persona shard --align none` of the same folder, from its start to its manifest
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import logging
import os
import shutil
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench import facts, in_turns, medians, spread, told

PHOTO_PX, CROP_PX = 250, 160
DISTINCT = 64
"""Photos that are read from --faces or drawn, quickly 16 of them; the others are copies."""
PEOPLE = 50


def drawn(size_px: int) -> list[bytes]:
    """JPEGs of drawn faces."""
    from persona.data.synthetic import draw_identity, draw_photo

    photos = []
    for number in range(DISTINCT):
        buffer = io.BytesIO()
        draw_photo(draw_identity(0, number), number, size_px).save(buffer, "JPEG", quality=95)
        photos.append(buffer.getvalue())
    return photos


def real(folder: Path) -> list[bytes]:
    """JPEGs of one size from a folder, those of the size that most have."""
    from PIL import Image

    by_size: dict[tuple[int, int], list[Path]] = {}
    for path in sorted(folder.rglob("*.jpg")):
        with Image.open(path) as photo:
            by_size.setdefault(photo.size, []).append(path)
    if not by_size:
        raise SystemExit(f"{folder} has no .jpg")
    paths = max(by_size.values(), key=len)
    return [path.read_bytes() for path in itertools.islice(itertools.cycle(paths), DISTINCT)]


def write_photos(raw: Path, photos: Sequence[bytes], count: int) -> Path:
    """`count` photos in LFW's layout; the dataset's folder."""
    root = raw / "LFW"
    for number in range(count):
        name = f"P{number % PEOPLE:04d}"
        path = root / name / f"{name}_{number // PEOPLE + 1:04d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(photos[number % len(photos)])
    (root / "pairs.txt").write_text("1\t1\nP0000\t1\t2\nP0000\t1\tP0001\t1\n")
    return root


def timed(count: int, work: Callable[[], Any]) -> float:
    """Photos a second."""
    start = time.perf_counter()
    work()
    return count / (time.perf_counter() - start)


def with_a_face(detector: Any, photos: Sequence[bytes]) -> list[bytes]:
    """Those in which a face is found, over and over: its batch mode fails on a batch without."""
    from PIL import Image

    found = [p for p in photos if detector(Image.open(io.BytesIO(p)).convert("RGB")) is not None]
    return list(itertools.islice(itertools.cycle(found), DISTINCT))


def facenet_loop(detector: Any, photos: Sequence[bytes], batch: int) -> None:
    """facenet-pytorch as its README has it; `batch` 0 is one by one."""
    from PIL import Image

    for start in range(0, len(photos), batch or 1):
        some = photos[start : start + (batch or 1)]
        images = [Image.open(io.BytesIO(photo)).convert("RGB") for photo in some]
        for face in detector(images) if batch else [detector(images[0])]:
            if face is not None:
                pixels = face.permute(1, 2, 0).byte().numpy()
                Image.fromarray(pixels).save(io.BytesIO(), "JPEG", quality=95)


def copy_folder(root: Path, target: Path) -> None:
    """What packing is without alignment, keys and checksums."""
    with tarfile.open(target, "w") as tar:
        tar.add(root, arcname=root.name)


def pack_folder(raw: Path, target: Path, workers: int) -> None:
    """`persona shard lfw --align none`."""
    from persona.data.align import AlignSpec
    from persona.data.pack import PackOptions, pack_photos
    from persona.data.raw import open_dataset

    shutil.rmtree(target, ignore_errors=True)
    options = PackOptions(align=AlignSpec("none", CROP_PX, 0), workers=workers)
    pack_photos(open_dataset("lfw", raw), target, options)


def measure(
    quick: bool,
    work: Path,
    faces: Path | None = None,
    before: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Every figure; `work` is an empty folder, `before` is called before the clock starts.

    Returns `mtcnn_over_single`, `mtcnn_over_batched`, `boxes_over_single`, `pack_over_copy`,
    `medians` (photos a second) and `spread` (largest over smallest round).
    """
    from facenet_pytorch import MTCNN

    from persona.data.align import AlignSpec
    from persona.data.pack import CHUNK, PhotoPacker, PhotoTask
    from persona.data.raw import open_dataset
    from persona.workers import worker_pool

    rounds, singles, chunks, crops = (3, 16, 2, 8_000) if quick else (7, 64, 16, 40_000)
    cores = len(os.sched_getaffinity(0))
    (work / "photos" / "LFW").mkdir(parents=True)
    dataset = open_dataset("lfw", work / "photos")
    with ExitStack() as stack:
        specs = {"mtcnn": AlignSpec("mtcnn"), "boxes": AlignSpec("boxes")}
        ours = {  # first: they import while this process draws
            name: stack.enter_context(
                worker_pool(
                    PhotoPacker,
                    (dataset, spec, "cpu"),
                    cores,
                    preload=["persona.data.pack", "facenet_pytorch"],
                )
            )
            for name, spec in specs.items()
        }
        detector = MTCNN(
            image_size=CROP_PX,
            margin=14,
            selection_method="center_weighted_size",
            post_process=False,
        )
        some = drawn(PHOTO_PX) if faces is None else real(faces)
        photos = with_a_face(detector, some[:singles])
        write_photos(work / "photos", photos, CHUNK * chunks)
        crops_root = write_photos(work / "crops", drawn(CROP_PX), crops)
        box = (60.0, 50.0, 190.0, 210.0)
        tasks = [PhotoTask(n, photo, 0, box) for n, photo in enumerate(dataset.index().photos)]
        chunked = [tasks[start : start + CHUNK] for start in range(0, len(tasks), CHUNK)]
        found = len(tasks)
        cases: dict[str, Callable[[], float]] = {
            "single": lambda: timed(
                singles, lambda: facenet_loop(detector, photos[:singles], batch=0)
            ),
            "batched": lambda: timed(DISTINCT, lambda: facenet_loop(detector, photos, DISTINCT)),
            "mtcnn": lambda: timed(found, lambda: list(ours["mtcnn"](chunked))),
            "boxes": lambda: timed(found * 4, lambda: list(ours["boxes"](chunked * 4))),
            "copy": lambda: timed(crops, lambda: copy_folder(crops_root, work / "copy.tar")),
            "pack": lambda: timed(
                crops, lambda: pack_folder(work / "crops", work / "packed", cores)
            ),
        }
        for pool in ours.values():  # loads the models, and warms up every worker
            list(pool([chunked[n % chunks][:16] for n in range(2 * cores)]))
        in_turns({"copy": cases["copy"]}, 1)  # the disk's cache
        before()
        speeds = in_turns(cases, rounds)
    median = medians(speeds)
    return {
        "mtcnn_over_single": median["mtcnn"] / median["single"],
        "mtcnn_over_batched": median["mtcnn"] / median["batched"],
        "boxes_over_single": median["boxes"] / median["single"],
        "pack_over_copy": median["pack"] / median["copy"],
        "medians": median,
        "spread": spread(speeds),
    }


def table(result: dict[str, Any]) -> str:
    """The medians and ratios of `measure`, as Markdown."""
    lines = ["| what | photos/s | largest over smallest |", "|---|--:|--:|"]
    for name, speed in result["medians"].items():
        lines.append(f"| {name} | {speed:,.0f} | {result['spread'].get(name, 1):.2f} |")
    ratios = (f"{name} {value:.2f}" for name, value in result.items() if isinstance(value, float))
    return "\n".join([*lines, "", ", ".join(ratios)])


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer photos and rounds")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--faces", type=Path, help="a folder of photos instead of drawn faces")
    arguments = parser.parse_args()
    logging.getLogger("persona").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as work:
        result = measure(arguments.quick, Path(work), arguments.faces)
    known = facts("torch", "facenet-pytorch", "pillow", "simplejpeg")
    if arguments.json:
        print(json.dumps({**result, **known}, indent=2))
    else:
        print(table(result), told(known), sep="\n")


if __name__ == "__main__":
    main()

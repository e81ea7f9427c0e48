#!/usr/bin/env python
"""How time and memory grow with the number of photos.

    ./scripts/bench_scale.py [--quick] [--json]

Sets of 10^4, 10^5 and 10^6 photos (--quick: without the last), all one 1 kB JPEG that no disk
holds; `tree` lists real files in folders instead, up to 10^5. Each step runs in a process of its
own and tells its seconds, the seconds that all its processes computed, and the peak memory of the
largest. Growth, between the two largest sizes, is what a photo of the larger computes over what one
of the smaller does: 1.0 is linear, whatever else the machine was doing.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench import facts, told

from persona.data.raw.base import IdentityFolders, Photo, RawDataset

SIZE_PX = 32
PHOTOS_EACH = 100
"""Photos of one identity."""
BATCH = 256
LARGEST_TREE = 100_000
PR_SET_CHILD_SUBREAPER = 36
"""linux/prctl.h."""


def jpeg() -> bytes:
    """A face crop's stand-in."""
    import numpy as np
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).resize((SIZE_PX, SIZE_PX)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


class Generated(RawDataset):
    """As many photos as a file says, every one the same bytes."""

    name = "generated"
    folder = "Generated"

    def iter_photos(self) -> Iterator[Photo]:
        """Yields photos of `PHOTOS_EACH` an identity, in VGGFace2's names."""
        for number in range(int((self.root / "count").read_text())):
            identity = f"n{number // PHOTOS_EACH:06d}"
            yield Photo(f"train/{identity}/{number % PHOTOS_EACH:04d}_01.jpg", identity)

    def read(self, photo: Photo) -> bytes:
        """The one JPEG."""
        if "data" not in vars(self):
            self.data = jpeg()
        return self.data


class Tree(IdentityFolders):
    """Real files."""

    name = "generated-tree"
    folder = "Tree"


class Steps:
    """What is measured, in this order; each finds on disk what the ones before it left."""

    def __init__(self, home: Path) -> None:
        from persona.workspace import Workspace

        self.place = Workspace.locate(home=home)
        self.dataset = Generated(self.place.raw / Generated.folder)
        self.count = int((self.dataset.root / "count").read_text())

    def index(self) -> None:
        """`persona datasets`."""
        assert len(self.dataset.index().photos) == self.count

    def tree(self) -> None:
        """The same from a folder of files."""
        assert len(Tree(self.place.raw / Tree.folder).index().photos) == self.count

    def triplets_make(self) -> None:
        """As many triplets as photos."""
        from persona.data.triplets import make_triplets

        index, shards = self.dataset.index(), self.place.shards
        make_triplets(index, self.count, dataset="generated", split="all", seed=0, shards=shards)

    def triplets_coverage(self) -> None:
        """Measures the coverage of that set of triplets."""
        from persona.data.triplets import coverage, list_triplets, load_triplets

        ((card,), _) = list_triplets(self.place.shards)
        coverage(*load_triplets(card.id, self.place.shards), self.dataset.index())

    def shard(self) -> None:
        """Packs the photos."""
        from persona.data.pack import pack_photos

        pack_photos(self.dataset, self.place.shards / "generated", self._options())

    def shard_triplets(self) -> None:
        """Packs the triplets out of the packed photos."""
        from persona.data.pack import pack_triplets
        from persona.data.triplets import list_triplets

        ((card,), _) = list_triplets(self.place.shards)
        pack_triplets(self.dataset, card.id, self.place.shards, self._options())

    def _options(self) -> Any:
        from persona.data.align import AlignSpec
        from persona.data.pack import PackOptions

        # As many shards whatever the number of photos would hide what grows with their number.
        return PackOptions(align=AlignSpec("none", SIZE_PX, 0), workers=2, shard_size=10_000)

    def shards_list(self) -> None:
        """Every set below the folder."""
        from persona.data.shards import list_sets

        assert list_sets(self.place.shards)

    def shards_verify(self) -> None:
        """Every byte of the photos."""
        from persona.data.sets import open_set, verify_set

        verify_set(open_set("generated", self.place.shards))

    def stream(self) -> None:
        """One epoch of shuffled batches in one process."""
        from persona.data.sets import open_set
        from persona.data.stream import build_loader

        faces = open_set("generated", self.place.shards)
        loader = build_loader(faces, batch_size=BATCH, training=True, workers=0)
        assert sum(len(batch.keys) for batch in loader) == self.count // BATCH * BATCH

    def learn(self) -> None:
        """Opens the photos for `persona learn`, in five experiences."""
        import numpy as np

        from persona.data.sets import open_set
        from persona.learning.photos import Photos
        from persona.learning.stream import build_experience, in_groups, in_order

        photos = Photos([open_set("generated", self.place.shards)])
        everything = np.arange(len(photos))
        groups = in_groups(in_order(photos, everything, 0), 5)
        found = [build_experience(photos, 0, group, everything, 0.2, 0) for group in groups]
        assert sum(len(e.train) + len(e.test) for e in found) == self.count

    def skips(self) -> None:
        """A manifest in which every photo is named as skipped, written and read."""
        from persona.data.sets import open_set
        from persona.data.shards import Skipped, read_manifest, write_manifest
        from persona.data.storage import on_disk

        faces = open_set("generated", self.place.shards, verify=False)
        skipped = tuple(
            Skipped(photo.source, "no face: the photo is smaller than 20 px")
            for photo in self.dataset.iter_photos()
        )
        place = on_disk(faces.folder, "packing").parent / "skips"
        place.mkdir(exist_ok=True)
        write_manifest(place, replace(faces.manifest, skipped=skipped))
        del skipped
        assert len(read_manifest(place).skipped) == self.count


STEPS = [name for name in vars(Steps) if not name.startswith("_")]


def prepare(home: Path, photos: int) -> None:
    """The generated dataset, and the tree where it is not too large."""
    root = home / "data" / "raw" / Generated.folder
    root.mkdir(parents=True)
    (root / "count").write_text(str(photos))
    if photos <= LARGEST_TREE:
        for photo in Generated(root).iter_photos():
            path = home / "data" / "raw" / Tree.folder / photo.source
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()


def measure(home: Path, step: str) -> dict[str, float]:
    """Runs one step in a new process."""
    done = subprocess.run(
        [sys.executable, __file__, "--step", step, "--home", str(home)],
        stdout=subprocess.PIPE,
        check=True,
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def run_step(home: Path, step: str) -> None:
    """The new process: waits for all that a child of it starts; start-up counts as well."""
    # Workers are the children of a server that outlives its parent: they come to this process.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    start_s = time.perf_counter()
    if (child := os.fork()) == 0:
        getattr(Steps(home), step)()
        sys.stdout.flush()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    seconds = time.perf_counter() - start_s
    if status:
        raise SystemExit(f"step {step} failed")
    with contextlib.suppress(ChildProcessError):
        while True:
            os.wait()
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    computed = usage.ru_utime + usage.ru_stime
    figures = {"seconds": seconds, "cpu_seconds": computed, "peak_mb": usage.ru_maxrss / 1000}
    print(json.dumps(figures))


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="10^4 and 10^5 photos")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    parser.add_argument("--home", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        run_step(arguments.home, arguments.step)
        return
    sizes = [10_000, 100_000] if arguments.quick else [10_000, 100_000, 1_000_000]
    found: dict[str, dict[int, dict[str, float]]] = {step: {} for step in STEPS}
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            prepare(Path(folder), size)
            for step in STEPS:
                if step != "tree" or size <= LARGEST_TREE:
                    found[step][size] = measure(Path(folder), step)
                    print(f"{size:>9,} {step:18}", found[step][size], file=sys.stderr)
    report(found, arguments.json)


def growth(of_step: dict[int, dict[str, float]]) -> float:
    """What a photo of the largest size computes over what one of the size before it does."""
    second, first = sorted(of_step)[-2:]
    return of_step[first]["cpu_seconds"] / of_step[second]["cpu_seconds"] * second / first


def report(found: dict[str, dict[int, dict[str, float]]], as_json: bool) -> None:
    """One JSON document, or a table."""
    known = facts()
    if as_json:
        grown = {step: round(growth(sizes), 3) for step, sizes in found.items()}
        peak = max(figures["peak_mb"] for sizes in found.values() for figures in sizes.values())
        print(json.dumps({"growth": grown, "peak_mb": peak, "steps": found} | known, indent=2))
        return
    sizes = sorted({size for of_step in found.values() for size in of_step})
    print("| step | " + " | ".join(f"{size:,}" for size in sizes) + " | growth |")
    print("|---|" + "--:|" * (len(sizes) + 1))
    for step, of_step in found.items():
        cells = [
            "{seconds:.2f} s ({cpu_seconds:.2f}), {peak_mb:.0f} MB".format(**of_step[size])
            if size in of_step
            else "–"
            for size in sizes
        ]
        print(f"| {step} | " + " | ".join(cells) + f" | {growth(of_step):.2f} |")
    print("\n" + told(known))


if __name__ == "__main__":
    main()

#!/usr/bin/env python
"""How fast shards become batches: this project's stream against what one would use instead.

    python scripts/bench_stream.py [--quick] [--json]
    ./scripts/bench_peers loaders   # once: litdata, mosaicml-streaming, other decoders

Side by side in one run, in turns, medians of several rounds; of each the first batches are dropped.
Every loader reads the same drawn faces (160 px JPEGs) and gives shuffled batches of 128 as uint8.

- decode: simplejpeg over the JPEGs in memory into a batch, one core; `stream` the same from shards,
  in this process; decode_alone: each JPEG into an array of its own that is thrown away, whose speed
  hangs on where the C library puts it (docs/measurements.md)
- mixed: as `stream`, of three sets at once, with as many photos an epoch by weights 1, 2 and 0.5
- imagefolder, webdataset, litdata, mosaic: each as its documentation sets it up, with as many
  worker processes as `stream_workers`
- memory: the peak of a worker process with a window of 10,000 samples
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

SIZE_PX = 160
BATCH = 128
WORKERS = 1
DISTINCT = 64
"""Faces that are drawn; the others are copies."""
IDENTITIES = 50
SHARD = 2000
WEIGHTS = (1, 2, 0.5)
"""Weights of the sets that are mixed."""
DROPPED = 4
"""Batches before the clock starts."""
PEERS = Path(__file__).resolve().parents[1] / ".tools" / "peers" / "bin" / "python"
IN_PEERS = ("mosaic", "litdata")
READY = "ready\n"


# --- the photos ----------------------------------------------------------------------------------


def draw_faces() -> list[bytes]:
    """JPEGs of drawn faces."""
    from persona.data.synthetic import draw_identity, draw_photo

    faces = []
    for number in range(DISTINCT):
        buffer = io.BytesIO()
        photo = draw_photo(draw_identity(0, number), number, SIZE_PX)
        photo.save(buffer, "JPEG", quality=95)
        faces.append(buffer.getvalue())
    return faces


def write_folder(folder: Path, faces: list[bytes], photos: int) -> None:
    """A folder an identity, as ImageFolder wants it."""
    for number in range(photos):
        path = folder / f"n{number % IDENTITIES:06d}" / f"{number:08d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(faces[number % DISTINCT])


def write_set(folder: Path, faces: list[bytes], photos: int) -> Any:
    """The same photos as a packed set; its manifest."""
    from persona.data.align import AlignSpec
    from persona.data.shards import (
        Manifest,
        Shard,
        encode_json,
        key_of,
        tar_end,
        tar_sample,
        write_manifest,
    )
    from persona.files import sha256_file

    folder.mkdir(parents=True)
    shards = []
    for start in range(0, photos, SHARD):
        numbers = range(start, min(start + SHARD, photos))
        path = folder / f"{start // SHARD:06d}.tar"
        with path.open("wb") as file:
            for number in numbers:
                meta = {"class": number % IDENTITIES, "key": key_of(number), "landmarks": None}
                meta["source"] = f"n{number % IDENTITIES:06d}/{number:08d}.jpg"
                parts = {"jpg": faces[number % DISTINCT], "json": encode_json(meta)}
                file.write(tar_sample(key_of(number), parts))
            file.write(tar_end(file.tell()))
        os.utime(path, (0, 0))  # as old as a set is when it is read
        shards.append(Shard(path.name, len(numbers), path.stat().st_size, sha256_file(path)))
    manifest = Manifest(
        name=folder.name,
        kind="photos",
        dataset="bench",
        split="train",
        align=AlignSpec("none", SIZE_PX, 0),
        samples=photos,
        identities=IDENTITIES,
        classes=tuple(f"n{number:06d}" for number in range(IDENTITIES)),
        shards=tuple(shards),
    )
    write_manifest(folder, manifest)
    return manifest


# --- the loaders: each gives batches (images, …) -------------------------------------------------


def stream_batches(folder: Path, workers: int) -> Iterable[Any]:
    """This project's."""
    from persona.data.sets import FaceSet
    from persona.data.shards import read_manifest
    from persona.data.stream import build_loader

    faces = FaceSet(folder, read_manifest(folder))
    return build_loader(faces, batch_size=BATCH, training=True, workers=workers)


def write_mix(work: Path, faces: list[bytes], photos: int) -> None:
    """Three sets of different sizes, from which as many photos come in an epoch."""
    for weight in WEIGHTS:
        write_set(work / f"set-{weight}", faces, int(photos / len(WEIGHTS) / weight))


def mixed_batches(work: Path) -> Iterable[Any]:
    """This project's, of several sets, in this process."""
    from persona.data.mixed import MixedSet, Part
    from persona.data.sets import FaceSet
    from persona.data.shards import read_manifest
    from persona.data.stream import build_loader

    folders = {work / f"set-{weight}": weight for weight in WEIGHTS}
    parts = [Part(FaceSet(at, read_manifest(at)), weight) for at, weight in folders.items()]
    return build_loader(MixedSet(parts), batch_size=BATCH, training=True)


def imagefolder_batches(work: Path) -> Iterable[Any]:
    """torchvision's ImageFolder in torch's DataLoader."""
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import PILToTensor

    dataset = ImageFolder(str(work / "folder"), transform=PILToTensor())
    return DataLoader(dataset, batch_size=BATCH, shuffle=True, num_workers=WORKERS)


def webdataset_batches(work: Path) -> Iterable[Any]:
    """webdataset's own decoder; as uint8, which is faster for it than its floats."""
    import webdataset

    urls = [str(path) for path in sorted((work / "set").glob("*.tar"))]
    dataset = webdataset.WebDataset(urls, shardshuffle=100).shuffle(1000).decode("torchrgb8")
    batches = dataset.to_tuple("jpg", "json").batched(BATCH)
    return webdataset.WebLoader(  # type: ignore[no-any-return]
        batches, batch_size=None, num_workers=WORKERS
    )


def litdata_sample(path: str) -> dict[str, Any]:
    """A photo as litdata keeps it: a JPEG file stays the bytes that it is."""
    from PIL import Image

    return {"image": Image.open(path), "class": int(Path(path).parent.name[1:])}


def litdata_batches(work: Path) -> Iterable[Any]:
    """litdata's optimised dataset in its own loader."""
    import litdata

    out = work / "litdata"
    if not out.exists():
        paths = [str(path) for path in sorted((work / "folder").rglob("*.jpg"))]
        litdata.optimize(
            fn=litdata_sample, inputs=paths, output_dir=str(out), chunk_bytes="16MB", num_workers=1
        )
    dataset = litdata.StreamingDataset(str(out), shuffle=True, drop_last=True)
    return litdata.StreamingDataLoader(dataset, batch_size=BATCH, num_workers=WORKERS)


def mosaic_batches(work: Path) -> Iterable[Any]:
    """mosaicml-streaming's MDS shards in torch's DataLoader."""
    from PIL import Image
    from streaming import MDSWriter, StreamingDataset
    from streaming.base.util import clean_stale_shared_memory
    from torch.utils.data import DataLoader
    from torchvision.transforms import PILToTensor

    out = work / "mosaic"
    if not out.exists():
        with MDSWriter(out=str(out), columns={"image": "jpeg", "class": "int"}) as writer:
            for path in sorted((work / "folder").rglob("*.jpg")):
                writer.write({"image": Image.open(path), "class": int(path.parent.name[1:])})

    class Photos(StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, place: Any) -> Any:
            sample = super().__getitem__(place)
            return PILToTensor()(sample["image"]), sample["class"]

    clean_stale_shared_memory()
    dataset = Photos(local=str(out), shuffle=True, batch_size=BATCH)
    return DataLoader(dataset, batch_size=BATCH, num_workers=WORKERS)


HERE: dict[str, Callable[[Path], Iterable[Any]]] = {
    "stream_workers": lambda work: stream_batches(work / "set", WORKERS),
    "imagefolder": imagefolder_batches,
    "webdataset": webdataset_batches,
    "litdata": litdata_batches,
    "mosaic": mosaic_batches,
}


def images_a_second(batches: Iterable[Any], dropped: int = DROPPED) -> float:
    """Measures the images a second of an epoch without its first batches."""
    count, start = 0, time.perf_counter()
    for number, batch in enumerate(batches):
        images = batch["image"] if isinstance(batch, dict) else batch[0]
        if isinstance(images, list):
            images = np.stack(images)
        assert str(images.dtype).endswith("uint8"), images.dtype
        if number < dropped:
            count, start = 0, time.perf_counter()
        else:
            count += len(images)
    return count / (time.perf_counter() - start)


def decode_all(jpegs: list[bytes], batch: Sequence[Any]) -> float:
    """Images a second of the raw loop, into a batch's places over and over; None: a new array."""
    import simplejpeg

    start = time.perf_counter()
    for jpeg, place in zip(jpegs, itertools.cycle(batch), strict=False):
        simplejpeg.decode_jpeg(jpeg, buffer=place)
    return len(jpegs) / (time.perf_counter() - start)


def decoders(faces: list[bytes]) -> dict[str, float]:
    """Images a second of each decoder that is installed, JPEG bytes to RGB uint8."""
    found: dict[str, Callable[[bytes], Any]] = {}
    if importlib.util.find_spec("simplejpeg"):
        import simplejpeg

        found["simplejpeg"] = simplejpeg.decode_jpeg
    if importlib.util.find_spec("torchvision"):
        import torch
        from torchvision.io import ImageReadMode, decode_jpeg

        torch.set_num_threads(1)
        found["torchvision.io"] = lambda jpeg: decode_jpeg(
            torch.frombuffer(bytearray(jpeg), dtype=torch.uint8), mode=ImageReadMode.RGB
        )
    if importlib.util.find_spec("cv2"):
        import cv2

        cv2.setNumThreads(1)
        found["opencv"] = lambda jpeg: cv2.cvtColor(
            cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB
        )
    from PIL import Image

    found["pillow"] = lambda jpeg: np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"))
    speeds: dict[str, list[float]] = {}
    for _ in range(5):
        for name, decode in found.items():
            start = time.perf_counter()
            for jpeg in faces * 4:
                decode(jpeg)
            speeds.setdefault(name, []).append(4 * len(faces) / (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in speeds.items()}


def worker_peak_mb(folder: Path) -> float:
    """The most memory that a worker process had resident in an epoch."""
    import multiprocessing

    peak = 0
    for _ in stream_batches(folder, workers=1):
        for child in multiprocessing.active_children():
            status = Path(f"/proc/{child.pid}/status").read_text()
            line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
            peak = max(peak, int(line.split()[1]))
    return peak / 1000


# --- the run -------------------------------------------------------------------------------------


def in_peers(what: str, work: Path, python: Path = PEERS) -> Any:
    """A part of the run in another environment or process; None where that is not made."""
    if not python.exists():
        return None
    command = [str(python), __file__, "--part", what, "--work", str(work)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.stderr.write(f"{what} failed:\n{done.stderr[-2000:]}\n")
        return None
    return json.loads(done.stdout.splitlines()[-1])


class Peer:
    """A loader of the peers' environment, in a process that is made ready ahead of time.

    It imports, writes its format and starts its worker, says so, and measures when it is asked to.
    """

    def __init__(self, name: str, work: Path) -> None:
        self.name = name
        self._said = (work / f"{name}.log").open("w+")
        command = [str(PEERS), __file__, "--part", name, "--work", str(work)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            start_new_session=True,
        )

    def wait(self) -> None:
        """Until it is ready: it computes nothing from then on."""
        assert self._process.stdout is not None
        while self._process.stdout.readline() not in {READY, ""}:
            pass  # what its library prints

    def measure(self, rounds: int) -> dict[str, list[float]]:
        """Its name, and images a second; nothing where it failed, which is told."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(f"{rounds}\n")
            self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("["):
                return {self.name: json.loads(line)}
        self._said.seek(0)
        sys.stderr.write(f"{self.name} failed:\n{self._said.read()[-2000:]}\n")
        return {}

    def close(self) -> None:
        """Ends it and its workers, which would take their time."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for file in (self._process.stdin, self._process.stdout, self._said):
            assert file is not None
            with contextlib.suppress(BrokenPipeError):
                file.close()


@dataclass
class Bench:
    """What is read, and who reads it."""

    work: Path
    quick: bool
    faces: list[bytes]
    photos: int
    peers: list[Peer]

    def wait(self) -> None:
        """Until nothing computes but what is measured."""
        for peer in self.peers:
            peer.wait()

    def measure(self) -> dict[str, Any]:
        """Every figure.

        Returns `stream_over_decode`, `mixed_over_stream`, `stream_over` (a ratio a peer that is
        installed), `medians` (images a second) and `spread` (largest over smallest round).
        """
        rounds, peer_rounds = (9, 2) if self.quick else (9, 5)
        work = self.work
        jpegs = [bytes(bytearray(self.faces[number % DISTINCT])) for number in range(self.photos)]
        batch = list(np.zeros((BATCH, SIZE_PX, SIZE_PX, 3), np.uint8))
        speeds: dict[str, list[float]] = {}
        for _ in range(rounds):
            speeds.setdefault("decode", []).append(decode_all(jpegs, batch))
            if not self.quick:
                speeds.setdefault("decode_alone", []).append(decode_all(jpegs, [None]))
            stream = images_a_second(stream_batches(work / "set", workers=0), dropped=0)
            speeds.setdefault("stream", []).append(stream)
            mixed = images_a_second(mixed_batches(work), dropped=0)
            speeds.setdefault("mixed", []).append(mixed)
        for _ in range(peer_rounds):
            for name in ("stream_workers", "imagefolder", "webdataset"):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # webdataset leaves its files open
                    speeds.setdefault(name, []).append(images_a_second(HERE[name](work)))
        for peer in self.peers:  # their workers start anew each round, and take seconds
            speeds |= peer.measure(1 if self.quick else peer_rounds)
        medians = {name: statistics.median(values) for name, values in speeds.items()}
        return {
            "stream_over_decode": statistics.median(
                stream / decode
                for stream, decode in zip(speeds["stream"], speeds["decode"], strict=True)
            ),
            "mixed_over_stream": statistics.median(
                mixed / stream
                for mixed, stream in zip(speeds["mixed"], speeds["stream"], strict=True)
            ),
            "stream_over": {
                name: medians["stream_workers"] / medians[name]
                for name in ("imagefolder", "webdataset", *IN_PEERS)
                if name in medians
            },
            "medians": medians,
            "spread": {name: max(values) / min(values) for name, values in speeds.items()},
        }


@contextlib.contextmanager
def prepared(quick: bool, work: Path) -> Iterator[Bench]:
    """Photos in `work`, an empty folder, and peers that make themselves ready meanwhile."""
    photos = 2560 if quick else 20_000
    faces = draw_faces()
    write_folder(work / "folder", faces, photos)
    peers = [Peer(name, work) for name in IN_PEERS] if PEERS.exists() else []
    try:
        write_set(work / "set", faces, photos)
        write_mix(work, faces, photos)
        yield Bench(work, quick, faces, photos, peers)
    finally:
        for peer in peers:
            peer.close()


def measure_more(work: Path) -> dict[str, Any]:
    """What does not belong in a quick run: a worker's peak memory, and each decoder's images/s."""
    faces = draw_faces()
    write_set(work / "large", faces, 24_000)
    return {
        "worker_peak_mb": in_peers("memory", work, Path(sys.executable)),
        "decoders": in_peers("decoders", work) or decoders(faces),
    }


def part(what: str, work: Path) -> None:
    """What `in_peers` or a `Peer` asks for, as a line of JSON on stdout."""
    if what == "memory":  # in a process of its own: a worker begins with what its parent holds
        print(json.dumps(worker_peak_mb(work / "large")))
    elif what == "decoders":
        paths = sorted((work / "folder").rglob("*.jpg"))[:DISTINCT]
        print(json.dumps(decoders([path.read_bytes() for path in paths])))
    else:
        first = iter(HERE[what](work))
        one = next(first)  # its worker waits with the two batches that it loads ahead
        print(f"\n{READY}", end="", flush=True)
        rounds = int(sys.stdin.readline())
        again = (HERE[what](work) for _ in range(1, rounds))
        loaders = itertools.chain([itertools.chain([one], first)], again)
        speeds = [images_a_second(batches) for batches in loaders]
        print(json.dumps(speeds), flush=True)  # now: ending a loader takes seconds


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer photos and rounds")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        part(arguments.part, arguments.work)
        return
    from bench import facts, told  # imports persona, which the peers' Python lacks

    with tempfile.TemporaryDirectory() as work:
        with prepared(arguments.quick, Path(work)) as bench:
            bench.wait()
            result = bench.measure()
        if not arguments.quick:
            result |= measure_more(Path(work))
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    print(told(facts()) + "\n")
    for name, value in result["medians"].items():
        spread = result["spread"][name]
        print(f"{name:16} {value:10,.0f}   ({spread:.2f})")
    print(f"\nstream over decode   {result['stream_over_decode']:.2f}")
    print(f"mixed over stream    {result['mixed_over_stream']:.2f}")
    for name, ratio in result["stream_over"].items():
        print(f"stream over {name:12} {ratio:.2f}")
    if not arguments.quick:
        speeds = ", ".join(f"{name} {speed:,.0f}" for name, speed in result["decoders"].items())
        print(f"\ndecoders, images/s: {speeds}\na worker's peak: {result['worker_peak_mb']:.0f} MB")


if __name__ == "__main__":
    main()

"""Small raw datasets and sets to test on: made on the spot, nothing licensed or downloaded."""

from __future__ import annotations

import os

# Before the libraries read it. If each of two test processes has a thread per core, these wait for
# one another in barriers that spin: on a busy machine t-SNE of 24 photos took minutes.
os.environ["OMP_NUM_THREADS"] = "1"

import functools
import gc
import io
import itertools
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer.testing
from PIL import Image

from persona.cli import signals
from persona.data.align import AlignSpec
from persona.data.pack import Packed, PackOptions, pack_photos
from persona.data.raw import open_dataset
from persona.data.synthetic import draw_identity, draw_photo

os.environ["WANDB_MODE"] = "offline"
os.environ["HF_HUB_OFFLINE"] = "1"

SIZE_PX = 32

# Made once for each application, and not for each command that a test runs: it takes 50 ms.
_made_once: Any = functools.cache(typer.testing._get_command)  # type: ignore[attr-defined]
typer.testing._get_command = _made_once  # type: ignore[attr-defined]


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell's `&` leaves it ignored, and so would every process that a test starts and interrupts.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """Takes what has been imported out of every later collection of garbage, of 0.2 s each."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Gives it back: at the end of the process libraries report what is not collected as leaked."""
    gc.unfreeze()


@pytest.fixture(autouse=True)
def signal_handlers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Puts back what a command that was run in this process did with signals."""
    kinds = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = {number: signal.getsignal(number) for number in kinds}
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    monkeypatch.setattr(signals, "received", signals.received)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@functools.cache
def jpeg(seed: int, size_px: int = SIZE_PX) -> bytes:
    """A JPEG of smooth noise, different for every seed."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    coarse.resize((size_px, size_px), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def write_vggface2(
    raw: Path,
    identities: int = 6,
    photos: int = 5,
    size_px: int = SIZE_PX,
    different: int | None = None,
) -> Path:
    """A small VGGFace2 below `raw`: `identities` to train on and as many to test on.

    `different`: number of different photos, where many files of any content will do.
    """
    root = raw / "VGGFace2"
    numbers = itertools.count(2)
    seeds = itertools.count() if different is None else itertools.cycle(range(different))
    for split in ("train", "test"):
        lines = []
        for _ in range(identities):
            name = f"n{next(numbers):06d}"
            (root / split / name).mkdir(parents=True)
            for photo in range(1, photos + 1):
                lines.append(f"{name}/{photo:04d}_01.jpg")
                (root / split / lines[-1]).write_bytes(jpeg(next(seeds), size_px))
        (root / f"{split}_list.txt").write_text("\n".join(lines) + "\n")
    return root


def write_lfw(raw: Path, people: int = 6, photos: int = 4, size_px: int = SIZE_PX) -> Path:
    """A small LFW below `raw`, with two folds of three genuine and three impostor pairs."""
    root = raw / "LFW"
    names = [f"Person_{chr(65 + number)}" for number in range(people)]
    for number, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for photo in range(1, photos + 1):
            path = root / name / f"{name}_{photo:04d}.jpg"
            path.write_bytes(jpeg(1000 + number * photos + photo, size_px))
    lines = ["2\t3"]
    for fold in range(2):
        lines += [f"{names[(fold + i) % people]}\t1\t{2 + i % 2}" for i in range(3)]
        lines += [f"{names[i]}\t{1 + fold}\t{names[i + 1]}\t2" for i in range(3)]
    (root / "pairs.txt").write_text("\n".join(lines) + "\n")
    return root


def write_faces(raw: Path) -> Path:
    """An LFW below `raw` of 20 drawn faces, of as many sizes, which a detector finds."""
    root = raw / "LFW"
    for number in range(20):
        path = root / f"P{number % 5}" / f"P{number % 5}_{number // 5 + 1:04d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        draw_photo(draw_identity(0, number % 5), number, 90 + number).save(path, quality=95)
    (root / "pairs.txt").write_text("1\t1\nP0\t1\t2\nP0\t1\tP1\t1\n")
    return root


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A raw folder with a small VGGFace2 and a small LFW."""
    folder = tmp_path / "raw"
    write_vggface2(folder)
    write_lfw(folder)
    return folder


NO_ALIGN = PackOptions(align=AlignSpec("none", SIZE_PX, 0), shard_size=7, workers=0)


@pytest.fixture
def train_set(raw: Path, tmp_path: Path) -> Packed:
    """30 packed photos of 6 identities in 5 shards."""
    dataset = open_dataset("vggface2", raw, "train")
    return pack_photos(dataset, tmp_path / "shards" / dataset.set_name, NO_ALIGN)


@pytest.fixture
def lfw_set(raw: Path, tmp_path: Path) -> Packed:
    """24 packed photos of 6 people and 12 pairs."""
    return pack_photos(open_dataset("lfw", raw), tmp_path / "shards" / "lfw", NO_ALIGN)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small networks are slower on many threads, and sums then never depend on their number."""
    import torch

    torch.set_num_threads(1)
    yield


@pytest.fixture(scope="session")
def pair() -> Iterator[Any]:
    """Two processes that run commands together, for all tests of this pytest process."""
    from pair import Pair

    started = Pair()
    yield started
    started.close()


@pytest.fixture
def loaded(tmp_path: Path) -> Any:
    """A `persona.Model` of a small ONNX network at `tmp_path/net.onnx`."""
    from onnx_files import write_model

    import persona
    from persona.workspace import Workspace

    path = write_model(tmp_path / "net.onnx")
    path.with_suffix(".yaml").write_text(
        "input_size: 16\nalignment: margin\nmean: [10, 20, 30]\nstd: [2, 4, 5]\n"
    )
    return persona.load(str(path), workspace=Workspace.locate(home=tmp_path))

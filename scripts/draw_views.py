#!/usr/bin/env python
"""Draws one view of each aligned photo and stores the views, to train on them many times.

    ./scripts/draw_views.py PHOTOS OUT --config configs/faces_112.yaml --seed 3 --blend 0.5

PHOTOS is a folder of tars of JPEGs of one size. OUT gets tars of 5,000 views each, in an order that
the seed draws. A view is augmented as the recipe says. `--blend` is the share of photos that are
first mixed with another photo; their own share of the mixture is drawn evenly from 0.5 to 1 (Zhang
et al. 2018, arXiv:1710.09412, draw it from a Beta distribution). The teacher embeds the view as it
is stored, so no label is mixed.

Augmenting takes longer than decoding. Stored views cost that once, whatever the number of passes.
The same command draws the same views. If it is interrupted, run it again: finished tars stay.
"""

from __future__ import annotations

import argparse
import io
import os
import random
import sys
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import simplejpeg
import torch

from persona.config import AugmentConfig, load_config, to_dict
from persona.data.transforms import apply_views
from persona.data.views import draw_views
from persona.errors import PersonaError
from persona.files import read_json, replacing, write_json
from persona.progress import progress_bar

BATCH = 32
PER_TAR = 5_000
QUALITY = 92
LEAST_OWN_SHARE = 0.5
STREAM = 77
"""First seed of the augmentations."""
BLENDING = 1000
"""What is added to the seed for the stream of the blending."""
SETTINGS = "views.json"
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Photo:
    """Where the bytes of a photo lie."""

    tar: Path
    name: str
    offset: int
    size: int

    def decode(self) -> Pixels:
        """Returns (H, W, 3) RGB. Raises PersonaError if it cannot be decoded."""
        with self.tar.open("rb") as file:
            data = os.pread(file.fileno(), self.size, self.offset)
        try:
            return np.asarray(simplejpeg.decode_jpeg(data))
        except ValueError:
            raise PersonaError(f"{self.tar}: {self.name} is not a JPEG: leave it out") from None


def find_photos(folder: Path) -> list[Photo]:
    """Lists the files of the tars of a folder, tars by name, files in their order.

    Raises:
        PersonaError: the folder has no tar, or a tar cannot be read.
    """
    tars = sorted(folder.glob("*.tar"))
    if not tars:
        raise PersonaError(f"{folder} has no *.tar of photos: name the folder that holds them")
    found = []
    for path in tars:
        try:
            with tarfile.open(path) as tar:
                found += [Photo(path, m.name, m.offset_data, m.size) for m in tar if m.isfile()]
        except (tarfile.TarError, OSError) as error:
            raise PersonaError(f"{path} cannot be read as a tar: {error}") from None
    return found


@dataclass
class ViewWriter:
    """Stores views in tars of PER_TAR. A tar has its name only when it is whole."""

    out: Path
    count: int = 0
    held: list[bytes] = field(default_factory=list)

    def path(self, number: int) -> Path:
        """The tar of the view of this number."""
        return self.out / f"p{number // PER_TAR:02d}.tar"

    def add(self, views: Sequence[Pixels]) -> None:
        """Stores views, (H, W, 3) RGB each."""
        for view in views:
            encoded = simplejpeg.encode_jpeg(view, quality=QUALITY, colorsubsampling="444")
            self.held.append(encoded)
            self.count += 1
            if self.count % PER_TAR == 0:
                self.flush()

    def skip(self, views: int) -> None:
        """Counts views that are stored already."""
        self.count += views

    def flush(self) -> None:
        """Writes the tar of the views that are held, unless it is there already.

        A batch may have its first views in a tar that is there, and its last ones in the next.
        """
        first = self.count - len(self.held)
        path = self.path(first)
        if not self.held or path.exists():
            self.held.clear()
            return
        with replacing(path) as file, tarfile.open(fileobj=file, mode="w") as tar:
            for number, data in enumerate(self.held, start=first):
                member = tarfile.TarInfo(f"{number:06d}.jpg")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
        self.held.clear()


def blend(images_BCHW: torch.Tensor, share: float, stream: np.random.Generator) -> torch.Tensor:
    """Mixes a share of the photos of a batch with other photos of it, (B, 3, H, W) uint8."""
    own_B, partners_B = draw_blending(len(images_BCHW), share, stream)
    own = torch.from_numpy(own_B)[:, None, None, None]
    others = images_BCHW[torch.from_numpy(partners_B)].float()
    return torch.lerp(others, images_BCHW.float(), own).round().to(torch.uint8)


def draw_blending(
    count: int, share: float, stream: np.random.Generator
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Draws (B,) each photo's own share, and (B,) the place of the photo that it is mixed with."""
    mixed = stream.random(count) < share
    own = np.where(mixed, 1 - (1 - LEAST_OWN_SHARE) * stream.random(count), 1)
    return own.astype(np.float32), stream.permutation(count)


def batches(photos: Sequence[Photo]) -> Iterator[Sequence[Photo]]:
    """Yields the photos in batches."""
    for start in range(0, len(photos), BATCH):
        yield photos[start : start + BATCH]


def draw(photos: Sequence[Photo], out: Path, augment: AugmentConfig, seed: int, mix: float) -> None:
    """Draws and stores a view of each photo, but of those that are stored already.

    Raises:
        PersonaError: a photo is not a JPEG, or has another size than the others of its batch.
    """
    out.mkdir(parents=True, exist_ok=True)
    record_settings(
        out, {"photos": len(photos), "seed": seed, "blend": mix, "augment": to_dict(augment)}
    )
    shuffled = list(photos)
    random.Random(seed).shuffle(shuffled)
    writer = ViewWriter(out)
    blending = np.random.default_rng(BLENDING + seed)
    with progress_bar("drawing views", total=len(shuffled), unit="photos") as told:
        for number, batch in enumerate(batches(shuffled)):
            last = writer.count + len(batch) - 1
            stored = writer.path(writer.count).exists() and writer.path(last).exists()
            if stored:
                if mix:
                    draw_blending(len(batch), mix, blending)  # so that later ones stay the same
                writer.skip(len(batch))
            else:
                pixels = [photo.decode() for photo in batch]
                if len({image.shape for image in pixels}) > 1:
                    raise PersonaError(
                        f"{batch[0].tar}: photos of several sizes: align them to one first"
                    )
                images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()
                if mix:
                    images = blend(images, mix, blending)
                rows = draw_views(augment, len(batch), STREAM, seed, number * BATCH)
                views = apply_views(images, rows, augment).round().clamp(0, 255).to(torch.uint8)
                writer.add(list(views.permute(0, 2, 3, 1).contiguous().numpy()))
            told(len(batch), earlier=stored)
    writer.flush()


def record_settings(out: Path, settings: dict[str, Any]) -> None:
    """Writes what the views of a folder are drawn by.

    Raises:
        PersonaError: the folder has views that were drawn by something else.
    """
    path = out / SETTINGS
    if not path.is_file():
        write_json(path, settings)
    elif read_json(path, what="settings of views") != settings:
        raise PersonaError(f"{out} holds other views: choose another folder, or remove it first")


def share(text: str) -> float:
    """Reads a number from 0 to 1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise ValueError(text)
    return value


def main(arguments: list[str] | None = None) -> None:
    """Draws the views."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("photos", metavar="PHOTOS", type=Path, help="folder of tars of photos")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder for the tars of views")
    parser.add_argument("--config", type=Path, required=True, help="recipe with the augmentations")
    parser.add_argument("--seed", type=int, default=0, help="another seed draws other views")
    parser.add_argument("--blend", type=share, default=0.0, help="share of mixed photos, 0 to 1")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)  # sums of several threads differ in the last bit
    try:
        augment = load_config(given.config, {"teacher": "none"}).augment
        photos = find_photos(given.photos)
        draw(photos, given.out, augment, given.seed, given.blend)
    except PersonaError as error:
        sys.exit(str(error))
    print(f"{given.out}: {len(photos):,} views")


if __name__ == "__main__":
    main()

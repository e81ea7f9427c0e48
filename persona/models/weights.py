"""Finds and downloads released weights, of FaceNet and torchvision. It does not import torch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from persona.download import ROUNDS, Checksum, fetch
from persona.workspace import home_folder, user_path

RELEASE = "https://github.com/timesler/facenet-pytorch/releases/download/v2.2.9"
TORCHVISION = "https://download.pytorch.org/models"


@dataclass(frozen=True)
class Release:
    """A file of released weights that can be downloaded."""

    file: str
    num_classes: int
    trained_on: str
    """The raw dataset whose sorted list of identities gives the classes."""
    base: str = RELEASE
    """Address of the folder that has the file."""


FACENETS = {
    "facenet-vggface2": Release("20180402-114759-vggface2.pt", 8631, "vggface2"),
    "facenet-casia-webface": Release("20180408-102900-casia-webface.pt", 10575, "casia-webface"),
}


def weight_places(release: Release, models: Path) -> list[Path]:
    """The places where a weights file may lie: the model store, then torch's own cache."""
    cache = _torch_home()
    return [
        models / "teachers" / release.file,
        *([] if cache is None else [cache / "checkpoints" / release.file]),  # facenet-pytorch's own
    ]


def _torch_home() -> Path | None:
    """torch's cache folder, by torch's own rules; None if the user has no home folder."""
    if named := os.environ.get("TORCH_HOME"):
        return user_path(named)
    if caches := os.environ.get("XDG_CACHE_HOME"):
        return user_path(caches) / "torch"
    home = home_folder()
    return None if home is None else home / ".cache" / "torch"


def find_weights(release: Release, models: Path) -> Path | None:
    """The weights file, or None if it is not on this machine."""
    return next((path for path in weight_places(release, models) if path.is_file()), None)


def download_weights(
    release: Release,
    target: Path,
    *,
    base: str | None = None,
    rounds: int = ROUNDS,
) -> Path:
    """Downloads a release to `target`, once if several processes need it; see persona/download.py.

    Args:
        release: the release to download.
        target: the file to write.
        base: address of the folder that has the file, if not the release's own.
        rounds: attempts without a byte after which the download fails.

    Raises:
        PersonaError: the download failed. The message says where to put the file by hand.
    """
    url = f"{(base or release.base).rstrip('/')}/{release.file}"
    known_place = f"models/teachers/{release.file} (below --models)"
    places = str(target) if target.parent.name == "teachers" else f"{known_place} or at {target}"
    # torchvision's file names end in the first digits of the SHA-256; FaceNet's hold no checksum.
    _, dash, digits = Path(release.file).stem.rpartition("-")
    known = dash and release.base == TORCHVISION
    return fetch(
        [url],
        target,
        checksum=Checksum("sha256", digits) if known else None,
        by_hand=f"fetch that file on another machine and put it at {places}",
        rounds=rounds,
        wait=True,  # each process of a training opens the teacher
    )

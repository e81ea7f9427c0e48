"""Weights released by others, FaceNet's and torchvision's: finding and downloading. No torch."""

from __future__ import annotations

import contextlib
import logging
import os
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from persona.errors import PersonaError
from persona.progress import progress_bar

log = logging.getLogger(__name__)

TIMEOUT_S = 30.0
"""Without a byte, before a download is given up."""
RELEASE = "https://github.com/timesler/facenet-pytorch/releases/download/v2.2.9"


TORCHVISION = "https://download.pytorch.org/models"


@dataclass(frozen=True)
class Release:
    """Weights that can be downloaded."""

    file: str
    num_classes: int
    trained_on: str
    """The raw dataset whose sorted identity list its classes are."""
    base: str = RELEASE


FACENETS = {
    "facenet-vggface2": Release("20180402-114759-vggface2.pt", 8631, "vggface2"),
    "facenet-casia-webface": Release("20180408-102900-casia-webface.pt", 10575, "casia-webface"),
}

# torchvision 0.29, MobileNet_V3_{Small,Large}_Weights.IMAGENET1K_V1
IMAGENET = {
    "mobilenet_v3_small": Release("mobilenet_v3_small-047dcff4.pth", 1000, "imagenet", TORCHVISION),
    "mobilenet_v3_large": Release("mobilenet_v3_large-8738ca79.pth", 1000, "imagenet", TORCHVISION),
}


def weight_places(release: Release, models: Path) -> list[Path]:
    """Where a weights file is looked for: the model store first, then torch's own cache."""
    return [
        models / "teachers" / release.file,
        _torch_home() / "checkpoints" / release.file,  # facenet-pytorch's own place
    ]


def _torch_home() -> Path:
    """torch's cache, by torch's own rules."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return Path(os.environ.get("TORCH_HOME") or cache / "torch").expanduser()


def find_weights(release: Release, models: Path) -> Path | None:
    """The weights file, if it is on this machine."""
    return next((path for path in weight_places(release, models) if path.is_file()), None)


def download_weights(
    release: Release, *, base: str | None = None, timeout_s: float = TIMEOUT_S
) -> Path:
    """Downloads a release to torch's cache; half a file is never left under its name.

    Raises:
        PersonaError: offline or cut short, with where to put the file by hand.
    """
    url = f"{base or release.base}/{release.file}"
    target = weight_places(release, Path())[-1]
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(f".{os.getpid()}.partial")
    log.info("downloading %s", url)
    try:
        with (
            urllib.request.urlopen(url, timeout=timeout_s) as response,
            partial.open("wb") as file,
        ):
            expected = int(response.headers.get("Content-Length") or 0)
            with progress_bar(release.file, total=expected, unit="bytes") as advance:
                while block := response.read(1 << 20):
                    file.write(block)
                    advance(len(block))
        if expected and partial.stat().st_size != expected:
            raise OSError(f"{partial.stat().st_size:,} of {expected:,} bytes came")
        partial.replace(target)
    except OSError as error:  # URLError and time-outs are OSErrors
        reason = getattr(error, "reason", error)
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        raise PersonaError(
            f"cannot download weights from {url} ({reason}): fetch that file on "
            f"another machine and put it at models/teachers/{release.file} (below --models) "
            f"or at {target}"
        ) from None
    finally:
        with contextlib.suppress(FileNotFoundError):
            partial.unlink()
    return target

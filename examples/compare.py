"""How alike two faces are, by an ONNX file of `persona export --with-preprocessing`.

    python examples/compare.py model.onnx first.jpg second.jpg

A face is an image that is cut as the model's card says, of any size. Needs numpy, onnxruntime and
Pillow; neither torch nor Persona.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # it reports to its maker by default
import onnxruntime


def main() -> None:
    """Prints the cosine similarity, and what the file knows of a threshold."""
    if len(sys.argv) != 4:
        sys.exit("usage: compare.py MODEL.onnx FIRST SECOND")
    model, *photos = sys.argv[1:]
    try:
        compare(model, photos)
    except Exception as error:  # those of onnxruntime have no family of their own
        sys.exit(f"{type(error).__name__}: {str(error).partition(chr(10))[0]}")


def compare(model: str, photos: list[str]) -> None:
    """Prints what `main` says.

    Raises:
        Exception: a file is not there, or not of its kind; which, says onnxruntime or Pillow.
    """
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    if session.get_inputs()[0].type != "tensor(uint8)":
        sys.exit(f"{model} wants prepared faces: export it with --with-preprocessing")
    first, second = (session.run(["embedding"], {"images": load(Path(p))})[0][0] for p in photos)
    print(f"{first @ second:.6f}")  # both have unit length
    threshold = session.get_modelmeta().custom_metadata_map.get("persona.threshold", "unknown")
    print(f"same person from {threshold}")


def load(path: Path) -> np.ndarray:
    """(1, H, W, 3) uint8 RGB."""
    with Image.open(path) as photo:
        return np.asarray(ImageOps.exif_transpose(photo).convert("RGB"))[None]


if __name__ == "__main__":
    main()

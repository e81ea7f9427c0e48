#!/usr/bin/env python
"""Whether a model's page in the browser sees what training saw, and how long it looks for a face.

    python scripts/bench_page.py ID PHOTOS [--models DIR] [--photos N] [--json]

PHOTOS is a folder of photos, searched to its leaves. Each is opened by the page in a headless
Chromium, and aligned and embedded here; of the two

- same_count: photos in which both find equally many faces
- same_box: of the photos with a face, those whose chosen boxes differ by less than a pixel
- cosine: between the page's embedding and PyTorch's of the packed crop, mean and worst
- detect_ms: the page's search for faces on one thread, median and largest
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import http.server
import json
import platform
import random
import statistics
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench import commit

from persona.data.align import AlignSpec, crop_face
from persona.data.align.decode import EncodedPhoto
from persona.data.align.detect import Mtcnn
from persona.data.samples import decode_into
from persona.data.transforms import normalise
from persona.deploy.exports.web import Web
from persona.deploy.faces import drawn_faces
from persona.models.cards import find_model
from persona.models.store import load_model
from persona.report.browser import open_browser
from persona.workspace import Workspace

ENDINGS = {".jpg", ".jpeg", ".png"}
LOOK = """import('./page.js').then(async ({ sides: [side], findFaces }) => {
  const told = () => document.querySelector('.found').textContent;
  while (!/found/.test(told()) || !side.embedding) {
    await new Promise((resume) => { setTimeout(resume, 5); });
  }
  const before = performance.now();
  const faces = await findFaces(side.photo);
  const ms = performance.now() - before;
  const embedding = Array.from(side.embedding);
  side.photo = side.embedding = null;
  side.tell('');
  return { faces, ms, embedding };
})"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Files of a folder."""

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@contextlib.contextmanager
def opened_page(folder: Path) -> Iterator[Callable[[Path], dict[str, Any]]]:
    """Yields what opens a photo in the page: its faces, embedding and milliseconds."""
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with open_browser() as browser:
            page = browser.new_page()
            page.goto(f"http://127.0.0.1:{server.server_port}")
            page.wait_for_selector("body[data-ready]", timeout=120_000)

            def look(path: Path) -> dict[str, Any]:
                page.locator("input[type=file]").first.set_input_files(path)
                found: dict[str, Any] = page.evaluate(LOOK)
                return found

            yield look
        server.shutdown()


def compare(
    seen: dict[str, Any], path: Path, mtcnn: Mtcnn, student: Any, spec: AlignSpec
) -> dict[str, Any]:
    """One photo, by the page and by the packer."""
    photo = EncodedPhoto(path.read_bytes()).decode()
    pixels = np.asarray(photo.image)
    (face,), (faces,) = mtcnn([pixels]), mtcnn.find_all([pixels])
    found: dict[str, Any] = {"ms": seen["ms"], "same_count": len(faces) == len(seen["faces"])}
    if face is None or not seen["faces"]:
        return found
    found["away_px"] = float(np.abs(np.subtract(face.box, seen["faces"][0]["box"])).max())
    crop = np.empty((spec.image_size, spec.image_size, 3), np.uint8)
    decode_into(crop_face(photo, face, spec).jpeg, crop)
    with torch.inference_mode():
        embedding = student.embed(normalise(torch.from_numpy(crop).permute(2, 0, 1)[None]))[0]
    return found | {"cosine": float(embedding.numpy() @ np.array(seen["embedding"]))}


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("id")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--models", type=Path, default=Workspace.locate().models)
    parser.add_argument("--photos", type=int, default=500, help="so many, drawn by lot")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    card = find_model(arguments.id, arguments.models)
    spec = AlignSpec(**(card.alignment or {"image_size": card.image_size}))
    photos = sorted(p for p in arguments.folder.rglob("*") if p.suffix.lower() in ENDINGS)
    photos = random.Random(0).sample(photos, min(arguments.photos, len(photos)))
    mtcnn, student = Mtcnn("cpu"), load_model(card, arguments.models).eval()
    with tempfile.TemporaryDirectory() as scratch:
        page = Path(scratch) / "page"
        exported = Web().export(card, arguments.models, drawn_faces(card.image_size, 16), page)
        with opened_page(page) as look:
            rows = [compare(look(path), path, mtcnn, student, spec) for path in photos]
    away = [row["away_px"] for row in rows if "away_px" in row]
    cosines = [row["cosine"] for row in rows if "cosine" in row]
    times = [row["ms"] for row in rows]
    result = {
        "photos": len(rows),
        "with_a_face": len(away),
        "same_count": sum(row["same_count"] for row in rows),
        "same_box": sum(px < 1 for px in away),
        "cosine": {"mean": statistics.fmean(cosines), "worst": min(cosines)},
        "detect_ms": {"median": statistics.median(times), "largest": max(times)},
        "page_bytes": exported.bytes,
        "model": card.id,
        "alignment": spec.method,
        "python": platform.python_version(),
        "commit": commit(),
    }
    if arguments.json:
        print(json.dumps(result, indent=2))
    else:
        for name, value in result.items():
            print(f"{name:12} {value}")


if __name__ == "__main__":
    main()

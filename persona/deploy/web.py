"""A student as a page that compares two faces in the browser: static files, nothing else.

1. onnxruntime's two files are found (persona/deploy/web_runtime.py)
2. the detector that its training photos went through goes with it (persona/deploy/web_detector.py)
3. of the student goes what may leave the house (persona/models/public.py), as an ONNX file that
   takes photos: the page cuts faces out of them
4. all is laid into a folder beside the wanted one, which is then renamed
"""

from __future__ import annotations

import re
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from persona import __version__
from persona.data.align.spec import AlignSpec
from persona.deploy.export import Exported, ExportOptions, export_onnx
from persona.deploy.web_detector import build_detector
from persona.deploy.web_runtime import NAME, load_runtime
from persona.errors import PersonaError
from persona.files import read_json, scratch_folder, sha256_file, write_atomically, write_json
from persona.models.cards import Card
from persona.models.public import publish_copy
from persona.models.store import load_model

MARKER = "persona.json"
"""What the page reads of its model, and the sign that a folder is a page of ours."""
MODEL = "model.onnx"
PAGE = ("index.html", "page.css", "page.js", "crop.js", "detect.js", "runtime.js", "README.txt")
KIND = "persona-web"
THRESHOLD_KEY = "persona.threshold"
"""Of the ONNX file's metadata: from which cosine on two faces are one person's, and where that was
measured; it begins with the number, if it is known."""


def export_web(
    card: Card,
    models: Path,
    faces_NHWC: npt.NDArray[np.uint8],
    folder: Path,
    options: ExportOptions | None = None,
    *,
    runtime: Path | None = None,
    calibration_NHWC: npt.NDArray[np.uint8] | None = None,
    facts: dict[str, str] | None = None,
) -> Exported:
    """Writes the page of a student; a page that is there is replaced.

    Args:
        card: of the student.
        models: its store.
        faces_NHWC: (N, H, W, 3) uint8 RGB crops of its size, to check the ONNX file on.
        folder: where the page goes.
        options: of the ONNX file; preprocessing is always in it.
        runtime: onnxruntime-web as a tarball or folder; None: from npm.
        calibration_NHWC, facts: as `export_onnx` has them.

    Raises:
        PersonaError: the folder holds something else, no runtime, or the ONNX file would differ.
    """
    options = replace(options or ExportOptions(), preprocessing=True)
    if options.classifier:
        raise PersonaError("the page compares embeddings: leave --classifier out")
    folder = folder.resolve()
    check_page_folder(folder)
    files = load_runtime(models, runtime) | build_detector()
    source = resources.files("persona.deploy") / "page"
    files |= {name: (source / name).read_bytes() for name in PAGE}
    with scratch_folder(folder.parent, folder.name) as scratch:
        public = publish_copy(card, models, scratch, with_classes=False)
        student = load_model(public, scratch)
        page = scratch / "page"
        more: Any = {"calibration_NHWC": calibration_NHWC, "facts": facts}
        done = export_onnx(student, public, faces_NHWC, page / MODEL, options, **more)
        for name, data in files.items():
            write_atomically(page / name, data)
        said = {
            "kind": KIND,
            "model": card.id,
            "architecture": card.architecture,
            "precision": options.precision,
            **_threshold(page / MODEL),
            "alignment": _alignment(card),
            "runtime": NAME,
            "persona": __version__,
            "files": {path.name: sha256_file(path) for path in sorted(page.iterdir())},
        }
        write_json(page / MARKER, said)
        total = sum(path.stat().st_size for path in page.iterdir())
        if folder.exists():
            folder.rename(scratch / "old")
        page.rename(folder)
    return replace(done, path=folder, bytes=total)


def check_page_folder(folder: Path) -> None:
    """Raises PersonaError where a page would replace anything but a page of ours."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise PersonaError(f"{folder} is a file: name a folder with --out")
    names = {path.name for path in folder.iterdir()}
    if not names:
        return
    facts = read_json(folder / MARKER, what="page's facts") if MARKER in names else None
    if not isinstance(facts, dict) or facts.get("kind") != KIND:
        raise PersonaError(f"{folder} is no page of persona's: name a new folder with --out")
    if foreign := sorted(names - {MARKER, *facts.get("files", ())}):
        raise PersonaError(f"{folder} holds {foreign[0]}, which is not the page's: move it away")


def _alignment(card: Card) -> dict[str, str | int]:
    """How the page cuts faces out: as they were for the student; of sets of ready crops, a box."""
    spec = AlignSpec(**(card.alignment or {"image_size": card.image_size}))
    method = "five-point" if spec.of_photos.method == "landmarks" else "margin"
    return {"method": method, "size": spec.image_size, "margin": spec.margin}


def _threshold(path: Path) -> dict[str, float | str | None]:
    """Of the similarity, and where it was measured, as the ONNX file's metadata has them."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    text = session.get_modelmeta().custom_metadata_map.get(THRESHOLD_KEY, "")
    known = re.fullmatch(r"(-?\d*\.?\d+)(?:, (.*))?", text)
    if known is None:
        return {"threshold": None, "threshold_of": ""}
    return {"threshold": float(known[1]), "threshold_of": known[2] or ""}

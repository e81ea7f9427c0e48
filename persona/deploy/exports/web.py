"""A web page of static files that compares two faces in the browser.

1. onnxruntime's two files are found (persona/deploy/web_runtime.py).
2. The detector that cropped the training photos is added (persona/deploy/web_detector.py).
3. The student's public parts (persona/models/public.py) become an ONNX file with preprocessing. The
   page cuts the faces out of photos.
4. All files are written to a temporary folder, which is then renamed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

from persona import __version__
from persona.config import from_dict
from persona.data.align.spec import AlignSpec
from persona.deploy.exports.base import Exported, ExportFormat
from persona.deploy.exports.onnx import Onnx
from persona.deploy.graph import ExportOptions, Faces
from persona.deploy.web_detector import build_detector
from persona.deploy.web_runtime import NAME, load_runtime
from persona.errors import PersonaError
from persona.files import read_json, scratch_folder, sha256_file, write_atomically, write_json
from persona.models.cards import Card
from persona.models.public import publish_copy

MARKER = "persona.json"
"""File with the facts that the page reads. It also marks a folder as a page of Persona."""
MODEL = "model.onnx"
PAGE = ("index.html", "page.css", "page.js", "crop.js", "detect.js", "runtime.js", "README.txt")
KIND = "persona-web"
THRESHOLD_KEY = "persona.threshold"
"""Key in the ONNX file's metadata of the cosine threshold from which two faces count as the same
person. The text begins with the number, if it is known, and says on which set it was measured."""


@dataclass(frozen=True)
class WebOptions(ExportOptions):
    """Options of a page. Preprocessing is always on."""

    runtime: Path | None = None
    """onnxruntime-web as tarball or folder. None takes it from the model store or npm."""


class Web(ExportFormat):
    """A folder with a page, onnxruntime-web, the detector and the student."""

    name = "web"
    suffix = "-web"
    is_folder = True
    config_class = WebOptions

    def check(self, options: Any) -> None:
        """Raises PersonaError if the logits are asked for."""
        if options.classifier:
            raise PersonaError("the page compares embeddings: leave --classifier out")

    def export(
        self,
        card: Card,
        models: Path,
        faces_NHWC: Faces,
        path: Path,
        options: WebOptions | None = None,
        *,
        calibration_NHWC: Faces | None = None,
        facts: dict[str, str] | None = None,
    ) -> Exported:
        """Writes the page and replaces a page that is already there.

        The arguments are those of `ExportFormat.export`; the faces check the ONNX file.

        Raises:
            PersonaError: the folder holds something else, the runtime is missing, or the ONNX
                file's embeddings differ.
        """
        options = replace(options or WebOptions(), preprocessing=True)
        self.check(options)
        folder = path.resolve()
        check_page_folder(folder)
        files = load_runtime(models, options.runtime) | build_detector()
        source = resources.files("persona.deploy") / "page"
        files |= {name: (source / name).read_bytes() for name in PAGE}
        with scratch_folder(folder.parent, folder.name) as scratch:
            public = publish_copy(card, models, scratch, with_classes=False)
            page = scratch / "page"
            more: Any = {"calibration_NHWC": calibration_NHWC, "facts": facts}
            done = Onnx().export(public, scratch, faces_NHWC, page / MODEL, options, **more)
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
    """Raises PersonaError if the folder holds anything but a page of Persona."""
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
    """How the page crops faces: as for the student, or by box if its set came as ready crops."""
    facts = card.alignment or {"image_size": card.image_size}
    spec = from_dict(AlignSpec, facts, where=f"the card of {card.id}")
    method = "five-point" if spec.of_photos.method == "landmarks" else "margin"
    return {"method": method, "size": spec.image_size, "margin": spec.margin}


def _threshold(path: Path) -> dict[str, float | str | None]:
    """The cosine threshold and where it was measured, from the ONNX file's metadata."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    text = session.get_modelmeta().custom_metadata_map.get(THRESHOLD_KEY, "")
    known = re.fullmatch(r"(-?\d*\.?\d+)(?:, (.*))?", text)
    if known is None:
        return {"threshold": None, "threshold_of": ""}
    return {"threshold": float(known[1]), "threshold_of": known[2] or ""}

"""Persona: distil a large face network into a small one, measure it, keep it learning.

    import persona

    model = persona.load("onnx:mobilefacenet.onnx")
    faces = model.find("party.jpg")
    embeddings = model.embed(faces)
    verdict = persona.verify("a.jpg", "b.jpg", model=model)

Importing this package imports nothing else. numpy comes with the first name that is used, torch
with a training or with a network that runs in it.
It switches off the reports that onnxruntime, the Hugging Face Hub and W&B send to their makers.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from persona.api.model import Face as Face
    from persona.api.model import Model as Model
    from persona.api.model import load as load
    from persona.api.model import wrap as wrap
    from persona.api.people import People as People
    from persona.api.people import open_gallery as open_gallery
    from persona.api.reporting import draw_lines as draw_lines
    from persona.api.reporting import write_report as write_report
    from persona.api.sets import FaceSet as FaceSet
    from persona.api.sets import draw_faces as draw_faces
    from persona.api.sets import load_set as open_set
    from persona.api.sets import shard_dataset as shard
    from persona.api.training import distill_student as distill
    from persona.api.verification import Verdict as Verdict
    from persona.api.verification import verify as verify
    from persona.errors import PersonaError as PersonaError
    from persona.training.callbacks import Callback as Callback
    from persona.training.callbacks import Moment as Moment
    from persona.workspace import Workspace as Workspace

__version__ = "0.1.0"

# Packages read these when they are imported. Whoever wants the reports sets the variable to 0.
for _variable in ("ORT_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY"):
    os.environ.setdefault(_variable, "1")
os.environ.setdefault("WANDB_ERROR_REPORTING", "false")

_PLACES = {
    "Callback": "training.callbacks:Callback",
    "Face": "api.model:Face",
    "FaceSet": "api.sets:FaceSet",
    "Moment": "training.callbacks:Moment",
    "Model": "api.model:Model",
    "People": "api.people:People",
    "PersonaError": "errors:PersonaError",
    "Verdict": "api.verification:Verdict",
    "Workspace": "workspace:Workspace",
    "draw_faces": "api.sets:draw_faces",
    "draw_lines": "api.reporting:draw_lines",
    "load": "api.model:load",
    "open_gallery": "api.people:open_gallery",
    "open_set": "api.sets:load_set",
    "shard": "api.sets:shard_dataset",
    "verify": "api.verification:verify",
    "wrap": "api.model:wrap",
    "write_report": "api.reporting:write_report",
}
"""Each public name: the module that has it, and what it is called there."""

__all__ = [
    "Callback",
    "Face",
    "FaceSet",
    "Model",
    "Moment",
    "People",
    "PersonaError",
    "Verdict",
    "Workspace",
    "distill",
    "draw_faces",
    "draw_lines",
    "load",
    "open_gallery",
    "open_set",
    "shard",
    "verify",
    "wrap",
    "write_report",
]


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used (PEP 562)."""
    if name == "distill":  # the module of this name can be called, see its end
        return importlib.import_module(f"{__name__}.distill")
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _PLACES[name].partition(":")
    found = getattr(importlib.import_module(f"{__name__}.{module}"), attribute)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

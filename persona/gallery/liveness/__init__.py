"""Liveness checks: whether a face is that of a person before the camera, and no picture of one.

Persona ships no model for it and claims none. `--liveness` of `persona serve` and `persona
recognise` names a check of another package (entry points `persona.liveness`) or an ONNX file with
its settings beside it. A face that is not live is not compared with anybody.
"""

from __future__ import annotations

from persona.gallery.liveness.base import NOT_LIVE, Liveness, open_liveness

__all__ = ["NOT_LIVE", "Liveness", "open_liveness"]

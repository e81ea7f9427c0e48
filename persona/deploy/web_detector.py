"""MTCNN for the page: the three networks that Persona runs itself, as ONNX files.

They take whole pixels as they are; the rest of the detector is `page/detect.js`.
"""

from __future__ import annotations

from importlib import resources
from typing import Any

from persona.extras import missing


def build_detector() -> dict[str, bytes]:
    """The files by name: `pnet.onnx` for photos of any size, `rnet.onnx` and `onet.onnx` for any
    number of windows of 24 and 48 px.

    Raises:
        PersonaError: packages are missing.
    """
    try:
        import onnx
        from onnx import compose
    except ImportError:
        raise missing("exporting needs onnx and onnxscript", "export") from None
    folder = resources.files("persona.data.align") / "mtcnn"

    def read(name: str) -> bytes:
        return (folder / f"{name}.onnx").read_bytes()

    # The page has one pyramid's level on a canvas, whose borders need no mending between the two.
    halves = (onnx.load_model_from_string(read(f"pnet_{part}")) for part in ("first", "rest"))
    first, rest = (compose.add_prefix(half, f"{place}_") for place, half in enumerate(halves))
    pnet: Any = compose.merge_models(first, rest, io_map=[("0_maps", "1_maps")])
    _rename(pnet, {"0_pixels": "pixels", "1_moves": "moves", "1_scores": "scores"})
    return {
        "pnet.onnx": pnet.SerializeToString(),
        **{f"{name}.onnx": read(name) for name in ("rnet", "onet")},
    }


def _rename(model: Any, names: dict[str, str]) -> None:
    """Gives values of a graph, its inputs and outputs among them, other names."""
    for value in (*model.graph.input, *model.graph.output):
        value.name = names.get(value.name, value.name)
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]

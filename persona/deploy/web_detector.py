"""MTCNN for the web page: the three networks that Persona itself runs, as ONNX files.

They take pixels of 0 to 255, without normalisation. The rest of the detector is `page/detect.js`.
"""

from __future__ import annotations

from importlib import resources
from typing import Any

from persona.extras import missing


def build_detector() -> dict[str, bytes]:
    """The bytes of the three ONNX files by name.

    `pnet.onnx` takes photos of any size. `rnet.onnx` and `onet.onnx` take any number of windows of
    24 x 24 px and 48 x 48 px.

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

    # The page puts a single pyramid level on a canvas. Its borders need no repair between the two
    # halves, so they can be one graph.
    halves = (onnx.load_model_from_string(read(f"pnet_{part}")) for part in ("first", "rest"))
    first, rest = (compose.add_prefix(half, f"{place}_") for place, half in enumerate(halves))
    pnet: Any = compose.merge_models(first, rest, io_map=[("0_maps", "1_maps")])
    _rename(pnet, {"0_pixels": "pixels", "1_moves": "moves", "1_scores": "scores"})
    return {
        "pnet.onnx": pnet.SerializeToString(),
        **{f"{name}.onnx": read(name) for name in ("rnet", "onet")},
    }


def _rename(model: Any, names: dict[str, str]) -> None:
    """Renames values of a graph, including its inputs and outputs."""
    for value in (*model.graph.input, *model.graph.output):
        value.name = names.get(value.name, value.name)
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]

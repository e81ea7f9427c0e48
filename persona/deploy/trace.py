"""A network as an ONNX graph, by PyTorch's exporter."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from persona.extras import missing

OPSET = 18
"""Of 2022: the first with an antialiased Resize, and old enough for every runtime of today."""


def trace_onnx(
    network: nn.Module, example: Tensor, axes: dict[int, Any], given: str, outputs: Sequence[str]
) -> Any:
    """A network of one input as an onnx.ModelProto.

    Args:
        network: in evaluation mode.
        example: its input, of at least 2 in axes that are free.
        axes: those that are free, each a torch.export.Dim.
        given: the input's name.
        outputs: the outputs' names.

    Raises:
        PersonaError: packages are missing.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401 - torch.onnx needs it and says so in a page of text
    except ImportError:
        raise missing("exporting needs onnx and onnxscript", "export") from None
    # The exporter speaks of its own steps, on stdout and through several loggers.
    for speaker in ("torch.onnx", "onnxscript", "onnx_ir"):
        logging.getLogger(speaker).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program: Any = torch.onnx.export(
            network,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[given],
            output_names=list(outputs),
            dynamic_shapes=(axes,),
            verbose=False,
        )
    model = program.model_proto
    del model.metadata_props[:]
    for part in (*model.graph.node, *model.graph.value_info, *model.graph.input):
        part.ClearField("metadata_props")  # traces of source files, of no use to anybody
    return model

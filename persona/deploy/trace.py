"""Exports a network to an ONNX graph with PyTorch's exporter."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from persona.extras import missing

OPSET = 18
"""ONNX operator set. 18 (of 2022) is the first with antialiased Resize; every current runtime has
it."""


def trace_onnx(
    network: nn.Module,
    example: Tensor,
    axes: dict[int, Any],
    given: str,
    outputs: Sequence[str],
    *,
    optimise: bool = True,
) -> Any:
    """Exports a network with one input to an onnx.ModelProto.

    Args:
        network: the network in eval mode.
        example: an example input. Its free axes must have a size of at least 2.
        axes: a torch.export.Dim for each free axis.
        given: name of the input.
        outputs: names of the outputs.
        optimise: whether constants are folded, for example batch norm into convolutions. Otherwise
            every weight keeps its name and its values.

    Raises:
        PersonaError: packages are missing.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401 - torch.onnx needs it and says so in a page of text
    except ImportError:
        raise missing("exporting needs onnx and onnxscript", "export") from None
    # The exporter reports its own steps on stdout and through several loggers.
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
            optimize=optimise,
        )
    model = program.model_proto
    del model.metadata_props[:]
    for part in (*model.graph.node, *model.graph.value_info, *model.graph.input):
        part.ClearField("metadata_props")  # stack traces of source files, useless in a file
    return model

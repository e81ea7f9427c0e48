"""MTCNN for the page: facenet-pytorch's three networks as ONNX files.

They take whole pixels as they are; the rest of the detector is `page/detect.js`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from persona.deploy.trace import trace_onnx

PIXELS = "pixels"


class _Network(nn.Module):
    """One of the three, with its normalisation (facenet-pytorch 2.5.3, `imresample`'s callers)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.eval()

    def forward(self, pixels: Tensor) -> Any:
        """(N, H, W, 3) float32 of 0 to 255 to regression, points (O-Net alone) and scores."""
        return self.network((pixels.permute(0, 3, 1, 2) - 127.5) * 0.0078125)


def build_detector() -> dict[str, bytes]:
    """The files by name: `pnet.onnx` for photos of any size, `rnet.onnx` and `onet.onnx` for any
    number of windows of 24 and 48 px.

    Raises:
        PersonaError: packages are missing.
    """
    from facenet_pytorch.models.mtcnn import ONet, PNet, RNet

    free = torch.export.Dim.DYNAMIC
    pnet = trace_onnx(
        _Network(PNet()), torch.zeros(1, 40, 52, 3), {1: free, 2: free}, PIXELS, ("moves", "scores")
    )
    rnet, onet = (
        trace_onnx(_Network(network), torch.zeros(2, side, side, 3), {0: free}, PIXELS, outputs)
        for network, side, outputs in (
            (RNet(), 24, ("moves", "scores")),
            (ONet(), 48, ("moves", "points", "scores")),
        )
    )
    models = {"pnet.onnx": pnet, "rnet.onnx": rnet, "onet.onnx": onet}
    return {name: model.SerializeToString() for name, model in models.items()}

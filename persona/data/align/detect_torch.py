"""MTCNN's three networks in torch, on the CPU or a GPU; see persona/data/align/detect.py."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from facenet_pytorch.models.mtcnn import ONet, PNet, RNet
from torch.nn.functional import prelu

from persona.data.align.detect import Array
from persona.errors import PersonaError


class TorchNetworks:
    """Runs facenet-pytorch's networks, with channels last in memory."""

    def __init__(self, device: str = "auto") -> None:
        """Loads the networks on `device`: auto, cpu or cuda.

        Raises:
            PersonaError: If a GPU is requested and there is none.
        """
        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if device == "cuda" and not gpus:
            raise PersonaError("--device cuda: torch sees no GPU here; --device cpu does the same")
        self.on_gpu = gpus > 0 and device != "cpu"
        # Blocks of 64 fit into the cache of one core.
        self.block = 1024 if self.on_gpu else 64
        # Worker processes spread over the GPUs.
        self.device = torch.device("cuda", os.getpid() % gpus) if self.on_gpu else "cpu"
        # With one thread processes share the cores better, and sums do not depend on their number.
        torch.set_num_threads(1)
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        self._pnet, self._rnet, self._onet = (
            network().eval().to(self.device, memory_format=torch.channels_last)
            for network in (PNet, RNet, ONet)
        )

    def running(self) -> AbstractContextManager[Any]:
        """A context without gradients."""
        return torch.inference_mode()

    def to(self, array: Array) -> Any:
        """Moves the array to a tensor on the device."""
        return torch.from_numpy(array).to(self.device)

    def zeros(self, *shape: int, whole: bool = False) -> Any:
        """Zeros as float32, or as int32 with `whole`."""
        return torch.zeros(
            *shape, dtype=torch.int32 if whole else torch.float32, device=self.device
        )

    def sum_up(self, photo_HWC: Array, sums_HWC: Any) -> None:
        """Fills `sums_HWC` with the sum of all pixels above and left of each, itself included."""
        torch.cumsum(self.to(np.array(photo_HWC)), 0, dtype=torch.int32, out=sums_HWC)
        sums_HWC.cumsum_(1)

    def take(self, rows: Any, places: Array) -> Any:
        """Selects rows of (rows, columns): (*places.shape, columns)."""
        return rows.index_select(0, self.to(places.ravel())).view(*places.shape, -1)

    def floats(self, array: Any) -> Any:
        """The tensor as float32."""
        return array.float()

    def pnet_first(self, pixels_NHWC: Any) -> Any:
        """P-Net's first layer."""
        maps = self._pnet.conv1(_normalise(pixels_NHWC))
        return _prelu(maps, self._pnet.prelu1.weight)

    def pnet_rest(self, maps_NCHW: Any) -> tuple[Array, Array]:
        """P-Net's other layers: box regression and scores."""
        net = self._pnet
        hidden = _prelu(net.conv2(_pool(maps_NCHW)), net.prelu2.weight)
        hidden = _prelu(net.conv3(hidden), net.prelu3.weight)
        scores = net.softmax4_1(net.conv4_1(hidden))
        return net.conv4_2(hidden).cpu().numpy(), scores.cpu().numpy()

    def rnet(self, pixels_NHWC: Any) -> list[Array]:
        """R-Net: box regression and scores."""
        return [found.cpu().numpy() for found in self._rnet(_normalise(pixels_NHWC))]

    def onet(self, pixels_NHWC: Any) -> list[Array]:
        """O-Net: box regression, landmarks and scores."""
        return [found.cpu().numpy() for found in self._onet(_normalise(pixels_NHWC))]


def _normalise(pixels_NHWC: Any) -> Any:
    return pixels_NHWC.sub(127.5).mul_(0.0078125).permute(0, 3, 1, 2)


def _prelu(maps_NCHW: Any, slope_C: Any) -> Any:
    """PReLU of channels-last maps over whole rows. torch would process ten channels at a time."""
    count, channels, height, width = maps_NCHW.shape
    rows = maps_NCHW.permute(0, 2, 3, 1).reshape(count * height, width * channels)
    rows = prelu(rows, slope_C.repeat(width))
    return rows.view(count, height, width, channels).permute(0, 3, 1, 2)


def _pool(maps_NCHW: Any) -> Any:
    """2x2 max pooling of channels-last maps of even size, also over whole rows."""
    count, channels, height, width = maps_NCHW.shape
    rows = maps_NCHW.permute(0, 2, 3, 1).reshape(count, height // 2, 2, width * channels)
    rows = torch.maximum(rows[:, :, 0], rows[:, :, 1])
    pairs = rows.view(count, height // 2, width // 2, 2, channels)
    return torch.maximum(pairs[..., 0, :], pairs[..., 1, :]).permute(0, 3, 1, 2)

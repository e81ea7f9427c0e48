"""A liveness check in an ONNX file, with its settings in the YAML file of the same name beside it.

    input_size: 80        # side of the input in px
    scale: 2.7            # side of the crop, as a multiple of the longer side of the face's box
    mean: [0, 0, 0]       # of each channel, for pixels of 0 to 255
    std: [255, 255, 255]
    channels: bgr         # or rgb
    live: 1               # place of the live class among the outputs; left out for one output
    activation: softmax   # or sigmoid, or none
    threshold: 0.5        # lowest score of a live face

The file takes faces as (batch, 3, side, side) float32 and gives (batch, classes), (batch, 1) or
(batch,). The crop is a square around the box, moved into the photo as far as it fits.

Shapes: B batch, C channel, H W pixels, K classes.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from persona.config import LARGEST_YAML, from_dict, parse_yaml
from persona.data.align.spec import Box, FoundFace
from persona.errors import PersonaError, unknown
from persona.gallery.liveness.base import Liveness, Pixels
from persona.models.embedder import own_threads
from persona.models.graphs import open_onnx, read_onnx, reason, within_limit

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class LivenessSettings:
    """The crops that a liveness model needs, and what its output means."""

    input_size: int
    """Side of the input in px."""
    mean: tuple[float, ...]
    """Mean of each channel for pixels of 0 to 255, in the order of `channels`."""
    std: tuple[float, ...]
    """Standard deviation of each channel, likewise."""
    channels: str = "rgb"
    """Order of the channels: `rgb` or `bgr`."""
    scale: float = 1.0
    """Side of the crop, as a multiple of the longer side of the face's box."""
    live: int | None = None
    """Place of the live class among the outputs, from 0. None means that there is one output."""
    activation: str = "softmax"
    """What makes a score in [0, 1] of the output: `softmax`, `sigmoid` or `none`."""
    threshold: float = 0.5
    """Lowest score of a live face."""
    output: str | None = None
    """Name of the output. None means that there is only one."""

    def __post_init__(self) -> None:
        for name, known in (
            ("channels", ("rgb", "bgr")),
            ("activation", ("softmax", "sigmoid", "none")),
        ):
            if getattr(self, name) not in known:
                raise unknown(name, getattr(self, name), known)
        for name, low, high in (
            ("input_size", 16, 1024),
            ("scale", 0.5, 8),
            ("live", 0, 1000),
            ("threshold", 0, 1),
        ):
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise PersonaError(f"{name} {value:g}: choose {low} to {high}")
        numbers = (*self.mean, *self.std)
        usable = all(map(math.isfinite, numbers)) and all(std > 1e-6 for std in self.std)
        if len(self.mean) != 3 or len(self.std) != 3 or not usable:
            raise PersonaError("mean and std: give three numbers each, std above 0")
        if self.activation == "softmax" and self.live is None:
            raise PersonaError("activation softmax: give `live`, the place of the live class")


def read_settings(path: Path) -> LivenessSettings:
    """Reads the settings beside an ONNX file.

    Raises:
        PersonaError: there are none, a name is unknown or missing, or a value is out of range.
    """
    beside = path.with_suffix(".yaml")
    try:
        with beside.open(encoding="utf-8") as file:
            text = file.read(LARGEST_YAML + 1)
    except FileNotFoundError:
        raise PersonaError(
            f"{path} has no settings: write {beside.name} beside it, as docs/guides/liveness.md "
            "describes"
        ) from None
    except (OSError, ValueError):
        raise PersonaError(f"{beside} is not valid YAML") from None
    values = parse_yaml(text, str(beside))
    if not isinstance(values, dict):
        raise PersonaError(f"{beside} must be a mapping of names to values")
    try:
        return from_dict(LivenessSettings, values, where=str(beside))
    except TypeError as error:
        raise PersonaError(f"{beside} is not complete ({error})") from None
    except PersonaError as error:
        raise PersonaError(f"{error} ({beside})") from None


class OnnxLiveness(Liveness):
    """A liveness check in an ONNX file. It runs in onnxruntime."""

    def __init__(self, path: Path) -> None:
        """Loads the file and runs it once, for a limited time.

        Raises:
            PersonaError: the file is missing, no ONNX, has control flow, is too slow, or has an
                input or output that does not fit its settings.
        """
        self.path = path
        read_onnx(path)  # a missing file is told before missing settings
        self.settings = read_settings(path)
        self.threshold = self.settings.threshold
        self._session = open_onnx(path, own_threads(), ("CPUExecutionProvider",))
        given, side = self._session.get_inputs(), self.settings.input_size
        shape = given[0].shape if given else []
        if len(given) != 1 or len(shape) != 4 or given[0].type != "tensor(float)":
            raise self._wrong(
                f"{len(given)} inputs, the first of {given[0].type if given else 'nothing'} "
                f"{shape}; one of floats (batch, 3, {side}, {side}) is needed"
            )
        one = (3, side, side)
        if any(isinstance(n, int) and n != want for n, want in zip(shape[1:], one, strict=True)):
            raise self._wrong(f"input {shape}, the settings say (batch, 3, {side}, {side})")
        self._input = given[0].name
        self._batch = shape[0] if isinstance(shape[0], int) and shape[0] > 0 else None
        outputs = [output.name for output in self._session.get_outputs()]
        if self.settings.output is None and len(outputs) != 1:
            raise self._wrong(f"outputs {', '.join(outputs)}: name one as `output` in the settings")
        self._output = self.settings.output or outputs[0]
        if self._output not in outputs:
            raise unknown("output", self._output, outputs, where=str(path))
        self._probe(np.zeros((self._batch or 2, *one), np.float32))

    @property
    def title(self) -> str:
        """Name of the file."""
        return self.path.name

    def score(self, photo: Pixels, faces: Sequence[FoundFace]) -> list[float]:
        """Returns for each face how surely it is live, in [0, 1]."""
        crops = np.stack([self._crop(photo, face.box) for face in faces])
        size, found = self._batch or len(crops), []
        for start in range(0, len(crops), size):
            part = crops[start : start + size]
            lacking = size - len(part)
            if lacking:  # a file of fixed batch needs the last part filled up
                part = np.concatenate([part, np.zeros((lacking, *part.shape[1:]), np.float32)])
            found += self._run(part).tolist()
        return found[: len(faces)]

    def _crop(self, photo: Pixels, box: Box) -> Floats:
        """(3, H, W) the square around a face, normalised."""
        height, width = photo.shape[:2]
        x0, y0, x1, y1 = box
        side = min(self.settings.scale * max(x1 - x0, y1 - y0), width, height)
        left = min(max((x0 + x1 - side) / 2, 0), width - side)
        top = min(max((y0 + y1 - side) / 2, 0), height - side)
        image = Image.fromarray(photo).resize(
            (self.settings.input_size,) * 2,
            Image.Resampling.BILINEAR,
            box=(left, top, left + side, top + side),
        )
        pixels_HWC = np.asarray(image, np.float32)
        if self.settings.channels == "bgr":
            pixels_HWC = pixels_HWC[:, :, ::-1]
        mean, std = (np.array(of, np.float32) for of in (self.settings.mean, self.settings.std))
        return np.ascontiguousarray(((pixels_HWC - mean) / std).transpose(2, 0, 1))

    def _run(self, crops: Floats, options: Any = None) -> Floats:
        try:
            (found,) = self._session.run([self._output], {self._input: crops}, options)
            output = np.asarray(found, np.float32)
        except Exception as error:  # onnxruntime has an error class for each status
            raise self._wrong(f"failed on a batch of {len(crops)} ({reason(error)})") from None
        live = self.settings.live
        if live is None:
            if output.shape not in {(len(crops),), (len(crops), 1)}:
                raise self._wrong(
                    f"output {self._output} of shape {output.shape}; without `live` in the "
                    "settings, one number for each face is needed"
                )
            score = output.reshape(len(crops), 1)
        else:
            if output.ndim != 2 or len(output) != len(crops) or output.shape[1] <= live:
                raise self._wrong(
                    f"output {self._output} of shape {output.shape}; with `live: {live}` in the "
                    f"settings, (batch, {live + 1} or more) is needed"
                )
            score = output
        return np.asarray(_activated(score, self.settings.activation)[:, live or 0], np.float32)

    def _probe(self, crops: Floats) -> None:
        """Runs the file for the first time, with a time limit."""
        import onnxruntime

        options = onnxruntime.RunOptions()
        stop = functools.partial(setattr, options, "terminate", True)
        within_limit(f"{self.path}: a batch", lambda: self._run(crops, options), stop)

    def _wrong(self, what: str) -> PersonaError:
        return PersonaError(f"{self.path} is no liveness model of its settings: it has {what}")


def _activated(output_BK: Floats, activation: str) -> Floats:
    if activation == "softmax":
        powers_BK = np.exp(output_BK - output_BK.max(axis=1, keepdims=True))
        return np.asarray(powers_BK / powers_BK.sum(axis=1, keepdims=True), np.float32)
    if activation == "sigmoid":
        return np.asarray(1 / (1 + np.exp(-np.clip(output_BK, -80, 80))), np.float32)
    return output_BK

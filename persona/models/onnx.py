"""A face network in an ONNX file with its settings. This module does not import torch.

`onnx:FILE` reads FILE and its settings. It gives embeddings and no logits. The settings come from
the first of these that exists:

1. the YAML file of the same name beside it
2. the file's own metadata, where `persona export` writes them
3. configs/teachers/, as `configs/teachers/mobilefacenet.yaml` for `mobilefacenet.onnx`

If a network needs faces aligned to five landmarks, the crops are warped by their landmarks. The set
itself may be aligned in another way.

Shapes: B batch, C channel, H W pixels, E embedding.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from persona.config import LARGEST_YAML, from_dict, parse_yaml
from persona.errors import PersonaError, unknown
from persona.files import sha256_file
from persona.landmarks import Floats, resize, unit, warp
from persona.models.embedder import Embedder, demand_landmarks, own_threads
from persona.models.graphs import external_files, open_onnx, read_onnx, reason, within_limit
from persona.models.onnx_batch import free_batch

PREFIX = "onnx:"
CONFIGS = Path(__file__).parent / "teachers"
"""A link to configs/teachers/, so that a wheel includes them."""
SETTINGS_KEY = "persona.settings"
"""Key in a file's metadata under which its settings stand as YAML."""
LAYOUTS = ("nchw", "nhwc-uint8")
ON_CPU = ("CPUExecutionProvider",)
FREE_SIDE_PX = 160
"""Side of the faces in a benchmark of a file that takes any size and has no settings, in px."""
PART, MANY = 4, 8
"""Photos that a lane takes at once if the file has no fixed batch, and the fewest photos per lane
for which lanes are used."""
Pixels = npt.NDArray[np.uint8]
Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True)
class OnnxSettings:
    """The faces that a network needs: size, alignment and normalisation."""

    input_size: int
    """Side of the input in px."""
    alignment: str
    """`five-point` (ArcFace's template) or `margin` (the crop as it is, resized)."""
    mean: tuple[float, ...]
    """Mean of each channel for pixels of 0 to 255, in the order of `channels`."""
    std: tuple[float, ...]
    """Standard deviation of each channel, likewise."""
    channels: str = "rgb"
    """Order of the channels: `rgb` or `bgr`."""
    output: str | None = None
    """Name of the output that is the embedding. None means that there is only one output."""
    flip_average: bool = False
    """Whether the embedding of the mirror image is added, as is usual in evaluation."""
    layout: str = "nchw"
    """`nchw`, or `nhwc-uint8`: the network takes (B, H, W, 3) uint8 and normalises by itself."""
    checked: bool = False
    """Whether the settings are known to be right. persona/evaluation/sanity.py then skips its
    check."""

    def __post_init__(self) -> None:
        for name, known in (
            ("alignment", ("five-point", "margin")),
            ("channels", ("rgb", "bgr")),
            ("layout", LAYOUTS),
        ):
            if getattr(self, name) not in known:
                raise unknown(name, getattr(self, name), known)
        if not 16 <= self.input_size <= 1024:
            raise PersonaError(f"input_size {self.input_size}: choose 16 to 1024 px")
        numbers = (*self.mean, *self.std)
        usable = all(map(math.isfinite, numbers)) and all(std > 1e-6 for std in self.std)
        if len(self.mean) != 3 or len(self.std) != 3 or not usable:
            raise PersonaError("mean and std: give three numbers each, std above 0")


def find_settings(path: Path) -> tuple[str, str]:
    """Finds the settings of an ONNX file.

    Returns:
        The settings as YAML, and the file that holds them.

    Raises:
        PersonaError: there are no settings, or they cannot be read.
    """
    beside = path.with_suffix(".yaml")
    if not beside.is_file():
        own = read_onnx(path).metadata.get(SETTINGS_KEY)
        if own is not None:
            return own, str(path)
    for place in (beside, CONFIGS / f"{path.stem}.yaml"):
        if place.is_file():
            try:
                with place.open(encoding="utf-8") as file:
                    return file.read(LARGEST_YAML + 1), str(place)
            except (OSError, ValueError):
                raise PersonaError(f"{place} is not valid YAML") from None
    known = ", ".join(sorted(p.name for p in CONFIGS.glob("*.yaml")))
    raise PersonaError(
        f"{path} has no settings: copy the one that fits of {CONFIGS} ({known}) to {beside}"
    )


def parse_settings(text: str, where: str) -> OnnxSettings:
    """Parses settings from YAML.

    Raises:
        PersonaError: the text is no YAML, a name is unknown or missing, or a value is out of range.
    """
    values = parse_yaml(text, where)
    if not isinstance(values, dict):
        raise PersonaError(f"{where} must be a mapping of names to values")
    try:
        return from_dict(OnnxSettings, values, where=where)
    except TypeError as error:
        raise PersonaError(f"{where} is not complete ({error})") from None
    except PersonaError as error:
        raise PersonaError(f"{error} ({where})") from None


_TYPES: dict[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(uint8)": np.uint8,
}
"""Dtypes of inputs, by onnxruntime's names."""


class OnnxSession(Embedder):
    """An ONNX file with its settings as an Embedder. It runs in onnxruntime."""

    def __init__(
        self, path: Path, settings: OnnxSettings, threads: int, providers: Sequence[str] = ON_CPU
    ) -> None:
        """Loads the file and runs it once, for a limited time.

        Args:
            path: the file.
            settings: its settings.
            threads: number of onnxruntime's threads.
            providers: onnxruntime's providers that may run it, in order of preference.

        Raises:
            PersonaError: the file is no ONNX, has control flow, is too slow, or has an input or
                output that does not fit the settings.
        """
        self.path, self.settings = path, settings
        self._session = open_onnx(path, threads, providers)
        self._lanes: _Lanes | None = None
        if threads > 1 and self._session.get_providers()[0] == ON_CPU[0]:
            self._lanes = _Lanes(path, threads)
        given = self._session.get_inputs()
        side = settings.input_size
        if len(given) != 1 or len(given[0].shape) != 4:
            raise self._wrong(f"{len(given)} inputs, the first of shape {given[0].shape}")
        self._input = given[0].name
        self._type = _TYPES.get(given[0].type)
        if (self._type is np.uint8) != (settings.layout == "nhwc-uint8") or self._type is None:
            raise self._wrong(f"an input of {given[0].type}, the settings say {settings.layout}")
        shape = given[0].shape
        one = (side, side, 3) if settings.layout == "nhwc-uint8" else (3, side, side)
        if any(isinstance(n, int) and n != want for n, want in zip(shape[1:], one, strict=True)):
            sides = ", ".join(map(str, one))
            raise self._wrong(f"input {shape}, the settings say (batch, {sides})")
        self._batch = shape[0] if isinstance(shape[0], int) and shape[0] > 0 else None
        outputs = [output.name for output in self._session.get_outputs()]
        if settings.output is None and len(outputs) != 1:
            raise self._wrong(f"outputs {', '.join(outputs)}: name one as `output` in the settings")
        self._output = settings.output or outputs[0]
        if self._output not in outputs:
            raise unknown("output", self._output, outputs, where=str(path))
        probe = self._probe(np.zeros((self._batch or 2, *one), np.float32))
        if (
            probe.ndim != 2
            or probe.shape[0] != (self._batch or 2)
            or not 8 <= probe.shape[1] <= 4096
        ):
            raise self._wrong(f"output {self._output} of shape {probe.shape}, no (batch, numbers)")
        self.embedding_size = probe.shape[1]
        if self._batch is not None and self._session.get_providers()[0] != ON_CPU[0]:
            self.free()

    def free(self) -> bool:
        """Lets a file of fixed batch run any number of photos at once, if its graph allows it.

        Returns:
            Whether it does. Photos must have the same embeddings alone and together.
        """
        size = self._batch
        content = None if size is None else free_batch(self.path)
        if size is None or content is None:
            return False
        side = self.settings.input_size
        pixels = 255 * np.random.default_rng(0).random((2 * size + 1, 3, side, side), np.float32)
        alone = [self._run_part(pixels[n : n + 1]) for n in range(len(pixels))]
        try:
            used = self._session.get_providers()
            session = open_onnx(self.path, own_threads(), used, content)
            images = self._normalised(pixels)
            together = within_limit(
                f"{self.path}: a batch", lambda: self._run(images, session=session)
            )
        except PersonaError:  # another operator fixes the batch too
            return False
        if not np.allclose(unit(together), unit(np.concatenate(alone)), atol=1e-3):
            return False
        self._session, self._batch, self._lanes = session, None, None
        return True

    @property
    def uses_landmarks(self) -> bool:  # type: ignore[override]
        """Whether it needs faces aligned to the five landmarks."""
        return self.settings.alignment == "five-point"

    def check_landmarks(self, landmarks_B62: Floats | None) -> None:
        """Checks that each crop has landmarks, if the network needs them.

        Raises:
            PersonaError: a crop has none.
        """
        if self.uses_landmarks:
            demand_landmarks(landmarks_B62, self.path.name)

    def embed(self, crops_BHW3: Pixels, landmarks_B62: Floats | None = None) -> Vectors:
        """Computes embeddings of unit length, (B, E) float32.

        Args:
            crops_BHW3: square uint8 RGB crops.
            landmarks_B62: the five landmarks and the scale of each crop, see persona/landmarks.py.

        Raises:
            PersonaError: the network needs landmarks and a crop has none.
        """
        self.check_landmarks(landmarks_B62)
        pixels = crops_BHW3.transpose(0, 3, 1, 2).astype(np.float32)
        side = self.settings.input_size
        if self.uses_landmarks:
            assert landmarks_B62 is not None
            pixels = warp(pixels, landmarks_B62, side)
        else:
            pixels = resize(pixels, side)
        return unit(self.run(pixels))

    def run(self, pixels_BCHW: Vectors) -> Vectors:
        """Computes embeddings before normalisation, (B, E).

        The crops are float32 RGB of 0 to 255 with sides of `input_size`.
        """
        vectors = self._embed(pixels_BCHW)
        if self.settings.flip_average:
            vectors = vectors + self._embed(pixels_BCHW[:, :, :, ::-1])
        return vectors

    def _embed(self, pixels: Vectors) -> Vectors:
        lanes = self._lanes
        if lanes is not None and len(pixels) < MANY * lanes.threads:
            lanes = None
        size = self._batch or (PART if lanes is not None else len(pixels))
        parts = [pixels[start : start + size] for start in range(0, len(pixels), size)]
        if lanes is not None:
            return np.concatenate(list(lanes.map(self._run_part, parts)))
        return np.concatenate([self._run_part(part) for part in parts])

    def _normalised(self, pixels: Vectors) -> Vectors:
        """The input of the file for crops of 0 to 255, RGB and channels first."""
        if self.settings.channels == "bgr":
            pixels = pixels[:, ::-1]
        if self.settings.layout == "nhwc-uint8":
            pixels = pixels.round().clip(0, 255).transpose(0, 2, 3, 1)
        else:
            mean = np.array(self.settings.mean, np.float32)[:, None, None]
            std = np.array(self.settings.std, np.float32)[:, None, None]
            pixels = (pixels - mean) / std
        return np.ascontiguousarray(pixels)

    def _run_part(self, pixels: Vectors, session: Any = None) -> Vectors:
        """Computes the embeddings of one part, which fits into a file's fixed batch, if any.

        A part is normalised here, so that all lanes share that work too.
        """
        images = self._normalised(pixels)
        lacking = (self._batch or len(images)) - len(images)
        if lacking:  # a file of fixed batch needs the last part filled up
            images = np.concatenate([images, np.zeros((lacking, *images.shape[1:]), images.dtype)])
        vectors = self._run(images, session=session)
        return vectors[: len(vectors) - lacking]

    def _probe(self, images: Vectors) -> Vectors:
        """Runs the file for the first time, with a time limit."""
        import onnxruntime

        options = onnxruntime.RunOptions()
        stop = functools.partial(setattr, options, "terminate", True)
        return within_limit(f"{self.path}: a batch", lambda: self._run(images, options), stop)

    def _run(self, images: Vectors, options: Any = None, session: Any = None) -> Vectors:
        assert self._type is not None
        given = {self._input: images.astype(self._type, copy=False)}
        try:
            (found,) = (session or self._session).run([self._output], given, options)
        except Exception as error:  # onnxruntime has an error class for each status
            raise self._wrong(f"failed on a batch of {len(images)} ({reason(error)})") from None
        try:
            vectors = np.asarray(found, np.float32)
        except (ValueError, TypeError):
            raise self._wrong(f"output {self._output} that is no array of numbers") from None
        if vectors.shape[:1] != (len(images),):
            raise self._wrong(
                f"output {self._output} of shape {vectors.shape} for {len(images)} faces"
            )
        return vectors

    def _wrong(self, what: str) -> PersonaError:
        return PersonaError(f"{self.path} does not fit its settings: it has {what}")


class _Lanes:
    """A second session of the same file for many photos: each part of a batch runs on one thread.

    Threads that share a forward pass wait for each other at every layer. With lanes on two cores,
    MobileFaceNet's file of batch 1 embeds 1.1 to 1.9 times as many faces per second. The results
    are the same to the bit.
    """

    def __init__(self, path: Path, threads: int) -> None:
        self.path, self.threads = path, threads

    def map(self, work: Callable[..., Vectors], parts: Sequence[Vectors]) -> Iterator[Vectors]:
        """Yields `work(part, session)` of each part, in order. The first call opens the session."""
        return self._pool.map(functools.partial(work, session=self._session), parts)

    @functools.cached_property
    def _session(self) -> Any:
        return open_onnx(self.path, 1, ON_CPU)

    @functools.cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.threads, "onnx")


def providers() -> list[str]:
    """The onnxruntime providers that can run a network on this machine, the fastest first."""
    import onnxruntime

    there = onnxruntime.get_available_providers()
    return [name for name in ("CUDAExecutionProvider", *ON_CPU) if name in there]


def open_session(path: Path, threads: int, providers: Sequence[str] = ON_CPU) -> OnnxSession:
    """Opens an ONNX file with its own settings.

    Raises:
        PersonaError: the file is missing, no ONNX, or does not fit its settings.
    """
    read_onnx(path)  # so that errors of the file are reported before those of its settings
    return OnnxSession(path, parse_settings(*find_settings(path)), threads, providers)


class OnnxRunner:
    """An ONNX file that onnxruntime runs on random faces, to measure its speed."""

    runtime = "onnxruntime"

    def __init__(self, path: Path, threads: int) -> None:
        """Loads the file and runs it once. It needs no settings.

        Raises:
            PersonaError: the file is no ONNX, its input is not one image, or it does not run.
        """
        self.path = path
        self._session = open_onnx(path, threads, ON_CPU)
        given = self._session.get_inputs()
        if len(given) != 1 or len(given[0].shape) != 4:
            raise PersonaError(f"{path} is no face network: one input of four axes is wanted")
        (self._given,) = given
        empty = any(isinstance(n, int) and n < 1 for n in self._given.shape)
        if self._given.type not in _TYPES or empty:
            raise PersonaError(
                f"{path} is no face network: its input is {self._given.type} of shape "
                f"{self._given.shape}"
            )
        self._free_side_px = FREE_SIDE_PX
        with contextlib.suppress(PersonaError):  # for example a file without settings
            self._free_side_px = parse_settings(*find_settings(path)).input_size
        within_limit(f"{path}: a run", self.on(1))

    def on(self, count: int) -> Callable[[], object]:
        """Returns a function that embeds `count` faces, rounded up to whole batches."""
        # Files that take photos of any size have no sides of their own.
        shape = [n if isinstance(n, int) else self._free_side_px for n in self._given.shape[1:]]
        size = self._given.shape[0] if isinstance(self._given.shape[0], int) else count
        images = np.random.default_rng(0).random((size, *shape), np.float32)
        images = images.astype(_TYPES[self._given.type])

        def run() -> object:
            try:
                for _ in range(-(-count // size)):
                    self._session.run(None, {self._given.name: images})
            except Exception as error:  # onnxruntime has an error class for each status
                raise PersonaError(
                    f"{self.path} failed on faces of shape {images.shape} ({reason(error)}): "
                    f"name the size that it takes in {self.path.with_suffix('.yaml')}"
                ) from None
            return None

        return run


def digest(path: Path) -> str:
    """A hash of an ONNX file, its settings and its external weights files. Nothing is run.

    Raises:
        PersonaError: `persona.models.graphs.read_onnx` refuses the file, or it has no settings.
    """
    settings = hashlib.sha256(find_settings(path)[0].encode()).hexdigest()
    own = f"{sha256_file(path)}-{settings[:16]}"
    others = [sha256_file(file) for file in external_files(path, read_onnx(path))]
    return f"{own}-{hashlib.sha256(''.join(others).encode()).hexdigest()[:16]}" if others else own

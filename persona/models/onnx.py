"""A face network in an ONNX file, with a few settings beside it. No torch.

`onnx:FILE` reads FILE, and its settings from the YAML file of the same name beside it, or else from
its own metadata (files of `persona export` have them there), or else from configs/teachers/
(`mobilefacenet.onnx`: `configs/teachers/mobilefacenet.yaml`). It gives embeddings and no logits.

A network that wants its faces turned to five points gets them so, from the crop and the points that
come with it: the set itself may be aligned in another way.

Shapes: B batch, C channel, H W pixels, E embedding.
"""

from __future__ import annotations

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
from persona.landmarks import Floats, is_aligned, resize, unit, warp
from persona.models.embedder import Embedder
from persona.models.graphs import external_files, open_onnx, read_onnx, reason, within_limit

PREFIX = "onnx:"
CONFIGS = Path(__file__).parent / "teachers"
"""A link to configs/teachers/, so that a wheel has them."""
SETTINGS_KEY = "persona.settings"
"""Of a file's metadata: its settings as YAML."""
LAYOUTS = ("nchw", "nhwc-uint8")
ON_CPU = ("CPUExecutionProvider",)
FREE_SIDE_PX = 160
PART, MANY = 4, 8
"""Photos that a lane takes at once where the file leaves it free, and how many a lane make it worth
to open the lanes."""
Pixels = npt.NDArray[np.uint8]
Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True)
class OnnxSettings:
    """How a network wants its faces."""

    input_size: int
    """Side, px."""
    alignment: str
    """`five-point`: ArcFace's template; `margin`: the crop as it is, resized."""
    mean: tuple[float, ...]
    """Of each channel, in pixels of 0 to 255, in the order of `channels`."""
    std: tuple[float, ...]
    channels: str = "rgb"
    output: str | None = None
    """Name of the embedding; None: the only output."""
    flip_average: bool = False
    """Add the mirror image's vector, as is usual in evaluation."""
    layout: str = "nchw"
    """`nhwc-uint8`: it takes (B, H, W, 3) uint8 and normalises by itself."""
    checked: bool = False
    """Whoever wrote this is sure of it: persona/evaluation/sanity.py does not look."""

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
    """The settings of an ONNX file as YAML, and where they were found.

    Raises:
        PersonaError: there are none.
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
    """Settings from YAML.

    Raises:
        PersonaError: no YAML, unknown or missing names, values out of range.
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
"""Of inputs, by onnxruntime's names."""


class OnnxSession(Embedder):
    """An ONNX file that embeds faces in onnxruntime, as its settings say."""

    def __init__(
        self, path: Path, settings: OnnxSettings, threads: int, providers: Sequence[str] = ON_CPU
    ) -> None:
        """Loads the file and runs it once, for a limited time.

        Args:
            path: the file.
            settings: how it wants its faces.
            threads: of onnxruntime.
            providers: where it may run, by onnxruntime's names, the first one that can.

        Raises:
            PersonaError: no ONNX, with control flow, of input or output that are not what the
                settings say, or too slow.
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

    @property
    def uses_landmarks(self) -> bool:  # type: ignore[override]
        """Whether it wants its faces turned to the five points."""
        return self.settings.alignment == "five-point"

    def check_landmarks(self, landmarks_B62: Floats | None) -> None:
        """Raises PersonaError if it wants the five points and a crop has none."""
        if self.uses_landmarks and (landmarks_B62 is None or np.isnan(landmarks_B62).any()):
            raise PersonaError(
                f"{self.path.name} wants five points of each face and this set has none: pack "
                "it with --align mtcnn, landmarks or template"
            )

    def embed(self, crops_BHW3: Pixels, landmarks_B62: Floats | None = None) -> Vectors:
        """(B, E) float32 embeddings of unit length of square RGB crops.

        Args:
            crops_BHW3: uint8 crops.
            landmarks_B62: the five points and the scale of each crop, see persona/landmarks.py.

        Raises:
            PersonaError: it wants the five points and a crop has none.
        """
        self.check_landmarks(landmarks_B62)
        pixels = crops_BHW3.transpose(0, 3, 1, 2).astype(np.float32)
        side = self.settings.input_size
        if self.uses_landmarks:
            assert landmarks_B62 is not None
            if not is_aligned(pixels.shape[2], landmarks_B62, side):
                pixels = warp(pixels, landmarks_B62, side)
        else:
            pixels = resize(pixels, side)
        return unit(self.run(pixels))

    def run(self, pixels_BCHW: Vectors) -> Vectors:
        """(B, E) before normalisation of crops of its own side: float32 RGB, 0 to 255."""
        vectors = self._embed(pixels_BCHW)
        if self.settings.flip_average:
            vectors = vectors + self._embed(pixels_BCHW[:, :, :, ::-1])
        return vectors

    def _embed(self, pixels: Vectors) -> Vectors:
        if self.settings.channels == "bgr":
            pixels = pixels[:, ::-1]
        if self.settings.layout == "nhwc-uint8":
            pixels = pixels.round().clip(0, 255).transpose(0, 2, 3, 1)
        else:
            mean = np.array(self.settings.mean, np.float32)[:, None, None]
            std = np.array(self.settings.std, np.float32)[:, None, None]
            pixels = (pixels - mean) / std
        images = np.ascontiguousarray(pixels)
        lanes = self._lanes
        if lanes is not None and len(images) < MANY * lanes.threads:
            lanes = None
        size = self._batch or (PART if lanes is not None else len(images))
        parts = [images[start : start + size] for start in range(0, len(images), size)]
        if lanes is not None:
            return np.concatenate(list(lanes.map(self._run_part, parts)))
        return np.concatenate([self._run_part(part) for part in parts])

    def _run_part(self, images: Vectors, session: Any = None) -> Vectors:
        """Vectors of at most as many photos as a file of fixed batch takes at once."""
        lacking = (self._batch or len(images)) - len(images)
        if lacking:  # of a file of fixed batch the last one is filled up
            images = np.concatenate([images, np.zeros((lacking, *images.shape[1:]), images.dtype)])
        vectors = self._run(images, session=session)
        return vectors[: len(vectors) - lacking]

    def _probe(self, images: Vectors) -> Vectors:
        """The first run of all."""
        import onnxruntime

        options = onnxruntime.RunOptions()
        stop = functools.partial(setattr, options, "terminate", True)
        return within_limit(f"{self.path}: a batch", lambda: self._run(images, options), stop)

    def _run(self, images: Vectors, options: Any = None, session: Any = None) -> Vectors:
        assert self._type is not None
        given = {self._input: images.astype(self._type)}
        try:
            (found,) = (session or self._session).run([self._output], given, options)
        except Exception as error:  # onnxruntime raises its own classes, one for each status
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
    """The same file once more, for many photos: each part of a batch runs on one thread.

    Threads that share a forward wait for each other at every layer. MobileFaceNet's file of batch 1
    embeds 1.1 to 1.9 times as many faces a second on two cores in this way, to the same bits.
    """

    def __init__(self, path: Path, threads: int) -> None:
        self.path, self.threads = path, threads

    def map(self, work: Callable[..., Vectors], parts: Sequence[Vectors]) -> Iterator[Vectors]:
        """`work(part, session)` of each part, in order; the session is opened at the first call."""
        return self._pool.map(functools.partial(work, session=self._session), parts)

    @functools.cached_property
    def _session(self) -> Any:
        return open_onnx(self.path, 1, ON_CPU)

    @functools.cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.threads, "onnx")


def providers() -> list[str]:
    """Where onnxruntime may run a network here, the fastest first."""
    import onnxruntime

    there = onnxruntime.get_available_providers()
    return [name for name in ("CUDAExecutionProvider", *ON_CPU) if name in there]


def open_session(path: Path, threads: int, providers: Sequence[str] = ON_CPU) -> OnnxSession:
    """An ONNX file with its own settings.

    Raises:
        PersonaError: missing, no ONNX, or not what its settings say.
    """
    read_onnx(path)  # what is wrong with the file comes before what is wrong with its settings
    return OnnxSession(path, parse_settings(*find_settings(path)), threads, providers)


class OnnxRunner:
    """An ONNX file in onnxruntime, fed with random faces as it takes them: what it costs."""

    runtime = "onnxruntime"

    def __init__(self, path: Path, threads: int) -> None:
        """Loads the file and runs it once; it needs no settings.

        Raises:
            PersonaError: no ONNX, or it does not take one image.
        """
        self._session = open_onnx(path, threads, ON_CPU)
        (given, *others) = self._session.get_inputs()
        if others or len(given.shape) != 4:
            raise PersonaError(f"{path} is no face network: one input of four axes is wanted")
        self._given = given
        within_limit(f"{path}: a run", self.on(1))

    def on(self, count: int) -> Callable[[], object]:
        """A function that embeds so many faces."""
        # Free sides are of files that take photos of any size.
        shape = [n if isinstance(n, int) else FREE_SIDE_PX for n in self._given.shape[1:]]
        size = self._given.shape[0] if isinstance(self._given.shape[0], int) else count
        images = np.random.default_rng(0).random((size, *shape), np.float32)
        images = images.astype(_TYPES.get(self._given.type, np.float32))

        def run() -> object:
            for _ in range(-(-count // size)):
                self._session.run(None, {self._given.name: images})
            return None

        return run


def digest(path: Path) -> str:
    """SHA-256 of an ONNX file, of what its settings say, and of its weights' own files.

    Raises:
        PersonaError: see `persona.models.graphs.read_onnx`; nothing is run.
    """
    settings = hashlib.sha256(find_settings(path)[0].encode()).hexdigest()
    own = f"{sha256_file(path)}-{settings[:16]}"
    others = [sha256_file(file) for file in external_files(path, read_onnx(path))]
    return f"{own}-{hashlib.sha256(''.join(others).encode()).hexdigest()[:16]}" if others else own

"""MTCNN (Zhang et al. 2016, https://arxiv.org/abs/1604.02878), many photos of any sizes at once.

The weights, thresholds and arithmetic are facenet-pytorch 2.5.3's; what differs is how the pixels
get to the three networks:

1. every photo is summed up once: the area average of any rectangle, which is how the reference
   resizes, is then four look-ups. The sums are integers, so nothing is lost.
2. P-Net: all levels of a photo's pyramid lie side by side on one canvas. The networks' windows
   reach over a border only where the result is not used, so a photo has the same result on any
   canvas. On a GPU canvases are stacked; on the CPU one at a time stays in the cache.
3. R-Net and O-Net: the candidates of all photos, in blocks of one size whoever is in them: the
   same kernels then run for every face, and its result has the same bits in any company.

Boxes are numpy arrays on the CPU: (N, 4) float32, x0, y0, x1, y1 px of the upright photo.
Shapes: P pixels, N candidates, H W pixels of a level.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from persona.data.align.spec import Face
from persona.errors import PersonaError
from persona.workers import tell_done

Array = npt.NDArray[Any]

MIN_FACE_PX = 20
"""The smallest face that is looked for; the image pyramid of a smaller photo is empty."""
CELL_PX = 12
"""P-Net's window."""
STRIDE_PX = 2
FACTOR = 0.709
"""Between two levels of the pyramid."""
THRESHOLDS = (0.6, 0.7, 0.7)
CENTRE_WEIGHT = 2.0
BLOCK = 64
"""Candidates that go through R-Net or O-Net together: what stays in the cache of one core."""
GPU_CANVASES, GPU_BLOCK = 32, 1024
BAND_PX, GPU_BAND_PX = 1 << 22, 1 << 26
"""Of a canvas or a photo that is worked on at once: P-Net takes 100 bytes a pixel."""


@dataclass(frozen=True)
class _Level:
    """A photo at one scale, and where it lies on its canvas (even px)."""

    scale: float
    height: int
    width: int
    top: int
    left: int

    @property
    def cells(self) -> tuple[slice, slice]:
        """Its part of P-Net's output."""
        # conv 3x3, pool 2x2 with a last half window, twice conv 3x3
        height, width = ((side - 1) // 2 - 4 for side in (self.height, self.width))
        top, left = self.top // 2, self.left // 2
        return slice(top, top + height), slice(left, left + width)


@lru_cache(maxsize=256)
def _pyramid(height: int, width: int) -> tuple[tuple[_Level, ...], tuple[int, int]]:
    """The levels of a photo and the height and width of its canvas, both even.

    A level goes into the first column of a shelf that has room, else starts a column, else a shelf.
    """
    scale, least = CELL_PX / MIN_FACE_PX, min(height, width) * (CELL_PX / MIN_FACE_PX)
    levels: list[_Level] = []
    shelves: list[dict[str, Any]] = []
    total = 0
    while least >= CELL_PX:
        high, wide = int(height * scale + 1), int(width * scale + 1)
        room_y, room_x = high + high % 2, wide + wide % 2
        if not shelves:
            total = room_x
        column = next(
            (
                column
                for shelf in shelves
                for column in shelf["columns"]
                if column["width"] >= room_x and shelf["bottom"] - column["next"] >= room_y
            ),
            None,
        )
        if column is None:
            shelf = next((s for s in shelves if total - s["right"] >= room_x), None)
            if shelf is None:
                top = shelves[-1]["bottom"] if shelves else 0
                shelf = {"top": top, "bottom": top + room_y, "right": 0, "columns": []}
                shelves.append(shelf)
            column = {"left": shelf["right"], "width": room_x, "next": shelf["top"]}
            shelf["right"] += room_x
            shelf["columns"].append(column)
        levels.append(_Level(scale, high, wide, column["next"], column["left"]))
        column["next"] += room_y
        scale, least = scale * FACTOR, least * FACTOR
    return tuple(levels), (shelves[-1]["bottom"], total)


@dataclass(frozen=True)
class _Found:
    """The faces of a photo, the surest first."""

    boxes: Array
    scores: Array
    landmarks: Array
    """(N, 2, 5)."""

    def face(self, place: int) -> Face:
        """One of them."""
        x0, y0, x1, y1 = map(float, self.boxes[place])
        points_52 = self.landmarks[place].T.astype(float)
        return Face((x0, y0, x1, y1), float(self.scores[place]), points_52)

    def chosen(self, height: int, width: int) -> Face | None:
        """The large central one; None: there is none."""
        if not len(self.boxes):
            return None
        return self.face(_largest_central(self.boxes, width, height))


class Mtcnn:
    """Finds the face in each of many photos: "center_weighted_size" of those it detects."""

    def __init__(self, device: str = "auto") -> None:
        """Loads the networks; `device` is auto, cpu or cuda.

        Raises:
            PersonaError: there is no GPU.
        """
        import torch
        from facenet_pytorch.models.mtcnn import ONet, PNet, RNet

        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if device == "cuda" and not gpus:
            raise PersonaError("--device cuda: torch sees no GPU here; --device cpu does the same")
        self.on_gpu = gpus > 0 and device != "cpu"
        # Worker processes spread over the GPUs.
        self.device = torch.device("cuda", os.getpid() % gpus) if self.on_gpu else "cpu"
        # One thread: processes share the cores better, and sums never depend on their number.
        torch.set_num_threads(1)
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        self._pnet, self._rnet, self._onet = (
            network().eval().to(self.device, memory_format=torch.channels_last)
            for network in (PNet, RNet, ONet)
        )

    def __call__(self, photos: Sequence[Array]) -> list[Face | None]:
        """The chosen face of each photo, (H, W, 3) uint8 of at least 20 px; None: it has none."""
        return [found.chosen(*photo.shape[:2]) for photo, found in self._detect(photos)]

    def find_all(self, photos: Sequence[Array]) -> list[list[Face]]:
        """Every face of each photo, (H, W, 3) uint8 of at least 20 px, the surest first."""
        return [
            [found.face(place) for place in range(len(found.boxes))]
            for _, found in self._detect(photos)
        ]

    def _detect(self, photos: Sequence[Array]) -> Iterator[tuple[Array, _Found]]:
        import torch

        with torch.inference_mode():
            return zip(photos, self._find(photos) if photos else [], strict=True)

    def _find(self, photos: Sequence[Array]) -> list[_Found]:
        sums = _AreaSums(photos, self.device)
        found = [_from_pnet(*maps) for maps in self._run_pnet(sums)]
        owner = np.repeat(np.arange(len(photos)), [len(boxes) for boxes in found])
        boxes = _to_squares(np.concatenate(found))
        # R-Net
        owner, boxes, windows = sums.within(owner, boxes)
        regression, scores = self._run(self._rnet, sums, owner, windows, 24)
        passed = np.flatnonzero(scores[:, 1] > THRESHOLDS[1])
        passed = passed[_suppress_each(owner[passed], boxes[passed], scores[passed, 1])]
        owner, boxes = owner[passed], _to_squares(_refine(boxes[passed], regression[passed]))
        # O-Net
        owner, boxes, windows = sums.within(owner, boxes)
        regression, points, scores = self._run(self._onet, sums, owner, windows, 48)
        passed = np.flatnonzero(scores[:, 1] > THRESHOLDS[2])
        owner, boxes, points = owner[passed], boxes[passed], points[passed]
        side = boxes[:, 2:] - boxes[:, :2] + 1
        landmarks = side[:, :, None] * points.reshape(-1, 2, 5) + boxes[:, :2, None] - 1
        refined = _refine(boxes, regression[passed])
        faces = []
        for number in range(len(photos)):
            own = np.flatnonzero(owner == number)
            own = own[_suppress_contained(refined[own], scores[passed[own], 1])]
            faces.append(_Found(refined[own], scores[passed[own], 1], landmarks[own]))
        return faces

    def _run_pnet(self, sums: _AreaSums) -> list[tuple[tuple[_Level, ...], Array, Array]]:
        """Levels, scores (H, W) and regression (4, H, W) of each photo's canvas."""
        import torch

        pyramids = [_pyramid(*size) for size in sums.sizes]
        stack = GPU_CANVASES if self.on_gpu else 1
        maps = []
        for start in range(0, len(pyramids), stack):
            some = pyramids[start : start + stack]
            height, width = (max(canvas[axis] for _, canvas in some) for axis in (0, 1))
            canvases = torch.zeros(len(some), height, width, 3, device=self.device)
            for number, (levels, _) in enumerate(some):
                for level in levels:
                    sums.resize(start + number, level, canvases[number])
            scores, regression = self._pnet_forward(canvases, [levels for levels, _ in some])
            maps += [(some[n][0], scores[n], regression[n]) for n in range(len(some))]
            tell_done(len(some))  # most of the work that they are
        return maps

    def _pnet_forward(
        self, canvases_NHWC: Any, levels: Sequence[Sequence[_Level]]
    ) -> tuple[Array, Array]:
        """P-Net over canvases: (N, H, W) scores and (N, 4, H, W) regression."""
        count, height, width, _ = canvases_NHWC.shape
        canvases_NHWC = canvases_NHWC.sub_(127.5).mul_(0.0078125)
        rows = (height - 2) // 2 - 4
        step = max(1, (GPU_BAND_PX if self.on_gpu else BAND_PX) // (2 * count * width))
        bands = []
        for first in range(0, rows, step):
            last = min(first + step, rows)
            # Two rows of the canvas a row of the output, and what the windows reach beyond them.
            band = canvases_NHWC[:, 2 * first : 2 * last + 10]
            bands.append(self._pnet_band(band, 2 * first, levels))
        scores, regression = zip(*bands, strict=True)
        return np.concatenate(scores, axis=1), np.concatenate(regression, axis=2)

    def _pnet_band(
        self, band_NHWC: Any, first: int, levels: Sequence[Sequence[_Level]]
    ) -> tuple[Array, Array]:
        """P-Net over rows of canvases, the first of which is row `first`, an even one."""
        net = self._pnet
        hidden = _prelu(net.conv1(band_NHWC.permute(0, 3, 1, 2)), net.prelu1.weight)
        for number, some in enumerate(levels):
            for level in some:
                # The pool's last window may be cut by the level's border: what is beyond the
                # border repeats what is before it, and the maximum is that of the cut window.
                top, left = level.top - first, level.left
                bottom, right = top + level.height - 2, left + level.width - 2
                rows, columns = slice(max(top, 0), max(bottom, 0)), slice(left, right + 1)
                if level.width % 2:
                    hidden[number, :, rows, right] = hidden[number, :, rows, right - 1]
                if level.height % 2 and 0 < bottom < hidden.shape[2]:
                    hidden[number, :, bottom, columns] = hidden[number, :, bottom - 1, columns]
        hidden = _prelu(net.conv2(_pool(hidden)), net.prelu2.weight)
        hidden = _prelu(net.conv3(hidden), net.prelu3.weight)
        scores = net.softmax4_1(net.conv4_1(hidden))[:, 1]
        return scores.cpu().numpy(), net.conv4_2(hidden).cpu().numpy()

    def _run(
        self, network: Any, sums: _AreaSums, owner: Array, windows: Array, side_px: int
    ) -> list[Array]:
        """A network over windows of the photos; its outputs, one row a window."""
        block = GPU_BLOCK if self.on_gpu else BLOCK
        rows = len(windows)
        # An empty block gives every output its width where there is no window at all.
        padding = -rows % block or (block if not rows else 0)
        owner = np.concatenate([owner, np.zeros(padding, owner.dtype)])
        whole = np.tile(np.array([[0, 0, 1, 1]], windows.dtype), (padding, 1))
        windows = np.concatenate([windows, whole])
        outputs = []
        for start in range(0, len(windows), block):
            part = slice(start, start + block)
            crops = sums.sample(owner[part], windows[part], side_px).sub_(127.5).mul_(0.0078125)
            outputs.append([out.cpu().numpy() for out in network(crops.permute(0, 3, 1, 2))])
        return [np.concatenate(out)[:rows] for out in zip(*outputs, strict=True)]


def _prelu(maps_NCHW: Any, slope_C: Any) -> Any:
    """PReLU of channels-last maps: over whole rows, where torch would go ten channels at a time."""
    from torch.nn.functional import prelu

    count, channels, height, width = maps_NCHW.shape
    rows = maps_NCHW.permute(0, 2, 3, 1).reshape(count * height, width * channels)
    rows = prelu(rows, slope_C.repeat(width))
    return rows.view(count, height, width, channels).permute(0, 3, 1, 2)


def _pool(maps_NCHW: Any) -> Any:
    """The maximum of 2x2 px of channels-last maps of even size; over whole rows too."""
    import torch

    count, channels, height, width = maps_NCHW.shape
    rows = maps_NCHW.permute(0, 2, 3, 1).reshape(count, height // 2, 2, width * channels)
    rows = torch.maximum(rows[:, :, 0], rows[:, :, 1])
    pairs = rows.view(count, height // 2, width // 2, 2, channels)
    return torch.maximum(pairs[..., 0, :], pairs[..., 1, :]).permute(0, 3, 1, 2)


class _AreaSums:
    """Photos, each as the sums of all pixels above and left of every corner."""

    def __init__(self, photos: Sequence[Array], device: Any) -> None:
        import torch

        self.device = device
        self.sizes: list[tuple[int, int]] = [photo.shape[:2] for photo in photos]
        """Height and width."""
        corners = [(height + 1) * (width + 1) for height, width in self.sizes]
        self._starts = np.cumsum([0, *corners])
        # int32 may overflow in large photos; the difference of two sums is right all the same.
        self._sums_P3 = torch.zeros(int(self._starts[-1]), 3, dtype=torch.int32, device=device)
        for number, photo in enumerate(photos):
            pixels = torch.from_numpy(np.array(photo)).to(device)
            inner = self._photo(number)[1:, 1:]
            torch.cumsum(pixels, 0, dtype=torch.int32, out=inner)
            inner.cumsum_(1)

    def _photo(self, number: int) -> Any:
        height, width = self.sizes[number]
        part = self._sums_P3[self._starts[number] : self._starts[number + 1]]
        return part.view(height + 1, width + 1, 3)

    def resize(self, number: int, level: _Level, canvas_HWC: Any) -> None:
        """Puts a photo at the level's size onto its place on the canvas."""
        height, width = self.sizes[number]
        (y0, y1), (x0, x1) = _edges(height, level.height), _edges(width, level.width)
        photo = self._photo(number)
        part = canvas_HWC[level.top : level.top + level.height]
        part = part[:, level.left : level.left + level.width]
        step = max(1, BAND_PX // width)
        for first in range(0, level.height, step):
            band = slice(first, first + step)
            above, below = y0[band], y1[band]
            rows = photo[self._to(below)] - photo[self._to(above)]
            sums = rows[:, self._to(x1)] - rows[:, self._to(x0)]
            # The reference divides in this order, in float32.
            means = sums / self._to((below - above)[:, None, None]) / self._to((x1 - x0)[:, None])
            part[band] = means

    def sample(self, owner: Array, windows: Array, side_px: int) -> Any:
        """(N, side_px, side_px, 3) float32 area averages of windows, (N, 4) int px."""
        left, top, right, bottom = windows.T
        y0, y1 = (edges + top[:, None] for edges in _edges(bottom - top, side_px))
        x0, x1 = (edges + left[:, None] for edges in _edges(right - left, side_px))
        strides = np.array([width + 1 for _, width in self.sizes])[owner]
        above, below = (
            (self._starts[owner][:, None] + y * strides[:, None])[:, :, None] for y in (y0, y1)
        )
        before, behind = x0[:, None], x1[:, None]
        sums = self._at(below + behind)
        sums -= self._at(below + before)
        sums -= self._at(above + behind)
        sums += self._at(above + before)
        sums = sums / self._to((y1 - y0)[:, :, None, None])
        return sums / self._to((x1 - x0)[:, None, :, None])

    def _at(self, places: Array) -> Any:
        found = self._sums_P3.index_select(0, self._to(places.ravel()))
        return found.view(*places.shape, 3)

    def _to(self, array: Array) -> Any:
        import torch

        return torch.from_numpy(array).to(self.device)

    def within(self, owner: Array, boxes: Array) -> tuple[Array, Array, Array]:
        """Those boxes that touch their photo, and the whole px of it that they cover, (N, 4)."""
        sizes = np.array(self.sizes)[owner][:, ::-1]
        whole = np.trunc(boxes).astype(np.int64)
        start = np.maximum(whole[:, :2], 1) - 1
        windows = np.hstack([start, np.minimum(whole[:, 2:], sizes)])
        kept = np.flatnonzero((windows[:, :2] < windows[:, 2:]).all(axis=1))
        return owner[kept], boxes[kept], windows[kept]


def _edges(length: Any, parts: int) -> tuple[Array, Array]:
    """Where each of `parts` windows over `length` px starts and ends, as area resizing has it."""
    steps = np.arange(parts) * np.asarray(length)[..., None]
    return steps // parts, -(-(steps + np.asarray(length)[..., None]) // parts)


def _from_pnet(levels: Sequence[_Level], scores_HW: Array, regression_4HW: Array) -> Array:
    """A photo's candidates: what P-Net takes for faces, less what overlaps a better one."""
    boxes, scores, regressions = [], [], []
    for level in levels:
        cells = level.cells
        y, x = np.nonzero(scores_HW[cells] >= THRESHOLDS[0])
        corner = STRIDE_PX * np.stack([x, y], axis=1).astype(np.float32)
        scale = np.float32(level.scale)
        box = np.hstack(
            [np.floor((corner + 1) / scale), np.floor((corner + CELL_PX) / scale)], dtype=np.float32
        )
        score = scores_HW[cells][y, x]
        kept = _suppress(box, score, 0.5)
        boxes.append(box[kept])
        scores.append(score[kept])
        regressions.append(regression_4HW[:, *cells][:, y[kept], x[kept]].T)
    box = np.concatenate(boxes)
    kept = _suppress(box, np.concatenate(scores), 0.7)
    box, regression = box[kept], np.concatenate(regressions)[kept]
    moved: Array = box + regression * np.tile(box[:, 2:] - box[:, :2], 2)
    return moved


def _suppress(boxes: Array, scores: Array, overlap: float) -> Array:
    """Places of the boxes, best first, that overlap no better one (intersection over union)."""
    if len(boxes) < 2:
        return np.arange(len(boxes))
    import torch
    from torchvision.ops import nms

    kept: Array = nms(torch.from_numpy(boxes), torch.from_numpy(scores), overlap).numpy()
    return kept


def _suppress_each(owner: Array, boxes: Array, scores: Array) -> Array:
    """`_suppress` within each photo; `owner` is sorted."""
    edges = np.append(np.flatnonzero(np.diff(owner, prepend=-1)), len(owner))
    kept = [a + _suppress(boxes[a:b], scores[a:b], 0.7) for a, b in itertools.pairwise(edges)]
    return np.concatenate([np.zeros(0, np.int64), *kept])


def _suppress_contained(boxes: Array, scores: Array) -> Array:
    """Places of the boxes that have less than 0.7 of themselves, or of it, in a better one."""
    area = np.prod(boxes[:, 2:] - boxes[:, :2] + 1, axis=1)
    left = np.argsort(scores)[::-1]
    kept = []
    while len(left):
        best, left = left[0], left[1:]
        kept.append(best)
        low = np.maximum(boxes[best, :2], boxes[left, :2])
        high = np.minimum(boxes[best, 2:], boxes[left, 2:])
        common = np.prod(np.maximum(high - low + 1, 0), axis=1)
        left = left[common / np.minimum(area[best], area[left]) <= 0.7]
    return np.array(kept, np.int64)


def _refine(boxes: Array, regression: Array) -> Array:
    """Moves each edge by its share of the box's size."""
    side = boxes[:, 2:] - boxes[:, :2] + 1
    moved: Array = boxes + regression * np.tile(side, 2)
    return moved


def _to_squares(boxes: Array) -> Array:
    """The squares around the boxes' centres that hold them."""
    side = boxes[:, 2:] - boxes[:, :2]
    longest = side.max(axis=1, keepdims=True)
    corner = boxes[:, :2] + side * np.float32(0.5) - longest * np.float32(0.5)
    return np.hstack([corner, corner + longest])


def _largest_central(boxes: Array, width: int, height: int) -> int:
    """The box with the largest `area - 2 * squared distance from the centre of the photo`."""
    area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    away = (boxes[:, :2] + boxes[:, 2:]) / 2 - np.array([width / 2, height / 2])
    return int(np.argmax(area - (away**2).sum(axis=1) * CENTRE_WEIGHT))

"""MTCNN (Zhang et al. 2016, https://arxiv.org/abs/1604.02878) on many photos of any sizes at once.

The weights, thresholds and arithmetic are facenet-pytorch 2.5.3's. Only the way in which pixels
reach the three networks differs. The networks run in torch (`detect_torch`) or in onnxruntime
(`detect_onnx`). All else is shared code.

1. area sums: every photo is summed up once. The area average of any rectangle, which is how the
   reference resizes, then takes four look-ups. The sums are integers and therefore exact.
2. P-Net: all levels of a photo's image pyramid lie side by side on one canvas. The networks'
   windows reach over a level's border only where the result is not used, so a photo has the same
   result on any canvas. On a GPU canvases are stacked. On the CPU they run one at a time, which
   stays in the cache.
3. R-Net and O-Net: the candidates of all photos run in blocks of a fixed size. The same kernels
   then run for every face, so a face has the same result, bit by bit, in any block.

Boxes are numpy arrays on the CPU: (N, 4) float32, x0, y0, x1, y1 px of the upright photo.
Shapes: P pixels, N candidates, H W pixels of a level.
"""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from persona.data.align.spec import MIN_FACE_PX, FoundFace
from persona.extras import missing
from persona.workers import tell_done

__all__ = ["MIN_FACE_PX", "Mtcnn", "Networks"]

Array = npt.NDArray[Any]

CELL_PX = 12
"""Side of P-Net's window."""
STRIDE_PX = 2
FACTOR = 0.709
"""Scale between two levels of the image pyramid."""
THRESHOLDS = (0.6, 0.7, 0.7)
CENTRE_WEIGHT = 2.0
GPU_CANVASES = 32
BAND_PX, GPU_BAND_PX = 1 << 22, 1 << 26
"""Pixels of a canvas or photo that are processed at once. P-Net takes 100 bytes per pixel."""
NMS_ROWS = 256
"""Candidates that are compared with all others at once in non-maximum suppression."""


@dataclass(frozen=True)
class _Level:
    """A photo at one scale, and its position on its canvas in px (even)."""

    scale: float
    height: int
    width: int
    top: int
    left: int

    @property
    def cells(self) -> tuple[slice, slice]:
        """The level's part of P-Net's output."""
        # conv 3x3, pool 2x2 with a last half window, twice conv 3x3
        height, width = ((side - 1) // 2 - 4 for side in (self.height, self.width))
        top, left = self.top // 2, self.left // 2
        return slice(top, top + height), slice(left, left + width)


@lru_cache(maxsize=256)
def _pyramid(
    height: int, width: int, min_face_px: int = MIN_FACE_PX
) -> tuple[tuple[_Level, ...], tuple[int, int]]:
    """The levels of a photo, and the height and width of its canvas, both even.

    The photo's shorter side is at least `min_face_px`, so there is at least one level.

    A level goes into the first column of a shelf that has room. Otherwise it starts a new column,
    or else a new shelf.
    """
    scale, least = CELL_PX / min_face_px, min(height, width) * (CELL_PX / min_face_px)
    levels: list[_Level] = []
    shelves: list[dict[str, Any]] = []
    total = 0
    # 47 * (12 / 47) is a little less than 12 in floats, and so for some other sizes.
    while not levels or least >= CELL_PX:
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
    """The detected faces of a photo, by decreasing score."""

    boxes: Array
    scores: Array
    landmarks: Array
    """(N, 2, 5) five-point landmarks in px."""

    def face(self, place: int) -> FoundFace:
        """The face at position `place`."""
        x0, y0, x1, y1 = map(float, self.boxes[place])
        points_52 = self.landmarks[place].T.astype(float)
        return FoundFace((x0, y0, x1, y1), float(self.scores[place]), points_52)

    def chosen(self, height: int, width: int) -> FoundFace | None:
        """The large central face, or None if there is no face."""
        if not len(self.boxes):
            return None
        return self.face(_largest_central(self.boxes, width, height))


class Networks(Protocol):
    """MTCNN's three networks in one library, with the array operations that the libraries name
    differently."""

    on_gpu: bool
    block: int
    """Candidates per run of R-Net or O-Net. Every run is filled up to it: with another number of
    rows, sums may be added in another order, and a face would depend on what else is in view."""

    def running(self) -> AbstractContextManager[Any]:
        """The context in which all the other methods are called."""

    def to(self, array: Array) -> Any:
        """Moves an array to the device of the networks."""

    def zeros(self, *shape: int, whole: bool = False) -> Any:
        """Zeros as float32, or as int32 with `whole`."""

    def sum_up(self, photo_HWC: Array, sums_HWC: Any) -> None:
        """Fills `sums_HWC` (int32) with the sum of all pixels above and left, itself included."""

    def take(self, rows: Any, places: Array) -> Any:
        """Selects rows of (rows, columns): (*places.shape, columns)."""

    def floats(self, array: Any) -> Any:
        """The array as float32."""

    def pnet_first(self, pixels_NHWC: Any) -> Any:
        """P-Net's first layer, from pixels in [0, 255]: (N, 10, H - 2, W - 2), which the caller
        may overwrite."""

    def pnet_rest(self, maps_NCHW: Any) -> tuple[Array, Array]:
        """(N, 4, H, W) box regression and (N, 2, H, W) scores, from the maps of `pnet_first`."""

    def rnet(self, pixels_NHWC: Any) -> Sequence[Array]:
        """(N, 4) box regression and (N, 2) scores of windows of 24 px."""

    def onet(self, pixels_NHWC: Any) -> Sequence[Array]:
        """(N, 4) box regression, (N, 10) landmarks and (N, 2) scores of windows of 48 px."""


def _choose_networks(device: str) -> Networks:
    """Chooses torch if it is installed, otherwise onnxruntime on the CPU.

    Raises:
        PersonaError: If a GPU is requested and there is none, or torch is not installed.
    """
    if importlib.util.find_spec("torch") and importlib.util.find_spec("facenet_pytorch"):
        from persona.data.align.detect_torch import TorchNetworks

        return TorchNetworks(device)
    if device == "cuda":
        raise missing("--device cuda needs torch", "train")
    from persona.data.align.detect_onnx import OnnxNetworks

    return OnnxNetworks()


class Mtcnn:
    """Detects the face in each of many photos. Of several it takes the "center_weighted_size"."""

    def __init__(
        self,
        device: str = "auto",
        networks: Networks | None = None,
        min_face_px: int = MIN_FACE_PX,
    ) -> None:
        """Loads the networks on `device` (auto, cpu or cuda), unless they are given.

        Faces smaller than `min_face_px` are not looked for. 20 is facenet-pytorch's default.

        Raises:
            PersonaError: If a GPU is requested and there is none.
        """
        self.networks = networks or _choose_networks(device)
        self.min_face_px = min_face_px

    def __call__(self, photos: Sequence[Array]) -> list[FoundFace | None]:
        """The chosen face of each photo, (H, W, 3) uint8. None if it has none.

        It is searched for from `min_face_px` on; its refined box may be smaller.
        """
        return [found.chosen(*photo.shape[:2]) for photo, found in self._detect(photos)]

    def find_all(self, photos: Sequence[Array]) -> list[list[FoundFace]]:
        """Every face of each photo, (H, W, 3) uint8, by decreasing score.

        They are searched for from `min_face_px` on; a refined box may be smaller.
        """
        return [
            [found.face(place) for place in range(len(found.boxes))]
            for _, found in self._detect(photos)
        ]

    def _detect(self, photos: Sequence[Array]) -> Iterator[tuple[Array, _Found]]:
        with self.networks.running():
            return zip(photos, self._find(photos) if photos else [], strict=True)

    def _find(self, photos: Sequence[Array]) -> list[_Found]:
        sums = _AreaSums(photos, self.networks)
        found = [_from_pnet(*maps) for maps in self._run_pnet(sums)]
        owner = np.repeat(np.arange(len(photos)), [len(boxes) for boxes in found])
        boxes = _to_squares(np.concatenate(found))
        owner, boxes, windows = sums.within(owner, boxes)
        regression, scores = self._run(self.networks.rnet, sums, owner, windows, 24)
        passed = np.flatnonzero(scores[:, 1] > THRESHOLDS[1])
        passed = passed[_suppress_each(owner[passed], boxes[passed], scores[passed, 1])]
        owner, boxes = owner[passed], _to_squares(_refine(boxes[passed], regression[passed]))
        owner, boxes, windows = sums.within(owner, boxes)
        regression, points, scores = self._run(self.networks.onet, sums, owner, windows, 48)
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
        """Levels, scores (H, W) and box regression (4, H, W) of each photo's canvas."""
        pyramids = [_pyramid(*size, self.min_face_px) for size in sums.sizes]
        stack = GPU_CANVASES if self.networks.on_gpu else 1
        maps = []
        for start in range(0, len(pyramids), stack):
            some = pyramids[start : start + stack]
            height, width = (max(canvas[axis] for _, canvas in some) for axis in (0, 1))
            canvases = self.networks.zeros(len(some), height, width, 3)
            for number, (levels, _) in enumerate(some):
                for level in levels:
                    sums.resize(start + number, level, canvases[number])
            scores, regression = self._pnet_forward(canvases, [levels for levels, _ in some])
            maps += [(some[n][0], scores[n], regression[n]) for n in range(len(some))]
            tell_done(len(some))  # P-Net is most of the work on a photo
        return maps

    def _pnet_forward(
        self, canvases_NHWC: Any, levels: Sequence[Sequence[_Level]]
    ) -> tuple[Array, Array]:
        """P-Net over canvases: (N, H, W) scores and (N, 4, H, W) box regression."""
        count, height, width, _ = canvases_NHWC.shape
        rows = (height - 2) // 2 - 4
        step = max(1, (GPU_BAND_PX if self.networks.on_gpu else BAND_PX) // (2 * count * width))
        bands = []
        for first in range(0, rows, step):
            last = min(first + step, rows)
            # Two rows of the canvas per row of the output, and the reach of the windows.
            band = canvases_NHWC[:, 2 * first : 2 * last + 10]
            bands.append(self._pnet_band(band, 2 * first, levels))
        scores, regression = zip(*bands, strict=True)
        return np.concatenate(scores, axis=1), np.concatenate(regression, axis=2)

    def _pnet_band(
        self, band_NHWC: Any, first: int, levels: Sequence[Sequence[_Level]]
    ) -> tuple[Array, Array]:
        """P-Net over a band of canvases. `first` is the number of its first row and is even."""
        hidden = self.networks.pnet_first(band_NHWC)
        for number, some in enumerate(levels):
            for level in some:
                # A level's border may cut the last window of the pooling. Repeating the last row
                # or column beyond the border gives the maximum of the cut window.
                top, left = level.top - first, level.left
                bottom, right = top + level.height - 2, left + level.width - 2
                rows, columns = slice(max(top, 0), max(bottom, 0)), slice(left, right + 1)
                if level.width % 2:
                    hidden[number, :, rows, right] = hidden[number, :, rows, right - 1]
                if level.height % 2 and 0 < bottom < hidden.shape[2]:
                    hidden[number, :, bottom, columns] = hidden[number, :, bottom - 1, columns]
        regression, scores = self.networks.pnet_rest(hidden)
        return scores[:, 1], regression

    def _run(
        self, network: Any, sums: _AreaSums, owner: Array, windows: Array, side_px: int
    ) -> list[Array]:
        """Runs a network over windows of the photos. Its outputs have one row per window."""
        block, rows = self.networks.block, len(windows)
        # Without windows an empty block still gives every output its width.
        padding = -rows % block or (block if not rows else 0)
        owner = np.concatenate([owner, np.zeros(padding, owner.dtype)])
        whole = np.tile(np.array([[0, 0, 1, 1]], windows.dtype), (padding, 1))
        windows = np.concatenate([windows, whole])
        outputs = []
        for start in range(0, len(windows), block):
            part = slice(start, start + block)
            outputs.append(network(sums.sample(owner[part], windows[part], side_px)))
        return [np.concatenate(out)[:rows] for out in zip(*outputs, strict=True)]


class _AreaSums:
    """Summed-area tables of photos: the sum of all pixels above and left of every corner."""

    def __init__(self, photos: Sequence[Array], networks: Networks) -> None:
        self.networks = networks
        self.sizes: list[tuple[int, int]] = [photo.shape[:2] for photo in photos]
        """Height and width of each photo in px."""
        corners = [(height + 1) * (width + 1) for height, width in self.sizes]
        self._starts = np.cumsum([0, *corners])
        # int32 may overflow in large photos, but the difference of two sums stays exact.
        self._sums_P3 = networks.zeros(int(self._starts[-1]), 3, whole=True)
        for number, photo in enumerate(photos):
            networks.sum_up(photo, self._photo(number)[1:, 1:])

    def _photo(self, number: int) -> Any:
        height, width = self.sizes[number]
        part = self._sums_P3[self._starts[number] : self._starts[number + 1]]
        return part.reshape(height + 1, width + 1, 3)

    def resize(self, number: int, level: _Level, canvas_HWC: Any) -> None:
        """Resizes a photo to the level's size, at its position on the canvas."""
        height, width = self.sizes[number]
        (y0, y1), (x0, x1) = _edges(height, level.height), _edges(width, level.width)
        photo = self._photo(number)
        part = canvas_HWC[level.top : level.top + level.height]
        part = part[:, level.left : level.left + level.width]
        step = max(1, BAND_PX // width)
        for first in range(0, level.height, step):
            band = slice(first, first + step)
            above, below = y0[band], y1[band]
            to = self.networks.to
            rows = photo[to(below)] - photo[to(above)]
            sums = rows[:, to(x1)] - rows[:, to(x0)]
            part[band] = self._means(sums, (below - above)[:, None, None], (x1 - x0)[:, None])

    def sample(self, owner: Array, windows: Array, side_px: int) -> Any:
        """(N, side_px, side_px, 3) float32 area averages of the windows, (N, 4) int px."""
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
        return self._means(sums, (y1 - y0)[:, :, None, None], (x1 - x0)[:, None, :, None])

    def _at(self, places: Array) -> Any:
        return self.networks.take(self._sums_P3, places)

    def _means(self, sums: Any, heights: Array, widths: Array) -> Any:
        """Mean of sums over the heights and widths, float32, divided in the reference's order."""
        means = self.networks.floats(sums)
        means /= self.networks.to(heights.astype(np.float32))
        means /= self.networks.to(widths.astype(np.float32))
        return means

    def within(self, owner: Array, boxes: Array) -> tuple[Array, Array, Array]:
        """The boxes that touch their photo, and the (N, 4) whole px of it that they cover."""
        sizes = np.array(self.sizes)[owner][:, ::-1]
        whole = np.trunc(boxes).astype(np.int64)
        start = np.maximum(whole[:, :2], 1) - 1
        windows = np.hstack([start, np.minimum(whole[:, 2:], sizes)])
        kept = np.flatnonzero((windows[:, :2] < windows[:, 2:]).all(axis=1))
        return owner[kept], boxes[kept], windows[kept]


def _edges(length: Any, parts: int) -> tuple[Array, Array]:
    """Start and end of each of `parts` windows over `length` px, as in area resizing."""
    steps = np.arange(parts) * np.asarray(length)[..., None]
    return steps // parts, -(-(steps + np.asarray(length)[..., None]) // parts)


def _from_pnet(levels: Sequence[_Level], scores_HW: Array, regression_4HW: Array) -> Array:
    """A photo's candidates: P-Net's detections after non-maximum suppression."""
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
    """Non-maximum suppression by intersection over union.

    Like torchvision's `nms`, it computes in float32 and compares with `overlap` as a double.

    Returns:
        The positions of the boxes that are kept, best first.
    """
    order = np.argsort(-scores, kind="stable")
    boxes = boxes[order]
    area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    alive = np.ones(len(boxes), bool)
    for start in range(0, len(boxes), NMS_ROWS):
        some = slice(start, start + NMS_ROWS)
        low = np.maximum(boxes[some, None, :2], boxes[None, start:, :2])
        high = np.minimum(boxes[some, None, 2:], boxes[None, start:, 2:])
        common = np.prod(np.maximum(high - low, 0), axis=2)
        with np.errstate(invalid="ignore"):  # 0 / 0 of two boxes without area
            shares = common / (area[some, None] + area[start:] - common)
        apart = ~(shares > np.float64(overlap))
        for place, row in enumerate(apart):
            if alive[start + place]:
                alive[start + place + 1 :] &= row[place + 1 :]
    return order[alive]


def _suppress_each(owner: Array, boxes: Array, scores: Array) -> Array:
    """`_suppress` within each photo. `owner` must be sorted."""
    edges = np.append(np.flatnonzero(np.diff(owner, prepend=-1)), len(owner))
    kept = [a + _suppress(boxes[a:b], scores[a:b], 0.7) for a, b in itertools.pairwise(edges)]
    return np.concatenate([np.zeros(0, np.int64), *kept])


def _suppress_contained(boxes: Array, scores: Array) -> Array:
    """Non-maximum suppression by intersection over the smaller area, at 0.7.

    Returns:
        The positions of the boxes that are kept, best first.
    """
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
    """Moves each edge by the box regression, which is in fractions of the box's size."""
    side = boxes[:, 2:] - boxes[:, :2] + 1
    moved: Array = boxes + regression * np.tile(side, 2)
    return moved


def _to_squares(boxes: Array) -> Array:
    """The smallest squares around the boxes' centres that contain them."""
    side = boxes[:, 2:] - boxes[:, :2]
    longest = side.max(axis=1, keepdims=True)
    corner = boxes[:, :2] + side * np.float32(0.5) - longest * np.float32(0.5)
    return np.hstack([corner, corner + longest])


def _largest_central(boxes: Array, width: int, height: int) -> int:
    """The box with the largest `area - 2 * squared distance from the centre of the photo`."""
    area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    away = (boxes[:, :2] + boxes[:, 2:]) / 2 - np.array([width / 2, height / 2])
    return int(np.argmax(area - (away**2).sum(axis=1) * CENTRE_WEIGHT))

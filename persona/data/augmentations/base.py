"""The base class of augmentations: options, the columns of a view, and what they do to a photo.

A view is an augmentation of one photo, as a row of numbers (persona/data/views.py). An augmentation
draws its own columns of the row from seeds, without torch. It applies them to a batch on any
device. The pixels follow from the row alone, so a teacher's embedding can be kept beside the row.

A new augmentation is one file with one subclass. Defining the class registers it. Its options then
stand beside the others below `augment`:

    @dataclass(frozen=True)
    class DimConfig(Checked):
        dim: float = between(0, 1, default=0.0)

    class Dim(Augmentation):
        name, config_class, stage = "dim", DimConfig, Stage.COLOUR
        columns = (Column("factor", 1, 0, 1),)

        def draw(self, rng, count):
            return {"factor": 1 - self.options.dim * rng.random(count)}

        def apply(self, images_BCHW, columns):
            return images_BCHW * per_photo(columns["factor"], images_BCHW)

The defaults of the options switch it off. Options that differ from them put it to use: the views
then get its columns. Each augmentation draws from a stream of its own, so none changes what others
draw. Only the standard ones (`STANDARD` in persona/config.py) share a stream.

Shapes: B batch, C channel (3, RGB), H W pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from enum import IntEnum
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from persona import registry
from persona.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor

AUGMENTATIONS: Registry[type[Augmentation]] = registry.AUGMENTATIONS
LUMA = (0.299, 0.587, 0.114)
"""Weights of R, G and B in the grey value (ITU-R BT.601)."""
Floats = npt.NDArray[np.floating[Any]]
Columns = Mapping[str, Floats]
"""The columns of one augmentation by name, (B,) each."""


class Stage(IntEnum):
    """When an augmentation is applied. Those of one stage are applied in the order of names."""

    GEOMETRY = 1
    """It moves pixels, and the landmarks with them."""
    OPTICS = 2
    """It takes away detail, as a lens or a small image does."""
    COLOUR = 3
    """It changes colours."""
    COVER = 4
    """It hides a part of the face."""
    CODING = 5
    """It stores the photo."""


class Column(NamedTuple):
    """A number of a view."""

    name: str
    identity: float
    """The value that leaves a photo as it is."""
    low: float
    high: float
    """Smallest and largest value. A kept view with another one is refused."""


class Augmentation(ABC):
    """An augmentation with its options."""

    name: ClassVar[str]
    """The registered name. It also seeds the augmentation's stream of random numbers."""
    config_class: ClassVar[type[Any]]
    """A frozen dataclass of the options. They stand beside those of other augmentations."""
    stage: ClassVar[Stage]
    columns: ClassVar[tuple[Column, ...]]
    whole_batch: ClassVar[bool] = False
    """Whether `apply` takes all photos as soon as one of them uses the augmentation. Otherwise it
    takes only the photos that do."""

    def __init__(self, options: Any) -> None:
        """Keeps the options, an instance of `config_class`."""
        self.options = options

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "name" in vars(cls):
            AUGMENTATIONS.add(cls.name, cls)

    @property
    def in_use(self) -> bool:
        """Whether the options differ from their defaults."""
        return bool(self.options != self.config_class())

    @abstractmethod
    def draw(self, rng: np.random.Generator, count: int) -> Columns:
        """Draws the columns of `count` views."""

    def uses(self, columns: Columns) -> npt.NDArray[np.bool_]:
        """(B,) which of the views change the photo."""
        differing = [columns[column.name] != column.identity for column in self.columns]
        return np.asarray(np.logical_or.reduce(differing))

    @abstractmethod
    def apply(self, images_BCHW: Tensor, columns: Columns) -> Tensor:
        """Changes photos, (B, 3, H, W) float32 in [0, 255] on any device, and returns new ones."""

    def move_landmarks(self, landmarks_B62: Tensor, columns: Columns, size_px: int) -> Tensor:
        """Moves landmarks (persona/landmarks.py) as `apply` moves the pixels of all B photos."""
        return landmarks_B62


def per_photo(column_B: Floats, images_BCHW: Tensor) -> Tensor:
    """A column as (B, 1, 1, 1), on the device of the images."""
    import torch

    column = np.ascontiguousarray(column_B, np.float32)
    return torch.from_numpy(column).to(images_BCHW.device)[:, None, None, None]

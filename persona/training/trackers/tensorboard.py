"""TensorBoard."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from persona.training.trackers.base import Accelerated, Sink, Start, starting

if TYPE_CHECKING:
    from PIL.Image import Image


class TensorBoard(Accelerated):
    """Event files below the run's folder."""

    name = "tensorboard"
    modules = ("tensorboard", "tensorboardX")
    package = "tensorboard"

    @classmethod
    def open(cls, start: Start) -> Sink:
        """Writes event files to `tensorboard/` in the run's folder, without what was taken out."""
        from accelerate.tracking import TensorBoardTracker

        again = {"purge_step": start.step + 1} if start.step else {}
        with starting("TensorBoard"):
            return cls(TensorBoardTracker("tensorboard", start.folder, **again), start)

    def log_curve(
        self, step: int, name: str, columns: list[str], rows: list[list[float]], image: Image
    ) -> None:
        """Takes the image."""
        pixels = np.asarray(image.convert("RGB"))[None]
        self.tracker.log_images({name: pixels}, step=step, dataformats="NHWC")

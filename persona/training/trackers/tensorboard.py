"""The TensorBoard tracker."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from persona.training.trackers.base import Accelerated, Sink, Start, starting

if TYPE_CHECKING:
    from PIL.Image import Image


class TensorBoard(Accelerated):
    """Writes event files in the run's folder."""

    name = "tensorboard"
    modules = ("tensorboard", "tensorboardX")
    package = "tensorboard"

    @classmethod
    def open(cls, start: Start) -> Sink:
        """Opens event files in `tensorboard/` in the run's folder.

        In a resumed run, TensorBoard hides the records that are newer than the checkpoint.

        Raises:
            PersonaError: TensorBoard cannot start.
        """
        from accelerate.tracking import TensorBoardTracker

        again = {"purge_step": start.step + 1} if start.step else {}
        with starting("TensorBoard"):
            return cls(TensorBoardTracker("tensorboard", start.folder, **again), start)

    def log_curve(
        self, step: int, name: str, columns: list[str], rows: list[list[float]], image: Image
    ) -> None:
        """Logs the image of a curve."""
        pixels = np.asarray(image.convert("RGB"))[None]
        self.tracker.log_images({name: pixels}, step=step, dataformats="NHWC")

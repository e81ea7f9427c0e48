"""The Aim tracker."""

from __future__ import annotations

from typing import TYPE_CHECKING

from persona.training.trackers.base import Accelerated, Sink, Start, starting

if TYPE_CHECKING:
    from PIL.Image import Image


class Aim(Accelerated):
    """Writes to an Aim repository in the run's folder."""

    name = "aim"
    modules = ("aim",)
    package = "aim"

    @classmethod
    def open(cls, start: Start) -> Sink:
        """Opens the Aim repository `aim/` in the run's folder.

        Raises:
            PersonaError: Aim cannot start.
        """
        from accelerate.tracking import AimTracker

        (start.folder / "aim").mkdir(exist_ok=True)
        with starting("Aim"):
            return cls(
                AimTracker(
                    start.run_id,
                    start.folder / "aim",
                    system_tracking_interval=None,
                    log_system_params=False,
                    capture_terminal_logs=False,
                ),
                start,
            )

    def log_curve(
        self, step: int, name: str, columns: list[str], rows: list[list[float]], image: Image
    ) -> None:
        """Logs the image of a curve."""
        self.tracker.log_images({name: image}, step=step)

"""How long a run is: in epochs, in optimizer steps, or in photos seen."""

from __future__ import annotations

from dataclasses import dataclass

from persona.training.checkpoint import Progress


@dataclass(frozen=True)
class Length:
    """Exactly one of the three is a number.

    Example:
        >>> Length(epochs=None, steps=None, photos=1000).total_steps(epoch_steps=30, step_photos=64)
        16
    """

    epochs: int | None
    steps: int | None = None
    photos: int | None = None
    """Seen by all processes together; a photo counts each time that it is seen."""

    def total_steps(self, epoch_steps: int, step_photos: int) -> int:
        """Optimizer steps of the run, given those of an epoch and the photos of one step."""
        if self.epochs is not None:
            return self.epochs * epoch_steps
        if self.steps is not None:
            return self.steps
        assert self.photos is not None
        return -(-self.photos // step_photos)

    def reached(self, progress: Progress) -> bool:
        """Whether a run at this position has ended."""
        if self.epochs is not None:
            return progress.epoch >= self.epochs
        if self.steps is not None:
            return progress.step >= self.steps
        assert self.photos is not None
        return progress.photos >= self.photos

    @property
    def counted(self) -> str:
        """For a person: `12 epochs`, `2000 steps` or `300000 photos`."""
        if self.epochs is not None:
            return f"{self.epochs} epochs"
        return f"{self.steps} steps" if self.steps is not None else f"{self.photos} photos"

    def title(self, epoch: int) -> str:
        """What a progress bar of an epoch, counted from 1, is called."""
        return f"epoch {epoch}" if self.epochs is None else f"epoch {epoch}/{self.epochs}"

"""The length of a run in epochs, optimizer steps or photos."""

from __future__ import annotations

from dataclasses import dataclass

from persona.training.checkpoint import Progress


@dataclass(frozen=True)
class Length:
    """The length of a run. Exactly one of the fields is a number; the others are None.

    Example:
        >>> Length(epochs=None, steps=None, photos=1000).total_steps(epoch_steps=30, step_photos=64)
        16
    """

    epochs: int | None
    steps: int | None = None
    photos: int | None = None
    """Photos that all processes see. A photo counts each time it is seen."""

    def total_steps(self, epoch_steps: int, step_photos: int) -> int:
        """Optimizer steps of the run.

        Args:
            epoch_steps: optimizer steps of one epoch.
            step_photos: photos that all processes see in one optimizer step.
        """
        if self.epochs is not None:
            return self.epochs * epoch_steps
        if self.steps is not None:
            return self.steps
        assert self.photos is not None
        return -(-self.photos // step_photos)

    def reached(self, progress: Progress) -> bool:
        """Whether a run with this progress has reached its length."""
        if self.epochs is not None:
            return progress.epoch >= self.epochs
        if self.steps is not None:
            return progress.step >= self.steps
        assert self.photos is not None
        return progress.photos >= self.photos

    @property
    def counted(self) -> str:
        """The length as text: `12 epochs`, `2000 steps` or `300000 photos`."""
        if self.epochs is not None:
            return f"{self.epochs} epochs"
        return f"{self.steps} steps" if self.steps is not None else f"{self.photos} photos"

    def title(self, epoch: int) -> str:
        """The title of an epoch's progress bar. Epochs count from 1."""
        return f"epoch {epoch}" if self.epochs is None else f"epoch {epoch}/{self.epochs}"

    def place(self, progress: Progress, total_steps: int) -> str:
        """How far a run has come, as text for the log: `epoch 3/20` or `step 500/2000`."""
        if progress.batch or self.epochs is None:
            return f"step {progress.step}/{total_steps}"
        return f"epoch {progress.epoch}/{self.epochs}"

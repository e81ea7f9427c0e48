"""Callbacks, which are called during a training: `persona.distill(…, callbacks=[…])`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass
class Moment:
    """The state of a training at the time of a callback."""

    run: str
    """ID of the run, which is also the ID of its model."""
    step: int
    """Number of optimizer steps done."""
    epoch: int
    """Number of epochs finished."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """After a step: the loss and its terms. After an evaluation: its figures, as `test/accuracy`,
    and those of the EMA of the weights, as `test-ema/accuracy`."""
    stopping: bool = False
    """Whether a callback has called `stop`."""

    def stop(self) -> None:
        """Ends the training after this step. The student is then evaluated and saved as usual."""
        self.stopping = True


class Callback:
    """Base class of callbacks. Override the methods that you need.

    Every process of a run calls them. Only a `stop` on the main process ends the run, for all.

    Example:
        >>> class Patience(Callback):
        ...     def on_step(self, moment: Moment) -> None:
        ...         if moment.step >= 1000:
        ...             moment.stop()
    """

    def on_step(self, moment: Moment) -> None:
        """Is called after each optimizer step, with the loss and its terms."""

    def on_epoch(self, moment: Moment) -> None:
        """Is called after each epoch, before its evaluation."""

    def on_evaluation(self, moment: Moment) -> None:
        """Is called after each evaluation on the test set, with its figures."""


def tell(callbacks: Sequence[Callback], method: str, moment: Moment) -> None:
    """Calls one method of every callback."""
    for callback in callbacks:
        getattr(callback, method)(moment)

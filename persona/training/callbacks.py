"""What a program is told while it trains: `persona.distill(…, callbacks=[…])`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass
class Moment:
    """Where a training stands."""

    run: str
    """The run's ID, which is the model's too."""
    step: int
    """Optimizer steps done."""
    epoch: int
    """Epochs finished."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """After a step: the loss and its terms. After an evaluation: its figures, as
    `test/accuracy`; those of the EMA of the weights as `test-ema/accuracy`."""
    stopping: bool = False

    def stop(self) -> None:
        """Ends the training after this step: the student is evaluated and kept as it is now."""
        self.stopping = True


class Callback:
    """Override what you want to be told of.

    Every process of a run calls it; the main process's `stop` ends the run for all.

    Example:
        >>> class Patience(Callback):
        ...     def on_step(self, moment: Moment) -> None:
        ...         if moment.step >= 1000:
        ...             moment.stop()
    """

    def on_step(self, moment: Moment) -> None:
        """After each optimizer step, with the loss and its terms."""

    def on_epoch(self, moment: Moment) -> None:
        """After each epoch, before its evaluation."""

    def on_evaluation(self, moment: Moment) -> None:
        """After each evaluation on the test set, with its figures."""


def tell(callbacks: Sequence[Callback], method: str, moment: Moment) -> None:
    """Calls one method of every callback."""
    for callback in callbacks:
        getattr(callback, method)(moment)

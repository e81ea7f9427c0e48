"""What a tracker is: something that takes a run's figures beside `metrics.jsonl`.

Another one is one file with one subclass; defining it registers it:

    class Lines(Sink):
        name = "lines"

        @classmethod
        def open(cls, start):
            return cls()

        def log(self, step, figures):
            print(step, figures)

        def close(self, *, failed):
            print("failed" if failed else "done")

Nothing but figures and the config leaves: no face, no embedding, no name, no path. What a tracker
would send of the machine, the command line, the code and the console by itself is turned off.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from persona import registry
from persona.errors import PersonaError
from persona.registry import Registry

if TYPE_CHECKING:
    from PIL.Image import Image

PROJECT = "persona"
Figures = Mapping[str, float]
TRACKERS: Registry[type[Sink]] = registry.TRACKERS


@dataclass(frozen=True)
class Start:
    """What a tracker is opened with."""

    folder: Path
    """The run's, for files of the tracker's own."""
    run_id: str
    config: Mapping[str, Any]
    """Plain nested values without paths."""
    step: int
    """Optimizer steps done: above 0 the run is resumed."""


class Sink(ABC):
    """Where the figures of a run go, beside the JSONL file."""

    name: ClassVar[str]
    """In the config and on the command line."""
    modules: ClassVar[tuple[str, ...]] = ()
    """Of which one must be installed; none: nothing has to be."""
    package: ClassVar[str] = ""
    """What pip calls them."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "name" in cls.__dict__:
            TRACKERS.add(cls.name, cls)

    @classmethod
    @abstractmethod
    def open(cls, start: Start) -> Sink:
        """Starts a run, or takes it up.

        Raises:
            PersonaError: it cannot start.
        """

    @abstractmethod
    def log(self, step: int, figures: Figures) -> None:
        """Takes figures at an optimizer step."""

    def log_curve(  # noqa: B027 - not every tracker has curves
        self, step: int, name: str, columns: list[str], rows: list[list[float]], image: Image
    ) -> None:
        """Takes a curve, as a table and drawn, where the tracker has either."""

    @abstractmethod
    def close(self, *, failed: bool) -> None:
        """Ends the run."""


class Accelerated(Sink):
    """A tracker of Accelerate's, started."""

    def __init__(self, tracker: Any, start: Start | None = None) -> None:
        """`start` is given where the config is stored as flat values."""
        from accelerate.state import PartialState

        PartialState()  # its trackers ask for it; in a training it is there
        if hasattr(tracker, "start"):  # older versions of Accelerate start it when it is made
            tracker.start()
        self.tracker = tracker
        if start is not None:
            tracker.store_init_configuration(dict(flat(start.config)))

    def log(self, step: int, figures: Figures) -> None:
        """Takes figures at an optimizer step."""
        self.tracker.log(dict(figures), step=step)

    def close(self, *, failed: bool) -> None:
        """Ends the run."""
        self.tracker.finish()


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, bool | int | float | str]:
    """Nested values by dotted name, as all trackers take them.

    Example:
        >>> flat({"epochs": 2, "steps": None, "optim": {"lr": 0.1}})
        {'epochs': 2, 'optim.lr': 0.1}
    """
    found: dict[str, bool | int | float | str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        elif isinstance(value, bool | int | float | str):
            found[f"{prefix}{name}"] = value
        elif value is not None:
            found[f"{prefix}{name}"] = str(value)
    return found


@contextlib.contextmanager
def starting(title: str, otherwise: str = "choose --tracker none") -> Iterator[None]:
    """Makes one line of whatever a tracker cannot start for."""
    try:
        yield
    except Exception as error:  # each raises its own, its service's and its network's errors
        raise PersonaError(
            f"cannot start the {title} run ({type(error).__name__}): {otherwise}"
        ) from None

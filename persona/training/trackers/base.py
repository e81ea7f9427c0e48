"""The base class of trackers, which receive the figures of a run besides `metrics.jsonl`.

A new tracker is one file with one subclass. Defining the class registers it:

    class Lines(Sink):
        name = "lines"

        @classmethod
        def open(cls, start):
            return cls()

        def log(self, step, figures):
            print(step, figures)

        def close(self, *, failed):
            print("failed" if failed else "done")

Trackers get only figures and the config: no face, no embedding, no name, no path. By default some
trackers also send facts about the machine, the command line, the code and the console. This is
turned off.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from persona import registry
from persona.config import flat
from persona.errors import PersonaError
from persona.registry import Registry

if TYPE_CHECKING:
    from PIL.Image import Image

PROJECT = "persona"
Figures = Mapping[str, float]
TRACKERS: Registry[type[Sink]] = registry.TRACKERS


@dataclass(frozen=True)
class Start:
    """The facts about a run with which a tracker is opened."""

    folder: Path
    """Folder of the run, where a tracker may write its own files."""
    run_id: str
    config: Mapping[str, Any]
    """Plain nested values without paths."""
    step: int
    """Number of optimizer steps done. Above 0, the run is resumed."""


class Sink(ABC):
    """A tracker, which receives the figures of a run."""

    name: ClassVar[str]
    """Name in the config and on the command line."""
    modules: ClassVar[tuple[str, ...]] = ()
    """Modules of which at least one must be installed. Empty means that none is needed."""
    package: ClassVar[str] = ""
    """Name of the package for pip."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "name" in cls.__dict__:
            TRACKERS.add(cls.name, cls)

    @classmethod
    @abstractmethod
    def open(cls, start: Start) -> Sink:
        """Starts or resumes a run.

        Raises:
            PersonaError: the tracker cannot start.
        """

    @abstractmethod
    def log(self, step: int, figures: Figures) -> None:
        """Logs figures at an optimizer step."""

    def log_curve(  # noqa: B027 - not every tracker has curves
        self, step: int, name: str, columns: list[str], rows: list[list[float]], image: Image
    ) -> None:
        """Logs a curve as a table or an image, if the tracker supports either."""

    @abstractmethod
    def close(self, *, failed: bool) -> None:
        """Ends the run."""


class Accelerated(Sink):
    """A tracker that uses one of Accelerate's trackers."""

    def __init__(self, tracker: Any, start: Start | None = None) -> None:
        """Starts Accelerate's tracker. If `start` is given, its config is stored as flat values."""
        from accelerate.state import PartialState

        PartialState()  # Accelerate's trackers need it; outside a training it is created here
        if hasattr(tracker, "start"):  # older versions of Accelerate start it in the constructor
            tracker.start()
        self.tracker = tracker
        if start is not None:
            config = flat(start.config)
            for name, value in list(config.items()):
                if value is None:
                    del config[name]
                elif not isinstance(value, bool | int | float | str):
                    config[name] = str(value)  # not every tracker accepts lists
            tracker.store_init_configuration(config)

    def log(self, step: int, figures: Figures) -> None:
        """Logs figures at an optimizer step."""
        self.tracker.log(dict(figures), step=step)

    def close(self, *, failed: bool) -> None:
        """Ends the run."""
        self.tracker.finish()


@contextlib.contextmanager
def starting(title: str, otherwise: str = "choose --tracker none") -> Iterator[None]:
    """Turns any error of a starting tracker into a PersonaError of one line."""
    try:
        yield
    except Exception as error:  # trackers raise their own errors
        raise PersonaError(
            f"cannot start the {title} run ({type(error).__name__}): {otherwise}"
        ) from None

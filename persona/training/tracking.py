"""Metrics of a run: a JSONL file always, and Accelerate's trackers where wanted. Main process only.

1. a record goes to `metrics.jsonl`, where a resumed run takes out what lies beyond its checkpoint
2. each tracker of `persona/training/trackers/` that the config names gets the same figures

Nothing but figures and the config leaves: no face, no embedding, no name, no path.
"""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from persona.config import tracker_names
from persona.errors import PersonaError
from persona.files import placed, write_atomically
from persona.models.public import public
from persona.registry import TRACKERS
from persona.training.trackers.base import Sink, Start

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger(__name__)

METRICS = "metrics.jsonl"


class Tracker:
    """Writes one JSON line a record, and gives the same to the trackers."""

    def __init__(
        self,
        folder: Path,
        *,
        run_id: str,
        config: dict[str, Any],
        trackers: str,
        step: int,
    ) -> None:
        """Opens the run's metrics; records beyond `step`, left by a killed run, are taken out.

        Args:
            folder: the run's.
            run_id: its ID.
            config: plain values; paths in it are cut to their last part before they leave.
            trackers: names of `TRACKERS` with commas between, or `none`.
            step: optimizer steps done before.

        Raises:
            PersonaError: a tracker cannot be opened.
        """
        self._path = path = folder / METRICS
        kept = [line for line in _lines(path) if json.loads(line)["step"] <= step]
        write_atomically(path, "".join(line + "\n" for line in kept).encode())
        start = Start(folder, run_id, public(config), step)
        self._sinks: dict[str, Sink] = {}
        try:
            for name in tracker_names(trackers):
                self._sinks[name] = TRACKERS.find(name).open(start)
        except BaseException:
            self._close(failed=True)
            raise
        self._file = path.open("a", encoding="utf-8")

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            with placed(self._path):
                self._file.close()
        except OSError:
            if kind is None:
                raise
            # What ended the run tells why: a full disk, on which what is left cannot be written.
        finally:
            self._close(failed=kind is not None)

    def log(self, step: int, **figures: float | int) -> None:
        """Records figures at an optimizer step."""
        with placed(self._path):
            self._file.write(json.dumps({"step": step, **figures}) + "\n")
            self._file.flush()
        self._each(lambda sink: sink.log(step, figures))

    def log_curve(
        self, step: int, name: str, columns: list[str], rows: list[list[float]], image: Image
    ) -> None:
        """Gives the trackers a curve as a table and as an image; figures alone, never of a face."""
        self._each(lambda sink: sink.log_curve(step, name, columns, rows, image))

    def _each(self, give: Callable[[Sink], None]) -> None:
        """Gives something to all trackers; one that fails costs its figures, not the training."""
        for name, sink in list(self._sinks.items()):
            try:
                give(sink)
            except Exception as error:  # each has its own, its service's and its network's errors
                del self._sinks[name]
                log.warning(
                    "warning: tracker %s failed (%s) and gets no more figures of this run; all are "
                    "in %s",
                    *(name, type(error).__name__, METRICS),
                )

    def _close(self, *, failed: bool) -> None:
        self._each(lambda sink: sink.close(failed=failed))


def _lines(path: Path) -> list[str]:
    """Whole lines of a metrics file: a killed run can leave half of one."""
    if not path.is_file():
        return []
    return [line[:-1] for line in path.read_text().splitlines(keepends=True) if line[-1] == "\n"]


def check_trackers(trackers: str) -> None:
    """Raises PersonaError, on all processes and before anything is trained, for a lacking package.

    Args:
        trackers: names of `TRACKERS` with commas between, or `none`.
    """
    for name in tracker_names(trackers):
        tracker = TRACKERS.find(name)
        if tracker.modules and not any(map(_is_installed, tracker.modules)):
            others = [other for other in tracker_names(trackers) if other != name]
            raise PersonaError(
                f"{tracker.package} is not installed: install it or choose --tracker "
                f"{','.join(others) or 'none'}"
            )


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ValueError:  # it was put out of reach, as by `sys.modules[name] = None`
        return False

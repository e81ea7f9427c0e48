"""Metrics of a run: always in a JSONL file, and in the trackers that the config names.

1. Each record is written to `metrics.jsonl`. A resumed run first removes the records that are newer
   than its checkpoint.
2. Each tracker of `persona/training/trackers/` that the config names gets the same figures.

Only the main process writes. Trackers get only figures and the config: no face, no embedding, no
name, no path.
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
    """Writes each record as one JSON line and passes it to the trackers."""

    def __init__(
        self,
        folder: Path,
        *,
        run_id: str,
        config: dict[str, Any],
        trackers: str,
        step: int,
    ) -> None:
        """Opens the run's metrics and removes the records after `step`, left by a killed run.

        Args:
            folder: folder of the run.
            run_id: ID of the run.
            config: plain values. Trackers get only the last part of each path in it.
            trackers: names of `TRACKERS`, separated by commas, or `none`.
            step: number of optimizer steps done before.

        Raises:
            PersonaError: a tracker cannot be opened.
        """
        self._path = path = folder / METRICS
        kept = [line for line in _lines(path) if _is_up_to(line, step)]
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
            # The error that ended the run, such as a full disk, says more than this one.
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
        """Passes a curve to the trackers, as a table and as an image. It never shows a face."""
        self._each(lambda sink: sink.log_curve(step, name, columns, rows, image))

    def _each(self, give: Callable[[Sink], None]) -> None:
        """Calls `give` with each tracker. One that fails is dropped, and the training continues."""
        for name, sink in list(self._sinks.items()):
            try:
                give(sink)
            except Exception as error:  # trackers raise their own errors
                del self._sinks[name]
                log.warning(
                    "warning: tracker %s failed (%s) and gets no more figures of this run; all are "
                    "in %s",
                    *(name, type(error).__name__, METRICS),
                )

    def _close(self, *, failed: bool) -> None:
        self._each(lambda sink: sink.close(failed=failed))


def _lines(path: Path) -> list[str]:
    """The whole lines of a metrics file. A killed run can leave an incomplete last line."""
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8", errors="replace")
    return [line[:-1] for line in text.splitlines(keepends=True) if line[-1] == "\n"]


def _is_up_to(line: str, step: int) -> bool:
    """Whether a line is a record of this step or an earlier one. A damaged line is none."""
    try:
        return bool(json.loads(line)["step"] <= step)
    except (ValueError, TypeError, KeyError, RecursionError):
        return False


def check_trackers(trackers: str) -> None:
    """Checks that the packages of the trackers are installed.

    It runs on all processes, before the training starts.

    Args:
        trackers: names of `TRACKERS`, separated by commas, or `none`.

    Raises:
        PersonaError: a package is missing.
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
    except ValueError:  # its import is blocked, as by `sys.modules[name] = None`
        return False

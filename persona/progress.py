"""A progress bar with rate and time left. It is shown on terminals only, and always on stderr."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Protocol


class Advance(Protocol):
    """Reports finished units to a progress bar."""

    def __call__(self, count: int, /, *, earlier: bool = False) -> None:
        """Reports `count` units. With `earlier` they are an earlier run's and not in the rate."""


def _silent(_count: int, *, earlier: bool = False) -> None:
    """Replaces the progress bar if it is not shown."""


@contextlib.contextmanager
def progress_bar(
    title: str, *, total: int, unit: str, done: int = 0, enabled: bool = True
) -> Iterator[Advance]:
    """Yields `advance(n)`. The `done` units of an earlier run are not part of the rate.

    The rate is the number of units over the whole time. Units come in lots, as from worker
    processes, so a rate over the last few units would be that of lots that come together.
    """
    if not enabled or not sys.stderr.isatty():
        yield _silent
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
    )
    from rich.text import Text

    def rate(task: Task) -> float:
        """Units per second. 0 if it is not known yet."""
        ended = task.finished_time if task.total else None  # without a total it never ends
        seconds = task.elapsed if ended is None else ended
        return (task.completed - task.fields["earlier"]) / seconds if seconds else 0.0

    class RateColumn(ProgressColumn):
        """Shows units per second."""

        def render(self, task: Task) -> Text:
            speed = rate(task)
            return Text(f"{speed:,.1f} {unit}/s" if speed else f"– {unit}/s")

    class TimeLeftColumn(ProgressColumn):
        """Shows the remaining time at the rate so far, as h:mm:ss."""

        max_refresh = 0.5

        def render(self, task: Task) -> Text:
            speed = rate(task)
            if task.remaining is None or not speed:
                return Text("-:--:--")
            minutes, seconds = divmod(round(max(0.0, task.remaining) / speed), 60)
            hours, minutes = divmod(minutes, 60)
            return Text(f"{hours}:{minutes:02d}:{seconds:02d}")

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        RateColumn(),
        TimeLeftColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task_id = bar.add_task(title, total=total, completed=done, earlier=done)

        def advance(count: int, *, earlier: bool = False) -> None:
            if earlier:
                before = bar.tasks[0].fields["earlier"]
                bar.update(task_id, earlier=before + count)
            bar.advance(task_id, count)

        yield advance

"""A progress bar with rate and time left: on a terminal only, always on stderr."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Protocol


class Advance(Protocol):
    """Tells a bar of units that are done."""

    def __call__(self, count: int, /, *, earlier: bool = False) -> None:
        """`earlier`: an earlier run had done them, so they do not count as speed."""


def _silent(_count: int, *, earlier: bool = False) -> None:
    """What stands in for a bar where nobody watches."""


@contextlib.contextmanager
def progress_bar(
    title: str, *, total: int, unit: str, done: int = 0, enabled: bool = True
) -> Iterator[Advance]:
    """Yields `advance(n)`; `done`, which an earlier run had finished, does not count as speed.

    The rate is what was done over the time that it took: units come in lots, as from worker
    processes, and a rate over the last few of them would be that of lots that come together.
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
        """Units a second; 0: not known yet."""
        ended = task.finished_time if task.total else None  # without a total it never ends
        seconds = task.elapsed if ended is None else ended
        return (task.completed - task.fields["earlier"]) / seconds if seconds else 0.0

    class RateColumn(ProgressColumn):
        """Units a second."""

        def render(self, task: Task) -> Text:
            speed = rate(task)
            return Text(f"{speed:,.1f} {unit}/s" if speed else f"– {unit}/s")

    class TimeLeftColumn(ProgressColumn):
        """Hours, minutes and seconds, at the rate so far."""

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

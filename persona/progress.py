"""A progress bar with rate and time left: on a terminal only, always on stderr."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator


def _silent(_advance: int) -> None:
    """What stands in for a bar where nobody watches."""


@contextlib.contextmanager
def progress_bar(
    title: str, *, total: int, unit: str, done: int = 0, enabled: bool = True
) -> Iterator[Callable[[int], None]]:
    """Yields `advance(n)`; `done`, which an earlier run had finished, does not count as speed."""
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
        TimeRemainingColumn,
    )
    from rich.text import Text

    class RateColumn(ProgressColumn):
        """Units a second, over rich's own sliding window."""

        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text(f"{speed:,.1f} {unit}/s" if speed else f"– {unit}/s")

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        RateColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task_id = bar.add_task(title, total=total, completed=done)
        yield lambda count: bar.advance(task_id, count)

"""Handling of Ctrl-C and SIGTERM, from before the first import to the last line of a command.

This module imports very little, because it must be ready first.
"""

from __future__ import annotations

import _thread
import os
import signal
import sys
import time
from types import FrameType
from typing import NoReturn

EXIT_SIGNAL = 128
"""Exit code of a command that a signal ended, before the signal's number is added."""
INTERRUPTED = "interrupted: run the same command again to go on"

received: int | None = None
"""Number of the signal that asked this command to end."""


def end_at_once() -> None:
    """Makes signals end the process at once with one line.

    This is for imports, while no file is open. An interrupted import may swallow KeyboardInterrupt
    or raise another error instead.
    """
    for number in _signals():
        signal.signal(number, _end)


def raise_interrupts() -> None:
    """Makes signals raise KeyboardInterrupt, and keeps their number in `received`.

    Python only prints an exception from a finaliser. There it is raised again afterwards.
    """
    for number in _signals():
        signal.signal(number, _raise)
    sys.unraisablehook = _unraisable


def drop() -> None:
    """Makes signals have no effect: the command is ending, and is about to print why."""
    for number in _signals():
        signal.signal(number, lambda *_: None)


def end_silently() -> None:
    """Makes signals end the process at once without a further line."""
    for number in _signals():
        signal.signal(number, _end_silently)


def _signals() -> list[signal.Signals]:
    # SIGTERM keeps its default in a launched process: it comes because another process failed,
    # and that one has printed why.
    meant = [signal.SIGINT] if "RANK" in os.environ else [signal.SIGINT, signal.SIGTERM]
    # A signal is ignored if the command was started in the background, where Ctrl-C is not for it.
    return [number for number in meant if signal.getsignal(number) != signal.SIG_IGN]


def _end(number: int, _frame: FrameType | None) -> NoReturn:
    if int(os.environ.get("RANK", "0")) == 0:  # one process of a run prints it
        os.write(2, f"error: {INTERRUPTED}\n".encode())
    os._exit(EXIT_SIGNAL + number)


def _end_silently(number: int, _frame: FrameType | None) -> NoReturn:
    os._exit(EXIT_SIGNAL + number)


def _raise(number: int, _frame: FrameType | None) -> NoReturn:
    global received  # noqa: PLW0603 - a handler has nothing else to write to
    received = number
    raise KeyboardInterrupt


def _again(number: int) -> None:
    time.sleep(0.01)
    os.kill(os.getpid(), number)


def _unraisable(what: sys.UnraisableHookArgs) -> None:
    if issubclass(what.exc_type, KeyboardInterrupt):
        # Raised later and from a thread, because here it would be lost again.
        _thread.start_new_thread(_again, (received or signal.SIGINT,))
    else:
        sys.__unraisablehook__(what)

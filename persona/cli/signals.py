"""Ctrl-C and SIGTERM, from before the first import to the last line. Imports next to nothing."""

from __future__ import annotations

import _thread
import os
import signal
import sys
import time
from types import FrameType
from typing import NoReturn

EXIT_SIGNAL = 128
"""To which a shell adds the number of the signal that ended a command."""
INTERRUPTED = "interrupted: run the same command again to go on"

received: int | None = None
"""The signal that asked this command to end."""


def end_at_once() -> None:
    """From here on a signal ends the process with one line: for imports, where nothing is open.

    An import that is interrupted may swallow KeyboardInterrupt or make another error of it.
    """
    for number in _signals():
        signal.signal(number, _end)


def raise_interrupts() -> None:
    """From here on a signal raises KeyboardInterrupt and is noted in `received`.

    Python prints and forgets what is raised in a finaliser: there it is raised again after it.
    """
    for number in _signals():
        signal.signal(number, _raise)
    sys.unraisablehook = _unraisable


def drop() -> None:
    """From here on a signal is too late: the command ends already, and is about to say why."""
    for number in _signals():
        signal.signal(number, lambda *_: None)


def end_silently() -> None:
    """From here on a signal ends the process at once, and says no more than was said already."""
    for number in _signals():
        signal.signal(number, _end_silently)


def _signals() -> list[signal.Signals]:
    # A launched process is terminated because another one failed, which has said why.
    meant = [signal.SIGINT] if "RANK" in os.environ else [signal.SIGINT, signal.SIGTERM]
    # Ignored: it was started in the background, where Ctrl-C is another's.
    return [number for number in meant if signal.getsignal(number) != signal.SIG_IGN]


def _end(number: int, _frame: FrameType | None) -> NoReturn:
    if int(os.environ.get("RANK", "0")) == 0:  # one voice is enough
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
        # From a thread, and later: here it would be lost again.
        _thread.start_new_thread(_again, (received or signal.SIGINT,))
    else:
        sys.__unraisablehook__(what)

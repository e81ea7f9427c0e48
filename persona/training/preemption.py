"""Ending a run early on SIGTERM or SIGUSR1, which a cluster sends before it takes a machine away.

A signal only sets a mark in the process that receives it, so it damages nothing, whatever is being
computed or written. After each optimizer step the processes compare their marks. If one is set, all
of them end after the same step, with a checkpoint.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections import deque
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

import torch
import torch.distributed
from accelerate import Accelerator
from torch import Tensor

from persona.training.devices import finite_lag

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


@contextlib.contextmanager
def signals_put_back() -> Iterator[None]:
    """Context at whose end a program has its own handlers of the signals again.

    It is for a program that goes on after a run. After a run that was told to end, the signals
    would have no effect in it.
    """
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                if handler is not None:  # None: it was not set by Python, which cannot restore it
                    signal.signal(number, handler)


class Preemption:
    """Within a `with` block, receives the signals that ask a run to end."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.received: int | None = None
        """Number of the signal that this process has received."""
        self._before: dict[int, Any] = {}
        self._marks: deque[Tensor] = deque()

    def __enter__(self) -> Preemption:
        """Receives the signals. Only Python's main thread can; in another one nothing changes."""
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                # A shell's `trap ''` ignores a signal for all processes that it starts.
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # A launcher forwards a signal that the process has perhaps received already. This second
        # one must not change the exit code of a process that is ending. `signals_put_back` is for
        # a process that goes on.
        if self.received is None:
            for number, handler in self._before.items():
                signal.signal(number, handler)

    def agreed(self) -> bool:
        """Whether a process has received a signal. All processes ask after each optimizer step.

        The answer is the same on all of them. On GPUs it is that of a few steps ago, because
        the newest one is computed behind the train step, and waiting for it would stop the device.
        """
        if self.accelerator.num_processes == 1:
            return self.received is not None
        # `full` is computed on the device; a tensor of a Python value would be copied to it, and
        # the copy waits for all work before it.
        mark = torch.full((1,), float(self.received is not None), device=self.accelerator.device)
        torch.distributed.all_reduce(mark, torch.distributed.ReduceOp.MAX)
        self._marks.append(mark)
        if len(self._marks) <= finite_lag(self.accelerator):
            return False
        return bool(self._marks.popleft().item())

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        self.received = number

"""Metrics of the train steps, and the check for losses and weights that are not finite."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from persona.errors import PersonaError
from persona.files import write_json

T = TypeVar("T")

NOT_FINITE = "not_finite.json"
REMEDY = "a lower --lr, -o optim.clip_norm=1, or bf16 in place of fp16"


class NotFiniteError(PersonaError):
    """The loss of a training is not finite, or the weights are not."""


class Meter:
    """Averages metrics until they are read. Only reading waits for the device."""

    def __init__(self, num_processes: int, device: torch.device) -> None:
        self.num_processes = num_processes
        self.device = device
        self.restart()

    def restart(self) -> None:
        """Discards everything counted so far and restarts the clock."""
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self.images = 0
        self.waited_s = 0.0
        self.since_s = time.perf_counter()

    def waiting_for(self, batches: Iterable[T]) -> Iterator[T]:
        """Yields batches and measures the time spent waiting for them."""
        iterator = iter(batches)
        while True:
            before_s = time.perf_counter()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self.waited_s += time.perf_counter() - before_s
            yield batch

    def add(self, images: int, total: Tensor, terms: dict[str, Tensor]) -> None:
        """Counts one batch of this process: its number of images, its loss and its terms."""
        self.images += images
        for name, value in {"loss": total, **terms}.items():
            self.sums[name] = self.sums.get(name, torch.zeros_like(value)) + value
            self.counts[name] = self.counts.get(name, 0) + 1

    def read(self) -> dict[str, float]:
        """Returns the metrics since the last reading and restarts; empty without a batch.

        They are `loss`, `loss/<term>`, `gradient_norm`, `images_per_s` of all processes,
        `data_wait` (share of the time in [0, 1]) and, on a GPU, `gpu_memory_gb` (peak of the
        allocated memory in 10^9 bytes).
        """
        if not self.images:
            return {}
        means = {name: float(value) / self.counts[name] for name, value in self.sums.items()}
        figures = {
            name if name in {"loss", "gradient_norm"} else f"loss/{name}": value
            for name, value in means.items()
        }
        took_s = time.perf_counter() - self.since_s
        figures["images_per_s"] = self.images * self.num_processes / took_s
        figures["data_wait"] = self.waited_s / took_s
        if self.device.type == "cuda":
            figures["gpu_memory_gb"] = torch.cuda.max_memory_allocated(self.device) / 1e9
        self.restart()
        return figures


class FiniteWatch:
    """Stops a run whose loss or weights are not finite, without waiting for each step."""

    def __init__(
        self, folder: Path, lag: int, spell: Callable[[int], int | str] = lambda key: key
    ) -> None:
        """Checks each loss `lag` train steps later, when a GPU has computed it.

        The keys of a batch whose loss is not finite are written into `folder`, each as `spell`
        gives it.
        """
        self.spell = spell
        self.folder = folder
        self.lag = lag
        self._waiting: deque[tuple[Tensor, Tensor, int]] = deque()
        self._last: int | None = None

    def add(self, total: Tensor, keys: Tensor, step: int) -> None:
        """Queues a loss and the keys of its batch, and checks the losses that are due.

        Raises:
            NotFiniteError: an earlier loss, or without lag this loss, is not finite.
        """
        self._last = step
        self._waiting.append((total.detach(), keys, step))
        while len(self._waiting) > self.lag:
            self._look()

    def flush(self) -> None:
        """Checks all queued losses.

        Raises:
            NotFiniteError: one of them is not finite.
        """
        while self._waiting:
            self._look()

    def check(self, network: nn.Module) -> None:
        """Checks all queued losses and the weights. Call it before either of them is kept.

        No loss shows yet that the last step made the weights infinite or NaN.

        Raises:
            NotFiniteError: a loss or a weight is not finite.
        """
        self.flush()
        if not all(bool(weight.isfinite().all()) for weight in network.parameters()):
            raise NotFiniteError(
                f"the weights are not finite after step {self._last}: start a new run with {REMEDY}"
            )

    def _look(self) -> None:
        total, keys, step = self._waiting.popleft()
        value = float(total)
        if not math.isfinite(value):
            path = self.folder / NOT_FINITE
            write_json(
                path,
                {
                    "step": step,
                    "loss": repr(value),
                    "keys": [self.spell(key) for key in keys.tolist()],
                },
            )
            raise NotFiniteError(
                f"the loss is {value} at step {step}: the keys of its batch are in {path}; start "
                f"a new run with {REMEDY}"
            )

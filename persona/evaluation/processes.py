"""The processes that evaluate together: those of Accelerate, or a single one without torch."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from persona.extras import needing
from persona.models.embedder import Embedder

if TYPE_CHECKING:
    from persona.models.output import FaceNetwork


class Processes(Protocol):
    """The part of Accelerate's `Accelerator` that evaluation uses."""

    @property
    def process_index(self) -> int:
        """Rank of this process, from 0."""

    @property
    def num_processes(self) -> int:
        """Number of processes."""

    @property
    def is_main_process(self) -> bool:
        """Whether this is the process that logs and writes files."""

    def wait_for_everyone(self) -> None:
        """Returns when all processes have called it."""

    def end_training(self) -> None:
        """Closes the process group."""


class Alone:
    """A single process, without Accelerate."""

    process_index, num_processes = 0, 1
    is_main_process = True

    def wait_for_everyone(self) -> None:
        """Returns at once."""

    def end_training(self) -> None:
        """Does nothing, as there is no process group."""


def join_processes(*networks: FaceNetwork | Embedder) -> Any:
    """The processes for these networks.

    They are Accelerate's if a launcher started several processes or a network needs torch, and
    `Alone` otherwise.

    Raises:
        PersonaError: Accelerate is needed and not installed.
    """
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started == 1 and all(isinstance(network, Embedder) for network in networks):
        return Alone()
    with needing("several processes, or a network in torch,"):
        from accelerate import Accelerator

    return Accelerator()


def gather_arrays(rows: npt.NDArray[Any], processes: Processes) -> npt.NDArray[Any]:
    """Rows of all processes in the order of their rank. Processes may have different row counts."""
    if processes.num_processes == 1:
        return rows
    import torch

    from persona.evaluation.embed_torch import gather_rows

    gathered = gather_rows(torch.from_numpy(rows), processes)
    return np.asarray(gathered.numpy())

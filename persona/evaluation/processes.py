"""The processes that evaluate together: Accelerate's, or this one alone. No torch here."""

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
    """What evaluation asks of Accelerate's `Accelerator`."""

    @property
    def process_index(self) -> int:
        """The number of this process."""

    @property
    def num_processes(self) -> int:
        """How many there are."""

    @property
    def is_main_process(self) -> bool:
        """Whether this is the one that speaks and writes."""

    def wait_for_everyone(self) -> None:
        """Returns when all are here."""

    def end_training(self) -> None:
        """Ends what holds the processes together."""


class Alone:
    """One process, without Accelerate."""

    process_index, num_processes = 0, 1
    is_main_process = True

    def wait_for_everyone(self) -> None:
        """Nobody is waited for."""

    def end_training(self) -> None:
        """There is nothing to end."""


def join_processes(*networks: FaceNetwork | Embedder) -> Any:
    """Accelerate's processes and device, where a launcher started several or a network needs torch.

    Raises:
        PersonaError: that is so and Accelerate is not installed.
    """
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started == 1 and all(isinstance(network, Embedder) for network in networks):
        return Alone()
    with needing("several processes, or a network in torch,"):
        from accelerate import Accelerator

    return Accelerator()


def gather_arrays(rows: npt.NDArray[Any], processes: Processes) -> npt.NDArray[Any]:
    """Every process's rows, strung together by rank; their numbers may differ."""
    if processes.num_processes == 1:
        return rows
    import torch

    from persona.evaluation.embed_torch import gather_rows

    gathered = gather_rows(torch.from_numpy(rows), processes)
    return np.asarray(gathered.numpy())

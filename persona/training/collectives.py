"""Communication between processes. With one process nothing is sent.

Shapes: B batch, W processes.
"""

from __future__ import annotations

import torch
import torch.distributed
from torch import Tensor


def gather_batch(rows_B: Tensor) -> Tensor:
    """Gathers the rows of all processes in order of rank, (W * B, …), without gradients.

    B must be the same on all processes.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return rows_B
    everybody = [torch.empty_like(rows_B) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(everybody, rows_B.contiguous())
    return torch.cat(everybody)

"""The reference optimizer and schedule."""

from __future__ import annotations

from torch import nn
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LRScheduler, MultiStepLR

from persona.config import OptimConfig

DECAY = 0.1
MILESTONES = (1 / 4, 1 / 2, 3 / 4)
"""Shares of the run after which the rate is divided by 10: the reference recipe."""


def build_optimizer(student: nn.Module, config: OptimConfig) -> Optimizer:
    """Adam over the student's parameters."""
    return Adam(student.parameters(), lr=config.lr)


def build_scheduler(optimizer: Optimizer, config: OptimConfig, total_steps: int) -> LRScheduler:
    """Stepped once an optimizer step; `constant` never changes the rate."""
    milestones = (
        sorted({max(1, round(share * total_steps)) for share in MILESTONES})
        if config.schedule == "multistep"
        else []
    )
    return MultiStepLR(optimizer, milestones, gamma=DECAY)

"""Optimizer, learning rate schedule and EMA of the weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.optim.swa_utils import AveragedModel

from persona.config import OptimConfig
from persona.training.muon import Muon, is_matrix

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.SyncBatchNorm
DECAY = 0.1
MILESTONES = (1 / 4, 1 / 2, 3 / 4)
"""Shares of the run after which the reference recipe multiplies the learning rate by `DECAY`."""


def build_optimizer(student: nn.Module, config: OptimConfig) -> Optimizer:
    """Builds the optimizer of all trainable parameters. Norms and biases have no weight decay.

    The optimizer is fused: it updates all parameters in one pass, which takes a third of the time
    on the CPU (docs/measurements.md).
    """
    trained = [parameter for parameter in student.parameters() if parameter.requires_grad]
    weights, others = [p for p in trained if p.ndim > 1], [p for p in trained if p.ndim <= 1]
    groups: list[dict[str, Any]] = [
        {"params": weights, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    if config.optimizer == "muon":
        matrices = [p for p in weights if is_matrix(p)]
        groups[0]["params"] = [p for p in weights if not is_matrix(p)]
        groups.append({"params": matrices, "weight_decay": config.weight_decay})
        for group in groups:
            group["matrices"] = group["params"] is matrices
        return Muon(groups, lr=config.lr)
    if config.optimizer == "sgd":
        return SGD(groups, lr=config.lr, momentum=config.momentum, fused=True)
    kind: type[Adam] = {"adam": Adam, "adamw": AdamW}[config.optimizer]
    return kind(groups, lr=config.lr, fused=True)


def build_scheduler(
    optimizer: Optimizer, config: OptimConfig, total_steps: int, steps_per_epoch: int
) -> LRScheduler:
    """Builds the learning rate schedule. It is stepped once per optimizer step."""
    warmup = round(config.warmup_epochs * steps_per_epoch)
    return LambdaLR(optimizer, rate_of(config.schedule, total_steps, warmup))


def rate_of(schedule: str, total_steps: int, warmup_steps: int = 0) -> Callable[[int], float]:
    """Returns a function from the optimizer step to the share of the full learning rate.

    In the warm-up the rate rises linearly from 0. After it:

    - `multistep`: the rate is divided by 10 at each milestone
    - `cosine`: half a cosine wave from the end of the warm-up to 0 at the last step (Loshchilov and
      Hutter 2017, equation 5, without restarts)
    - `constant`: the full rate
    """
    # In a very short run a milestone could round to step 0, so that no step had the full rate.
    milestones = sorted({max(1, round(share * total_steps)) for share in MILESTONES})

    def rate(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        if schedule == "multistep":
            return DECAY ** sum(step >= milestone for milestone in milestones)
        if schedule == "cosine":
            share = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
            return 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))
        return 1.0

    return rate


def unused_norms(network: nn.Module) -> list[BatchNorm]:
    """The batch norm layers whose running statistics are those of no batch: mean 0, variance 1."""
    return [
        module
        for module in network.modules()
        if isinstance(module, BatchNorm)
        and module.running_mean is not None
        and module.running_var is not None
        and not bool(module.running_mean.any())
        and bool((module.running_var == 1).all())
    ]


def start_norms(norms: Sequence[BatchNorm]) -> None:
    """Makes the running statistics of batch norm layers those of the one batch they have seen.

    They hold `1 - momentum` of mean 0 and variance 1 otherwise, which dominate for the first dozens
    of batches: a student of few steps gives every face nearly the same embedding. The momentum
    itself stays, because a compiled network would be compiled anew with another.

    Args:
        norms: layers that were unused before that batch, see `unused_norms`.
    """
    with torch.no_grad():
        for norm in norms:
            momentum = norm.momentum
            if momentum and norm.running_mean is not None and norm.running_var is not None:
                norm.running_mean.div_(momentum)
                norm.running_var.sub_(1 - momentum).div_(momentum).clamp_(min=0)


def build_ema(student: nn.Module, decay: float) -> AveragedModel:
    """Builds the EMA of weights and batch norm statistics, updated after each optimizer step.

    At step n the decay is `(1 + n) / (10 + n)` where that is below `decay`, so that in short runs
    the first weights do not dominate. Tarvainen and Valpola 2017 also ramp up the decay.
    """

    def lean(means: Any, values: Any, count: Tensor | int) -> None:
        number = int(count)
        weight = 1 - min(decay, (1 + number) / (10 + number))
        for mean, value in zip(means, values, strict=True):
            if mean.is_floating_point():
                mean.lerp_(value, weight)
            else:
                mean.copy_(value)

    with torch.no_grad():
        return AveragedModel(student, multi_avg_fn=lean, use_buffers=True)

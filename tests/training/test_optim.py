from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from persona.config import OptimConfig
from persona.training.optim import (
    build_ema,
    build_optimizer,
    build_scheduler,
    rate_of,
    start_norms,
    unused_norms,
)


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))


def test_weight_decay_spares_norms_and_biases() -> None:
    body = network()
    for name in ("adam", "adamw", "sgd"):
        optimizer = build_optimizer(body, OptimConfig(optimizer=name, weight_decay=0.1))
        decayed, spared = optimizer.param_groups
        assert [tuple(p.shape) for p in decayed["params"]] == [(4, 3)]
        assert len(spared["params"]) == 3 and spared["weight_decay"] == 0
        assert decayed["weight_decay"] == 0.1
        assert type(optimizer).__name__.lower() == name


def test_parameters_that_are_not_trained_are_left_out() -> None:
    body = network()
    body[0].weight.requires_grad_(False)  # type: ignore[index]
    groups = build_optimizer(body, OptimConfig()).param_groups
    assert [len(group["params"]) for group in groups] == [0, 3]


def rates(config: OptimConfig, steps: int, steps_per_epoch: int = 10) -> list[float]:
    optimizer = build_optimizer(network(), config)
    scheduler = build_scheduler(optimizer, config, steps, steps_per_epoch)
    found = []
    for _ in range(steps):
        found.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step()
    return found


def test_multistep_is_the_reference() -> None:
    found = rates(OptimConfig(lr=1.0), 40)
    expected = [1.0] * 10 + [0.1] * 10 + [0.01] * 10 + [0.001] * 10
    assert found == pytest.approx(expected)


def test_cosine_with_warm_up() -> None:
    found = rates(OptimConfig(lr=2.0, schedule="cosine", warmup_epochs=0.5), 45)
    assert found[:5] == pytest.approx([2 * n / 6 for n in range(1, 6)])
    for step in range(5, 45):
        assert found[step] == pytest.approx(1 + math.cos(math.pi * (step - 5) / 40))
    assert rate_of("cosine", 45, 5)(45) == pytest.approx(0, abs=1e-12)


def test_constant_and_runs_of_one_step() -> None:
    assert set(rates(OptimConfig(lr=0.5, schedule="constant"), 7)) == {0.5}
    for schedule in ("multistep", "cosine", "constant"):
        assert rates(OptimConfig(lr=0.5, schedule=schedule), 1) == [0.5]


def test_the_running_mean_agrees_with_its_formula() -> None:
    """Also of batch norm's statistics, ramping up; its counter is copied."""
    body = network()
    ema = build_ema(body, decay=0.9)
    wanted: dict[str, Any] = {}
    for number in range(120):
        body(torch.randn(8, 3))
        with torch.no_grad():
            for parameter in body.parameters():
                parameter.add_(0.01 * torch.randn_like(parameter))
        ema.update_parameters(body)
        decay = min(0.9, (1 + number) / (10 + number))
        for name, value in body.state_dict().items():
            fresh = value.double().clone()
            if number == 0 or not value.is_floating_point():
                wanted[name] = fresh
            else:
                wanted[name] = decay * wanted[name] + (1 - decay) * fresh
    for name, value in ema.module.state_dict().items():
        torch.testing.assert_close(value.double(), wanted[name], rtol=1e-4, atol=1e-5)


def test_running_statistics_start_as_those_of_the_first_batch() -> None:
    """Without it the first dozens of batches leave nearly a mean of 0 and a variance of 1."""
    body = torch.nn.Sequential(network(), torch.nn.BatchNorm1d(4))
    used = body[1]
    used.running_mean.fill_(3)  # type: ignore[operator]
    unused = unused_norms(body)
    assert unused == [body[0][1]]  # type: ignore[index]
    (norm,) = unused
    seen: list[torch.Tensor] = []
    norm.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].detach()))
    body(torch.randn(8, 3) * 5 + 2).sum().backward()
    before = used.running_mean.clone()  # type: ignore[operator]
    start_norms(unused)
    assert torch.allclose(norm.running_mean, seen[0].mean(0), atol=1e-5)  # type: ignore[arg-type]
    assert torch.allclose(norm.running_var, seen[0].var(0), rtol=1e-4)  # type: ignore[arg-type]
    assert norm.momentum == 0.1 and torch.equal(used.running_mean, before)  # type: ignore[arg-type]
    assert unused_norms(body) == []


def test_a_layer_that_saw_no_batch_keeps_its_statistics() -> None:
    norm = torch.nn.BatchNorm1d(2)
    start_norms([norm])
    assert norm.running_mean is not None and norm.running_var is not None
    assert not norm.running_mean.any() and torch.allclose(norm.running_var, torch.ones(2))

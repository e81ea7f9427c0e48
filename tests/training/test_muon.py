from __future__ import annotations

import copy

import torch
from torch import nn
from torch.optim import AdamW

from persona.config import OptimConfig
from persona.training.muon import COEFFICIENTS, ITERATIONS, Muon, is_matrix, orthogonalise
from persona.training.optim import build_optimizer

CONFIG = OptimConfig(optimizer="muon", lr=0.01, weight_decay=0.1)


class Little(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, bias=False)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.wide = nn.Conv2d(8, 16, 1, bias=False)
        self.linear = nn.Linear(16, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.wide(self.norm(self.depthwise(self.stem(images))))
        found: torch.Tensor = self.linear(maps.mean(dim=(2, 3)))
        return found


def little() -> Little:
    torch.manual_seed(0)
    return Little()


def train(network: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for step in range(steps):
        torch.manual_seed(step)
        optimizer.zero_grad()
        network(torch.randn(4, 3, 8, 8)).square().sum().backward()
        optimizer.step()


def test_kernels_but_depthwise_ones_are_matrices() -> None:
    names = {name for name, value in little().named_parameters() if is_matrix(value)}
    assert names == {"stem.weight", "wide.weight", "linear.weight"}


def test_a_step_has_singular_values_near_one() -> None:
    torch.manual_seed(0)
    for shape in ((8, 8), (4, 30), (30, 4)):
        values = torch.linalg.svdvals(orthogonalise(torch.randn(shape)))
        assert values.min() > 0.4 and values.max() < 1.3


def test_it_gives_what_iterating_on_the_matrix_gives() -> None:
    """Also where most singular values are tiny, as those of gradients are."""
    torch.manual_seed(0)
    a, b, c = COEFFICIENTS
    for rows, columns in ((8, 8), (16, 200), (200, 16), (1, 9)):
        matrix = torch.randn(rows, columns) * torch.logspace(0, -4, columns)
        expected = matrix.double() if rows <= columns else matrix.double().T
        expected = expected / expected.norm()
        for _ in range(ITERATIONS):
            gram = expected @ expected.T
            expected = a * expected + (b * gram + c * gram @ gram) @ expected
        expected = expected if rows <= columns else expected.T
        assert (orthogonalise(matrix) - expected).norm() < 1e-3 * expected.norm()


def test_matrices_move_as_by_torch() -> None:
    """torch's Muon iterates in bfloat16, so the digits differ from the third on."""
    ours, theirs = little(), little()
    inputs = torch.randn(32, 16)
    optimizer = build_optimizer(ours.linear, CONFIG)
    reference = torch.optim.Muon(
        [theirs.linear.weight], lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"
    )
    before = ours.linear.weight.detach().clone()
    for _ in range(3):
        for layer, one in ((ours.linear, optimizer), (theirs.linear, reference)):
            layer.zero_grad()
            torch.nn.functional.linear(inputs, layer.weight).square().sum().backward()  # type: ignore[no-untyped-call]
            one.step()
    moved, expected = ours.linear.weight - before, theirs.linear.weight - before
    assert (moved - expected).norm() < 0.02 * expected.norm()


def test_all_others_move_as_by_adamw() -> None:
    ours, theirs = little(), little()
    others = [name for name, value in ours.named_parameters() if not is_matrix(value)]
    optimizer = build_optimizer(ours, CONFIG)
    named = dict(theirs.named_parameters())
    for name, value in named.items():
        value.requires_grad_(name in others)
    reference = AdamW(
        [
            {"params": [named["depthwise.weight"]], "weight_decay": 0.1},
            {"params": [v for v in named.values() if v.ndim == 1], "weight_decay": 0.0},
        ],
        lr=0.01,
    )
    train(ours, optimizer, 1)
    train(theirs, reference, 1)
    for name in others:
        torch.testing.assert_close(dict(ours.named_parameters())[name], named[name])


def test_restored_it_goes_on_as_if_never_stopped() -> None:
    whole, first = little(), little()
    train(whole, build_optimizer(whole, CONFIG), 4)
    optimizer = build_optimizer(first, CONFIG)
    train(first, optimizer, 2)
    second = copy.deepcopy(first)
    restored = build_optimizer(second, CONFIG)
    assert isinstance(restored, Muon)
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for step in (2, 3):
        torch.manual_seed(step)
        restored.zero_grad()
        second(torch.randn(4, 3, 8, 8)).square().sum().backward()
        restored.step()
    for one, other in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


def test_an_infinite_gradient_in_half_precision_is_no_step() -> None:
    network = little()
    optimizer = build_optimizer(network, CONFIG)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    before = copy.deepcopy(network.state_dict())
    scaler.scale(network(torch.randn(4, 3, 8, 8)).sum()).backward()
    assert network.linear.weight.grad is not None
    network.linear.weight.grad[0, 0] = float("inf")
    scaler.step(optimizer)
    for name, value in network.named_parameters():
        assert torch.equal(value, before[name])

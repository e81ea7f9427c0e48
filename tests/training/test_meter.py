from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch

from persona.errors import PersonaError
from persona.training.meter import NOT_FINITE, FiniteWatch, Meter

CPU = torch.device("cpu")


def test_means_rates_and_waiting() -> None:
    meter = Meter(num_processes=2, device=CPU)

    def slow() -> list[int]:
        time.sleep(0.05)
        return [1]

    assert meter.read() == {}
    for _ in meter.waiting_for(n for _ in range(2) for n in slow()):
        meter.add(4, torch.tensor(2.0), {"arcface": torch.tensor(3.0)})
    meter.add(
        4, torch.tensor(5.0), {"arcface": torch.tensor(3.0), "gradient_norm": torch.tensor(7)}
    )
    figures = meter.read()
    assert (figures["loss"], figures["loss/arcface"], figures["gradient_norm"]) == (3.0, 3.0, 7.0)
    assert 0 < figures["images_per_s"] < 2 * 12 / 0.1
    assert 0.5 < figures["data_wait"] <= 1
    assert meter.read() == {}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run_with_its_keys(
    tmp_path: Path, value: float
) -> None:
    watch = FiniteWatch(tmp_path, lag=0)
    watch.add(torch.tensor(1.0), torch.tensor([1, 2]), 6)
    with pytest.raises(PersonaError, match=r"the loss is .* at step 7: the keys .* lower --lr"):
        watch.add(torch.tensor(value), torch.tensor([3, 5]), 7)
    noted = json.loads((tmp_path / NOT_FINITE).read_text())
    assert (noted["step"], noted["keys"]) == (7, [3, 5])


def test_with_a_lag_it_is_seen_later_and_at_the_latest_before_a_checkpoint(tmp_path: Path) -> None:
    watch = FiniteWatch(tmp_path, lag=3)
    watch.add(torch.tensor(float("nan")), torch.tensor([9]), 1)
    for step in (2, 3):
        watch.add(torch.tensor(1.0), torch.tensor([step]), step)
    with pytest.raises(PersonaError, match="at step 1"):
        watch.flush()

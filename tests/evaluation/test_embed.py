"""A set through a network, several batches at once."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from pair import Pair
from torch import Tensor

from persona.config import StudentConfig
from persona.data.pack import Packed
from persona.evaluation.embed import embed_set
from persona.models.student import Student


@pytest.fixture
def four_threads() -> Iterator[None]:
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(1)


class Watched(Student):
    """It remembers which threads it ran on, and with how many of torch's."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(StudentConfig(), 6)
        self.seen: set[tuple[str, int]] = set()
        self.broken_batch = -1
        self._lock = threading.Lock()
        self._calls = 0

    def __deepcopy__(self, memo: object) -> Watched:
        other = Watched()
        other.load_state_dict(self.state_dict())
        other.seen, other.broken_batch = self.seen, self.broken_batch
        return other.eval()

    def features(self, images_BCHW: Tensor, landmarks_B62: Tensor | None = None) -> Tensor:
        with self._lock:
            self._calls += 1
            call = self._calls
        if call == self.broken_batch:
            raise ValueError("a broken batch")
        self.seen.add((threading.current_thread().name[:4], torch.get_num_threads()))
        return super().features(images_BCHW, landmarks_B62)


def embed(network: Student, lfw_set: Packed) -> np.ndarray:
    accelerator = Accelerator(cpu=True)
    found = embed_set(network, lfw_set.faces, accelerator, batch_size=2, top=3, quiet=True)
    return np.concatenate([found.embeddings[:, 0], found.predicted[:, 0]], axis=1)


def test_lanes_give_the_bits_of_one_thread(lfw_set: Packed, four_threads: None) -> None:
    network = Watched()
    lanes = embed(network, lfw_set)
    assert network.seen == {("lane", 1)}
    assert torch.get_num_threads() == 4
    started: list[int] = []
    later = threading.Thread(target=lambda: started.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert started == [4]
    torch.set_num_threads(1)
    network.seen.clear()
    np.testing.assert_array_equal(embed(network, lfw_set), lanes)
    assert network.seen == {("Main", 1)}


def test_what_fails_in_a_lane_ends_the_run(lfw_set: Packed, four_threads: None) -> None:
    network = Watched()
    network.broken_batch = 5
    with pytest.raises(ValueError, match="a broken batch"):
        embed(network, lfw_set)
    assert torch.get_num_threads() == 4


def test_training_goes_on_as_before(lfw_set: Packed) -> None:
    network = Watched().train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    embed(network, lfw_set)
    assert network.training and network.backbone.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


GATHER = """
import json, sys
import torch
from accelerate import Accelerator
from persona.evaluation.embed_torch import gather_rows

accelerator = Accelerator(cpu=True)
rank = accelerator.process_index
found = []
for counts in json.loads(sys.argv[2]):
    rows = 10 * rank + torch.arange(counts[rank])[:, None].repeat(1, 2)
    found.append(gather_rows(rows, accelerator))
if accelerator.is_main_process:
    with open(sys.argv[1], "w") as file:
        json.dump([[list(rows.shape), rows[:, 0].tolist()] for rows in found], file)
accelerator.wait_for_everyone()
accelerator.end_training()
"""


def test_rows_of_two_processes_with_any_number_each(tmp_path: Path, pair: Pair) -> None:
    """`persona learn` without held-out photos gathers no rows of any process."""
    (tmp_path / "gather.py").write_text(GATHER)
    counts = json.dumps([(2, 1), (0, 3), (0, 0)])
    pair.script(tmp_path / "gather.py", str(tmp_path / "out.json"), counts, home=tmp_path)
    assert json.loads((tmp_path / "out.json").read_text()) == [
        [[3, 2], [0, 1, 10]],
        [[3, 2], [10, 11, 12]],
        [[0, 2], []],
    ]

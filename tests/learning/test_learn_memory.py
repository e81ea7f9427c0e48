"""What is kept under a budget."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from persona.errors import PersonaError
from persona.learning import memory as memory_module
from persona.learning.memory import (
    Budget,
    Exemplar,
    Memory,
    herd,
    herding,
    priority_of,
    reservoir,
)


def exemplar(number: int, label: int = 0, size: int = 10, seed: int = 0) -> Exemplar:
    jpeg = number.to_bytes(4, "little") + bytes(size - 4)
    return Exemplar(priority_of(jpeg, seed), label, jpeg)


def test_a_reservoir_keeps_each_photo_with_the_same_probability() -> None:
    counts = np.zeros(20)
    for seed in range(2000):
        memory = Memory(Budget(5), reservoir)
        for start in range(0, 20, 4):  # in pieces, each of which passes twice
            piece = [exemplar(number, seed=seed) for number in range(start, start + 4)]
            memory.add(piece + piece)
            memory.add(piece)
        assert len(memory) == 5
        for kept in memory.exemplars:
            counts[int.from_bytes(kept.jpeg[:4], "little")] += 1
    # Binomial: 2000 trials of 1/4 have a deviation of 19.4.
    assert np.abs(counts - 500).max() < 4 * 19.4


def test_a_reservoir_does_not_depend_on_the_order() -> None:
    photos = [exemplar(number) for number in range(12)]
    forth, back = Memory(Budget(4), reservoir), Memory(Budget(4), reservoir)
    forth.add(photos)
    for photo in reversed(photos):
        back.add([photo])
    assert forth.exemplars == back.exemplars


def test_bytes_are_a_budget_too_and_logits_count() -> None:
    memory = Memory(Budget(100, bytes=35), reservoir)
    memory.add([exemplar(number) for number in range(9)])
    assert (len(memory), memory.bytes) == (3, 30)
    logits = torch.zeros(3)  # 12 bytes
    memory.exemplars = []
    memory.add([Exemplar(n, 0, exemplar(n).jpeg, logits) for n in range(9)])
    assert (len(memory), memory.bytes) == (1, 22)


def test_one_photo_that_is_too_large_does_not_empty_a_memory() -> None:
    small = [exemplar(number) for number in range(4)]
    memory = Memory(Budget(100, bytes=35), reservoir)
    memory.add(small)
    kept = list(memory.exemplars)
    memory.add([Exemplar(0, 0, bytes(36))])  # the lowest priority there is
    assert memory.exemplars == kept and len(kept) == 3


def test_what_passes_in_pieces_stays_as_if_it_came_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    photos = [exemplar(number, number % 3, 8 + number) for number in range(40)]
    ranks = [Exemplar(n // 3, n % 3, photos[n].jpeg) for n in range(40)]
    for choose, passing in ((reservoir, photos), (herding, ranks)):
        whole, pieces = (Memory(Budget(7, bytes=150), choose) for _ in range(2))
        whole.add(passing)
        monkeypatch.setattr(memory_module, "PIECE", 4)
        pieces.add(iter(passing))
        monkeypatch.undo()
        assert pieces.exemplars == whole.exemplars
        assert whole.exemplars


def test_a_photo_that_comes_again_under_another_seed_is_kept_once() -> None:
    memory = Memory(Budget(9), reservoir)
    memory.add([exemplar(1), exemplar(2)])
    memory.add([exemplar(1, seed=1), exemplar(3, seed=1)])
    assert sorted(e.jpeg[0] for e in memory.exemplars) == [1, 2, 3]


def test_a_memory_that_holds_no_photo_says_so() -> None:
    memory = Memory(Budget(100, bytes=9), reservoir)
    with pytest.raises(PersonaError, match="a memory of 9 bytes holds no photo: the smallest"):
        memory.add([exemplar(1)])
    for budget in (Budget.of(0, None), Budget.of(9, 0.0)):
        with pytest.raises(PersonaError, match="method replay keeps photos, and the memory budget"):
            budget.check("replay")
    Budget.of(1, 0.5).check("replay")
    assert Budget.of(1, 0.5).bytes == 500_000


def test_herding_is_algorithm_4() -> None:
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.nn.functional.normalize(
        torch.randn(7, 4, generator=generator, dtype=torch.float64), dim=1
    )
    mean = embeddings.mean(dim=0)
    chosen: list[int] = []
    for k in range(1, 5):  # word by word
        distance = {
            x: float((mean - (embeddings[x] + embeddings[chosen].sum(dim=0)) / k).norm())
            for x in range(7)
            if x not in chosen
        }
        chosen.append(min(distance, key=lambda x: distance[x]))
    assert herd(embeddings, 4) == chosen
    assert sorted(herd(embeddings, 99)) == list(range(7))
    # Its mean is nearer than that of most choices.
    error = (embeddings[chosen].mean(dim=0) - mean).norm()
    others = [
        (embeddings[list(c)].mean(dim=0) - mean).norm() for c in itertools.combinations(range(7), 4)
    ]
    assert sum(bool(other < error) for other in others) < len(others) / 4


def test_herding_keeps_the_first_ranks_of_everybody() -> None:
    photos = [Exemplar(r, label, bytes([r]) * 10) for label in range(3) for r in range(4)]
    memory = Memory(Budget(8), herding)
    memory.add(photos)
    kept = sorted((e.label, e.priority) for e in memory.exemplars)
    assert kept == [(label, rank) for label in range(3) for rank in range(2)]
    memory.add([Exemplar(rank, 3, bytes([rank]) * 10) for rank in range(4)])
    assert len(memory) == 8
    tight = Memory(Budget(8, bytes=35), herding)
    tight.add(photos)
    assert len(tight) == 3
    with pytest.raises(PersonaError, match="does not hold one photo of each of 3 identities"):
        Memory(Budget(2), herding).add(photos)


def test_a_memory_outlives_its_process() -> None:
    memory = Memory(Budget(5), reservoir)
    memory.add(
        Exemplar(n, n % 3, bytes([n]) * (n + 1), torch.full((n,), 1.0) if n else None)
        for n in range(4)
    )
    again = Memory(Budget(5), reservoir)
    again.load(memory.state())
    for a, b in zip(memory.exemplars, again.exemplars, strict=True):
        assert (a.priority, a.label, a.jpeg) == (b.priority, b.label, b.jpeg)
        assert (a.logits is None) == (b.logits is None)
    smaller = Memory(Budget(2), reservoir)  # of a run with another budget
    smaller.load(memory.state())
    assert [e.jpeg for e in smaller.exemplars] == [e.jpeg for e in memory.exemplars[:2]]
    empty = Memory(Budget(5), reservoir)
    empty.load(Memory(Budget(5), reservoir).state())
    assert empty.exemplars == []


def test_a_draw_goes_through_all_before_it_repeats() -> None:
    memory = Memory(Budget(9), reservoir)
    assert memory.draw(4, 0) == []
    memory.add(exemplar(number) for number in range(5))
    drawn = memory.draw(12, 3, 1)
    assert {e.jpeg for e in drawn[:5]} == {e.jpeg for e in memory.exemplars}
    assert len(drawn) == 12
    assert drawn == memory.draw(12, 3, 1) != memory.draw(12, 3, 2)

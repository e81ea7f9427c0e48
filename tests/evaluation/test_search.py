"""Identification against brute force, and in blocks."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from persona.errors import PersonaError
from persona.evaluation.search import accepted, cmc, pool, search, tpir_at_fpir


def unit(rows: np.ndarray) -> np.ndarray:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


@pytest.fixture
def faces():
    """120 probes of 30 people, of whom 20 are in the gallery."""
    rng = np.random.default_rng(0)
    centre = rng.normal(size=(30, 8))
    person = np.repeat(np.arange(30), 4)
    probes = unit(centre[person] + rng.normal(size=(120, 8)))
    gallery = unit(centre[:20] + rng.normal(size=(20, 8)) * 0.5)
    return probes, gallery, np.where(person < 20, person, -1)


@pytest.mark.parametrize("block", [1, 70, 10**6])
def test_ranks_cmc_and_tpir_agree_with_brute_force(faces, block: int) -> None:
    probes, gallery, mate = faces
    answer = search(probes, gallery, mate, block)
    ranks, best, hits = [], [], []
    for probe, right in zip(probes, mate, strict=True):
        order = sorted(range(20), key=lambda place: -float(probe @ gallery[place]))
        best.append(float(probe @ gallery[order[0]]))
        ranks.append(order.index(right) + 1 if right >= 0 else 0)
        hits.append(right >= 0 and order[0] == right)
    np.testing.assert_array_equal(answer.rank, ranks)
    np.testing.assert_allclose(answer.best, best, rtol=1e-5)
    mated = np.array(ranks)[mate >= 0]
    for rank, share in enumerate(cmc(answer.rank[mate >= 0], 5), start=1):
        assert share == np.mean([r <= rank for r in mated])
    for fpir in (0.05, 0.2, 0.5):
        # The lowest threshold, of all that matter, with few enough strangers above it.
        strangers = np.array(best)[mate < 0]
        levels = [-2.0, *sorted(best)]
        threshold = next(t for t in levels if np.mean(strangers > t) <= fpir)
        expected = np.mean(
            [h and s > threshold for h, s, m in zip(hits, best, mate, strict=True) if m >= 0]
        )
        assert tpir_at_fpir(answer.best, answer.rank, fpir) == pytest.approx(expected)


def test_an_fpir_that_few_strangers_cannot_resolve_is_none(faces) -> None:
    answer = search(*faces)
    assert tpir_at_fpir(answer.best, answer.rank, 1e-2) is None
    assert accepted(answer.best[:80], answer.rank[:80], 0.5) is None


def test_equal_scores_count_against_the_right_one() -> None:
    same = unit(np.ones((3, 4)))
    assert search(same[:1], same, np.array([0])).rank[0] == 3


def test_pooling_is_the_mean_of_unit_length() -> None:
    rows = unit(np.random.default_rng(0).normal(size=(5, 4)))
    pooled = pool(rows, np.array([0, 0, 1, 1, 1]), 3)
    expected = rows[:2].mean(axis=0)
    np.testing.assert_allclose(pooled[0], expected / np.linalg.norm(expected), rtol=1e-6)
    assert (pooled[2] == 0).all()
    with pytest.raises(PersonaError, match="holds nobody"):
        search(rows, rows[:0], np.zeros(5, np.int64))


BIG = """
import resource, numpy as np
from persona.evaluation.{module}
rng = np.random.default_rng(0)
{work}
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1000)
"""
SEARCH = (
    "search import search",
    "e = rng.normal(size=(100_000, 128)).astype(np.float32)\n"
    "e /= np.linalg.norm(e, axis=1, keepdims=True)\n"
    "assert (search(e, e, np.arange(100_000)).rank == 1).mean() > 0.99",
)
PAIRS = (
    "pairs import score_pairs",
    "from types import SimpleNamespace\n"
    "from persona.data.shards import PairTable\n"
    "from persona.evaluation.embed import Embedded\n"
    "e = rng.normal(size=(20_000, 1, 512)).astype(np.float32)\n"
    "label = (np.arange(20_000) // 4)[:, None]\n"
    "faces = Embedded(np.arange(20_000), e, label, np.empty((20_000, 1, 0), np.int64))\n"
    "a, b = rng.integers(20_000, size=(2, 10_000_000))\n"
    "fold = np.arange(10_000_000) // 1_000_000\n"
    "pairs = PairTable(fold, label[a, 0] == label[b, 0], a, b)\n"
    "scores = score_pairs(faces, SimpleNamespace(name='big', no_face=()), pairs)\n"
    "assert scores.figures((1e-3,), scores.decide()).pairs == 10_000_000",
)


@pytest.mark.heavy
@pytest.mark.parametrize(("module", "work"), [SEARCH, PAIRS])
def test_ten_million_pairs_and_a_large_similarity_stay_below_2_gb(module: str, work: str) -> None:
    code = BIG.format(module=module, work=work)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 2000

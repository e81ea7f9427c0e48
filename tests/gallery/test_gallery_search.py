from __future__ import annotations

import builtins
import logging
from typing import Any

import numpy as np
import pytest
from fake_eyes import near, vectors

from persona.extras import install_command
from persona.gallery.search import TemplateIndex
from persona.gallery.store import Templates, unit

EXACT, INDEXED = 10**9, 100


def brute(
    names: list[str], templates: Templates, probe: Templates, match: str, without: str | None
) -> tuple[str, float]:
    """The definition, person by person."""
    best = {}
    for name in set(names) - {without}:
        own = templates[[n == name for n in names]]
        rows = unit(own.mean(axis=0, keepdims=True)) if match == "mean" else own
        best[name] = float((rows @ probe).max())
    winner = max(best, key=lambda name: best[name])
    return winner, best[winner]


@pytest.mark.parametrize("exact", [EXACT, INDEXED])
@pytest.mark.parametrize("match", ["mean", "max"])
def test_agrees_with_the_definition_as_it_grows(match: str, exact: int) -> None:
    rng = np.random.default_rng(0)
    centres = vectors(200, width=32)
    index = TemplateIndex(32, match, exact)
    names: list[str] = []
    parts: list[Templates] = []
    for round_ in range(3):  # people of earlier rounds get more photos
        owners = rng.integers(0, 80 * (round_ + 1) // 2, 300)
        new = unit(centres[owners] + 0.1 * rng.normal(size=(300, 32)))
        index.add([f"P{n}" for n in owners], new)
        names += [f"P{n}" for n in owners]
        parts.append(new)
        every = np.concatenate(parts)
        probes = every[rng.integers(0, len(every), 4)]
        for without in (None, "P3"):
            found = index.nearest(probes, without=without)
            for probe, answer in zip(probes, found, strict=True):
                name, score = brute(names, every, probe, match, without)
                assert answer is not None
                assert answer[0] == name
                assert answer[1] == pytest.approx(score, abs=1e-5)
    assert len(index) == (len(set(names)) if match == "mean" else len(names))


def test_an_index_knows_who_came_since() -> None:
    templates = vectors(1000, width=32)
    index = TemplateIndex(32, "max", exact=INDEXED)
    index.add([f"P{n}" for n in range(1000)], templates)
    index.nearest(templates[:1])
    built = index._faiss
    newcomer = vectors(1, seed=9, width=32)
    index.add(["New"], newcomer)
    ((name, score),) = [answer or ("", 0.0) for answer in index.nearest(newcomer)]
    assert name == "New"
    assert score == pytest.approx(1, abs=1e-6)
    assert index._faiss is built
    index.add([f"Q{n}" for n in range(60)], vectors(60, seed=10, width=32))
    index.nearest(newcomer)
    assert index._faiss is not built


def test_nobody_is_there() -> None:
    index = TemplateIndex(8, "mean")
    assert index.nearest(vectors(2)) == [None, None]
    index.add(["Ann"], vectors(1))
    assert index.nearest(vectors(1), without="Ann") == [None]


def test_without_faiss_all_are_compared(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = builtins.__import__

    def lacking(name: str, *rest: Any) -> Any:
        if name == "faiss":
            raise ImportError
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", lacking)
    index = TemplateIndex(8, "max", exact=10)
    templates = vectors(20)
    index.add([str(n) for n in range(20)], templates)
    with caplog.at_level(logging.WARNING):
        found = index.nearest(templates[:3])
        index.nearest(templates[:3])
    assert [answer and answer[0] for answer in found] == ["0", "1", "2"]
    assert [record.getMessage() for record in caplog.records] == [
        f"20 templates are compared one by one; for an index: {install_command('faiss')}"
    ]


def test_near_is_what_it_says() -> None:
    (a,) = vectors(1)
    assert float(a @ near(a, 0.3)) == pytest.approx(0.3, abs=1e-6)

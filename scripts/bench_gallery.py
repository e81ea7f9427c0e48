#!/usr/bin/env python
"""What looking a face up costs: all templates compared, FAISS proposing, and enrolling.

    ./scripts/bench_gallery.py [--quick] [--json] [--postgres URL]

Templates are drawn: people in random directions, photos at a similarity of 0.5 to 0.8 to their
person, as MobileFaceNet's are on LFW (median 0.68). Half of the probes are further photos of people
who are there, half are strangers. An answer is a name, or unknown below a threshold of 0.5; it is
right if it is that of comparing all.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from bench import facts, told

from persona.data.align.spec import AlignSpec
from persona.gallery.search import TemplateIndex
from persona.gallery.store import Facts, Store, StoredPhoto, Templates, open_store, unit

PHOTOS = 5
PROBES = 200
THRESHOLD = 0.5


def photos_of(people: Templates, count: int, rng: np.random.Generator) -> Templates:
    """(people * count, E) photos, each person's together."""
    centres = np.repeat(people, count, axis=0)
    noise = unit(rng.normal(size=centres.shape).astype(np.float32))
    cosine = np.sqrt(rng.uniform(0.5, 0.8, (len(centres), 1)))
    return unit(cosine * centres + np.sqrt(1 - cosine**2) * noise)


def milliseconds(call: Callable[[int], Any], count: int) -> dict[str, float]:
    """Measures the time of `call(n)`, after a warm-up."""
    call(0)
    times = []
    for number in range(count):
        start = time.perf_counter()
        call(number)
        times.append(1000 * (time.perf_counter() - start))
    return {"median_ms": float(np.median(times)), "p95_ms": float(np.quantile(times, 0.95))}


def look(index: TemplateIndex, probes: Templates, number: int) -> None:
    """One probe, as one face of a photo is looked up."""
    index.nearest(probes[number][None])


def search(rows: int, width: int, match: str) -> list[dict[str, Any]]:
    """A probe against so many templates: all compared, and where FAISS proposes."""
    rng = np.random.default_rng(0)
    people = unit(rng.normal(size=(rows // PHOTOS, width)).astype(np.float32))
    templates = photos_of(people, PHOTOS, rng)
    known = people[rng.integers(0, len(people), PROBES // 2)]
    strangers = unit(rng.normal(size=(PROBES // 2, width)))
    probes = np.concatenate([photos_of(known, 1, rng), strangers])
    names = [f"P{n // PHOTOS}" for n in range(len(templates))]
    results: list[dict[str, Any]] = []
    truth: list[tuple[str, float] | None] = []
    for method, exact in (("all", 10**9), ("faiss", 0)):
        index = TemplateIndex(width, match, exact)
        start = time.perf_counter()
        index.add(names, templates)
        index.nearest(probes[:1])
        built_s = time.perf_counter() - start
        answers = index.nearest(probes)
        truth = truth or answers
        half = PROBES // 2
        said, due = (
            [one[0] if one is not None and one[1] >= THRESHOLD else None for one in some]
            for some in (answers, truth)
        )
        same = [a == b for a, b in zip(said, due, strict=True)]
        results.append(
            {
                "method": method,
                "match": match,
                "templates": len(templates),
                "rows": len(index),
                "numbers": width,
                **milliseconds(functools.partial(look, index, probes), PROBES),
                "built_s": built_s,
                "right_known": float(np.mean(same[:half])),
                "right_strangers": float(np.mean(same[half:])),
            }
        )
    return results


def store_costs(store: Store, people: int, width: int) -> dict[str, Any]:
    """Enrolling one by one, the first look, a look, and forgetting."""
    rng = np.random.default_rng(1)
    store.adopt(Facts("bench", "bench", width, AlignSpec()))
    templates = photos_of(unit(rng.normal(size=(people + 20, width))), PHOTOS, rng)
    kept = [
        [StoredPhoto(t) for t in templates[n * PHOTOS : (n + 1) * PHOTOS]]
        for n in range(people + 20)
    ]
    store.add({f"P{n}": kept[n] for n in range(people)}, "bench")
    leaving = itertools.count()
    start = time.perf_counter()
    store.nearest(templates[:1], "mean")
    first_s = time.perf_counter() - start
    return {
        "people": people,
        "photos": people * PHOTOS,
        "enrol": milliseconds(lambda n: store.add({f"N{n}": kept[people + n % 20]}, "bench"), 20),
        "first_look_s": first_s,
        "look": milliseconds(lambda n: store.nearest(templates[n][None], "mean"), 50),
        "forget": milliseconds(lambda _: store.forget(f"P{next(leaving)}"), 5),
    }


def main() -> None:
    """Prints a table, or one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer templates")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--postgres", metavar="URL", help="an empty database with pgvector")
    arguments = parser.parse_args()
    cases = [(20_000, 128, "max")]
    if not arguments.quick:
        cases = [
            (100_000, 128, "mean"),
            (100_000, 128, "max"),
            (100_000, 512, "max"),
            (1_000_000, 128, "max"),
        ]
    searched = [row for case in cases for row in search(*case)]
    people = 500 if arguments.quick else 20_000
    with (
        tempfile.TemporaryDirectory() as folder,
        open_store(Path(folder) / "g.db", create=True) as store,
    ):
        stores = {"sqlite": store_costs(store, people, 128)}
    if arguments.postgres:
        with open_store(arguments.postgres, create=True) as store:
            stores["postgresql"] = store_costs(store, people, 128)
    machine = facts("numpy")
    report = {
        "search": searched,
        "stores": stores,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1000,
        "machine": machine,
    }
    if arguments.json:
        print(json.dumps(report, indent=2))
        return
    print("| method | match | templates | rows | numbers | median ms | p95 ms | built s | right |")
    print("|---|---|--:|--:|--:|--:|--:|--:|--:|")
    for row in searched:
        print(
            f"| {row['method']} | {row['match']} | {row['templates']:,} | {row['rows']:,} "
            f"| {row['numbers']} | {row['median_ms']:.2f} | {row['p95_ms']:.2f} "
            f"| {row['built_s']:.1f} | {row['right_known']:.3f}, {row['right_strangers']:.3f} |"
        )
    for name, costs in stores.items():
        print(f"{name}: {json.dumps(costs)}")
    print(f"peak {report['peak_mb']} MB; {told(machine)}")


if __name__ == "__main__":
    main()

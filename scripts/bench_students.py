#!/usr/bin/env python
"""How near students are to their teacher, on more pairs than a list of pairs has.

    ./scripts/bench_students.py onnx:mobilefacenet.onnx persona-s ID-ema --set selection \\
        [--one-photo lfw] [--json]

The first model is the teacher. The first table compares all pairs of photos of `--set`, which is
steadier than a list of some thousand pairs: it is by this table that students are chosen. The
second one searches a gallery of one photo each of `--people` people of `--one-photo`, drawn by
`--seed`. Probes are their other photos, and one photo each of `--strangers` other people.

Shapes: N photos, E embedding, P pairs, M mated probes.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from bench import facts, told

import persona
from persona.data.sets import FaceSet
from persona.errors import PersonaError
from persona.evaluation.metrics import Ints, roc_auc, tar_at_far
from persona.evaluation.processes import join_processes
from persona.evaluation.search import FPIRS, Embeddings, accepted, rows_of_each, search
from persona.evaluation.statistics import Interval, bootstrap_interval, interval_text
from persona.evaluation.thresholds import faces_of
from persona.figure_names import power

FARS = (1e-2, 1e-3, 1e-4)


class Search(NamedTuple):
    """Photos of a set, by their places: who is enrolled, and who is looked up."""

    gallery: Ints
    mated: Ints
    """(M,) mated probes."""
    mates: Ints
    """(M,) place in the gallery of each mated probe's person."""
    strangers: Ints


def embed(names: list[str], faces: FaceSet) -> tuple[dict[str, Embeddings], Ints]:
    """(N, E) embeddings of the set's photos by each model, and the (N,) label of each photo."""
    found: dict[str, Embeddings] = {}
    for name in names:
        named = persona.load(name).named
        found[name], labels = faces_of(named, faces, join_processes(named.network))
    return found, labels


def all_pairs(embeddings: dict[str, Embeddings], labels_N: Ints) -> list[dict[str, Any]]:
    """A row for each model, with its figures over all pairs of photos."""
    a_P, b_P = np.triu_indices(len(labels_N), 1)
    same_P = labels_N[a_P] == labels_N[b_P]
    teacher_NE = next(iter(embeddings.values()))
    rows = []
    for name, vectors_NE in embeddings.items():
        scores_P = (vectors_NE @ vectors_NE.T)[a_P, b_P].astype(np.float64)
        comparable = vectors_NE is not teacher_NE and vectors_NE.shape == teacher_NE.shape
        rows.append(
            {
                "model": name,
                "distance": float(1 - (vectors_NE * teacher_NE).sum(1).mean())
                if comparable
                else None,
                "auc": roc_auc(scores_P, same_P),
                "tar_at_far": {f"{far:g}": tar_at_far(scores_P, same_P, far) for far in FARS},
            }
        )
    return rows


def draw_search(labels_N: Ints, people: int, strangers: int, seed: int) -> Search:
    """Draws who is enrolled, from the people with several photos, and who is a stranger.

    Raises:
        PersonaError: the set has too few people.
    """
    of_person = rows_of_each(labels_N)
    several = [label for label, rows in sorted(of_person.items()) if len(rows) > 1]
    if len(several) < people or len(of_person) < people + strangers:
        raise PersonaError(
            f"the set has {len(several):,} people with several photos, of {len(of_person):,}: "
            "choose smaller --people and --strangers"
        )
    rng = np.random.default_rng(seed)
    known = rng.permutation(several)[:people].tolist()
    others = rng.permutation(sorted(set(of_person) - set(known)))[:strangers].tolist()
    mated = [of_person[label][1:] for label in known]
    return Search(
        gallery=np.array([of_person[label][0] for label in known]),
        mated=np.concatenate(mated),
        mates=np.repeat(np.arange(people), [len(rows) for rows in mated]),
        strangers=np.array([of_person[label][0] for label in others]),
    )


def one_photo(
    embeddings: dict[str, Embeddings], drawn: Search, resamples: int
) -> list[dict[str, Any]]:
    """A row for each model, with its figures of the open search. People are resampled."""
    probes = np.concatenate([drawn.mated, drawn.strangers])
    mate_N = np.concatenate([drawn.mates, np.full(len(drawn.strangers), -1)])
    rows = []
    for name, vectors_NE in embeddings.items():
        found = search(vectors_NE[probes], vectors_NE[drawn.gallery], mate_N)
        hits = {"rank_1": found.rank[found.rank > 0] == 1}
        for fpir in FPIRS:
            named = accepted(found.best, found.rank, fpir)
            if named is not None:
                hits[f"tpir@{fpir:g}"] = named
        figures = {
            what: {
                "value": float(hit_M.mean()),
                "interval": bootstrap_interval(hit_M, drawn.mates, resamples=resamples),
            }
            for what, hit_M in hits.items()
        }
        rows.append({"model": name} | figures)
    return rows


def pairs_table(rows: list[dict[str, Any]]) -> str:
    """The first table as Markdown."""
    titles = ["1 - cosine to the teacher", "AUC", *(f"TAR@FAR={power(far)}" for far in FARS)]
    lines = [f"| model | {' | '.join(titles)} |", "|---|" + "--:|" * len(titles)]
    for row in rows:
        distance = row["distance"]
        tars = ["–" if tar is None else f"{tar:.3f}" for tar in row["tar_at_far"].values()]
        apart = "" if distance is None else f"{distance:.4f}"
        cells = [short(row["model"]), apart, f"{row['auc']:.4f}", *tars]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def search_table(rows: list[dict[str, Any]]) -> str:
    """The second table as Markdown."""
    titles = ["rank-1 (95 %)", *(f"TPIR@FPIR={power(fpir)} (95 %)" for fpir in FPIRS)]
    keys = ["rank_1", *(f"tpir@{fpir:g}" for fpir in FPIRS)]
    lines = [f"| model | {' | '.join(titles)} |", "|---|" + "--:|" * len(titles)]
    for row in rows:
        cells = [with_interval(**row[key]) if key in row else "–" for key in keys]
        lines.append(f"| {' | '.join([short(row['model']), *cells])} |")
    return "\n".join(lines)


def with_interval(value: float, interval: Interval | None) -> str:
    """A share, with its interval if that can be told."""
    told = interval_text(interval)
    return f"{value:.4f}" + (f" ({told})" if told else "")


def short(name: str) -> str:
    """The name of a model without the folder of its file."""
    return Path(name).name if ":" in name else name


def main(arguments: list[str] | None = None) -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="+", metavar="MODEL", help="the teacher, then students")
    parser.add_argument("--set", default="selection", help="packed set of people")
    parser.add_argument("--one-photo", metavar="SET", help="packed set to draw a gallery from")
    parser.add_argument("--people", type=int, default=200, help="people of the gallery")
    parser.add_argument("--strangers", type=int, default=1000, help="people who are not in it")
    parser.add_argument("--seed", type=int, default=0, help="another seed draws other people")
    parser.add_argument("--resamples", type=int, default=1000, help="resamples of the intervals")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    faces = persona.open_set(given.set)
    found: dict[str, Any] = {"machine": facts("onnxruntime"), "set": faces.name}
    found["all_pairs"] = all_pairs(*embed(given.models, faces))
    if given.one_photo:
        vectors, labels = embed(given.models, persona.open_set(given.one_photo))
        drawn = draw_search(labels, given.people, given.strangers, given.seed)
        found["one_photo"] = one_photo(vectors, drawn, given.resamples)
    if given.json:
        print(json.dumps(found, indent=2))
        return
    print(f"all pairs of {faces.name}\n", pairs_table(found["all_pairs"]), sep="\n")
    if given.one_photo:
        print(
            f"\n{given.people} people of {given.one_photo} enrolled from one photo each, "
            f"{len(drawn.mated)} probes and {given.strangers} strangers (seed {given.seed})\n",
            search_table(found["one_photo"]),
            sep="\n",
        )
    print("\n" + told(found["machine"]))


if __name__ == "__main__":
    try:
        main()
    except PersonaError as error:
        raise SystemExit(f"error: {error}") from None

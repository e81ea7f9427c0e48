#!/usr/bin/env python
"""Makes a model that is shipped with Persona from a model of the store: persona/zoo/.

    python scripts/zoo.py ID NAME --data TEXT --licence TEXT --set lfw --calibrate selection lfw

The rounded weights are measured on the set of `--set`, by its pairs. The thresholds are chosen on
all impostor pairs of the sets of `--calibrate` together; people of the same name are one person.
"""

from __future__ import annotations

import argparse

import numpy as np

from persona.data.sets import open_set
from persona.deploy.zoo import Shipped, round_student, write_shipped
from persona.errors import PersonaError
from persona.evaluation.metrics import Ints
from persona.evaluation.processes import join_processes
from persona.evaluation.protocols import evaluate
from persona.evaluation.search import Embeddings
from persona.evaluation.statistics import interval_text
from persona.evaluation.thresholds import faces_of, threshold_at, threshold_interval
from persona.figure_names import power
from persona.models.cards import ZOO, find_model
from persona.models.sources import NamedNetwork
from persona.models.store import load_model
from persona.workspace import Workspace

FARS = (1e-2, 1e-3, 1e-4)


def main(arguments: list[str] | None = None) -> None:
    """Measures the rounded student and writes it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("id", metavar="ID", help="model of the store")
    parser.add_argument("name", metavar="NAME", help="its name as a shipped model")
    parser.add_argument("--data", required=True, help="what it was trained on, in words")
    parser.add_argument("--licence", required=True, help="condition under which it may be used")
    parser.add_argument("--set", required=True, help="packed set with pairs to measure it on")
    parser.add_argument("--calibrate", nargs="+", required=True, help="packed sets of people")
    parser.add_argument("--by", help="annotation for figures by group")
    parser.add_argument("--resamples", type=int, default=1000, help="resamples of the intervals")
    given = parser.parse_args(arguments)
    place = Workspace.locate()
    card = find_model(given.id, place.models)
    network = round_student(load_model(card, place.models))
    trained = (card.train_set, (), card.image_size, card.weights_sha256, card.alignment)
    named = NamedNetwork(given.name, network, *trained)
    processes = join_processes(network)
    network.to(processes.device)
    evaluation = evaluate(
        *(named, open_set(given.set, place.shards), processes),
        measure="verification",
        options={"resamples": given.resamples, **({"by": given.by} if given.by else {})},
    )
    scores = evaluation.to_json()
    faces, labels = joined([faces_and_people(named, s, place) for s in given.calibrate])
    thresholds, told, pairs = {}, [], 0
    where = " and ".join(given.calibrate)
    for far in FARS:
        value, tar, pairs = threshold_at(faces, labels, far, where)
        interval = threshold_interval(faces, labels, far, given.resamples)
        thresholds[f"{far:g}"] = value
        scores["intervals"][f"threshold@{far:g}"] = interval
        told.append(
            f"FAR {power(far)}: threshold {value:.4f} ({interval_text(interval)}), TAR {tar:.4f}"
        )
    shipped = Shipped(
        *(given.name, given.data, given.licence, given.set, scores, evaluation.chosen_by),
        thresholds=thresholds,
        threshold_from=f"all {pairs:,} pairs of two people of {where}",
    )
    new = write_shipped(card, place.models, shipped)
    print(f"{ZOO / new.weights}: {new.bytes:,} bytes, {new.told_score}", *told, sep="\n")


def faces_and_people(
    named: NamedNetwork, set_name: str, place: Workspace
) -> tuple[Embeddings, list[str]]:
    """(N, E) embeddings of a set's faces, and the name of each person."""
    faces = open_set(set_name, place.shards)
    embeddings, labels = faces_of(named, faces, join_processes(named.network))
    return embeddings, [faces.identities[label] for label in labels.tolist()]


def joined(parts: list[tuple[Embeddings, list[str]]]) -> tuple[Embeddings, Ints]:
    """(N, E) embeddings of all sets, and the (N,) label of each."""
    people = [name for _, names in parts for name in names]
    return np.concatenate([faces for faces, _ in parts]), np.unique(people, return_inverse=True)[1]


if __name__ == "__main__":
    try:
        main()
    except PersonaError as error:
        raise SystemExit(f"error: {error}") from None

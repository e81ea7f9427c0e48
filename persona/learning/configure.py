"""Builds the configs of `persona learn` and its benchmark. This module does not import torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from persona.config import LearnConfig, load_learn_config, resume_config
from persona.errors import PersonaError
from persona.models.cards import find_model
from persona.registry import METHODS
from persona.workspace import Workspace


def build_learn_config(
    place: Workspace, given: Mapping[str, Any], base: Mapping[str, Any], resume: str | None = None
) -> LearnConfig:
    """Builds the config of a run.

    Args:
        place: the folders of models and runs.
        given: values by dotted name. Without `student` the best of the newest run is taken.
        base: values that `given` takes precedence over, as those of the launcher.
        resume: ID of a run to continue. Its own config is taken.

    Raises:
        PersonaError: `on` or `method` is missing, there is no such student or run, or a value is
            unknown or out of range.
    """
    if resume is not None:
        return resume_config(LearnConfig, place.runs, resume, given)
    for name in ("on", "method"):
        if name not in given:
            raise PersonaError(f"give --{name}: see persona learn --help")
    student = find_model(given.get("student"), place.models).id
    return load_learn_config({**given, "student": student}, base=base)


def build_benchmark_config(
    place: Workspace, given: Mapping[str, Any], base: Mapping[str, Any], methods: str = "all"
) -> tuple[LearnConfig, list[str], list[str]]:
    """Builds the config that the runs of a benchmark share.

    Args:
        place: the folders of models and runs.
        given: values by dotted name. Without `student` the best of the newest run is taken.
        base: values that `given` takes precedence over, as those of the launcher.
        methods: names of methods with commas between, or `all`. A name given twice counts once. Of
            `all`, method `anchor` is left out if there is no teacher.

    Returns:
        The config, the names of the methods, and notes for the user.

    Raises:
        PersonaError: `on` is missing, there is no such student or method, or a value is unknown or
            out of range.
    """
    if "on" not in given:
        raise PersonaError("give --on: see persona learn benchmark --help")
    card = find_model(given.get("student"), place.models)
    given_names = (name.strip() for name in methods.split(","))
    chosen = list(METHODS if methods == "all" else dict.fromkeys(given_names))
    for name in chosen:
        METHODS.find(name)
    notes = []
    if methods == "all" and card.teacher == "none" and given.get("teacher") is None:
        chosen.remove("anchor")
        notes.append(
            f"note: {card.id} had no teacher, so anchor is left out; --teacher gives it one"
        )
    config = load_learn_config({**given, "student": card.id, "method": chosen[0]}, base=base)
    return config, chosen, notes

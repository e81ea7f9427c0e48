"""Builds the report page from names of runs and models.

1. Each name is found: a run, its model, a model alone, or any network of persona/models/sources.py.
2. Each network is measured once on the set.
3. Figures, worst pairs and facts go into a `Page`.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
import yaml
from accelerate import Accelerator

from persona import __version__
from persona.data.sets import FaceSet
from persona.data.shards import Manifest
from persona.errors import unknown
from persona.evaluation.protocols import check_measure
from persona.evaluation.protocols.verification import Verification, VerificationFigures
from persona.models.cards import Card
from persona.models.public import public, public_card
from persona.models.sources import Source, known_names, known_source, load_network, spell
from persona.names import legible, public_name
from persona.registry import BACKBONES
from persona.report.faces import map_faces, mistakes
from persona.report.figures import (
    Figure,
    cost_figure,
    det_figure,
    group_figures,
    histogram_figure,
    map_figure,
    map_looks,
    roc_figure,
    training_figures,
)
from persona.report.history import CONFIG, History, read_history
from persona.report.looks import ModelLook, look, short_names
from persona.report.measure import (
    MAP_PEOPLE,
    MAP_PHOTOS,
    TIMED_FACES,
    TIMED_TURNS,
    Measured,
    embedding_map,
    measure,
    time_on_cpu,
)
from persona.report.page import Made, MapFaces, Page, Section, ShownModel
from persona.report.verdict import cards, headline, verdicts
from persona.workers import processor_name
from persona.workspace import Workspace


@dataclass(frozen=True)
class Entry:
    """A run, model or other network to report on."""

    name: str
    teacher: bool
    source: Source | None
    """Source of the network. None for a run that has saved no model yet."""
    card: Card | None
    """Card of the model, if it has one."""
    history: History | None
    """History of the run, if its folder is here."""
    look: ModelLook = field(default_factory=lambda: look(0, ""))
    """Its short name and how it is drawn."""

    @property
    def title(self) -> str:
        """Full name. For a file it is the file's name without its folder."""
        return self.name if self.source is None else self.source.title(self.name)

    @property
    def has_network(self) -> bool:
        """Whether there is a network. A run that has saved no model yet has none."""
        return self.source is not None


def find_entries(names: Sequence[str], teacher: str | None, place: Workspace) -> list[Entry]:
    """Finds what the names stand for, the teacher last. A name given twice counts once.

    Raises:
        PersonaError: a name is unknown, or files of a run or model are damaged.
    """
    teacher = None if teacher is None else spell(teacher)
    wanted = [name for name in dict.fromkeys(map(spell, names)) if name != teacher]
    entries = [_find(name, place) for name in wanted]
    if teacher is not None:
        found = _find(teacher, place)
        entries.append(replace(found, teacher=True))
    untrained = [entry.name for entry in entries if entry.card is None and entry.name in BACKBONES]
    short = short_names([entry.title for entry in entries], untrained)
    return [
        replace(entry, look=look(number, name))
        for number, (entry, name) in enumerate(zip(entries, short, strict=True))
    ]


def _find(name: str, place: Workspace) -> Entry:
    plain = Path(name).name == name
    source = known_source(name, place.models)
    card = None if source is None else source.card(name, place.models)
    run = place.runs / name
    history = None
    if plain and (run / CONFIG).is_file():
        history = read_history(run, has_model=card is not None)
    if source is None and history is None:
        names = known_names(place.models)
        names += [path.parent.name for path in place.runs.glob(f"*/{CONFIG}")]
        raise unknown("run or model", name, set(names))
    return Entry(name, False, source, card, history)


def build_page(
    entries: list[Entry],
    place: Workspace,
    faces: FaceSet,
    accelerator: Accelerator,
    *,
    names: bool = False,
    batch_size: int = 128,
    workers: int | None = None,
) -> Page:
    """Measures every network and builds the page.

    Args:
        entries: result of `find_entries`.
        place: folders of models and runs.
        faces: the packed set.
        accelerator: device and processes.
        names: whether people's names are shown.
        batch_size: samples in one forward pass.
        workers: loader processes. None chooses the number by the device.

    Raises:
        PersonaError: the set has no pairs, or does not fit a network.
    """
    manifest = faces.manifest
    measured = [entry for entry in entries if entry.has_network]
    networks = [load_network(entry.name, place.models) for entry in measured]
    for named in networks:
        check_measure("verification", named, manifest)
        named.network.to(memory_format=torch.channels_last)
    costs_ms = time_on_cpu([named.network for named in networks], faces)
    models = []
    for entry, named, cpu_ms in zip(measured, networks, costs_ms, strict=True):
        named.network.to(accelerator.device)
        models.append(
            measure(
                *(named, faces, accelerator),
                look=entry.look,
                teacher=entry.teacher,
                size=weights_bytes(entry, place, named.network.count_parameters()),
                cpu_ms=cpu_ms,
                batch_size=batch_size,
                workers=workers,
            )
        )
    people = _people(manifest, names)
    maps = [embedding_map(model.embedded) for model in models]
    figures = [
        figure
        for number, (model, places) in enumerate(zip(models, maps, strict=True))
        if (figure := map_figure(number, model.name, places, people))
    ]
    keys = {key for places in maps for key in places["key"]}
    sections = [*_sections(models, figures), _training(entries)]
    teachers = _teachers(measured)
    return Page(
        set=manifest.name,
        summary=_summary(models, manifest),
        headline=headline(models),
        facts=_facts(manifest),
        models=[ShownModel(entry.look, entry.title, _role(entry)) for entry in entries],
        measured=[model.look for model in models],
        verdicts=verdicts(models, manifest.name, teachers) if models else [],
        cards=cards(models) if models else [],
        plots=[section for section in sections if section.figures],
        faces=mistakes(models, faces, people if names else None),
        map_faces=map_faces(models, keys, faces, people) if keys else MapFaces(),
        map_legend=[own for own, _ in map_looks(maps[0], people)] if figures else [],
        made=[_made(entry, place) for entry in entries],
        notices=[*_collapses(models), *_notices(entries)],
        remarks=_remarks(models),
    )


def _role(entry: Entry) -> str:
    if entry.teacher:
        return "teacher"
    return "" if entry.has_network else "no model yet"


def _teachers(entries: list[Entry]) -> dict[str, str]:
    """Short name of the teacher of each student, where both are shown."""
    shown = {entry.name: entry.look.name for entry in entries}
    return {
        entry.look.name: shown[entry.card.teacher]
        for entry in entries
        if entry.card is not None and entry.card.teacher in shown
    }


def weights_bytes(entry: Entry, place: Workspace, parameters: int | None) -> int:
    """Size of a network's file in bytes. Without a file it is 4 bytes per parameter."""
    if entry.card is not None:
        return entry.card.bytes
    path = None if entry.source is None else entry.source.file(entry.name, place.models)
    return path.stat().st_size if path else 4 * (parameters or 0)


def _people(manifest: Manifest, names: bool) -> dict[int, str]:
    """Name of each label on the page: the person's name, or `person` and a number."""
    return {
        label: legible(name) if names else f"person {label + 1}"
        for label, name in enumerate(manifest.classes)
    }


def _summary(models: list[Measured], manifest: Manifest) -> str:
    photos = f"{manifest.samples:,} photos of {manifest.identities:,} people"
    if not models:
        return f"{photos}; nothing is measured yet."
    figures = models[0].figures
    return (
        f"{photos}; {figures.pairs:,} pairs, {figures.impostors:,} of them impostor, in "
        f"{len(figures.folds)} folds. The threshold of a fold is chosen on the others."
    )


def _remarks(models: list[Measured]) -> list[str]:
    if not models:
        return []
    first = models[0]
    remarks = [
        f"Intervals: bootstrap over {first.resampled}, 1,000 resamples. CPU time: the forward pass "
        f"in batches of {TIMED_FACES} on {torch.get_num_threads()} threads of {processor_name()}, "
        f"the least of {TIMED_TURNS}."
    ]
    if any(model.parameters is None for model in models):
        remarks.append(
            "Parameters of an ONNX file are counted where the package onnx is installed, those of "
            "a LiteRT file are not."
        )
    if any(None in model.intervals.values() for model in models):
        remarks.append(
            "Without brackets all resamples agree, as where there are no errors: no proof of none."
        )
    if None in first.figures.tar_at_far.values():
        remarks.append(
            f"{first.figures.impostors:,} impostor pairs cannot resolve the lowest false accept "
            "rates: these are marked, not guessed."
        )
    return remarks + _notes(models)


def _notes(models: list[Measured]) -> list[str]:
    """What `persona evaluate` notes about the pairs. A note on some of the models names them."""
    whose: dict[str, list[str]] = {}
    for model in models:
        figures = VerificationFigures(model.name, "", Verification.name, **model.facts)
        for note in figures.notes():
            whose.setdefault(note.removeprefix("note: "), []).append(model.name)
    return [
        f"{note[0].upper()}{note[1:]}."
        if len(names) == len(models)
        else f"{', '.join(names)}: {note}."
        for note, names in whose.items()
    ]


def _sections(models: list[Measured], maps: list[Figure]) -> list[Section]:
    if not models:
        return []
    return [
        Section("curves", "ROC and DET", [roc_figure(models), det_figure(models)]),
        Section("cost", "Accuracy and cost", [cost_figure(models)] if len(models) > 1 else []),
        Section(
            "scores",
            "Score distributions",
            [histogram_figure(number, model) for number, model in enumerate(models)],
        ),
        Section("groups", "By group", group_figures(models)),
        Section(
            "maps",
            "Maps of embeddings",
            maps,
            f"{_mapped(models[0])}, laid out by t-SNE: people whose photos lie in one heap are "
            "told apart.",
        ),
    ]


def _training(entries: list[Entry]) -> Section:
    runs = [(entry.look, entry.history) for entry in entries if entry.history is not None]
    several = " Losses of different recipes do not compare." if len(runs) > 1 else ""
    return Section(
        "training",
        "Training curves",
        training_figures(runs),
        f"Thin lines are the records as they are, thick ones their moving mean.{several}",
    )


def _mapped(model: Measured) -> str:
    """Text that says whose photos a map shows, and how many."""
    people = len(np.unique(model.embedded.labels))
    most = f"the {MAP_PEOPLE} people with the most"
    who = most if people > MAP_PEOPLE else f"all {people} people"
    return f"Photos of {who}, at most {MAP_PHOTOS} of each"


def _collapses(models: list[Measured]) -> list[str]:
    return [f"Warning: {model.collapse}." for model in models if model.collapse]


def _notices(entries: list[Entry]) -> list[str]:
    notices = []
    for entry in entries:
        history = entry.history
        if history is None:
            continue
        told = [] if history.state == "finished" else [history.told]
        if history.damaged:
            lines = "line" if history.damaged == 1 else "lines"
            told.append(f"{history.damaged} damaged {lines} of its metrics left out.")
        if told:
            notices.append(f"{entry.look.name}: {' '.join(told)}")
    return notices


def _made(entry: Entry, place: Workspace) -> Made:
    facts: list[list[str]] = []
    if entry.card is not None:
        card = public_card(entry.card)
        facts = [
            ["architecture", card.architecture],
            ["teacher", card.teacher],
            *([] if card.temperature is None else [["temperature", f"{card.temperature:g}"]]),
            ["trained on", card.train_set],
            ["epoch", str(card.epochs)],
            *(
                []
                if card.score is None
                else [["chosen on", f"{card.scored_on}, by {card.told_score} there"]]
            ),
            ["weights SHA-256", card.weights_sha256],
            ["created", card.created],
            ["made by", f"persona {card.persona}"],
        ]
    elif entry.source is not None:
        facts = entry.source.facts(entry.name, place.models)
    if entry.history is not None:
        facts.append(["run", entry.history.told])
    config = entry.card.config if entry.card else entry.history.config if entry.history else {}
    text = yaml.safe_dump(public(config), sort_keys=False, allow_unicode=True) if config else ""
    return Made(entry.look, facts, text)


def _facts(manifest: Manifest) -> list[list[str]]:
    align = manifest.align
    return [
        ["set", f"{manifest.name} ({public_name(manifest.dataset)}, {manifest.split})"],
        ["alignment", f"{align.method}, {align.image_size} px"],
        ["photos left out of the set", f"{len(manifest.skipped):,}"],
        ["made", f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"],
        ["persona", f"{__version__}{_commit()}"],
        ["torch", str(torch.__version__)],
    ]


def _commit() -> str:
    """Text such as `, commit abc1234` if Persona runs from its repository, otherwise empty."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return ""
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty"],
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:  # no git
        return ""
    return f", commit {done.stdout.strip()}" if done.returncode == 0 else ""

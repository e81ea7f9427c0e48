"""Sources of networks: finds and opens a network by its name. This module does not import torch.

`SOURCES` is asked in order. The first source that a name belongs to knows whether the network is on
this machine, the digest of its weights and what a report shows of it. It opens the network as a
torch `FaceNetwork` or, if the file needs no torch, as an `Embedder`. A new source is one subclass:

    class Attic(Source):
        shown = "attic:NAME"

        def has(self, name, models):
            return name.startswith("attic:")

        def open(self, name, models):
            return NamedNetwork(name, build(name), "the attic", (), 112, self.digest(name, models))

    register(Attic())

Then `attic:NAME` works wherever the name of a network does.
"""

from __future__ import annotations

import contextlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from persona.config import StudentConfig
from persona.errors import PersonaError, unknown
from persona.extras import needing
from persona.files import sha256_file
from persona.models import litert, onnx
from persona.models.cards import (
    CARD,
    CARD_KEY,
    Card,
    alignment_in,
    is_shipped,
    is_stored,
    model_ids,
    read_classes,
    shipped_card,
    shipped_graph,
    shipped_ids,
    stored_card,
    weights_path,
)
from persona.models.embedder import Embedder, own_threads
from persona.models.graphs import read_onnx
from persona.models.onnx_graph import count_onnx
from persona.models.weights import FACENETS, find_weights
from persona.registry import BACKBONES
from persona.workspace import user_path

if TYPE_CHECKING:
    from persona.models.output import FaceNetwork


@dataclass(frozen=True)
class Named:
    """A network with its name, its classes and how its training crops were made."""

    name: str
    network: FaceNetwork | Embedder
    trained_on: str
    """The dataset of its classes, for messages."""
    classes: tuple[str, ...] | None
    """Identities of its logits, in order. None means that only their number and dataset are known,
    as is the case for FaceNet's release."""
    image_size: int | None
    """Side of its training crops in px. None means that any size is accepted."""
    digest: str = ""
    """Hash of its weights. Equal digests give equal embeddings. Empty means untrained."""
    alignment: Mapping[str, Any] | None = None
    """Alignment of its training crops, from its card, which an exported file holds too. None means
    that it is unknown."""
    classes_of: str = ""
    """Names of the datasets of its classes, separated by commas. Empty means that they are unknown.
    A class that is a number alone names nobody in another dataset."""


@dataclass(frozen=True)
class NamedNetwork(Named):
    """A torch network with its name, its classes and how its training crops were made."""

    network: FaceNetwork


class Runner(Protocol):
    """A network's file in its own runtime. `persona bench` measures it with random faces."""

    runtime: str
    """Name of the runtime."""

    def on(self, count: int) -> Callable[[], object]:
        """Returns a function that embeds `count` faces."""


class Source(ABC):
    """A kind of networks: it knows their names and opens them."""

    shown: ClassVar[str] = ""
    """Pattern of its names for messages, as `onnx:FILE`. Empty means that they list `names`."""

    @abstractmethod
    def has(self, name: str, models: Path) -> bool:
        """Whether the name belongs to this source. The network itself may be missing."""

    @abstractmethod
    def open(self, name: str, models: Path) -> NamedNetwork:
        """Opens the network in torch.

        Raises:
            PersonaError: the network is missing or damaged.
        """

    def names(self, models: Path) -> list[str]:
        """The names that error messages list."""
        return [self.shown] if self.shown else []

    def full_name(self, name: str) -> str:
        """The name with an absolute path, which means the same from any working folder."""
        return name

    def spell(self, name: str) -> str:
        """The name with the source's prefix added, if its suffix is that of the source's files."""
        return name

    def check(self, name: str, models: Path) -> None:  # noqa: B027 - there may be nothing to check
        """Checks the network without opening it.

        Raises:
            PersonaError: the network can certainly not be opened.
        """

    def digest(self, name: str, models: Path) -> str | None:
        """The network's digest, without loading it. None means that it is not on this machine."""
        return None

    def file(self, name: str, models: Path) -> Path | None:
        """The file of its weights. None means that there is none on this machine."""
        return None

    def card(self, name: str, models: Path) -> Card | None:
        """Its card. None means that it has none: only Persona's own models have cards."""
        return None

    def identities(self, name: str, models: Path) -> tuple[str, ...]:
        """The identities it was trained on.

        Raises:
            PersonaError: their names are not known.
        """
        raise PersonaError(
            f"{name} does not name the people it was trained on: give a packed set of them to "
            "--exclude-overlap"
        )

    def title(self, name: str) -> str:
        """The title of the network on a report page, without the folder that it lies in."""
        return name

    def facts(self, name: str, models: Path) -> list[list[str]]:
        """Facts for the report of a network without a card, as pairs of title and value."""
        return []

    def costs(self, name: str, models: Path) -> tuple[int | None, int | None]:
        """Parameters and multiply-accumulates per face of the network that `open_runner` runs.

        None means that a number is not known.
        """
        return None, None

    def open_embedder(self, name: str, models: Path, threads: int) -> Named | None:
        """Opens the network for embedding, without torch. None means that it needs torch.

        Raises:
            PersonaError: the network is missing or damaged.
        """
        return None

    def open_runner(self, name: str, models: Path, threads: int) -> Runner | None:
        """Opens the network's file in its own runtime. None means that its runtime is torch.

        Raises:
            PersonaError: the network is missing or damaged.
        """
        return None


class _Files(Source):
    """Networks in files, which a user names by their paths."""

    prefix: ClassVar[str]
    kind: ClassVar[str]
    described: ClassVar[str]
    suffix: ClassVar[str]

    def has(self, name: str, models: Path) -> bool:
        return name.startswith(self.prefix)

    def spell(self, name: str) -> str:
        bare = name.lower().endswith(self.suffix) and ":" not in name.partition("/")[0]
        return self.prefix + name if bare else name

    def full_name(self, name: str) -> str:
        return self.prefix + str(self.path(name).resolve())

    def check(self, name: str, models: Path) -> None:
        self.found(name)

    def file(self, name: str, models: Path) -> Path | None:
        path = self.path(name)
        return path if path.is_file() else None

    def path(self, name: str) -> Path:
        """The path in a name, whether or not there is a file."""
        return user_path(name.removeprefix(self.prefix))

    def found(self, name: str) -> Path:
        """The existing file of a name.

        Raises:
            PersonaError: there is no such file.
        """
        path = self.path(name)
        if not path.is_file():
            hint = ": name one file, not a list" if f",{self.prefix}" in name else ""
            raise PersonaError(f"no {self.kind} file at {path}{hint}")
        return path

    def digest(self, name: str, models: Path) -> str | None:
        path = self.file(name, models)
        return None if path is None else self.hash(path)

    def hash(self, path: Path) -> str:
        """Hash of everything that the embeddings depend on."""
        return sha256_file(path)

    def title(self, name: str) -> str:
        return self.path(name).name

    def facts(self, name: str, models: Path) -> list[list[str]]:
        return [["source", self.described], ["SHA-256", sha256_file(self.found(name))]]

    @abstractmethod
    def alignment(self, path: Path) -> Mapping[str, Any] | None:
        """The alignment of its training crops, by the card that `persona export` writes into it."""

    def named(self, name: str, path: Path, network: FaceNetwork) -> NamedNetwork:
        """Names a network from a file, of which no classes are known."""
        facts = "embeddings alone", (), None, self.hash(path), self.alignment(path)
        return NamedNetwork(name, network, *facts)

    def named_embedder(self, name: str, path: Path, embedder: Embedder) -> Named:
        """Names an embedder from a file."""
        facts = "embeddings alone", (), None, self.hash(path), self.alignment(path)
        return Named(name, embedder, *facts)


class _OnnxFiles(_Files):
    """ONNX files of any face network, with their settings inside or beside them."""

    prefix, kind, described, suffix = "onnx:", "ONNX", "an ONNX file", ".onnx"
    shown = "onnx:FILE"

    def hash(self, path: Path) -> str:
        return onnx.digest(path)

    def alignment(self, path: Path) -> Mapping[str, Any] | None:
        if onnx.find_settings(path)[1] != str(path):  # the user's own settings come first
            return None
        return alignment_in(read_onnx(path).metadata.get(CARD_KEY, ""))

    def open(self, name: str, models: Path) -> NamedNetwork:
        from persona.models.onnx_network import open_network

        path = self.found(name)
        return self.named(name, path, open_network(path))

    def costs(self, name: str, models: Path) -> tuple[int | None, int | None]:
        return count_onnx(self.found(name))

    def open_embedder(self, name: str, models: Path, threads: int) -> Named:
        path = self.found(name)
        return self.named_embedder(name, path, onnx.open_session(path, threads, onnx.providers()))

    def open_runner(self, name: str, models: Path, threads: int) -> Runner:
        return onnx.OnnxRunner(self.found(name), threads)


class _LitertFiles(_Files):
    """LiteRT files that `persona export` wrote."""

    prefix, kind, described, suffix = "litert:", "LiteRT", "a LiteRT file", ".tflite"
    shown = "litert:FILE"

    def alignment(self, path: Path) -> Mapping[str, Any] | None:
        return litert.file_alignment(path.read_bytes())

    def open(self, name: str, models: Path) -> NamedNetwork:
        from persona.models.litert_network import LitertNetwork

        path = self.found(name)
        return self.named(name, path, LitertNetwork(path))

    def open_embedder(self, name: str, models: Path, threads: int) -> Named:
        path = self.found(name)
        return self.named_embedder(name, path, litert.LitertSession(path, threads))

    def open_runner(self, name: str, models: Path, threads: int) -> Runner:
        return litert.LitertRunner(self.found(name), threads)


class _Hub(Source):
    """Students on the Hugging Face hub, which are pulled into the store under their NAME."""

    shown = "hf://OWNER/NAME"
    prefix = "hf://"

    def has(self, name: str, models: Path) -> bool:
        return name.startswith(self.prefix)

    def check(self, name: str, models: Path) -> None:
        from persona.models.hub import parse_repository

        parse_repository(name)

    def title(self, name: str) -> str:
        return name.rpartition("/")[2]

    def facts(self, name: str, models: Path) -> list[list[str]]:
        return [["source", name]]

    def open(self, name: str, models: Path) -> NamedNetwork:
        return OWN.open(self.pull(name, models), models)

    def pull(self, name: str, models: Path) -> str:
        """Pulls the model unless the store has it. Returns its ID in the store.

        Raises:
            PersonaError: it cannot be pulled, or another model in the store has its name.
        """
        from persona.models.hub import parse_repository, pull_once

        return pull_once(parse_repository(name), models).id


class _Facenets(Source):
    """FaceNet with the weights that facenet-pytorch released, downloaded once."""

    def has(self, name: str, models: Path) -> bool:
        return name in FACENETS

    def names(self, models: Path) -> list[str]:
        return [*FACENETS]

    def digest(self, name: str, models: Path) -> str | None:
        found = self.file(name, models)
        return sha256_file(found) if found else None

    def file(self, name: str, models: Path) -> Path | None:
        return find_weights(FACENETS[name], models)

    def identities(self, name: str, models: Path) -> tuple[str, ...]:
        raise PersonaError(
            f"the release of {name} does not name the people it was trained on: give a packed "
            f"{FACENETS[name].trained_on} set to --exclude-overlap"
        )

    def facts(self, name: str, models: Path) -> list[list[str]]:
        return [["source", "facenet-pytorch's release"]]

    def open(self, name: str, models: Path) -> NamedNetwork:
        from persona.models.teacher import load_facenet

        network = load_facenet(name, models)
        digest = self.digest(name, models) or ""
        return NamedNetwork(name, network, FACENETS[name].trained_on, None, 160, digest)


class _Untrained(Source):
    """Untrained students, named by their architecture, as a baseline for evaluation."""

    def has(self, name: str, models: Path) -> bool:
        return name in BACKBONES

    def names(self, models: Path) -> list[str]:
        return [*BACKBONES]

    def facts(self, name: str, models: Path) -> list[list[str]]:
        return [["source", "untrained, drawn from seed 0"]]

    def open(self, name: str, models: Path) -> NamedNetwork:
        import torch

        from persona.models.student import Student

        torch.manual_seed(0)
        student = Student(StudentConfig(name), 0, head="none")
        any_size = student.config.pooling == "average" and ":" not in name
        size = None if any_size else student.image_size
        return NamedNetwork(name, student, "nothing", (), size)


class _Models(Source):
    """Students with a card."""

    @abstractmethod
    def card(self, name: str, models: Path) -> Card: ...

    def digest(self, name: str, models: Path) -> str | None:
        return self.card(name, models).weights_sha256

    def file(self, name: str, models: Path) -> Path | None:
        path = weights_path(self.card(name, models), models)
        return path if path.is_file() else None

    def open(self, name: str, models: Path) -> NamedNetwork:
        from persona.models.store import load_model

        card = self.card(name, models)
        student, classes = load_model(card, models), read_classes(card, models)
        return NamedNetwork(
            *(name, student, card.train_set, classes, card.image_size, card.weights_sha256),
            alignment=card.alignment,
            classes_of=card.classes_of,
        )


class _OwnModels(_Models):
    """Students in the user's store, which were trained, pulled or imported here."""

    def has(self, name: str, models: Path) -> bool:
        return is_stored(name, models)

    def names(self, models: Path) -> list[str]:
        return model_ids(models)

    def card(self, name: str, models: Path) -> Card:
        return stored_card(name, models)

    def identities(self, name: str, models: Path) -> tuple[str, ...]:
        return read_classes(self.card(name, models), models)


class _Folders(_OwnModels):
    """Folders of single models outside the store, as `sent/small`."""

    shown = "DIR/NAME"

    def has(self, name: str, models: Path) -> bool:
        return os.sep in name and (user_path(name) / CARD).is_file()

    def names(self, models: Path) -> list[str]:
        return [self.shown]

    def full_name(self, name: str) -> str:
        return str(user_path(name).resolve())

    def title(self, name: str) -> str:
        return user_path(name).resolve().name

    def card(self, name: str, models: Path) -> Card:
        return super().card(*self._in_store(name))

    def file(self, name: str, models: Path) -> Path | None:
        return super().file(name, self._in_store(name)[1])

    def identities(self, name: str, models: Path) -> tuple[str, ...]:
        return read_classes(self.card(name, models), self._in_store(name)[1])

    def open(self, name: str, models: Path) -> NamedNetwork:
        return super().open(name, self._in_store(name)[1])

    def _in_store(self, name: str) -> tuple[str, Path]:
        """The model's ID, and its parent folder as a store."""
        folder = user_path(name).resolve()
        return folder.name, folder.parent


class _Zoo(_Models):
    """Students that are shipped with Persona. Their cards name no identities."""

    def has(self, name: str, models: Path) -> bool:
        return is_shipped(name)

    def names(self, models: Path) -> list[str]:
        return shipped_ids()

    def card(self, name: str, models: Path) -> Card:
        return shipped_card(name)

    def open_embedder(self, name: str, models: Path, threads: int) -> Named | None:
        card = self.card(name, models)
        graph = shipped_graph(card)
        if graph is None:
            return None
        return Named(
            name,
            onnx.open_session(graph, threads, onnx.providers()),
            *(card.train_set, (), card.image_size, card.weights_sha256),
            alignment=card.alignment,
        )


ONNX, OWN, FOLDERS = _OnnxFiles(), _OwnModels(), _Folders()
SOURCES: list[Source] = [
    *(ONNX, _LitertFiles(), _Hub(), _Facenets(), _Untrained(), FOLDERS, OWN, _Zoo())
]
"""All sources, in the order in which they are asked."""


def register(source: Source) -> None:
    """Adds a source. It is asked before all others."""
    SOURCES.insert(0, source)


def spell(name: str) -> str:
    """Completes a name as a user may write it: `net.onnx` becomes `onnx:net.onnx`."""
    for source in SOURCES:
        name = source.spell(name)
    return name


def known_source(name: str, models: Path) -> Source | None:
    """The source that a name belongs to. None means that it names no network."""
    return next((source for source in SOURCES if source.has(name, models)), None)


def source_of(name: str, models: Path) -> Source:
    """The source that a name belongs to.

    Raises:
        PersonaError: the name is unknown. The message gives the nearest known name.
    """
    found = known_source(name, models)
    if found is None:
        raise unknown("model", name, known_names(models), where=str(models))
    return found


def known_names(models: Path) -> list[str]:
    """The names of all networks on this machine, and the patterns of others, for messages."""
    return [name for source in SOURCES for name in source.names(models)]


def is_reserved(name: str, models: Path) -> bool:
    """Whether a name belongs to a network outside the user's model store."""
    return known_source(name, models) not in {None, OWN}


def load_network(name: str, models: Path) -> NamedNetwork:
    """Opens a network by name, in torch.

    Raises:
        PersonaError: the name is unknown, or the network's file is missing or damaged.
    """
    source = source_of(name, models)
    with needing(name):
        return source.open(name, models)


def load_embedder(name: str, models: Path) -> Named:
    """Opens a network by name for embedding only, without torch if its file does not need it.

    Raises:
        PersonaError: the name is unknown, the network's file is missing or damaged, or the network
            needs torch and torch is not installed.
    """
    opened = source_of(name, models).open_embedder(name, models, own_threads())
    return load_network(name, models) if opened is None else opened


def teacher_names(teacher: str, models: Path) -> tuple[str, ...]:
    """The names in `A,B`. The path of one file may have a comma too.

    Raises:
        PersonaError: a name is empty, `none` or given twice.
    """
    source = known_source(teacher, models)
    if "," not in teacher or (source is not None and source.file(teacher, models) is not None):
        return (teacher,)
    names = tuple(spell(name.strip()) for name in teacher.split(","))
    if not all(names) or "none" in names or len(set(names)) < len(names):
        raise PersonaError(f"--teacher {teacher}: name networks, each of them once")
    return names


def student_card(name: str, models: Path) -> tuple[Card, Path]:
    """The card of a student and the store that holds it. A student on the hub is pulled first.

    `name` may also be the folder of a model, in any store.

    Raises:
        PersonaError: the name is unknown, or is that of another kind of network.
    """
    source = source_of(name, models)
    if source is FOLDERS:
        return FOLDERS.card(name, models), user_path(name).resolve().parent
    if isinstance(source, _Hub):
        name, source = source.pull(name, models), OWN
    if not isinstance(source, _Models):
        raise PersonaError(
            f"{name} is no student that was trained by Persona: name a model, its folder or "
            "hf://OWNER/NAME"
        )
    return source.card(name, models), models


def known_licence(name: str, models: Path) -> str:
    """The condition of use on the card of a network. It is empty if there is no card here."""
    source = known_source(name, models)
    if isinstance(source, _Hub):  # pulled under its NAME
        name = source.title(name)
    with contextlib.suppress(PersonaError):
        return student_card(name, models)[0].licence
    return ""


def pulled(name: str, models: Path) -> str:
    """The name of a network on this machine. A model on the hub is pulled first, and has its ID.

    Raises:
        PersonaError: the model cannot be pulled, or another model in the store has its name.
    """
    source = known_source(name, models)
    return source.pull(name, models) if isinstance(source, _Hub) else name


def network_digest(name: str, models: Path) -> str | None:
    """A network's digest, without loading it. None means that it is not on this machine."""
    source = known_source(name, models)
    return None if source is None else source.digest(name, models)


def check_named(name: str, models: Path) -> None:
    """Checks that a name stands for a network, without opening it.

    FaceNet passes also if its weights are not downloaded yet.

    Raises:
        PersonaError: the model is unknown or its file is missing.
    """
    source_of(name, models).check(name, models)

"""The teacher of a run: a network that runs online, or its targets kept beside the shards.

Shapes: B batch, C channel, H W pixels, E embedding, K identities.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor

from persona.config import DistillConfig, LossesConfig
from persona.data.ensembles import EnsembleTargets, KeptTargets
from persona.data.kept_targets import (
    Targets,
    check_targets,
    head_path,
    short_name,
    targets_name,
)
from persona.data.mixed import MixedSet
from persona.data.sets import FaceSet
from persona.errors import PersonaError
from persona.models import sources, store
from persona.models.ensemble import EnsembleNetwork
from persona.models.output import EMBEDDING_SIZE, ClassifierHead, FaceNetwork, freeze
from persona.models.sources import NamedNetwork
from persona.names import command_line
from persona.training.ensemble import open_ensemble
from persona.training.losses import head_kind, inputs_of
from persona.workspace import Workspace

log = logging.getLogger(__name__)

FROM_TEACHER = ("teacher_features", "teacher_logits")


class Teacher:
    """A frozen teacher: its network and last layer, or only the layer if its targets are kept.

    This is no nn.Module, so that it gets into no optimizer, DDP wrapper or checkpoint.
    """

    def __init__(
        self, network: FaceNetwork | None, head: ClassifierHead | None, precision: str = "no"
    ) -> None:
        """Freezes network and head.

        Args:
            network: the teacher. None means that its targets are kept.
            head: its last layer. None means that no loss term needs logits.
            precision: precision of the forward pass: `no` (float32), `bf16` or `fp16`.
        """
        self.network = freeze(network) if network is not None else None
        self.head = head.eval().requires_grad_(False) if head is not None else None
        self.dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
        self._forward: Any = network.features if network is not None else None

    def to(self, device: torch.device) -> Teacher:
        """Moves the network and the head to the device."""
        for module in (self.network, self.head):
            if module is not None:
                module.to(device)
        return self

    def compile(self, **options: Any) -> None:
        """Compiles the forward pass, unless targets are kept or the teacher uses landmarks."""
        if self.network is not None and not self.network.uses_landmarks:
            self._forward = torch.compile(self.network.features, **options)

    @torch.no_grad()
    def features(self, images_BCHW: Tensor, landmarks_B62: Tensor | None) -> Tensor:
        """Computes the features of these views, (B, E) float32: embeddings before normalisation."""
        device = images_BCHW.device.type
        with torch.autocast(device, dtype=self.dtype, enabled=self.dtype is not None):
            features_BE: Tensor = self._forward(images_BCHW, landmarks_B62)
        return features_BE.float()

    @torch.no_grad()
    def logits(self, features_BE: Tensor) -> Tensor:
        """Computes the logits, (B, K) float32, of the teacher's features, kept or online."""
        assert self.head is not None
        with torch.autocast(features_BE.device.type, enabled=False):
            logits_BK: Tensor = self.head(features_BE.float())
        return logits_BK


@dataclass(frozen=True)
class TeacherSide:
    """The teacher of a run, or its kept targets, and what follows for the student."""

    network: NamedNetwork | None
    """The teacher's network. None means that there is no teacher, or that its targets are kept."""
    targets: tuple[KeptTargets, ...] | None
    """The kept targets of each train set. None means that there is no teacher, or that it runs
    online."""
    train: MixedSet
    """The train sets. Targets lie beside their shards."""
    embedding_size: int
    """Dimensions of the student's embedding."""
    classes: tuple[str, ...]
    """Identities of the student's logits. Empty means that the student has no logits."""
    teacher_size: int | None = None
    """Dimensions of the teacher's embedding. None means that there is no teacher."""

    @property
    def networks(self) -> tuple[NamedNetwork, ...]:
        """The networks that run online: none, the teacher, or all of an ensemble."""
        if self.network is None:
            return ()
        network = self.network.network
        return network.named if isinstance(network, EnsembleNetwork) else (self.network,)

    @property
    def digest(self) -> str:
        """Hash of the teacher's weights. Empty means that there is no teacher."""
        if self.targets is not None:
            return self.targets[0].weights_sha256
        return self.network.digest if self.network is not None else ""

    def teacher(
        self, config: DistillConfig, device: torch.device, compile_options: dict[str, Any] | None
    ) -> Teacher | None:
        """Builds the teacher for the task, on the device; None if there is no teacher.

        Its forward pass is compiled if `compile_options` is not None.
        """
        logits = any("teacher_logits" in inputs for inputs in inputs_of(config.losses).values())
        if self.targets is not None:
            head = None
            kept = self.targets[0]
            if logits and isinstance(kept, Targets):
                head = store.load_head(
                    head_path(self.train.parts[0].faces.folder, kept),
                    embedding_size=kept.embedding_size,
                    num_classes=kept.num_classes,
                    kind=kept.head,
                )
            return Teacher(None, head).to(device)
        if self.network is None:
            return None
        head = self.network.network.head() if logits else None
        precision = teacher_precision(config, self.network.network, device)
        teacher = Teacher(self.network.network, head, precision).to(device)
        if compile_options is not None:
            teacher.compile(**compile_options)
        return teacher


def open_teacher(
    config: DistillConfig,
    workspace: Workspace,
    train: MixedSet,
    loaded: NamedNetwork | None = None,
) -> TeacherSide:
    """Opens the teacher, or its kept targets, and checks that the recipe can learn from it.

    `loaded` is the teacher if it is loaded already. Its name then need not be known.

    Raises:
        PersonaError: the teacher is unknown, its weights are missing, the targets are of another
            teacher, a loss needs what the teacher does not give, or the recipe uses both labels and
            teacher logits but the teacher's identities are not those of the set.
    """
    wanted = {name for inputs in inputs_of(config.losses).values() for name in inputs}
    for name, inputs in inputs_of(config.losses).items():
        if "labels" in inputs:
            train.check_labelled(f"loss {name}")
        if config.mix.in_use and "labels" in inputs:
            raise PersonaError(
                f"loss {name} compares with the label of one photo, and `mix` makes images of two: "
                "leave the loss or `mix` out"
            )
    asked = bool(wanted & set(FROM_TEACHER))
    size = config.student.embedding_size
    names = (config.teacher,) if loaded else sources.teacher_names(config.teacher, workspace.models)
    if not asked or config.teacher == "none":
        if config.teacher != "none" and loaded is None:
            for name in names:
                sources.check_named(name, workspace.models)
        check_losses(config.losses, teacher="none", has_logits=False)
        classes = train.identities if head_kind(config.losses) != "none" else ()
        return TeacherSide(None, None, train, size or EMBEDDING_SIZE, classes)
    network: NamedNetwork | None
    targets: tuple[KeptTargets, ...] | None
    if len(names) > 1:
        network, targets = _open_several(config, names, workspace, train)
    else:
        network, targets = _open_one(config, workspace, train, loaded)
    if targets is not None:
        width, count = targets[0].embedding_size, targets[0].num_classes
        trained_on, known = targets[0].trained_on, targets[0].classes
    else:
        assert network is not None
        width, count = network.network.embedding_size, network.network.num_classes
        trained_on, known = network.trained_on, network.classes
        uses_landmarks = network.network.uses_landmarks
        train.check_crops(network.name, network.image_size, uses_landmarks)
    check_losses(config.losses, teacher=config.teacher, has_logits=count > 0)
    classes = train.identities if head_kind(config.losses) != "none" else ()
    if "teacher_logits" in wanted and not train.knows(trained_on, count, known):
        if "labels" in wanted:
            raise PersonaError(
                f"teacher {config.teacher} knows {count} identities of {trained_on}, set "
                f"{train.name} has {len(train.identities)} others, so its labels mean nothing "
                "to the teacher: leave the losses of labels out (--hard-weight 0), or choose "
                "another teacher"
            )
        classes = known or tuple(f"{config.teacher}/{number}" for number in range(count))
    return TeacherSide(network, targets, train, size or width, classes, width)


def _open_one(
    config: DistillConfig, workspace: Workspace, train: MixedSet, loaded: NamedNetwork | None
) -> tuple[NamedNetwork | None, tuple[Targets, ...] | None]:
    """The network of a single teacher, or its kept targets of each train set."""
    targets = kept_targets(config, workspace, train, loaded)
    if targets is not None:
        return None, targets
    return loaded or sources.load_network(config.teacher, workspace.models), None


def _open_several(
    config: DistillConfig, names: tuple[str, ...], workspace: Workspace, train: MixedSet
) -> tuple[NamedNetwork | None, tuple[EnsembleTargets] | None]:
    """The network of several teachers, or their kept targets.

    Raises:
        PersonaError: there are several train sets. The projection that joins the teachers is fitted
            on one set and stored beside it.
    """
    if len(train.parts) > 1:
        raise PersonaError(
            f"--teacher {config.teacher}: several teachers are joined on one train set, and "
            f"--train-set {train.name} names several: choose one teacher or one set"
        )

    def find_kept(one: DistillConfig) -> Targets | None:
        found = kept_targets(one, workspace, train)
        return None if found is None else found[0]

    network, targets = open_ensemble(
        config, names, workspace.models, train.parts[0].faces, find_kept
    )
    return network, None if targets is None else (targets,)


def kept_targets(
    config: DistillConfig,
    workspace: Workspace,
    train: MixedSet,
    loaded: NamedNetwork | None = None,
) -> tuple[Targets, ...] | None:
    """Finds the kept targets of each train set. None means that the teacher runs online.

    Raises:
        PersonaError: the recipe asks for kept targets and a set has none; or the targets are of
            another teacher, the teacher's file is missing and cannot be compared, or the targets
            lack the recipe's augmented views; or the recipe mixes photos, which the teacher must
            see.
    """
    if config.mix.in_use and config.targets == "kept":
        raise PersonaError(
            "the recipe mixes photos (`mix`), and the teacher must look at the mixed image: choose "
            "--targets online, or leave `mix` out"
        )
    if config.targets == "online" or config.mix.in_use:
        return None
    sets = [part.faces for part in train.parts]
    found = [faces.targets(config.teacher) for faces in sets]
    without = [faces for faces, targets in zip(sets, found, strict=True) if targets is None]
    if without and config.targets == "kept":
        name = without[0].name
        make = command_line("targets", name, "--teacher", config.teacher)
        raise PersonaError(
            f"set {name} keeps no targets of {config.teacher}: run `{make}`, or choose --targets "
            "online"
        )
    if without:
        if len(without) < len(sets):
            log.info(
                "note: the teacher runs online, because not all train sets keep its targets: %s",
                ", ".join(faces.name for faces in without),
            )
        return None
    digest = teacher_digest(config, workspace, loaded)
    kept = tuple(targets for targets in found if targets is not None)
    for faces, targets in zip(sets, kept, strict=True):
        # If the teacher itself is not here, all sets must have targets of the same teacher.
        _check_kept(config, faces, targets, digest or kept[0].weights_sha256)
    return kept


def teacher_digest(
    config: DistillConfig, workspace: Workspace, loaded: NamedNetwork | None
) -> str | None:
    """The digest of the teacher's weights and settings, which targets must match.

    Targets are found by the teacher's name alone. Of a file that is its base name, which another
    file may have, and of a model on the hub its name without the owner. The hub is asked which
    weights it has, and a model that is not here is pulled. All processes must call this function.

    Returns:
        None for a teacher that nothing here knows: its targets can still be used.

    Raises:
        PersonaError: the teacher's file is missing, or the teacher cannot be had from the hub.
    """
    if loaded is not None:
        return loaded.digest
    source = sources.known_source(config.teacher, workspace.models)
    if source is not None:
        source.check(config.teacher, workspace.models)
    with PartialState().main_process_first():  # the other processes find what it has pulled
        name = sources.pulled(config.teacher, workspace.models)
    return sources.network_digest(name, workspace.models)


def _check_kept(config: DistillConfig, faces: FaceSet, targets: Targets, digest: str) -> None:
    """Checks that a set's kept targets are those of the recipe's teacher, with its views.

    Raises:
        PersonaError: they are not. The message names their folder.
    """
    place = f"{faces.folder}/{targets_name(config.teacher)}"
    make = command_line("targets", faces.name, "--teacher", config.teacher)
    if targets.teacher != short_name(config.teacher) or targets.weights_sha256 != digest:
        raise PersonaError(
            f"the targets at {place} are of another {config.teacher}, with other weights or "
            f"settings: remove that folder and run `{make}`, or choose --targets online"
        )
    if config.augment.beyond_flip and (targets.views <= 2 or targets.augment != config.augment):
        raise PersonaError(
            f"the recipe asks for an augmentation that the {targets.views} views kept at {place} "
            f"do not hold: remove that folder and run `{make} --views 24 --config` with the "
            "recipe, or choose --targets online"
        )
    check_targets(faces, targets, deep=False)


def check_losses(config: LossesConfig, *, teacher: str, has_logits: bool) -> None:
    """Refuses loss terms that need something this teacher does not give.

    Args:
        config: the terms.
        teacher: name of the teacher, or `none`.
        has_logits: whether the teacher gives logits.

    Raises:
        PersonaError: a term cannot be computed. The message names it and says what to do.
    """
    others = [n for n, inputs in inputs_of(config).items() if "teacher_features" in inputs]
    for name, inputs in inputs_of(config).items():
        if teacher == "none" and set(inputs) & set(FROM_TEACHER):
            raise PersonaError(f"loss {name} compares with a teacher: name one with --teacher")
        if "teacher_logits" in inputs and not has_logits:
            raise PersonaError(
                f"loss {name} wants the teacher's logits, and {teacher} gives embeddings alone: "
                + (
                    f"leave it out, the recipe has {' and '.join(others)} too"
                    if others
                    else "choose a recipe of embedding losses (--config configs/embedding.yaml)"
                )
            )


def teacher_precision(config: DistillConfig, network: FaceNetwork, device: torch.device) -> str:
    """The precision of an online teacher: `no`, `fp16` or `bf16`.

    `auto` becomes bf16 if the device computes in it (4.5 times as fast), otherwise the student's
    precision. A network with its own runtime gets `no`.
    """
    if config.teacher_precision != "auto":
        return config.teacher_precision
    if network.computes_itself:
        return "no"
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        found = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        fast = bool(found.get("avx512_bf16") or found.get("amx_bf16"))
    return "bf16" if fast else config.mixed_precision

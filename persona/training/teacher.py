"""The teacher of a run: computed online, or what is kept of it beside the shards.

Shapes: B batch, C channel, H W pixels, E embedding, K identities.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from persona.config import DistillConfig, LossesConfig
from persona.data.shards import Manifest
from persona.data.storage import SetFolder
from persona.data.targets import (
    Targets,
    check_targets,
    find_targets,
    head_path,
    short_name,
    targets_name,
)
from persona.errors import PersonaError
from persona.models import sources, store
from persona.models.output import EMBEDDING_SIZE, ClassifierHead, FaceNetwork, freeze
from persona.models.sources import NamedNetwork
from persona.training.losses import head_kind, inputs_of
from persona.workspace import Workspace

FROM_TEACHER = ("teacher_features", "teacher_logits")
PAIRED = ("embedding_cosine", "embedding_l2", "embedding_angular", "adadistill")
"""Terms that compare student's and teacher's vectors number by number."""


class Teacher:
    """A frozen teacher, or what is kept of it: its vectors and its last layer.

    No nn.Module, so that it is in no optimizer, no DDP wrapper and no checkpoint.
    """

    def __init__(
        self, network: FaceNetwork | None, head: ClassifierHead | None, precision: str = "no"
    ) -> None:
        """`network` None: targets are kept. `head` None: no term wants logits."""
        self.network = freeze(network) if network is not None else None
        self.head = head.eval().requires_grad_(False) if head is not None else None
        self.dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
        self._forward: Any = network.features if network is not None else None

    def to(self, device: torch.device) -> Teacher:
        """Moves what there is to the device."""
        for module in (self.network, self.head):
            if module is not None:
                module.to(device)
        return self

    def compile(self, **options: Any) -> None:
        """Compiles the forward pass of an online teacher."""
        if self.network is not None and not self.network.uses_landmarks:
            self._forward = torch.compile(self.network.features, **options)

    @torch.no_grad()
    def features(self, images_BCHW: Tensor, landmarks_B62: Tensor | None) -> Tensor:
        """(B, E) float32 of these views."""
        device = images_BCHW.device.type
        with torch.autocast(device, dtype=self.dtype, enabled=self.dtype is not None):
            features_BE: Tensor = self._forward(images_BCHW, landmarks_B62)
        return features_BE.float()

    @torch.no_grad()
    def logits(self, features_BE: Tensor) -> Tensor:
        """(B, K) float32 of its vectors, kept or fresh."""
        assert self.head is not None
        with torch.autocast(features_BE.device.type, enabled=False):
            logits_BK: Tensor = self.head(features_BE.float())
        return logits_BK


@dataclass(frozen=True)
class TeacherSide:
    """What a run needs to know of its teacher, whether it is here or only its targets are."""

    network: NamedNetwork | None
    """None: there is no teacher, or its targets are kept."""
    targets: Targets | None
    folder: SetFolder
    """Of the train set, beside which targets lie."""
    embedding_size: int
    classes: tuple[str, ...]
    """The identities of the student's logits; empty: it gets none."""

    @property
    def digest(self) -> str:
        """Of the teacher's weights; empty: there is none."""
        if self.targets is not None:
            return self.targets.weights_sha256
        return self.network.digest if self.network is not None else ""

    def teacher(
        self, config: DistillConfig, device: torch.device, compile_options: dict[str, Any] | None
    ) -> Teacher | None:
        """The teacher as the task asks it, on the device, compiled if `compile_options`."""
        logits = any("teacher_logits" in inputs for inputs in inputs_of(config.losses).values())
        if self.targets is not None:
            head = None
            if logits:
                head = store.load_head(
                    head_path(self.folder, self.targets),
                    embedding_size=self.targets.embedding_size,
                    num_classes=self.targets.num_classes,
                    kind=self.targets.head,
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
    folder: SetFolder,
    train_set: Manifest,
    loaded: NamedNetwork | None = None,
) -> TeacherSide:
    """Opens the teacher, or its kept targets, and checks that the recipe can learn from it.

    `loaded` is the teacher where a program has it already; it need not have a name that can be
    looked up.

    Raises:
        PersonaError: unknown, weights missing, targets of another teacher, a loss that it cannot
            feed, or identities other than the set's while both logits and labels count.
    """
    wanted = {name for inputs in inputs_of(config.losses).values() for name in inputs}
    asked = bool(wanted & set(FROM_TEACHER))
    size = config.student.embedding_size
    if not asked or config.teacher == "none":
        if config.teacher != "none" and loaded is None:
            sources.check_named(config.teacher, workspace.models)
        check_losses(config.losses, teacher="none", has_logits=False, sizes=(0, 0))
        classes = train_set.classes if head_kind(config.losses) != "none" else ()
        return TeacherSide(None, None, folder, size or EMBEDDING_SIZE, classes)
    targets = kept_targets(config, workspace, folder, train_set, loaded)
    network = None
    if targets is None:
        network = loaded or sources.load_network(config.teacher, workspace.models)
    if targets is not None:
        width, count = targets.embedding_size, targets.num_classes
        trained_on, known = targets.trained_on, targets.classes
    else:
        assert network is not None
        width, count = network.network.embedding_size, network.network.num_classes
        trained_on, known = network.trained_on, network.classes
        uses_landmarks = network.network.uses_landmarks
        train_set.check_crops(network.name, network.image_size, uses_landmarks)
    check_losses(
        config.losses, teacher=config.teacher, has_logits=count > 0, sizes=(size or width, width)
    )
    classes = train_set.classes if head_kind(config.losses) != "none" else ()
    if "teacher_logits" in wanted and not train_set.knows(trained_on, count, known):
        if "labels" in wanted:
            raise PersonaError(
                f"teacher {config.teacher} knows {count} identities of {trained_on}, set "
                f"{train_set.name} has {len(train_set.classes)} others, so its labels mean nothing "
                "to the teacher: leave the losses of labels out (--hard-weight 0), or choose "
                "another teacher"
            )
        classes = known or tuple(f"{config.teacher}/{number}" for number in range(count))
    return TeacherSide(network, targets, folder, size or width, classes)


def kept_targets(
    config: DistillConfig,
    workspace: Workspace,
    folder: SetFolder,
    train_set: Manifest,
    loaded: NamedNetwork | None = None,
) -> Targets | None:
    """The targets to train on, or None: the teacher computes them.

    Raises:
        PersonaError: asked for and not there, of another teacher, of a file that is not there to
            compare, or without the recipe's views.
    """
    if config.targets == "online":
        return None
    make = f"persona targets {train_set.name} --teacher {config.teacher}"
    targets = find_targets(folder, config.teacher)
    if targets is None:
        if config.targets == "kept":
            raise PersonaError(
                f"set {train_set.name} keeps no targets of {config.teacher}: run `{make}`, or "
                "choose --targets online"
            )
        return None
    place = f"{folder}/{targets_name(config.teacher)}"
    # They are found by the name alone, of a file by its base name, which any other file may have.
    if loaded is not None:
        digest: str | None = loaded.digest
    else:
        source = sources.known_source(config.teacher, workspace.models)
        if source is not None:  # of one that is known elsewhere the targets are enough
            source.check(config.teacher, workspace.models)
        digest = sources.network_digest(config.teacher, workspace.models)
    if targets.teacher != short_name(config.teacher) or digest not in {
        None,
        targets.weights_sha256,
    }:
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
    check_targets(folder, train_set, targets, deep=False)
    return targets


def check_losses(
    config: LossesConfig, *, teacher: str, has_logits: bool, sizes: tuple[int, int]
) -> None:
    """Refuses terms that this teacher cannot feed.

    Args:
        config: the terms.
        teacher: its name; `none`: there is none.
        has_logits: whether it gives logits.
        sizes: of student's and teacher's vectors.

    Raises:
        PersonaError: naming the term, and what to do.
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
        if name in PAIRED and sizes[0] != sizes[1]:
            raise PersonaError(
                f"loss {name} compares vectors number by number: the student has {sizes[0]}, "
                f"teacher {teacher} {sizes[1]}; leave student.embedding_size out"
            )


def teacher_precision(config: DistillConfig, network: FaceNetwork, device: torch.device) -> str:
    """`auto`: bf16 where the processor computes in it (4.5 times as fast), else the student's."""
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

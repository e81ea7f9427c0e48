"""Base of the methods of continual learning.

A method acts before an experience, in each optimizer step and after the experience. It may keep
state between experiences.

A new method is one file with one subclass. Defining the class registers it:

    class Slow(Finetune):
        name = "slow"

        def step(self, batch):
            return {"labels": 0.1 * label_loss(self.forward(batch.images).logits, batch.labels)}

A method with options has a `config_class`; `self.options` holds what the user chose.

Shapes: B batch, C channel, H W pixels, E embedding, K identities, N photos.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from persona import registry
from persona.config import AugmentConfig, LearnConfig
from persona.data.ensembles import Reader
from persona.data.transforms import apply_views, normalise
from persona.data.views import draw_views
from persona.evaluation.embed_torch import gather_rows
from persona.learning.means import ClassMeans
from persona.learning.memory import Exemplar, priority_of
from persona.learning.photos import Ints, Photos, decode
from persona.models.output import FaceOutput
from persona.models.student import Student
from persona.registry import Registry
from persona.training.teacher import Teacher

EMBED_BATCH = 64
FLIP = AugmentConfig()


class LearnBatch(NamedTuple):
    """The photos of one optimizer step of one process, on the device."""

    images: Tensor
    """(B, 3, H, W) float32 normalised views."""
    labels: Tensor
    """(B,) int64 labels."""
    photos: Ints
    """(B,) int64 photo numbers."""
    landmarks: Tensor | None
    """(B, 6, 2) landmarks of the views: five points in px and the scale, see
    persona/landmarks.py. None if there is no teacher."""
    targets: Tensor | None
    """(B, E) precomputed teacher embeddings of these views. None if there are none."""
    seeds: tuple[int, ...]
    """Seeds for what the method draws at random in this step on this process."""


@dataclass
class Context:
    """What a method works with: config, student, photos, processes and teacher."""

    config: LearnConfig
    student: Student
    """The student, always in eval mode, so that batch norm keeps its statistics. See
    persona/learning/learner.py."""
    forward: nn.Module
    """The student as Accelerate wraps it. Training calls this one, for its gradients."""
    photos: Photos
    accelerator: Accelerator
    teacher: Teacher | None = None
    targets: Reader | None = None
    """Precomputed teacher embeddings of the photos of the first set."""

    @torch.no_grad()
    def share(self, photos: Ints, work: Callable[[Tensor], Tensor], nothing: Tensor) -> Tensor:
        """Splits photos among the processes, computes a row for each and gathers all rows.

        Args:
            photos: (N,) photo numbers.
            work: computes B rows on the CPU from (B, 3, H, W) uint8 images.
            nothing: zero rows of the shape and dtype that `work` gives.

        Returns:
            N rows in the order of `photos`, on every process.
        """
        rank, ranks = self.accelerator.process_index, self.accelerator.num_processes
        starts = range(rank * EMBED_BATCH, len(photos), ranks * EMBED_BATCH)
        parts = [work(self.photos.images(photos[s : s + EMBED_BATCH])) for s in starts]
        rows = [torch.arange(s, min(s + EMBED_BATCH, len(photos))) for s in starts]
        order = gather_rows(torch.cat([torch.empty(0, dtype=torch.int64), *rows]), self.accelerator)
        return gather_rows(torch.cat([nothing, *parts]), self.accelerator)[torch.argsort(order)]

    def embed(self, photos: Ints) -> Tensor:
        """(N, E) float32 embeddings of unit length, on the CPU of every process."""
        return self.share(photos, self.embed_images, torch.empty(0, self.student.embedding_size))

    @torch.no_grad()
    def embed_images(self, images_BCHW: Tensor) -> Tensor:
        """(B, E) float32 embeddings on the CPU, from (B, 3, H, W) uint8 images."""
        return self.student.embed(normalise(images_BCHW.to(self.accelerator.device))).cpu()

    def remembered(
        self, exemplars: Sequence[Exemplar], seeds: tuple[int, ...]
    ) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) random views and (B,) labels of exemplars, on the device."""
        images = decode((e.jpeg for e in exemplars), self.photos.size_px)
        views = draw_views(FLIP, len(exemplars), *seeds)
        labels = torch.tensor([e.label for e in exemplars], dtype=torch.int64)
        return (
            normalise(apply_views(images.to(self.accelerator.device), views)),
            labels.to(self.accelerator.device),
        )


class Method:
    """Base class of the methods: how a student learns identities without forgetting earlier ones.

    The base class itself keeps nothing.
    """

    name: ClassVar[str]
    """Name of the method, as `--method` takes it."""
    trains: ClassVar[bool] = True
    """Whether the student's weights are trained."""
    remembers: ClassVar[bool] = True
    """Whether the method keeps anything of the photos it has learned."""
    own_base: ClassVar[bool] = False
    """Whether the loss of the first experience differs from plain cross-entropy."""
    config_class: ClassVar[type[Any] | None] = None
    """Frozen dataclass of the method's options. None means that it has no options."""
    config_name: ClassVar[str] = ""
    """Name of these options in a config, such as `ewc` in `-o ewc.weight=10`."""
    options: Any
    """The chosen options, an instance of `config_class`. None if the method has no options."""

    def __init__(self, context: Context) -> None:
        """Raises PersonaError if the config lacks what the method needs."""
        self.context = context
        self.config = context.config
        self.options = self.config.methods.get(self.config_name)
        self.means: ClassMeans | None = None
        """Class means, for a method that classifies by the nearest one. None uses the logits."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "name" in vars(cls):
            METHODS.add(cls.name, cls)

    def check(self, photos: Ints, identities: Ints) -> None:
        """Raises PersonaError if what the method must keep of the photos to come does not fit.

        Args:
            photos: (N,) photo numbers of all experiences.
            identities: (N,) identity of each photo: its label if it has one, otherwise a number
                above all labels.
        """

    def forward(self, images_BCHW: Tensor) -> FaceOutput:
        """The student's forward pass with gradients.

        Call it once per step, with all photos of the step.
        """
        output: FaceOutput = self.context.forward(images_BCHW)
        return output

    def pool(self, photos: Ints) -> Ints:
        """The photos that batches are drawn from, given the photos of the experience."""
        return photos

    def new_photos(self) -> int:
        """Number of photos of a batch that are drawn from the pool. The method draws the rest."""
        return self.config.batch_size

    def before(self, photos: Ints, labels: Tensor) -> None:
        """Called when an experience begins.

        The last layer already has a row for each of its identities.

        Args:
            photos: (N,) photo numbers of the experience.
            labels: (N,) int64 labels of these photos.
        """

    def step(self, batch: LearnBatch) -> dict[str, Tensor]:
        """Weighted terms of the loss by name. Their sum is minimised."""
        raise NotImplementedError

    def after(self, photos: Ints, labels: Tensor) -> None:
        """Called when an experience has been learned.

        Args:
            photos: (N,) photo numbers of the experience.
            labels: (N,) int64 labels of these photos.
        """

    def adopt(self, photos: Ints, labels: Tensor) -> None:
        """Treats photos that the student learned elsewhere as learned by this method."""
        self.after(photos, labels)

    def predict(self, embeddings_NE: Tensor, logits_NK: Tensor) -> Tensor:
        """(N,) int64 predicted labels."""
        if self.means is not None:
            return self.means.nearest(embeddings_NE)
        return logits_NK.argmax(dim=1)

    def state(self) -> dict[str, Any]:
        """What a checkpoint must keep of the method: tensors, numbers and containers."""
        return {}

    def load(self, state: dict[str, Any]) -> None:
        """Restores what `state` returned."""

    def leave_out(self, photos: Ints) -> None:
        """Drops photos that the method keeps from an earlier run and must not train on now.

        Args:
            photos: numbers of the photos that the run holds out.
        """

    def kept_bytes(self) -> dict[str, int]:
        """Bytes that the method keeps in addition to the student, by name."""
        return {}

    def exemplars(
        self, photos: Ints, labels: Tensor, logits: Iterable[Tensor | None] = itertools.repeat(None)
    ) -> Iterator[Exemplar]:
        """Yields photos as exemplars for a reservoir, reading one JPEG at a time."""
        for photo, label, row in zip(photos.tolist(), labels.tolist(), logits, strict=False):
            jpeg = self.context.photos.jpeg(photo)
            yield Exemplar(priority_of(jpeg, self.config.seed), label, jpeg, row)


METHODS: Registry[type[Method]] = registry.METHODS


def label_loss(logits_BK: Tensor, labels_B: Tensor) -> Tensor:
    """Mean cross-entropy of (B, K) logits with (B,) labels, in float32."""
    return F.cross_entropy(logits_BK.float(), labels_B)

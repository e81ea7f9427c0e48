"""What a method of continual learning is: three moments, and what it keeps between them.

Another method is one file with one subclass; defining it registers it:

    class Slow(Finetune):
        name = "slow"

        def step(self, batch):
            return {"labels": 0.1 * label_loss(self.forward(batch.images).logits, batch.labels)}

One with options has a `config_class`, and in `self.options` what the user chose.

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
from persona.data.targets import TargetReader
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
    """Photos of one step, on the device."""

    images: Tensor
    """(B, 3, H, W) normalised views."""
    labels: Tensor
    """(B,) int64."""
    photos: Ints
    """(B,) their numbers."""
    landmarks: Tensor | None
    """(B, 6, 2) of the views, where there is a teacher that may want them."""
    targets: Tensor | None
    """(B, E) the teacher's vectors of these views, where they are kept."""
    seeds: tuple[int, ...]
    """For what a method draws in this step on this process."""


@dataclass
class Context:
    """What a method works on."""

    config: LearnConfig
    student: Student
    """In eval mode for good: batch norm keeps its statistics, see persona/learning/learner.py."""
    forward: nn.Module
    """The student as Accelerate wraps it; gradients come through it."""
    photos: Photos
    accelerator: Accelerator
    teacher: Teacher | None = None
    targets: TargetReader | None = None
    """The teacher's kept vectors of the photos of the first set."""

    @torch.no_grad()
    def share(self, photos: Ints, work: Callable[[Tensor], Tensor], nothing: Tensor) -> Tensor:
        """Shares photos among the processes, which all get all rows.

        Args:
            photos: (N,) theirs.
            work: from uint8 images (B, 3, H, W) to B rows on the CPU.
            nothing: no row of the kind that it gives.
        """
        rank, ranks = self.accelerator.process_index, self.accelerator.num_processes
        starts = range(rank * EMBED_BATCH, len(photos), ranks * EMBED_BATCH)
        parts = [work(self.photos.images(photos[s : s + EMBED_BATCH])) for s in starts]
        rows = [torch.arange(s, min(s + EMBED_BATCH, len(photos))) for s in starts]
        order = gather_rows(torch.cat([torch.empty(0, dtype=torch.int64), *rows]), self.accelerator)
        return gather_rows(torch.cat([nothing, *parts]), self.accelerator)[torch.argsort(order)]

    def embed(self, photos: Ints) -> Tensor:
        """(N, E) float32 on the CPU, of unit length; all processes get all of it."""
        return self.share(photos, self.embed_images, torch.empty(0, self.student.embedding_size))

    @torch.no_grad()
    def embed_images(self, images_BCHW: Tensor) -> Tensor:
        """(B, E) float32 on the CPU of photos as uint8."""
        return self.student.embed(normalise(images_BCHW.to(self.accelerator.device))).cpu()

    def remembered(
        self, exemplars: Sequence[Exemplar], seeds: tuple[int, ...]
    ) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) views and (B,) labels of exemplars, on the device."""
        images = decode((e.jpeg for e in exemplars), self.photos.size_px)
        views = draw_views(FLIP, len(exemplars), *seeds)
        labels = torch.tensor([e.label for e in exemplars], dtype=torch.int64)
        return (
            normalise(apply_views(images.to(self.accelerator.device), views)),
            labels.to(self.accelerator.device),
        )


class Method:
    """How a student learns identities without losing the earlier ones; on its own: it does not."""

    name: ClassVar[str]
    trains: ClassVar[bool] = True
    """False: the weights stay as they are."""
    remembers: ClassVar[bool] = True
    """Whether it keeps anything of photos once they are learned."""
    own_base: ClassVar[bool] = False
    """Whether its loss on a first experience is another than cross-entropy."""
    config_class: ClassVar[type[Any] | None] = None
    """A frozen dataclass of its options, if it has some."""
    config_name: ClassVar[str] = ""
    """What these options are called in a config, as `ewc` in `-o ewc.weight=10`."""
    options: Any
    """The user's choice, of `config_class`; None where it has no options."""

    def __init__(self, context: Context) -> None:
        """Raises PersonaError if the config gives the method nothing to work with."""
        self.context = context
        self.config = context.config
        self.options = self.config.methods.get(self.config_name)
        self.means: ClassMeans | None = None
        """If faces are named by the nearest class mean, not by the logits."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "name" in vars(cls):
            METHODS.add(cls.name, cls)

    def check(self, photos: Ints, identities: Ints) -> None:
        """Raises PersonaError if what it must keep of the photos to come does not fit.

        Args:
            photos: (N,) of all experiences.
            identities: (N,) whose they are: labels, where there are some, else larger numbers.
        """

    def forward(self, images_BCHW: Tensor) -> FaceOutput:
        """The student, with gradients: once a step, with all photos of it."""
        output: FaceOutput = self.context.forward(images_BCHW)
        return output

    def pool(self, photos: Ints) -> Ints:
        """The photos that batches are drawn from, given the experience's."""
        return photos

    def new_photos(self) -> int:
        """How many of a batch are drawn from the pool; the rest are the method's own to draw."""
        return self.config.batch_size

    def before(self, photos: Ints, labels: Tensor) -> None:
        """An experience begins; the last layer has its identities already."""

    def step(self, batch: LearnBatch) -> dict[str, Tensor]:
        """The weighted terms of the loss, whose sum is minimised."""
        raise NotImplementedError

    def after(self, photos: Ints, labels: Tensor) -> None:
        """An experience is learned: its photos, and their labels (N,)."""

    def adopt(self, photos: Ints, labels: Tensor) -> None:
        """Takes up what the student learned before, as if by this method."""
        self.after(photos, labels)

    def predict(self, embeddings_NE: Tensor, logits_NK: Tensor) -> Tensor:
        """(N,) labels."""
        if self.means is not None:
            return self.means.nearest(embeddings_NE)
        return logits_NK.argmax(dim=1)

    def state(self) -> dict[str, Any]:
        """What must outlive the process: tensors, numbers and containers."""
        return {}

    def load(self, state: dict[str, Any]) -> None:
        """Takes up `state`."""

    def kept_bytes(self) -> dict[str, int]:
        """What is kept beside the student, by name."""
        return {}

    def exemplars(
        self, photos: Ints, labels: Tensor, logits: Iterable[Tensor | None] = itertools.repeat(None)
    ) -> Iterator[Exemplar]:
        """Photos as a reservoir keeps them, read one at a time."""
        for photo, label, row in zip(photos.tolist(), labels.tolist(), logits, strict=False):
            jpeg = self.context.photos.jpeg(photo)
            yield Exemplar(priority_of(jpeg, self.config.seed), label, jpeg, row)


METHODS: Registry[type[Method]] = registry.METHODS


def label_loss(logits_BK: Tensor, labels_B: Tensor) -> Tensor:
    """Cross-entropy with the identity, in float32."""
    return F.cross_entropy(logits_BK.float(), labels_B)

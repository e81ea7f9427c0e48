"""A student that learns one experience after another.

1. the last layer grows by the identities that are new
2. the method's `before`
3. so many steps, each: a batch of the experience, the method's loss, one step of the optimizer
4. the method's `after`

Batch norm keeps the statistics that the student came with, for every method alike: those of a few
people's photos are theirs alone, and an experience may be one photo.

Shapes: N photos, B batch, E embedding, K identities.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from persona.config import LearnConfig
from persona.data.targets import TargetReader
from persona.data.transforms import apply_views, normalise, view_landmarks
from persona.data.views import draw_views, mix_seeds
from persona.errors import PersonaError
from persona.evaluation.spread import spread
from persona.learning.methods import Context, LearnBatch, build_method
from persona.learning.methods.base import FLIP
from persona.learning.photos import Ints, Photos
from persona.learning.stream import Experience, draw_batch
from persona.models.student import Student
from persona.progress import progress_bar
from persona.training.devices import finite_lag, prepare
from persona.training.meter import REMEDY, FiniteWatch, Meter, NotFiniteError
from persona.training.optim import build_optimizer, build_scheduler
from persona.training.run import LOG_STEPS
from persona.training.teacher import Teacher

log = logging.getLogger(__name__)

Moment = Callable[[int, dict[str, float]], None]


class Source(NamedTuple):
    """What an experience's batches are drawn from."""

    number: int
    """Of the experience."""
    pool: Ints
    """The photos."""
    labels: Tensor
    """(N,) of all photos there are."""


class Learner:
    """A student, a method and the identities so far."""

    def __init__(
        self,
        config: LearnConfig,
        student: Student,
        classes: Iterable[str],
        photos: Photos,
        accelerator: Accelerator,
        *,
        folder: Path,
        teacher: Teacher | None = None,
        targets: TargetReader | None = None,
        quiet: bool = False,
    ) -> None:
        """Takes the student as its own: it is trained in place.

        Args:
            config: method, steps and options.
            student: with as many identities in its last layer as `classes`, or with none.
            classes: whom the student knows, in the order of its logits.
            photos: what experiences are made of.
            accelerator: device and processes.
            folder: of the run, for the keys of a loss that is not finite.
            teacher: of `anchor`.
            targets: its kept vectors of the first set's photos.
            quiet: no progress bar.

        Raises:
            PersonaError: the config gives the method nothing to work with.
        """
        self.config = config
        self.photos = photos
        self.accelerator = accelerator
        self.student = student.to(accelerator.device).to(memory_format=torch.channels_last).eval()
        self.classes = list(classes)
        self.folder = folder
        self.quiet = quiet
        self.context = Context(config, student, student, photos, accelerator, teacher, targets)
        self.method = build_method(self.context)
        self._optimizer: Any = None
        self._scheduler: Any = None

    # --- identities ----------------------------------------------------------------------------

    def labels(self, photos: Ints) -> Tensor:
        """(N,) int64 places of the photos' identities among `classes`; -1: not known yet."""
        known = {name: label for label, name in enumerate(self.classes)}
        table = np.array([known.get(name, -1) for name in self.photos.names], np.int64)
        return torch.from_numpy(table[self.photos.identity[photos]])

    def grow(self, experience: Experience) -> None:
        """Gives the last layer a row for each identity that is new."""
        self.classes += sorted(set(experience.identities) - set(self.classes))
        if self.method.trains and self.student.num_classes != len(self.classes):
            torch.manual_seed(mix_seeds(self.config.seed, len(self.classes)))
            self.student.resize_head(len(self.classes))

    def check(self, experiences: Sequence[Experience]) -> None:
        """Raises PersonaError if what the method must keep of all of them does not fit."""
        photos = np.concatenate([experience.train for experience in experiences])
        labels = self.labels(photos).numpy()
        unknown = len(self.classes) + self.photos.identity[photos]
        self.method.check(photos, np.where(labels < 0, unknown, labels))

    def adopt(self, experience: Experience) -> None:
        """Takes up what the student learned already: nothing is trained."""
        self.grow(experience)
        self.method.adopt(experience.train, self.labels(experience.train))

    # --- an experience -------------------------------------------------------------------------

    def learn(
        self,
        experience: Experience,
        *,
        step: int = 0,
        state: dict[str, Any] | None = None,
        moment: Moment = lambda _step, _figures: None,
    ) -> None:
        """Learns an experience, or what is left of it.

        Args:
            experience: its photos.
            step: how many steps were done before.
            state: `training_state` at that step; None at the first.
            moment: called after each step, with what was measured since the last record.

        Raises:
            NotFiniteError: the loss, or at the end the weights.
            PersonaError: the student would know one identity alone, from whom nobody is told.
        """
        if step == 0:
            self.grow(experience)
            if self.method.trains and len(self.classes) < 2:
                raise PersonaError(
                    "the set has one identity, and the student would know no other: method "
                    f"{self.config.method} learns to tell identities apart; choose --method ncm, "
                    "or give --old a set of those whom the student knows"
                )
            self.method.before(experience.train, self.labels(experience.train))
        if self.method.trains:
            self._prepare(state)
            try:
                self._train(experience, step, moment)
            except NotFiniteError as error:
                raise NotFiniteError(f"experience {experience.number + 1}: {error}") from None
        self.method.after(experience.train, self.labels(experience.train))

    def _prepare(self, state: dict[str, Any] | None) -> None:
        """A fresh optimizer and the wrapped student: the last layer may be another one."""
        raw = build_optimizer(self.student, self.config.optim)
        steps = self.config.steps
        self._scheduler = build_scheduler(raw, self.config.optim, steps, steps)
        self.accelerator.free_memory()  # of the experience before
        self.context.forward, self._optimizer = prepare(self.accelerator, self.student, raw)
        if state is not None:
            self._optimizer.load_state_dict(state["optimizer"])
            self._scheduler.load_state_dict(state["scheduler"])

    def training_state(self) -> dict[str, Any]:
        """Of the optimizer, inside an experience."""
        return {
            "optimizer": self._optimizer.state_dict(),
            "scheduler": self._scheduler.state_dict(),
        }

    def _train(self, experience: Experience, step: int, moment: Moment) -> None:
        accelerator = self.accelerator
        meter = Meter(accelerator.num_processes, accelerator.device)
        source = self._source(experience)
        self.watch = FiniteWatch(self.folder, lag=finite_lag(accelerator))
        with (
            warnings.catch_warnings(),
            progress_bar(
                f"{self.config.method}, experience {experience.number + 1}",
                total=self.config.steps,
                done=step,
                unit="steps",
                enabled=accelerator.is_main_process and not self.quiet,
            ) as advance,
        ):
            # A penalty's gradients of weights that are one wide: other strides, the same memory.
            warnings.filterwarnings("ignore", message="Grad strides do not match bucket view")
            while step < self.config.steps:
                batch = self._batch(source, step)
                with accelerator.autocast():
                    terms = self.method.step(batch)
                total = torch.stack(list(terms.values())).sum()
                self.watch.add(total, torch.from_numpy(batch.photos), step)
                accelerator.backward(total)
                if self.config.optim.clip_norm:
                    clip = self.config.optim.clip_norm
                    accelerator.clip_grad_norm_(self.student.parameters(), clip)
                self._optimizer.step()
                self._optimizer.zero_grad()
                if not accelerator.optimizer_step_was_skipped:
                    self._scheduler.step()
                terms = {name: value.detach() for name, value in terms.items()}
                meter.add(len(batch.images), total.detach(), terms)
                step += 1
                advance(1)
                ends = step % LOG_STEPS == 0 or step == self.config.steps
                moment(step, meter.read() if ends else {})
        self.watch.flush()
        if not all(bool(weight.isfinite().all()) for weight in self.student.parameters()):
            # No loss is left to show what the last step did.
            raise NotFiniteError(
                f"the weights are not finite after step {step - 1}: start a new run with {REMEDY}"
            )

    def _source(self, experience: Experience) -> Source:
        pool = self.method.pool(experience.train)
        return Source(experience.number, pool, self.labels(np.arange(len(self.photos))))

    def _batch(self, source: Source, step: int) -> LearnBatch:
        """This process's photos of a step, as they go through the student."""
        accelerator, config = self.accelerator, self.config
        rank, ranks = accelerator.process_index, accelerator.num_processes
        size = self.method.new_photos()
        chosen = draw_batch(source.pool, size, step, rank, ranks, config.seed, source.number)
        seeds = (config.seed, source.number, step, rank)
        views = draw_views(FLIP, size, *seeds)
        images = self.photos.images(chosen).to(accelerator.device)
        images = normalise(apply_views(images, views))
        landmarks = None
        if self.context.teacher is not None:
            points = self.photos.landmarks(chosen)
            landmarks = view_landmarks(points, views, self.photos.size_px)
        return LearnBatch(
            images.contiguous(memory_format=torch.channels_last),
            source.labels[torch.from_numpy(chosen)].to(accelerator.device),
            chosen,
            landmarks,
            self._targets(chosen, views),
            seeds,
        )

    def _targets(self, photos: Ints, views: Any) -> Tensor | None:
        """(B, E) kept vectors of the photos, or of their mirror images."""
        reader = self.context.targets
        if reader is None:
            return None
        vectors, _ = reader.read(*self.photos.places(photos), views[:, 0].astype(np.int64))
        return torch.from_numpy(vectors).to(self.accelerator.device)

    # --- what it knows -------------------------------------------------------------------------

    def predict(self, photos: Ints) -> Tensor:
        """(N,) labels of photos; all processes get all of them."""

        def name(images_BCHW: Tensor) -> Tensor:
            features = self.student.features(normalise(images_BCHW.to(self.accelerator.device)))
            embeddings = torch.nn.functional.normalize(features.float(), dim=1).cpu()
            return self.method.predict(embeddings, self.student.classify(features).cpu())

        return self.context.share(photos, name, torch.empty(0, dtype=torch.int64))

    def spread(self, photos: Ints) -> float | None:
        """Of the student's embeddings, over one photo of each identity; None: there are not two."""
        identities, first = np.unique(self.photos.identity[photos], return_index=True)
        return spread(self.context.embed(photos[first]).numpy(), identities)

    def right(self, photos: Ints) -> Tensor:
        """(N,) whether the photos' identities are named."""
        return self.predict(photos) == self.labels(photos)

"""A student that learns one experience after another.

1. The last layer gets a row for each new identity.
2. The method's `before` is called.
3. A fixed number of optimizer steps follows. Each takes a batch of the experience and minimises the
   method's loss.
4. The method's `after` is called.

Batch norm keeps the statistics that the student came with, for every method. Statistics of the
photos of a few people would not fit other people, and an experience may be a single photo.

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
from persona.data.ensembles import Reader
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
from persona.training.meter import FiniteWatch, Meter, NotFiniteError
from persona.training.optim import build_optimizer, build_scheduler
from persona.training.run import LOG_STEPS
from persona.training.teacher import Teacher

log = logging.getLogger(__name__)

Moment = Callable[[int, dict[str, float]], None]


class BatchSource(NamedTuple):
    """What the batches of an experience are drawn from."""

    number: int
    """Number of the experience, from 0."""
    pool: Ints
    """Numbers of the photos to draw from."""
    labels: Tensor
    """(N,) int64 labels of all photos, by photo number."""


class Learner:
    """A student with a method of continual learning and the identities learned so far."""

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
        targets: Reader | None = None,
        quiet: bool = False,
    ) -> None:
        """Builds the method. The student is trained in place.

        Args:
            config: method, steps and options.
            student: a student whose last layer has a row for each of `classes`, or no last layer.
            classes: identities that the student knows, in the order of its logits.
            photos: the photos that the experiences refer to.
            accelerator: device and processes.
            folder: folder of the run. The photos of a loss that is not finite are noted there.
            teacher: the original teacher, which method `anchor` needs.
            targets: precomputed teacher embeddings of the first set's photos.
            quiet: show no progress bar.

        Raises:
            PersonaError: the config lacks what the method needs.
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
        """(N,) int64 labels of photos: their identity's place in `classes`, -1 if not known yet."""
        known = {name: label for label, name in enumerate(self.classes)}
        table = np.array([known.get(name, -1) for name in self.photos.names], np.int64)
        return torch.from_numpy(table[self.photos.identity[photos]])

    def grow(self, experience: Experience) -> None:
        """Adds a row to the last layer for each new identity."""
        self.classes += sorted(set(experience.identities) - set(self.classes))
        if self.method.trains and self.student.num_classes != len(self.classes):
            torch.manual_seed(mix_seeds(self.config.seed, len(self.classes)))
            self.student.resize_head(len(self.classes))

    def check(self, experiences: Sequence[Experience]) -> None:
        """Raises PersonaError if what the method must keep of the experiences does not fit."""
        photos = np.concatenate([experience.train for experience in experiences])
        labels = self.labels(photos).numpy()
        unknown = len(self.classes) + self.photos.identity[photos]
        self.method.check(photos, np.where(labels < 0, unknown, labels))

    def adopt(self, experience: Experience) -> None:
        """Hands the method an experience that the student already knows, without training."""
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
        """Learns an experience from its start, or continues it after an interruption.

        Args:
            experience: the identities and photos to learn.
            step: number of steps already done.
            state: `training_state` at that step. None at step 0.
            moment: called after each step with the number of steps done. Every `LOG_STEPS` steps
                and after the last one it also gets the metrics since the last such call, otherwise
                an empty dict.

        Raises:
            NotFiniteError: the loss is not finite, or at the end the weights are not.
            PersonaError: the student would know a single identity, so there is nothing to tell it
                from.
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
        """Wraps the student and builds a new optimizer, since the last layer may be a new one."""
        raw = build_optimizer(self.student, self.config.optim)
        steps = self.config.steps
        self._scheduler = build_scheduler(raw, self.config.optim, steps, steps)
        self.accelerator.free_memory()  # drops the optimizer of the experience before
        self.context.forward, self._optimizer = prepare(self.accelerator, self.student, raw)
        if state is not None:
            self._optimizer.load_state_dict(state["optimizer"])
            self._scheduler.load_state_dict(state["scheduler"])

    def training_state(self) -> dict[str, Any]:
        """State of the optimizer and its schedule, for a checkpoint within an experience."""
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
            # EWC's penalty gives gradients of other strides for weights with a dimension of size 1.
            # The memory layout is the same, so the warning does not apply.
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
        self.watch.check(self.student)

    def _source(self, experience: Experience) -> BatchSource:
        pool = self.method.pool(experience.train)
        return BatchSource(experience.number, pool, self.labels(np.arange(len(self.photos))))

    def _batch(self, source: BatchSource, step: int) -> LearnBatch:
        """This process's batch of a step: random views with labels, landmarks and targets."""
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
        """(B, E) precomputed teacher embeddings of the photos or their mirror images."""
        reader = self.context.targets
        if reader is None:
            return None
        vectors, _ = reader.read(*self.photos.places(photos), views[:, 0].astype(np.int64))
        return torch.from_numpy(vectors).to(self.accelerator.device)

    # --- what it knows -------------------------------------------------------------------------

    def predict(self, photos: Ints) -> Tensor:
        """(N,) int64 predicted labels of photos, on every process."""

        def name(images_BCHW: Tensor) -> Tensor:
            features = self.student.features(normalise(images_BCHW.to(self.accelerator.device)))
            embeddings = torch.nn.functional.normalize(features.float(), dim=1).cpu()
            return self.method.predict(embeddings, self.student.classify(features).cpu())

        return self.context.share(photos, name, torch.empty(0, dtype=torch.int64))

    def spread(self, photos: Ints) -> float | None:
        """Spread of the student's embeddings over one photo of each identity.

        None means that there are fewer than two identities. See persona/evaluation/spread.py.
        """
        identities, first = np.unique(self.photos.identity[photos], return_index=True)
        return spread(self.context.embed(photos[first]).numpy(), identities)

    def right(self, photos: Ints) -> Tensor:
        """(N,) whether the identity of each photo is predicted correctly."""
        return self.predict(photos) == self.labels(photos)

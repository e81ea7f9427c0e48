"""What a distillation works with: its sets, its teacher, and the student that it starts from.

Everything here is opened and checked before the first step, so that a mistake of the user ends the
command at once.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator

from persona.config import FIXED_SIZE, NOT_LEARNED, DistillConfig, to_dict
from persona.data.mixed import MixedSet, open_mixed
from persona.data.sets import FaceSet, open_set
from persona.data.stream import EpochLoader, build_loader
from persona.distill.exclusion import Exclusion, exclude
from persona.distill.start import StartingPoint, find_start
from persona.errors import NotPacked, PersonaError
from persona.models.sources import NamedNetwork
from persona.models.student import Student
from persona.training.length import Length
from persona.training.losses import head_kind
from persona.training.run import Run, Stored
from persona.training.teacher import TeacherSide, open_teacher
from persona.training.trainer import Trainer
from persona.workspace import Workspace, user_path

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Inputs:
    """The sets, the teacher and the starting point of a distillation, opened and checked."""

    config: DistillConfig
    train: MixedSet
    """The train sets, without the photos that are left out."""
    excluded: Exclusion
    test: FaceSet | None
    """The test set. None means that the last student is kept."""
    side: TeacherSide
    start: StartingPoint | None
    """The student of `--from`. None means that the run starts anew or is resumed."""
    started_from: str | None
    """SHA-256 of the weights of `--from`, also in a run that is resumed."""
    resumed: bool
    """Whether a checkpoint follows, which holds all weights of the student."""

    def origin(self) -> dict[str, object]:
        """What must be the same when the run is resumed."""
        config = self.config
        origin: dict[str, object] = {
            "recipe": {k: v for k, v in to_dict(config).items() if k not in NOT_LEARNED},
            "train set": self.train.origin,
            "targets": "kept" if self.side.targets else "online",
            "teacher": self.side.digest,
        }
        if self.excluded:
            origin["photos left out"] = self.excluded.digest
        if self.started_from is not None:
            origin["from"] = self.started_from
        return origin

    def build_student(self, workspace: Workspace) -> Student:
        """Builds the student, with the weights of the starting point if there is one.

        A run that is resumed asks for no weights, as those of its checkpoint replace them.

        Its embedding size is `side.embedding_size`. Seed torch before.

        Raises:
            PersonaError: pretrained weights of the backbone cannot be had, it fails on crops of
                this size, it leaves the pooling one place to weigh, or the starting point has
                other options.
        """
        config, image_size = self.config, self.train.align.image_size
        options = dataclasses.replace(config.student, embedding_size=self.side.embedding_size)
        if self.start is not None:
            self.start.check(options, image_size)
        student = Student(
            options,
            len(self.side.classes),
            head=head_kind(config.losses),
            image_size=image_size,
        )
        if student.maps_side() == 1:
            where = f"{options.architecture} leaves one place of a crop of {image_size} px"
            if options.pooling in FIXED_SIZE:
                raise PersonaError(
                    f"student.pooling {options.pooling} weighs places, and {where}: choose "
                    "average, or a larger --image-size"
                )
            log.warning(
                "warning: %s, so no part of a face has a place of its own: smaller strides of the "
                "student or a larger --image-size leave more",
                where,
            )
        if self.start is not None:
            self.start.load(student, self.side.classes)
        elif not self.resumed:
            student.start(workspace.models)
        return student

    def loader(
        self,
        accelerator: Accelerator,
        epoch: int,
        skip: int = 0,
        earlier: Sequence[Sequence[int]] = (),
    ) -> EpochLoader:
        """The batches of this process in an epoch. The options are those of `build_loader`."""
        config = self.config
        return build_loader(
            self.train,
            batch_size=config.batch_size,
            training=True,
            seed=config.seed,
            epoch=epoch,
            skip=skip,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
            workers=config.workers,
            multiple=config.gradient_accumulation_steps,
            earlier=earlier,
            augment=config.augment,
            targets=self.side.targets,
        )

    def announce(self, run: Run, length: Length, trainer: Trainer) -> None:
        """Logs the student, the teacher, the train set and the length of the run.

        Args:
            run: the run, with its ID, processes and folder.
            length: the length of the run.
            trainer: the student, the teacher and the projection between them.
        """
        unit = " in epochs" if length.epochs is None else ""
        config, train, plan = self.config, self.train, self.loader(run.accelerator, epoch=0).plan
        log.info(
            "run %s: %s, teacher %s (%s), set %s (%d samples, %d identities), %s of %d batches of "
            "%d on %d process(es) of %d thread(s), %d samples an epoch left out by the last batch",
            *(run.id, config.student.architecture, config.teacher, self._targets_are(trainer)),
            *(train.name, len(train), train.people, f"{length.counted}{unit}", plan.batches),
            *(config.batch_size, plan.world_size, torch.get_num_threads(), plan.dropped),
        )
        if run.progress.earlier:
            rest = self.loader(run.accelerator, run.progress.epoch, 0, run.progress.earlier).plan
            log.info(
                "of epoch %d, %d samples were left for this number of processes: %d batches on "
                "each, %d samples left out by the last batch",
                *(run.progress.epoch + 1, rest.samples, rest.batches, rest.dropped),
            )
        if self.excluded and run.accelerator.is_main_process:
            listed = self.excluded.write(run.folder, train)
            told = "%d photos are left out as near others by the teacher; %s lists them"
            log.info(told, len(self.excluded), listed)
        if trainer.projection is not None:
            log.info(
                "the student's embedding has %d dimensions; while it learns, a linear head maps it "
                "to the teacher's %d",
                *(trainer.student.embedding_size, trainer.projection.out_features),
            )

    def _targets_are(self, trainer: Trainer) -> str:
        """Where the teacher's embeddings come from, as text."""
        teacher = trainer.task.teacher
        if self.side.targets is not None:
            views = dict.fromkeys(targets.views for targets in self.side.targets)
            return f"{' and '.join(map(str, views))} kept views a photo"
        if teacher is None:
            return "not asked"
        return f"online, {teacher.dtype or torch.float32}".replace("torch.", "")


def open_inputs(
    config: DistillConfig,
    workspace: Workspace,
    accelerator: Accelerator,
    stored: Stored | None = None,
    teacher: NamedNetwork | None = None,
) -> Inputs:
    """Opens the sets, the teacher and the starting point of a config.

    Args:
        config: the resolved config.
        workspace: the folders of sets and models.
        accelerator: the processes, which agree on the photos that are left out.
        stored: the checkpoint of a run that is resumed. It holds the weights, so no starting point
            is opened.
        teacher: the network that `config.teacher` names, if it is already loaded.

    Raises:
        PersonaError: a set, the teacher or the starting point cannot be opened or does not fit.
    """
    cache = user_path(config.cache) if config.cache else None
    shards, verify = workspace.shards, config.verify
    train = open_mixed(config.train_set, shards, cache, verify=verify)
    train, excluded = exclude(config, workspace, train, accelerator, teacher)
    test = None
    if config.test_set != "none":
        try:
            test = open_set(config.test_set, shards, cache, verify=verify, like=train.align)
        except NotPacked as error:
            raise PersonaError(f"{error}; --test-set none trains without a test set") from None
    side = open_teacher(config, workspace, train, teacher)
    start, started_from = None, None
    if config.from_model is not None and stored is not None:
        started_from = str(stored.state["origin"].get("from", ""))
    elif config.from_model is not None:
        start = find_start(config.from_model, workspace.models)
        started_from = start.card.weights_sha256
    resumed = stored is not None
    return Inputs(config, train, excluded, test, side, start, started_from, resumed)

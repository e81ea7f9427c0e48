"""Distils a student from a teacher: `accelerate launch -m persona.distill --temperature 4`.

1. open the sets and the teacher; what a user can get wrong is found here, before the first step
2. student and optimizer go through Accelerate; the frozen teacher only to the device
3. each epoch: stream batches, one train step each, checkpoints on the way
4. after each epoch: evaluate on all processes, keep the best student, by the figure that the
   protocol of the test set names (persona/evaluation/protocols/)

The command line is persona/cli/distill.py, the config persona/config.py, the objective
persona/training/task.py.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the heavy imports: --help and a wrong option answer at once
    from persona.cli import distill_main

    distill_main()

import contextlib
import dataclasses
import logging
import math
import os
import sys
import warnings
from collections.abc import Sequence
from types import ModuleType, TracebackType
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    broadcast,
    broadcast_object_list,
    gather_object,
    set_seed,
)
from torch import Tensor
from torch.optim import Optimizer

from persona.config import NOT_LEARNED, DistillConfig, differences, save_config, to_dict
from persona.data.shards import Manifest, open_set
from persona.data.storage import SetFolder
from persona.data.stream import Batch, EpochLoader, build_loader, to_device
from persona.data.transforms import apply_views, normalise, view_landmarks
from persona.errors import PersonaError, resumed_by
from persona.evaluation.protocols import (
    Evaluation,
    Options,
    Subject,
    check_measure,
    default_measure,
    evaluate,
    protocols,
)
from persona.evaluation.protocols.verification import pair_scores
from persona.evaluation.sanity import check_teacher
from persona.files import folder_lock
from persona.memory import keep_freed_memory
from persona.models import store
from persona.models.cards import EMA, list_models, new_id
from persona.models.sources import NamedNetwork
from persona.models.student import Student
from persona.progress import progress_bar
from persona.report.plain import pair_curves
from persona.training.callbacks import Callback, Moment, tell
from persona.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from persona.training.losses import head_kind
from persona.training.meter import FiniteWatch, Meter
from persona.training.optim import build_ema, build_optimizer, build_scheduler
from persona.training.task import DistillationTask
from persona.training.teacher import TeacherSide, open_teacher
from persona.training.tracking import Tracker
from persona.workspace import Workspace, user_path

log = logging.getLogger(__name__)

T = TypeVar("T")

CONFIG = "config.yaml"
DDP_OPTIONS = DistributedDataParallelKwargs(
    broadcast_buffers=False,  # batch norm's statistics are the main process's, sent when they count
    gradient_as_bucket_view=True,
)
LOG_STEPS = 20
"""Optimizer steps between metric records."""


def distill(
    config: DistillConfig,
    workspace: Workspace,
    resume: str | None = None,
    *,
    teacher: NamedNetwork | None = None,
    callbacks: Sequence[Callback] = (),
) -> str:
    """Trains a student and keeps the best one; returns its ID, which is the run's too.

    Args:
        config: the resolved config; with `resume` it is that run's.
        workspace: where sets, models and runs lie.
        resume: ID of a run to take up from its last checkpoint.
        teacher: the network that `config.teacher` names, if it is loaded already.
        callbacks: told of steps, epochs and evaluations; one may end the training.

    Raises:
        PersonaError: what a user can mend, found before the first step where it can be.
    """
    accelerator = build_accelerator(
        config.mixed_precision,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        dynamo_backend=config.compile,
    )
    run = Run(config, workspace, accelerator, resume, teacher, callbacks)
    with resumed_by(f"--resume {run.id}"), run:
        while run.progress.epoch < config.epochs and not run.stopping:
            run.train_epoch()
            run.finish_epoch()
        run.tell_collapse()
        run.track_curves()
    return run.id


def check_test_set(student: NamedNetwork, manifest: Manifest) -> None:
    """Raises PersonaError if an epoch's student cannot be measured on the set."""
    try:
        check_measure(default_measure(manifest), student, manifest)
    except PersonaError as error:
        raise PersonaError(f"--test-set: {error}; `none` goes without") from None


def build_accelerator(mixed_precision: str, **options: Any) -> Accelerator:
    """The devices and processes of a training.

    Batches come ready for each rank and the schedule is stepped by hand, so Accelerate is asked for
    devices, precision, accumulation and gradients, not for data.

    Raises:
        PersonaError: the device does not have this precision, or an option that it cannot do.
    """
    try:
        accelerator = Accelerator(
            mixed_precision=mixed_precision,
            step_scheduler_with_optimizer=False,
            kwargs_handlers=[DDP_OPTIONS],
            **options,
        )
    except ValueError as error:
        raise PersonaError(f"this device cannot do it: {error}") from None
    if accelerator.device.type == "cpu":
        if mixed_precision == "fp16":  # Accelerate takes it, and trains in float32
            raise PersonaError("mixed_precision fp16 works on GPUs alone: choose bf16 or no here")
        keep_freed_memory()
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched > accelerator.num_processes:  # each would train a student of its own
        raise PersonaError(
            f"{launched} processes were launched and there is no GPU for them: launch one "
            "(--num_processes 1), or on the CPU set ACCELERATE_USE_CPU=true"
        )
    return accelerator


class Run:
    """A training run: what it holds and what it does."""

    def __init__(
        self,
        config: DistillConfig,
        workspace: Workspace,
        accelerator: Accelerator,
        resume: str | None,
        teacher: NamedNetwork | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        self.config = config
        self.workspace = workspace
        self.accelerator = accelerator
        self.progress = Progress()
        self.callbacks, self.stopping = callbacks, False

        cache = user_path(config.cache) if config.cache else None
        shards, verify = workspace.shards, config.verify
        self.train_folder, self.train_set = open_set(config.train_set, shards, cache, verify=verify)
        self.test: tuple[SetFolder, Manifest] | None = None
        if config.test_set != "none":
            self.test = open_set(config.test_set, shards, cache, verify=verify)
        side = open_teacher(config, workspace, self.train_folder, self.train_set, teacher)
        self.targets, self.classes = side.targets, side.classes
        self.origin = {
            "recipe": {k: v for k, v in to_dict(config).items() if k not in NOT_LEARNED},
            "train set": self.train_set.digest,
            "targets": "kept" if side.targets else "online",
            "teacher": side.digest,
        }
        set_seed(config.seed)  # here: a teacher that was loaded or not must not change the student
        self.student = build_student(config, workspace, side, self.train_set.align.image_size)
        if self.test is not None:
            check_test_set(self.named(self.student), self.test[1])
        if side.network is not None and side.network.network.from_elsewhere:
            check_teacher(
                side.network, *(self.test or (self.train_folder, self.train_set)), accelerator
            )

        steps = self.loader(epoch=0).plan.batches // config.gradient_accumulation_steps
        student = self.student
        if config.sync_batch_norm:
            student = with_sync_batch_norm(student, accelerator)
        # Convolutions are up to twice as fast with channels last in memory, for the same sums.
        self.student = student.to(memory_format=torch.channels_last)
        self.ema = None
        if config.optim.ema_decay:
            self.ema = build_ema(self.student, config.optim.ema_decay).to(accelerator.device)
        raw_optimizer = build_optimizer(self.student, config.optim)
        total_steps = steps * config.epochs
        self.scheduler = build_scheduler(raw_optimizer, config.optim, total_steps, steps)
        wrapped, self.optimizer = prepare(accelerator, self.student, raw_optimizer)
        asked = side.teacher(config, accelerator.device, compile_options(accelerator))
        identities = len(self.train_set.classes)
        self.task = DistillationTask(wrapped, self.student, asked, config.losses, identities)
        self.task.to(accelerator.device)

        self.id = resume or agree(accelerator, new_id(config.student.architecture))
        self.folder = workspace.runs / self.id
        self.watch = FiniteWatch(self.folder, lag=4 if accelerator.device.type == "cuda" else 0)
        if resume:
            self.restore()
        self.tracker: Tracker | None = None
        self.held = contextlib.ExitStack()

    def __enter__(self) -> Run:
        """Takes the run's folder and tells what it is about to do; the main process alone."""
        if self.accelerator.is_main_process:
            self.held.enter_context(folder_lock(self.folder, doing="training in"))
            save_config(self.folder / CONFIG, self.config)
            tracker = Tracker(
                self.folder,
                run_id=self.id,
                config=to_dict(self.config),
                wandb=self.config.tracker == "wandb",
                step=self.progress.step,
            )
            self.tracker = self.held.enter_context(tracker)
            config, plan = self.config, self.loader(epoch=0).plan
            log.info(
                "run %s: %s, teacher %s (%s), set %s (%d samples, %d identities), %d epochs of %d "
                "batches of %d on %d process(es) of %d thread(s), %d samples an epoch left out by "
                "the last batch",
                *(self.id, config.student.architecture, config.teacher, self.targets_are),
                self.train_set.name,
                *(self.train_set.samples, self.train_set.identities, config.epochs, plan.batches),
                *(config.batch_size, plan.world_size, torch.get_num_threads(), plan.dropped),
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.held.__exit__(kind, error, trace)
        if kind is None:
            self.accelerator.wait_for_everyone()
        self.accelerator.end_training()

    @property
    def targets_are(self) -> str:
        """Where the teacher's vectors come from, for a person."""
        if self.targets is not None:
            return f"{self.targets.views} kept views a photo"
        if self.task.teacher is None:
            return "not asked"
        return f"online, {self.task.teacher.dtype or torch.float32}".replace("torch.", "")

    def named(self, student: Student) -> NamedNetwork:
        """A student as evaluation takes it."""
        return NamedNetwork(
            name="the student",
            network=student,
            trained_on=self.train_set.dataset,
            classes=self.classes,
            image_size=self.train_set.align.image_size,
        )

    def loader(self, epoch: int, skip: int = 0) -> EpochLoader:
        """This rank's batches of an epoch, from batch `skip` on."""
        return build_loader(
            self.train_folder,
            self.train_set,
            batch_size=self.config.batch_size,
            training=True,
            seed=self.config.seed,
            epoch=epoch,
            skip=skip,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
            workers=self.config.workers,
            multiple=self.config.gradient_accumulation_steps,
            augment=self.config.augment,
            targets=self.targets,
        )

    # --- an epoch ------------------------------------------------------------------------------

    def train_epoch(self) -> None:
        """Trains on what is left of the epoch."""
        progress, accelerator = self.progress, self.accelerator
        loader = self.loader(progress.epoch, skip=progress.batch)
        meter = Meter(accelerator.num_processes, accelerator.device)
        self.task.train()
        title = f"epoch {progress.epoch + 1}/{self.config.epochs}"
        with progress_bar(
            title,
            total=loader.plan.batches,
            done=progress.batch,
            unit="batches",
            enabled=accelerator.is_main_process,
        ) as advance:
            for batch in meter.waiting_for(to_device(loader, accelerator.device)):
                total, terms = self.train_step(batch)
                meter.add(len(batch.images), total, terms)
                progress.batch += 1
                advance(1)
                if accelerator.sync_gradients:
                    progress.step += 1
                    if progress.step % LOG_STEPS == 0:
                        self.record(**meter.read())
                    if progress.step % self.config.checkpoint_steps == 0:
                        self.checkpoint()
                    if self.callbacks:
                        losses = {name: float(value) for name, value in terms.items()}
                        self.tell("on_step", {"loss": float(total), **losses})
                    if self.stopping:
                        break
        self.watch.flush()
        self.record(**meter.read())
        self.tell("on_epoch", {})

    def tell(self, method: str, metrics: dict[str, float]) -> None:
        """Tells the callbacks where the training stands; the main process's may end it for all."""
        if self.callbacks:
            moment = Moment(self.id, self.progress.step, self.progress.epoch, metrics)
            tell(self.callbacks, method, moment)
            self.stopping |= agree(self.accelerator, moment.stopping)

    def train_step(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """One batch; the same with accumulation, mixed precision, one process or many."""
        accelerator = self.accelerator
        views = batch.views.numpy()
        images = normalise(apply_views(batch.images, views))
        images = images.contiguous(memory_format=torch.channels_last)
        landmarks = view_landmarks(batch.landmarks, views, images.shape[2])
        with accelerator.accumulate(self.task.student):
            with accelerator.autocast():
                total, terms = self.task(images, batch.labels, batch.targets, landmarks)
            self.watch.add(total, batch.keys, self.progress.step)
            accelerator.backward(total)
            terms |= self.clip_gradients()
            self.optimizer.step()
            self.optimizer.zero_grad()
        if accelerator.sync_gradients and not accelerator.optimizer_step_was_skipped:
            self.scheduler.step()
            if self.ema is not None:
                self.ema.update_parameters(self.student)
        return total.detach(), terms

    def clip_gradients(self) -> dict[str, Tensor]:
        """Scales the gradients down where the recipe says so; their norm, on steps that record."""
        clip, accelerator = self.config.optim.clip_norm, self.accelerator
        recorded = (self.progress.step + 1) % LOG_STEPS == 0
        if not accelerator.sync_gradients or not (clip or recorded):
            return {}
        norm = accelerator.clip_grad_norm_(self.student.parameters(), clip or float("inf"))
        return {"gradient_norm": norm.detach()} if recorded and norm is not None else {}

    def finish_epoch(self) -> None:
        """Evaluates, keeps the student if it is the best, and notes the epoch as done.

        Of equally good epochs the later is kept. One whose student has collapsed is worse than any
        other: it is kept only as long as there is no other.
        """
        progress = self.progress
        progress.epoch, progress.batch = progress.epoch + 1, 0
        figures: dict[str, float] = {}
        for suffix, student in self.students().items():
            evaluation = self.evaluate(student)
            worth = worth_of(evaluation)
            kept = worth >= progress.best.get(suffix, -math.inf)
            if kept:
                progress.best[suffix] = worth
                if self.accelerator.is_main_process:
                    self.save(student, suffix, evaluation)
            if evaluation is not None:
                prefix = f"test-{suffix}" if suffix else "test"
                figures |= _figures(evaluation, prefix)
                figures[f"{prefix}/kept_by_{evaluation.chosen_by}"] = float(kept)
                self.tell_epoch(evaluation, suffix, kept)
        self.checkpoint()
        if figures:
            self.record(epoch=progress.epoch, **figures)
            self.tell("on_evaluation", figures)

    def tell_epoch(self, evaluation: Evaluation, suffix: str, kept: bool) -> None:
        """Says what an epoch is worth, and loudly if its student has collapsed."""
        by = evaluation.chosen_by
        shown = {"accuracy": evaluation.accuracy, by: evaluation.score}
        log.info(
            "epoch %d/%d: %s %s on %s%s%s",
            *(self.progress.epoch, self.config.epochs, evaluation.measure),
            ", ".join(f"{name} {value:.4f}" for name, value in shown.items()),
            *(evaluation.set, f" ({suffix})" if suffix else ""),
            f", the best so far by {by}" if kept and not evaluation.collapse else "",
        )
        if evaluation.collapse:
            log.warning("warning: epoch %d: %s", self.progress.epoch, evaluation.collapse)

    def tell_collapse(self) -> None:
        """Says once more at the end which of the kept models has collapsed."""
        for card in list_models(self.workspace.models):
            if card.made_in == self.id and card.collapsed:
                log.warning(
                    "warning: %s had collapsed after every epoch: do not use it, train anew with a "
                    "lower --lr or -o optim.clip_norm=1",
                    card.id,
                )

    def model_id(self, suffix: str) -> str:
        """What a student of this run is called in the model store."""
        return f"{self.id}-{suffix}" if suffix else self.id

    def students(self) -> dict[str, Student]:
        """The student, and beside it the running mean of its weights where one is kept."""
        both = {"": self.student}
        if self.ema is not None:
            mean: Any = self.ema.module
            both[EMA] = mean
        return both

    def evaluate(self, student: Student) -> Evaluation | None:
        """A student on the test set, by all processes; None without a test set."""
        if self.test is None:
            return None
        # Each rank's batch norm has its own running statistics; the main process's are kept.
        for buffer in student.buffers():
            broadcast(buffer, from_process=0)
        return evaluate(
            self.named(student),
            *self.test,
            self.accelerator,
            batch_size=self.config.batch_size,
            workers=self.test_workers,
        )

    @property
    def test_workers(self) -> int | None:
        """On the CPU as few as will do: to fork one is to copy what training holds, bit by bit."""
        return None if self.accelerator.device.type == "cpu" else self.config.workers

    @property
    def chosen_by(self) -> str | None:
        """The figure by which epochs are compared; None: there is no test set."""
        return None if self.test is None else protocols()[default_measure(self.test[1])].chosen_by

    def compare_anew(self) -> None:
        """Takes the best so far from the figures of the models that are kept."""
        known = {card.id: card for card in list_models(self.workspace.models)}
        for suffix in self.progress.best:
            card = known.get(self.model_id(suffix))
            value = card.scores.get(self.chosen_by or "") if card is not None else None
            self.progress.best[suffix] = -math.inf if value is None else float(value)

    def track_curves(self) -> None:
        """Gives W&B the last student's ROC and scores on the test pairs; by all processes."""
        if self.config.tracker != "wandb" or self.test is None or not self.test[1].pairs:
            return
        named, size = self.named(self.student), self.config.batch_size
        subject = Subject(
            *(named, *self.test, self.accelerator, Options(), size, self.test_workers)
        )
        scores, _ = pair_scores(subject)
        if self.tracker is not None:
            for curves in pair_curves(scores.score, scores.same):
                image = curves.image(log_x=curves.title == "ROC")
                name = f"test/{curves.title}"
                self.tracker.log_curve(self.progress.step, name, *curves.rows(), image)

    # --- what is kept --------------------------------------------------------------------------

    def record(self, **figures: float) -> None:
        """Notes figures at this step."""
        if self.tracker is not None and figures:
            self.tracker.log(
                self.progress.step,
                epoch=figures.pop("epoch", self.progress.epoch),
                **figures,
                lr=float(self.scheduler.get_last_lr()[0]),
            )

    def save(self, student: Student, suffix: str, evaluation: Evaluation | None) -> None:
        """Puts a student into the model store."""
        config = self.config
        model_id = self.model_id(suffix)
        soft = config.losses.soft_targets
        store.save_model(
            self.workspace.models,
            student,
            model_id=model_id,
            classes=self.classes,
            teacher=config.teacher,
            temperature=soft.temperature if soft else None,
            epochs=self.progress.epoch,
            score=evaluation.score if evaluation else None,
            chosen_by=evaluation.chosen_by if evaluation else "",
            run=self.id,
            scores=evaluation.to_json() | {"model": model_id} if evaluation else {},
            train_set=self.train_set.name,
            alignment=dataclasses.asdict(self.train_set.align),
            test_set=self.test[1].name if self.test else "none",
            config=to_dict(config),
        )

    def checkpoint(self) -> None:
        """Writes where the run stands; ranks differ in nothing but their RNG."""
        self.watch.flush()  # what is not finite must not be kept
        rng = gather_object([rng_state()])
        if self.accelerator.is_main_process:
            scaler = self.accelerator.scaler
            state = {
                "student": self.student.state_dict(),
                "ema": self.ema.state_dict() if self.ema is not None else None,
                "losses": self.task.losses.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scheduler": self.scheduler.state_dict(),
                "scaler": scaler.state_dict() if scaler else None,
                "rng": rng,
                "origin": self.origin,
                "chosen_by": self.chosen_by,
            }
            world_size = self.accelerator.num_processes
            save_checkpoint(self.folder, self.progress, world_size, state)
        self.accelerator.wait_for_everyone()

    def restore(self) -> None:
        """Takes up the last checkpoint; a run killed before its first starts over."""
        found = load_checkpoint(self.folder)
        if found is None:
            return
        progress, world_size, state = found
        differing = differences(state["origin"], self.origin)
        if differing:
            raise PersonaError(
                f"run {self.id} was trained with another recipe, set or teacher "
                f"({'; '.join(differing)}): restore it, or start a new run"
            )
        if progress.batch and world_size != self.accelerator.num_processes:
            raise PersonaError(
                f"run {self.id} stopped inside an epoch on {world_size} process(es): "
                f"resume it on as many, not {self.accelerator.num_processes}"
            )
        self.progress = progress
        if "chosen_by" not in state:  # an older run, which compared epochs by accuracy
            self.compare_anew()
        try:
            self.student.load_state_dict(state["student"])
            self.task.losses.load_state_dict(state["losses"])
            if self.ema is not None:
                self.ema.load_state_dict(state["ema"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.scheduler.load_state_dict(state["scheduler"])
        except (RuntimeError, TypeError, AttributeError, KeyError, ValueError):
            raise PersonaError(
                f"the checkpoint of run {self.id} is of another student or optimizer than its "
                f"{CONFIG} says: restore one of them, or start a new run"
            ) from None
        if self.accelerator.scaler is not None and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        if world_size == self.accelerator.num_processes:
            set_rng_state(state["rng"][self.accelerator.process_index])


def worth_of(evaluation: Evaluation | None) -> float:
    """What an epoch's student is compared by; the lowest value if nothing measured it, or if it
    has collapsed."""
    if evaluation is None or evaluation.collapse:
        return -math.inf
    return evaluation.score


def build_student(
    config: DistillConfig, workspace: Workspace, side: TeacherSide, image_size: int
) -> Student:
    """The student, with as many numbers a face as its teacher unless the recipe says otherwise."""
    student = Student(
        dataclasses.replace(config.student, embedding_size=side.embedding_size),
        len(side.classes),
        head=head_kind(config.losses),
        image_size=image_size,
    )
    if config.student.imagenet:
        store.start_from_imagenet(student, workspace.models)
    return student


def with_sync_batch_norm(student: Student, accelerator: Accelerator) -> Student:
    """Batch norm over all processes' batches.

    Raises:
        PersonaError: this is no GPU.
    """
    if accelerator.device.type != "cuda":
        raise PersonaError("sync_batch_norm works on GPUs alone: leave it out here")
    convert: Any = torch.nn.SyncBatchNorm.convert_sync_batchnorm
    converted: Student = convert(student)
    return converted


def compile_options(accelerator: Accelerator) -> dict[str, Any] | None:
    """What Accelerate compiles the student with; None: it does not."""
    plugin: Any = accelerator.state.dynamo_plugin
    return dict(plugin.to_kwargs()) if plugin.backend.value != "NO" else None


def prepare(
    accelerator: Accelerator, student: Student, optimizer: Optimizer
) -> tuple[torch.nn.Module, Any]:
    """Student (on the device, in DDP where there are several processes) and its optimizer."""
    with warnings.catch_warnings():
        # torch 2.15 renamed an option that Accelerate 1.15 knows by its old name alone.
        warnings.filterwarnings("ignore", message=".*broadcast_buffers.* is deprecated")
        prepared: Any = accelerator.prepare(student, optimizer)
    return prepared[0], prepared[1]


def agree(accelerator: Accelerator, value: T) -> T:
    """The main process's value, on every process."""
    values = [value]
    if accelerator.num_processes > 1:
        broadcast_object_list(values)
    return values[0]


def rng_state() -> dict[str, Tensor]:
    """This process's torch generators."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state: dict[str, Tensor]) -> None:
    """Restores `rng_state`."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def _figures(evaluation: Evaluation, prefix: str) -> dict[str, float]:
    """An evaluation as flat figures: `test/accuracy` and so on."""
    figures: dict[str, float] = {}
    for name, value in evaluation.to_json().items():
        if name == "tar_at_far":  # without those that the set cannot resolve
            named = {f"{prefix}/{name}/{far}": tar for far, tar in value.items()}
            figures |= {key: tar for key, tar in named.items() if tar is not None}
        elif isinstance(value, int | float):
            figures[f"{prefix}/{name}"] = value
    return figures


class _CallableModule(ModuleType):
    """`persona.distill` is this module, and the public function of the same name too."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        from persona.api.training import distill_student

        return distill_student(*arguments, **options)


sys.modules[__name__].__class__ = _CallableModule

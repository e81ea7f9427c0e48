"""Distils a student from a teacher: `accelerate launch -m persona.distill --temperature 4`.

1. Open the sets and the teacher. Mistakes of the user are found here, before the first step.
2. Accelerate prepares student and optimizer. The frozen teacher is only moved to the device.
3. In each epoch: stream the batches, take a train step on each, and write checkpoints.
4. After each epoch, or every `evaluate_steps` steps: evaluate on all processes and keep the best
   student.

Step 1 is persona/distill/inputs.py. The run itself (folder, lock, tracker, checkpoints) is
persona/training/run.py, the train step persona/training/trainer.py, the objective
persona/training/task.py, and the choice of the best student persona/distill/selection.py. The
config is persona/config.py, the command line persona/cli/distill.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed
from torch import Tensor

from persona.config import DistillConfig, to_dict
from persona.data.mixing import draw_mix
from persona.data.stream import to_device
from persona.distill.inputs import open_inputs
from persona.distill.selection import Selection
from persona.distill.start import AUTO, find_unfinished
from persona.errors import resumed_by
from persona.evaluation.sanity import check_teacher
from persona.models.sources import NamedNetwork, spell
from persona.progress import progress_bar
from persona.training.callbacks import Callback
from persona.training.devices import agree, build_accelerator, rng_state, set_rng_state
from persona.training.length import Length
from persona.training.meter import Meter
from persona.training.run import DISTILLING, LOG_STEPS, Run, find_stored
from persona.training.trainer import Trainer
from persona.workspace import Workspace


def distill(
    config: DistillConfig,
    workspace: Workspace,
    resume: str | None = None,
    *,
    teacher: NamedNetwork | None = None,
    callbacks: Sequence[Callback] = (),
) -> str:
    """Trains a student and saves the best one; returns its ID, which is also the ID of the run.

    Args:
        config: the resolved config. With `resume` it is the config of that run.
        workspace: the folders of sets, models and runs.
        resume: ID of the run to continue from its last checkpoint. `auto` continues the newest
            unfinished run of the same config, or begins a new one.
        teacher: the network that `config.teacher` names, if it is already loaded.
        callbacks: called after steps, epochs and evaluations. A callback may end the training.

    Raises:
        PersonaError: an error that the user can mend, raised before the first step where possible.
    """
    config = dataclasses.replace(config, teacher=spell(config.teacher))
    accelerator = build_accelerator(
        config.mixed_precision,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        dynamo_backend=config.compile,
    )
    if resume == AUTO:
        # The first process decides: a shared file system may show another one an older state.
        resume = agree(accelerator, find_unfinished(config, workspace.runs))
    training = Distillation(config, workspace, accelerator, resume, teacher, callbacks)
    with resumed_by(f"--resume {training.run.id}"), training.run:
        training.selection.update_cards()
        training.inputs.announce(training.run, training.length, training.trainer)
        while not training.ends:
            training.train_epoch()
            training.end_epoch()
        training.selection.tell_collapse()
        training.selection.track_curves(training.trainer.student)
    return training.run.id


class Distillation:
    """A student, its teacher and its sets, ready for the first step or the next one."""

    def __init__(
        self,
        config: DistillConfig,
        workspace: Workspace,
        accelerator: Accelerator,
        resume: str | None = None,
        teacher: NamedNetwork | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        """Opens the sets and the teacher of the config and restores the checkpoint of `resume`."""
        self.config, self.accelerator = config, accelerator
        stored = find_stored(DistillConfig, workspace, resume)
        self.inputs = open_inputs(config, workspace, accelerator, stored, teacher)
        train, side = self.inputs.train, self.inputs.side
        self.run = Run(
            *(DISTILLING, workspace, accelerator),
            architecture=config.student.architecture,
            config=to_dict(config),
            trackers=config.tracker,
            origin=self.inputs.origin(),
            resume=resume,
            stored=stored,
            callbacks=callbacks,
        )
        set_seed(config.seed)  # here, so that loading a teacher does not change the student
        student = self.inputs.build_student(workspace)
        self.selection = Selection(
            self.run, config, workspace, train, side.classes, self.inputs.test
        )
        self.selection.check(student)
        for network in side.networks:
            if network.network.from_elsewhere:
                check_teacher(network, self.inputs.test or train.labelled_part(), accelerator)

        self.length = Length(config.epochs, config.steps, config.photos)
        batches = config.gradient_accumulation_steps * accelerator.num_processes
        self.step_photos = config.batch_size * train.roles * batches
        epoch_batches = self.inputs.loader(accelerator, epoch=0).plan.batches
        epoch_steps = epoch_batches // config.gradient_accumulation_steps
        self.total_steps = self.length.total_steps(epoch_steps, self.step_photos)
        self.trainer = Trainer(
            *(config, student, side, accelerator),
            identities=len(train.identities),
            total_steps=self.total_steps,
            epoch_steps=epoch_steps,
            folder=self.run.folder,
        )
        self.evaluated: int | None = None
        """The step of the last evaluation in this process."""
        if stored is not None:
            self.selection.restore(stored.state)
            self.trainer.load(stored.state)
            if stored.world_size == accelerator.num_processes:
                set_rng_state(stored.state["rng"][accelerator.process_index])
            elif config.steps is None:  # the length is in epochs or photos, a step has others now
                done = self.trainer.stretch_schedule(stored.world_size / accelerator.num_processes)
                self.total_steps += self.run.progress.step - done

    # --- an epoch ------------------------------------------------------------------------------

    @property
    def ends(self) -> bool:
        """Whether the run has reached its length or a callback has ended it."""
        return self.length.reached(self.run.progress) or self.run.stopping

    def train_epoch(self) -> None:
        """Trains until the epoch or the run ends. A finished epoch counts as done."""
        progress, accelerator = self.run.progress, self.accelerator
        loader = self.inputs.loader(accelerator, progress.epoch, progress.batch, progress.earlier)
        meter = Meter(accelerator.num_processes, accelerator.device)
        self.trainer.task.train()
        with progress_bar(
            self.length.title(progress.epoch + 1),
            total=loader.plan.batches,
            done=progress.batch,
            unit="batches",
            enabled=accelerator.is_main_process,
        ) as advance:
            for batch in meter.waiting_for(to_device(loader, accelerator.device)):
                measured = (progress.step + 1) % LOG_STEPS == 0
                seeds = self.config.seed, progress.epoch, accelerator.process_index, progress.batch
                mix = draw_mix(self.config.mix, len(batch.labels), *seeds)
                total, terms = self.trainer.train_step(
                    batch, progress.step, mix=mix, measure_norm=measured
                )
                meter.add(len(batch.images), total, terms)
                progress.batch += 1
                advance(1)
                if accelerator.sync_gradients:
                    progress.step += 1
                    progress.photos += self.step_photos
                    self.after_step(meter, total, terms)
                    if self.ends:
                        break
        self.trainer.watch.flush()
        self.record(**meter.read())
        self.run.tell("on_epoch", {})
        # What ends the run inside an epoch is a length in steps or photos, or a callback.
        if progress.batch == loader.plan.batches:
            progress.epoch, progress.batch, progress.earlier = progress.epoch + 1, 0, []

    def after_step(self, meter: Meter, total: Tensor, terms: dict[str, Tensor]) -> None:
        """Records metrics, evaluates, writes a checkpoint and calls the callbacks, where due.

        Raises:
            Preempted: a process was told to end. The checkpoint is written.
        """
        step, config = self.run.progress.step, self.config
        preempted = self.run.preempted()
        if preempted and not self.ends:
            self.checkpoint()  # first: whoever told it to end may not wait for an evaluation
        evaluates = config.evaluate_steps is not None and step % config.evaluate_steps == 0
        if step % LOG_STEPS == 0 or evaluates:
            self.record(**meter.read())
        # After the last step of the run, `end_epoch` evaluates and writes the checkpoint.
        if evaluates and not self.ends:
            self.evaluate()
            self.trainer.task.train()
            meter.restart()  # the time of an evaluation is no training time
        elif step % config.checkpoint_steps == 0 and not preempted and not self.ends:
            self.checkpoint()
        if self.run.callbacks:
            losses = {name: float(value) for name, value in terms.items()}
            self.run.tell("on_step", {"loss": float(total), **losses})
        if preempted and not self.ends:
            self.run.end_early()

    def end_epoch(self) -> None:
        """Evaluates at the end of an epoch or of the run, or only writes a checkpoint.

        With `evaluate_steps` the end of an epoch is not evaluated, but the end of the run is.
        """
        progress = self.run.progress
        by_steps = self.config.evaluate_steps is not None
        if self.evaluated != progress.step and (self.ends or not by_steps):
            self.evaluate()
        else:
            self.checkpoint()

    def evaluate(self) -> None:
        """Evaluates the student and its EMA, and saves each that is the best of its kind so far."""
        self.trainer.check_finite()  # no student is saved that is not finite
        progress = self.run.progress
        place = self.length.place(progress, self.total_steps)
        figures = self.selection.choose(self.trainer.students(), place)
        self.evaluated = progress.step
        # Before the checkpoint: a resumed run records again whatever follows its checkpoint.
        self.record(**figures)
        self.checkpoint()
        if figures:
            self.run.tell("on_evaluation", figures)

    # --- what is kept --------------------------------------------------------------------------

    def record(self, **figures: float) -> None:
        """Records figures at the current step, together with the learning rate."""
        if figures:
            self.run.record(**figures, lr=self.trainer.learning_rate)

    def checkpoint(self) -> None:
        """Writes a checkpoint. Only the RNG state differs between processes, so each is kept."""
        state = self.trainer.state()
        state |= {"rng": gather_object([rng_state()]), **self.selection.state()}
        self.run.checkpoint(state)

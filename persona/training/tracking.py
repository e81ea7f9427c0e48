"""Metrics of a run: a JSONL file always, and Accelerate's trackers where wanted. Main process only.

1. a record goes to `metrics.jsonl`, where a resumed run takes out what lies beyond its checkpoint
2. each tracker of `TRACKERS` that the config names gets the same figures

Nothing but figures and the config leaves: no face, no embedding, no name, no path. What a tracker
would send of the machine, the command line, the code and the console by itself is turned off.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import netrc
import os
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from persona.config import tracker_names
from persona.errors import PersonaError
from persona.files import placed, write_atomically
from persona.models.public import public
from persona.workspace import home_folder, user_path

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger(__name__)

METRICS = "metrics.jsonl"
PROJECT = "persona"
Figures = Mapping[str, float]


@dataclass(frozen=True)
class Start:
    """What a tracker is opened with."""

    folder: Path
    """The run's, for files of the tracker's own."""
    run_id: str
    config: Mapping[str, Any]
    """Plain nested values without paths."""
    step: int
    """Optimizer steps done: above 0 the run is resumed."""


class Sink(Protocol):
    """Where the figures of a run go, beside the JSONL file."""

    def log(self, step: int, figures: Figures) -> None:
        """Takes figures at an optimizer step."""

    def log_curve(
        self, step: int, name: str, columns: list[str], rows: list[list[float]], image: Image
    ) -> None:
        """Takes a curve, as a table and drawn."""

    def close(self, *, failed: bool) -> None:
        """Ends the run."""


class Tracker:
    """Writes one JSON line a record, and gives the same to the trackers."""

    def __init__(
        self,
        folder: Path,
        *,
        run_id: str,
        config: dict[str, Any],
        trackers: str,
        step: int,
    ) -> None:
        """Opens the run's metrics; records beyond `step`, left by a killed run, are taken out.

        Args:
            folder: the run's.
            run_id: its ID.
            config: plain values; paths in it are cut to their last part before they leave.
            trackers: names of `TRACKERS` with commas between, or `none`.
            step: optimizer steps done before.

        Raises:
            PersonaError: a tracker cannot be opened.
        """
        self._path = path = folder / METRICS
        kept = [line for line in _lines(path) if json.loads(line)["step"] <= step]
        write_atomically(path, "".join(line + "\n" for line in kept).encode())
        start = Start(folder, run_id, public(config), step)
        self._sinks: dict[str, Sink] = {}
        try:
            for name in tracker_names(trackers):
                self._sinks[name] = TRACKERS[name](start)
        except BaseException:
            self._close(failed=True)
            raise
        self._file = path.open("a", encoding="utf-8")

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            with placed(self._path):
                self._file.close()
        except OSError:
            if kind is None:
                raise
            # What ended the run tells why: a full disk, on which what is left cannot be written.
        finally:
            self._close(failed=kind is not None)

    def log(self, step: int, **figures: float | int) -> None:
        """Records figures at an optimizer step."""
        with placed(self._path):
            self._file.write(json.dumps({"step": step, **figures}) + "\n")
            self._file.flush()
        self._each(lambda sink: sink.log(step, figures))

    def log_curve(
        self, step: int, name: str, columns: list[str], rows: list[list[float]], image: Image
    ) -> None:
        """Gives the trackers a curve as a table and as an image; figures alone, never of a face."""
        self._each(lambda sink: sink.log_curve(step, name, columns, rows, image))

    def _each(self, give: Callable[[Sink], None]) -> None:
        """Gives something to all trackers; one that fails costs its figures, not the training."""
        for name, sink in list(self._sinks.items()):
            try:
                give(sink)
            except Exception as error:  # each has its own, its service's and its network's errors
                del self._sinks[name]
                log.warning(
                    "warning: tracker %s failed (%s) and gets no more figures of this run; all are "
                    "in %s",
                    *(name, type(error).__name__, METRICS),
                )

    def _close(self, *, failed: bool) -> None:
        self._each(lambda sink: sink.close(failed=failed))


class Accelerated:
    """A tracker of Accelerate's, started."""

    def __init__(self, tracker: Any, start: Start | None = None) -> None:
        """`start` is given where the config is stored as flat values."""
        from accelerate.state import PartialState

        PartialState()  # its trackers ask for it; in a training it is there
        if hasattr(tracker, "start"):  # older versions of Accelerate start it when it is made
            tracker.start()
        self.tracker = tracker
        if start is not None:
            tracker.store_init_configuration(dict(flat(start.config)))

    def log(self, step: int, figures: Figures) -> None:
        """Takes figures at an optimizer step."""
        self.tracker.log(dict(figures), step=step)

    def log_curve(
        self, step: int, name: str, columns: list[str], rows: list[list[float]], image: Image
    ) -> None:
        """Takes the drawn curve where the tracker has images."""

    def close(self, *, failed: bool) -> None:
        """Ends the run."""
        self.tracker.finish()


class WandB(Accelerated):
    """Weights & Biases: figures, and curves as table and image."""

    def log_curve(
        self, step: int, name: str, columns: list[str], rows: list[list[float]], image: Image
    ) -> None:
        """Takes both."""
        import wandb

        table = wandb.Table(columns=columns, data=rows)
        figures = {f"{name}/table": table, f"{name}/image": wandb.Image(image)}
        self.tracker.log(figures, step=step)

    def close(self, *, failed: bool) -> None:
        """Ends the run, with what it ended by."""
        self.tracker.tracker.finish(exit_code=1 if failed else 0)


class TensorBoard(Accelerated):
    """TensorBoard: event files below the run's folder."""

    def log_curve(
        self, step: int, name: str, columns: list[str], rows: list[list[float]], image: Image
    ) -> None:
        """Takes the image."""
        pixels = np.asarray(image.convert("RGB"))[None]
        self.tracker.log_images({name: pixels}, step=step, dataformats="NHWC")


class Aim(Accelerated):
    """Aim: a repository below the run's folder."""

    def log_curve(
        self, step: int, name: str, columns: list[str], rows: list[list[float]], image: Image
    ) -> None:
        """Takes the image."""
        self.tracker.log_images({name: image}, step=step)


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, bool | int | float | str]:
    """Nested values by dotted name, as all trackers take them.

    Example:
        >>> flat({"epochs": 2, "steps": None, "optim": {"lr": 0.1}})
        {'epochs': 2, 'optim.lr': 0.1}
    """
    found: dict[str, bool | int | float | str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        elif isinstance(value, bool | int | float | str):
            found[f"{prefix}{name}"] = value
        elif value is not None:
            found[f"{prefix}{name}"] = str(value)
    return found


def _lines(path: Path) -> list[str]:
    """Whole lines of a metrics file: a killed run can leave half of one."""
    if not path.is_file():
        return []
    return [line[:-1] for line in path.read_text().splitlines(keepends=True) if line[-1] == "\n"]


def has_wandb_login() -> bool:
    """Whether W&B has a key, found without asking anybody: environment or netrc."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    named, home = os.environ.get("NETRC"), home_folder()
    if not named and home is None:
        return False
    path = user_path(named or "~/.netrc")
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").split("//")[-1].strip("/")
    try:
        return netrc.netrc(path).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def check_trackers(trackers: str) -> None:
    """Raises PersonaError, on all processes and before anything is trained, for a lacking package.

    Args:
        trackers: names of `TRACKERS` with commas between, or `none`.
    """
    for name in tracker_names(trackers):
        modules, package = PACKAGES.get(name, ((name,), name))
        if not any(_is_installed(module) for module in modules):
            others = [other for other in tracker_names(trackers) if other != name]
            raise PersonaError(
                f"{package} is not installed: install it or choose --tracker "
                f"{','.join(others) or 'none'}"
            )


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ValueError:  # it was put out of reach, as by `sys.modules[name] = None`
        return False


@contextlib.contextmanager
def _starting(title: str, otherwise: str = "choose --tracker none") -> Iterator[None]:
    """Makes one line of whatever a tracker cannot start for."""
    try:
        yield
    except Exception as error:  # each raises its own, its service's and its network's errors
        raise PersonaError(
            f"cannot start the {title} run ({type(error).__name__}): {otherwise}"
        ) from None


def open_wandb(start: Start) -> Sink:
    """Starts or takes up a W&B run; offline without a login, and never a prompt."""
    import wandb
    from accelerate.tracking import WandBTracker

    mode: Any = os.environ.get("WANDB_MODE") or ("online" if has_wandb_login() else "offline")
    settings = wandb.Settings(
        console="off",  # what is printed stays here
        silent=True,
        disable_git=True,
        disable_code=True,
        save_code=False,
        x_disable_stats=True,
        # The command line, the interpreter's path and the folder, and the machine's own name.
        x_disable_meta=True,
        x_disable_machine_info=True,
        host=PROJECT,
        x_save_requirements=False,
    )
    with _starting("W&B", "choose --tracker none, or set WANDB_MODE=offline"):
        sink = WandB(
            WandBTracker(
                PROJECT,
                id=start.run_id,
                name=start.run_id,
                dir=start.folder,
                config=start.config,
                mode=mode,
                resume="allow" if mode == "online" else None,
                settings=settings,
            )
        )
    if mode == "offline":
        place = shlex.quote(str(Path(sink.tracker.tracker.dir).parent))
        log.info("no W&B login: logged offline; later run `wandb sync %s`", place)
    return sink


def open_tensorboard(start: Start) -> Sink:
    """Writes event files to `tensorboard/` in the run's folder, without what was taken out."""
    from accelerate.tracking import TensorBoardTracker

    again = {"purge_step": start.step + 1} if start.step else {}
    with _starting("TensorBoard"):
        return TensorBoard(TensorBoardTracker("tensorboard", start.folder, **again), start)


def open_mlflow(start: Start) -> Sink:
    """Starts an MLflow run, at MLFLOW_TRACKING_URI or where MLflow keeps runs by itself."""
    from accelerate.tracking import MLflowTracker

    # It would send user, path of the program and its commit by itself; tags that are given win.
    tags = {"mlflow.user": PROJECT, "mlflow.source.name": PROJECT, "mlflow.source.git.commit": ""}
    with _starting("MLflow", "look at MLFLOW_TRACKING_URI, or choose --tracker none"):
        return Accelerated(MLflowTracker(PROJECT, run_name=start.run_id, tags=tags), start)


def open_comet_ml(start: Start) -> Sink:
    """Starts a Comet experiment; offline, in the run's folder, without a key."""
    import comet_ml
    from accelerate.tracking import CometMLTracker

    quiet = (
        *("log_code", "log_graph", "parse_args", "log_git_metadata", "log_git_patch"),
        *("log_env_details", "log_env_gpu", "log_env_host", "log_env_cpu", "log_env_network"),
        *("log_env_disk", "auto_param_logging", "auto_metric_logging", "auto_log_co2"),
    )
    settings = comet_ml.ExperimentConfig(
        name=start.run_id,
        display_summary_level=0,
        auto_output_logging=False,
        offline_directory=str(start.folder / "comet_ml"),
        **dict.fromkeys(quiet, False),
    )
    online = bool(comet_ml.get_config("comet.api_key"))
    with _starting("Comet"):
        return Accelerated(
            CometMLTracker(PROJECT, experiment_config=settings, online=online), start
        )


def open_aim(start: Start) -> Sink:
    """Keeps an Aim repository in `aim/` in the run's folder."""
    from accelerate.tracking import AimTracker

    (start.folder / "aim").mkdir(exist_ok=True)
    with _starting("Aim"):
        return Aim(
            AimTracker(
                start.run_id,
                start.folder / "aim",
                system_tracking_interval=None,
                log_system_params=False,
                capture_terminal_logs=False,
            ),
            start,
        )


TRACKERS: dict[str, Callable[[Start], Sink]] = {
    "wandb": open_wandb,
    "tensorboard": open_tensorboard,
    "mlflow": open_mlflow,
    "comet_ml": open_comet_ml,
    "aim": open_aim,
}
"""What opens each tracker, by its name in the config and on the command line."""
PACKAGES = {
    "tensorboard": (("tensorboard", "tensorboardX"), "tensorboard"),
    "comet_ml": (("comet_ml",), "comet-ml"),
}
"""Modules of which one must be there, and what pip calls them; of the others both are the name."""

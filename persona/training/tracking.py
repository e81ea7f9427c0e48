"""Metrics of a run: a JSONL file always, Weights & Biases where wanted. Main process only.

Nothing but figures and the config leaves: no face, no embedding, no name, no path.
"""

from __future__ import annotations

import json
import logging
import netrc
import os
import shlex
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from persona.errors import PersonaError
from persona.files import placed, write_atomically
from persona.models.public import public
from persona.workspace import home_folder, user_path

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger(__name__)

METRICS = "metrics.jsonl"
PROJECT = "persona"


class Tracker:
    """Writes one JSON line a record, and the same to W&B."""

    def __init__(
        self,
        folder: Path,
        *,
        run_id: str,
        config: dict[str, Any],
        wandb: bool,
        step: int,
    ) -> None:
        """Opens the run's metrics; records beyond `step`, left by a killed run, are taken out."""
        self._path = path = folder / METRICS
        kept = [line for line in _lines(path) if json.loads(line)["step"] <= step]
        write_atomically(path, "".join(line + "\n" for line in kept).encode())
        self._file = path.open("a", encoding="utf-8")
        self._wandb = _start_wandb(folder, run_id, config) if wandb else None

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
            if self._wandb is not None:
                self._wandb.finish(exit_code=0 if kind is None else 1)

    def log(self, step: int, **figures: float | int) -> None:
        """Records figures at an optimizer step."""
        with placed(self._path):
            self._file.write(json.dumps({"step": step, **figures}) + "\n")
            self._file.flush()
        if self._wandb is not None:
            self._wandb.log(figures, step=step)

    def log_curve(
        self, step: int, name: str, columns: list[str], rows: list[list[float]], image: Image
    ) -> None:
        """Gives W&B a curve as a table and as an image; figures alone, never of a face."""
        if self._wandb is None:
            return
        import wandb

        table = wandb.Table(columns=columns, data=rows)
        self._wandb.log({f"{name}/table": table, f"{name}/image": wandb.Image(image)}, step=step)


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


def _start_wandb(folder: Path, run_id: str, config: dict[str, Any]) -> Any:
    """Starts or takes up a W&B run; offline without a login, and never a prompt."""
    try:
        import wandb
    except ImportError:
        raise PersonaError("wandb is not installed: install it or choose --tracker none") from None
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
    try:
        run = wandb.init(
            project=PROJECT,
            id=run_id,
            name=run_id,
            dir=folder,
            config=public(config),
            mode=mode,
            resume="allow" if mode == "online" else None,
            settings=settings,
        )
    except Exception as error:  # wandb raises its own, pydantic's and its service's errors
        raise PersonaError(
            f"cannot start the W&B run ({type(error).__name__}): choose --tracker none, or set "
            "WANDB_MODE=offline"
        ) from None
    if mode == "offline":
        place = shlex.quote(str(Path(run.dir).parent))
        log.info("no W&B login: logged offline; later run `wandb sync %s`", place)
    return run

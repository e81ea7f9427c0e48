"""The Weights & Biases tracker. Only this module imports wandb."""

from __future__ import annotations

import logging
import netrc
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona.training.trackers.base import PROJECT, Accelerated, Sink, Start, starting
from persona.workspace import home_folder, user_path

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger(__name__)


class WandB(Accelerated):
    """Logs to Weights & Biases: figures, and curves as a table and an image."""

    name = "wandb"
    modules = ("wandb",)
    package = "wandb"

    @classmethod
    def open(cls, start: Start) -> Sink:
        """Starts or resumes a W&B run. Without a login it is offline. It never prompts.

        Raises:
            PersonaError: W&B cannot start.
        """
        import wandb
        from accelerate.tracking import WandBTracker

        mode: Any = os.environ.get("WANDB_MODE") or ("online" if has_wandb_login() else "offline")
        settings = wandb.Settings(
            console="off",  # console output is not sent
            silent=True,
            disable_git=True,
            disable_code=True,
            save_code=False,
            x_disable_stats=True,
            # Metadata is the command line, the interpreter's path, the folder and the host name.
            x_disable_meta=True,
            x_disable_machine_info=True,
            host=PROJECT,
            x_save_requirements=False,
        )
        with starting("W&B", "choose --tracker none, or set WANDB_MODE=offline"):
            sink = cls(
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

    def log_curve(
        self, step: int, name: str, columns: list[str], rows: list[list[float]], image: Image
    ) -> None:
        """Logs the table and the image of a curve."""
        import wandb

        table = wandb.Table(columns=columns, data=rows)
        figures = {f"{name}/table": table, f"{name}/image": wandb.Image(image)}
        self.tracker.log(figures, step=step)

    def close(self, *, failed: bool) -> None:
        """Ends the run, marked as failed or finished."""
        self.tracker.tracker.finish(exit_code=1 if failed else 0)


def has_wandb_login() -> bool:
    """Whether the environment or the netrc file has an API key for W&B."""
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

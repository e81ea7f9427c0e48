"""Where things lie: raw photos, shards, models, runs and the gallery, below one home folder."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from persona.errors import PersonaError

HOME_VARIABLE = "PERSONA_HOME"


def user_path(text: str) -> Path:
    """A path as a user writes it, also where no shell has put the home folder in for `~`.

    Raises:
        PersonaError: it begins with `~`, and there is no such folder.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise PersonaError(
            f"{text}: this user has no home folder for `~`: write the whole path, or set HOME"
        ) from None


def check_working_directory() -> None:
    """Raises PersonaError if it was removed: nothing could then be found or made below it."""
    try:
        Path.cwd()
    except FileNotFoundError:
        raise PersonaError("the working directory was removed: change to one that exists") from None


def home_folder() -> Path | None:
    """Where programs keep what is a user's; a container's user may have none."""
    try:
        return Path.home()
    except RuntimeError:
        return None


@dataclass(frozen=True)
class Workspace:
    """The folders that commands work on, and the gallery."""

    raw: Path
    """Photos as their datasets ship them, one folder a dataset."""
    shards: Path
    """Packed sets and triplet indices, one folder a set."""
    models: Path
    """Students, one folder a model, and `teachers/` for weights put there by hand."""
    runs: Path
    """One folder a training run: config, metrics, checkpoints."""
    gallery: Path
    """The people who are enrolled, unless a command names another place."""

    @classmethod
    def locate(
        cls,
        *,
        home: Path | None = None,
        raw: Path | None = None,
        shards: Path | None = None,
        models: Path | None = None,
        runs: Path | None = None,
    ) -> Workspace:
        """Folders given by name win over `home`, which wins over $PERSONA_HOME, then `.`."""
        base = home or user_path(os.environ.get(HOME_VARIABLE) or ".")
        if not base.is_absolute():
            check_working_directory()
        return cls(
            raw=raw or base / "data" / "raw",
            shards=shards or base / "shards",
            models=models or base / "models",
            runs=runs or base / "runs",
            gallery=base / "gallery.db",
        )

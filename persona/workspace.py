"""The folders of raw photos, shards, models and runs, and the gallery, in one home folder."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from persona.errors import PersonaError

HOME_VARIABLE = "PERSONA_HOME"


def user_path(text: str) -> Path:
    """Returns the path that a user wrote, with `~` expanded where no shell has done it.

    Raises:
        PersonaError: the path begins with `~`, and this user has no home folder.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise PersonaError(
            f"{text}: this user has no home folder for `~`: write the whole path, or set HOME"
        ) from None


def check_working_directory() -> None:
    """Raises PersonaError if the working directory was removed: no relative path works then."""
    try:
        Path.cwd()
    except FileNotFoundError:
        raise PersonaError("the working directory was removed: change to one that exists") from None


def home_folder() -> Path | None:
    """Returns the user's home folder, or None, as for some users of containers."""
    try:
        return Path.home()
    except RuntimeError:
        return None


@dataclass(frozen=True)
class Workspace:
    """The folders that commands work on, and the gallery."""

    raw: Path
    """Folder of photos as their datasets ship them, with one folder per dataset."""
    shards: Path
    """Folder of packed sets and triplet indices, with one folder per set."""
    models: Path
    """Folder of students, with one folder per model, and `teachers/` for weights that the user
    puts there."""
    runs: Path
    """Folder of training runs, with one folder per run: config, metrics and checkpoints."""
    gallery: Path
    """File of the gallery, unless a command names another one."""

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
        """Finds the workspace.

        A folder that is given by name comes first. The others are in `home`, or, where that is
        None, in `PERSONA_HOME`, or, where that is not set, in the current folder.

        Raises:
            PersonaError: `PERSONA_HOME` begins with `~` and there is no home folder, or the
                working directory was removed.
        """
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

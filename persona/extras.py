"""What `pip` calls this project, and the command that installs one of its extras here."""

from __future__ import annotations

import importlib.util
import shlex
import shutil
import sys
from pathlib import Path

from persona.errors import PersonaError

DISTRIBUTION = "persona-faces"
"""On package indexes `persona` is another project."""


def missing(need: str, extra: str) -> PersonaError:
    """The error for a package that is not installed: what needs it, and how to install it."""
    return PersonaError(f"{need}: {install_command(extra)}")


def install_command(extra: str) -> str:
    """The command that installs an extra into the environment that this process runs in.

    A checkout is named by its folder: no index can then put another project in its place. An
    installed wheel is there already, so that installers take its name for it.
    """
    root = Path(__file__).resolve().parents[1]
    python = shlex.quote(sys.executable)
    if (root / "pyproject.toml").is_file():
        what = f"-e {shlex.quote(f'{root}[{extra}]')}"
    else:
        what = f"'{DISTRIBUTION}[{extra}]'"
    if importlib.util.find_spec("pip") is not None:
        return f"{python} -m pip install {what}"
    own = root / ".tools" / "bin" / "uv"  # scripts/env's
    uv = str(own) if shutil.which("uv") is None and own.is_file() else "uv"
    return f"{shlex.quote(uv)} pip install --python {python} {what}"

"""The name of this project on PyPI, and how to install its extras in this environment."""

from __future__ import annotations

import contextlib
import importlib.util
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from persona.errors import PersonaError

DISTRIBUTION = "persona-faces"
"""Name of this project on package indexes, where `persona` is another project."""


def missing(need: str, extra: str) -> PersonaError:
    """Returns the error for a package that is not installed, with the command that installs it.

    Args:
        need: what needs the package.
        extra: the extra of this project that brings it.
    """
    return PersonaError(f"{need}: {install_command(extra)}")


IN_TRAIN = frozenset(
    {"accelerate", "facenet_pytorch", "torch", "torchvision", "wandb", "webdataset"}
)
"""Import names of the packages that the extra `train` installs."""


def missing_for_training(error: BaseException, what: str) -> PersonaError | None:
    """Returns the error to show if an import failed because the extra `train` is not installed.

    It is None where the import failed for another reason.
    """
    name = (error.name or "").partition(".")[0] if isinstance(error, ImportError) else ""
    if name not in IN_TRAIN or importlib.util.find_spec(name) is not None:
        return None
    return missing(f"{what} needs {name}", "train")


def check_training(what: str) -> None:
    """Raises PersonaError if the extra `train` is not installed, before `what` begins its work."""
    with needing(what):
        for name in ("torch", *sorted(IN_TRAIN)):
            if importlib.util.find_spec(name) is None:
                raise ModuleNotFoundError(name=name)


@contextlib.contextmanager
def needing(what: str) -> Iterator[None]:
    """Context in which `what` imports packages of the extra `train`.

    Raises:
        PersonaError: a package is not installed; the message has the command that installs it.
    """
    try:
        yield
    except ImportError as error:
        told = missing_for_training(error, what)
        if told is None:
            raise
        raise told from None


def install_command(extra: str) -> str:
    """Returns the command that installs an extra into the environment of this process.

    A checkout is named by its folder, so that no index can supply another project of its name. An
    installed wheel is named by its distribution, which installers find in the environment.
    """
    root = Path(__file__).resolve().parents[1]
    python = shlex.quote(sys.executable)
    if (root / "pyproject.toml").is_file():
        what = f"-e {shlex.quote(f'{root}[{extra}]')}"
    else:
        what = f"'{DISTRIBUTION}[{extra}]'"
    if importlib.util.find_spec("pip") is not None:
        return f"{python} -m pip install {what}"
    own = root / ".tools" / "bin" / "uv"  # where scripts/env puts it
    uv = str(own) if shutil.which("uv") is None and own.is_file() else "uv"
    return f"{shlex.quote(uv)} pip install --python {python} {what}"

"""From an exception to one line and an exit code: the only place that knows both."""

from __future__ import annotations

import errno
import io
import logging
import os
import sys
import traceback
from pathlib import Path
from typing import NoReturn

import typer

from persona.cli.output import legible
from persona.errors import PersonaError
from persona.files import sweep

EXIT_ERROR = 1
EXIT_INTERRUPTED = 130

_NO_MEMORY = "there is no memory left: fewer --workers or a smaller --batch-size want less of it"
_OS_ERRORS = {
    errno.ENOMEM: _NO_MEMORY,
    errno.ENOSPC: "the disk is full: make room and run again; it goes on where it was",
    errno.EDQUOT: "the disk quota is used up: make room and run again; it goes on where it was",
    errno.EFBIG: "the file is larger than this system allows",
    errno.EACCES: "no permission: choose another folder or change its owner",
    errno.EPERM: "no permission: choose another folder or change its owner",
    errno.EROFS: "the file system is read-only: choose another folder",
    errno.EEXIST: "a file lies where a folder is wanted",
    errno.ENOTDIR: "a part of this path is a file, not a folder",
    errno.EISDIR: "this is a folder, not a file",
    errno.ENOENT: "no such file or folder",
    errno.ENAMETOOLONG: "the name is too long for this file system: choose a shorter one",
    errno.EMFILE: "too many open files: raise `ulimit -n`",
}

_PEER_LOST = "another process of this run ended: its own line says why"
_RUNTIME_ERRORS = {
    "out of memory": _NO_MEMORY,  # torch.OutOfMemoryError
    "can't allocate memory": _NO_MEMORY,  # on the CPU
    "Connection closed by peer": _PEER_LOST,  # gloo, in the processes that waited for another
    "Connection reset by peer": _PEER_LOST,
    "NCCL communicator was aborted": _PEER_LOST,
}


def explain(error: BaseException) -> tuple[str, int] | None:
    """The line and exit code for an error that a user can mend; None: a fault of the program."""
    if isinstance(error, PersonaError):
        return str(error), EXIT_ERROR
    if isinstance(error, KeyboardInterrupt):
        line = "interrupted: run the same command again to go on"
        return str(error) or line, EXIT_INTERRUPTED
    if isinstance(error, MemoryError):
        error = OSError(errno.ENOMEM, "")  # what the system calls it
    if isinstance(error, BrokenPipeError):
        return "", EXIT_ERROR  # `persona … | head`: nobody is left to read a line
    if isinstance(error, OSError) and error.errno in _OS_ERRORS:
        place = f"{error.filename}: " if error.filename else ""
        return place + _OS_ERRORS[error.errno], EXIT_ERROR
    if isinstance(error, RuntimeError):
        for sign, line in _RUNTIME_ERRORS.items():
            if sign in str(error):
                return line, EXIT_ERROR
    return None


def _interrupt_of(error: BaseException | None) -> KeyboardInterrupt:
    """What Typer turned into a silent exit."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error or KeyboardInterrupt()


def run_app(app: typer.Typer) -> NoReturn:
    """Runs a Typer application with logging on stderr and errors as one line."""
    debug = "--debug" in sys.argv
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr: a path may be no text
    logging.basicConfig(
        level=logging.DEBUG if debug else logging.WARNING,
        format="%(message)s",
        stream=sys.stderr,
    )
    logging.getLogger("persona").setLevel(logging.DEBUG if debug else logging.INFO)
    try:
        sweep(Path())  # what a killed command left here, a gallery's export perhaps
        app(standalone_mode=True)
    except BaseException as error:
        if isinstance(error, SystemExit):
            if error.code != EXIT_INTERRUPTED:
                raise
            error = _interrupt_of(error)
        explained = explain(error)
        if debug or explained is None:
            traceback.print_exc()
        if explained is None:
            sys.exit(EXIT_ERROR)
        line, code = explained
        if line:
            sys.stderr.write(f"error: {legible(line)}\n")
        else:
            # The interpreter would complain about the closed pipe once more at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(code)
    sys.exit(0)

"""From an exception to one line and an exit code: the only place that knows both."""

from __future__ import annotations

import errno
import logging
import os
import sys
import traceback
from typing import NoReturn

import typer

from persona.errors import PersonaError

EXIT_ERROR = 1
EXIT_INTERRUPTED = 130

_OS_ERRORS = {
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
    errno.EMFILE: "too many open files: raise `ulimit -n`",
}


def explain(error: BaseException) -> tuple[str, int] | None:
    """The line and exit code for an error that a user can mend; None: a fault of the program."""
    if isinstance(error, PersonaError):
        return str(error), EXIT_ERROR
    if isinstance(error, KeyboardInterrupt):
        return "interrupted: run the same command again to go on", EXIT_INTERRUPTED
    if isinstance(error, BrokenPipeError):
        return "", EXIT_ERROR  # `persona … | head`: nobody is left to read a line
    if isinstance(error, OSError) and error.errno in _OS_ERRORS:
        place = f"{error.filename}: " if error.filename else ""
        return place + _OS_ERRORS[error.errno], EXIT_ERROR
    if type(error).__name__ == "OutOfMemoryError":
        return "the device has no memory left: choose a smaller --batch-size", EXIT_ERROR
    return None


def run_app(app: typer.Typer) -> NoReturn:
    """Runs a Typer application with logging on stderr and errors as one line."""
    debug = "--debug" in sys.argv
    logging.basicConfig(
        level=logging.DEBUG if debug else logging.WARNING,
        format="%(message)s",
        stream=sys.stderr,
    )
    logging.getLogger("persona").setLevel(logging.DEBUG if debug else logging.INFO)
    try:
        app(standalone_mode=True)
    except BaseException as error:
        if isinstance(error, SystemExit):
            if error.code != EXIT_INTERRUPTED:
                raise
            error = KeyboardInterrupt()  # which Typer turns into a silent exit
        explained = explain(error)
        if debug or explained is None:
            traceback.print_exc()
        if explained is None:
            sys.exit(EXIT_ERROR)
        line, code = explained
        if line:
            sys.stderr.write(f"error: {line}\n")
        else:
            # The interpreter would complain about the closed pipe once more at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(code)
    sys.exit(0)

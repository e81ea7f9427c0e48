"""The one table from exceptions to a line of error and an exit code."""

from __future__ import annotations

import errno
import io
import logging
import os
import select
import signal
import sys
import traceback
from pathlib import Path
from typing import Any, NoReturn

import typer
from typer.main import get_command

from persona.cli import signals
from persona.cli.output import LegibleFormatter, keep_brackets
from persona.cli.process import is_first, quiet_others, share_threads, tell_launcher
from persona.errors import PersonaError, Preempted
from persona.extras import missing_for_training
from persona.files import placed, sweep
from persona.names import legible
from persona.workspace import check_working_directory

EXIT_ERROR = 1
EXIT_USAGE = 2
EXIT_PREEMPTED = 75
"""Exit code of a run that was told to end and can be resumed: EX_TEMPFAIL of sysexits.h."""

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
    errno.EIO: "this cannot be read or written: the disk may be failing (input/output error)",
    errno.ESTALE: "this network folder is gone: mount it again and run again",
    errno.EBUSY: "this is in use, as a file that is mounted into a container is: name another one",
    errno.EMFILE: "too many open files: raise `ulimit -n`",
}

_PEER_LOST = "another process of this run ended: its own line says why"
_NO_WAY = (
    "the processes of this run cannot reach each other: on every machine, set GLOO_SOCKET_IFNAME "
    "to the name of its network interface (`ip address` lists them)"
)
_RUNTIME_ERRORS = {
    "out of memory": _NO_MEMORY,  # torch.OutOfMemoryError
    "can't allocate memory": _NO_MEMORY,  # torch on the CPU
    "Connection closed by peer": _PEER_LOST,  # gloo, in processes that wait for another one
    "Connection reset by peer": _PEER_LOST,
    "NCCL communicator was aborted": _PEER_LOST,
    # Gloo takes the address of the machine's own name, which may be that of the loopback interface.
    "connectFullMesh failed": _NO_WAY,
}

_UsageError = typer.BadParameter.__mro__[1]
"""Click's UsageError. Newer releases of Typer have a copy of their own."""


def explain(error: BaseException) -> tuple[str, int] | None:
    """Returns the line and exit code for an error that a user can mend.

    None means that the error is a fault of the program.
    """
    if isinstance(error, KeyboardInterrupt):
        number = signals.received or signal.SIGINT
        return str(error) or signals.INTERRUPTED, signals.EXIT_SIGNAL + number
    if isinstance(error, _UsageError):
        return _usage_line(error), EXIT_USAGE
    if isinstance(error, Preempted):
        return str(error), EXIT_PREEMPTED
    line = _line_of(error)
    return None if line is None else (line, EXIT_ERROR)


def _line_of(error: BaseException) -> str | None:
    error = missing_for_training(error, "this") or error
    if isinstance(error, PersonaError):
        return str(error)
    if isinstance(error, typer.Abort):  # the input ended at a question
        return "there was no answer: nothing is done"
    if isinstance(error, MemoryError):
        return _NO_MEMORY
    if isinstance(error, BrokenPipeError) and _is_unread():
        return ""  # nobody is left to read a line
    if isinstance(error, OSError):
        return _system_line(error)
    said = str(error) if isinstance(error, RuntimeError) else ""
    return next((line for sign, line in _RUNTIME_ERRORS.items() if sign in said), None)


def _system_line(error: OSError) -> str | None:
    if error.errno == errno.ENOENT:
        try:
            check_working_directory()
        except PersonaError as gone:
            return str(gone)
        if "temporary directory" in (error.strerror or ""):  # from the module tempfile
            return "no folder for temporary files can be written to: name one in TMPDIR"
    place = f"{error.filename}: " if error.filename else ""
    line = _OS_ERRORS.get(error.errno or 0)
    if line is None and place:  # without a place the trace says more
        line = error.strerror
    return None if line is None else place + line


def _usage_line(error: Any) -> str:
    """Returns what is wrong with a command line, and the nearest right name or where to look."""
    if type(error).__name__ == "NoArgsIsHelpError":  # the help is printed already
        return ""
    text = " ".join(error.format_message().split())
    if possible := sorted(getattr(error, "possibilities", None) or ()):
        text = f"{error.message}; did you mean {' or '.join(possible)}?"
    for click, ours in ((". Did you mean", "; did you mean"), ("No such option: ", "no option ")):
        text = text.replace(click, ours)
    command = error.ctx.command_path + " " if error.ctx else ""
    hint = "" if text.endswith("?") else f"; see {command}--help"
    return f"{command.strip()}: ".lstrip(": ") + text[:1].lower() + text[1:].rstrip(".") + hint


def _is_unread() -> bool:
    """Whether stdout or stderr is a pipe whose reader has ended, as in `persona … | head`."""
    poll = select.poll()
    for number in (1, 2):
        poll.register(number, select.POLLOUT)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def run_app(app: typer.Typer, name: str, arguments: list[str]) -> NoReturn:
    """Runs a Typer application with logging on stderr and errors as one line; it does not return.

    Args:
        app: the application.
        name: its name in messages.
        arguments: the command line after the name.
    """
    signals.raise_interrupts()
    debug = "--debug" in arguments
    code: int | str | None = 0
    try:
        _open_streams()
        logging.basicConfig(
            level=logging.DEBUG if debug else logging.WARNING,
            stream=sys.stderr,
        )
        logging.getLogger().handlers[0].setFormatter(LegibleFormatter())
        logging.getLogger("persona").setLevel(logging.DEBUG if debug else logging.INFO)
        quiet_others()
        share_threads()
        sweep(Path())  # temporary files that a killed command left in this folder
        command = get_command(app)
        keep_brackets(command)
        # Typer's own `main` prints errors as boxes of several lines, and drops an interrupt's text.
        with command.make_context(name, arguments) as context:
            command.invoke(context)
        with placed(Path("standard output")):
            sys.stdout.flush()
        signals.end_at_once()
    except typer.Exit as end:
        code = end.exit_code
    except SystemExit as end:
        code = end.code
    except BaseException as error:
        signals.drop()
        code = _say(_interrupt_of(error), debug)
        signals.end_silently()
    try:
        sys.stdout.flush()
    except OSError:  # reported above; otherwise the interpreter reports it again at its exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.exit(code)


def _say(error: BaseException, debug: bool) -> int:
    """Prints the line of an error, or the trace of a fault, and returns the exit code."""
    explained = explain(error)
    if debug or explained is None:
        traceback.print_exception(error)
    if explained is None:
        return EXIT_ERROR
    line, code = explained
    if isinstance(error, KeyboardInterrupt | Preempted) and not is_first():
        line = ""  # every process of the run is interrupted, and one of them prints it
    if line:
        text = f"error: {legible(line)}"
        told = tell_launcher(text)
        if is_first() or not told:  # the others usually have the same error
            sys.stderr.write(f"{text}\n")
    return code


def _interrupt_of(error: BaseException) -> BaseException:
    """Returns the interrupt that caused an error, if there was one, or else the error itself."""
    if signals.received is None:
        return error
    link: BaseException | None = error
    while link is not None and not isinstance(link, KeyboardInterrupt):
        link = link.__cause__ or link.__context__
    return link or (KeyboardInterrupt() if explain(error) is None else error)


def _open_streams() -> None:
    """Opens closed standard streams on the null device, and makes stdout accept any text.

    Raises:
        PersonaError: stdout is closed.
    """
    closed = [name for name in ("stdin", "stdout", "stderr") if getattr(sys, name) is None]
    for name in closed:  # otherwise the next file that is opened gets the stream's number
        setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: PTH123, SIM115
    if "stdout" in closed:
        raise PersonaError("standard output is closed: let it go to a file or to /dev/null")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # like stderr: a path may be no text

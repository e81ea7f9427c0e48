"""A process that has imported what commands import, and forks one process for each command.

A command that begins in a process of its own spends seconds on importing torch. Here it begins in a
copy of a process that has done so: with its own environment, working directory, standard streams,
signals and exit, but not with imports of its own. What a test wants to know about imports, threads
or the interpreter's options needs a new interpreter.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import types
from pathlib import Path
from typing import IO, Any, NoReturn

IMPORTED = (
    *("accelerate", "torch", "torchvision", "webdataset"),
    *("persona.distill", "persona.cli.app", "persona.gallery.people", "persona.gallery.faces"),
    *("persona.data.pack", "persona.evaluation.protocols", "persona.learning.run"),
    *("persona.models.store", "persona.models.manage", "persona.deploy.export", "persona.targets"),
)


class Warm:
    """The forking process, as a test sees it."""

    def __init__(self) -> None:
        here = Path(__file__)
        self._process = subprocess.Popen(
            [sys.executable, str(here)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(
        self, *command: str, env: dict[str, str], timeout: float = 300
    ) -> subprocess.CompletedProcess[str]:
        """What `subprocess.run` gives for `python -m COMMAND`."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with tempfile.TemporaryDirectory(prefix="warm-") as folder:
            streams = [Path(folder) / name for name in ("out", "err")]
            asked = {"command": command, "env": env, "folder": str(Path.cwd())}
            request = asked | {"streams": [str(path) for path in streams], "timeout": timeout}
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            code = int(self._process.stdout.readline())
            found = [path.read_text() for path in streams]
        return subprocess.CompletedProcess(command, code, *found)

    def close(self) -> None:
        """Ends it."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def _serve(requests: IO[str], answers: IO[str]) -> None:
    """Forks for each request; the copy goes on as the command."""
    for name in IMPORTED:
        importlib.import_module(name)
    while line := requests.readline():
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            _become(request)
            _end(_code_of(*request["command"]))
        answers.write(f"{_wait(child, request['timeout'])}\n")
        answers.flush()


def _wait(child: int, timeout: float) -> int:
    """A command's exit code; it is killed when its time is up."""
    end = time.monotonic() + timeout
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            os.killpg(child, signal.SIGKILL)
        time.sleep(0.01)


def _become(request: dict[str, Any]) -> None:
    """Takes on what a new process would be given."""
    os.setsid()
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["folder"])
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    for number, path in enumerate(request["streams"], 1):
        opened = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdin, sys.stdout, sys.stderr = (
        open(number, mode, buffering=1, closefd=False)  # noqa: SIM115 - for good
        for number, mode in enumerate(("r", "w", "w"))
    )


def _code_of(*command: str) -> int:
    """Runs a command to its end; its exit code."""
    try:
        _run(*command)
    except SystemExit as ended:
        if ended.code is None or isinstance(ended.code, int):
            return ended.code or 0
        sys.stderr.write(f"{ended.code}\n")  # as the interpreter does
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _end(code: int) -> NoReturn:
    """Ends as an interpreter does, but leaves alone what libraries do then: they would wait for
    threads that they had before the fork."""
    for finish in (threading._shutdown, atexit._run_exitfuncs, sys.stdout.flush, sys.stderr.flush):
        try:
            finish()
        except BaseException:
            traceback.print_exc()
    os._exit(code)


def _run(name: str, *arguments: str) -> None:
    """`python -m NAME ARGUMENTS` as the main module, whatever has been imported already."""
    spec = importlib.util.find_spec(name)
    if spec is not None and spec.submodule_search_locations is not None:
        spec = importlib.util.find_spec(f"{name}.__main__")
    assert spec is not None and spec.loader is not None and spec.origin is not None
    main = types.ModuleType("__main__")
    main.__spec__, main.__file__, main.__package__ = spec, spec.origin, spec.parent
    main.__loader__ = spec.loader
    sys.modules["__main__"] = main
    sys.argv = [spec.origin, *arguments]
    loader: Any = spec.loader
    exec(loader.get_code(spec.name), main.__dict__)


if __name__ == "__main__":
    # Nothing that is imported may answer in this one's place.
    kept_in, kept_out = os.dup(0), os.dup(1)
    os.dup2(2, 1)
    with contextlib.suppress(KeyboardInterrupt):
        _serve(os.fdopen(kept_in), os.fdopen(kept_out, "w"))

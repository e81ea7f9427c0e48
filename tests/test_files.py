"""Files that survive being killed, and what is left of those who were."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from persona import files
from persona.errors import PersonaError
from persona.files import (
    check_target,
    check_writable,
    iter_csv,
    read_json,
    replacing,
    scratch_folder,
    sweep,
    write_atomically,
)

HOST = socket.gethostname()


def dead() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def killed_while(code: str, folder: Path) -> None:
    """Runs code in a process that is killed in the middle of a block."""
    lines = "from pathlib import Path\nfrom persona.files import *\nimport os, signal\n"
    code = lines + code + "\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, check=False)
    assert done.returncode == -9


def test_the_next_one_to_write_there_sweeps_what_a_killed_process_left(tmp_path: Path) -> None:
    for place, code in (
        ("file", "with replacing(Path('people')) as file:\n    file.write(b'templates')"),
        ("folder", "with scratch_folder(Path(), 'pull') as f:\n    (f / 'x').write_text('y')"),
    ):
        folder = tmp_path / place
        folder.mkdir()
        killed_while(code, folder)
        (left,) = names(folder)
        assert left.startswith(".p") and left.endswith(".partial")
        write_atomically(folder / "other", b"x")
        assert names(folder) == ["other"]


def test_the_next_command_sweeps_where_it_is_run(tmp_path: Path) -> None:
    killed_while("with replacing(Path('people')) as file:\n    file.write(b'templates')", tmp_path)
    subprocess.run([sys.executable, "-m", "persona", "--version"], cwd=tmp_path, check=True)
    assert names(tmp_path) == []


def test_what_lives_is_left_alone(tmp_path: Path) -> None:
    gone = dead()
    ours = os.getpid()
    kept = {
        "people.partial",  # to be resumed
        ".000001.features.npy.partial",
        "000003.tar.elsewhere-1.partial",
        f"000003.tar.{HOST}-{gone}.partial",  # the packer takes it up
        f".x.elsewhere-{gone}.partial",
        f".x.{HOST}-{os.getppid()}.partial",
        f".y.{HOST}-{gone}.partial.txt",
        f".locked.{HOST}-{gone}.partial",  # in a container that counts its processes by itself
    }
    for name in (*kept, f".x.{HOST}-{gone}.partial", f".old.{HOST}-{os.getppid()}.partial"):
        (tmp_path / name).write_bytes(b"")
    old_s = time.time() - 2 * files.GAP_S
    os.utime(tmp_path / f".old.{HOST}-{os.getppid()}.partial", (old_s, old_s))
    (tmp_path / f".link.{HOST}-{gone}.partial").symlink_to(tmp_path / "people.partial")
    with (
        (tmp_path / f".locked.{HOST}-{gone}.partial").open("rb") as locked,
        contextlib.ExitStack() as stack,
    ):
        fcntl.flock(locked, fcntl.LOCK_EX)
        stack.enter_context(replacing(tmp_path / "mine"))
        scratch = stack.enter_context(scratch_folder(tmp_path, "pull"))
        os.utime(scratch, (old_s, old_s))
        sweep(tmp_path)
        links = {f".link.{HOST}-{gone}.partial"}  # not followed, and nobody's
        assert set(names(tmp_path)) - links == {
            *kept,
            scratch.name,
            f".mine.{HOST}-{ours}.partial",
        }
    assert set(names(tmp_path)) - links == {*kept, "mine"}
    sweep(tmp_path / "absent")


def test_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    pipe, folder, address = tmp_path / "pipe", tmp_path / "folder", tmp_path / "socket"
    os.mkfifo(pipe)
    folder.mkdir()
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(address))
        for path, kind in ((pipe, "a pipe"), (folder, "a folder"), (address, "a socket")):
            with pytest.raises(PersonaError, match=f"^{path} is {kind}: name a file$"):
                write_atomically(path, b"x")
    assert pipe.is_fifo() and folder.is_dir() and address.is_socket()
    assert names(tmp_path) == ["folder", "pipe", "socket"]
    for device in ("null", "stdout"):
        with pytest.raises(PersonaError, match=f"^/dev/{device} is a (device|pipe): name a file$"):
            check_target(Path("/dev", device))  # not `write_atomically`: as root it might succeed
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "nothing")
    for _ in range(2):
        write_atomically(link, b"x")
        assert link.read_bytes() == b"x"


def test_whether_a_file_can_be_written_is_said_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in (tmp_path / "a.csv", tmp_path / "new" / "newer" / "a.csv"):
        check_writable(path)
    assert names(tmp_path) == []  # nothing is made for the question
    monkeypatch.chdir(tmp_path)
    check_writable(Path("a.csv"))
    (tmp_path / "file").touch()
    check_writable(tmp_path / "file")
    for path in (tmp_path / "file" / "a.csv", tmp_path / "file" / "new" / "a.csv"):
        with pytest.raises(PersonaError, match=f"{path} cannot be written: .*/file is no folder"):
            check_writable(path)
    with pytest.raises(PersonaError, match="is a folder: name a file"):
        check_writable(tmp_path)
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write to any folder
    with pytest.raises(PersonaError, match=f"nothing may be written to {tmp_path}; choose another"):
        check_writable(tmp_path / "new" / "a.csv")


def test_a_block_that_raises_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")
    with pytest.raises(RuntimeError), replacing(path) as file:
        file.write(b"new")
        raise RuntimeError
    assert (path.read_bytes(), names(tmp_path)) == (b"old", ["file"])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"[" * 100_000, "is not valid JSON"),
        (b'{"a": ' * 5000, "is not valid JSON"),
        (b"9" * 5000, "is not valid JSON"),
        (b"\xff\xfe\x00", "is not valid JSON"),
        (b" " * 5_000_000, r"has over 4\.2 MB: none is so large"),
    ],
)
def test_json_of_a_stranger_is_refused_in_one_line(tmp_path: Path, data: bytes, words: str) -> None:
    (tmp_path / "card.json").write_bytes(data)
    with pytest.raises(PersonaError, match=words) as raised:
        read_json(tmp_path / "card.json", what="model card")
    assert len(str(raised.value)) < 400 and "\n" not in str(raised.value)
    (tmp_path / "card.json").write_text(json.dumps({"a": 1}))
    assert read_json(tmp_path / "card.json", what="model card") == {"a": 1}


ROWS = [["name", "photo"], ["Zoë", "a,b.jpg"], ["Ann", "c.jpg"]]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_csv_of_any_spreadsheet(tmp_path: Path, separator: str, encoding: str, end: str) -> None:
    text = end.join(separator.join(f'"{field}"' for field in row) for row in ROWS)
    (tmp_path / "x.csv").write_bytes(f"{text}{end}{end}".encode(encoding))
    found = list(iter_csv(tmp_path / "x.csv", "a CSV of people"))
    assert found == [(number, row) for number, row in enumerate(ROWS, start=1)]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("name,photo\nZoë,a.jpg\n".encode("utf-16"), "is in UTF-16 or no text: save it as UTF-8"),
        ("name,photo\n".encode("utf-16-be"), "is in UTF-16 or no text"),
        (
            "name,photo\nZoë,a.jpg\n".encode("latin-1"),
            "is not in UTF-8: save it as UTF-8, in Excel",
        ),
        (b'name,photo\nAnn,"a.jpg\n', "line 2: unexpected end of data"),
        (b"name,photo\n" + b"x" * 70_000, "line 2 is longer than 65,536 characters"),
        (None, "is a folder: expected a CSV of people"),
    ],
)
def test_what_is_no_csv_is_refused_in_one_line(
    tmp_path: Path, data: bytes | None, words: str
) -> None:
    path = tmp_path / "x.csv"
    path.mkdir() if data is None else path.write_bytes(data)
    with pytest.raises(PersonaError, match=words) as raised:
        list(iter_csv(path, "a CSV of people"))
    assert str(raised.value).startswith(str(path)) and "\n" not in str(raised.value)


def test_a_csv_may_come_through_a_pipe() -> None:
    reading, writing = os.pipe()
    os.write(writing, b"name,photo\nAnn,a.jpg\n")
    os.close(writing)
    found = list(iter_csv(Path(f"/dev/fd/{reading}"), "a CSV of people"))
    os.close(reading)
    assert [row for _, row in found] == [["name", "photo"], ["Ann", "a.jpg"]]

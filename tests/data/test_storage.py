from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from email.message import Message
from pathlib import Path
from types import SimpleNamespace
from typing import IO

import pytest
from helpers import persona_error_here
from servers import Cuts, Faults, cutting_proxy, web_server

from persona.data import samples, storage
from persona.data.kept_targets import find_targets
from persona.data.pack import Packed
from persona.data.sets import FaceSet, open_set, shard_path, verify_set
from persona.data.storage import RemoteFolder, local_file, open_remote
from persona.data.stream import build_loader
from persona.errors import PersonaError
from persona.extras import install_command
from persona.files import folder_lock, is_locked

# The servers of these tests are threads; so is what fetches ahead.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "BACKOFF_S", 0.001)


@pytest.fixture
def faults() -> Faults:
    return Faults()


@pytest.fixture
def url(tmp_path: Path, faults: Faults) -> Iterator[str]:
    """URL of the folder in which sets are packed."""
    with web_server(tmp_path / "shards", faults) as address:
        yield address


def keys_of(faces: FaceSet, **options) -> list[int]:
    loader = build_loader(faces, **{"batch_size": 3, "training": True} | options)
    return [int(key) for batch in loader for key in batch.keys]


def test_what_is_fetched_late_is_not_left_behind(
    train_set: Packed, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Late(threading.Thread):
        def run(self) -> None:
            time.sleep(0.2)
            super().run()

    monkeypatch.setattr(samples, "SHUFFLE_BUFFER", 10)
    monkeypatch.setattr(samples, "threading", SimpleNamespace(Thread=Late))
    faces = open_set(f"{url}/vggface2-train", tmp_path, None)
    assert isinstance(faces.folder, RemoteFolder)
    keys_of(faces)
    for thread in threading.enumerate():
        if isinstance(thread, Late):
            thread.join()
    assert not list(faces.folder.local.glob("*.tar"))


def test_what_a_killed_process_left_is_removed_by_the_next(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    script = (
        "import sys, time; from persona.data.storage import open_remote\n"
        f"print(open_remote({url + '/a'!r}, None).local, flush=True); time.sleep(60)"
    )
    command, environment = [sys.executable, "-c", script], {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        theirs = Path(process.stdout.readline().strip())
        (theirs / "face.tar").write_bytes(b"face")
        mine = open_remote(f"{url}/a", None).local
        assert theirs.is_dir() and mine.is_dir() and theirs.parent == mine.parent
        process.kill()
    (tmp_path / "persona-set-elsewhere").symlink_to(tmp_path / "shards")
    other = open_remote(f"{url}/a", None).local
    assert {p.name for p in tmp_path.glob("persona-set-*")} == {
        *(mine.name, other.name, "persona-set-elsewhere")
    }


@pytest.mark.parametrize("workers", [0, 3])
@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("ranges", [True, False])
def test_cut_connections_lose_and_double_nothing(
    train_set: Packed,
    url: str,
    faults: Faults,
    tmp_path: Path,
    workers: int,
    cached: bool,
    ranges: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(samples, "SHUFFLE_BUFFER", 10)
    here = keys_of(train_set.faces)
    faults.cuts, faults.ranges = 4, ranges
    faces = open_set(f"{url}/vggface2-train", tmp_path, tmp_path / "cache" if cached else None)
    assert isinstance(faces.folder, RemoteFolder)
    assert faces.manifest == train_set.manifest
    assert keys_of(faces, workers=workers) == here
    assert faults.cuts == 0
    whole = Counter(path for path, start in faults.asked if path.endswith(".tar") and not start)
    if ranges:  # each shard is begun once, however many workers want it
        assert set(whole.values()) == {1}
        assert len([start for _, start in faults.asked if start]) >= 4
    left = list(faces.folder.local.glob("*.tar"))
    assert len(left) == (5 if cached else 0)
    faults.asked.clear()
    assert keys_of(faces, workers=workers, epoch=1)
    tars = [path for path, _ in faults.asked if path.endswith(".tar")]
    assert len(tars) == (0 if cached else 5)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("status", "message", "tries"),
    [
        (403, "refused", 1),
        (404, "not there", 1),
        (500, "the server answers 500, 6 times", 6),
    ],
)
def test_refusals_are_one_line(
    train_set: Packed,
    url: str,
    faults: Faults,
    tmp_path: Path,
    workers: int,
    status: int,
    message: str,
    tries: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(samples.ShardStream, "_fetch_ahead", lambda *_: None)
    faults.status = status
    faces = open_set(f"{url}/vggface2-train", tmp_path)
    with pytest.raises(PersonaError, match=rf"cannot read http://\S+\.tar: {message}") as error:
        keys_of(faces, workers=workers)
    assert "\n" not in str(error.value)
    if not workers:
        assert len([path for path, _ in faults.asked if path.endswith(".tar")]) == tries


def test_half_a_body_for_ever(train_set: Packed, url: str, faults: Faults, tmp_path: Path) -> None:
    faults.cuts, faults.ranges = 1000, False
    faces = open_set(f"{url}/vggface2-train", tmp_path)
    with pytest.raises(PersonaError, match=r"the connection broke .*, 6 times"):
        shard_path(faces, 0)


def test_what_came_before_a_reset_is_kept(
    train_set: Packed, url: str, faults: Faults, tmp_path: Path
) -> None:
    faces = open_set(f"{url}/vggface2-train", tmp_path)
    faults.resets = 8  # more than the tries in a row that may bring nothing
    path = shard_path(faces, 0)
    assert path.read_bytes() == (train_set.folder / "000000.tar").read_bytes()


@pytest.mark.parametrize("size", [18, 0])
def test_a_page_instead_of_a_shard_is_not_gone_on_with(
    train_set: Packed, url: str, faults: Faults, tmp_path: Path, size: int
) -> None:
    faces = open_set(f"{url}/vggface2-train", tmp_path, tmp_path / "cache")
    faults.page = b"<html>log in</html>".ljust(size or faces.manifest.shards[0].bytes)
    path = shard_path(faces, 0)
    assert path.read_bytes() == (train_set.folder / "000000.tar").read_bytes()


def test_a_server_that_stalls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "TIMEOUT_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/set"
        with pytest.raises(PersonaError, match=r"nothing came for 0\.05 s, 6 times"):
            open_set(url, tmp_path)


def test_no_server_and_no_set(train_set: Packed, url: str, tmp_path: Path) -> None:
    with pytest.raises(PersonaError, match=r"no manifest\.json at http://127\.0\.0\.1:\d+/nothing"):
        open_set(f"{url}/nothing", tmp_path)
    with pytest.raises(PersonaError, match="connection refused, 6 times"):
        open_set("http://127.0.0.1:9/set", tmp_path)


def test_a_full_cache_goes_on_without_its_server(
    train_set: Packed, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = tmp_path / "cache"
    with web_server(tmp_path / "shards", Faults()) as address:
        verify_set(open_set(f"{address}/vggface2-train", tmp_path, cache))
    assert not caplog.records
    faces = open_set(f"{address}/vggface2-train", tmp_path, cache)
    assert sorted(keys_of(faces)) == list(range(30))
    (line,) = caplog.messages
    assert "connection refused, 6 times" in line
    assert f": going on with the copy of {datetime.now(UTC):%Y-}" in line
    assert find_targets(faces.folder, "facenet-vggface2") is None
    assert "as if it had no embeddings of facenet-vggface2" in caplog.messages[1]
    with pytest.raises(PersonaError, match="connection refused, 6 times"):
        open_set(f"{address}/vggface2-train", tmp_path)
    with pytest.raises(PersonaError, match="connection refused, 6 times"):
        open_set(f"{address}/vggface2-train", tmp_path, tmp_path / "another")
    with pytest.raises(PersonaError, match="connection refused, 6 times"):
        find_targets(open_remote(f"{address}/vggface2-train", None), "facenet-vggface2")


def test_a_refusal_is_not_passed_over(train_set: Packed, url: str, tmp_path: Path) -> None:
    """The server answers: what it does not give any more is not taken from the cache."""
    open_set(f"{url}/vggface2-train", tmp_path, tmp_path / "cache")
    (train_set.folder / "manifest.json").unlink()
    with pytest.raises(PersonaError, match="no manifest"):
        open_set(f"{url}/vggface2-train", tmp_path, tmp_path / "cache")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("https://user:secret@host/set", "holds a user"),
        ("https://host/set?token=secret", "holds a user, a query"),
        ("s3://key:secret@bucket/set", "holds a user"),
        ("ftp://host/set", "not from ftp://"),
        ("https://host", "names no folder"),
        ("http://[secret/set", "does not read as one"),
    ],
)
def test_urls_that_are_refused(url: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(PersonaError, match=message) as error:
        open_set(url, tmp_path)
    assert "secret" not in str(error.value)


def test_credentials_come_from_netrc(
    train_set: Packed, url: str, faults: Faults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password secret\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    open_set(f"{url}/vggface2-train", tmp_path)
    assert faults.authorizations == {"Basic bWU6c2VjcmV0"}


@pytest.mark.parametrize(
    ("url", "sent"),
    [
        ("https://sets.example.org/a", True),
        ("https://other.example.org/a", False),  # the entry `default` is for no host in particular
        ("https://default/a", False),
        ("http://sets.example.org/a", False),
        ("http://localhost:8000/a", True),
        ("http://127.0.0.1:8000/a", True),
        ("http://[::1]:8000/a", True),
    ],
)
def test_a_login_goes_only_to_its_host_and_only_encrypted(
    url: str, sent: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hosts = ("sets.example.org", "localhost", "127.0.0.1", "::1")
    entries = [*(f"machine {host}" for host in hosts), "default"]
    lines = [f"{entry} login me password secret\n" for entry in entries]
    (tmp_path / ".netrc").write_text("".join(lines))
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    logins: list[Mapping[str, str]] = []

    def refuse(url: str, *, login: Mapping[str, str], **_: object) -> None:
        logins.append(login)
        raise urllib.error.HTTPError(url, 401, "", Message(), None)

    monkeypatch.setattr(storage, "open_url", refuse)
    with pytest.raises(PersonaError, match="refused") as error:
        open_set(url, tmp_path)
    assert logins == [{"Authorization": "Basic bWU6c2VjcmV0"} if sent else {}]
    plain = url == "http://sets.example.org/a"
    assert ("is not sent over http: use https" in str(error.value)) == plain


def test_a_changed_file_does_not_pass(train_set: Packed, url: str, tmp_path: Path) -> None:
    path = train_set.folder / "000001.tar"
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(data)
    faces = open_set(f"{url}/vggface2-train", tmp_path, tmp_path / "cache")
    with pytest.raises(PersonaError, match=r"000001\.tar does not match its checksum"):
        verify_set(faces)
    path.write_bytes(bytes(data) + b"more")
    with pytest.raises(PersonaError, match="larger than it may be"):
        verify_set(faces)
    path.write_bytes(data[:512])
    with pytest.raises(PersonaError, match=r"512 of [\d,]+ bytes came|shorter than its manifest"):
        verify_set(faces)
    assert not list((tmp_path / "cache").rglob("000001*.tar"))


def test_a_damaged_cache_is_fetched_again(
    train_set: Packed, url: str, faults: Faults, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    faces = open_set(f"{url}/vggface2-train", tmp_path, tmp_path / "cache")
    keys_of(faces)
    path = shard_path(faces, 1)
    whole, times = path.read_bytes(), path.stat()
    index = path.parent / ".index"
    index.mkdir(exist_ok=True)
    for read, when in ((shard_path, times.st_mtime_ns + 1), (None, times.st_mtime_ns)):
        path.write_bytes(whole[:-1] + b"x")
        os.utime(path, ns=(times.st_atime_ns, when))
        faults.asked.clear()
        if read is None:
            verify_set(faces)  # whatever this run believes of it
            assert not index.exists()
        else:
            read(faces, 1)
        assert path.read_bytes() == whole
        assert [name for name, _ in faults.asked] == ["/vggface2-train/000001.tar"]
        times = path.stat()
    assert ["000001" in line and "downloading it again" in line for line in caplog.messages] == [
        *(True, True)
    ]


def test_where_files_cannot_be_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(fcntl, "flock", refuse)
    (tmp_path / "persona-set-of-another").mkdir()
    assert open_remote("http://127.0.0.1:9/set", None).local.is_dir()
    assert (tmp_path / "persona-set-of-another").is_dir()  # its process may be alive
    cached = open_remote("http://127.0.0.1:9/set", tmp_path / "cache")
    with pytest.raises(PersonaError, match=r"No locks available; .* name another with --cache"):
        local_file(cached, "000000.tar", "0" * 64)
    with (
        pytest.raises(
            PersonaError, match=r"s cannot be locked \(No locks available\): choose a fo"
        ),
        folder_lock(tmp_path / "s", doing="packing into"),
    ):
        pass
    assert not is_locked(tmp_path / "s")


def test_a_set_packed_anew_is_not_mixed_with_the_cached_one(
    train_set: Packed, lfw_set: Packed, url: str, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    faces = open_set(f"{url}/lfw", tmp_path, cache)
    verify_set(faces)
    shutil.rmtree(lfw_set.folder)
    shutil.copytree(train_set.folder, lfw_set.folder)
    faces = open_set(f"{url}/lfw", tmp_path, cache)
    assert sorted(keys_of(faces)) == list(range(30))


def test_a_partial_file_of_a_killed_run_is_gone_on_with(
    train_set: Packed, url: str, faults: Faults, tmp_path: Path
) -> None:
    faces = open_set(f"{url}/vggface2-train", tmp_path, tmp_path / "cache")
    assert isinstance(faces.folder, RemoteFolder)
    path = train_set.folder / "000000.tar"
    known = faces.manifest.shards[0]
    partial = faces.folder.local / f".000000-{known.sha256[:16]}.tar.partial"
    partial.write_bytes(path.read_bytes()[:777])
    assert shard_path(faces, 0).read_bytes() == path.read_bytes()
    assert faults.asked[-1] == ("/vggface2-train/000000.tar", 777)


def test_what_another_process_wrote_before_it_gave_up_is_gone_on_with(
    train_set: Packed,
    url: str,
    faults: Faults,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The other process holds the lock at first, writes half of the file, and ends."""
    shard = train_set.manifest.shards[0]
    whole = (train_set.folder / shard.name).read_bytes()
    faces = open_set(f"{url}/vggface2-train", tmp_path, tmp_path / "cache")
    assert isinstance(faces.folder, RemoteFolder)
    local = faces.folder.local

    def wait(file: IO[bytes], how: int) -> None:
        (partial,) = local.glob(".*.partial")
        partial.write_bytes(whole[:700])
        fcntl.flock(file, how)

    monkeypatch.setattr(storage, "fcntl", SimpleNamespace(flock=wait, LOCK_EX=fcntl.LOCK_EX))
    path = local_file(faces.folder, shard.name, shard.sha256, len(whole))
    assert path.read_bytes() == whole
    assert faults.asked[-1][1] == 700


def test_many_want_one_file_and_it_comes_once(
    train_set: Packed, url: str, faults: Faults, tmp_path: Path
) -> None:
    folder = open_remote(f"{url}/vggface2-train", tmp_path / "cache")
    known = train_set.manifest.shards[0]
    found: list[Path] = []

    def fetch() -> None:
        found.append(local_file(folder, known.name, known.sha256, known.bytes))

    threads = [threading.Thread(target=fetch) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == len(faults.asked) == 1


@pytest.mark.parametrize("kept", [True, False])
def test_a_full_disk_is_one_line(
    train_set: Packed, url: str, tmp_path: Path, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    faces = open_set(f"{url}/vggface2-train", tmp_path, tmp_path / "cache" if kept else None)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(storage, "_append", full)
    advice = "make room, or name another" if kept else "set TMPDIR"
    with pytest.raises(PersonaError, match=f"No space left on device; {advice}"):
        keys_of(faces)


def test_pairs_and_verification_from_elsewhere(lfw_set: Packed, url: str, tmp_path: Path) -> None:
    faces = open_set(f"{url}/lfw", tmp_path)
    here = lfw_set.faces.pairs()
    assert list(faces.pairs()) == list(here)
    verify_set(faces)


def test_targets_want_a_set_on_this_machine(lfw_set: Packed, url: str, tmp_path: Path) -> None:
    line = persona_error_here(
        "targets", f"{url}/lfw", "--teacher", "facenet-vggface2", home=tmp_path
    )
    assert "keeping targets wants the set on this machine: copy http://" in line


# --- object storage ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def s3_port() -> Iterator[int]:
    """An S3 server of this machine."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        yield server.get_host_and_port()[1]
    finally:
        server.stop()


@pytest.fixture
def bucket(s3_port: int, train_set: Packed, monkeypatch: pytest.MonkeyPatch) -> str:
    """A bucket that holds the train set."""
    import s3fs

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing-secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{s3_port}")
    s3fs.S3FileSystem.clear_instance_cache()  # of an earlier test's endpoint
    store = s3fs.S3FileSystem(skip_instance_cache=True)
    if not store.exists("faces"):
        store.mkdir("faces")
    for path in train_set.folder.glob("*.*"):
        store.put(str(path), f"faces/sets/vggface2-train/{path.name}")
    return "s3://faces/sets/vggface2-train"


@pytest.mark.parametrize("workers", [0, 2])
def test_a_set_in_s3_with_cut_connections(
    bucket: str,
    s3_port: int,
    train_set: Packed,
    tmp_path: Path,
    workers: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(storage, "OBJECT_CHUNK", 5000)
    here = keys_of(train_set.faces)
    cuts = Cuts(connections=4, after=3000)
    with cutting_proxy(s3_port, cuts) as port:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        faces = open_set(bucket, tmp_path)
        assert faces.manifest == train_set.manifest
        assert keys_of(faces, workers=workers) == here
    assert cuts.done == 4


def test_s3_says_no_in_one_line(bucket: str, tmp_path: Path) -> None:
    with pytest.raises(PersonaError, match=r"no manifest\.json at s3://faces/nothing"):
        open_set("s3://faces/nothing", tmp_path)
    with pytest.raises(PersonaError, match=r"no manifest\.json at s3://elsewhere/nothing"):
        open_set("s3://elsewhere/nothing", tmp_path)


@pytest.fixture
def google(
    train_set: Packed, faults: Faults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """The train set in a bucket of Google's kind: the bucket is the folder of all sets."""
    # Read by gcsfs on import, as the product sets it.
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    import fsspec
    import gcsfs.retry

    monkeypatch.setitem(fsspec.config.conf, "gcs", {"token": "anon"})  # asks no metadata server

    async def at_once(_: float) -> None:
        """In place of its back-off."""

    monkeypatch.setattr(gcsfs.retry, "asyncio", SimpleNamespace(sleep=at_once))
    monkeypatch.setattr(storage, "OBJECT_CHUNK", 5000)
    with web_server(tmp_path, faults, google=True) as address:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
        gcsfs.GCSFileSystem.clear_instance_cache()  # of an earlier test's endpoint
        yield "gs://shards/vggface2-train"


@pytest.mark.parametrize("workers", [0, 2])
def test_a_set_at_google_with_cut_connections(
    google: str, faults: Faults, train_set: Packed, tmp_path: Path, workers: int
) -> None:
    here = keys_of(train_set.faces)
    faults.cuts = 4
    faces = open_set(google, tmp_path)
    assert faces.manifest == train_set.manifest
    assert keys_of(faces, workers=workers) == here
    assert faults.cuts == 0


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, "refused"),
        (403, "refused"),
        (404, "not there"),
        (500, "the server answers 500, 6 times"),
    ],
)
def test_google_says_no_in_one_line(
    google: str,
    faults: Faults,
    train_set: Packed,
    tmp_path: Path,
    status: int,
    message: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    faces = open_set(google, tmp_path)
    faults.status = status
    with pytest.raises(PersonaError, match=rf"cannot read gs://\S+\.tar: {message}; ") as error:
        shard_path(faces, 0)
    assert "\n" not in str(error.value)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
    with pytest.raises(PersonaError, match=r"no manifest\.json at gs://shards/nothing"):
        open_set("gs://shards/nothing", tmp_path)


def test_half_an_object_for_ever(google: str, faults: Faults, tmp_path: Path) -> None:
    faces = open_set(google, tmp_path)
    faults.cuts = 1000
    with pytest.raises(PersonaError, match=r"the connection broke \(ClientPayloadError\), 6 times"):
        shard_path(faces, 0)
    assert faults.cuts == 1000 - 6


@pytest.mark.parametrize(("scheme", "extra"), storage.OBJECT_STORES.items())
def test_object_storage_without_its_reader(
    scheme: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fsspec

    def lacking(*_: object, **__: object) -> None:
        raise ImportError

    monkeypatch.setattr(fsspec, "filesystem", lacking)
    advice = f"{scheme}:// needs a reader: {install_command(extra)}"
    with pytest.raises(PersonaError, match=re.escape(advice)):
        open_set(f"{scheme}://bucket/set", tmp_path)

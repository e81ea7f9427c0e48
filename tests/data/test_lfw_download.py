from __future__ import annotations

import hashlib
import http.server
import shutil
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from conftest import write_lfw
from helpers import persona_error
from typer.testing import CliRunner

from persona.cli.app import app
from persona.data import download
from persona.data.download import MirroredFile, download_lfw
from persona.data.raw import open_dataset
from persona.download import Checksum, fetch
from persona.errors import PersonaError
from persona.models.weights import FACENETS


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A server of a small lfw.tgz and pairs.txt, and its folder."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    lfw = write_lfw(tmp_path / "made")
    shutil.move(lfw / "pairs.txt", folder / "pairs.txt")
    with tarfile.open(folder / "lfw.tgz", "w:gz") as tar:
        tar.add(lfw, "lfw")
    handler = partial(QuietHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", folder
        server.shutdown()


@pytest.fixture
def sources(mirror: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the mirror the source of the archive and the pairs, asked in one round."""
    url, folder = mirror

    def source(name: str) -> MirroredFile:
        digest = hashlib.md5((folder / name).read_bytes(), usedforsecurity=False).hexdigest()
        return MirroredFile(name, (f"{url}/{name}",), Checksum("md5", digest))

    monkeypatch.setattr(download, "ARCHIVE", source("lfw.tgz"))
    monkeypatch.setattr(download, "PAIRS", source("pairs.txt"))
    monkeypatch.setattr(download, "fetch", partial(fetch, rounds=1))


@pytest.mark.usefixtures("sources")
def test_lfw_is_unpacked_with_its_pairs_and_only_once(
    mirror: tuple[str, Path], tmp_path: Path
) -> None:
    raw = tmp_path / "raw"
    root, fresh = download_lfw(raw)
    assert (root, fresh) == (raw / "LFW", True)
    dataset = open_dataset("lfw", raw)
    assert len(dataset.index().photos) == 24
    assert len(dataset.pairs() or ()) == 12
    assert [path.name for path in raw.iterdir()] == ["LFW"]
    shutil.rmtree(mirror[1])
    assert download_lfw(raw) == (root, False)


@pytest.mark.usefixtures("sources")
def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    work = tmp_path / "raw" / ".lfw"
    (work / "unpacked" / "half").mkdir(parents=True)
    (work / "lfw.tgz").write_bytes((tmp_path / "mirror" / "lfw.tgz").read_bytes())
    (tmp_path / "mirror" / "lfw.tgz").unlink()  # not asked for again
    root, _ = download_lfw(tmp_path / "raw")
    assert sorted(path.name for path in root.iterdir()) == ["lfw", "pairs.txt"]


@pytest.mark.usefixtures("sources")
def test_pairs_alone_are_added_to_photos_that_are_there(tmp_path: Path) -> None:
    lfw = write_lfw(tmp_path / "raw")
    wanted = (lfw / "pairs.txt").read_bytes()
    (lfw / "pairs.txt").unlink()
    assert download_lfw(tmp_path / "raw") == (lfw, True)
    assert (lfw / "pairs.txt").read_bytes() == wanted


@pytest.mark.usefixtures("sources")
def test_an_archive_of_something_else_leaves_nothing_that_looks_whole(
    mirror: tuple[str, Path], tmp_path: Path
) -> None:
    (mirror[1] / "lfw.tgz").write_bytes(b"another file")
    with pytest.raises(PersonaError, match=r"lfw\.tgz .*its md5 is not") as error:
        download_lfw(tmp_path / "raw")
    assert f"put it at {tmp_path / 'raw/.lfw/lfw.tgz'}" in str(error.value)
    assert not (tmp_path / "raw" / "LFW").exists()


@pytest.mark.usefixtures("sources")
def test_the_command_takes_a_mirror(
    mirror: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, folder = mirror
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    environment = {"PERSONA_HOME": str(tmp_path / "home")}
    command = ["download", "lfw", "--mirror", f"{url}/lfw.tgz"]
    result = CliRunner().invoke(app, command, env=environment)
    assert "lfw is now at" in result.output, result.exception

    weights = FACENETS["facenet-vggface2"].file
    (folder / weights).write_bytes(b"weights")
    for said in ("is now at", "was already at"):
        command = ["download", "teacher", "--mirror", url]
        assert said in CliRunner().invoke(app, command, env=environment).output
    assert (tmp_path / "home/models/teachers" / weights).read_bytes() == b"weights"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("vggface2",), "vggface2 cannot be downloaded: its first home is gone, so ask your"),
        (("agedb",), "ask its authors"),
        (("CASIA-WebFace",), "CASIA-WebFace: <identity>/<photo>.jpg"),
        (("lwf",), "unknown download 'lwf'; did you mean 'lfw'?"),
        (("lfw", "again"), "only a teacher has a further name"),
        (("teacher", "facenet-vgg"), "did you mean 'facenet-vggface2'"),
        (("lfw", "--mirror", "/home/me"), "is no address of a mirror"),
    ],
)
def test_what_cannot_be_downloaded_is_explained(
    tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    result = CliRunner().invoke(app, ["download", *arguments], env={"PERSONA_HOME": str(tmp_path)})
    assert isinstance(result.exception, PersonaError)
    assert message in str(result.exception)
    assert "\n" not in str(result.exception)


def test_a_refusal_exits_with_an_error(tmp_path: Path) -> None:
    assert "Expected at" in persona_error("download", "vggface2", home=tmp_path)

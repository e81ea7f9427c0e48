"""Where things lie: below a home folder, and for a user who has none."""

from __future__ import annotations

import os
import pwd
import tempfile
from pathlib import Path

import pytest
from helpers import persona_error_here, persona_here

from persona.cli.errors import explain
from persona.data.raw import open_dataset
from persona.deploy.bench import bench
from persona.errors import PersonaError
from persona.gallery.store import open_store
from persona.models.sources import load_network, network_digest
from persona.models.weights import FACENETS, find_weights, weight_places
from persona.training.trackers.weights_and_biases import has_wandb_login
from persona.workspace import HOME_VARIABLE, Workspace, home_folder, user_path


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's arbitrary user: no entry in the passwd file, and no HOME."""

    def getpwuid(_: int) -> None:
        raise KeyError

    monkeypatch.setattr(pwd, "getpwuid", getpwuid)
    for name in ("HOME", "NETRC", "TORCH_HOME", "XDG_CACHE_HOME", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def test_a_home_folder_is_put_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(HOME_VARIABLE, "~/persona")
    assert Workspace.locate().shards == tmp_path / "persona" / "shards"
    with pytest.raises(PersonaError, match=f"no ONNX file at {tmp_path}/x"):
        load_network("onnx:~/x", tmp_path)


@pytest.mark.usefixtures("homeless")
def test_without_one_a_path_below_it_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = "~/x: this user has no home folder for `~`: write the whole path, or set HOME"
    for use in (
        lambda: user_path("~/x"),
        lambda: load_network("onnx:~/x", tmp_path),
        lambda: load_network("litert:~/x", tmp_path),
        lambda: network_digest("onnx:~/x", tmp_path),
        lambda: open_dataset("folders:~/x", tmp_path),
        lambda: open_store("~/x", create=True),
        lambda: bench(["onnx:~/x"], tmp_path),
    ):
        with pytest.raises(PersonaError) as raised:
            use()
        assert str(raised.value) == line
    monkeypatch.setenv(HOME_VARIABLE, "~/x")
    with pytest.raises(PersonaError, match="~/x: this user has no home folder"):
        Workspace.locate()


@pytest.mark.usefixtures("homeless")
def test_without_one_nothing_is_looked_for_there(tmp_path: Path) -> None:
    release = FACENETS["facenet-vggface2"]
    assert home_folder() is None
    assert weight_places(release, tmp_path) == [tmp_path / "teachers" / release.file]
    assert find_weights(release, tmp_path) is None
    assert not has_wandb_login()


@pytest.mark.usefixtures("homeless")
def test_without_one_commands_work(tmp_path: Path) -> None:
    assert {row["state"] for row in persona_here("datasets", home=tmp_path)} == {"missing"}
    assert "unknown model" in persona_error_here("bench", "nope", home=tmp_path)
    assert os.environ.get("HOME") is None


def test_a_working_directory_that_was_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    line = "the working directory was removed: change to one that exists"
    monkeypatch.delenv(HOME_VARIABLE, raising=False)
    with pytest.raises(PersonaError, match=line):
        Workspace.locate()
    assert Workspace.locate(home=tmp_path).runs == tmp_path / "runs"
    with pytest.raises(FileNotFoundError) as raised:
        (Path("a") / "b").mkdir()
    assert explain(raised.value) == (line, 1)
    monkeypatch.chdir(tmp_path)


def test_no_folder_for_temporary_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/nowhere"])
    with pytest.raises(FileNotFoundError) as raised:
        tempfile.mkdtemp()
    line = "no folder for temporary files can be written to: name one in TMPDIR"
    assert explain(raised.value) == (line, 1)

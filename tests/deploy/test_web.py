"""The page: what it is made of and where it may be put."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import onnx
import pytest
from helpers import persona_error_here
from onnx_files import write_model
from students import SIDE, write_student

from persona.data.align import AlignSpec
from persona.deploy import web_runtime
from persona.deploy.exports import Exported, web
from persona.deploy.exports.onnx import Onnx
from persona.deploy.exports.web import Web, WebOptions
from persona.deploy.faces import drawn_faces
from persona.deploy.web_runtime import BINARY, FILES, NAME, SCRIPT, load_runtime
from persona.errors import PersonaError

PAGE = Path(web.__file__).parents[1] / "page"


@pytest.fixture
def tarball(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A runtime of a few bytes, which the digests are made to fit."""
    files = {name: f"bytes of {name}".encode() for name in FILES}
    path = tmp_path / "given" / f"{NAME}.tgz"
    path.parent.mkdir()
    with tarfile.open(path, "w:gz") as tar:
        for name, data in {**files, "other.js": b"other"}.items():
            member = tarfile.TarInfo(f"package/dist/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    digest = base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
    monkeypatch.setattr(web_runtime, "TARBALL", digest)
    for name, data in files.items():
        monkeypatch.setitem(FILES, name, hashlib.sha256(data).hexdigest())
    return path


def write_npm(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Makes `npm` a shell script, and the only one on the path beside the system's tools."""
    folder.mkdir()
    (folder / "npm").write_text(
        f"#!/bin/sh\nfor a; do case $a in --pack*) d=${{a#*=}};; esac; done\n{script}\n"
    )
    (folder / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_npm_fetches_the_runtime_once(
    tarball: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_npm(tmp_path / "bin", monkeypatch, f'cp "{tarball}" "$d"')
    models = tmp_path / "models"
    found = load_runtime(models)
    assert found == {name: f"bytes of {name}".encode() for name in FILES}
    monkeypatch.setenv("PATH", "")
    assert load_runtime(models) == found
    (models / "runtimes" / NAME / SCRIPT).write_text("alert()")
    with pytest.raises(PersonaError, match=f"{SCRIPT} is not that of {NAME}: remove it"):
        load_runtime(models)


def test_a_runtime_by_hand(tarball: Path, tmp_path: Path) -> None:
    found = load_runtime(tmp_path, tarball)
    with tarfile.open(tarball) as tar:
        for member in tar:  # the filters of `extractall` are not in Python 3.11.2
            content = tar.extractfile(member)
            if content is not None:
                path = tmp_path / "unpacked" / member.name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content.read())
    for folder in ("unpacked/package", "unpacked/package/dist"):
        assert load_runtime(tmp_path, tmp_path / folder) == found
    with pytest.raises(PersonaError, match=f"{BINARY}|{SCRIPT}.*--runtime takes the tarball"):
        load_runtime(tmp_path, tmp_path / "unpacked")
    with pytest.raises(PersonaError, match=r"no .*nowhere"):
        load_runtime(tmp_path, tmp_path / "nowhere.tgz")
    tarball.write_bytes(tarball.read_bytes() + b"\0")
    with pytest.raises(PersonaError, match="is not npm's tarball of onnxruntime-web"):
        load_runtime(tmp_path, tarball)


def test_without_npm_or_network_it_says_what_to_do(
    tarball: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = "echo npm error code ECONNREFUSED >&2; echo npm error at http://me:pw@host/ >&2; exit 1"
    write_npm(tmp_path / "bin", monkeypatch, told)
    by_hand = r"run `npm pack onnxruntime-web@.*`, and name the file with --runtime"
    with pytest.raises(PersonaError, match=rf"\(ECONNREFUSED\): .*{by_hand}") as raised:
        load_runtime(tmp_path / "models")
    assert "pw" not in str(raised.value)
    write_npm(tmp_path / "wrong", monkeypatch, f'echo wrong >"$d/{NAME}.tgz"')
    with pytest.raises(PersonaError, match="is not npm's tarball"):
        load_runtime(tmp_path / "models")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(PersonaError, match=f"there is no npm here: .*{by_hand}"):
        load_runtime(tmp_path / "models")
    assert not (tmp_path / "models").exists()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exporting costs nothing here."""

    def write(
        _: Any, _card: Any, _models: Any, faces: Any, path: Path, options: Any, **_more: Any
    ) -> Exported:
        assert options.preprocessing
        path.parent.mkdir()
        path.write_bytes(b"graph")
        return Exported(path, 5, 1.0, len(faces))

    monkeypatch.setattr(Onnx, "export", write)
    monkeypatch.setattr(web, "build_detector", lambda: {"pnet.onnx": b"network"})
    monkeypatch.setattr(web, "_threshold", lambda _: {"threshold": 0.4, "threshold_of": "lfw"})


def test_a_page_is_made_whole_and_replaces_only_a_page(
    tarball: Path, quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card, faces = write_student(tmp_path / "models"), drawn_faces(SIDE, 2)

    def make(folder: Path, **options: Any) -> Exported:
        chosen = WebOptions(runtime=tarball, **options)
        return Web().export(card, tmp_path / "models", faces, folder, chosen)

    page = tmp_path / "site" / "page"
    done = make(page)
    facts = json.loads((page / "persona.json").read_text())
    assert (facts["model"], facts["threshold"], facts["runtime"]) == ("small", 0.4, NAME)
    assert facts["alignment"] == {"method": "margin", "size": SIDE, "margin": 14}
    assert {*facts["files"], "persona.json"} == {path.name for path in page.iterdir()}
    assert done.bytes == sum(path.stat().st_size for path in page.iterdir())
    (page / "model.onnx").write_bytes(b"older")
    make(page)
    assert (page / "model.onnx").read_bytes() == b"graph"

    (page / "notes.txt").touch()
    with pytest.raises(PersonaError, match=r"holds notes\.txt, which is not the page's"):
        make(page)
    with pytest.raises(PersonaError, match="is no page of persona's: name a new folder"):
        make(tmp_path / "models")
    with pytest.raises(PersonaError, match=r"small\.txt is a file"):
        (tmp_path / "small.txt").touch()
        make(tmp_path / "small.txt")
    with pytest.raises(PersonaError, match="leave --classifier out"):
        make(tmp_path / "new", classifier=True)

    def broken(*_: Any, **__: Any) -> Exported:
        raise PersonaError("would differ")

    monkeypatch.setattr(Onnx, "export", broken)
    with pytest.raises(PersonaError, match="would differ"):
        make(tmp_path / "site" / "other")
    assert [path.name for path in (tmp_path / "site").iterdir()] == ["page"]


@pytest.mark.parametrize(
    ("align", "wanted"),
    [
        (None, ("margin", SIDE, 14)),
        (AlignSpec("mtcnn", 112, 20), ("margin", 112, 20)),
        (AlignSpec("landmarks", 112), ("five-point", 112, 14)),
        (AlignSpec("none", 160, 0), ("margin", 160, 0)),
    ],
)
def test_faces_are_cut_as_for_training(
    tmp_path: Path, align: AlignSpec | None, wanted: tuple[str, int, int]
) -> None:
    card = write_student(tmp_path)
    known = None if align is None else dataclasses.asdict(align)
    card = dataclasses.replace(card, alignment=known)
    assert web._alignment(card) == dict(zip(("method", "size", "margin"), wanted, strict=True))


@pytest.mark.parametrize(
    ("text", "threshold", "origin"),
    [
        ("0.4123, the cosine at FAR 0.001 on lfw", 0.4123, "the cosine at FAR 0.001 on lfw"),
        ("-.5", -0.5, ""),
        ("unknown: measure it", None, ""),
        (None, None, ""),
    ],
)
def test_the_files_threshold(
    tmp_path: Path, text: str | None, threshold: float | None, origin: str
) -> None:
    model = onnx.load(write_model(tmp_path / "a.onnx"))
    onnx.helper.set_model_props(model, {} if text is None else {web.THRESHOLD_KEY: text})
    onnx.save(model, tmp_path / "a.onnx")
    found = web._threshold(tmp_path / "a.onnx")
    assert found == {"threshold": threshold, "threshold_of": origin}


def test_what_the_command_refuses(tmp_path: Path) -> None:
    write_student(tmp_path / "models")
    assert "did you mean 'web'" in persona_error_here("export", "--format", "webb", home=tmp_path)
    refused = persona_error_here("export", "--runtime", "a", home=tmp_path)
    assert "--runtime goes with --format web, not with onnx" in refused


def test_the_page_allows_nothing_from_elsewhere() -> None:
    html = (PAGE / "index.html").read_text()
    assert "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; connect-src 'self'" in html
    for path in PAGE.iterdir():
        text = path.read_text()
        assert "https://" not in text and "http://" not in text.replace("http://127.0.0.1:8000", "")

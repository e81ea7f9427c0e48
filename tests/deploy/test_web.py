"""The page: what it is made of, where it may be put, and what it does in a headless Chromium."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from helpers import persona_error, persona_here
from onnx_files import write_model
from PIL import Image
from servers import static_server
from students import SECRET, SIDE, write_student

from persona.deploy import web, web_runtime
from persona.deploy.export import Exported, ExportedStudent, ExportOptions
from persona.deploy.faces import drawn_faces
from persona.deploy.web import export_web
from persona.deploy.web_runtime import BINARY, FILES, NAME, SCRIPT, load_runtime
from persona.errors import PersonaError
from persona.models.cards import find_model
from persona.models.store import load_model
from persona.report.browser import find_chromium, open_browser

PAGE = Path(web.__file__).parent / "page"


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
        tar.extractall(tmp_path / "unpacked", filter="data")
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
        _student: Any, _card: Any, faces: Any, path: Path, options: Any, **_: Any
    ) -> Exported:
        assert options.preprocessing
        path.parent.mkdir()
        path.write_bytes(b"graph")
        return Exported(path, 5, 1.0, len(faces))

    monkeypatch.setattr(web, "export_onnx", write)
    monkeypatch.setattr(web, "_threshold", lambda _: {"threshold": 0.4, "threshold_of": "lfw"})


def test_a_page_is_made_whole_and_replaces_only_a_page(
    tarball: Path, quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card, faces = write_student(tmp_path / "models"), drawn_faces(SIDE, 2)

    def make(folder: Path, options: ExportOptions | None = None) -> Exported:
        return export_web(card, tmp_path / "models", faces, folder, options, runtime=tarball)

    page = tmp_path / "site" / "page"
    done = make(page)
    facts = json.loads((page / "persona.json").read_text())
    assert (facts["model"], facts["threshold"], facts["runtime"]) == ("small", 0.4, NAME)
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
        make(tmp_path / "new", ExportOptions(classifier=True))

    def broken(*_: Any, **__: Any) -> Exported:
        raise PersonaError("would differ")

    monkeypatch.setattr(web, "export_onnx", broken)
    with pytest.raises(PersonaError, match="would differ"):
        make(tmp_path / "site" / "other")
    assert [path.name for path in (tmp_path / "site").iterdir()] == ["page"]


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
    assert "did you mean 'web'" in persona_error("export", "--format", "webb", home=tmp_path)
    assert "add --format web" in persona_error("export", "--runtime", "a", home=tmp_path)


def test_the_page_allows_nothing_from_elsewhere() -> None:
    html = (PAGE / "index.html").read_text()
    assert "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; connect-src 'self'" in html
    for path in PAGE.iterdir():
        text = path.read_text()
        assert "https://" not in text and "http://" not in text.replace("http://127.0.0.1:8000", "")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a model and its page, which has the real runtime."""
    try:
        find_chromium()
    except PersonaError as error:
        if os.environ.get("CI"):
            pytest.fail(str(error))
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("web")
    write_student(folder / "models")
    try:
        load_runtime(folder / "models")
    except PersonaError as error:
        pytest.skip(str(error))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("persona.deploy.export.FACES", 8)
        persona_here("export", "--format", "web", "--out", str(folder / "page"), home=folder)
    return folder


@pytest.fixture(scope="module")
def address(home: Path) -> Iterator[str]:
    with static_server(home / "page") as url:
        yield url


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with open_browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two photos of odd sizes."""
    folder = tmp_path_factory.mktemp("photos")
    paths = [folder / "first.png", folder / "second.png"]
    sizes = [(301, 240), (150, 277)]
    for path, size_px, face in zip(paths, sizes, drawn_faces(200, 2), strict=True):
        Image.fromarray(face).resize(size_px).save(path)
    return paths


def visit(browser: Any, address: str, **options: Any) -> tuple[Any, list[str]]:
    """The page once its model is loaded, and what it said or asked of others."""
    page = browser.new_page(**options)
    seen: list[str] = []
    page.on("console", lambda message: seen.append(message.text))
    page.on("pageerror", lambda error: seen.append(str(error)))
    page.on(
        "request", lambda r: None if r.url.startswith((address, "data:")) else seen.append(r.url)
    )
    page.goto(address)
    page.wait_for_selector("body[data-ready]", timeout=60_000)
    return page, seen


def open_photos(page: Any, photos: list[Path]) -> None:
    for place, path in enumerate(photos):
        page.locator("input[type=file]").nth(place).set_input_files(path)
    page.wait_for_selector("#scale:not([hidden])", timeout=60_000)


SIDES = "import('./page.js').then(({ sides }) => sides.map(({ frame, embedding }) => "
SIDES += "({ ...frame, embedding: Array.from(embedding) })))"


@pytest.mark.heavy
def test_its_embeddings_are_pytorchs(
    home: Path, address: str, browser: Any, photos: list[Path]
) -> None:
    page, seen = visit(browser, address)
    open_photos(page, photos)
    student = load_model(find_model("small", home / "models"), home / "models")
    graph = ExportedStudent(student, ExportOptions(preprocessing=True))
    embeddings = []
    for side, path in zip(page.evaluate(SIDES), photos, strict=True):
        x, y, width, height = (side[name] for name in ("x", "y", "width", "height"))
        pixels = np.asarray(Image.open(path))[None, y : y + height, x : x + width]
        with torch.inference_mode():
            wanted = graph(torch.from_numpy(pixels.copy())).numpy()[0]
        assert float(wanted @ side["embedding"]) > 1 - 1e-3
        np.testing.assert_allclose(side["embedding"], wanted, atol=1e-3)
        embeddings.append(wanted)
    shown = float(page.inner_text("#similarity").split()[-1])
    assert shown == pytest.approx(float(embeddings[0] @ embeddings[1]), abs=2e-3)
    # No verdict on frames that nobody put there; a tap takes one as it is.
    page.fill("#threshold", str(shown - 0.01))
    for place, told in enumerate(("Fit both frames first", "Fit the second frame first")):
        page.wait_for_selector(f"#verdict:text-is('{told}')")
        assert page.get_attribute("#verdict", "data-same") == ""
        page.locator(".photo").nth(place).click()
    page.wait_for_selector("#verdict:text-is('Same person')")
    assert float(page.inner_text("#similarity").split()[-1]) == shown
    page.fill("#threshold", "")  # as in the file
    assert page.inner_text("#verdict") == "The nearer to 1, the more alike"
    page.fill("#threshold", str(shown - 0.01))
    assert page.inner_text("#verdict") == "Same person"
    page.fill("#threshold", str(shown + 0.01))
    assert page.inner_text("#verdict") == "Different people"
    assert seen == []
    page.close()


@pytest.mark.heavy
def test_it_begins_with_the_models_threshold(home: Path, address: str, browser: Any) -> None:
    facts = json.loads((home / "page" / "persona.json").read_text())
    facts |= {"threshold": 0.2911, "threshold_of": "the cosine at FAR 0.001 on lfw"}
    page = browser.new_page()
    page.route("**/persona.json", lambda route: route.fulfill(json=facts))
    page.goto(address)
    page.wait_for_selector("body[data-ready]", timeout=60_000)
    assert page.input_value("#threshold") == "0.292"  # upwards, or the FAR would not hold
    assert "(the cosine at FAR 0.001 on lfw, with frames that" in page.inner_text("#origin")
    page.close()


@pytest.mark.heavy
def test_nothing_of_the_house_is_in_it_and_nothing_leaves_it(
    home: Path, address: str, browser: Any
) -> None:
    for path in (home / "page").iterdir():
        data = path.read_bytes()
        assert SECRET.encode() not in data and b"Lovelace" not in data
    page, _ = visit(browser, address)
    with static_server(home) as elsewhere:
        refused = page.evaluate(f"fetch('{elsewhere}').then(() => 'sent', () => 'refused')")
    assert refused == "refused"
    page.close()


@pytest.mark.heavy
def test_the_frame_is_moved_by_keyboard_pointer_and_slider(
    address: str, browser: Any, photos: list[Path]
) -> None:
    page, seen = visit(browser, address)
    open_photos(page, photos)
    frame = "import('./page.js').then(({ sides }) => sides[0].frame)"
    before = page.evaluate(frame)
    assert before["width"] == pytest.approx(0.75 * before["height"], abs=1)
    page.locator(".photo").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowUp")
    moved = page.evaluate(frame)
    assert moved["x"] > before["x"] and moved["y"] < before["y"]
    page.keyboard.press("+")
    assert page.evaluate(frame)["height"] > moved["height"]
    for _ in range(3):
        page.keyboard.press("Shift+ArrowLeft")
    for end in ("0", "1000"):
        page.locator(".size").first.fill(end)
        found = page.evaluate(frame)
        assert 0 <= found["x"] <= 301 - found["width"] and 0 <= found["y"] <= 240 - found["height"]
    assert found["height"] == 240
    page.locator(".size").first.fill("300")
    box = page.locator(".photo").first.bounding_box()
    page.mouse.click(box["x"] + 2, box["y"] + 2)
    assert (page.evaluate(frame)["x"], page.evaluate(frame)["y"]) == (0, 0)
    assert seen == []
    page.close()


@pytest.mark.heavy
def test_the_camera_and_what_is_no_photo(address: str, browser: Any, photos: list[Path]) -> None:
    page = browser.new_page()
    page.add_init_script(
        "const canvas = document.createElement('canvas'); canvas.width = canvas.height = 200;"
        "setInterval(() => canvas.getContext('2d').fillRect(0, 0, 99, 99), 20);"
        "navigator.mediaDevices.getUserMedia = async () => canvas.captureStream();"
        "window.FaceDetector = class { async detect() { return ["
        "{ boundingBox: { x: 0, y: 0, width: 9, height: 9 } },"
        "{ boundingBox: { x: 60, y: 90, width: 40, height: 50 } }]; } };"
    )
    page.goto(address)
    page.click(".camera >> nth=0")
    page.click(".take:visible")
    page.wait_for_selector(".photo:visible")
    assert page.evaluate("document.querySelector('video').srcObject") is None
    page.evaluate(
        "void (navigator.mediaDevices.getUserMedia = async () => "
        "{ throw new DOMException('', 'NotAllowedError'); })"
    )
    page.click(".camera >> nth=1")
    page.wait_for_selector(".error:visible >> text=not allowed to use the camera")
    file = page.locator("input[type=file]").nth(1)
    file.set_input_files({"name": "a.txt", "mimeType": "text/plain", "buffer": b"none"})
    page.wait_for_selector(".error:visible >> text=a.txt is no photo")
    dot = io.BytesIO()
    Image.new("RGB", (400, 8)).save(dot, "PNG")
    file.set_input_files({"name": "a.png", "mimeType": "image/png", "buffer": dot.getvalue()})
    page.wait_for_selector(".error:visible >> text=400 × 8 px: too few")
    file.set_input_files(photos[1])
    page.wait_for_selector(".photo:visible >> nth=1")
    assert page.locator(".error:visible").count() == 0
    # The larger face near the middle, where the browser finds faces.
    frame = page.evaluate("import('./page.js').then(({ sides }) => sides[1].frame)")
    assert frame["height"] == 55
    assert frame["x"] + frame["width"] / 2 == pytest.approx(80, abs=1)
    assert frame["y"] + frame["height"] / 2 == pytest.approx(115, abs=1)
    page.close()


@pytest.mark.heavy
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width_px", "height_px"), [(360, 740), (390, 844), (1280, 800)])
def test_it_fits_a_phone_and_the_dark(
    address: str, browser: Any, photos: list[Path], scheme: str, width_px: int, height_px: int
) -> None:
    viewport = {"width": width_px, "height": height_px}
    page, seen = visit(browser, address, viewport=viewport, color_scheme=scheme)
    open_photos(page, photos)
    assert page.evaluate("document.documentElement.scrollWidth") <= width_px
    # On a phone both photos and the verdict are seen together, without scrolling.
    verdict = page.locator(".score").bounding_box()
    assert verdict["y"] + verdict["height"] <= height_px or width_px == 1280
    for place in range(2):
        photo = page.locator(".photo").nth(place).bounding_box()
        assert photo["y"] >= 0 and photo["y"] + photo["height"] <= verdict["y"]
    labels = "[...document.querySelectorAll('canvas, video')].every(c => c.ariaLabel)"
    assert page.evaluate(labels)
    shot = np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("L"), np.float64)
    assert (np.median(shot) < 128) == (scheme == "dark")
    assert seen == []
    page.close()

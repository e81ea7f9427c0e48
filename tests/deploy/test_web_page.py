"""The page in a headless Chromium."""

from __future__ import annotations

import functools
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from axe import find_faults
from helpers import persona_here
from PIL import Image
from servers import static_server
from students import SECRET, write_student

from persona.data.align import AlignSpec, FoundFace
from persona.data.align.crop import crop_landmarks, margin_box
from persona.data.align.detect import Mtcnn
from persona.data.synthetic import draw_identity, draw_photo
from persona.deploy.graph import ExportedStudent, ExportOptions
from persona.deploy.web_runtime import load_runtime
from persona.errors import PersonaError
from persona.models.cards import find_model
from persona.models.store import load_model
from persona.report.browser import find_chromium, open_browser


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
        patch.setattr("persona.deploy.exporting.FACES", 8)
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
    """Two photos of odd sizes, clouds without a face."""
    folder = tmp_path_factory.mktemp("photos")
    paths = [folder / "first.png", folder / "second.png"]
    clouds = np.random.default_rng(0).integers(0, 256, (2, 5, 4, 3), np.uint8)
    for path, size_px, cloud in zip(paths, [(301, 240), (150, 277)], clouds, strict=True):
        Image.fromarray(cloud).resize(size_px).save(path)
    return paths


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A photo of two people and one of somebody who holds the head askew."""
    folder = tmp_path_factory.mktemp("faces")
    people = [draw_photo(draw_identity(1, number), number, 240) for number in (3, 6, 8)]
    both = Image.new("RGB", (501, 260), "grey")
    for place, person in enumerate(people[:2]):
        both.paste(person, (place * 255, 15))
    both.save(folder / "both.png")
    people[2].resize((480, 480)).rotate(18, fillcolor="grey").save(folder / "askew.png")
    return [folder / "both.png", folder / "askew.png"]


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
    # Just above it: with as many digits as tell the two apart.
    page.evaluate("""import('./page.js').then(({ sides: [a, b], cosine }) => {
      const field = document.querySelector('#threshold');
      field.value = cosine(a.embedding, b.embedding) + 2e-5;
      field.dispatchEvent(new Event('input'));
    })""")
    assert page.inner_text("#verdict") == "Different people"
    close = float(page.inner_text("#similarity").split()[-1])
    assert close < float(page.input_value("#threshold")) < close + 4e-5
    assert seen == []
    page.close()


SEEN = """import('./page.js').then(async ({ sides, findFaces, crop }) => Promise.all(
  sides.map(async ({ photo, frame, embedding }) => ({
    faces: await findFaces(photo), frame, embedding: Array.from(embedding),
    pixels: Array.from(crop.pixels(photo, frame).data).filter((_, place) => place % 4 < 3) }))))"""


def detect(path: Path) -> tuple[Image.Image, list[FoundFace]]:
    """The photo and its faces, the one that training takes first."""
    with Image.open(path) as image:
        photo = image.convert("RGB")
    mtcnn, pixels = Mtcnn("cpu"), np.asarray(photo)
    (chosen,), (faces,) = mtcnn([pixels]), mtcnn.find_all([pixels])
    assert chosen is not None
    return photo, sorted(faces, key=lambda face: face.box != chosen.box)


@pytest.mark.heavy
def test_it_cuts_faces_as_training_does(
    home: Path, address: str, browser: Any, faces: list[Path]
) -> None:
    page, seen = visit(browser, address)
    open_photos(page, faces)
    student = load_model(find_model("small", home / "models"), home / "models")
    graph = ExportedStudent(student, ExportOptions(preprocessing=True))
    spec = AlignSpec(image_size=student.image_size)
    for side, path, count in zip(page.evaluate(SEEN), faces, (2, 1), strict=True):
        photo, expected = detect(path)
        assert len(side["faces"]) == len(expected) == count
        for found, face in zip(side["faces"], expected, strict=True):
            np.testing.assert_allclose(found["box"], face.box, atol=1e-2)
            points = np.asarray(face.landmarks_52)
            np.testing.assert_allclose(found["points"], points, atol=1e-2)
            assert found["score"] == pytest.approx(face.probability, abs=1e-4)
        left, top, right, bottom = region = margin_box(photo.size, expected[0].box, spec)
        frame = {"x": left, "y": top, "width": right - left, "height": bottom - top, "angle": 0}
        assert side["frame"] == frame
        pixels = torch.from_numpy(np.array(photo.crop(region))[None])
        with torch.inference_mode():
            np.testing.assert_allclose(side["embedding"], graph(pixels).numpy()[0], atol=1e-3)
    # Another face is taken by the button or by a tap on it; the frame is no longer a face's when
    # it is moved, and a tap takes it back.
    photo, expected = detect(faces[0])
    first, other = (margin_box(photo.size, face.box, spec) for face in expected)
    corner = "import('./page.js').then(({ sides }) => sides[0].frame.x)"
    assert page.locator(".next:visible").count() == 1
    page.click(".next >> nth=0")
    assert page.evaluate(corner) == other[0]
    assert page.inner_text(".found >> nth=0") == "Face 2 of 2."
    canvas = page.locator(".photo").first
    scale = canvas.bounding_box()["width"] / photo.width
    x, y = ((first[side] + first[side + 2]) / 2 * scale for side in (0, 1))
    canvas.click(position={"x": x, "y": y})
    assert page.evaluate(corner) == first[0]
    page.locator(".photo").first.focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("import('./page.js').then(({ sides }) => sides[0].chosen)") is None
    assert page.inner_text(".found >> nth=0") == "2 faces found."
    assert seen == []
    page.close()


@pytest.mark.heavy
def test_five_points_turn_the_crop(
    home: Path, address: str, browser: Any, faces: list[Path]
) -> None:
    facts = json.loads((home / "page" / "persona.json").read_text())
    facts["alignment"] = {"method": "five-point", "size": 112, "margin": 14}
    page = browser.new_page()
    page.route("**/persona.json", lambda route: route.fulfill(json=facts))
    page.goto(address)
    page.wait_for_selector("body[data-ready]", timeout=60_000)
    open_photos(page, faces)
    for side, path in zip(page.evaluate(SEEN), faces, strict=True):
        photo, (face, *_) = detect(path)
        assert face.landmarks_52 is not None
        wanted, _ = crop_landmarks(photo, face.landmarks_52, AlignSpec("landmarks", 112))
        found = np.array(side["pixels"], float).reshape(112, 112, 3)
        assert np.abs(found - np.asarray(wanted, float)).mean() < 0.6  # grey levels
    assert side["frame"]["angle"] == pytest.approx(-np.deg2rad(18), abs=0.1)
    # By hand it stays a square, and may reach beyond the photo.
    for _ in range(30):
        page.locator(".photo").nth(1).press("Shift+ArrowLeft")
    side = page.evaluate(SIDES.replace("Array.from(embedding)", "null"))[1]
    assert side["x"] == pytest.approx(-side["width"] / 2) and side["width"] == side["height"]
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
    assert (larger := page.evaluate(frame)["height"]) > moved["height"]
    # By name, as a screen reader has it; one key is one px, or the slider would stick.
    page.get_by_role("slider", name="first photo").press("ArrowRight")
    assert page.evaluate(frame)["height"] == larger + 1
    for _ in range(3):
        page.keyboard.press("Shift+ArrowLeft")
    for end in ("32", "240"):
        page.locator(".size").first.fill(end)
        found = page.evaluate(frame)
        assert 0 <= found["x"] <= 301 - found["width"] and 0 <= found["y"] <= 240 - found["height"]
    assert found["height"] == 240
    page.locator(".size").first.fill("94")
    page.locator(".photo").first.click(position={"x": 2, "y": 2})
    assert (page.evaluate(frame)["x"], page.evaluate(frame)["y"]) == (0, 0)
    assert seen == []
    page.close()


CAMERA = """const canvas = document.createElement('canvas'); canvas.width = canvas.height = 200;
setInterval(() => canvas.getContext('2d').fillRect(0, 0, 99, 99), 20);
const drawn = () => new Promise(requestAnimationFrame);
navigator.mediaDevices.getUserMedia = async () => {
    for (let frames = 0; frames < 3; frames++) await drawn(); // a browser asks for leave
    return canvas.captureStream();
};"""


@pytest.mark.heavy
def test_no_verdict_beside_the_cameras_picture(
    address: str, browser: Any, faces: list[Path]
) -> None:
    page, seen = visit(browser, address)
    page.evaluate(f"() => {{ {CAMERA} }}")
    open_photos(page, faces)
    similarity = page.inner_text("#similarity")
    page.locator(".camera").first.focus()
    page.keyboard.press("Enter")
    page.wait_for_selector(".take:visible")
    page.fill("#threshold", "0.5")
    assert page.inner_text("#verdict") == "Choose two faces."
    assert page.inner_text("#similarity") == "" and page.is_hidden("#scale")
    page.locator(".camera").first.focus()
    page.keyboard.press("Enter")
    page.wait_for_selector(".take", state="hidden")
    assert page.inner_text("#similarity") == similarity and page.is_visible("#scale")
    assert seen == []
    page.close()


@pytest.mark.heavy
def test_the_camera_button_keeps_the_focus(address: str, browser: Any) -> None:
    page, _ = visit(browser, address)
    page.evaluate(f"() => {{ {CAMERA} }}")
    page.locator(".camera").first.focus()
    for shown in ("visible", "hidden"):
        page.keyboard.press("Enter")
        page.wait_for_selector(".take >> nth=0", state=shown)
        assert page.evaluate("document.activeElement.className") == "camera"
    page.evaluate("() => { navigator.mediaDevices.getUserMedia = () => Promise.reject(Error()); }")
    page.keyboard.press("Enter")
    page.wait_for_selector(".error:visible")
    assert page.evaluate("document.activeElement.className") == "camera"
    page.close()


DROP = """([where, count]) => {
    const data = new DataTransfer();
    for (let number = 0; number < count; number++) data.items.add(new File(["x"], `${number}.jpg`));
    return document.querySelector(where).dispatchEvent(
        new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true }));
}"""


@pytest.mark.heavy
def test_what_is_dropped_beside_a_side_or_too_much_for_it(address: str, browser: Any) -> None:
    page, _ = visit(browser, address)
    assert page.evaluate(DROP, ["h1", 1]) is False  # or the browser would open the file
    assert page.evaluate(DROP, [".side", 2]) is False
    page.wait_for_selector(".error:visible >> text=one photo at a time")
    page.close()


@pytest.mark.heavy
def test_the_camera_and_what_is_no_photo(address: str, browser: Any, photos: list[Path]) -> None:
    page = browser.new_page()
    page.add_init_script(CAMERA)
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
    page.wait_for_selector(".found >> nth=1 >> text=No face found: put the frame around it.")
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


@pytest.mark.heavy
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width_px", [390, 1280])
def test_axe_finds_nothing_grave(
    address: str, browser: Any, faces: list[Path], scheme: str, width_px: int
) -> None:
    size = {"width": width_px, "height": 844}
    page, _ = visit(browser, address, viewport=size, color_scheme=scheme)
    assert find_faults(page) == []
    open_photos(page, faces)
    for threshold, told in (("-1", "Same person"), ("1", "Different people")):
        page.fill("#threshold", threshold)
        page.wait_for_selector(f"#verdict:text-is('{told}')")
        assert find_faults(page) == []
    file = {"name": "a.txt", "mimeType": "text/plain", "buffer": b"none"}
    page.locator("input[type=file]").nth(1).set_input_files(file)
    page.wait_for_selector(".error:visible")
    assert find_faults(page) == []
    page.close()


@pytest.mark.heavy
@pytest.mark.parametrize(("width_px", "height_px"), [(320, 256), (640, 360)])
def test_where_the_screen_is_low_the_photos_keep_their_place(
    address: str, browser: Any, photos: list[Path], width_px: int, height_px: int
) -> None:
    page, _ = visit(browser, address, viewport={"width": width_px, "height": height_px})
    open_photos(page, photos)
    photo, tools, result = (
        page.locator(what).first.bounding_box() for what in (".photo", ".tools", "#result")
    )
    assert photo["y"] + photo["height"] <= tools["y"]
    assert result["y"] >= photo["y"] + photo["height"]  # it does not cover them
    page.close()


@pytest.mark.heavy
def test_the_last_photo_wins_and_the_page_answers_meanwhile(
    address: str, browser: Any, faces: list[Path]
) -> None:
    page, seen = visit(browser, address)
    open_photos(page, faces)
    # The first of two photos is decoded last; a verdict on what was replaced is gone at once.
    told = page.evaluate("""import('./page.js').then(async ({ sides: [side] }) => {
      const decode = window.createImageBitmap, old = side.photo;
      const late = await decode(new ImageData(64, 64)), soon = await decode(new ImageData(90, 90));
      let release;
      window.createImageBitmap = () => new Promise((done) => { release = () => done(late); });
      const first = side.open({});
      window.createImageBitmap = async () => soon;
      await side.open({});
      release();
      await first;
      window.createImageBitmap = decode;
      const verdict = document.querySelector('#verdict').textContent;
      return [side.photo.width, old.width, late.width, verdict];
    })""")
    assert told == [90, 0, 0, "Comparing …"]  # bitmaps that nobody sees are closed
    page.wait_for_selector(".found >> nth=0 >> text=No face found")
    # While it searches, timers run; a frame that is placed by hand meanwhile stays.
    ticks = page.evaluate("""import('./page.js').then(async ({ sides: [, side] }) => {
      let ticks = 0;
      const timer = setInterval(() => { ticks += 1; }, 1);
      const looked = side.look();
      side.byHand();
      side.resize(99);
      const { frame } = side;
      await looked;
      clearInterval(timer);
      return [ticks, side.frame.height === frame.height && side.chosen === null];
    })""")
    assert ticks[0] > 3 and ticks[1]
    assert seen == []
    page.close()


def keep(waiting: list[Any], route: Any) -> None:
    waiting.append(route)


def fulfil(answer: dict[str, Any], route: Any) -> None:
    route.fulfill(**answer)


@pytest.mark.heavy
def test_a_photo_before_the_model_and_files_that_are_missing(
    home: Path, address: str, browser: Any, faces: list[Path]
) -> None:
    page = browser.new_page()
    waiting: list[Any] = []
    page.route("**/onet.onnx", functools.partial(keep, waiting))
    page.goto(address)
    page.locator("input[type=file]").first.set_input_files(faces[0])
    page.locator("input[type=file]").nth(1).set_input_files(faces[1])
    page.wait_for_selector(".photo:visible >> nth=1")
    page.locator(".photo").nth(1).press("ArrowRight")
    frames = "import('./page.js').then(({ sides }) => sides.map(({ frame }) => frame.x))"
    before = page.evaluate(frames)
    while not waiting:
        page.wait_for_timeout(100)
    waiting.pop().continue_()
    page.wait_for_selector(".found >> nth=1 >> text=One face found.", timeout=60_000)
    page.wait_for_selector(".found >> nth=0 >> text=2 faces found.", timeout=60_000)
    after = page.evaluate(frames)
    assert after[0] != before[0] and after[1] == before[1]  # found, and as it was put by hand
    page.close()
    for name, answer, told in (
        ("persona.json", {"body": "{"}, "persona.json: "),
        ("persona.json", {"body": "{}"}, "persona.json is not what persona export wrote"),
        ("model.onnx", {"status": 404}, "model.onnx: the server answers 404"),
        ("pnet.onnx", {"body": "<html>"}, "pnet.onnx: Can't create a session"),
        ("ort.wasm.bundle.min.mjs", {"status": 404}, "needs JavaScript, all of its files"),
    ):
        page = browser.new_page()
        page.route(f"**/{name}", functools.partial(fulfil, answer))
        page.goto(address)
        page.wait_for_selector(f"#status >> text={told}", timeout=60_000)
        page.close()

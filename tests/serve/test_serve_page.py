"""The page in a real headless Chromium, whose camera is a film of drawn faces.

Without a Chromium these fail in CI and are skipped elsewhere.
"""

from __future__ import annotations

import io
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx_files import SETTINGS, write_model
from PIL import Image
from serving import EYES, FACTS, ColourGallery, photo, serving, write_groups

from persona.data.synthetic import draw_identity, draw_photo
from persona.errors import PersonaError
from persona.gallery import Gallery, open_gallery
from persona.gallery.store import Threshold, open_store
from persona.report.browser import find_chromium
from persona.serve.groups import open_groups
from persona.workspace import Workspace

pytestmark = pytest.mark.heavy

WAIT_MS = 60_000
RECTANGLES = """['.box', '#video'].map(
    (what) => document.querySelector(what).getBoundingClientRect().toJSON())"""
"""Of a face and the video, at one moment: the next frame replaces the box."""


@pytest.fixture(scope="module", autouse=True)
def _chromium() -> None:
    try:
        find_chromium()
    except PersonaError as error:
        if os.environ.get("CI"):
            pytest.fail(str(error))
        pytest.skip(str(error))


def portrait(number: int) -> bytes:
    """A JPEG of a drawn person, 640 x 480 px."""
    image = Image.new("RGB", (640, 480), "white")
    image.paste(draw_photo(draw_identity(0, number), number, 480), (80, 0))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    film = tmp_path_factory.mktemp("film") / "face.mjpeg"
    film.write_bytes(portrait(3) * 10)
    camera = (
        "--use-fake-device-for-media-stream",
        "--use-fake-ui-for-media-stream",
        f"--use-file-for-fake-video-capture={film}",
    )
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(
            executable_path=find_chromium(), args=camera, chromium_sandbox=os.getuid() != 0
        )
        yield opened
        opened.close()


@pytest.fixture
def gallery() -> ColourGallery:
    return ColourGallery(threshold=0.999)


@pytest.fixture
def url(gallery: ColourGallery) -> Iterator[str]:
    with serving(gallery) as port:
        yield f"http://127.0.0.1:{port}/"


def visit(browser: Any, url: str, **options: Any) -> tuple[Any, list[str]]:
    """The page, and what went wrong or left the server."""
    page = browser.new_page(**options)
    page.set_default_timeout(WAIT_MS)
    seen: list[str] = []
    page.on("console", lambda message: seen.append(message.text))
    page.on("pageerror", lambda error: seen.append(str(error)))
    page.on(
        "request",
        lambda r: seen.append(r.url) if not r.url.startswith((url, "blob:", "data:")) else None,
    )
    page.goto(url)
    return page, seen


def ready(page: Any) -> None:
    page.wait_for_selector("body[data-ready]")


def photo_file(number: int, name: str = "photo.jpg") -> dict[str, Any]:
    return {"name": name, "mimeType": "image/jpeg", "buffer": portrait(number)}


def dark_file() -> dict[str, Any]:
    return {"name": "dark.jpg", "mimeType": "image/jpeg", "buffer": photo((9, 9, 9))}


def test_a_name_is_not_cut_off_at_the_edges_of_the_photo(browser: Any, url: str) -> None:
    page, _ = visit(browser, url, viewport={"width": 390, "height": 844})
    ready(page)
    corners = [[0, 0], [560, 0], [0, 380], [560, 380]]
    face = {"name": "Somebody Longish", "score": 0.9, "nearest": None, "refused": None}
    found: dict[str, Any] = {"width": 640, "height": 480, "threshold": 0.5}
    found |= {"faces": [{**face, "box": [*corner, 80, 100]} for corner in corners]}
    page.route("**/api/recognise", lambda route: route.fulfill(json=found))
    page.set_input_files("#photo", photo_file(1))
    page.wait_for_selector(".box.known")
    photo_at = page.locator("#shown").bounding_box()
    for name in page.locator(".box span").all():
        at = name.bounding_box()
        for side, size in (("x", "width"), ("y", "height")):
            assert photo_at[side] <= at[side] + 3
            assert at[side] + at[size] <= photo_at[side] + photo_at[size] + 3
    page.close()


def test_enrol_from_the_camera_recognise_forget(
    browser: Any, url: str, gallery: ColourGallery
) -> None:
    page, seen = visit(browser, url)
    ready(page)
    assert "Nobody yet" in page.inner_text("#count")
    assert page.is_disabled("#shoot")
    page.click("#camera")
    page.wait_for_selector("#faces li")
    assert "unknown" in page.inner_text("#faces")

    name = "Zoë <b>&amp;</b> 👩‍🚀"
    page.fill("#name", name)
    page.click("#shoot")
    page.click("#shoot")
    page.wait_for_selector("#thumbs li:nth-child(2)")
    page.click("#thumbs li:nth-child(2) button")
    page.wait_for_selector("#thumbs li:nth-child(2)", state="detached")
    page.click("#send")
    page.wait_for_selector("#people tr")
    assert page.inner_text("#people th") == name
    assert page.inner_text("#status") == f"{name}: 1 photo enrolled."
    assert page.evaluate("document.activeElement.id") == "send"
    assert page.locator("#people b").count() == 0

    page.wait_for_selector(".box.known")
    assert name in page.inner_text("#faces")
    assert "score 1.000, threshold 0.999" in page.inner_text("#faces")
    box, video = page.evaluate(RECTANGLES)
    assert abs(box["x"] + box["width"] / 2 - video["x"] - video["width"] / 2) < 2
    before = len(gallery.seen)
    while len(gallery.seen) == before:
        page.wait_for_timeout(20)  # live: another frame comes
    page.click("#camera")
    page.wait_for_selector("#video", state="hidden")
    assert page.locator(".box").count() == 0

    page.click("#people button")
    assert name in page.inner_text("#question")
    page.keyboard.press("Enter")  # what has the focus is Cancel
    page.wait_for_selector("#ask", state="hidden")
    assert list(gallery.known) == [name]
    page.click("#people button")
    page.click("#yes")
    page.wait_for_selector("#people tr", state="detached")
    assert gallery.known == {}
    assert seen == []
    page.close()


def test_two_clicks_start_one_camera(browser: Any, url: str) -> None:
    page, seen = visit(browser, url)
    ready(page)
    page.evaluate("""() => {
        const devices = navigator.mediaDevices, open = devices.getUserMedia.bind(devices);
        window.tracks = [];
        devices.getUserMedia = async (wanted) => {
            const stream = await open(wanted);
            window.tracks.push(...stream.getTracks());
            return stream;
        };
        for (let clicks = 0; clicks < 2; clicks++) document.getElementById("camera").click();
    }""")
    page.wait_for_selector("#faces li")
    page.click("#camera")
    page.wait_for_selector("#video", state="hidden")
    assert page.evaluate("window.tracks.map((track) => track.readyState)") == ["ended"]
    assert seen == []
    page.close()


@pytest.mark.parametrize("size_px", [(320, 640), (640, 360), (320, 256)])
def test_a_message_is_in_sight(browser: Any, url: str, size_px: tuple[int, int]) -> None:
    page, _ = visit(browser, url, viewport={"width": size_px[0], "height": size_px[1]})
    ready(page)
    page.fill("#name", "Ada")
    page.click("#send")
    page.wait_for_selector("#status:has-text('Add a photo first.')")
    told = page.locator("#status").bounding_box()
    assert told["y"] >= 0 and told["y"] + told["height"] <= size_px[1]
    page.close()


def test_the_real_gallery(browser: Any, tmp_path: Path) -> None:
    model = write_model(tmp_path / "face.onnx", settings=SETTINGS)
    place = Workspace.locate(home=tmp_path)
    with (
        open_gallery(place.gallery, f"onnx:{model}", place, threshold=0.9) as gallery,
        serving(gallery) as port,
    ):
        page, seen = visit(browser, f"http://127.0.0.1:{port}/")
        ready(page)
        page.click("#camera")
        page.wait_for_selector(".box")
        page.click("#shoot")
        page.fill("#name", "Ada")
        page.click("#send")
        page.wait_for_selector(".box.known")
        assert "Ada: score 1.000" in page.inner_text("#faces")
        box, video = page.evaluate(RECTANGLES)
        assert video["x"] < box["x"] < box["x"] + box["width"] < video["x"] + video["width"]
        page.click("#people button")
        page.click("#yes")
        page.wait_for_selector("#people tr", state="detached")
        page.wait_for_selector(".box:not(.known)")
        assert gallery.people() == []
        assert seen == []
        page.close()


def test_frames_are_never_queued(browser: Any, url: str, gallery: ColourGallery) -> None:
    gallery.pause_s = 0.05
    page, seen = visit(browser, url)
    ready(page)
    under_way, most = 0, 0

    def begun(request: Any) -> None:
        nonlocal under_way, most
        if request.url.endswith("recognise"):
            under_way += 1
            most = max(most, under_way)

    def done(request: Any) -> None:
        nonlocal under_way
        under_way -= request.url.endswith("recognise")

    page.on("request", begun)
    page.on("requestfinished", done)
    page.click("#camera")
    while len(gallery.seen) < 10:
        page.wait_for_timeout(50)
    assert most == 1
    page.click("#camera")
    assert seen == []
    page.close()


def test_photos_from_files_and_dropped(browser: Any, url: str, gallery: ColourGallery) -> None:
    page, seen = visit(browser, url)
    ready(page)
    page.set_input_files("#photos", [photo_file(1), photo_file(1)])
    page.evaluate(
        """async (bytes) => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(bytes)], "x.jpg", { type: "image/jpeg" }));
            document.getElementById("shots").dispatchEvent(
                new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true }));
        }""",
        list(portrait(1)),
    )
    page.wait_for_selector("#thumbs li:nth-child(3)")
    assert page.inner_text("#held") == "3 photos to enrol."
    page.fill("#name", "Ada")
    page.press("#name", "Enter")
    page.wait_for_selector("#people tr")
    assert len(gallery.known["Ada"]) == 3
    assert page.locator("#thumbs li").count() == 0

    page.set_input_files("#photo", photo_file(1))
    page.wait_for_selector(".box.known")
    assert page.inner_text("#said") == "Ada"
    page.set_input_files("#photo", photo_file(2))
    page.wait_for_selector(".box:not(.known)")
    assert "unknown" in page.inner_text("#faces")
    assert "nearest Ada, threshold" in page.inner_text("#faces")

    page.set_input_files("#photos", [photo_file(1), dark_file()])
    page.fill("#name", "Bob")
    page.click("#send")
    page.wait_for_selector("#ask[open]")
    assert page.inner_text("#question") == "Not like the other photos: photo 2."
    page.click("#yes")
    page.wait_for_selector("#people tr:nth-child(2)")
    assert len(gallery.known["Bob"]) == 2

    text = {"name": "text.jpg", "mimeType": "image/jpeg", "buffer": b"no photo"}
    page.set_input_files("#photo", text)
    page.wait_for_selector("#status:has-text('unreadable')")
    assert page.locator(".box").count() == 0
    page.set_input_files("#photos", {**text, "name": "a.txt", "mimeType": "text/plain"})
    page.wait_for_selector("#status:has-text('a.txt is no photo.')")
    assert page.locator("#thumbs li").count() == 0
    page.set_input_files("#photos", [photo_file(1)] * 21)
    page.wait_for_selector("#status:has-text('At most 20')")
    # Chromium's own lines on a 422 and a 409 are all that the console may say.
    assert all("422" in line or "409" in line for line in seen)
    page.close()


def test_the_token_is_asked_for_once(browser: Any, gallery: ColourGallery) -> None:
    with serving(gallery, token="drawn-token") as port:
        page, _ = visit(browser, f"http://127.0.0.1:{port}/")
        for given, title in (("wrong", "Token"), ("drawn-token", "This token is not the one")):
            page.wait_for_selector(f"#locked-title:text-is('{title}')")
            page.fill("#token", given)
            page.keyboard.press("Enter")
        ready(page)
        page.reload()
        ready(page)
        assert "threshold" in page.inner_text("#rules")
        assert "drawn-token" not in page.content() + page.url
        page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size_px", [(390, 844), (1280, 900)], ids=["phone", "desktop"])
def test_it_fits_and_can_be_read(
    browser: Any, url: str, gallery: ColourGallery, scheme: str, size_px: tuple[int, int]
) -> None:
    gallery.known = {"W" * 200: [np.ones(3)]}
    viewport = {"width": size_px[0], "height": size_px[1]}
    page, seen = visit(browser, url, viewport=viewport, color_scheme=scheme)
    ready(page)
    page.set_input_files("#photo", photo_file(2))
    page.wait_for_selector("#faces li")
    assert page.evaluate("document.documentElement.scrollWidth") <= size_px[0]
    shot = np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("L"), np.float64)
    assert (np.median(shot) < 128) == (scheme == "dark")
    levels = page.evaluate("[...document.querySelectorAll('h1,h2,h3')].map(h => +h.tagName[1])")
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert page.evaluate("[...document.images].every(image => image.alt)")
    assert page.evaluate("[...document.querySelectorAll('input')].every(i => i.labels.length)")
    if size_px[0] == 390:
        forget = page.locator("#people button").bounding_box()
        assert forget["x"] + forget["width"] <= 390
    assert seen == []
    page.close()


@pytest.mark.parametrize("size_px", [(1280, 900), (390, 844)])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_groups_are_named_merged_split_and_enrolled(
    browser: Any, tmp_path: Path, scheme: str, size_px: tuple[int, int]
) -> None:
    folder = write_groups(tmp_path, (3, 2, 1))
    store = open_store(tmp_path / "gallery.db", create=True)
    store.adopt(FACTS)
    people = Gallery(store, EYES, Threshold(0.8, "by hand"))
    viewport = {"width": size_px[0], "height": size_px[1]}
    with people, open_groups(folder, people) as opened, serving(people, groups=opened) as port:
        url = f"http://127.0.0.1:{port}/"
        page, seen = visit(browser, url, viewport=viewport, color_scheme=scheme)
        ready(page)
        assert page.locator("#groups article").count() == 3
        assert page.evaluate("document.documentElement.scrollWidth") <= size_px[0]
        assert page.evaluate("[...document.images].every((i) => i.alt || i.id)")
        name = "Zoë <b>&amp;</b>"
        page.fill("#group-1 form:nth-of-type(1) input", name)
        page.keyboard.press("Enter")
        page.wait_for_selector("#status:has-text('Group 1')")
        assert name in page.inner_text("#group-1 h3")
        page.click("#group-1 .faces li:nth-child(2) button")
        page.click("#group-1 > button")
        page.wait_for_selector("#group-4")
        page.fill("#group-3 input.number", "4")
        page.click("#group-3 form:nth-of-type(2) button")
        page.wait_for_selector("#group-3", state="detached")
        assert page.evaluate("document.activeElement.id") == "group-4"
        page.fill("#group-2 input.number", "77")
        page.click("#group-2 form:nth-of-type(2) button")
        page.wait_for_selector("#status:has-text('77')")
        page.fill("#group-4 form:nth-of-type(1) input", "Eve")  # two people: it is asked about
        page.click("#group-4 form:nth-of-type(1) button")
        page.wait_for_selector("#status:has-text('Eve')")
        page.click("#groups-enrol")
        page.wait_for_selector("#ask[open]")
        assert "do not look like" in page.inner_text("#question")
        page.click("#ask button:not(#yes)")
        page.wait_for_selector("#people tr")
        assert page.inner_text("#people th") == name
        assert "Eve is not enrolled" in page.inner_text("#status")
        assert {person.name: person.photos for person in people.people()} == {name: 2}
        # The browser itself logs the answers 409 and 422.
        assert [line for line in seen if "status of 4" not in line] == []
        page.close()


def test_the_keyboard_reaches_everything(browser: Any, url: str, gallery: ColourGallery) -> None:
    gallery.known = {"Ada": [np.ones(3)]}
    page, _ = visit(browser, url)
    ready(page)
    page.set_input_files("#photos", photo_file(1))
    page.click("#camera")
    page.wait_for_selector("#shoot:enabled")
    reachable = ":is(main button, main input, a.skip):not([hidden] *)"
    wanted = page.evaluate("(what) => document.querySelectorAll(what).length", reachable)
    reached = set()
    for _ in range(wanted * 3):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate(
                "(what) => [...document.querySelectorAll(what)].indexOf(document.activeElement)",
                reachable,
            )
        )
    assert len(reached - {-1}) == wanted
    page.close()

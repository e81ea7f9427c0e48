"""The API over a real socket: what is answered, refused and never said."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import io
import json
import logging
import re
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from serving import BOUNDARY, ColourGallery, ask, form, photo, post, serving

from persona.data.align.spec import AlignSpec
from persona.gallery import DuplicateError
from persona.gallery.store import Facts, check_digest, read_only
from persona.names import hidden
from persona.serve.gate import Gate
from persona.serve.uploads import Limits

RED, BLUE = photo((200, 40, 40)), photo((40, 40, 200))
LIMITS = Limits(photo_bytes=200_000, request_bytes=500_000, photos=4, pixels=5_000_000)


@pytest.fixture(scope="module")
def gallery() -> ColourGallery:
    return ColourGallery()


@pytest.fixture(scope="module")
def port(gallery: ColourGallery) -> Iterator[int]:
    with serving(gallery, limits=LIMITS) as found:
        yield found


@pytest.fixture(autouse=True)
def _nobody(gallery: ColourGallery) -> None:
    gallery.known.clear()
    gallery.seen.clear()
    gallery.looked.clear()


def test_enroll_recognise_people_forget(port: int) -> None:
    enrolled = post(port, "/api/enroll", ("name", "Ada"), ("photo", RED), ("photo", RED))
    assert enrolled.status == 200
    assert enrolled.json["added"] == 2
    people = ask(port, "/api/people").json
    assert people["people"] == [{"name": "Ada", "photos": 2, "created": "2026-11-25"}]
    assert people["threshold"] == 0.9
    assert people["threshold_source"] == "by hand"
    assert people["limits"]["photos"] == 4
    seen = post(port, "/api/recognise", ("photo", RED)).json
    assert (seen["width"], seen["height"], seen["threshold"]) == (48, 32, 0.9)
    face = seen["faces"][0]
    assert face["name"] == "Ada"
    assert face["box"] == [12, 8, 24, 16]
    stranger = post(port, "/api/recognise", ("photo", BLUE)).json["faces"][0]
    assert stranger["name"] is None
    assert stranger["nearest"] == "Ada"
    assert post(port, "/api/forget", ("name", "Ada")).json == {"name": "Ada", "templates": 2}
    assert ask(port, "/api/people").json["people"] == []


def test_two_people_under_one_name_are_asked_about(port: int, gallery: ColourGallery) -> None:
    photos = [("photo", data) for data in (b"no photo", RED, BLUE)]
    asked = post(port, "/api/enroll", ("name", "Ada"), *photos)
    assert asked.status == 409
    doubt = "not like the other photos: photo 3; leave them out, or send force=1"
    assert asked.error == f"{doubt} if it is one person"
    assert asked.json["doubt"] == "two-people"
    assert asked.json["photos"] == [{"photo": 3, "reason": "unlike the others"}]
    assert gallery.known == {}
    other = post(port, "/api/enroll", ("name", "Ada"), ("accept", "duplicate"), *photos)
    assert other.status == 409
    strange = post(port, "/api/enroll", ("name", "Ada"), ("accept", "two-people, all"), *photos)
    assert strange.status == 422
    assert strange.error == "accept holds an unknown doubt: send two-people or duplicate"
    accepted = post(port, "/api/enroll", ("name", "Ada"), ("accept", "two-people"), *photos)
    assert accepted.json["added"] == 2
    gallery.known.clear()
    forced = post(port, "/api/enroll", ("name", "Ada"), ("force", "true"), *photos)
    assert forced.json["added"] == 2
    reason = "unreadable: no JPEG, PNG, WebP, BMP, TIFF, GIF or AVIF"
    assert forced.json["refused"] == [f"photo 1: {reason}"]
    assert forced.json["photos"] == [{"photo": 1, "reason": reason}]
    none = post(port, "/api/enroll", ("name", "Ada"), ("photo", b"no photo"))
    assert none.status == 422
    assert none.json["photos"] == [{"photo": 1, "reason": reason}]


def test_a_gallery_that_became_another_networks(
    port: int, gallery: ColourGallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    def recognise(_: object, **__: object) -> None:
        check_digest(Facts("onnx:/home/me/net.onnx", "other", 8, AlignSpec()), "mine", "/home/me/g")

    monkeypatch.setattr(gallery, "recognise", recognise)
    refused = post(port, "/api/recognise", ("photo", RED))
    assert refused.status == 409
    assert refused.error == "the gallery is another network's now: start persona serve anew"


def test_somebody_who_is_there_under_another_name_is_asked_about(
    port: int, monkeypatch: pytest.MonkeyPatch, gallery: ColourGallery
) -> None:
    def enroll(*_: object, **__: object) -> None:
        raise DuplicateError("'A;b' looks like 'C' (similarity 0.9); enrol, or --force")

    monkeypatch.setattr(gallery, "enroll", enroll)
    asked = post(port, "/api/enroll", ("name", "A;b"), ("photo", RED))
    assert asked.status == 409
    remedy = "enroll the photos under that name, or send force=1 if they are two people"
    assert asked.error == f"'A;b' looks like 'C' (similarity 0.9); {remedy}"
    assert (asked.json["doubt"], asked.json["photos"]) == ("duplicate", [])


def test_a_gallery_that_may_only_be_read(
    port: int, monkeypatch: pytest.MonkeyPatch, gallery: ColourGallery
) -> None:
    def forget(_: str) -> None:
        raise read_only("the gallery", "its file system is mounted read-only")

    monkeypatch.setattr(gallery, "forget", forget)
    refused = post(port, "/api/forget", ("name", "Ada"))
    assert refused.status == 403
    assert refused.error.startswith("the gallery can be read but not changed: its file system is")


def test_what_cannot_be_seen_is_escaped(port: int, gallery: ColourGallery) -> None:
    name = "An\u200bn\u3164\u202e"
    gallery.known[name] = [np.ones(3)]
    answer = ask(port, "/api/people")
    assert answer.json["people"][0]["name"] == name
    assert rb"An\u200bn\u3164\u202e" in answer.body
    refused = post(port, "/api/enroll", ("name", name), ("photo", b"no photo"))
    assert hidden(refused.body.decode()) is None
    assert hidden(refused.error) is None


NAMES = {
    "slashes": "../../etc/passwd",
    "emoji": "👩‍🚀 Zoë",
    "SQL": "'; DROP TABLE people; --",
    "HTML": "<img src=x onerror=alert(1)>",
    "control": "a\x00b\x1b[31m",
}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_a_name_is_only_ever_a_name(port: int, name: str) -> None:
    assert post(port, "/api/enroll", ("name", name), ("photo", RED)).json["name"] == name
    assert ask(port, "/api/people").json["people"][0]["name"] == name
    assert post(port, "/api/forget", ("name", name)).json["templates"] == 1


def test_a_name_of_10000_characters(port: int) -> None:
    refused = post(port, "/api/enroll", ("name", "x" * 10_000), ("photo", RED))
    assert refused.status == 422
    assert "200 characters" in refused.error
    beyond = post(port, "/api/enroll", ("name", "x" * 100_000), ("photo", RED))
    assert beyond.status == 400
    assert beyond.error.startswith("the form cannot be read")


def bomb() -> bytes:
    """A PNG of 8,100 megapixels in a few hundred bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", 90_000, 90_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(bytes(100_000)))
        + chunk(b"IEND", b"")
    )


def rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return photo(exif=exif)


def sixteen_bit() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((32, 48), 40_000, np.uint16)).save(buffer, "PNG")
    return buffer.getvalue()


BROKEN = {
    "empty": (b"", "unreadable: empty file"),
    "text": (b"This is no photo.", "unreadable: no JPEG, PNG, WebP, BMP, TIFF, GIF or AVIF"),
    "truncated": (photo((1, 2, 3), quality=100)[:-40], "unreadable: a JPEG that is cut short"),
    "bomb": (bomb(), "unreadable: "),
    "too many pixels": (
        photo(size_px=(2600, 2000)),
        "2600 x 2000 px is over the limit of 5 m",
    ),
}


@pytest.mark.parametrize(("data", "reason"), BROKEN.values(), ids=BROKEN)
def test_photos_that_are_refused(
    port: int, gallery: ColourGallery, data: bytes, reason: str
) -> None:
    refused = post(port, "/api/recognise", ("photo", data))
    assert refused.status == 422
    assert reason in refused.error
    enrolled = post(port, "/api/enroll", ("name", "Ada"), ("photo", RED), ("photo", data))
    assert enrolled.json["added"] == 1
    assert enrolled.json["refused"][0].startswith("photo 2: ")
    assert reason in enrolled.json["refused"][0]
    alone = post(port, "/api/enroll", ("name", "Bob"), ("photo", data))
    assert alone.status == 422
    assert reason in alone.error
    assert list(gallery.known) == ["Ada"]


SOUND = {
    "EXIF rotated": (rotated(), (48, 32, 3)),
    "grey": (photo(mode="L"), (32, 48, 3)),
    "CMYK": (photo(mode="CMYK"), (32, 48, 3)),
    "16-bit": (sixteen_bit(), (32, 48, 3)),
    "transparent": (photo(form="PNG", mode="RGBA"), (32, 48, 3)),
}


@pytest.mark.parametrize(("data", "shape"), SOUND.values(), ids=SOUND)
def test_photos_of_every_kind(
    port: int, gallery: ColourGallery, data: bytes, shape: tuple[int, int, int]
) -> None:
    seen = post(port, "/api/recognise", ("photo", data)).json
    assert gallery.seen == [shape]
    assert (seen["height"], seen["width"]) == shape[:2]


def test_a_large_photo_is_looked_at_smaller(
    port: int, gallery: ColourGallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("persona.gallery.photos.MAX_LOOKED_AT", 4_000_000)
    exif = Image.Exif()
    exif[0x0112] = 6
    large = photo(size_px=(2400, 2001), exif=exif)
    seen = post(port, "/api/recognise", ("photo", large)).json
    assert gallery.seen == [(1200, 1001, 3)]
    assert (seen["width"], seen["height"]) == (2001, 2400)
    x, y, width, height = seen["faces"][0]["box"]
    # A quarter of the last column lies outside, and it is the first when the photo is turned.
    assert (x, y) == (2 * (1001 / 4 - 0.5), 600)
    assert (width, height) == (1001, 1200)
    post(port, "/api/enroll", ("name", "Ada"), ("photo", large))
    assert gallery.looked == [2, 2]


def test_photos_are_looked_at_as_the_commands_do(port: int, gallery: ColourGallery) -> None:
    """A smaller copy would have smaller faces, which are refused or embedded worse."""
    large = photo(size_px=(2400, 2001))
    assert post(port, "/api/enroll", ("name", "Ada"), ("photo", large)).json["added"] == 1
    assert post(port, "/api/recognise", ("photo", large)).status == 200
    assert gallery.looked == [1, 1]
    assert gallery.seen == [(2001, 2400, 3)]


def test_more_megapixels_than_could_be_decoded_whole(gallery: ColourGallery) -> None:
    data = photo(size_px=(7300, 7200), mode="L")
    with serving(gallery) as port:
        assert post(port, "/api/recognise", ("photo", data)).json["width"] == 7300
    assert gallery.seen == [(3600, 3650, 3)]


@pytest.mark.parametrize(
    ("size", "looked_at"), [((4100, 4001), (2050, 2001)), ((500, 33_000), (250, 16_500))]
)
def test_nothing_large_is_looked_at_whole(
    gallery: ColourGallery, size: tuple[int, int], looked_at: tuple[int, int]
) -> None:
    # A PNG of one colour has a few kB, and its pixels would take gigabytes in the detector.
    with serving(gallery, limits=Limits()) as port:
        for form in ("PNG", "JPEG"):
            data = photo(size_px=size, form=form)
            seen = post(port, "/api/recognise", ("photo", data)).json
            assert (seen["width"], seen["height"]) == size
            x, y, width, height = seen["faces"][0]["box"]
            assert x + width / 2 == pytest.approx(size[0] / 2, abs=1)
            assert y + height / 2 == pytest.approx(size[1] / 2, abs=1)
    assert gallery.seen == [(*looked_at[::-1], 3)] * 2


def test_limits_on_bytes_and_files(port: int, gallery: ColourGallery) -> None:
    noise = np.random.default_rng(0).bytes(210_000)
    photos = [("photo", bytes(150_000))] * 4
    cases = {
        "a photo is over 0.2 MB": (413, post(port, "/api/recognise", ("photo", noise))),
        "the request is over 0.564 MB": (413, post(port, "/api/enroll", ("name", "A"), *photos)),
        "Too many files": (400, post(port, "/api/enroll", *[("photo", RED)] * 5)),
        "Too many fields": (400, post(port, "/api/forget", *[("name", "A")] * 9)),
    }
    for line, (status, answer) in cases.items():
        assert answer.status == status
        assert line in answer.error
    assert gallery.seen == []


def test_a_body_of_no_stated_length_is_counted(port: int) -> None:
    body = form(*[("photo", bytes(150_000))] * 4)
    headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as line:
        line.request("POST", "/api/enroll", iter([body]), headers, encode_chunked=True)
        answer = line.getresponse()
        assert answer.status == 413
        assert json.loads(answer.read())["error"].startswith("the request is over 0.564 MB")


def test_requests_that_are_no_form(port: int) -> None:
    deep = b"[" * 200_000
    assert ask(port, "/api/forget", deep, content_type="application/json").status == 415
    assert ask(port, "/api/forget", b"name=Ada", content_type="text/plain").status == 415
    lost = ask(port, "/api/forget", b"no form", content_type="multipart/form-data")
    assert lost.status == 400
    assert "boundary" in lost.error
    cut = ask(port, "/api/forget", b"--other\r\n")
    assert cut.status == 400
    for charset in ("undefined", "punycode", "utf-16"):
        kind = f"multipart/form-data; boundary={BOUNDARY}; charset={charset}"
        assert ask(port, "/api/forget", form(("name", "A")), content_type=kind).status == 415
    kind = f"Multipart/Form-Data; charset=UTF-8; boundary={BOUNDARY}"
    assert ask(port, "/api/forget", form(("name", "A")), content_type=kind).status == 404
    assert "no name in the form" in post(port, "/api/forget").error
    assert "no photo in the form" in post(port, "/api/recognise", ("name", "A")).error
    unknown = post(port, "/api/forget", ("name", "Bob"))
    assert (unknown.status, unknown.error) == (404, "there is nobody of that name: see /api/people")


@pytest.mark.parametrize(
    "path",
    ["/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/page.js/../../api.py", "/docs", "/x"],
)
def test_no_path_is_opened(port: int, path: str) -> None:
    answer = ask(port, path)
    assert answer.status == 404
    assert answer.error == "Not Found"
    assert ask(port, "/api/enroll").status == 405


def test_openapi_and_page_load_nothing_from_elsewhere(port: int) -> None:
    paths = ask(port, "/openapi.json").json["paths"]
    assert set(paths) == {
        f"/api/{name}"
        for name in (
            *("health", "people", "recognise", "enroll", "forget"),
            *("faces", "photos", "rename", "merge", "split"),
        )
    }
    assert "multipart/form-data" in paths["/api/enroll"]["post"]["requestBody"]["content"]
    scripts = re.findall(r'src="(.+?)"', ask(port, "/").body.decode())
    assert len(scripts) == 6
    for path in ("/", "/page.css", *(f"/{script}" for script in scripts)):
        answer = ask(port, path)
        assert answer.status == 200
        assert b"://" not in answer.body
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_other_hosts_and_origins(port: int) -> None:
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", "", "[::1"):
        assert ask(port, "/api/people", host=host).status == 421
    for host in (f"localhost:{port}", f"127.0.0.1:{port}", "[::1]:1"):
        assert ask(port, "/api/people", host=host).status == 200
    here = {"host": f"127.0.0.1:{port}"}
    for origin in ("http://evil.example", "null", f"https://127.0.0.1:{port}", "http://127.0.0.1"):
        refused = post(port, "/api/forget", ("name", "A"), origin=origin, **here)
        assert refused.status == 403
        assert "another site" in refused.error
    assert ask(port, "/api/people", sec_fetch_site="cross-site").status == 403
    assert ask(port, "/", sec_fetch_site="cross-site").status == 200  # a link leads here
    own = post(port, "/api/forget", ("name", "A"), origin=f"http://127.0.0.1:{port}", **here)
    assert own.status == 404
    assert not any(name.startswith("access-control") for name in own.headers)


def test_the_token() -> None:
    with serving(ColourGallery(), token="right-token") as port:
        for given in ({}, {"authorization": "Bearer wrong"}, {"authorization": "right-token"}):
            refused = ask(port, "/api/people", **given)
            assert refused.status == 401
            assert refused.headers["www-authenticate"] == "Bearer"
            assert "right" not in refused.error
        assert ask(port, "/api/people?token=right-token").status == 401
        assert ask(port, "/api/people", authorization="Bearer right-token").status == 200
        assert ask(port, "/api/health").json == {"status": "ok"}
        assert ask(port, "/").status == 200


def test_nothing_personal_is_logged(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    class Faulty(ColourGallery):
        def recognise(self, photo: object, **_: object) -> tuple[()]:
            raise RuntimeError("Ada scored 0.987")

    caplog.set_level(logging.DEBUG)
    with serving(Faulty()) as port:
        post(port, "/api/enroll", ("name", "Ada"), ("photo", RED))
        fault = post(port, "/api/recognise", ("photo", RED))
        post(port, "/api/forget", ("name", "Ada"))
    assert fault.status == 500
    assert fault.error == "a fault of the program: its log says where"
    said = caplog.text + "".join(capfd.readouterr())
    assert "RuntimeError" in said
    assert "in recognise" in said
    assert "Ada" not in said.replace(str(Path(__file__)), "").replace('"Ada scored 0.987"', "")
    assert "POST" not in said


def test_200_requests_at_16_at_a_time() -> None:
    gallery = ColourGallery(pause_s=0.002)
    with serving(gallery) as port, ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: post(port, "/api/recognise", ("photo", RED)), range(200)))
    assert [answer.status for answer in answers] == [200] * 200
    assert len(gallery.seen) == 200


class HeldGallery(ColourGallery):
    """Recognises nobody, and finds no face of who is to be enrolled, until it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.let = threading.Event()

    def recognise(self, photo: object, **_: object) -> tuple[()]:
        assert self.let.wait(60)
        return ()

    def _template(self, photo: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:  # type: ignore[override]
        assert self.let.wait(60)
        return super()._template(photo)


def test_beyond_the_bound_it_is_busy() -> None:
    gallery = HeldGallery()
    limits = Limits(waiting=1)
    with serving(gallery, limits=limits, workers=1) as port, ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(post, port, "/api/recognise", ("photo", RED)) for _ in range(3)]
        done, _ = wait(asked, return_when=FIRST_COMPLETED)
        refused = done.pop().result()
        assert refused.status == 503
        assert refused.headers["retry-after"] == "1"
        assert "too many requests" in refused.error
        assert ask(port, "/api/health").status == 200
        gallery.let.set()
        assert sorted(answer.result().status for answer in asked) == [200, 200, 503]


def test_what_takes_too_long_is_told_so_and_keeps_its_place() -> None:
    gallery = HeldGallery()
    with serving(gallery, limits=Limits(waiting=0, work_s=0.2), workers=1) as port:
        late = post(port, "/api/recognise", ("photo", RED))
        assert late.status == 408
        assert "the answer was not ready within 0.2 s" in late.error
        assert post(port, "/api/recognise", ("photo", RED)).status == 503
        gallery.let.set()
        while post(port, "/api/recognise", ("photo", RED)).status == 503:
            pass  # until the thread has seen it


def test_what_is_only_looked_at_takes_a_place_too() -> None:
    gallery = HeldGallery()
    gallery.unknown = SimpleNamespace(hours=24)
    groups: Any = SimpleNamespace()
    limits = Limits(waiting=0, work_s=0.2)
    with serving(gallery, limits=limits, workers=1, groups=groups) as port:
        assert post(port, "/api/recognise", ("photo", RED)).status == 408
        for path in ("/api/people", "/api/groups", "/api/unknown"):
            busy = ask(port, path)
            assert (busy.status, busy.headers["retry-after"]) == (503, "1")
            assert "too many requests" in busy.error
        assert ask(port, "/api/health").status == 200
        gallery.let.set()
        while ask(port, "/api/people").status == 503:
            pass  # until the thread has come to its end


def test_an_enrolment_that_was_told_to_have_failed_is_not_made() -> None:
    gallery = HeldGallery()
    with serving(gallery, limits=Limits(waiting=0, work_s=0.2), workers=1) as port:
        assert post(port, "/api/enroll", ("name", "Ada"), ("photo", RED)).status == 408
        gallery.let.set()
        while post(port, "/api/recognise", ("photo", RED)).status == 503:
            pass  # until the thread has come to its end
        assert ask(port, "/api/people").json["people"] == []


def test_what_is_being_written_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    claimed, let = threading.Event(), threading.Event()

    async def run_out(waiting: set[Any], timeout: float) -> None:
        assert timeout == 60
        while not claimed.is_set():
            await asyncio.sleep(0.001)
        let.set()

    def work(_: None, claim: Callable[[], None]) -> str:
        claim()
        claimed.set()
        assert let.wait(60)
        return "written"

    monkeypatch.setattr(asyncio, "wait", run_out)
    gate = Gate(1, 0, read_s=60, work_s=60)
    try:
        assert asyncio.run(gate.run(lambda: asyncio.sleep(0), work)) == "written"
    finally:
        gate.close()

"""`persona serve` on a real gallery."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import signal
import sqlite3
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import environment, persona_here
from onnx_files import SETTINGS, write_model
from serving import ask, post, write_certificate

from persona.cli.serve import read_token
from persona.data.synthetic import draw_identity, draw_photo
from persona.errors import PersonaError
from persona.gallery.store import open_store
from persona.serve.server import listen


def portrait(identity: int, seed: int) -> bytes:
    buffer = io.BytesIO()
    draw_photo(draw_identity(0, identity), seed, 240).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    write_model(folder / "face.onnx", settings=SETTINGS)
    (folder / "token").write_text("a-token-of-this-test\n")
    return folder


@contextmanager
def served(home: Path, *options: str, notes: str = "") -> Iterator[dict[str, Any]]:
    """What `persona serve` says once it is ready; SIGINT ends it well, and it said but `notes`."""
    model = ("--model", f"onnx:{home / 'face.onnx'}", "--threshold", "0.5")
    command = [sys.executable, "-m", "persona", "serve", *model, "--port", "0", "--json", *options]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment(home), **pipes) as process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            text = ""
            while not text.endswith("}\n"):
                line = process.stdout.readline()
                assert line, process.stderr.read()
                text += line
            yield json.loads(text)
            process.send_signal(signal.SIGINT)
            assert (process.stdout.read(), process.stderr.read()) == ("", notes)
            assert process.wait(60) == 0
        finally:
            process.kill()


def test_clients_do_not_learn_where_the_files_are(home: Path) -> None:
    with served(home, "--keep-unknown", "1", "--store", f"{home}/other.db") as said:
        port = int(said["url"].rpartition(":")[2])
        with contextlib.closing(sqlite3.connect(home / "other.db.unknown")) as db:
            values = (time.time(), time.time() + 600, "digest", b"no template", b"no crop")
            db.execute(
                "INSERT INTO face (seen, ends, model, template, crop) VALUES (?, ?, ?, ?, ?)",
                values,
            )
            db.commit()
        answer = ask(port, "/api/unknown")
        assert answer.status == 422
        assert answer.error.startswith("the file of unknown faces is damaged: remove it")
        assert str(home) not in answer.error


def test_who_is_forgotten_without_the_option_is_not_kept_as_unknown(home: Path) -> None:
    store, photo = home / "kept.db", ("photo", portrait(0, 1))
    with served(home, "--store", str(store), "--keep-unknown", "24") as said:
        port = int(said["url"].rpartition(":")[2])
        assert ask(port, "/api/people").json["keeps_unknown_hours"] == 24
        assert post(port, "/api/recognise", photo).json["faces"][0]["name"] is None
    with contextlib.closing(sqlite3.connect(f"{store}.unknown")) as db:
        count = "SELECT count(*) FROM face"
        assert db.execute(count).fetchone() == (1,)
        db.execute(
            "INSERT INTO face SELECT 9, 0, 1, model, template, crop, landmarks, align FROM face"
        )
        db.commit()
        with served(home, "--store", str(store)) as said:
            assert db.execute(count).fetchone() == (1,)  # that whose time is over is gone
            port = int(said["url"].rpartition(":")[2])
            assert ask(port, "/api/people").json["keeps_unknown_hours"] is None
            assert ask(port, "/api/unknown").status == 404
            assert post(port, "/api/recognise", photo).status == 200
            assert db.execute(count).fetchone() == (1,)  # and none is kept
            assert post(port, "/api/enroll", ("name", "Ada"), photo).json["added"] == 1
            assert post(port, "/api/forget", ("name", "Ada")).json["templates"] == 1
            assert db.execute(count).fetchone() == (0,)


def test_enrol_recognise_forget(home: Path) -> None:
    photos = {name: [portrait(n, 10 * n + seed) for seed in (1, 2)] for n, name in enumerate("AB")}
    with served(home) as said:
        assert said["token"] is None
        port = int(said["url"].rpartition(":")[2])
        for name, own in photos.items():
            parts = [("photo", data) for data in own]
            added = post(port, "/api/enroll", ("name", name), ("force", "1"), *parts)
            assert added.json["added"] == 2
        asked = [data for own in photos.values() for data in own] * 2
        with ThreadPoolExecutor(4) as pool:  # threads give what one alone gives
            answers = pool.map(
                lambda data: post(port, "/api/recognise", ("photo", data)).json, asked
            )
            found = list(answers)
        assert found[:4] == found[4:]
        assert all(len(one["faces"]) == 1 and one["faces"][0]["score"] > 0.5 for one in found)
        x, y, width, height = found[0]["faces"][0]["box"]
        assert 0 <= x < x + width <= 240
        assert 0 <= y < y + height <= 240
        nobody = post(port, "/api/forget", ("name", "C"))
        assert nobody.status == 404
        assert nobody.error == "there is nobody of that name: see /api/people"
        assert post(port, "/api/forget", ("name", "A")).json["templates"] == 2
        people = ask(port, "/api/people").json
        assert [person["name"] for person in people["people"]] == ["B"]
        assert people["network"].endswith("face.onnx")


def test_another_gallery_imports_everybody(home: Path, tmp_path: Path) -> None:
    store = ("--store", str(tmp_path / "there.db"))
    with served(home, *store, "--share-templates", "--keep-crops") as said:
        port, sent = (
            int(said["url"].rpartition(":")[2]),
            {"authorization": f"Bearer {said['token']}"},
        )
        for n, name in enumerate("AB"):
            parts = [("photo", portrait(n, 10 * n + seed)) for seed in (1, 2)]
            fields = [("name", name), ("force", "1")]
            assert post(port, "/api/enroll", *fields, *parts, **sent).json["added"] == 2
        assert post(port, "/api/templates", ("name", "A")).status == 401
        (tmp_path / "token").write_text(said["token"])
        command = ["gallery", "import", said["url"], "--token-file", str(tmp_path / "token")]
        command += ["--model", f"onnx:{home / 'face.onnx'}", "--threshold", "0.5", "--force"]
        command += ["--store", str(tmp_path / "here.db")]
        done = persona_here(*command, home=home)
    assert (done["people"], done["added"], done["refused"]) == (2, 4, [])
    with open_store(tmp_path / "there.db") as there, open_store(tmp_path / "here.db") as here:
        for (name, _, old), (other, _, new) in zip(there.photos(), here.photos(), strict=True):
            assert name == other
            assert np.array_equal(old.template, new.template)
            assert old.crop is not None
            assert new.crop is None


@pytest.mark.heavy
def test_beyond_this_machine_it_wants_a_token(home: Path) -> None:
    note = "note: without --certificate, photos and the token cross the network in clear\n"
    with served(home, "--host", "0.0.0.0", notes=note) as said:
        port = int(said["url"].rpartition(":")[2])
        assert len(said["token"]) >= 32
        assert ask(port, "/api/people").status == 401
        assert ask(port, "/api/people", authorization=f"Bearer {said['token']}").status == 200


@pytest.mark.heavy
def test_behind_a_proxy_it_wants_a_token(home: Path) -> None:
    with served(home, "--proxy", "127.0.0.1", "--allowed-host", "Faces.Example") as said:
        port = int(said["url"].rpartition(":")[2])
        site = {"X-Forwarded-Host": "faces.example", "X-Forwarded-Proto": "https"}
        asked = {**site, "Origin": "https://faces.example"}
        assert ask(port, "/api/people", **asked).status == 401
        token = f"Bearer {said['token']}"
        assert ask(port, "/api/people", authorization=token, **asked).status == 200


@pytest.mark.heavy
def test_https_and_a_token_of_ones_own(home: Path) -> None:
    write_certificate(home / "cert", home / "key")
    options = ("--certificate", str(home / "cert"), "--key", str(home / "key"))
    with served(home, *options, "--token-file", str(home / "token")) as said:
        assert said["token"] is None
        assert said["url"].startswith("https://")
        context = ssl.create_default_context(cafile=home / "cert")
        context.check_hostname = False
        port = int(said["url"].rpartition(":")[2])
        line = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=60)
        headers = {"Authorization": "Bearer a-token-of-this-test"}
        line.request("GET", "/api/people", headers=headers)
        assert line.getresponse().status == 200
        line.close()


def test_what_a_user_can_mend(home: Path, tmp_path: Path) -> None:
    model = ("--model", f"onnx:{home / 'face.onnx'}")

    def fails(line: str, *options: str) -> None:
        with pytest.raises(PersonaError, match=line):
            persona_here("serve", *model, *options, home=tmp_path)

    fails("--certificate and --key go together", "--certificate", "cert")
    fails("no token file at", "--token-file", str(tmp_path / "none"))
    fails("has no threshold", "--port", "0")
    fails("--proxy 'nginx' is no address: give one as 127.0.0.1", "--proxy", "nginx")
    for name in ("https://faces.example", "faces.example:443", "*.example", "", "a b"):
        fails("is no host name: give it without scheme, port and path", "--allowed-host", name)
    with listen("127.0.0.1", 0) as listener:
        port = str(listener.getsockname()[1])
        fails(f"port {port} is in use", "--port", port)


def test_tokens_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "token"
    for text in ("short\n", "", "a b" * 20, "ä" * 20, "one-token-of-16-x\nand another", "x" * 9999):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(PersonaError, match="holds no token: write a line of 16 to 4096"):
            read_token(path)
    path.write_text("a-token-of-this-test\n")
    assert read_token(path) == "a-token-of-this-test"

#!/usr/bin/env python
"""What `persona serve` answers under load: recognise requests, so many at a time, none lost.

    ./scripts/bench_serve.py [--quick] [--json] [--model onnx:FILE] [--photos FOLDER]
    ./scripts/bench_peers dlib; ./scripts/bench_serve.py --peer --min-face 40 --photos FOLDER

The real command on a port of this machine, clients on as many connections. A request's time is from
its first byte to the answer's last, waiting for its turn included. Without --model a student with
random weights and without --photos drawn faces stand in: both take as long. With --peer,
face_recognition answers the same requests in turns, behind a minimal server of one process a core;
its detector looks for faces of 40 px and more.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import io
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bench import facts
from PIL import Image

BOUNDARY = "bench"
DISTINCT = 20
PEOPLE = 5
PEER = Path(".tools/dlib/bin/python")


def drawn_photos() -> list[bytes]:
    """JPEGs of 640 x 480 px, as a camera's frames are, with a face each."""
    from persona.data.synthetic import draw_identity, draw_photo

    photos = []
    for number in range(DISTINCT):
        image = Image.new("RGB", (640, 480), "white")
        image.paste(draw_photo(draw_identity(0, number), number, 360), (140, 60))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=90)
        photos.append(buffer.getvalue())
    return photos


def save_student(home: Path) -> str:
    """A student with random weights, as a model of `home`."""
    import torch

    from persona.config import StudentConfig
    from persona.models.store import save_model
    from persona.models.student import Student

    torch.manual_seed(0)
    save_model(
        home / "models",
        Student(StudentConfig("mobilenet_v3_small"), 2, image_size=160),
        model_id="random",
        classes=("a", "b"),
        **dict.fromkeys(("teacher", "train_set", "test_set"), "none"),
        **dict.fromkeys(("temperature", "score")),
        scores={},
        config={},
        epochs=0,
    )
    return "random"


def form(*parts: tuple[str, str | bytes]) -> bytes:
    """A form of fields and photos."""
    body = b""
    for name, value in parts:
        file = "" if isinstance(value, str) else '; filename="photo"'
        head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'
        body += head.encode() + (value.encode() if isinstance(value, str) else value) + b"\r\n"
    return body + f"--{BOUNDARY}--\r\n".encode()


def post(line: http.client.HTTPConnection, path: str, body: bytes) -> tuple[int, Any]:
    """Status and value of an answer."""
    headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    line.request("POST", path, body, headers)
    answer = line.getresponse()
    return answer.status, json.loads(answer.read())


@contextlib.contextmanager
def server(home: Path, model: str, options: Sequence[str]) -> Iterator[str]:
    """Host and port of `persona serve` on a new gallery."""
    options = ["--store", str(home / "gallery.sqlite"), "--model", model, *options]
    options += ["--threshold", "0.5"]
    process = subprocess.Popen(
        [sys.executable, "-m", "persona", "serve", *options, "--port", "0", "--json"],
        env={**os.environ, "PERSONA_HOME": str(home)},
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            assert process.stdout is not None
            text = ""
            while not text.endswith("}\n"):
                text += (line := process.stdout.readline())
                if not line:
                    raise SystemExit("persona serve did not start")
            yield urlsplit(json.loads(text)["url"]).netloc
        finally:
            process.send_signal(signal.SIGINT)


@contextlib.contextmanager
def peer(home: Path, known: Sequence[bytes]) -> Iterator[str]:
    """Host and port of face_recognition's server, which knows a photo of each person."""
    folder = home / "known"
    folder.mkdir()
    for number, photo in enumerate(known):
        (folder / f"Person {number}.jpg").write_bytes(photo)
    cores = str(len(os.sched_getaffinity(0)))
    process = subprocess.Popen(
        [str(PEER), str(Path(__file__).parent / "peer_serve.py"), str(folder), cores],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    with process:
        try:
            assert process.stdout is not None
            yield f"127.0.0.1:{int(process.stdout.readline())}"
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def load(place: str, photos: Sequence[bytes], requests: int, at_once: int) -> dict[str, Any]:
    """Figures of `requests` answers to `at_once` clients."""
    turn = count()

    def client(_: int) -> list[tuple[float, int]]:
        seen = []
        with contextlib.closing(http.client.HTTPConnection(place, timeout=120)) as line:
            while (number := next(turn)) < requests:
                body = form(("photo", photos[number % len(photos)]))
                start_s = time.perf_counter()
                status, _ = post(line, "/api/recognise", body)
                seen.append((time.perf_counter() - start_s, status))
        return seen

    start_s = time.perf_counter()
    with ThreadPoolExecutor(at_once) as pool:
        seen = [one for some in pool.map(client, range(at_once)) for one in some]
    whole_s = time.perf_counter() - start_s
    times_ms = sorted(1000 * seconds for seconds, _ in seen)
    cuts = statistics.quantiles(times_ms, n=100, method="inclusive")
    return {
        "requests": requests,
        "at_once": at_once,
        "lost": requests - sum(status == 200 for _, status in seen),
        "per_s": round(requests / whole_s, 1),
        **{f"p{cut}_ms": round(cuts[cut - 1]) for cut in (50, 95, 99)},
        "max_ms": round(times_ms[-1]),
    }


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="40 requests")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--model", help="as persona serve takes it")
    parser.add_argument("--photos", type=Path, help="a folder of JPEGs, at any depth")
    parser.add_argument("--workers", help="of persona serve")
    parser.add_argument("--min-face", help="of persona serve")
    parser.add_argument("--peer", action="store_true", help="also face_recognition")
    arguments = parser.parse_args()
    if arguments.peer and not PEER.exists():
        sys.exit(f"error: {PEER} is not there: run ./scripts/bench_peers dlib first")
    photos = drawn_photos()
    if arguments.photos:
        photos = [path.read_bytes() for path in sorted(arguments.photos.rglob("*.jpg"))]
    requests = 40 if arguments.quick else 200
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        model = arguments.model or save_student(home)
        chosen = {"--workers": arguments.workers, "--min-face": arguments.min_face}
        options = [word for name, value in chosen.items() if value for word in (name, value)]
        with contextlib.ExitStack() as running:
            place = running.enter_context(server(home, model, options))
            with contextlib.closing(http.client.HTTPConnection(place, timeout=120)) as line:
                for number, data in enumerate(photos[:PEOPLE]):
                    # Random weights take everybody for one person.
                    fields = [("name", f"Person {number}"), ("force", "1"), ("photo", data)]
                    post(line, "/api/enroll", form(*fields))
            places = {"persona": place}
            if arguments.peer:
                places["face_recognition"] = running.enter_context(peer(home, photos[:PEOPLE]))
            for place in places.values():
                load(place, photos, 8, 2)  # warm up
            results = [
                {"server": name, **load(place, photos, requests, at_once)}
                for at_once in (1, 16)
                for name, place in places.items()
            ]
    found = {
        "results": results,
        "model": arguments.model or "mobilenet_v3_small, random weights",
        "photos": str(arguments.photos or "drawn, 640 x 480 px"),
        **facts("torch", "onnxruntime", "uvicorn"),
    }
    if arguments.json:
        print(json.dumps(found, indent=2))
        return
    print("| server | at once | requests | lost | requests/s | p50 | p95 | p99 | max, ms |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|--:|")
    for row in results:
        names = (
            "server",
            "at_once",
            "requests",
            "lost",
            "per_s",
            "p50_ms",
            "p95_ms",
            "p99_ms",
            "max_ms",
        )
        print("| " + " | ".join(str(row[name]) for name in names) + " |")
    print(f"\n{found['model']}; {found['photos']}; {found['processor']}, commit {found['commit']}")


if __name__ == "__main__":
    main()

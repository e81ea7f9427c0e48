#!/usr/bin/env python
"""Uses an installed Persona where torch is absent; scripts/wheel runs it.

    python scripts/wheel_check.py NETWORK.onnx

Ends with what the environment weighs; fails where a command does, or is larger than it may be.
"""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from persona.data.raw.synthetic import Population, draw_datasets
from persona.models.cards import DEFAULT, shipped_ids

LARGEST_MB = 300
TRAINING = ("torch", "torchvision", "accelerate", "facenet_pytorch", "webdataset", "wandb")
PERSONA = [sys.executable, "-m", "persona"]
BOUNDARY = "wheel"


def persona(*arguments: str) -> Any:
    """What a command prints as JSON."""
    done = subprocess.run([*PERSONA, *arguments], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"persona {' '.join(arguments)}: exit code {done.returncode}")
    return json.loads(done.stdout) if "--json" in arguments else done.stdout


def check_training_is_refused(*arguments: str) -> None:
    """A command that needs torch says so in one line that ends in what to install."""
    done = subprocess.run([*PERSONA, *arguments], capture_output=True, text=True, check=False)
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 1, (arguments, lines)
    assert len(lines) == 1, lines
    assert "torch" in lines[0] and lines[0].endswith("'persona-faces[train]'"), lines


def ask_server(photo: bytes, *arguments: str) -> Any:
    """The answer of `persona serve` to one request."""
    command = [*PERSONA, "serve", "--port", "0", "--json", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        said = ""
        for line in server.stdout:
            said += line
            if line.startswith("}"):
                break
        address = urlsplit(json.loads(said)["url"])
        body = (
            f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="photo"; filename="a.jpg"\r\n'
            "Content-Type: image/jpeg\r\n\r\n"
        ).encode() + photo
        body += f"\r\n--{BOUNDARY}--\r\n".encode()
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=60)
        kind = f"multipart/form-data; boundary={BOUNDARY}"
        connection.request("POST", "/api/recognise", body, {"Content-Type": kind})
        answer = connection.getresponse()
        found = json.loads(answer.read())
        assert answer.status == 200, found
        server.send_signal(signal.SIGINT)
    return found


def main() -> None:
    """Every torch-free task once."""
    network = f"onnx:{Path(sys.argv[1]).resolve()}"
    there = [name for name in TRAINING if importlib.util.find_spec(name) is not None]
    assert not there, f"this environment has {there}"
    os.environ["PERSONA_HOME"] = str(Path.cwd())
    draw_datasets(Path("raw"), Population(2, 2, 20, 3, 2, 120), 1)
    photos = sorted(Path("raw/SyntheticLFW").rglob("*.jpg"))[:3]
    model = ("--model", network)

    verdict = persona("verify", *map(str, photos[:2]), *model, "--threshold", "0.5", "--json")
    assert verdict["same"] is True, verdict
    if DEFAULT in shipped_ids():
        shipped = persona("verify", *map(str, photos[:2]), "--json")
        assert {"similarity", "same", "threshold", "far"} <= shipped.keys(), shipped
    embedded = persona("embed", str(photos[0].parent), "--out", "e.npz", *model, "--json")
    assert embedded["embedding_size"] == 64 and embedded["faces"] >= 2, embedded
    persona("shard", "synthetic-lfw", "--raw", "raw", "--workers", "1")
    figures = persona("evaluate", "--set", "synthetic-lfw", *model, "--json")
    assert figures["pairs"] == 40, figures
    measured = persona("bench", network, "--rounds", "1", "--runs", "1", "--json")
    assert [cost["runtime"] for cost in measured["models"]] == ["onnxruntime"], measured
    assert "torch" not in measured["machine"], measured
    gallery = ("--store", "people.db")
    chosen = (*model, "--threshold", "0.5", *gallery)
    persona("enroll", "Ada", *map(str, photos[:2]), *chosen)
    seen = persona("recognise", str(photos[2]), *gallery, "--threshold", "0.5", "--json")
    assert seen["photos"][0]["faces"][0]["name"] == "Ada", seen
    answer = ask_server(photos[2].read_bytes(), *chosen)
    assert answer["faces"][0]["name"] == "Ada", answer
    persona("forget", "Ada", *gallery)

    check_training_is_refused("evaluate", "--set", "synthetic-lfw", "--model", "facenet-vggface2")
    check_training_is_refused("demo")

    packages = Path(sysconfig.get_paths()["purelib"])
    sizes = {
        path.name: sum(f.stat().st_size for f in path.rglob("*") if f.is_file()) / 1e6
        for path in packages.iterdir()
        if path.is_dir()
    }
    for name, size in sorted(sizes.items(), key=lambda item: -item[1])[:8]:
        print(f"{size:8.1f} MB  {name}")
    total = sum(sizes.values())
    print(f"{total:8.1f} MB  in all")
    assert total < LARGEST_MB


if __name__ == "__main__":
    main()

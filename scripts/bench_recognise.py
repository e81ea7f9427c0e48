#!/usr/bin/env python
"""Who is on each photo of a folder: photos/s of `persona recognise` and of face_recognition.

    ./scripts/bench_peers dlib                             # once
    ./scripts/bench_recognise.py --photos DIR [--copies 1] [--model NAME] [--rounds 3] [--json]

DIR has a folder per person. The first photo of each person is enrolled, all others are asked for.
Both are whole commands, from start to end, on all cores, in turns: `persona recognise FOLDER` and
`face_recognition KNOWN FOLDER --cpus -1` (dlib, HOG detector, tolerance 0.6), which enrols anew
each time. Both keep their bytecode between runs, as installed programs do. With --copies each photo
is asked for so many times, so that starting counts for less.
A photo is right when its person is the only one named. Someone is named wrongly when it is another.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from bench import facts, in_turns, medians, ratio, spread, told

PEER = Path(".tools/dlib/bin/face_recognition")


def prepare(photos: Path, scratch: Path, copies: int = 1) -> dict[str, str]:
    """Copies photos into `known` and `asked`; returns the person of each photo that is asked."""
    wanted: dict[str, str] = {}
    for name in ("known", "people", "asked"):
        (scratch / name).mkdir()
    for person in sorted(path for path in photos.iterdir() if path.is_dir()):
        first, *rest = sorted(person.glob("*.jpg"))
        shutil.copy(first, scratch / "known" / f"{person.name}.jpg")
        (scratch / "people" / person.name).mkdir()
        shutil.copy(first, scratch / "people" / person.name)
        for path, number in itertools.product(rest, range(copies)):
            name = f"{path.stem}_{number}.jpg"
            shutil.copy(path, scratch / "asked" / name)
            wanted[name] = person.name
    return wanted


class Ours:
    """`persona recognise`."""

    def __init__(self, scratch: Path, options: list[str]) -> None:
        self.scratch, self.named = scratch, defaultdict(set)
        self.persona = [sys.executable, "-m", "persona"]
        self.store = ["--store", str(scratch / "gallery.db"), *options]
        run([*self.persona, "enroll", str(scratch / "people"), *self.store], scratch)

    def __call__(self) -> float:
        """Seconds of one command."""
        start_s = time.perf_counter()
        command = [*self.persona, "recognise", str(self.scratch / "asked"), "--json", *self.store]
        told = run(command, self.scratch)
        took_s = time.perf_counter() - start_s
        self.named.clear()
        for photo in json.loads(told)["photos"]:
            names = {face["name"] for face in photo["faces"] if face["name"]}
            self.named[Path(photo["photo"]).name] |= names
        return took_s


class Theirs:
    """The command of face_recognition."""

    def __init__(self, scratch: Path) -> None:
        self.scratch, self.named = scratch, defaultdict(set)

    def __call__(self) -> float:
        """Seconds of one command."""
        start_s = time.perf_counter()
        folders = [str(self.scratch / name) for name in ("known", "asked")]
        told = run([str(PEER), *folders, "--cpus", "-1"], self.scratch)
        took_s = time.perf_counter() - start_s
        self.named.clear()
        for line in told.splitlines():
            photo, _, name = line.rpartition(",")
            if name not in {"unknown_person", "no_persons_found"}:
                self.named[Path(photo).name].add(name)
        return took_s


def run(command: list[str], scratch: Path) -> str:
    """The standard output of a command. Its bytecode lies in a folder that is this user's alone."""
    kept = {"PYTHONPYCACHEPREFIX": str(scratch / "bytecode")}
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"} | kept
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        sys.exit(f"error: {' '.join(command[:4])} …: {done.stderr.strip().splitlines()[-1:]}")
    return done.stdout


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--photos", type=Path, required=True, help="folder with a folder a person")
    parser.add_argument("--model", help="network of the gallery.  [default: persona's default]")
    parser.add_argument("--threshold", help="of a network that Persona does not ship")
    parser.add_argument("--min-face", type=int, default=40, help="px; that of dlib is 40")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--copies", type=int, default=1, help="of each photo that is asked for")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if not PEER.exists():
        sys.exit(f"error: {PEER} is not there: run ./scripts/bench_peers dlib first")
    with tempfile.TemporaryDirectory() as folder:
        wanted = prepare(arguments.photos, Path(folder), arguments.copies)
        chosen = {"--model": arguments.model, "--threshold": arguments.threshold}
        options = [word for name, value in chosen.items() if value for word in (name, value)]
        options += ["--min-face", str(arguments.min_face)]
        ours, theirs = Ours(Path(folder), options), Theirs(Path(folder))
        ours(), theirs()  # their bytecode, and the disk's cache
        seconds = in_turns({"persona": ours, "face_recognition": theirs}, arguments.rounds)
    result: dict[str, Any] = {
        "photos": len(wanted),
        "photos_per_s": {name: round(len(wanted) / s, 2) for name, s in medians(seconds).items()},
        "times_as_fast": round(ratio(seconds["face_recognition"], seconds["persona"]), 2),
        "right": {
            name: sum(found[photo] == {person} for photo, person in wanted.items())
            for name, found in (("persona", ours.named), ("face_recognition", theirs.named))
        },
        "wrong": {
            name: sum(bool(found[photo] - {person}) for photo, person in wanted.items())
            for name, found in (("persona", ours.named), ("face_recognition", theirs.named))
        },
        "spread": spread(seconds),
        "machine": facts("onnxruntime"),
    }
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    for name, rate in result["photos_per_s"].items():
        print(
            f"{name:17} {rate:7.1f} photos/s, {result['right'][name]} of {len(wanted)} right, "
            f"{result['wrong'][name]} with somebody wrong"
        )
    print(f"{result['times_as_fast']} times as fast; {told(result['machine'])}")


if __name__ == "__main__":
    main()

"""axe-core, an npm package that finds what keeps people from using a page."""

from __future__ import annotations

import base64
import functools
import hashlib
import re
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import pytest

from persona.files import write_atomically

VERSION = "4.14.1"
NAME = f"axe-core-{VERSION}.tgz"
TARBALL = "FHfa+lmNjQZfJz1q8wKqIDwC6DExcHt/pkjNQb09a3NPjCKg2rhu5qb2S4r76ASyFNNtuFooJpZe37OgudVGtQ=="
"""SHA-512 of the tarball in base64, as in npm's integrity field. No other tarball is unpacked."""
KEPT = Path(__file__).parents[1] / ".tools" / NAME
FETCH_S = 120
GRAVE = ("critical", "serious")
FIND = """async () => (await axe.run(document, { resultTypes: ["violations"] })).violations.flatMap(
    ({ id, impact, nodes }) => nodes.map((one) => `${impact}: ${id}: ${one.target.join(" ")}: `
        + one.failureSummary.replace(/\\s+/g, " ")))"""


@functools.cache
def load_axe() -> str:
    """axe-core's script. Without npm, or where npm cannot fetch it, the test is skipped."""
    if not KEPT.is_file():
        write_atomically(KEPT, fetch())
    data = KEPT.read_bytes()
    assert base64.b64encode(hashlib.sha512(data).digest()).decode() == TARBALL, KEPT
    with tarfile.open(KEPT) as tar:
        member = tar.extractfile("package/axe.min.js")
        assert member is not None
        return member.read().decode()


def fetch() -> bytes:
    """The tarball, by the npm of this machine, which knows its registry."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("no npm here, which fetches axe-core for the accessibility check")
    with tempfile.TemporaryDirectory() as folder:
        options = (f"--pack-destination={folder}", "--loglevel=error", "--fetch-retries=1")
        try:
            done = subprocess.run(
                [npm, "pack", f"axe-core@{VERSION}", *options],
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
                timeout=FETCH_S,
            )
        except subprocess.TimeoutExpired:
            pytest.skip(f"npm did not fetch axe-core@{VERSION} within {FETCH_S} s")
        if done.returncode:
            # Only the error code: the rest may have a registry's address with its password.
            code = re.search(r"\bcode (E\w+)", done.stderr)
            pytest.skip(f"npm cannot fetch axe-core@{VERSION}: {code[1] if code else 'no code'}")
        return (Path(folder) / NAME).read_bytes()


def find_faults(page: Any, impacts: tuple[str, ...] = GRAVE) -> list[str]:
    """What axe finds on the page as it is now, of these impacts, each with its place."""
    page.evaluate(load_axe())
    found: list[str] = page.evaluate(FIND)
    return [fault for fault in found if fault.startswith(impacts)]

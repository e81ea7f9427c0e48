"""onnxruntime for browsers: two files of the npm package onnxruntime-web, checked by digest.

They come from the folder or tarball that the user names. Otherwise they come from the models
folder; the first time they are fetched with npm, which knows the machine's registry, and stored
there.
"""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from persona.errors import PersonaError
from persona.files import write_atomically

VERSION = "1.30.0"
NAME = f"onnxruntime-web-{VERSION}"
TARBALL = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
"""SHA-512 of the tarball in base64, as in npm's integrity field. No other tarball is unpacked."""
SCRIPT, BINARY = "ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"
FILES = {
    SCRIPT: "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
    BINARY: "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
"""SHA-256 of each file."""
FETCH_S = 600
"""Longest time that npm may take, in s."""
BY_HAND = (
    f"where npm works run `npm pack onnxruntime-web@{VERSION}`, and name the file with --runtime"
)


def load_runtime(models: Path, given: Path | None = None) -> dict[str, bytes]:
    """Loads the two files. Returns their bytes by name.

    Args:
        models: the models folder, where fetched files are stored.
        given: npm's tarball, a folder with the files, or a folder whose `dist/` has them. None
            takes the stored files and fetches them if needed.

    Raises:
        PersonaError: the files are missing or of another version, or npm cannot fetch them.
    """
    if given is not None and not given.is_dir():
        return _unpack(given)
    kept = models / "runtimes" / NAME
    if given is None and not all((kept / name).is_file() for name in FILES):
        with tempfile.TemporaryDirectory() as scratch:
            for name, data in _unpack(_fetch(Path(scratch))).items():
                write_atomically(kept / name, data)
    folder = given or kept
    if (folder / "dist").is_dir():
        folder /= "dist"
    return {name: _read(folder / name, digest) for name, digest in FILES.items()}


def _read(path: Path, digest: str) -> bytes:
    if not path.is_file():
        raise PersonaError(f"no {path}: --runtime takes the tarball or folder of {NAME}; {BY_HAND}")
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != digest:
        raise PersonaError(f"{path} is not that of {NAME}: remove it and run again, or {BY_HAND}")
    return data


def _unpack(tarball: Path) -> dict[str, bytes]:
    """The bytes of the files in npm's tarball, by name.

    Raises:
        PersonaError: the tarball is missing or has another digest.
    """
    if not tarball.is_file():
        raise PersonaError(f"no {tarball}: {BY_HAND}")
    with tarball.open("rb") as file:
        digest = hashlib.file_digest(file, "sha512").digest()
    if base64.b64encode(digest).decode() != TARBALL:
        raise PersonaError(f"{tarball} is not npm's tarball of {NAME}: {BY_HAND}")
    found = {}
    with tarfile.open(tarball) as tar:
        for name in FILES:
            member = tar.extractfile(f"package/dist/{name}")
            assert member is not None  # the tarball's digest guarantees it
            found[name] = member.read()
    return found


def _fetch(folder: Path) -> Path:
    """Fetches the tarball with npm into `folder` and returns its path."""
    npm = shutil.which("npm")
    if npm is None:
        raise PersonaError(f"the page needs {NAME}, and there is no npm here: {BY_HAND}")
    options = (f"--pack-destination={folder}", "--loglevel=error", "--fetch-retries=1")
    try:
        done = subprocess.run(
            [npm, "pack", f"onnxruntime-web@{VERSION}", *options],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=FETCH_S,
        )
        # Only the error code is shown: the rest may have a registry's address with its password.
        code = re.search(r"\bcode (E\w+)", done.stderr)
        reason = code[1] if code else f"exit code {done.returncode}"
    except subprocess.TimeoutExpired:
        reason = f"not within {FETCH_S} s"
    else:
        path = folder / f"{NAME}.tgz"
        if done.returncode == 0 and path.is_file():
            return path
    raise PersonaError(f"npm cannot fetch {NAME} ({reason}): {BY_HAND}")

"""The examples: what they print is what Persona computes."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from little import LITTLE
from PIL import Image
from students import SIDE, write_student

from persona.data.transforms import normalise
from persona.deploy.exports import ExportOptions
from persona.deploy.exports.onnx import Onnx
from persona.deploy.faces import drawn_faces
from persona.models.store import load_model

ROOT = Path(__file__).parents[2]
ALONE = (
    "import runpy, sys; sys.modules.update(torch=None, persona=None); "
    "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
)
"""Runs a script that can import neither torch nor Persona."""


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], float]:
    """An exported model and two faces as paths, and their cosine by PyTorch."""
    folder = tmp_path_factory.mktemp("examples")
    card = write_student(folder, architecture=LITTLE)
    student = load_model(card, folder).eval()
    faces = drawn_faces(SIDE, 8)
    paths = [folder / "model.onnx", folder / "first.ppm", folder / "second.ppm"]
    Onnx().write(student, card, faces, paths[0], ExportOptions(preprocessing=True))
    for face, path in zip(faces[:2], paths[1:], strict=True):
        Image.fromarray(face).save(path)
    with torch.inference_mode():
        first, second = student.embed(normalise(torch.from_numpy(faces[:2]).permute(0, 3, 1, 2)))
    return [str(path) for path in paths], float(first @ second)


def compare_py(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", ALONE, str(ROOT / "examples" / "compare.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


def test_python_without_torch_gives_personas_score(job: tuple[list[str], float]) -> None:
    paths, wanted = job
    assert wanted < 0.999  # two faces, or anything would do
    done = compare_py(*paths)
    assert float(done.stdout.split()[0]) == pytest.approx(wanted, abs=1e-4), done.stderr
    assert "usage" in compare_py(paths[0]).stderr
    for wrong in ([paths[1], *paths[1:]], [paths[0], "nope.jpg", paths[1]], ["nope.onnx"] * 3):
        done = compare_py(*wrong)
        assert (done.returncode, done.stdout) == (1, "")
        assert len(done.stderr.splitlines()) == 1, done.stderr


ONLY_READS = """
#include <stdint.h>
typedef struct OrtStatus OrtStatus;
typedef struct { const char *(*GetErrorMessage)(OrtStatus *); } OrtApi;
"""
"""What compare.c needs of onnxruntime's header until its photos are read."""


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_c_reads_photos_of_eight_bits_alone(tmp_path: Path) -> None:
    (tmp_path / "onnxruntime_c_api.h").write_text(ONLY_READS)
    source = (ROOT / "examples" / "compare.c").read_text().partition("/* The embedding of")[0]
    main = "int main(int n, char **a) { return n != 2 || read_ppm(a[1]).pixels[0] != 7; }\n"
    (tmp_path / "read.c").write_text(source + main)
    command = ["cc", "-std=c11", "-I", str(tmp_path), "-o", str(tmp_path / "read")]
    subprocess.run([*command, str(tmp_path / "read.c")], check=True, timeout=60)

    def read(photo: bytes) -> str | None:
        """What is wrong with a photo."""
        (tmp_path / "a.ppm").write_bytes(photo)
        command = [str(tmp_path / "read"), str(tmp_path / "a.ppm")]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == (1 if done.stderr else 0)
        return done.stderr.partition(": ")[2].strip() or None

    pixels, wrong = b"\x07" * 12, "is no binary PPM of 8 bit"
    assert read(b"P6\n2 2\n255\n" + pixels) is None
    assert read(b"P6 2 2 255 " + pixels) is None
    assert read(b"P6 2 2 255\n" + pixels[1:]) == "is cut off"
    for head in (
        b"P6 2 2 65535\n",
        b"P6 2 2 25\n",
        b"P6 2 2 2555\n",
        b"P6 2 2 255",
        b"P5 2 2 255\n",
    ):
        assert read(head + 2 * pixels) == wrong, head
    assert read(b"P6 2 2 255") == wrong


@pytest.mark.heavy
def test_c_gives_personas_score(job: tuple[list[str], float], tmp_path: Path) -> None:
    paths, wanted = job
    built = subprocess.run(
        [str(ROOT / "scripts" / "example")],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    if "no onnxruntime_c_api.h" in built.stderr:
        pytest.skip(built.stderr.splitlines()[-1])
    assert built.returncode == 0, built.stderr
    program = built.stdout.split()[-1]

    def compare_c(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [program, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)

    done = compare_c(*paths)
    assert float(done.stdout) == pytest.approx(wanted, abs=1e-4), done.stderr
    cut = tmp_path / "cut.ppm"
    cut.write_bytes(Path(paths[1]).read_bytes()[:-1])
    for arguments, words in (
        (paths[:2], "usage"),
        ([paths[0], str(cut), paths[2]], "is cut off"),
        ([paths[0], paths[0], paths[2]], "is no binary PPM"),
        ([paths[1], *paths[1:]], "failed"),
    ):
        done = compare_c(*arguments)
        assert done.returncode == 1 and words in done.stderr, done.stderr

#!/usr/bin/env python
"""Grouping faces: Persona's Chinese whispers beside scikit-learn's HDBSCAN.

    ./scripts/bench_group.py [--faces N ...] [--set SET ... --model NAME] [--limit-s S] [--json]

Without --set, embeddings are drawn: 128-d, of people whose number of photos is log-normal (median
5, the largest several hundred). A person's direction and the cosine of a photo to it are drawn as
MobileFaceNet's are on 3,137 faces of 150 people of CelebA: eigenvalues that fall as exp(-k / 60),
pairs of two people at 0.0 +- 0.1, and a cosine to the person's mean of 0.44, 0.72, 0.80, 0.855 and
0.90 at the 5, 25, 50, 75 and 95 % quantiles. The worst percent are hardly like their person.

Each method runs in a process of its own. Seconds are those of grouping alone, in brackets those of
the processor; the peak is that of the whole process. The thresholds are the one that `persona
group` estimates, and those at false accept rates (--far), as `--calibrate` would choose them: on
--threshold-set, or else on another drawn set.

    ./scripts/bench_group.py --copies DIR --model NAME

finds how similar a face is to itself after its photo was changed, and to the nearest other face.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from bench import facts, told
from PIL import Image

from persona.evaluation.grouping import estimate_threshold, group_faces
from persona.evaluation.metrics import b_cubed, pairwise_f
from persona.evaluation.thresholds import faces_of, threshold_at
from persona.figure_names import power

Embeddings = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

WIDTH, DECAY = 128, 60.0
PHOTOS_MEAN, PHOTOS_SPREAD = 1.6, 1.2
"""Mean and deviation of the logarithm of a person's number of photos."""
SHARE = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
COSINE = (-0.05, 0.06, 0.44, 0.72, 0.8, 0.855, 0.9, 0.95)
"""Cosine of a photo to its person's mean, at these quantiles."""
METHODS = ("whispers", "hdbscan")


def draw(count: int, seed: int = 0) -> tuple[Embeddings, Ints]:
    """Embeddings of `count` faces in a drawn order, and who each is."""
    rng = np.random.default_rng(seed)
    sizes = np.ceil(rng.lognormal(PHOTOS_MEAN, PHOTOS_SPREAD, count)).astype(int)
    label = rng.permutation(np.repeat(np.arange(count), sizes)[:count])
    spread_E = np.exp(-np.arange(WIDTH) / DECAY / 2)
    centre_KE = unit(rng.normal(size=(label.max() + 1, WIDTH)) * spread_E)[label]
    noise_NE = unit(rng.normal(size=(count, WIDTH)) * spread_E)
    noise_NE = unit(noise_NE - (noise_NE * centre_KE).sum(1, keepdims=True) * centre_KE)
    cosine = np.interp(rng.random(count), SHARE, COSINE)[:, None]
    return (cosine * centre_KE + np.sqrt(1 - cosine**2) * noise_NE).astype(np.float32), label


def unit(vectors: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Scales rows to unit length."""
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def hdbscan(embedding_NE: Embeddings) -> Ints:
    """Groups by scikit-learn's HDBSCAN; what it calls noise is in a group of its own."""
    from sklearn.cluster import HDBSCAN

    group = HDBSCAN(min_cluster_size=2, min_samples=2, n_jobs=-1, copy=True).fit_predict(
        embedding_NE
    )
    noise = np.flatnonzero(group < 0)
    group[noise] = group.max(initial=-1) + 1 + np.arange(len(noise))
    return np.asarray(group, np.int64)


def one(method: str, file: Path, threshold: float) -> dict[str, Any]:
    """Runs one method in this process."""
    with np.load(file) as stored:
        embedding, label = stored["embedding"], stored["label"]
    group_faces(embedding[:100], 0.5)  # starts BLAS
    if method == "hdbscan":
        import sklearn.cluster  # noqa: F401 - not a part of the time
    start, busy = time.perf_counter(), time.process_time()
    group = group_faces(embedding, threshold) if method == "whispers" else hdbscan(embedding)
    taken, cpu = time.perf_counter() - start, time.process_time() - busy
    return {
        "seconds": taken,
        "cpu_s": cpu,
        "peak_mb": peak_mb(),
        "pairwise": pairwise_f(group, label),
        "b_cubed": b_cubed(group, label),
        "groups": int((np.bincount(group) > 1).sum()),
        "people": int((np.bincount(label) > 1).sum()),
    }


def peak_mb() -> float:
    """The largest memory of this process so far; `getrusage` counts that of its parent too."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def measure(
    method: str, embedding_NE: Embeddings, label_N: Ints, threshold: float, limit_s: float
) -> dict[str, Any] | None:
    """Runs one method in another process; None means that it took over `limit_s` seconds."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "faces.npz"
        np.savez(file, embedding=embedding_NE, label=label_N)
        command = [sys.executable, __file__, "--one", method, str(file), str(threshold)]
        try:
            done = subprocess.run(command, capture_output=True, check=True, timeout=limit_s)
        except subprocess.TimeoutExpired:
            return None
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def embed_set(name: str, model: str) -> tuple[Embeddings, Ints]:
    """The faces of a packed set, at most 20,000, and who each is."""
    from persona.data.sets import open_set
    from persona.evaluation.processes import join_processes
    from persona.models.sources import load_embedder, spell
    from persona.workspace import Workspace

    place = Workspace.locate()
    named = load_embedder(spell(model), place.models)
    return faces_of(named, open_set(name, place.shards), join_processes(named.network))


def compare_copies(folder: Path, name: str) -> None:
    """Prints a table of the similarity of photos to changed copies of themselves."""
    import persona
    from persona.api.embedding import find_photos
    from persona.gallery.grouped import NEAR

    model = persona.load(name)

    def embed(image: Image.Image) -> npt.NDArray[np.float32] | None:
        faces = model.find(image)
        face = max(faces, key=lambda face: face.box[2] - face.box[0], default=None)
        return None if face is None else model.embed([face])[0]

    def jpeg(image: Image.Image, quality: int, size: float = 1.0) -> Image.Image:
        file = io.BytesIO()
        small = image.resize((round(image.width * size), round(image.height * size)))
        small.save(file, "JPEG", quality=quality)
        return Image.open(file).convert("RGB")

    changes: dict[str, Callable[[Image.Image], Image.Image]] = {
        "JPEG, quality 75": lambda image: jpeg(image, 75),
        "JPEG, quality 40": lambda image: jpeg(image, 40),
        "half the width, quality 90": lambda image: jpeg(image, 90, 0.5),
        "twice the width, quality 90": lambda image: jpeg(image, 90, 2.0),
        "6 % cut off each side": lambda i: i.crop(
            (i.width // 16, i.height // 16, i.width - i.width // 16, i.height - i.height // 16)
        ),
        "grey": lambda image: image.convert("L").convert("RGB"),
    }
    found: dict[str, list[float]] = {change: [] for change in changes}
    kept = []
    for path in find_photos(folder):
        photo = Image.open(path).convert("RGB")
        if (own := embed(photo)) is None:
            continue
        kept.append(own)
        for change, make in changes.items():
            copy = embed(make(photo))
            found[change].append(-1.0 if copy is None else float(own @ copy))
    similarity = np.stack(kept) @ np.stack(kept).T
    np.fill_diagonal(similarity, -1)
    print(f"{len(kept)} photos; two different ones reach {similarity.max():.3f} at most")
    for change, values in found.items():
        share = np.mean(np.array(values) >= NEAR)
        print(f"| {change} | {np.median(values):.3f} | {share:.0%} from {NEAR:g} on |")


def main() -> None:
    """Prints a table, or one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faces", type=int, nargs="+", default=[10_000, 30_000, 100_000])
    parser.add_argument("--set", nargs="+", help="packed sets instead of drawn embeddings")
    parser.add_argument("--threshold-set", help="packed set on which --far is calibrated")
    parser.add_argument("--model", help="network of the packed sets")
    parser.add_argument("--far", type=float, nargs="*", default=[1e-3, 1e-4, 1e-5])
    parser.add_argument("--copies", type=Path, help="photos to compare with changed copies")
    parser.add_argument("--limit-s", type=float, default=900.0, help="time limit of a method")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        method, file, threshold = given.one
        print(json.dumps(one(method, Path(file), float(threshold))))
        return
    if given.copies:
        compare_copies(given.copies, given.model)
        return
    if given.set:
        sets = {name: embed_set(name, given.model) for name in given.set}
        other = embed_set(given.threshold_set, given.model) if given.threshold_set else None
    else:
        sets = {f"{count:,} drawn": draw(count) for count in given.faces}
        other = draw(5_000, seed=1)
    far = {}
    if other is not None:
        far = {f"FAR {power(rate)}": threshold_at(*other, rate, "the set")[0] for rate in given.far}
    rows: list[dict[str, Any]] = []
    for name, (embedding, label) in sets.items():
        thresholds = {"estimated": estimate_threshold(embedding)} | far
        for method, source, threshold in [
            *(("whispers", source, value) for source, value in thresholds.items()),
            ("hdbscan", "none", 0.0),
        ]:
            found = measure(method, embedding, label, threshold, given.limit_s)
            about = {"set": name, "faces": len(label), "method": method}
            about |= {"threshold": threshold, "source": source}
            rows.append(about | (found or {"seconds": None}))
            if not given.json:
                print(line(rows[-1], given.limit_s), flush=True)
    if given.json:
        print(json.dumps({"rows": rows, "machine": facts("numpy")}, indent=2))
    else:
        print(told(facts("numpy")))


def line(row: dict[str, Any], limit_s: float) -> str:
    """A row of a table."""
    threshold = "" if row["method"] == "hdbscan" else f"{row['threshold']:.3f} ({row['source']})"
    start = f"| {row['set']} | {row['method']} | {threshold} |"
    if row["seconds"] is None:
        return f"{start} over {limit_s:,.0f} s, stopped | | | |"
    pairs, cubed = (", ".join(f"{n:.3f}" for n in row[kind]) for kind in ("pairwise", "b_cubed"))
    return (
        f"{start} {row['seconds']:.1f} ({row['cpu_s']:.1f}) | {row['peak_mb']:,.0f} "
        f"| {pairs} | {cubed} | {row['groups']:,} of {row['people']:,}"
    )


if __name__ == "__main__":
    main()

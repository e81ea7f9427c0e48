"""Export and import of a gallery's people as a safetensors file without photos.

Templates of a network before, which the gallery may keep, are not exported.

`templates` is (N, E) float32. The metadata names the person of each row, and the network. The file
is not encrypted. A file to import is untrusted: everything in it is checked.

Shapes: N templates, E embedding.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from persona.errors import PersonaError
from persona.files import PRIVATE, not_a_file, write_atomically
from persona.gallery.store import Facts, Store, StoredPhoto, check_name, unit
from persona.models.public import public

FORMAT = "persona gallery 1"
SUFFIX = ".safetensors"
MAX_BYTES = 20_000_000_000


def export_people(store: Store, path: Path) -> int:
    """Writes everybody's templates to a file, and returns their number.

    Raises:
        PersonaError: nobody is enrolled, or the file's suffix is not `.safetensors`.
    """
    if path.suffix != SUFFIX:
        raise PersonaError(f"{path}: name it {SUFFIX}, so that it replaces no gallery or photo")
    facts = store.facts()
    rows = [(name, photo.template) for name, _, photo in store.photos()]
    if facts is None or not rows:
        raise PersonaError(f"{store.place} has nobody to export")
    meta = {
        "format": FORMAT,
        "facts": json.dumps(public(facts.alone.to_json())),
        "names": json.dumps([name for name, _ in rows]),
    }
    templates_NE = np.stack([template for _, template in rows])
    write_atomically(path, safetensors.numpy.save({"templates": templates_NE}, meta), PRIVATE)
    return len(rows)


def import_people(store: Store, path: Path) -> dict[str, int]:
    """Adds everybody in a file, or nobody, and returns the number of templates by name.

    A new gallery is assigned to the file's network, but does not take its threshold.

    Raises:
        PersonaError: there is no such file, it belongs to another network or to faces that are
            aligned in another way, or somebody in it is enrolled already.
    """
    facts, names, templates_NE = read_people(path)
    store.adopt(replace(facts.alone, threshold=None, keeps_crops=None))
    own = store.facts()
    if own is not None and (own.width != facts.width or not own.align.resembles(facts.align)):
        raise PersonaError(
            f"{path}: templates of {facts.width} numbers, of faces aligned by "
            f"{facts.align.method}; {store.place} has {own.width}, by {own.align.method}: import "
            "them into another --store"
        )
    people: dict[str, list[StoredPhoto]] = defaultdict(list)
    for name, template in zip(names, templates_NE, strict=True):
        people[name].append(StoredPhoto(template))
    store.add(people, facts.digest, new=True)
    return dict(Counter(names))


def read_people(path: Path) -> tuple[Facts, Sequence[str], np.ndarray]:
    """Reads facts, names and (N, E) templates of unit length from an exported file.

    Raises:
        PersonaError: there is no such file, or it is not a valid export of a gallery.
    """
    if (kind := not_a_file(path)) is not None:
        raise PersonaError(
            f"{path} is {kind}: give a list of names and photos (.csv, .parquet), or a file of "
            "`persona gallery export`"
        )
    if not path.is_file():
        raise PersonaError(f"no file at {path}")
    if path.stat().st_size > MAX_BYTES:
        raise PersonaError(f"{path} is over {MAX_BYTES / 1e9:.0f} GB: no gallery is")
    try:
        with safetensors.safe_open(path, "np") as file:
            meta = file.metadata() or {}
            if meta.get("format") != FORMAT or list(file.keys()) != ["templates"]:
                raise _foreign(path)
            templates = file.get_tensor("templates")
        names = json.loads(meta["names"])
        facts = Facts.from_json(json.loads(meta["facts"]), str(path))
    except (
        safetensors.SafetensorError,
        LookupError,
        TypeError,
        ValueError,
        RecursionError,
        OSError,
    ):
        raise _foreign(path) from None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise _foreign(path)
    if templates.dtype != np.float32 or templates.shape != (len(names), facts.width) or not names:
        raise PersonaError(
            f"{path}: templates {templates.shape} {templates.dtype} for {len(names)} names of a "
            f"network of {facts.width} numbers"
        )
    lengths = np.linalg.norm(templates.astype(np.float64), axis=1)
    if not np.isfinite(lengths).all() or lengths.min() < 1e-6:
        raise PersonaError(f"{path}: some templates are zero or not finite")
    # Rows that have unit length already keep their exact bits.
    off_N = np.abs(lengths - 1) > 1e-6
    templates[off_N] = unit(templates[off_N])
    try:
        return facts, [check_name(name) for name in names], templates
    except PersonaError as error:
        raise PersonaError(f"{path}: {error}") from None


def _foreign(path: Path) -> PersonaError:
    return PersonaError(f"{path} is no file of `persona gallery export`")

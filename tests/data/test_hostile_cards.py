"""Manifests and cards of strangers: refused in one line, at once, whatever stands in them."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from persona.config import AugmentConfig
from persona.data.kept_targets import CARD as TARGETS_CARD
from persona.data.kept_targets import (
    TargetFile,
    Targets,
    check_targets,
    find_targets,
    targets_folder,
    write_targets,
)
from persona.data.pack import Packed
from persona.data.raw import open_dataset
from persona.data.sets import open_set
from persona.data.shards import MANIFEST
from persona.data.triplets import CARD as TRIPLET_CARD
from persona.data.triplets import INDICES, list_triplets, load_triplets, make_triplets
from persona.errors import PersonaError
from persona.files import sha256_file

VALUES: list[Any] = [..., None, True, -1, 10**30, 1e308, float("nan"), "x" * 5000, "../x", [], {}]
VALUES += [[[]], {"a": {"b": 1}}, json.loads("[" * 500 + "]" * 500), ["x"] * 1000, [-5, 10**40]]


def changed(value: Any) -> Iterator[Any]:
    """A card in which one value after another is another one, or missing."""

    def places(inside: Any) -> Iterator[tuple[Any, ...]]:
        items = inside.items() if isinstance(inside, dict) else enumerate(inside[:1])
        for name, item in items:
            yield (name,)
            if isinstance(item, dict | list):
                yield from ((name, *rest) for rest in places(item))

    yield from VALUES[1:]
    for *way, last in list(places(value)):
        for other in VALUES:
            again = inside = copy.deepcopy(value)
            for name in way:
                inside = inside[name]
            if other is ...:
                del inside[last]
            else:
                inside[last] = other
            yield again


def refuse_all(path: Path, use: Callable[[], Any]) -> None:
    use()
    whole = path.read_text()
    for value in changed(json.loads(whole)):
        path.write_text(json.dumps(value))
        began_s = time.process_time()
        try:
            use()
        except PersonaError as error:
            line = str(error)
            assert "\n" not in line and len(line) < 700 + 2 * len(str(path)), line[:300]
        assert time.process_time() - began_s < 1
    path.write_text(whole)


def test_manifests(lfw_set: Packed) -> None:
    def use() -> None:
        faces = open_set("lfw", lfw_set.folder.parent)
        faces.pairs()
        faces.manifest.check_crops("network", 160, True)
        assert faces.digest and faces.manifest.no_face is not None

    with pytest.raises(PersonaError):  # crops of 32 px
        use()
    with pytest.raises(PersonaError, match="--image-size 112; --align landmarks turns faces to"):
        open_set("lfw", lfw_set.folder.parent).manifest.check_crops("network", 112, False)
    refuse_all(lfw_set.folder / MANIFEST, lambda: _any_error(use))


def _any_error(use: Callable[[], None]) -> None:
    try:
        use()
    except PersonaError as error:
        assert "\n" not in str(error)


def test_cards_of_targets(train_set: Packed) -> None:
    files = tuple(
        TargetFile(shard.sha256, shard.samples, "0" * 64, "0" * 64)
        for shard in train_set.manifest.shards
    )
    augment = AugmentConfig()
    targets = Targets("t", "d", 8, "none", 0, "x", ("a", "b"), 2, augment, 0, files)
    place = targets_folder(train_set.folder, "t")
    write_targets(place, targets)

    def use() -> None:
        found = find_targets(train_set.folder, "t")
        assert found is not None
        with pytest.raises(PersonaError):  # the files are missing
            check_targets(train_set.faces, found, deep=False)

    refuse_all(place / TARGETS_CARD, use)


def test_triplet_cards(raw: Path, tmp_path: Path) -> None:
    index = open_dataset("vggface2", raw, "test").index()
    card = make_triplets(index, 5, dataset="vggface2", split="test", seed=0, shards=tmp_path)
    refuse_all(
        tmp_path / card.id / TRIPLET_CARD,
        lambda: (list_triplets(tmp_path), load_triplets(card.id, tmp_path)),
    )
    # Indices that fit their checksum and tell of more than they hold.
    path, facts = tmp_path / card.id / INDICES, tmp_path / card.id / TRIPLET_CARD
    header = {"descr": "<i4", "fortran_order": False, "shape": (10**12, 3)}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
    value = json.loads(facts.read_text()) | {"indices_sha256": sha256_file(path)}
    facts.write_text(json.dumps(value))
    with pytest.raises(PersonaError, match="is not what its card says"):
        load_triplets(card.id, tmp_path)

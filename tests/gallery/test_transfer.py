from __future__ import annotations

import json
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from fake_eyes import FACTS, WIDTH, kept, new_store, vectors

from persona.data.align.spec import ARCFACE
from persona.errors import PersonaError
from persona.gallery.store import Threshold, open_store
from persona.gallery.transfer import FORMAT, export_people, import_people

ROWS = vectors(3)


def test_there_and_back(tmp_path: Path) -> None:
    out = tmp_path / "people.safetensors"
    with new_store(tmp_path / "a.db") as store:
        store.set_threshold(Threshold(0.4, "a set"), FACTS.digest)
        store.add({"Zoë / 李": kept(*ROWS[:2]), "Bob": kept(ROWS[2])}, FACTS.digest)
        assert export_people(store, out) == 3
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    with open_store(tmp_path / "b.db", create=True) as store:
        assert import_people(store, out) == {"Zoë / 李": 2, "Bob": 1}
        assert store.facts() == FACTS  # the threshold is to be chosen anew
        found = [photo.template for _, _, photo in store.photos()]
        assert np.array_equal(np.stack(found), ROWS)
        with pytest.raises(PersonaError, match="has somebody named 'Zoë / 李' already"):
            import_people(store, out)
    with new_store(tmp_path / "c.db") as store, pytest.raises(PersonaError, match="nobody to exp"):
        export_people(store, out)


def test_what_a_gallery_keeps_of_a_network_before_stays_there(tmp_path: Path) -> None:
    out, newer = tmp_path / "people.safetensors", replace(FACTS, digest="newer", network="newer")
    with new_store(tmp_path / "a.db") as store:
        store.add({"Ann": kept(*ROWS[:2])}, FACTS.digest)
        store.replace(newer, {1: ROWS[1], 2: ROWS[2]})
        export_people(store, out)
    written = out.read_bytes()
    assert ROWS[2].tobytes() in written and ROWS[0].tobytes() not in written
    with open_store(tmp_path / "b.db", create=True) as store:
        import_people(store, out)
        assert store.facts() == newer
    # An older version wrote the facts before, too.
    facts = json.dumps(replace(newer, previous=FACTS).to_json())
    path = write(tmp_path / "old.safetensors", facts=facts)
    with open_store(tmp_path / "c.db", create=True) as store:
        import_people(store, path)
        assert store.facts() == newer


def write(path: Path, templates: Any = ROWS, **change: Any) -> Path:
    meta = {
        "format": FORMAT,
        "facts": json.dumps(FACTS.to_json()),
        "names": json.dumps(["Ann", "Ann", "Bob"]),
    } | change
    safetensors.numpy.save_file({"templates": templates}, path, meta)
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "is no file of `persona gallery export`"),
        ({"names": "[1, 2, 3]"}, "is no file of"),
        ({"names": "["}, "is no file of"),
        ({"names": "[" * 100_000}, "is no file of"),
        ({"facts": "{}"}, "does not say which network"),
        ({"facts": "[]"}, "does not say which network"),
        ({"names": '["Ann"]'}, r"templates \(3, 8\) float32 for 1 names of a network of 8"),
        ({"names": '["Ann", "Ann", "a\\u0000b"]'}, r"x\.safetensors: a name holds U\+0000 control"),
        ({"names": '["Ann", "Ann", "Ann\\u200e"]'}, r"a name holds U\+200E LEFT-TO-RIGHT MARK"),
        ({"names": json.dumps(["Ann", "Ann", "x" * 10_000])}, "10000 characters"),
        ({"facts": json.dumps(FACTS.to_json() | {"digest": "other"})}, "made by another network"),
        (
            {
                "facts": json.dumps(FACTS.to_json() | {"width": 9}),
                "templates": vectors(3, width=9),
            },
            r"templates of 9 numbers, of faces aligned by mtcnn; .*g\.db has 8, by mtcnn",
        ),
        (
            {"facts": json.dumps(replace(FACTS, align=ARCFACE).to_json())},
            r"aligned by landmarks; .*g\.db has 8, by mtcnn: import them into another --store",
        ),
        ({"templates": ROWS[:, :5].copy()}, r"templates \(3, 5\) float32"),
        ({"templates": ROWS.astype(np.float64)}, "float64"),
        ({"templates": ROWS * np.float32(np.nan)}, "zero or not finite"),
        ({"templates": np.zeros((3, WIDTH), np.float32)}, "zero or not finite"),
    ],
)
def test_a_strangers_file(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "x.safetensors", **change)
    with new_store(tmp_path / "g.db") as store:
        store.add({"Cy": kept(ROWS[0])}, FACTS.digest)
        with pytest.raises(PersonaError, match=message):
            import_people(store, path)
        assert [person.name for person in store.people()] == ["Cy"]
        assert len(list(store.photos())) == 1  # and they can be read


def test_numbers_that_numpy_does_not_have(tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", ROWS.astype(np.float16))
    # NumPy has them where something imported ml_dtypes.
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"F16"', b'"BF16"').replace(b"}}  ", b"}} ", 1))
    with (
        new_store(tmp_path / "g.db") as store,
        pytest.raises(PersonaError, match=r"is no file of|bfloat16"),
    ):
        import_people(store, path)


def test_no_such_file(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello")
    with new_store(tmp_path / "g.db") as store:
        with pytest.raises(PersonaError, match="is no file of `persona gallery export`"):
            import_people(store, tmp_path / "text")
        with pytest.raises(PersonaError, match="no file at"):
            import_people(store, tmp_path / "none")


def test_lengths_are_mended(tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", ROWS * 3)
    with new_store(tmp_path / "g.db") as store:
        import_people(store, path)
        (photo, *_) = [photo for _, _, photo in store.photos()]
    assert np.linalg.norm(photo.template) == pytest.approx(1, abs=1e-6)

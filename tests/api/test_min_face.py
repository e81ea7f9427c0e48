"""The smallest face to look for: one option of every command that finds faces."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from api_faces import drawn
from helpers import persona_error_here, persona_here
from PIL import Image

import persona
from persona.api.grouping import group_photos
from persona.cli import output
from persona.cli.app import app
from persona.data.align import AlignSpec
from persona.data.align.spec import MIN_FACE_PX
from persona.errors import PersonaError
from persona.gallery.faces import Eyes

FINDING = ("embed", "enroll", "group", "recognise", "serve", "shard", "verify")


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A photo of a face of about 60 px."""
    path = tmp_path / "photos" / "small.png"
    path.parent.mkdir()
    photo = Image.new("RGB", (300, 300), "grey")
    photo.paste(drawn(1).resize((120, 120)), (90, 90))
    photo.save(path)
    return path


def with_least(model: persona.Model, min_face: int) -> persona.Model:
    return persona.load(model.name, workspace=model.workspace, min_face=min_face)


def test_one_declaration_serves_every_command() -> None:
    assert MIN_FACE_PX == output.MIN_FACE_PX == AlignSpec().min_face
    for command in app.registered_commands:
        assert command.callback is not None
        name = command.name or command.callback.__name__
        given = inspect.signature(command.callback, eval_str=False).parameters.get("min_face")
        assert (given is not None) == (name in FINDING), name
        if given is not None:
            assert (given.annotation, given.default) == ("MinFaceOption", MIN_FACE_PX), name


def test_smaller_faces_are_not_looked_for(loaded: persona.Model, small: Path) -> None:
    (face,) = loaded.find(small)
    side = min(face.box[2] - face.box[0], face.box[3] - face.box[1])
    assert 40 < side < 80
    assert loaded.find(small, min_face=200) == [] and len(loaded.find(small)) == 1
    assert with_least(loaded, 200).find(small) == []
    assert len(with_least(loaded, 200).find(small, min_face=20)) == 1
    with pytest.raises(PersonaError, match="no face was found"):
        persona.verify(small, small, model=with_least(loaded, 200))
    for wrong in (11, 1001):
        line = f"smallest face {wrong} px: choose 12 to 1000"
        with pytest.raises(PersonaError, match=line):
            loaded.find(small, min_face=wrong)
        with pytest.raises(PersonaError, match=line):
            with_least(loaded, wrong)
        with pytest.raises(PersonaError, match=line):
            Eyes(loaded.named, loaded.align, wrong)


def test_the_commands_take_it(loaded: persona.Model, small: Path, tmp_path: Path) -> None:
    folder, model = str(small.parent), ("--model", loaded.name)
    least = ("--min-face", "200")

    def faces(*arguments: str) -> Any:
        return persona_here(*arguments, *model, home=tmp_path)

    out = ("--out", str(tmp_path / "a.npz"))
    assert faces("embed", folder, *out)["faces"] == 1
    assert faces("embed", folder, *out, *least)["faces"] == 0
    assert len(faces("group", folder, "--threshold", "0.5")["groups"]) == 1
    assert faces("group", folder, "--threshold", "0.5", *least)["groups"] == []
    verify = ("verify", str(small), str(small), *model)
    assert "no face was found in it" in persona_error_here(*verify, *least, home=tmp_path)

    store = ("--store", str(tmp_path / "gallery.db"), "--threshold", "0.5")
    line = persona_error_here("enroll", "Ada", str(small), *store, *model, *least, home=tmp_path)
    assert line == "no photo of 'Ada' can be used: small.png: no face"
    faces("enroll", "Ada", str(small), *store)
    assert len(faces("recognise", str(small), *store)["photos"][0]["faces"]) == 1
    assert faces("recognise", str(small), *store, *least)["photos"][0]["faces"] == []
    rows = tmp_path / "people.csv"
    rows.write_text(f"name,photo\nBob,{small}\n")
    imported = ("gallery", "import", str(rows), *store, "-w", "0", *model)
    line = persona_error_here(*imported, *least, home=tmp_path)
    assert "not enrolled" in line
    line = persona_error_here("recognise", str(small), *store, "--min-face", "5", home=tmp_path)
    assert line == "smallest face 5 px: choose 12 to 1000"


def test_a_folder_of_groups_is_of_one_smallest_face(
    loaded: persona.Model, small: Path, tmp_path: Path
) -> None:
    out = tmp_path / "groups"
    group_photos(loaded, [small], threshold=0.5, out=out)
    before = json.dumps(sorted(path.name for path in out.iterdir()))
    with pytest.raises(PersonaError, match="or with another --min-face: name another folder"):
        group_photos(with_least(loaded, 40), [small], threshold=0.5, out=out)
    assert json.dumps(sorted(path.name for path in out.iterdir())) == before
    again = group_photos(loaded, [small], threshold=0.5, out=out)
    assert again.faces == 1 and np.isfinite(again.threshold)

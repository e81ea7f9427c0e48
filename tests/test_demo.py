from __future__ import annotations

from pathlib import Path

import pytest

from persona import demo
from persona.data.raw.synthetic import Population, SyntheticAlbum, SyntheticLFW, draw_datasets
from persona.workspace import Workspace


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    place = Workspace.locate(home=tmp_path_factory.mktemp("demo"))
    draw_datasets(place.raw, Population(1, 1, 20, 2, 1, 120, album_identities=1), workers=1)
    return place


def test_the_sheet_shows_as_many_pairs_of_each_kind(
    place: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "SHEET_PAIRS", 2)
    asked = []

    def verify(first: Path, second: Path, **options: object) -> object:
        asked.append((first.parent == second.parent, options["model"]))
        assert first.is_file() and second.is_file()
        return type("Verdict", (), {"similarity": 0.5})

    monkeypatch.setattr("persona.load", lambda name, **_: name)
    monkeypatch.setattr("persona.verify", verify)
    sheet = demo.draw_sheet(place, {"teacher": "T", "student": "S"})
    assert asked == [(same, model) for same in (True, False) for _ in range(2) for model in "TS"]
    for x in (8, 432):  # photos, not an empty sheet
        assert len(sheet.crop((x, 0, x + 100, 100)).getcolors(100_000) or ()) > 50


def test_the_album_has_people_of_its_own(place: Workspace) -> None:
    album = {path.name for path in (place.raw / SyntheticAlbum.folder / "train").iterdir()}
    others = {path.name for path in (place.raw / "Synthetic").glob("*/*") if path.is_dir()}
    assert len(album) == 1 and not album & others
    assert len(list((place.raw / SyntheticLFW.folder).glob("*/*.jpg"))) == 40

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

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


def test_the_teacher_is_trained_whatever_weights_are_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The demo is the same everywhere: it downloads nothing, and no released weights teach."""
    from persona.models.weights import FACENETS, weight_places

    said: list[tuple[str, ...]] = []

    class Commands(demo.UserCommands):
        def _run(self, shown: Any, command: Any, *, beside: bool) -> Any:
            said.append(tuple(map(str, shown)))
            return {"id": f"{'teacher' if 'mobilenet_v3_large' in shown else 'student'}"}

    def refused(*_: Any, **__: Any) -> Path:
        raise AssertionError("the demo downloads weights")

    monkeypatch.setattr(demo, "UserCommands", Commands)
    monkeypatch.setattr(demo, "check_training", lambda _: None)
    monkeypatch.setattr(demo, "size_of", lambda *_: {"parameters": 1, "bytes": 4})
    monkeypatch.setattr(demo, "draw_sheet", lambda *_: Image.new("RGB", (8, 8)))
    monkeypatch.setattr("persona.data.raw.synthetic.draw_datasets", lambda *_, **__: None)
    monkeypatch.setattr("persona.models.weights.download_weights", refused)
    for at_hand in (False, True):
        said.clear()
        if at_hand:
            weights = weight_places(FACENETS["facenet-vggface2"], tmp_path / "models")[0]
            weights.parent.mkdir(parents=True)
            weights.touch()
        rows = demo.run_demo(tmp_path, lambda _: None)
        assert [row["role"] for row in rows][:2] == ["teacher", "distilled student"]
        packed = [words for words in said if words[:2] == ("persona", "shard")]
        assert {words[words.index("--image-size") + 1] for words in packed} == {"64"}
        taught = [words[words.index("--teacher") + 1] for words in said if "accelerate" in words]
        assert sorted(taught) == ["none", "none", "teacher"]


def test_the_album_has_people_of_its_own(place: Workspace) -> None:
    album = {path.name for path in (place.raw / SyntheticAlbum.folder / "train").iterdir()}
    others = {path.name for path in (place.raw / "Synthetic").glob("*/*") if path.is_dir()}
    assert len(album) == 1 and not album & others
    assert len(list((place.raw / SyntheticLFW.folder).glob("*/*.jpg"))) == 40

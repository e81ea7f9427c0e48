"""Photos without identities, and photos that are aligned already."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SIZE_PX, jpeg
from PIL import Image

from persona.cli.data import shard_command
from persona.config import load_config
from persona.data.align import AlignSpec, RawPhoto, aligned, build_aligner
from persona.data.align.aligned import look_at
from persona.data.mixed import MixedSet
from persona.data.pack import Packed, PackOptions, pack_photos
from persona.data.raw import open_dataset
from persona.data.raw.base import Index
from persona.data.shards import NO_CLASS, read_manifest
from persona.data.stream import build_loader
from persona.data.synthetic import draw_identity, draw_photo
from persona.data.triplets import draw_triplets
from persona.errors import PersonaError, SkipPhoto
from persona.evaluation.protocols import check_measure
from persona.landmarks import template
from persona.models.sources import load_network
from persona.training.teacher import open_teacher
from persona.workspace import Workspace

TEMPLATE = PackOptions(align=AlignSpec("template", SIZE_PX), workers=0)


def unlabelled(place: str, tmp_path: Path, **options: Any) -> Index:
    return open_dataset(place, tmp_path, unlabelled=True, **options).index()


def sources(index: Index) -> list[str]:
    return [photo.source for photo in index.photos]


@pytest.fixture
def nested(tmp_path: Path) -> Path:
    """Photos at three depths, and what is none."""
    root = tmp_path / "photos"
    for number, name in enumerate(("a.jpg", "x/b.jpg", "x/y/c.jpg", "x/__MACOSX/d.jpg")):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(jpeg(number))
    (root / "x" / "readme.txt").write_text("no photo")
    return root


def pack(place: str, tmp_path: Path, options: PackOptions = TEMPLATE) -> Packed:
    dataset = open_dataset(place, tmp_path, unlabelled=True)
    return pack_photos(dataset, tmp_path / "shards" / "photos", options)


def test_folders_of_any_depth(nested: Path, tmp_path: Path) -> None:
    index = unlabelled(f"folders:{nested}", tmp_path)
    assert sources(index) == ["a.jpg", "x/b.jpg", "x/y/c.jpg"]
    assert index.classes == ()
    assert index.identities == 0


def test_a_link_to_a_folder_above_ends(nested: Path, tmp_path: Path) -> None:
    (nested / "x" / "up").symlink_to(nested)
    assert len(unlabelled(f"folders:{nested}", tmp_path).photos) == 3


def test_tars_without_labels(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "photos.tar", "w") as tar:
        for name in ("0001.jpg", "0002.jpg", "0002.txt"):
            entry = tarfile.TarInfo(name)
            entry.size = len(data := jpeg(1) if name.endswith("jpg") else b"a person smiles")
            tar.addfile(entry, io.BytesIO(data))
    place = f"tars:{tmp_path / 'photos.tar'}"
    assert len(unlabelled(place, tmp_path).photos) == 2
    with pytest.raises(PersonaError, match="--unlabelled packs photos without identities"):
        open_dataset(place, tmp_path).index()


def test_parquet_without_labels(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({"image": [jpeg(1), jpeg(2)]}), tmp_path / "photos.parquet")
    place = f"parquet:{tmp_path / 'photos.parquet'}"
    index = unlabelled(place, tmp_path)
    assert len(index.photos) == 2
    dataset = open_dataset(place, tmp_path, unlabelled=True)
    assert dataset.read(index.photos[1]) == jpeg(2)
    with pytest.raises(PersonaError, match="--unlabelled"):
        open_dataset(place, tmp_path).index()


@pytest.mark.parametrize("header", [True, False])
def test_a_list_of_paths(nested: Path, tmp_path: Path, header: bool) -> None:
    lines = ["photos/a.jpg", str(nested / "x" / "b.jpg"), "photos/gone.jpg"]
    (tmp_path / "mine.csv").write_text("\n".join([*(["photo"] if header else []), *lines]))
    dataset = open_dataset(f"list:{tmp_path / 'mine.csv'}", tmp_path)
    index = dataset.index()
    assert sources(index) == sorted(lines[:2])
    assert index.missing == ("photos/gone.jpg",)
    assert index.classes == ()
    assert [dataset.read(photo) for photo in index.photos] == [jpeg(1), jpeg(0)]
    assert dataset.set_name == "mine"


def test_a_list_with_identities(nested: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text(
        'photo,identity\nphotos/a.jpg,"Blair, Tony"\nphotos/x/b.jpg,Ann\nphotos/x/y/c.jpg,-1\n'
    )
    place = f"list:{tmp_path / 'mine.csv'}"
    index = open_dataset(place, tmp_path).index()
    assert index.classes == ("Ann", "Blair, Tony")
    assert index.nobody == ("photos/x/y/c.jpg",)
    assert unlabelled(place, tmp_path).classes == ()


@pytest.mark.parametrize("separator", [";", "\t"])
def test_a_list_as_a_spreadsheet_writes_it(nested: Path, tmp_path: Path, separator: str) -> None:
    text = "photo,identity\nphotos/a.jpg,Tony\nphotos/x/b.jpg,Zoë\n".replace(",", separator)
    (tmp_path / "mine.csv").write_text(text, encoding="utf-8-sig")
    place = f"list:{tmp_path / 'mine.csv'}"
    assert open_dataset(place, tmp_path).index().classes == ("Tony", "Zoë")


def test_a_list_says_what_lies_where_a_photo_should(nested: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "link.jpg").symlink_to("nowhere.jpg")
    listed = ["photos/a.jpg", "photos", "/dev/null", "pipe.jpg", "link.jpg", "gone.jpg"]
    (tmp_path / "mine.csv").write_text("\n".join(["photo", *listed]))
    packed = pack(f"list:{tmp_path / 'mine.csv'}", tmp_path)
    assert {one.source: one.reason for one in packed.manifest.skipped} == {
        "photos": "listed, but a folder",
        "/dev/null": "listed, but a device",
        "pipe.jpg": "listed, but a pipe",
        "link.jpg": "listed, but a link to nothing",
        "gone.jpg": "listed, not on disk",
    }
    for path, kind in ((nested, "a folder"), (Path("/dev/null"), "a device")):
        with pytest.raises(PersonaError, match=f"is {kind}: expected a .csv or .parquet"):
            open_dataset(f"list:{path}", tmp_path)


def test_paths_of_a_text_may_hold_commas(nested: Path, tmp_path: Path) -> None:
    (tmp_path / "photos/a.jpg").rename(tmp_path / "photos/a,b.jpg")
    (tmp_path / "mine.txt").write_text("photos/a,b.jpg\nphotos/x/b.jpg\n")
    index = open_dataset(f"list:{tmp_path / 'mine.txt'}", tmp_path).index()
    assert {photo.source for photo in index.photos} == {"photos/a,b.jpg", "photos/x/b.jpg"}


def test_a_list_as_parquet(nested: Path, tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    table = pa.table({"path": ["photos/a.jpg", "photos/x/b.jpg"], "label": [3, 5]})
    pq.write_table(table, tmp_path / "mine.parquet")
    index = open_dataset(f"list:{tmp_path / 'mine.parquet'}", tmp_path).index()
    assert index.classes == ("0000003", "0000005")
    nobody = table.set_column(1, "label", pa.array([3, None]))
    pq.write_table(nobody, tmp_path / "mine.parquet")
    with pytest.raises(PersonaError, match="row 1 names no identity: expected one, or -1"):
        open_dataset(f"list:{tmp_path / 'mine.parquet'}", tmp_path).index()
    pq.write_table(table.drop_columns("label"), tmp_path / "mine.parquet")
    assert open_dataset(f"list:{tmp_path / 'mine.parquet'}", tmp_path).index().classes == ()


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("name,age\nx,3\n", "expected one called photo"),
        ("photo,identity\na.jpg\n", "line 2: 1 fields, its header has 2"),
        ("photo,identity\n,Ann\n", "line 2 names no photo"),
        ("photo,identity\n", "has no rows"),
        ("photo,identity,photo\na.jpg,Ann,b.jpg\n", "has the column photo twice"),
        ('photo,identity\n"photos/a\n.jpg",Ann\n', "line 2: a quoted field goes on in the next"),
        (
            "photo\nnowhere.jpg\n",
            r"none of its photos is there, the first of 1 is nowhere.jpg \(not on disk\)",
        ),
        ("photo\nphotos\n", r"the first of 1 is photos \(but a folder\)"),
        ("photo,identity\nphotos/a.jpg,\n", "line 2 has the label ''"),
    ],
)
def test_lists_that_are_none(nested: Path, tmp_path: Path, text: str, wrong: str) -> None:
    (tmp_path / "mine.csv").write_text(text)
    with pytest.raises(PersonaError, match=wrong):
        open_dataset(f"list:{tmp_path / 'mine.csv'}", tmp_path).index()


def test_the_set_says_that_it_has_no_identities(nested: Path, tmp_path: Path) -> None:
    packed = pack(f"folders:{nested}", tmp_path)
    manifest = read_manifest(packed.folder)
    assert (manifest.identities, manifest.classes, manifest.samples) == (0, (), 3)
    with tarfile.open(packed.folder / "000000.tar") as tar:
        texts = [tar.extractfile(m) for m in tar if m.name.endswith(".json")]
        metas = [json.loads(text.read()) for text in texts if text]
    assert {(meta["identity"], meta["class"]) for meta in metas} == {(None, NO_CLASS)}
    (batch,) = build_loader(packed.faces, batch_size=3, training=True, seed=0, epoch=0, workers=0)
    assert batch.labels.tolist() == [NO_CLASS] * 3
    assert not batch.landmarks.isnan().any()


def test_packing_it_again_with_identities_is_another_set(tmp_path: Path) -> None:
    for number in range(4):
        path = tmp_path / "people" / f"p{number % 2}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(number))
    place = f"folders:{tmp_path / 'people'}"
    packed = pack(place, tmp_path)
    with pytest.raises(PersonaError, match="differs in identities"):
        pack_photos(open_dataset(place, tmp_path), packed.folder, TEMPLATE)


def test_what_wants_identities_refuses_by_name(nested: Path, tmp_path: Path) -> None:
    packed = pack(f"folders:{nested}", tmp_path)
    place = Workspace.locate(shards=tmp_path / "shards", models=tmp_path / "models")
    config = load_config(None, {"teacher": "mobilenet_v3_small"})
    with pytest.raises(PersonaError, match="loss hard_labels wants identities, and set photos"):
        open_teacher(config, place, MixedSet.of(packed.faces))
    named = load_network("mobilenet_v3_small", tmp_path)
    for measure in ("class", "identification"):
        with pytest.raises(PersonaError, match=f"measure {measure} wants identities"):
            check_measure(measure, named, packed.manifest)
    with pytest.raises(PersonaError, match="photos have none"):
        draw_triplets(unlabelled(f"folders:{nested}", tmp_path), 1, 0)


def test_embedding_losses_take_it(nested: Path, tmp_path: Path) -> None:
    packed = pack(f"folders:{nested}", tmp_path)
    place = Workspace.locate(shards=tmp_path / "shards", models=tmp_path / "models")
    config = load_config(Path("configs/embedding.yaml"), {"teacher": "mobilenet_v3_small"})
    side = open_teacher(config, place, MixedSet.of(packed.faces))
    assert side.classes == ()


def test_aligned_photos_are_kept_as_they_are() -> None:
    align = build_aligner(AlignSpec("template", SIZE_PX))
    (crop,) = align([RawPhoto(lambda: jpeg(7))])
    assert not isinstance(crop, SkipPhoto)
    assert crop.jpeg == jpeg(7)
    assert crop.landmarks_62 is not None
    assert np.array_equal(crop.landmarks_62[:5], template(SIZE_PX))
    assert np.array_equal(crop.landmarks_62[5], (1, 1))


def test_aligned_photos_of_another_size_are_scaled() -> None:
    align = build_aligner(AlignSpec("template", SIZE_PX))
    (crop,) = align([RawPhoto(lambda: jpeg(7, 2 * SIZE_PX))])
    assert not isinstance(crop, SkipPhoto)
    assert Image.open(io.BytesIO(crop.jpeg)).size == (SIZE_PX, SIZE_PX)
    assert crop.landmarks_62 is not None
    assert np.array_equal(crop.landmarks_62[:5], template(SIZE_PX))
    assert np.array_equal(crop.landmarks_62[5], (0.5, 0.5))


def test_an_aligned_photo_is_square() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (96, 112)).save(buffer, "JPEG")
    (found,) = build_aligner(AlignSpec("template", 112))([RawPhoto(buffer.getvalue)])
    assert str(found) == "not aligned: 96 x 112 px, an aligned crop is square"


def test_whole_photos_are_turned_for_a_network_of_aligned_ones() -> None:
    assert AlignSpec("template", 112).of_photos == AlignSpec("landmarks", 112)
    assert AlignSpec("mtcnn", 160).of_photos == AlignSpec("mtcnn", 160)


def drawn(number: int) -> bytes:
    buffer = io.BytesIO()
    draw_photo(draw_identity(0, number), number, 160).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def test_a_look_tells_aligned_photos_from_others() -> None:
    photos = [RawPhoto(lambda number=number: drawn(number)) for number in range(6)]  # type: ignore[misc]
    turned = [
        RawPhoto(lambda crop=crop: crop.jpeg)  # type: ignore[misc]
        for crop in build_aligner(AlignSpec("landmarks", 112), "cpu")(photos)
        if not isinstance(crop, SkipPhoto)
    ]
    assert len(turned) >= 4
    there, not_there = look_at(turned, "cpu"), look_at(photos, "cpu")
    assert there.faces >= 4
    assert there.aligned
    assert not_there.distance > there.distance
    assert not look_at([RawPhoto(lambda: b"no photo")], "cpu").faces


def test_a_look_holds_a_group_of_photos_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = []

    def detect(images: list[np.ndarray]) -> list[None]:
        groups.append(len(images))
        return [None] * len(images)

    monkeypatch.setattr("persona.data.align.detect.Mtcnn", lambda _: detect)
    monkeypatch.setattr(aligned, "GROUP_PIXELS", 2 * SIZE_PX**2)
    photos = [RawPhoto(lambda: jpeg(1)), RawPhoto(lambda: b"no photo")] * 5
    assert not look_at(photos, "cpu").faces
    assert groups == [2, 2, 1]


def test_photos_that_do_not_look_aligned_are_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wide").mkdir()
    for number in range(2):
        small = Image.open(io.BytesIO(drawn(number))).resize((80, 80))
        page = Image.new("RGB", (240, 240), (90, 120, 90))
        page.paste(small, (150, 150))
        page.save(tmp_path / "wide" / f"{number}.jpg", quality=95)
    shard_command(
        f"folders:{tmp_path / 'wide'}", align="template", unlabelled=True, device="cpu", workers=1
    )
    told = capsys.readouterr()
    assert "do not look aligned" in told.err
    assert "2 photos without identities" in told.out
    assert read_manifest(tmp_path / "shards" / "wide").align.image_size == 112


def test_crops_that_are_detected_again_are_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    photos = [RawPhoto(lambda number=number: drawn(number)) for number in range(6)]  # type: ignore[misc]
    (tmp_path / "crops").mkdir()
    for number, crop in enumerate(build_aligner(AlignSpec("landmarks", 112), "cpu")(photos)):
        if not isinstance(crop, SkipPhoto):
            (tmp_path / "crops" / f"{number}.jpg").write_bytes(crop.jpeg)
    place = f"folders:{tmp_path / 'crops'}"
    options: dict[str, Any] = {"unlabelled": True, "device": "cpu", "workers": 1, "json": True}
    shard_command(place, align="landmarks", image_size=112, out=tmp_path / "a", **options)
    assert "look aligned already" in capsys.readouterr().err
    (tmp_path / "crops" / "9.jpg").write_bytes(drawn(9))  # of 160 px
    shard_command(place, align="landmarks", image_size=112, out=tmp_path / "b", **options)
    assert "aligned" not in capsys.readouterr().err

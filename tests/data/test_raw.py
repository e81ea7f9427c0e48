from __future__ import annotations

import os
import pickle
import random
import resource
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import NO_ALIGN, jpeg, write_lfw, write_vggface2

from persona.data.pack import pack_photos, packing_order
from persona.data.raw import DATASETS, Photo, RawDataset, open_dataset
from persona.data.raw.base import NOBODY, PhotoList, identity_name
from persona.data.raw.lfw import parse_pairs
from persona.errors import PersonaError


class Passports(RawDataset):
    """A user's own dataset: what the documentation shows."""

    name = "passports"
    folder = "Passports"

    def iter_photos(self) -> Iterator[Photo]:
        for path in self.root.glob("*/*.jpg"):
            yield Photo(identity=path.parent.name, source=self.relative(path))


def test_a_new_dataset_is_a_few_lines_and_packs(tmp_path: Path) -> None:
    for number, name in enumerate(("ann", "bob")):
        (tmp_path / "raw" / "passports" / name).mkdir(parents=True)
        (tmp_path / "raw" / "passports" / name / "1.jpg").write_bytes(jpeg(number))
    packed = pack_photos(open_dataset("passports", tmp_path / "raw"), tmp_path / "out", NO_ALIGN)
    assert packed.manifest.samples == 2
    assert packed.manifest.classes == ("ann", "bob")
    assert "passports" in DATASETS


def test_class_indices_come_from_the_list_not_from_the_disk(tmp_path: Path) -> None:
    root = write_vggface2(tmp_path, identities=4)
    for gone in ("n000002", "n000004"):
        for photo in (root / "train" / gone).iterdir():
            photo.unlink()
        (root / "train" / gone).rmdir()
    index = open_dataset("vggface2", tmp_path).index()
    assert index.classes == ("n000002", "n000003", "n000004", "n000005")
    assert {photo.identity for photo in index.photos} == {"n000003", "n000005"}
    assert index.missing == ()


def test_listed_photos_that_are_not_there_are_named(tmp_path: Path) -> None:
    root = write_vggface2(tmp_path)
    (root / "train/n000003/0002_01.jpg").unlink()
    index = open_dataset("vggface2", tmp_path).index()
    assert index.missing == ("train/n000003/0002_01.jpg",)
    assert len(index.photos) == 29


def test_a_list_as_editors_leave_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With a byte order mark, and a line twice; a photo that it does not name is told of."""
    root = write_vggface2(tmp_path)
    before = open_dataset("vggface2", tmp_path).index()
    lines = (root / "train_list.txt").read_text().splitlines()
    (root / "train_list.txt").write_text("\ufeff" + "\n".join([*lines, lines[0]]) + "\n")
    assert open_dataset("vggface2", tmp_path).index() == before
    assert not caplog.messages
    (root / "train/n000003/0009_01.jpg").write_bytes(jpeg(1))
    assert open_dataset("vggface2", tmp_path).index() == before
    assert caplog.messages == [f"1 photos below {root}/train are not in train_list.txt: left out"]


def test_names_that_are_not_utf8_are_refused(tmp_path: Path) -> None:
    root = write_lfw(tmp_path)
    (root / "Person_A" / os.fsdecode(b"\xff.jpg")).write_bytes(jpeg(1))
    with pytest.raises(PersonaError, match=r"has a name that is not UTF-8: rename it"):
        open_dataset("lfw", tmp_path).index()


def test_a_pipe_is_no_photo(tmp_path: Path) -> None:
    """Reading it would wait for ever."""
    root = write_lfw(tmp_path)
    os.mkfifo(root / "Person_A" / "pipe.jpg")
    packed = pack_photos(open_dataset("lfw", tmp_path), tmp_path / "out", NO_ALIGN)
    assert [(s.source, s.reason) for s in packed.manifest.skipped] == [
        ("Person_A/pipe.jpg", "unreadable: no regular file")
    ]


def test_folders_are_found_in_any_letter_case_and_by_themselves(tmp_path: Path) -> None:
    root = write_vggface2(tmp_path)
    root.rename(tmp_path / "vggFACE2")
    assert open_dataset("VGGFace2", tmp_path).root.name == "vggFACE2"
    assert open_dataset("vggface2", tmp_path / "vggFACE2").root.name == "vggFACE2"


def test_lfw_may_lie_one_folder_deeper(tmp_path: Path) -> None:
    flat = write_lfw(tmp_path / "flat")
    deep = tmp_path / "deep" / "LFW"
    deep.mkdir(parents=True)
    flat.rename(deep / "lfw-deepfunneled")
    (deep / "lfw-deepfunneled" / "pairs.txt").rename(deep / "pairs.txt")
    dataset = open_dataset("lfw", tmp_path / "deep")
    index = dataset.index()
    sources = {photo.source for photo in index.photos}
    pairs = dataset.pairs()
    assert pairs is not None
    assert len(index.photos) == 24
    assert {pair.a for pair in pairs} | {pair.b for pair in pairs} <= sources


LITTER = (
    "__MACOSX/._Person_A/._1.jpg",
    "__MACOSX/LFW/Person_A/Person_A_0001.jpg",
    "@eaDir/Person_A.jpg/SYNOPHOTO_THUMB_M.jpg",
    "$RECYCLE.BIN/x/1.jpg",
    ".thumbnails/x/1.jpg",
    ".DS_Store",
    "Thumbs.db",
    "._pairs.txt",
)


def add_litter(root: Path) -> None:
    for name in LITTER:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"litter")


@pytest.mark.parametrize("nested", ["", "lfw", "lfw-deepfunneled/lfw-deepfunneled", "a/b/c"])
@pytest.mark.parametrize("pairs", ["first", "last"])
def test_lfw_among_litter_and_as_archives_nest_it(tmp_path: Path, nested: str, pairs: str) -> None:
    flat = write_lfw(tmp_path / "flat")
    wanted = [(p.identity, p.source) for p in open_dataset("lfw", flat.parent).index().photos]
    root = tmp_path / "raw" / "LFW"
    (root / nested).parent.mkdir(parents=True, exist_ok=True)
    flat.rename(root / nested)
    if pairs == "first" and nested:
        (root / nested / "pairs.txt").rename(root / "pairs.txt")
    for folder in {root, root / nested, root / nested / "Person_A", root / nested / ".."}:
        add_litter(folder)
    dataset = open_dataset("lfw", tmp_path / "raw")
    below = f"{nested}/" if nested else ""
    found = [(p.identity, p.source.removeprefix(below)) for p in dataset.index().photos]
    assert found == wanted
    named = dataset.pairs()
    assert named is not None
    assert {pair.a.removeprefix(below) for pair in named} <= {source for _, source in wanted}


@pytest.mark.parametrize("name", ["lfw-deepfunneled", "lfw_funneled", "lfw-dataset"])
def test_lfw_by_the_names_of_its_archives(tmp_path: Path, name: str) -> None:
    write_lfw(tmp_path).rename(tmp_path / "inner")
    (tmp_path / name).mkdir()
    (tmp_path / "inner").rename(tmp_path / name / name)
    assert len(open_dataset("lfw", tmp_path).index().photos) == 24


@pytest.mark.parametrize("nested", ["", "AgeDB", "a/b"])
def test_agedb_among_litter_and_as_archives_nest_it(tmp_path: Path, nested: str) -> None:
    root = tmp_path / "AgeDB"
    (root / nested).mkdir(parents=True)
    for folder in {root, root / nested}:
        add_litter(folder)
    (root / nested / "0_Ann_35_f.jpg").write_bytes(jpeg(1))
    (photo,) = open_dataset("agedb", tmp_path).index().photos
    assert (photo.identity, photo.source) == ("Ann", f"{nested}/0_Ann_35_f.jpg".lstrip("/"))


@pytest.mark.parametrize("folder", ["VGG-Face2", "vgg_face2", "VGGFace 2"])
@pytest.mark.parametrize("lists", ["", "data", "meta"])
@pytest.mark.parametrize("photos", ["", "data"])
def test_vggface2_as_it_was_handed_out(
    tmp_path: Path, folder: str, lists: str, photos: str
) -> None:
    root = write_vggface2(tmp_path)
    wanted = [(p.identity, p.source) for p in open_dataset("vggface2", tmp_path).index().photos]
    for place in (lists, photos, "meta/bb_landmark"):
        (root / place).mkdir(parents=True, exist_ok=True)
    (root / "train_list.txt").rename(root / lists / "train_list.txt")
    (root / "train").rename(root / photos / "train")
    (root / "meta/bb_landmark/loose_bb_train.csv").write_text("n000002/0001_01,1,2,10,20\n")
    root.rename(tmp_path / "inner")
    (tmp_path / folder).mkdir()
    for littered in (tmp_path / folder, tmp_path / "inner"):
        add_litter(littered)
    (tmp_path / "inner").rename(tmp_path / folder / "inner")
    dataset = open_dataset("vggface2", tmp_path)
    below = f"inner/{photos}/".replace("//", "/")
    found = [(p.identity, p.source.removeprefix(below)) for p in dataset.index().photos]
    assert found == wanted
    boxes = dataset.boxes()
    assert boxes is not None and set(boxes) == {f"{below}train/n000002/0001_01.jpg"}


def test_what_is_there_instead_is_named(tmp_path: Path) -> None:
    (tmp_path / "photos" / "ann").mkdir(parents=True)
    with pytest.raises(PersonaError, match=r"lfw is not at .*/LFW: .* holds photos/; expected"):
        open_dataset("lfw", tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    for name, told in (
        ("nowhere", "does not exist"),
        ("file", "is a file and no folder"),
        ("empty", "is empty"),
    ):
        with pytest.raises(PersonaError) as refusal:
            open_dataset("lfw", tmp_path / name)
        said = f"lfw is not at {tmp_path / name}/LFW: {tmp_path / name} {told}; expected <Name>/"
        assert str(refusal.value).startswith(said)
    with pytest.raises(PersonaError, match=r"has no photo below .*/file, which is a file and no"):
        open_dataset(f"folders:{tmp_path / 'file'}", tmp_path).index()
    write_lfw(tmp_path / "LFW" / "one")
    write_lfw(tmp_path / "LFW" / "two")
    (tmp_path / "LFW" / "pairs.csv").write_text("")
    with pytest.raises(PersonaError, match=r"/LFW, which holds one/, pairs.csv, two/: expected"):
        open_dataset("lfw", tmp_path).index()
    root = write_vggface2(tmp_path)
    (root / "train_list.txt").rename(root / "train_list (1).txt")
    with pytest.raises(PersonaError, match=r"train_list.txt is missing, .*train_list \(1\).txt"):
        open_dataset("vggface2", tmp_path).index()


def test_photos_in_nobodys_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "flat").mkdir()
    for number in range(3):
        (tmp_path / "flat" / f"{number}.jpg").write_bytes(jpeg(number))
    dataset = open_dataset(f"folders:{tmp_path / 'flat'}", tmp_path)
    with pytest.raises(PersonaError, match=r"flat holds 3 photos, but none in a folder of its p"):
        dataset.index()
    (tmp_path / "flat" / "ann").mkdir()
    (tmp_path / "flat" / "2.jpg").rename(tmp_path / "flat" / "ann" / "2.jpg")
    assert len(dataset.index().photos) == 1
    assert caplog.messages == [
        f"2 photos directly in {tmp_path}/flat are in no identity's folder: left out"
    ]


def place(root: Path, *names: str) -> None:
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(jpeg(number))


def test_photos_in_folders_of_a_persons_folder_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As programs export them, by year. Folders without photos are not worth a word."""
    root = tmp_path / "photos"
    place(root, "Ada/1.jpg", "Ada/2019/2.jpg", "Ada/.thumbs/1.jpg", "Bob/2020/May/3.jpg")
    (root / "Ada" / "notes").mkdir()
    index = open_dataset(f"folders:{root}", tmp_path).index()
    assert [photo.source for photo in index.photos] == ["Ada/1.jpg"]
    assert caplog.messages == [
        f"2 folders below {root} are in a person's folder, and their photos left out: Ada/2019, "
        "Bob/2020; move these photos up into the person's folder"
    ]


def test_vggface2_photos_that_lie_too_deep_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = write_vggface2(tmp_path)
    place(root / "train", "n000003/more/1.jpg")
    open_dataset("vggface2", tmp_path).index()
    (message,) = caplog.messages
    assert message.startswith(f"1 folders below {root}/train are in a person's folder, and their p")


def test_a_folder_that_is_nested_says_who_is_taken_for_a_person(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It may be an archive's folder, or one person with a folder for each year."""
    root = tmp_path / "photos"
    place(root, "Ada/2019/1.jpg", "Ada/2020/2.jpg")
    dataset = open_dataset(f"folders:{root}", tmp_path)
    assert dataset.index().classes == ("2019", "2020")
    assert caplog.messages == [
        f"{root} has its photos deeper: each folder in {root}/Ada is taken for a person"
    ]
    place(root, "Bob/2020/3.jpg")
    message = rf"{root} holds photos, as in Ada/2019, but none in a folder of its person: expected"
    with pytest.raises(PersonaError, match=message):
        dataset.index()


def test_agedb_identity_is_the_name_field(tmp_path: Path) -> None:
    (tmp_path / "AgeDB").mkdir()
    for name in ("0_MariaCallas_35_f.jpg", "12_Jean_Paul_Sartre_50_m.jpg"):
        (tmp_path / "AgeDB" / name).write_bytes(jpeg(1))
    index = open_dataset("agedb", tmp_path).index()
    assert index.classes == ("Jean_Paul_Sartre", "MariaCallas")
    # `²` is a digit to Python's isdigit, and no number to its int.
    for name in ("holiday.jpg", "1_X_3²_f.jpg", "¹_X_3_f.jpg", f"1_X_{'9' * 99}_f.jpg"):
        (tmp_path / "AgeDB" / name).write_bytes(jpeg(1))
        with pytest.raises(PersonaError, match=r"\.jpg: expected <id>_<Name>_<age>_<gender>"):
            open_dataset("agedb", tmp_path).index()
        (tmp_path / "AgeDB" / name).unlink()


def test_vggface2_boxes_are_corners(tmp_path: Path) -> None:
    root = write_vggface2(tmp_path)
    with pytest.raises(PersonaError, match=r"no face boxes at .*loose_bb_train\.csv"):
        open_dataset("vggface2", tmp_path).boxes()
    (root / "bb_landmark").mkdir()
    path = root / "bb_landmark" / "loose_bb_train.csv"
    path.write_text('NAME_ID,X,Y,W,H\n"n000002/0001_01",1,2,10,20\n')
    boxes = open_dataset("vggface2", tmp_path).boxes()
    assert boxes == {"train/n000002/0001_01.jpg": (1.0, 2.0, 11.0, 22.0)}
    for number in ("ten", "nan", "inf", "1e300"):
        path.write_text(f"NAME_ID,X,Y,W,H\nn000002/0001_01,1,2,{number},20\n")
        with pytest.raises(PersonaError, match="line 2: expected NAME_ID,X,Y,W,H"):
            open_dataset("vggface2", tmp_path).boxes()
    row = "n000002/0001_01,1,2,10,20\n"
    path.write_text("NAME_ID,X,Y,W,H\n" + row + row)
    with pytest.raises(PersonaError, match="line 3: n000002/0001_01 has a box already"):
        open_dataset("vggface2", tmp_path).boxes()
    for text in ("", "NAME_ID,X,Y,W,H\n"):
        path.write_text(text)
        with pytest.raises(PersonaError, match=r"loose_bb_train\.csv has no box: restore it"):
            open_dataset("vggface2", tmp_path).boxes()
    path.write_text('NAME_ID,X,Y,W,H\n"' + ("x" * 60_000 + "\n") * 3)
    with pytest.raises(PersonaError, match="line 4: field larger than"):
        open_dataset("vggface2", tmp_path).boxes()


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda root: (root / "train_list.txt").unlink(), r"not complete: .*train_list\.txt is"),
        (lambda root: (root / "train_list.txt").write_text(""), "is empty"),
        (
            lambda root: (root / "train_list.txt").write_text("n000002/0001_01.jpg\n../x/y.jpg\n"),
            "line 2: expected <identity>/<photo>.jpg",
        ),
        (lambda root: (root / "train").rename(root / "elsewhere"), r"not complete: .*train is"),
        (
            lambda root: (root / "train_list.txt").write_text("n9/1.jpg\n"),
            r"6 identity folders are not in train_list\.txt, the first is 'n000002'",
        ),
        (
            lambda root: (root / "train_list.txt").write_bytes(b"n9/\xff.jpg\n"),
            r"train_list\.txt is not in UTF-8: save it",
        ),
        (lambda root: [f.unlink() for f in root.glob("train/*/*.jpg")], "has no photo below"),
    ],
)
def test_half_present_vggface2(tmp_path: Path, break_it, message: str) -> None:
    break_it(write_vggface2(tmp_path))
    with pytest.raises(PersonaError, match=message):
        open_dataset("vggface2", tmp_path).index()


def test_digits_beyond_the_largest_label_are_a_name() -> None:
    """A number of a member of staff, or a date."""
    texts = ["7", "00000007", "9999999", "10000000", "20240115", "123456789", "-1"]
    names = ["0000007", "0000007", "9999999", "10000000", "20240115", "123456789", NOBODY]
    assert [identity_name(text, "list") for text in texts] == names
    for number in (20240115, "-5"):
        with pytest.raises(PersonaError, match=f"list has the label '{number}': expected a name"):
            identity_name(number, "list")


def test_one_person_in_two_forms_of_unicode_is_one(tmp_path: Path) -> None:
    """A Mac's archive has `é` as two characters, in the folder and in a list of classes."""
    root = tmp_path / "photos"
    place(root, "Jos\u00e9/1.jpg", "Jose\u0301/1.jpg", "Jose\u0301/2.jpg")
    index = open_dataset(f"folders:{root}", tmp_path).index()
    assert index.classes == ("Jos\u00e9",)
    assert {photo.identity for photo in index.photos} == {"Jos\u00e9"}
    assert len({photo.source for photo in index.photos}) == 3  # as they are on the disk
    for photo in index.photos:
        assert (root / photo.source).is_file()
    (tmp_path / "list.csv").write_text(
        "photo,identity\n" + "".join(f"photos/{p.source},{p.source[:-6]}\n" for p in index.photos)
    )
    assert open_dataset(f"list:{tmp_path / 'list.csv'}", tmp_path).index().classes == ("Jos\u00e9",)


def test_a_class_list_in_another_form_of_unicode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place(tmp_path / "photos", "Jos\u00e9/1.jpg")
    dataset = open_dataset(f"folders:{tmp_path / 'photos'}", tmp_path)
    monkeypatch.setattr(dataset, "class_list", lambda: ["Jose\u0301", "Zoe"])
    assert dataset.index().classes == ("Jos\u00e9", "Zoe")


def test_missing_dataset_says_what_is_expected_where(tmp_path: Path) -> None:
    with pytest.raises(PersonaError) as error:
        open_dataset("lfw", tmp_path)
    for part in (str(tmp_path / "LFW"), "pairs.txt", "--raw DIR", "free"):
        assert part in str(error.value)


def test_unknown_dataset_and_split_name_the_known(tmp_path: Path) -> None:
    with pytest.raises(PersonaError, match="did you mean 'vggface2'"):
        open_dataset("vggface", tmp_path)
    write_vggface2(tmp_path)
    with pytest.raises(PersonaError, match=r"unknown split 'val'.*known: test, train"):
        open_dataset("vggface2", tmp_path, "val")


def official_pairs(path: Path, folds: int, per_kind: int, *, seed: int = 0) -> None:
    """A pairs file in the official layout."""
    rng = random.Random(seed)
    lines = [f"{folds}\t{per_kind}"]
    for _ in range(folds):
        two = [rng.sample(range(1, 10), 2) for _ in range(per_kind)]
        lines += [f"A_B\t{first}\t{second}" for first, second in two]
        lines += [f"A_B\t{rng.randint(1, 9)}\tC\t{rng.randint(1, 9)}" for _ in range(per_kind)]
    path.write_text("\n".join(lines) + "\n")


def test_pairs_of_the_official_header(tmp_path: Path) -> None:
    official_pairs(tmp_path / "pairs.txt", 10, 300)
    pairs = parse_pairs(tmp_path / "pairs.txt")
    assert len(pairs) == 6000
    assert sum(pair.same for pair in pairs) == 3000
    assert [pair.fold for pair in pairs[:600]] == [0] * 600
    assert pairs[-1].fold == 9
    assert pairs[0].a.startswith("A_B/A_B_000")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda lines: ["ten\t300", *lines[1:]], "line 1: expected"),
        (lambda lines: [], "line 1: expected"),
        (lambda lines: lines[:-1], "promises 12 pairs .* it has 11"),
        (lambda lines: [*lines[:2], "A_B\t1", *lines[3:]], "line 3: expected 'name i j'"),
        (lambda lines: [*lines[:4], "A_B\t1\t2", *lines[5:]], "line 5: expected 'name i name j'"),
        (lambda lines: [*lines[:2], "A_B\tx\t2", *lines[3:]], "line 3: .* no name and number"),
        (lambda lines: [*lines[:2], "../A\t1\t2", *lines[3:]], "line 3: .* no name and number"),
        (lambda lines: [*lines[:2], "A\t1\t²", *lines[3:]], "line 3: .* no name and number"),
        (lambda lines: [*lines[:2], f"A\t1\t{'9' * 5000}", *lines[3:]], "line 3: .* no name"),
        (lambda lines: ["2\t³", *lines[1:]], "line 1: expected"),
        (lambda lines: [*lines[:2], "A\t1\t1", *lines[3:]], "line 3: a photo with itself"),
        (lambda lines: [*lines[:4], "A\t1\tA\t2", *lines[5:]], "line 5: .* as impostors"),
    ],
)
def test_malformed_pairs_name_the_line(tmp_path: Path, edit, message: str) -> None:
    path = tmp_path / "pairs.txt"
    official_pairs(path, 2, 3)
    path.write_text("\n".join(edit(path.read_text().splitlines())))
    with pytest.raises(PersonaError, match=message):
        parse_pairs(path)


def test_a_list_of_photos_is_sorted_in_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the runs that are sorted, merged and read, the list is the sorted tuple."""
    photos = [
        Photo(f"n{n % 7}/é\n{n:03d}.jpg", f'n"{n % 7}', 1 << 40 | n, (("age", n), ("pose", "left")))
        for n in range(60)
    ]
    photos += [Photo("n3/twice.jpg", "n3", offset) for offset in (9, 8)]
    random.Random(0).shuffle(photos)
    for name, value in (("SORTED_AT_ONCE", 4), ("MERGED_AT_ONCE", 3), ("READ_AT_ONCE", 5)):
        monkeypatch.setattr(f"persona.data.raw.base.{name}", value)
    for given in (photos, sorted(photos), photos[:1], []):
        held, wanted = PhotoList.gather(iter(given)), sorted(given)
        for found in (list(held), [held[place] for place in range(len(held))], held[:]):
            assert [(p, p.offset, p.attributes) for p in found] == [
                (p, p.offset, p.attributes) for p in wanted
            ]
    assert PhotoList.gather(photos) == PhotoList.gather(sorted(photos))
    assert PhotoList.gather(photos) != PhotoList.gather(photos[1:])


def test_a_list_of_photos_leaves_no_file_and_lets_go_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    held = PhotoList.gather([Photo("a/1.jpg", "a"), Photo("a/0.jpg", "a")])
    assert not list(tmp_path.iterdir())
    assert len(os.listdir("/proc/self/fd")) == before + 1  # noqa: PTH208
    assert held[-1].source == "a/1.jpg"
    with pytest.raises(TypeError, match="stays in its process"):
        pickle.dumps(held)
    del held
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_an_index_holds_few_bytes_of_a_photo(tmp_path: Path) -> None:
    """And packing's order and the draw of triplets few more; Python's objects were 220."""

    class Many(RawDataset):
        def iter_photos(self) -> Iterator[Photo]:
            for n in range(30_000):
                yield Photo(f"n{n // 100:06d}/{n % 100:04d}_01.jpg", f"n{n // 100:06d}")

    tracemalloc.start()
    try:
        dataset = Many(tmp_path)
        dataset.name = "many"
        index = dataset.index()
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        order = packing_order(dataset, index.photos)
        assert tracemalloc.get_traced_memory()[1] - held < 60 * len(order)
    finally:
        tracemalloc.stop()
    assert held < 15 * len(order)


def test_a_full_disk_for_temporary_files_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(OSError, match=tmp_path.name):
            PhotoList.gather(Photo(f"a/{n}.jpg", "a") for n in range(1000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

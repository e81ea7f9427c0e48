"""A folder of grouped faces: what its user changes stays, and is enrolled."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_eyes import FACTS, WIDTH, gallery, near, vectors

from persona.errors import PersonaError
from persona.gallery import TwoPeopleError
from persona.gallery.grouped import (
    ROWS,
    TABLE,
    Faces,
    Given,
    GroupedFace,
    Groups,
    enroll_group,
    enroll_groups,
    group_table,
    maker,
    read_groups,
    read_rows,
    read_table,
    stamp_of,
    write_rows,
    write_table,
)
from persona.gallery.store import OtherNetworkError

BOX = (10.0, 20.0, 110.0, 140.0)
MADE_BY = maker(FACTS.digest, FACTS.align)


def empty() -> Faces:
    return Faces(MADE_BY, "net", WIDTH)


def add(table: Faces, folder: Path, name: str, *rows: Any, flaw: str | None = None) -> None:
    """Adds a photo with faces of these embeddings."""
    photo = folder / name
    photo.parent.mkdir(exist_ok=True)
    photo.write_bytes(name.encode())
    table.seen[str(photo)] = stamp_of(photo)
    for number, row in enumerate(rows):
        box = (10.0 + 200 * number, *BOX[1:])
        table.faces.append(GroupedFace(str(photo), box, flaw))
        table.embeddings.append(np.zeros(WIDTH, np.float32) if flaw else row)
        table.thumbnails.append(b"jpeg")


@pytest.fixture
def table(tmp_path: Path) -> Faces:
    """Three photos of one person, two of another, one of nobody, and a blurred one."""
    found = empty()
    first, second, third = vectors(3)
    photos = tmp_path / "photos"
    for number in range(3):
        add(found, photos, f"a{number}.jpg", near(first, 0.9, number))
    for number in range(2):
        add(found, photos, f"b{number}.jpg", near(second, 0.9, 10 + number))
    add(found, photos, "c.jpg", third)
    add(found, photos, "poor.jpg", third, flaw="blurred")
    return found


def saved(folder: Path, groups: Groups) -> Path:
    folder.mkdir(exist_ok=True)
    write_table(folder / TABLE, groups.faces)
    write_rows(folder, groups)
    return folder


def edited(folder: Path, **changes: dict[str, str]) -> None:
    """Changes columns of the rows of photos, as a spreadsheet does."""
    path = folder / ROWS
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row.update(changes.get(Path(row["photo"]).stem, {}))
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=";")
        writer.writeheader()
        writer.writerows(rows)


def groups_of(groups: Groups) -> dict[str, list[str]]:
    """The photos of each group by its name or number."""
    return {
        groups.names.get(number, str(number)): [
            Path(groups.faces.faces[place].photo).stem for place in places
        ]
        for number, places in groups.members().items()
    }


def test_what_the_csv_says_stays(table: Faces, tmp_path: Path) -> None:
    found = group_table(table, Given(), 0.6)
    first = {"1": ["a0", "a1", "a2"], "2": ["b0", "b1"], "3": ["c"], "4": ["poor"]}
    assert groups_of(found) == first
    folder = saved(tmp_path / "groups", found)
    assert groups_of(group_table(table, read_rows(folder / ROWS), 0.6)) == first

    edited(folder, a1={"name": "Ada"}, b0={"group": "9"}, poor={"group": "3"})
    again = group_table(table, read_rows(folder / ROWS), 0.6)
    given = {"Ada": ["a0", "a1", "a2"], "3": ["c", "poor"], "2": ["b1"], "9": ["b0"]}
    assert groups_of(again) == given
    saved(folder, again)
    assert groups_of(group_table(table, read_rows(folder / ROWS), 0.6)) == given
    assert groups_of(read_groups(folder, empty())) == given

    # New photos join the given groups, the more similar one where there are two.
    add(table, tmp_path / "photos", "new-a.jpg", near(table.embeddings[0], 0.95, 1))
    add(table, tmp_path / "photos", "new-b.jpg", near(table.embeddings[3], 0.99, 1))
    joined = groups_of(group_table(table, read_rows(folder / ROWS), 0.6))
    assert joined["Ada"] == ["a0", "a1", "a2", "new-a"]
    assert joined["9"] == ["b0", "new-b"] and joined["2"] == ["b1"]


def test_one_name_is_one_group_and_two_names_are_two(table: Faces, tmp_path: Path) -> None:
    folder = saved(tmp_path / "groups", group_table(table, Given(), 0.6))
    edited(folder, a0={"name": "Ada"}, c={"name": "Ada"}, b0={"name": "Bob"}, b1={"name": "Eve"})
    again = groups_of(group_table(table, read_rows(folder / ROWS), 0.6))
    assert again == {
        "Ada": ["a0", "a1", "a2", "c"],
        "Bob": ["b0"],
        "Eve": ["b1"],
        "4": ["poor"],
    }


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"group": "first"}, "line 4: group 'first' is no number from 1"),
        ({"group": "0"}, "is no number from 1"),
        ({"name": "A" * 201}, "line 4: a name of 201 characters"),
        ({"name": "A\u202eda"}, "line 4: a name holds"),
        ({"x0": "left"}, "line 4: could not convert"),
    ],
)
def test_a_csv_that_cannot_be_used(
    table: Faces, tmp_path: Path, change: dict[str, str], problem: str
) -> None:
    folder = saved(tmp_path / "groups", group_table(table, Given(), 0.6))
    edited(folder, a2=change)
    with pytest.raises(PersonaError, match=problem):
        read_rows(folder / ROWS)
    (folder / ROWS).write_text("photo,person\n")
    with pytest.raises(PersonaError, match="has no column 'group'"):
        read_rows(folder / ROWS)


def test_name_merge_split(table: Faces) -> None:
    groups = group_table(table, Given(), 0.6)
    assert groups.name(1, " Ada ") == 1 and groups.names == {1: "Ada"}
    assert groups.split(1, [0]) == 5
    assert groups.name(5, "Ada") == 1  # the group that has the name
    assert groups.merge(2, 1) == 1 and groups.names == {1: "Ada"}
    assert groups_of(groups)["Ada"] == ["a0", "a1", "a2", "b0", "b1"]
    groups.name(3, "Eve")
    for change, problem in (
        (lambda: groups.merge(1, 3), "take one of the names away first"),
        (lambda: groups.merge(1, 1), "cannot be merged into itself"),
        (lambda: groups.merge(1, 77), "there is no group 77"),
        (lambda: groups.name(77, "Bob"), "there is no group 77"),
        (lambda: groups.split(1, [5]), "some of these faces are not in group 1"),
        (lambda: groups.split(1, [999]), "some of these faces are not in group 1"),
        (lambda: groups.split(1, [0, 1, 2, 3, 4]), "but not all"),
        (lambda: groups.split(1, []), "but not all"),
    ):
        before = (groups.numbers.copy(), dict(groups.names))
        with pytest.raises(PersonaError, match=problem):
            change()  # type: ignore[no-untyped-call]
        assert (groups.numbers == before[0]).all() and groups.names == before[1]
    assert groups.name(3, " ") == 3 and groups.names == {1: "Ada"}


def test_near_duplicates(tmp_path: Path) -> None:
    table, photos = empty(), tmp_path / "photos"
    one, two, other = vectors(3, seed=4)
    add(table, photos, "a.jpg", one, two)
    add(table, photos, "both.jpg", near(two, 0.97), near(one, 0.98))
    add(table, photos, "cut.jpg", one)  # one of the two faces alone
    add(table, photos, "like.jpg", near(one, 0.9, 9), near(two, 0.9, 9))
    add(table, photos, "z.jpg", other, flaw="blurred")
    for copy, original in (("z2.jpg", "z.jpg"), ("a2.jpg", "a.jpg")):
        rows = [one, two] if copy[0] == "a" else [other]
        add(table, photos, copy, *rows, flaw="blurred" if copy[0] == "z" else None)
        shutil.copy(photos / original, photos / copy)
        table.seen[str(photos / copy)] = stamp_of(photos / copy)
    # As long as a.jpg, and with faces at the same places, but another file.
    add(table, photos, "b.jpg", other, near(other, 0.2))
    found = group_table(table, Given(), 0.6).duplicates
    names = {Path(photo).name: (Path(of).name, round(s, 2)) for photo, (of, s) in found.items()}
    assert names == {
        "a2.jpg": ("a.jpg", 1.0),
        "both.jpg": ("a.jpg", 0.97),
        "z2.jpg": ("z.jpg", 1.0),
    }


def test_named_groups_are_enrolled_once(table: Faces, tmp_path: Path) -> None:
    groups = group_table(table, Given(), 0.6)
    groups.name(1, "Ada")
    with gallery(tmp_path / "g.db", 0.6) as people:
        with pytest.raises(PersonaError, match="group 2 has no name"):
            enroll_group(people, groups, 2)
        done, failed = enroll_groups(people, groups)
        assert [(one.name, one.added) for one in done] == [("Ada", 3)] and failed == {}
        assert [(one.added, one.already) for one in enroll_groups(people, groups)[0]] == [(0, 3)]
        stored = [photo.template for *_, photo in people.store.photos("Ada")]
        assert np.array_equal(np.stack(stored), table.stacked()[:3])

        groups.name(4, "Poor")
        groups.name(2, "Bob")
        groups.merge(3, 2)  # somebody else
        done, failed = enroll_groups(people, groups)
        assert [one.name for one in done] == ["Ada"]
        assert "these do not look like the other photos" in failed["Bob"]
        assert "poor.jpg: blurred" in failed["Poor"]
        with pytest.raises(TwoPeopleError):
            enroll_group(people, groups, 2)
        assert enroll_group(people, groups, 2, force=True).added == 3


def test_faces_of_another_network_are_not_enrolled(table: Faces, tmp_path: Path) -> None:
    folder = saved(tmp_path / "groups", group_table(table, Given(), 0.6))
    other = Faces(maker("another", FACTS.align), "another", WIDTH)
    with pytest.raises(PersonaError, match="was made by net, not by another"):
        read_groups(folder, other)
    groups = read_groups(folder, empty())
    groups.name(1, "Ada")
    groups.faces.made_by = other.made_by
    with gallery(tmp_path / "g.db") as people, pytest.raises(OtherNetworkError):
        enroll_groups(people, groups)


@pytest.mark.parametrize(
    "change",
    [
        lambda count: {"thumbnail": None},
        lambda count: {"thumbnail": np.zeros(9 * count, np.float32)},
        lambda count: {"start": np.zeros(count + 1)},
        lambda count: {"start": np.array([0] * count + [10**9])},
        lambda count: {"box": np.array([["x"] * 4] * count)},
        lambda count: {"embedding": np.zeros((count, WIDTH))},
    ],
)
def test_a_damaged_table_is_one_line(
    table: Faces, tmp_path: Path, change: Callable[[int], dict[str, Any]]
) -> None:
    path = tmp_path / TABLE
    write_table(path, table)
    with np.load(path) as file:
        stored = {name: file[name] for name in file.files}
    stored |= change(len(table.faces))
    np.savez(path, **{name: value for name, value in stored.items() if value is not None})
    with pytest.raises(PersonaError, match=r"faces\.npz is damaged: remove it"):
        read_table(path, empty())


def test_a_table_under_a_password_is_one_line(table: Faces, tmp_path: Path) -> None:
    path = tmp_path / TABLE
    write_table(path, table)
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\x01\x02")  # the flag of each entry of the directory
    while at >= 0:
        data[at + 8] |= 1
        at = data.find(b"PK\x01\x02", at + 1)
    path.write_bytes(data)
    with pytest.raises(PersonaError, match=r"faces\.npz is damaged: remove it"):
        read_table(path, empty())


def test_groups_are_read_when_photos_are_away(table: Faces, tmp_path: Path) -> None:
    """A drive that is not mounted must not take the names with it."""
    groups = group_table(table, Given(), 0.6)
    groups.name(1, "Ada")
    folder = saved(tmp_path / "groups", groups)
    shutil.rmtree(tmp_path / "photos")
    assert groups_of(read_groups(folder, empty()))["Ada"] == ["a0", "a1", "a2"]
    (folder / ROWS).unlink()
    with pytest.raises(PersonaError, match="holds no groups"):
        read_groups(folder, empty())

"""A user's own pairs, and what can be wrong with them."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from persona.data.pack import Packed
from persona.data.shards import NO_CLASS, Member
from persona.errors import PersonaError
from persona.evaluation.embed import Embedded
from persona.evaluation.pair_lists import cut_folds, read_pair_list
from persona.evaluation.pairs import match_names, normalised, overlap, score_pairs
from persona.extras import install_command


def photo(person: str, number: int) -> str:
    return f"Person_{person}/Person_{person}_{number:04d}.jpg"


ROWS = [(photo(p, 1), photo(p, 2), 1) for p in "ABCDEF"]
ROWS += [(photo(a, 1), photo(b, 3), 0) for a, b in zip("ABCDEF", "BCDEFA", strict=True)]


def write_csv(path: Path, rows: Sequence[tuple[object, ...]], header: str = "a,b,label") -> Path:
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return path


def read(packed: Packed, path: Path):
    return read_pair_list(path, packed.manifest, packed.faces.metas())


def test_csv_parquet_and_pairs_txt_say_the_same(lfw_set: Packed, tmp_path: Path) -> None:
    by_csv, missing = read(lfw_set, write_csv(tmp_path / "p.csv", ROWS))
    columns = dict(zip(("one", "two", "label"), map(list, zip(*ROWS, strict=True)), strict=True))
    pq.write_table(pa.table(columns), tmp_path / "p.parquet")
    by_parquet, _ = read(lfw_set, tmp_path / "p.parquet")
    metas = lfw_set.faces.metas()
    assert missing == [] and len(by_csv) == 12
    assert metas[int(by_csv.a[0])]["source"] == photo("A", 1)
    for name in ("fold", "same", "a", "b"):
        np.testing.assert_array_equal(getattr(by_csv, name), getattr(by_parquet, name))
    official = lfw_set.faces.pairs()
    by_text, _ = read(lfw_set, tmp_path / "raw" / "LFW" / "pairs.txt")
    for name in ("fold", "same", "a", "b"):
        np.testing.assert_array_equal(getattr(official, name), getattr(by_text, name))


def test_folds_are_the_lists_own_or_ten_of_both_classes(lfw_set: Packed, tmp_path: Path) -> None:
    rows = [(3 + n % 2, *row) for n, row in enumerate(ROWS)]
    found, _ = read(lfw_set, write_csv(tmp_path / "p.csv", rows, "fold,a,b,same"))
    assert found.fold.tolist() == [3, 4] * 6
    fold = cut_folds(np.arange(200) < 100, tmp_path)
    for number in range(10):
        assert (fold[:100] == number).sum() == (fold[100:] == number).sum() == 10
    assert set(cut_folds(np.arange(10) < 9, tmp_path)) == set(range(10))


def test_lists_of_lfws_view_1_are_cut_into_folds(lfw_set: Packed, tmp_path: Path) -> None:
    """They have one number in their header, and no folds."""
    names = [f"Person_{letter}" for letter in "ABCDEF"]
    lines = [f"{name}\t1\t2" for name in names]
    lines += [f"{a}\t1\t{b}\t3" for a, b in zip(names, [*names[1:], names[0]], strict=True)]
    by_csv, _ = read(lfw_set, write_csv(tmp_path / "p.csv", ROWS))
    for header in ("6", "1\t6"):
        (tmp_path / "pairsDevTest.txt").write_text("\n".join([header, *lines]) + "\n")
        found, missing = read(lfw_set, tmp_path / "pairsDevTest.txt")
        assert missing == []
        for name in ("fold", "same", "a", "b"):
            np.testing.assert_array_equal(getattr(found, name), getattr(by_csv, name))


def test_a_path_may_be_longer_or_shorter_where_it_is_one_photo(
    lfw_set: Packed, tmp_path: Path
) -> None:
    rows = [(f"./LFW/{a}", b.rpartition("/")[2], same) for a, b, same in ROWS]
    found, missing = read(lfw_set, write_csv(tmp_path / "p.csv", rows))
    plain, _ = read(lfw_set, write_csv(tmp_path / "q.csv", ROWS))
    assert missing == []
    np.testing.assert_array_equal(found.a, plain.a)
    np.testing.assert_array_equal(found.b, plain.b)


@pytest.mark.parametrize("above", ["", "x/", "Person_A/", "Person_A/x/"])
def test_a_photo_that_is_lacking_is_no_photo_of_somebody_else(
    lfw_set: Packed, tmp_path: Path, above: str
) -> None:
    """The set has one photo of that file name, which a list names for another person."""
    metas = lfw_set.faces.metas()
    sources = {"Person_A/0123_02.jpg": 0, "Person_B/x/0123_03.jpg": 1}
    for source, key in sources.items():
        metas[key] = {**metas[key], "source": source}
    foreign = [f"{above}Person_Z/0123_02.jpg", f"{above}Person_Z/x/0123_03.jpg"]
    rows = [(path, photo("B", 3), 1) for path in foreign] + [*ROWS[2:5], *ROWS[7:]]
    path = write_csv(tmp_path / "p.csv", rows)
    found, missing = read_pair_list(path, lfw_set.manifest, metas)
    assert found.a[:2].tolist() == [-1, -1] and missing == sorted(foreign)
    # Written so, the same two are ends of their sources, or lie below a folder of the user's.
    for own in ("0123_02.jpg", "x/0123_03.jpg"), [f"above/{source}" for source in sources]:
        path = write_csv(path, [(name, photo("B", 3), 1) for name in own] + rows[2:])
        found, missing = read_pair_list(path, lfw_set.manifest, metas)
        assert found.a[:2].tolist() == [0, 1] and missing == []


def test_unknown_photos_are_named_counted_and_capped(lfw_set: Packed, tmp_path: Path) -> None:
    some = [*ROWS[:-1], ("Nobody/1.jpg", photo("A", 1), 0)]
    found, missing = read(lfw_set, write_csv(tmp_path / "p.csv", some))
    assert missing == ["Nobody/1.jpg"] and (found.a == -1).sum() == 1
    many = [(f"Nobody/{n}.jpg", b, same) for n, (_, b, same) in enumerate(ROWS)]
    with pytest.raises(PersonaError, match=r"12 of 12 pairs name photos.*Nobody/0.*and 7 more"):
        read(lfw_set, write_csv(tmp_path / "p.csv", many))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no pair"),
        ("a,b,label\n", "holds no pair"),
        ("a,b\nx,y\n", "expected a header of two paths and a label"),
        ("a,label,fold\nx,1,0\n", "two paths and a label, .*found 'a,label,fold'"),
        ("a,b,label\nx,y,maybe\n", "row 2: expected two paths and a label of 0 or 1"),
        ("a,b,label\nx\n", "row 2: expected two paths"),
        ("10\t300\nA\t1\t2\n", "its header promises 6000 pairs"),
        ("1\nPerson_A\t1\t2\nPerson_A\t1\tPerson_B\t2\n", "2 pairs cannot fill 10 folds"),
        ("¹\t300\nA\t1\t2\n", "expected a header of two paths and a label"),
        (f"a,b,label,fold\nx,y,1,{'9' * 30}\n", "row 2: expected two paths"),
        ("a,b,label,fold\nx,y,1,²\n", "row 2: expected two paths"),
        ("\n".join(["a,b,label", *(f"{a},{b},1" for a, b, _ in ROWS)]), "all 12 pairs are genuine"),
        (
            "\n".join(["a,b,label", *(f"{a},{b},{s}" for a, b, s in ROWS[3:9])]),
            "6 pairs cannot fill 10 folds",
        ),
        (
            "\n".join(["a,b,label,fold", *(f"{a},{b},{s},7" for a, b, s in ROWS)]),
            "all pairs lie in one fold, .*give `fold` at least two values",
        ),
    ],
)
def test_bad_lists_are_one_line(lfw_set: Packed, tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "p.csv"
    path.write_text(text)
    with pytest.raises(PersonaError, match=message) as error:
        read(lfw_set, path)
    assert "\n" not in str(error.value)


def test_an_infinite_fold_is_one_line(lfw_set: Packed, tmp_path: Path) -> None:
    a, b, same = (list(column) for column in zip(*ROWS, strict=True))
    columns = {"a": a, "b": b, "label": same, "fold": [float("inf")] * len(a)}
    pq.write_table(pa.table(columns), tmp_path / "p.parquet")
    with pytest.raises(PersonaError, match="row 2: expected two paths and a label of 0 or 1"):
        read(lfw_set, tmp_path / "p.parquet")


def test_what_is_no_list_at_all(lfw_set: Packed, tmp_path: Path) -> None:
    (tmp_path / "p.parquet").write_bytes(b"PAR1 not really")
    (tmp_path / "p.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PersonaError, match="is no whole parquet file"):
        read(lfw_set, tmp_path / "p.parquet")
    (tmp_path / "folder.csv").mkdir()
    for name, message in (
        ("p.csv", "is in UTF-16 or no text: save it as UTF-8"),
        ("absent.csv", "there is no such file: expected a list of pairs"),
        ("folder.csv", "is a folder: expected a list of pairs"),
    ):
        with pytest.raises(PersonaError, match=message):
            read(lfw_set, tmp_path / name)


def test_what_a_list_needs(
    lfw_set: Packed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_csv(tmp_path / "p.csv", ROWS)
    triplets = replace(lfw_set.manifest, kind="triplets")
    with pytest.raises(PersonaError, match="set lfw holds triplets, no photos: pairs need photos"):
        read_pair_list(path, triplets, {})
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(PersonaError, match=re.escape(install_command("parquet"))):
        read(lfw_set, path.rename(tmp_path / "p.parquet"))


def embedded(packed: Packed) -> Embedded:
    rng = np.random.default_rng(0)
    count = packed.manifest.samples
    rows = rng.normal(size=(count, 1, 8)).astype(np.float32)
    metas = packed.faces.metas()
    labels = np.array([[metas[key]["class"]] for key in range(count)])
    return Embedded(np.arange(count), rows, labels, np.empty((count, 1, 0), np.int64))


@pytest.mark.parametrize(
    "text",
    [
        '{"key": "00000000", "class": 0}',
        '{"key": "00000000", "identity": "a"}',
        '{"key": Infinity, "identity": "a", "source": "a/b.jpg"}',
        "[" * 100_000,
        "[]",
    ],
)
def test_metadata_from_elsewhere_is_refused_in_one_line(
    lfw_set: Packed, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setattr(Member, "read", lambda *_: text.encode())
    with pytest.raises(PersonaError, match=r"\.tar is damaged \(.*json: [A-Z][A-Za-z]+Error"):
        lfw_set.faces.metas()


def test_duplicates_are_counted_and_contradictions_refused(lfw_set: Packed, tmp_path: Path) -> None:
    turned = (ROWS[0][1], ROWS[0][0], 1)
    pairs, _ = read(lfw_set, write_csv(tmp_path / "p.csv", [*ROWS, ROWS[0], turned]))
    scores = score_pairs(embedded(lfw_set), lfw_set.manifest, pairs)
    assert (len(scores), scores.duplicates) == (14, 2)
    pairs, _ = read(lfw_set, write_csv(tmp_path / "p.csv", [*ROWS, (*turned[:2], 0)]))
    with pytest.raises(PersonaError, match="pairs 1 and 13 of the list are the same"):
        score_pairs(embedded(lfw_set), lfw_set.manifest, pairs)


def test_photos_that_the_set_lacks_show_people(lfw_set: Packed, tmp_path: Path) -> None:
    """A genuine pair says whom. Identities would not fit the pairs if all had one label."""
    a, b, c = photo("A", 1), photo("B", 1), photo("C", 1)
    rows = [("x/1", a, 1), (b, "x/2", 1), ("x/3", "x/4", 1)]
    rows += [("x/5", c, 0), (c, "x/6", 0), ("x/7", "x/8", 0)]
    pairs, _ = read(lfw_set, write_csv(tmp_path / "p.csv", [*ROWS, *rows]))
    scores = score_pairs(embedded(lfw_set), lfw_set.manifest, pairs, no_face="fail")
    assert scores.units().kind == "identities" and scores.failed.sum() == 6
    one, other = scores.identity_a[-6:].tolist(), scores.identity_b[-6:].tolist()
    assert (one[0], other[1], other[3], one[4]) == (0, 1, 2, 2)
    assert [x == y for x, y in zip(one, other, strict=True)] == [True] * 3 + [False] * 3
    lacking = {one[2], one[3], other[4], one[5], other[5]}
    assert len(lacking) == 5 and max(lacking) < NO_CLASS
    assert (scores.key_a[-6], scores.key_b[-6]) == (-1, pairs.b[-6])


def test_names_are_compared_without_case_accents_and_punctuation() -> None:
    assert normalised("Gérard_Depardieu") == normalised("gerard depardieu") == "gerarddepardieu"
    assert normalised("n000002") != normalised("n000003")
    for one, other in (
        ("Ёлкин", "елкин"),
        ("Ὀδυσσεύς", "οδυσσευσ"),
        ("Ｊｏ Ａ.", "joa"),
        ("J.2", "j2"),
    ):
        assert normalised(one) == normalised(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1_23", "12_3"),
        ("person_1_1", "person_11"),
        ("मीना", "मोना"),  # vowel signs
        ("がん", "かん"),  # a voiced consonant
        ("ดี", "ดู"),  # vowels
    ],
)
def test_what_tells_names_apart_stays(one: str, other: str) -> None:
    assert normalised(one) != normalised(other)
    assert overlap([one], [other]) == []


def test_names_as_they_are_written_go_before_normalised_ones() -> None:
    assert match_names(["José", "jose", "ANA"], ["Jose", "José", "Ana"]) == [1, -1, 2]
    assert match_names(["anna"], ["Anna", "ANNA"]) == [-1]  # either of two
    assert match_names(["Anna", "ANNA"], ["anna"]) == [-1, -1]
    assert match_names(["anna"], ["Anna", "Anna"]) == [1]
    assert overlap(["ana", "Eva", "Zoe"], ["one/Ana", "two/Ana", "one/EVA", "Z"]) == [0, 1]

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from fake_eyes import FACTS, enroll_at_once, gallery, near, photo_of, vectors
from onnx_files import SETTINGS, write_model

from persona.config import StudentConfig
from persona.data.align.spec import AlignSpec
from persona.errors import PersonaError
from persona.gallery import DuplicateError, Gallery, TwoPeopleError
from persona.gallery.people import Moved, network_align, strangers
from persona.gallery.store import NobodyError, TakenError, Threshold, open_store
from persona.models.cards import CARD_KEY
from persona.models.sources import NamedNetwork, load_embedder, load_network
from persona.models.student import Student
from persona.workspace import Workspace

A, B = (np.eye(8, dtype=np.float32)[n] for n in (0, 1))


@pytest.fixture
def known(tmp_path: Path) -> Iterator[Gallery]:
    """Ann is A, Bob is B; the threshold is 0.5."""
    with gallery(tmp_path / "g.db") as some:
        some.enroll("Ann", [photo_of(A)])
        some.enroll("Bob", [photo_of(B)])
        yield some


def test_the_threshold_decides(known: Gallery) -> None:
    for cosine, name in ((0.51, "Ann"), (0.49, None)):
        (face,) = known.recognise(photo_of(near(A, cosine, 3)))
        assert face.name == name
        assert face.nearest == "Ann"
        assert face.score == pytest.approx(cosine, abs=1e-5)
        assert face.box == (10, 20, 100, 120)
        assert face.refused is None


def test_a_threshold_that_is_chosen_meanwhile_is_taken(known: Gallery, tmp_path: Path) -> None:
    """A server runs on while `persona gallery calibrate` stores a threshold."""
    with open_store(tmp_path / "g.db") as other:
        other.set_threshold(Threshold(0.8, "a set"), FACTS.digest)
    for follows, name in ((False, "Ann"), (True, None)):
        known.follows = follows  # not one that was given by hand
        (face,) = known.recognise(photo_of(near(A, 0.7)))
        assert face.name == name
    assert (known.threshold, known.calibration.source) == (0.8, "a set")
    with open_store(tmp_path / "g.db") as other:
        other.set_threshold(Threshold(0.6, "a set"), FACTS.digest)
    assert known.enroll("Cy", [photo_of(near(A, 0.55))]).looks_like is None
    assert known.threshold == 0.6


def test_each_face_has_its_own_answer(known: Gallery) -> None:
    faces = known.recognise(photo_of(B, A, near(A, 0.1, 5)))
    assert [face.name for face in faces] == ["Bob", "Ann", None]
    (face,) = known.recognise(photo_of(A, flaw="too blurred: sharpness 1.0"))
    assert (face.name, face.nearest, face.score) == (None, None, None)
    assert face.refused == "too blurred: sharpness 1.0"
    assert known.recognise(photo_of()) == ()


def test_nobody_is_known(tmp_path: Path) -> None:
    with gallery(tmp_path / "g.db") as empty:
        (face,) = empty.recognise(photo_of(A))
    assert (face.name, face.nearest, face.score, face.refused) == (None, None, None, None)


def test_what_enrolling_says(known: Gallery) -> None:
    photos = [
        photo_of(near(A, 0.9)),
        photo_of(),
        photo_of(A, B),
        photo_of(A, flaw="too small: the face is 20 px"),
        photo_of(near(A, 0.9)),
    ]
    done = known.enroll("  Ann ", photos, labels=["1.jpg", "2.jpg", "3.jpg", "4.jpg", "5.jpg"])
    assert (done.name, done.added) == ("Ann", 1)
    assert done.refused == (
        "2.jpg: no face",
        "3.jpg: two faces: cut out the one you mean",
        "4.jpg: too small: the face is 20 px",
    )
    assert done.already == 1
    again = known.enroll("Ann", photos[:1])
    assert (again.added, again.refused, again.already) == (0, (), 1)
    assert [(person.name, person.photos) for person in known.people()] == [("Ann", 2), ("Bob", 1)]


def test_no_photo_can_be_used(known: Gallery) -> None:
    with pytest.raises(PersonaError, match=r"no photo of 'Cy' can be used: photo 1: no face$"):
        known.enroll("Cy", [photo_of()])
    with pytest.raises(PersonaError, match=r"no photo of 'Cy' can be used: there is none$"):
        known.enroll("Cy", [])
    with pytest.raises(PersonaError, match="cannot be seen"):
        known.enroll("C\ny", [photo_of(A)])
    assert len(known.people()) == 2


def test_another_person_under_one_name(known: Gallery) -> None:
    with pytest.raises(
        TwoPeopleError,
        match=r"do not look like 'Ann' as enrolled \(similarity below 0\.500\): photo 2; leave",
    ):
        known.enroll("Ann", [photo_of(near(A, 0.9)), photo_of(B)])
    assert known.store.person("Ann").photos == 1
    assert known.enroll("Ann", [photo_of(near(A, 0.9)), photo_of(B)], force=True).added == 2


def test_two_people_in_equal_parts(known: Gallery) -> None:
    """A mean over all would hide them."""
    photos = [photo_of(near(side, 0.98, seed)) for side in (A, B) for seed in range(20)]
    with pytest.raises(TwoPeopleError, match=r"like the other photos.* and 10 more;"):
        known.enroll("Cy", photos)
    assert len(known.people()) == 2


def test_one_name_too_many_is_doubted(known: Gallery) -> None:
    message = (
        r"^'Anna' looks like 'Ann', who is enrolled \(similarity 0\.800\); enrol the photos und"
    )
    with pytest.raises(DuplicateError, match=message):
        known.enroll("Anna", [photo_of(near(A, 0.8))], accept=[TwoPeopleError])
    assert [person.name for person in known.people()] == ["Ann", "Bob"]
    done = known.enroll("Anna", [photo_of(near(A, 0.8))], accept=[DuplicateError])
    assert done.looks_like == "Ann"
    assert done.similarity == pytest.approx(0.8, abs=1e-5)
    # Who is there was decided on once.
    assert known.enroll("Anna", [photo_of(near(A, 0.8, 1))]).looks_like == "Ann"
    assert known.enroll("Cy", [photo_of(near(A, 0.2, 7))]).looks_like is None


def test_crops_are_kept_where_wanted(tmp_path: Path) -> None:
    for keep in (False, True):
        with gallery(tmp_path / f"{keep}.db", keep_crops=keep) as some:
            some.enroll("Ann", [photo_of(A)])
            ((_, _, photo),) = some.store.photos("Ann")
        assert photo.crop == (A.tobytes() if keep else None)
        assert (photo.landmarks_62 is not None) == keep


def test_max_takes_the_nearest_photo(tmp_path: Path) -> None:
    photos = [photo_of(A), photo_of(near(A, 0.6))]
    for match, score in (("max", 1.0), ("mean", np.sqrt(0.8))):
        with gallery(tmp_path / f"{match}.db", match=match) as some:
            some.enroll("Ann", photos)
            (face,) = some.recognise(photo_of(A))
        assert face.score == pytest.approx(score, abs=1e-5)


def test_strangers_are_not_reached_over_links() -> None:
    chain = np.stack([A, near(A, 0.6), B])
    chain[2] = near(chain[1], 0.6, 4)
    assert float(chain[0] @ chain[2]) < 0.5
    assert strangers(chain, 0, 0.5) == []
    assert strangers(np.stack([A, B]), 1, 0.5) == [0]
    assert strangers(np.stack([A, B, near(B, 0.9)]), 0, 0.5) == [0]
    assert strangers(vectors(1), 0, 0.5) == []


@pytest.mark.parametrize("connections", [1, 2])
def test_one_photo_twice_at_once_is_one_photo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, connections: int
) -> None:
    """From two threads of one process, or as from two processes."""
    with gallery(tmp_path / "g.db") as some, gallery(tmp_path / "g.db") as other:
        enroll_at_once(some, some if connections == 1 else other, monkeypatch)
        assert some.store.person("Ann").photos == 1


def test_what_is_not_claimed_is_not_kept(known: Gallery) -> None:
    def claim() -> None:
        raise PersonaError("too late")

    for name in ("Ann", "Cy"):
        with pytest.raises(PersonaError, match="too late"):
            known.enroll(name, [photo_of(near(A, 0.9))], force=True, claim=claim)
    assert [(person.name, person.photos) for person in known.people()] == [("Ann", 1), ("Bob", 1)]
    assert known.enroll("Ann", [photo_of(near(A, 0.9))]).added == 1


@pytest.mark.parametrize(
    ("alignment", "wanted"),
    [
        ({"method": "landmarks", "image_size": 112, "margin": 14}, AlignSpec("landmarks", 112)),
        # Trained on crops that others had aligned: here the photos are whole.
        ({"method": "template", "image_size": 112, "margin": 14}, AlignSpec("landmarks", 112)),
        ({"method": "mtcnn", "image_size": 64, "margin": 8}, AlignSpec("mtcnn", 64, 8)),
        ({"method": "none", "image_size": 64, "margin": 8}, AlignSpec("mtcnn", 64)),
        (None, AlignSpec("mtcnn", 64)),
    ],
)
def test_faces_are_cut_as_the_models_card_says(
    tmp_path: Path, alignment: dict[str, object] | None, wanted: AlignSpec
) -> None:
    """Also where the set that it was trained on is not here, as for a model from elsewhere."""
    student = Student(StudentConfig(width=0.35), 0, head="none", image_size=64)
    named = NamedNetwork("m", student, "elsewhere", (), 64, alignment=alignment)
    assert network_align(named, Workspace.locate(home=tmp_path)) == wanted


@pytest.mark.parametrize(
    ("card", "wanted"),
    [
        (
            '{"alignment": {"method": "mtcnn", "image_size": 64, "margin": 8}}',
            AlignSpec("mtcnn", 64, 8),
        ),
        (
            '{"alignment": {"method": "none", "image_size": 64, "margin": 0}}',
            AlignSpec("mtcnn", 64, 14),
        ),
        ('{"alignment": {"angle": 3}}', AlignSpec()),
        ('{"alignment": null}', AlignSpec()),
        ("[]", AlignSpec()),
        ("{", AlignSpec()),
        ("[" * 100_000, AlignSpec()),
    ],
)
def test_faces_are_cut_as_the_card_in_an_exported_file_says(
    tmp_path: Path, card: str, wanted: AlignSpec
) -> None:
    path = write_model(tmp_path / "s.onnx", settings=SETTINGS)
    model = onnx.load(path)
    model.metadata_props.add(key=CARD_KEY, value=card)
    onnx.save(model, path)
    place = Workspace.locate(home=tmp_path)
    for load in (load_embedder, load_network):
        named = load(f"onnx:{path}", place.models)
        assert network_align(named, place) == wanted
        assert named.image_size is None  # ready crops of any size are resized
    path.with_suffix(".yaml").write_text(SETTINGS)  # the user's own word
    assert network_align(load_embedder(f"onnx:{path}", place.models), place) == AlignSpec()


def test_a_card_with_another_alignment_is_refused(tmp_path: Path) -> None:
    student = Student(StudentConfig(width=0.35), 0, head="none", image_size=64)
    named = NamedNetwork("m", student, "elsewhere", (), 64, alignment={"angle": 3})
    with pytest.raises(PersonaError, match="unknown key 'angle'"):
        network_align(named, Workspace.locate(home=tmp_path))


def test_rename(known: Gallery) -> None:
    (number,) = [photo.number for photo in known.photos("Ann")]
    assert known.rename("Ann", "  Zoe\u0308 ") == Moved("Zoë", 1)
    assert [photo.number for photo in known.photos("Zoë")] == [number]
    assert known.recognise(photo_of(A))[0].name == "Zoë"
    with pytest.raises(NobodyError, match="nobody named 'Ann'"):
        known.rename("Ann", "Cy")
    with pytest.raises(TakenError, match="somebody named 'Bob' already"):
        known.rename("Zoë", "Bob")
    with pytest.raises(PersonaError, match="'Bob' has this name already"):
        known.rename("Bob", "Bob ")
    with pytest.raises(PersonaError, match="cannot be seen"):
        known.rename("Bob", "B\u200bob")
    assert [person.name for person in known.people()] == ["Bob", "Zoë"]


def test_merge_asks_where_they_differ(known: Gallery) -> None:
    with pytest.raises(
        TwoPeopleError, match=r"^1 of 1 photos of 'Ann' do not look like 'Bob' \(.* 0.500\); leave"
    ):
        known.merge("Ann", "Bob")
    with pytest.raises(PersonaError, match="'Ann' cannot be merged with themselves"):
        known.merge("Ann", "Ann")
    with pytest.raises(NobodyError, match="nobody named 'Cy'"):
        known.merge("Ann", "Cy")
    assert [(p.name, p.photos) for p in known.people()] == [("Ann", 1), ("Bob", 1)]
    assert known.merge("Ann", "Bob", force=True) == Moved("Bob", 1)
    assert [(p.name, p.photos) for p in known.people()] == [("Bob", 2)]
    assert known.recognise(photo_of(A))[0].name == "Bob"


def test_merge_of_the_same_person(known: Gallery) -> None:
    known.enroll("Anna", [photo_of(near(A, 0.9)), photo_of(near(B, 0.9))], force=True)
    like, unlike = (photo.number for photo in known.photos("Anna"))
    with pytest.raises(TwoPeopleError, match="1 of 2 photos of 'Anna'"):
        known.merge("Anna", "Ann")
    assert known.merge("Anna", "Ann", photos=[like]) == Moved("Ann", 1)
    assert [photo.number for photo in known.photos("Anna")] == [unlike]
    with pytest.raises(PersonaError, match="no photo is chosen"):
        known.merge("Anna", "Ann", photos=[])
    with pytest.raises(PersonaError, match="not, or no longer, photos of 'Anna'"):
        known.merge("Anna", "Ann", photos=[like])


def test_split(known: Gallery) -> None:
    known.enroll("Ann", [photo_of(near(A, 0.9)), photo_of(near(B, 0.9))], force=True)
    photos = known.photos("Ann")
    assert photos[2].similarity < photos[0].similarity <= 1
    assert [photo.crop for photo in photos] == [None] * 3
    odd = photos[2].number
    for numbers, to, message in (
        ([], "Eve", "no photo is chosen"),
        ([photo.number for photo in photos], "Eve", "these are all photos of 'Ann'"),
        ([odd], "Bob", "somebody named 'Bob' already"),
        ([odd], "Ann", "somebody named 'Ann' already"),
        ([odd], " ", "a name holds nothing"),
        ([odd + 99], "Eve", "not, or no longer, photos of 'Ann'"),
    ):
        with pytest.raises(PersonaError, match=message):
            known.split("Ann", numbers, to)
    assert known.split("Ann", [odd], "Eve") == Moved("Eve", 1)
    assert {p.name: p.photos for p in known.people()} == {"Ann": 2, "Bob": 1, "Eve": 1}
    assert known.recognise(photo_of(near(B, 0.9)))[0].nearest == "Eve"


def test_changes_that_are_not_claimed_are_not_made(known: Gallery) -> None:
    known.enroll("Ann", [photo_of(near(A, 0.9))])
    numbers = [photo.number for photo in known.photos("Ann")]

    def late() -> None:
        raise TimeoutError

    changes: list[Callable[[], Moved]] = [
        lambda: known.rename("Ann", "Eve", claim=late),
        lambda: known.merge("Ann", "Bob", force=True, claim=late),
        lambda: known.split("Ann", numbers[:1], "Eve", claim=late),
    ]
    for change in changes:
        with pytest.raises(TimeoutError):
            change()
    assert [(p.name, p.photos) for p in known.people()] == [("Ann", 2), ("Bob", 1)]

"""`persona learn gallery`: learning from kept faces, what it gained, replacing and going back."""

from __future__ import annotations

import io
import json
import signal
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import NO_ALIGN, jpeg, write_lfw
from helpers import TESTS, _here, environment, persona_error_here, persona_here
from little import LITTLE
from onnx_files import SETTINGS, write_model
from PIL import Image

from persona import gallery_learning
from persona.config import StudentConfig
from persona.data.align.spec import AlignSpec, Crop
from persona.data.pack import pack_photos, pack_set
from persona.data.raw import open_dataset
from persona.data.sets import open_set
from persona.errors import PersonaError, Preempted
from persona.gallery import crypt
from persona.gallery.faces import Eyes
from persona.gallery.people import load_named
from persona.gallery.store import Facts, StoredPhoto, Threshold, open_store
from persona.gallery.upgrade import plan_rollback, roll_back
from persona.gallery_learning import (
    FAR,
    Outcome,
    Standing,
    divide,
    learn_from_gallery,
    pseudonym,
    take_over,
)
from persona.landmarks import template
from persona.learning.memory import Budget, Memory, reservoir
from persona.models.cards import find_model, read_classes
from persona.models.store import save_model
from persona.models.student import Student
from persona.training.checkpoint import load_checkpoint
from persona.training.teacher import Teacher
from persona.workspace import Workspace

ALIGN = AlignSpec("none", 32, 0)
GIVEN = {"method": "finetune", "steps": 3, "batch_size": 8, "optim.lr": 1e-3}
FIVE_POINT = SETTINGS.replace("margin", "five-point")
PEOPLE, PHOTOS = 4, 5
UNCHANGED = ("11", "11", 0.7, 0.7)
"""Outcome of two networks that do the same."""


def face(person: int, photo: int) -> bytes:
    """A picture of a person: its own pattern, with noise."""
    image = np.asarray(Image.open(io.BytesIO(jpeg(person))).convert("RGB"), np.int16)
    noise = np.random.default_rng((person, photo)).integers(-30, 31, image.shape)
    buffer = io.BytesIO()
    Image.fromarray((image + noise).clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a student and a set of other people."""
    home = tmp_path_factory.mktemp("home")
    write_lfw(home / "raw")
    pack_photos(open_dataset("lfw", home / "raw"), home / "shards" / "lfw", NO_ALIGN)
    torch.manual_seed(0)
    student = Student(StudentConfig(LITTLE, embedding_size=32), 0, head="none", image_size=32)
    with torch.no_grad():
        for _ in range(4):
            student.train()(torch.randn(16, 3, 32, 32))
    facts: dict[str, Any] = {"teacher": "none", "temperature": None, "epochs": 1, "score": None}
    facts |= {"scores": {}, "run": "student", "train_set": "x", "test_set": "none", "config": {}}
    save_model(home / "models", student, model_id="student", classes=(), **facts)
    return home


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Workspace:
    """The same sets and models; a gallery and runs of its own."""
    (tmp_path / "shards").symlink_to(made / "shards")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "student").symlink_to(made / "models" / "student")
    return Workspace.locate(
        shards=tmp_path / "shards", models=tmp_path / "models", runs=tmp_path / "runs"
    )


def fill(
    path: Path,
    place: Workspace,
    *,
    crops: bool = True,
    photos: int = PHOTOS,
    passphrase: bytes | None = None,
    align: AlignSpec = ALIGN,
    points: Any = None,
) -> None:
    """A gallery of four people."""
    named, fresh = load_named("student", place)
    with open_store(path, create=True, passphrase=passphrase) as store:
        store.adopt(replace(fresh, align=align, threshold=Threshold(0.5, "by hand", 0.1)))
        eyes = Eyes(named, align)
        for person in range(PEOPLE):
            own = [Crop(face(person, n), None, None) for n in range(photos)]
            rows = zip(own, eyes.embed(own), strict=True)
            kept = [StoredPhoto(t, c.jpeg if crops else None, points) for c, t in rows]
            store.add({f"Person {person}": kept}, named.digest)


@pytest.fixture
def gallery(tmp_path: Path, place: Workspace) -> Path:
    fill(tmp_path / "gallery.db", place)
    return tmp_path / "gallery.db"


def templates(path: Path) -> Any:
    with open_store(path) as store:
        return np.stack([photo.template for *_, photo in store.photos()])


def outcome(before: str, after: str, tar: float, later: float) -> Outcome:
    """Outcome of two networks that name the photos marked 1 rightly."""
    one, other = (
        Standing(
            name,
            text.count("1") / len(text),
            1.0,
            of,
            Threshold(0.4, "set", FAR),
            tuple(mark == "1" for mark in text),
        )
        for name, text, of in (("a", before, tar), ("b", after, later))
    )
    return Outcome(one, other, 4, 16, len(before), "set", 100, FAR)


def test_it_learns_is_measured_replaces_and_goes_back(gallery: Path, place: Workspace) -> None:
    before = templates(gallery)
    with open_store(gallery) as store:
        old = store.facts()
        found = learn_from_gallery(store, open_set("lfw", place.shards), GIVEN, place)
        # Nothing is changed until it is agreed to.
        assert store.facts() == old and np.array_equal(templates(gallery), before)
        assert (found.people, found.photos, found.held_out) == (PEOPLE, 16, 4)
        assert (found.far, found.test_set, found.impostors) == (0.1, "lfw", 276 - 6 * 6)
        assert (found.before.model, found.after.model) == ("student", found.after.model)
        assert 0 <= found.after.recognised <= found.after.rank_1 <= 1
        assert found.gain == found.after.recognised - found.before.recognised
        card = find_model(found.after.model, place.models)
        assert card.learned is not None and card.learned["parent"] == "student"
        # No name in the model; the set is gone.
        assert set(read_classes(card, place.models)) == {
            pseudonym(f"Person {n}") for n in range(PEOPLE)
        }
        assert [path.name for path in place.shards.iterdir()] == ["lfw"]
        assert take_over(store, found, place) == PEOPLE * PHOTOS
        facts = store.facts()
        assert facts is not None and old is not None
        assert (facts.network, facts.threshold) == (found.after.model, found.after.threshold)
        assert facts.previous == old
        assert not np.allclose(templates(gallery), before)
        # Somebody who is enrolled since is there after going back, too.
        named, _ = load_named(found.after.model, place)
        crop = Crop(face(9, 0), None, None)
        store.add(
            {"New": [StoredPhoto(Eyes(named, ALIGN).embed([crop])[0], crop.jpeg)]}, named.digest
        )
        assert roll_back(store, plan_rollback(store, place)) == PEOPLE * PHOTOS + 1
        back = store.facts()
        assert back is not None and back.alone == old
        assert np.array_equal(templates(gallery)[:-1], before)
        roll_back(store, plan_rollback(store, place))  # and forward again
        again = store.facts()
        assert again is not None and again.alone == facts.alone
    for path in (place.runs / found.after.model).rglob("*"):
        if path.is_file():
            assert b"Person 0" not in path.read_bytes(), path


def test_faces_of_another_alignment_teach_nothing(gallery: Path, place: Workspace) -> None:
    with open_store(gallery) as store:
        facts = store.facts()
        assert facts is not None
        with store.changing():
            store._keep_facts(replace(facts, align=AlignSpec()))
        same = {number: photo.template for _, number, photo in store.photos()}
        store.replace(replace(facts, align=AlignSpec("landmarks", 112, 0)), same)
        line = r"20 of 20 photos of .* keep a face that is aligned in another way \(mtcnn\) than "
        with pytest.raises(PersonaError, match=line):
            divide(store, place)


def test_the_set_is_private_and_goes_also_where_learning_fails(
    gallery: Path, place: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def fail(config: Any, _: Workspace, **_named: Any) -> str:
        folder = place.shards / config.on
        seen.append(stat.S_IMODE(folder.stat().st_mode))
        raise PersonaError("it diverged")

    monkeypatch.setattr("persona.learning.run.learn", fail)
    with open_store(gallery) as store, pytest.raises(PersonaError, match="it diverged"):
        learn_from_gallery(store, open_set("lfw", place.shards), GIVEN, place)
    assert seen == [0o700]
    assert [path.name for path in place.shards.iterdir()] == ["lfw"]


@pytest.mark.parametrize("kind", [Preempted, KeyboardInterrupt])
def test_an_interruption_does_not_promise_to_go_on(
    gallery: Path, place: Workspace, monkeypatch: pytest.MonkeyPatch, kind: type[BaseException]
) -> None:
    def end(*_: Any, **_named: Any) -> str:
        raise kind("run the command with --resume RUN to go on")

    monkeypatch.setattr("persona.learning.run.learn", end)
    wanted = PersonaError if kind is Preempted else kind
    lfw = open_set("lfw", place.shards)
    with open_store(gallery) as store, pytest.raises(wanted, match="it begins anew") as told:
        learn_from_gallery(store, lfw, GIVEN, place)
    assert "--resume" not in str(told.value) and not isinstance(told.value, Preempted)
    assert [path.name for path in place.shards.iterdir()] == ["lfw"]


def test_what_a_kill_left_is_removed(
    gallery: Path, place: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gallery_learning, "_remove", lambda folder: None)
    with open_store(gallery) as store:
        material = divide(store, place)
        with gallery_learning._packed(store, material, place) as name:
            pass
        assert (place.shards / name).is_dir()  # as after a kill
        monkeypatch.undo()
        with gallery_learning._packed(store, material, place) as again:
            assert again == name and (place.shards / name / "manifest.json").is_file()
        assert not (place.shards / name).exists()


def test_photos_are_held_out_the_same_each_time(gallery: Path, place: Workspace) -> None:
    with open_store(gallery) as store:
        one, other = divide(store, place), divide(store, place)
    assert {name: len(own) for name, own in one.held_out.items()} == {
        f"Person {n}": 1 for n in range(PEOPLE)
    }
    for name, own in one.held_out.items():
        assert own[0].crop == other.held_out[name][0].crop
        assert own[0].crop not in [photo.crop for photo in one.learned[name]]


def test_no_face_lies_outside_the_set(
    gallery: Path, place: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a kill leaves it, if the next call comes from another host: a new container."""
    seen: list[list[str]] = []

    def looked_at(*arguments: Any) -> Any:
        seen.append(sorted(path.name for path in place.shards.iterdir()))
        return pack_set(*arguments)

    monkeypatch.setattr(gallery_learning, "pack_set", looked_at)
    with (
        open_store(gallery) as store,
        gallery_learning._packed(store, divide(store, place), place) as name,
    ):
        manifest = open_set(name, place.shards).manifest
        assert (manifest.samples, manifest.identities) == (16, PEOPLE)
        assert not list(place.shards.rglob("*.jpg"))
    assert seen == [[name, "lfw"]]


@pytest.mark.parametrize("method", ["mtcnn", "landmarks"])
def test_a_teacher_that_turns_faces_gets_the_kept_points(
    tmp_path: Path, place: Workspace, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = write_model(tmp_path / "net.onnx", width=32, settings=FIVE_POINT)
    on_template = np.vstack([template(32), (1, 1)])
    points = np.vstack([template(32) + 2, (1, 1.25)]) if method == "mtcnn" else on_template
    fill(tmp_path / "gallery.db", place, align=AlignSpec(method, 32, 0), points=points)
    features, seen = Teacher.features, []

    def looked_at(self: Teacher, images: Any, landmarks: Any) -> Any:
        seen.append(landmarks.numpy())
        return features(self, images, landmarks)

    monkeypatch.setattr(Teacher, "features", looked_at)
    given = {**GIVEN, "method": "anchor", "teacher": f"onnx:{teacher}"}
    with open_store(tmp_path / "gallery.db") as store:
        assert learn_from_gallery(store, open_set("lfw", place.shards), given, place).photos == 16
    assert len(seen) == GIVEN["steps"]
    for landmarks_B62 in seen:  # of the crop or of its mirror image
        assert np.allclose(landmarks_B62[:, 2, 1], points[2, 1], atol=1e-3)
        assert np.allclose(landmarks_B62[:, 5], points[5])


def test_advice_can_be_followed(tmp_path: Path, place: Workspace) -> None:
    teacher = write_model(tmp_path / "net.onnx", width=32, settings=FIVE_POINT)
    fill(tmp_path / "gallery.db", place, align=AlignSpec("mtcnn", 32, 0))
    lfw = open_set("lfw", place.shards)
    with open_store(tmp_path / "gallery.db") as store:
        given = {**GIVEN, "method": "anchor", "teacher": f"onnx:{teacher}"}
        line = r"gallery.db keeps \(32 px, 16 of 16 without points\): name another one with --teac"
        with pytest.raises(PersonaError, match=line) as told:
            learn_from_gallery(store, lfw, given, place)
        assert "--align" not in str(told.value)
        with pytest.raises(PersonaError, match=r"method joint .* choose finetune") as told:
            learn_from_gallery(store, lfw, {**GIVEN, "method": "joint"}, place)
        assert "--old" not in str(told.value)
    assert [path.name for path in place.shards.iterdir()] == ["lfw"]


def test_what_is_not_encrypted_is_told(
    tmp_path: Path, place: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    from persona.cli.app import app

    monkeypatch.setitem(crypt.SCRYPT, "n", 2**10)  # it is slow by design
    monkeypatch.setattr(gallery_learning, "learn_from_gallery", lambda *_: outcome(*UNCHANGED))
    (tmp_path / "word").write_text("open sesame\n")
    fill(tmp_path / "sealed.db", place, passphrase=b"open sesame")
    fill(tmp_path / "open.db", place)
    command = ("learn", "gallery", "--test-set", "lfw", "--yes", "--store")
    sealed = (str(tmp_path / "sealed.db"), "--passphrase-file", str(tmp_path / "word"))
    for options, is_told in ((sealed, True), ((str(tmp_path / "open.db"),), False)):
        result = _here(app, (*command, *options), tmp_path)
        assert result.exception is None, result.exception
        assert ("neither is encrypted" in result.stderr) == is_told


def test_the_same_photos_are_held_out_when_others_come_and_go(
    gallery: Path, place: Workspace
) -> None:
    named, _ = load_named("student", place)
    with open_store(gallery) as store:
        before = divide(store, place)
        store.forget("Person 0")
        crop = Crop(face(1, PHOTOS), None, None)
        row = Eyes(named, ALIGN).embed([crop])[0]
        store.add({"Person 1": [StoredPhoto(row, crop.jpeg)]}, named.digest)
        after = divide(store, place)
    for name in ("Person 2", "Person 3"):
        assert after.held_out[name][0].crop == before.held_out[name][0].crop
    learned = {photo.crop for own in before.learned.values() for photo in own}
    assert not learned & {photo.crop for own in after.held_out.values() for photo in own}


@pytest.mark.parametrize("method", ["replay", "ncm"])
def test_who_was_forgotten_is_not_learned_again(
    gallery: Path, place: Workspace, method: str
) -> None:
    lfw = open_set("lfw", place.shards)
    given = {**GIVEN, "method": method}
    gone = pseudonym("Person 0")
    with open_store(gallery) as store:
        crops = {photo.crop for *_, photo in store.photos("Person 0")}
        first = learn_from_gallery(store, lfw, given, place)
        assert gone in read_classes(find_model(first.after.model, place.models), place.models)
        take_over(store, first, place)
        store.forget("Person 0")
        second = learn_from_gallery(store, lfw, given, place)
        held_out = {p.crop for own in divide(store, place).held_out.values() for p in own}
    card = find_model(second.after.model, place.models)
    assert set(read_classes(card, place.models)) == {pseudonym(f"Person {n}") for n in (1, 2, 3)}
    found = load_checkpoint(place.runs / second.after.model)
    assert found is not None
    state = found[2]
    assert gone not in state["classes"] and len(state["classes"]) == PEOPLE - 1
    assert state["student"]["logits.weight"].shape[0] == PEOPLE - 1
    if method == "replay":
        memory = Memory(Budget(200), reservoir)
        memory.load(state["method"]["memory"])
        assert not {exemplar.jpeg for exemplar in memory.exemplars} & (crops | held_out)
        assert len(memory) == second.photos
    else:
        assert state["method"]["means"]["counts"].tolist() == [PHOTOS - 1] * (PEOPLE - 1)


def test_bad_galleries(tmp_path: Path, place: Workspace, gallery: Path) -> None:
    fill(tmp_path / "bare.db", place, crops=False)
    fill(tmp_path / "single.db", place, photos=1)
    lfw = open_set("lfw", place.shards)
    for name, line in (
        ("bare.db", r"20 of 20 photos .* were enrolled without --keep-crops: a network learns"),
        ("single.db", r"has 4 people, 0 of them with two photos or more"),
    ):
        with open_store(tmp_path / name) as store, pytest.raises(PersonaError, match=line):
            learn_from_gallery(store, lfw, GIVEN, place)
    with open_store(tmp_path / "none.db", create=True) as store:
        with pytest.raises(PersonaError, match="has nobody to learn"):
            divide(store, place)
        with pytest.raises(PersonaError, match="never moved to another network"):
            plan_rollback(store, place)
        store.adopt(Facts("onnx:net.onnx", "digest", 8, ALIGN))
        store.add({"Ann": [StoredPhoto(np.eye(8, dtype=np.float32)[0])]}, "digest")
        with pytest.raises(PersonaError, match="is no student that was trained by Persona"):
            divide(store, place)
    with open_store(gallery) as store:
        facts = store.facts()
        assert facts is not None
        for far, line in ((1e-6, "cannot resolve a FAR of 1e-06"),):
            store.set_threshold(Threshold(0.5, "by hand", far), facts.digest)
            with pytest.raises(PersonaError, match=line):  # before anything is learned
                learn_from_gallery(store, lfw, GIVEN, place)
        with pytest.raises(PersonaError, match="none is at hand: name it with --teacher"):
            store.set_threshold(Threshold(0.5, "by hand", 0.1), facts.digest)
            learn_from_gallery(store, lfw, {**GIVEN, "method": "anchor"}, place)
    assert [path.name for path in place.shards.iterdir()] == ["lfw"]


def test_going_back_wants_the_network(gallery: Path, place: Workspace) -> None:
    with open_store(gallery) as store:
        facts = store.facts()
        assert facts is not None
        numbers = [number for _, number, _ in store.photos()]
        rows = dict(zip(numbers, templates(gallery), strict=True))
        for before, line in (
            (replace(facts, digest="old"), "student is not the network any more that"),
            (replace(facts, network="gone"), "unknown model 'gone'"),
        ):
            with store.changing():
                store._keep_facts(before)
            store.replace(replace(facts, digest="new"), rows)
            with pytest.raises(PersonaError, match=line):
                plan_rollback(store, place)


@pytest.mark.parametrize(
    ("before", "after", "tar", "won", "lost", "p", "better"),
    [
        ("0000001111", "1111111111", (0.70, 0.69), 6, 0, 2 / 64, True),
        ("0000001111", "1111111111", (0.70, 0.64), 6, 0, 2 / 64, False),  # forgets too much
        ("0111111111", "1111111111", (0.70, 0.70), 1, 0, 1.0, False),  # one photo may be chance
        ("0000000001", "1111111110", (0.70, 0.70), 9, 1, 22 / 1024, True),
        ("1111111111", "1111111111", (0.70, 0.70), 0, 0, 1.0, False),
        ("1111111111", "0000001111", (0.70, 0.90), 0, 6, 2 / 64, False),
    ],
)
def test_only_what_is_better_is_taken_without_asking(
    before: str, after: str, tar: tuple[float, float], won: int, lost: int, p: float, better: bool
) -> None:
    found = outcome(before, after, *tar)
    assert (found.won, found.lost, found.is_better) == (won, lost, better)
    assert found.p == pytest.approx(p)
    shown = json.loads(json.dumps(found.to_json()))
    assert shown["gain"] == pytest.approx((won - lost) / 10)
    assert shown["p"] == pytest.approx(p) and "known" not in shown["after"]


@pytest.mark.parametrize("better", [True, False])
def test_the_command(
    gallery: Path, place: Workspace, better: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Outcome, "is_better", better)
    home = gallery.parent
    shown = persona_here(
        *("learn", "gallery", "--test-set", "lfw", "--method", "finetune", "--steps", "2"),
        *("-b", "8", "--yes"),
        home=home,
    )
    assert shown["done"] is better and shown["held_out"] == 4
    assert shown["templates"] == (PEOPLE * PHOTOS if better else 0)
    listed = persona_here("gallery", "list", home=home)
    assert listed["model"] == (shown["after"]["model"] if better else "student")
    if better:
        back = persona_here("gallery", "rollback", home=home)
        assert (back["model"], back["threshold"]) == ("student", 0.5)
    else:
        line = persona_error_here("gallery", "rollback", home=home)
        assert "never moved to another network" in line
    assert [path.name for path in place.shards.iterdir()] == ["lfw"]


KILLED = """
import importlib, os, signal, sys
sys.path.insert(0, sys.argv.pop(1))
import little  # the student's backbone
from persona.cli.app import main
from persona.gallery_learning import Outcome

Outcome.is_better = True  # so that --yes takes it
place, attribute = sys.argv.pop(1).split(":")
owner = importlib.import_module(place)
*parts, last = attribute.split(".")
for part in parts:
    owner = getattr(owner, part)
work = getattr(owner, last)

def work_and_die(*arguments, **named):
    work(*arguments, **named)
    os.kill(os.getpid(), signal.SIGKILL)

setattr(owner, last, work_and_die)
main()
"""


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("moment", "is_moved"),
    [
        ("persona.data.journal:ShardWriter.append", False),  # the first faces are written
        ("persona.gallery_learning:pack_set", False),
        ("persona.training.run:save_checkpoint", False),
        ("persona.learning.run:learn", False),  # the new model is saved
        ("persona.gallery.sqlite:SqliteStore._taken_away", False),  # before the commit
        ("persona.gallery_learning:carry_out", True),
    ],
)
def test_killed_and_run_again(gallery: Path, place: Workspace, moment: str, is_moved: bool) -> None:
    """A real SIGKILL: the gallery is as before or as after, and another run ends it."""
    before, home = templates(gallery), gallery.parent
    command = ["learn", "gallery", "--test-set", "lfw", "--method", "finetune", "--steps", "2"]
    command += ["-b", "8", "-o", "checkpoint_steps=1", "--yes", "--json"]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, TESTS, moment, *command],
        env=environment(home),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    listed = persona_here("gallery", "list", home=home)
    assert (listed["model"] != "student") == is_moved
    assert [person["photos"] for person in listed["people"]] == [PHOTOS] * PEOPLE
    with open_store(gallery) as store:
        assert all(photo.crop is not None for *_, photo in store.photos())
    if is_moved:
        assert not np.allclose(templates(gallery), before)
        assert persona_here("gallery", "rollback", home=home)["model"] == "student"
        assert np.array_equal(templates(gallery), before)
        return
    assert np.array_equal(templates(gallery), before)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Outcome, "is_better", True)
        shown = persona_here(*command[:-1], home=home)
    assert shown["done"] and shown["templates"] == PEOPLE * PHOTOS
    # No face is left beside the gallery, neither packed nor waiting for it.
    assert sorted(path.name for path in place.shards.iterdir()) == ["lfw"]

"""Moving a gallery to another network: from kept faces, and by an orthogonal map."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_files
import pytest
from conftest import NO_ALIGN
from helpers import environment, persona_error_here, persona_here
from PIL import Image
from typer.testing import CliRunner

from persona.cli.app import app
from persona.data.align.spec import ARCFACE, AlignSpec
from persona.data.pack import pack_photos
from persona.data.raw import open_dataset
from persona.data.synthetic import draw_identity, draw_photo
from persona.errors import PersonaError
from persona.gallery import crypt
from persona.gallery.people import card_threshold, load_named, rebuild
from persona.gallery.store import open_store, unit
from persona.gallery.upgrade import Fitted, fit, plan_rollback, procrustes, roll_back
from persona.workspace import Workspace

SIDE = NO_ALIGN.align.image_size
TURN = np.linalg.qr(np.random.default_rng(7).normal(size=(9, 9)))[0]


def embedded(
    width: int = 16, people: int = 60, photos: int = 8, error: float = 0.15
) -> tuple[Any, Any, Any]:
    """Embeddings of people by two networks whose spaces are turned, and whose errors differ."""
    rng = np.random.default_rng(0)
    label = np.repeat(np.arange(people), photos)
    centre = unit(rng.normal(size=(people, width)))[label]
    turn = np.linalg.qr(rng.normal(size=(width, width)))[0]
    a, b = (unit(centre + error * rng.normal(size=centre.shape)) for _ in range(2))
    return a, unit(b @ turn), label


def test_the_map_is_orthogonal_and_finds_the_turn() -> None:
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.normal(size=(16, 16)))[0]
    a = unit(rng.normal(size=(200, 16)))
    found = procrustes(a, unit(a @ turn))
    assert found == pytest.approx(turn, abs=1e-5)
    wider = procrustes(a, unit(rng.normal(size=(200, 24))))
    assert wider.shape == (16, 24)
    assert wider @ wider.T == pytest.approx(np.eye(16), abs=1e-9)


def test_what_a_map_costs_is_measured_on_others() -> None:
    a, b, label = embedded()
    found = fit(a, b, label, "set", "old")
    assert (found.people, found.held_out_people) == (42, 18)
    assert (found.faces, found.held_out_faces) == (336, 144)
    assert found.impostors == 144 * 143 // 2 - 18 * 28
    assert found.mapped == pytest.approx(found.today, abs=0.1)
    assert found.loss == pytest.approx(min(found.today, found.anew) - found.mapped)
    assert found.loss < 0.05
    assert found.threshold is not None
    assert found.threshold.far == 1e-3
    assert found.threshold.source.startswith(
        "FAR 0.001 on the 18 held-out people of set (9,792 pairs of two people, of which one is "
        "mapped from old), TAR 0."
    )
    # The threshold is that of mapped templates against faces by the new network.
    held = np.isin(label, np.random.default_rng(0).permutation(60)[:18])
    scores = unit(a[held] @ found.map) @ b[held].T
    later = np.triu(np.ones_like(scores, bool), 1)
    others = label[held][:, None] != label[held]
    assert np.mean(scores[later & others] >= found.threshold.value) <= 1e-3
    assert np.mean(scores[later & ~others] >= found.threshold.value) == pytest.approx(found.mapped)


def test_a_rate_that_cannot_be_resolved_gives_no_threshold() -> None:
    assert fit(*embedded(), "set", "old", far=1e-6).threshold is None


def test_a_map_may_carry_to_another_size() -> None:
    a, b, label = embedded()
    found = fit(a, np.pad(b, ((0, 0), (0, 8))), label, "set", "old")
    assert found.map.shape == (16, 24)
    assert found.loss < 0.05


def test_bad_maps_are_refused() -> None:
    a, b, label = embedded()
    with pytest.raises(
        PersonaError, match=r"has 24 faces to fit a map of 16 numbers on, .* 32 are"
    ):
        fit(a[:40], b[:40], label[:40], "set", "old")
    with pytest.raises(
        PersonaError, match=r"2 held-out people of set give 64 pairs of two .*--fit-set"
    ):
        fit(a[:56], b[:56], label[:56], "set", "old")
    # Networks that have nothing in common.
    strange = unit(np.random.default_rng(1).normal(size=(60, 16)))[label]
    noise = 0.1 * np.random.default_rng(2).normal(size=strange.shape)
    line = (
        r"would lose too much: on the 18 held-out people of set, the TAR at FAR 0.001 of mapped "
        r"templates is 0\.\d{4}, and that of both networks alone 0\.\d{4} and [01]\.\d{4}; at most "
    )
    with pytest.raises(PersonaError, match=line):
        fit(a, unit(strange + noise), label, "set", "old")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A gallery of Ann and Bob, two networks of turned spaces, and a set of 60 people."""
    for name, turn in (("old", None), ("new", TURN)):
        path = onnx_files.write_model(tmp_path / f"{name}.onnx", side=SIDE, turn=turn)
        text = onnx_files.SETTINGS.replace(str(onnx_files.SIDE), str(SIDE))
        path.with_suffix(".yaml").write_text(text)
    for person, name in enumerate(("Ann", "Bob")):
        (tmp_path / "people" / name).mkdir(parents=True)
        for photo in range(2):
            image = draw_photo(draw_identity(0, person), photo, 160).convert("RGB")
            image.save(tmp_path / "people" / name / f"{photo}.png")
    rng = np.random.default_rng(0)
    for person in range(60):
        colour = rng.integers(20, 235, 3)
        for photo in range(3):
            path = tmp_path / "faces" / f"p{person}" / f"{photo}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = (colour + rng.integers(-3, 4, 3)).clip(0, 255).astype(np.uint8)
            Image.new("RGB", (SIDE, SIDE), tuple(pixels.tolist())).save(path)
    faces = open_dataset(f"folders:{tmp_path}/faces", tmp_path)
    pack_photos(faces, tmp_path / "shards" / "faces", NO_ALIGN)
    return tmp_path


def enroll(place: Path, *more: str) -> None:
    people = ("enroll", str(place / "people"), "--force", "--threshold", "0.9", *more)
    persona_here(*people, "--model", f"onnx:{place}/old.onnx", home=place)


def templates(place: Path) -> Any:
    with open_store(place / "gallery.db") as store:
        return np.stack([photo.template for _, _, photo in store.photos()])


def network(place: Path) -> str:
    return str(persona_here("gallery", "list", home=place)["model"]).rpartition("/")[2]


def test_templates_are_mapped(place: Path) -> None:
    enroll(place)
    before = templates(place)
    new = ("gallery", "upgrade", "--model", f"onnx:{place}/new.onnx")
    assert "4 of 4 photos of" in persona_error_here(*new, home=place)
    assert "give --fit-set SET" in persona_error_here(*new, home=place)
    command = (*new, "--fit-set", "faces")
    plan = persona_here(*command, home=place)
    assert (plan["done"], plan["anew"], plan["mapped"]) == (False, 0, 4)
    assert plan["fit"]["loss"] == pytest.approx(0, abs=0.02)
    assert (network(place), templates(place).tolist()) == ("old.onnx", before.tolist())
    # What it costs is shown before anything is done.
    result = CliRunner().invoke(app, [*command], env={"PERSONA_HOME": str(place)})
    assert "cost of the map against today" in result.stdout
    assert "nothing is changed: --yes does it" in result.stderr
    assert network(place) == "old.onnx"
    result = CliRunner().invoke(app, [*command, "--yes"], env={"PERSONA_HOME": str(place)})
    assert result.exception is None
    assert "4 of them mapped" in result.stderr
    assert network(place) == "new.onnx"
    assert templates(place) == pytest.approx(unit(before @ TURN), abs=1e-4)
    seen = persona_here("recognise", str(place / "people" / "Bob"), "--match", "max", home=place)
    assert [face["name"] for one in seen["photos"] for face in one["faces"]] == ["Bob", "Bob"]
    assert seen["threshold_source"].startswith("FAR 0.001 on the 18 held-out people of faces")
    assert "one is mapped from onnx:old.onnx), TAR" in seen["threshold_source"]
    assert "is of onnx:" in persona_error_here(*command, home=place)


def test_kept_faces_are_embedded_anew(place: Path) -> None:
    enroll(place, "--keep-crops")
    new = ("gallery", "upgrade", "--model", f"onnx:{place}/new.onnx")
    done = persona_here(*new, home=place)
    assert (done["done"], done["anew"], done["mapped"], done["fit"]) == (True, 4, 0, None)
    mapped = templates(place)
    (place / "gallery.db").rename(place / "upgraded.db")
    enroll(place)
    assert mapped == pytest.approx(unit(templates(place) @ TURN), abs=1e-4)


def test_some_faces_are_kept(place: Path) -> None:
    photo = str(place / "people" / "Ann" / "0.png")
    common = ("--model", f"onnx:{place}/old.onnx", "--threshold", "0.9", "--force")
    persona_here("enroll", "Ann", photo, *common, "--keep-crops", home=place)
    enroll(place)
    before = templates(place)
    new = ("gallery", "upgrade", "--model", f"onnx:{place}/new.onnx", "--fit-set", "faces", "--yes")
    done = persona_here(*new, home=place)
    assert (done["done"], done["anew"], done["mapped"]) == (True, 1, 3)
    assert templates(place) == pytest.approx(unit(before @ TURN), abs=1e-4)


def test_faces_of_another_alignment_are_not_embedded(place: Path) -> None:
    """Persona-S looks at faces on the template, the other network at boxes with a margin."""
    people = ("enroll", str(place / "people"), "--force", "--threshold", "0.9", "--keep-crops")
    persona_here(*people, "--model", "persona-s", home=place)
    new = ("--model", f"onnx:{place}/new.onnx")
    line = persona_error_here("gallery", "upgrade", *new, home=place)
    assert "4 of 4 photos of " in line
    assert "have no face that is aligned as onnx:" in line
    assert "wants it (landmarks, not mtcnn): give --fit-set SET" in line
    line = persona_error_here("gallery", "rebuild", *new, home=place)
    assert "wants faces that are aligned in another way (mtcnn) than those that" in line
    assert network(place) == "persona-s"


def test_faces_that_were_mapped_keep_their_alignment(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their crops are still aligned for the network before."""
    monkeypatch.setattr(
        *("persona.gallery.people.network_align",),
        lambda named, _: AlignSpec() if "old" in named.name else ARCFACE,
    )
    enroll(place, "--keep-crops")
    before = templates(place)
    upgrade(place)
    with open_store(place / "gallery.db") as store:
        assert {photo.align for *_, photo in store.photos()} == {AlignSpec()}
    onnx_files.write_model(place / "third.onnx", side=SIDE, turn=TURN.T)
    (place / "third.yaml").write_text((place / "new.yaml").read_text())
    third = ("--model", f"onnx:{place}/third.onnx")
    line = persona_error_here("gallery", "upgrade", *third, home=place)
    assert "4 of 4 photos of " in line and "wants it (mtcnn, not landmarks): give" in line
    line = persona_error_here("gallery", "rebuild", *third, home=place)
    assert "(landmarks) than those that" in line and "keeps (mtcnn)" in line
    # A person who is enrolled since has a crop that fits.
    photo = str(place / "people" / "Ann" / "0.png")
    persona_here(
        *("enroll", "Cy", photo, "--threshold", "0.9", "--force", "--keep-crops"),
        *("--model", f"onnx:{place}/new.onnx"),
        home=place,
    )
    line = persona_error_here("gallery", "rebuild", *third, home=place)
    assert "(landmarks) than 4 of 5 of those that" in line
    assert "4 of 5 photos of " in persona_error_here("gallery", "upgrade", *third, home=place)
    # On the way back hers does not, but the others need none.
    line = persona_error_here("gallery", "rollback", home=place)
    assert "1 of 5 photos of " in line
    persona_here("forget", "Cy", home=place)
    assert persona_here("gallery", "rollback", home=place)["kept"] == 4
    with open_store(place / "gallery.db") as store:
        assert {photo.align for *_, photo in store.photos()} == {None}
        assert rebuild(store, f"onnx:{place}/old.onnx", Workspace.locate(home=place)) == 4
    assert templates(place) == pytest.approx(before, abs=1e-4)


def test_a_map_needs_the_gallerys_own_network(place: Path) -> None:
    enroll(place)
    command = ("gallery", "upgrade", "--model", f"onnx:{place}/new.onnx", "--fit-set", "faces")
    onnx_files.write_model(place / "old.onnx", side=SIDE, turn=TURN.T)
    line = persona_error_here(*command, "--yes", home=place)
    assert "old.onnx is not the network any more that made the templates of" in line
    (place / "old.onnx").unlink()
    assert "old.onnx" in persona_error_here(*command, "--yes", home=place)


KILLED = """
import os, signal
from persona.cli.app import main
from persona.gallery.sqlite import SqliteStore

SqliteStore._taken_away = lambda store: os.kill(os.getpid(), signal.SIGKILL)
main()
"""


def killed(place: Path, *command: str) -> None:
    """Runs a command that is killed when every template and the facts are written.

    Nothing is committed by then.
    """
    done = subprocess.run(
        [sys.executable, "-c", KILLED, *command],
        env=environment(place),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


def test_a_kill_changes_all_or_nothing(place: Path) -> None:
    enroll(place)
    before = templates(place)
    command = ["gallery", "upgrade", "--model", f"onnx:{place}/new.onnx", "--fit-set", "faces"]
    killed(place, *command, "--yes")
    assert (network(place), templates(place).tolist()) == ("old.onnx", before.tolist())
    assert persona_here(*command, "--yes", home=place)["done"]
    assert network(place) == "new.onnx"
    # And back.
    mapped = templates(place)
    killed(place, "gallery", "rollback")
    assert (network(place), templates(place).tolist()) == ("new.onnx", mapped.tolist())
    assert persona_here("gallery", "rollback", home=place)["kept"] == 4
    assert (network(place), templates(place).tolist()) == ("old.onnx", before.tolist())


def upgrade(place: Path, *more: str) -> None:
    new = ("gallery", "upgrade", "--model", f"onnx:{place}/new.onnx", "--fit-set", "faces", "--yes")
    assert persona_here(*new, *more, home=place)["done"]


def recognised(place: Path, *more: str) -> Any:
    return persona_here("recognise", str(place / "people" / "Bob"), *more, home=place)


@pytest.mark.parametrize("encrypted", [False, True])
def test_the_way_back_needs_no_kept_face(
    place: Path, encrypted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(crypt.SCRYPT, "n", 2**10)  # it is slow by design
    (place / "secret").write_text("correct horse")
    more = ("--passphrase-file", str(place / "secret")) if encrypted else ()
    enroll(place, *more)
    persona_here("gallery", "calibrate", "--threshold", "0.9", *more, home=place)
    before = recognised(place, *more)
    upgrade(place, *more)
    after = recognised(place, *more)
    assert after != before
    shown = persona_here("gallery", "list", home=place)
    assert shown["previous"].endswith("old.onnx")
    back = persona_here("gallery", "rollback", *more, home=place)
    assert (back["done"], back["kept"], back["anew"], back["lacking"]) == (True, 4, 0, {})
    assert (back["threshold"], back["templates"]) == (0.9, 4)
    assert recognised(place, *more) == before  # to the last digit
    forward = persona_here("gallery", "rollback", *more, home=place)
    assert (forward["kept"], forward["anew"]) == (4, 0)
    assert recognised(place, *more) == after


def test_who_was_enrolled_since_needs_a_kept_face_for_the_way_back(place: Path) -> None:
    enroll(place)
    before = templates(place)
    upgrade(place)
    photo = str(place / "people" / "Ann" / "0.png")
    common = ("--model", f"onnx:{place}/new.onnx", "--threshold", "0.9", "--force")
    persona_here("enroll", "Cy", photo, *common, home=place)
    persona_here("enroll", "Dee", photo, *common, "--keep-crops", home=place)
    new = templates(place)
    line = persona_error_here("gallery", "rollback", home=place)
    assert "1 of 6 photos of " in line and "have neither a template of onnx:" in line
    assert "rollback --dry-run` names their people; forget them" in line and "Cy" not in line
    plan = persona_here("gallery", "rollback", "--dry-run", home=place)
    assert (plan["done"], plan["kept"], plan["anew"], plan["lacking"]) == (False, 4, 1, {"Cy": 1})
    shown = CliRunner().invoke(
        app, ["gallery", "rollback", "--dry-run"], env={"PERSONA_HOME": str(place)}
    )
    assert "of Cy" in shown.stdout and "nothing is changed" in shown.stderr
    assert (network(place), templates(place).tolist()) == ("new.onnx", new.tolist())

    persona_here("forget", "Cy", home=place)
    back = persona_here("gallery", "rollback", home=place)
    assert (back["kept"], back["anew"]) == (4, 1)
    assert np.array_equal(templates(place)[:4], before)
    assert templates(place)[4] == pytest.approx(before[0], abs=1e-6)  # Dee's, by the old network
    # Forward again, Dee's template is put back, too.
    assert persona_here("gallery", "rollback", home=place)["kept"] == 5
    assert np.array_equal(templates(place), np.delete(new, 4, axis=0))


def test_the_way_back_to_a_shipped_model_ends_with_the_threshold_of_its_card(place: Path) -> None:
    enroll(place)
    upgrade(place)
    with open_store(place / "gallery.db") as store, store.changing():
        facts, shipped = store.facts(), load_named("persona-s", Workspace.locate(home=place))[1]
        assert facts is not None and facts.previous is not None
        store._keep_facts(replace(facts, previous=replace(shipped, width=facts.previous.width)))
    wanted = card_threshold("persona-s", Workspace.locate(home=place))
    assert wanted is not None
    back = CliRunner().invoke(app, ["gallery", "rollback"], env={"PERSONA_HOME": str(place)})
    assert f"threshold {wanted.value:.3f}: FAR " in back.stderr
    assert "choose their threshold" not in back.stderr


def test_the_way_back_is_discarded(place: Path) -> None:
    enroll(place)
    both = ("gallery", "rollback", "--discard", "--dry-run")
    assert "give one of them" in persona_error_here(*both, home=place)
    for command in (("gallery", "rollback"), ("gallery", "rollback", "--discard")):
        line = persona_error_here(*command, home=place)
        assert "never moved to another network, or discarded the one before" in line
    before = templates(place)
    upgrade(place)
    assert before[0].tobytes() in (place / "gallery.db").read_bytes()
    gone = persona_here("gallery", "rollback", "--discard", home=place)
    assert gone["discarded"] == 4 and gone["model"].endswith("old.onnx")
    assert before[0].tobytes() not in (place / "gallery.db").read_bytes()
    assert network(place) == "new.onnx"
    assert "discarded the one before" in persona_error_here("gallery", "rollback", home=place)
    assert persona_here("gallery", "list", home=place)["previous"] is None


def test_a_plan_sees_the_gallery_of_one_moment(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process moves the gallery while the way back is planned, if it does not wait."""
    enroll(place)
    before = templates(place)
    upgrade(place)
    home = Workspace.locate(shards=place / "shards", models=place / "models")

    def move() -> None:
        with open_store(place / "gallery.db") as other:
            facts = other.facts()
            assert facts is not None
            rows = {number: photo.template[::-1] for _, number, photo in other.photos()}
            other.replace(replace(facts, digest="third"), rows)

    mover = threading.Thread(target=move)
    with open_store(place / "gallery.db") as store:
        photos = store.photos

        def late(name: str | None = None) -> Any:
            found = list(photos(name))
            mover.start()
            mover.join(0.5)
            return iter(found)

        monkeypatch.setattr(store, "photos", late)
        plan = plan_rollback(store, home)
    mover.join()
    assert plan.facts.network.endswith("old.onnx")
    assert np.array_equal(list(plan.kept.values()), before)


def test_two_who_move_a_gallery_at_once_do_not_mix_their_templates(place: Path) -> None:
    """A rollback is planned, another process moves on, and then the rollback is carried out."""
    enroll(place, "--keep-crops")
    before = templates(place)
    third = onnx_files.write_model(place / "third.onnx", side=SIDE, turn=TURN.T)
    third.with_suffix(".yaml").write_text((place / "old.yaml").read_text())
    upgrade(place)
    home = Workspace.locate(shards=place / "shards", models=place / "models")
    with open_store(place / "gallery.db") as store:
        plan = plan_rollback(store, home)
        persona_here("gallery", "upgrade", "--model", f"onnx:{third}", home=place)
        moved = templates(place)
        roll_back(store, plan)
        assert (network(place), templates(place).tolist()) == ("old.onnx", before.tolist())
        # What is kept is what was there at that moment.
        facts = store.facts()
        assert facts is not None and facts.previous is not None
        assert facts.previous.network.endswith("third.onnx")
        assert np.array_equal(list(store.previous_templates().values()), moved)


def test_the_loss_is_against_the_weaker_network() -> None:
    facts: dict[str, Any] = dict.fromkeys(
        ("faces", "people", "held_out_faces", "held_out_people", "impostors"), 0
    )
    found = Fitted(
        np.eye(2), "set", agreement=0.6, threshold=None, today=0.9, mapped=0.7, anew=0.6, **facts
    )
    assert found.loss == pytest.approx(-0.1)

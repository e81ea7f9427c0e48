"""The public API on drawn faces and a small ONNX network."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from api_faces import drawn
from conftest import SIZE_PX
from PIL import Image
from torch import nn

import persona
from persona.api import training
from persona.api.photos import PhotoLike
from persona.config import DistillConfig
from persona.data.align.spec import Crop
from persona.data.pack import Packed
from persona.distill import apart
from persona.errors import Preempted
from persona.gallery.store import Threshold, open_store
from persona.gallery.unknown_faces import UnknownFaces
from persona.landmarks import template
from persona.training.preemption import Preemption
from persona.workspace import Workspace

NOBODY = cast(persona.FaceSet, None)
"""Stands for a set that is not looked at."""
FAKE = """
import json, sys
recipe = next(word for word in sys.argv if word.startswith("--config="))[9:]
count = next(word for word in sys.argv if word.startswith("--nproc_per_node="))[17:]
if "seed: 7" in open(recipe).read():
    sys.stderr.write("error: no such set\\nTraceback\\nChildFailedError\\n")
    sys.exit(1)
assert "--resume=auto" in sys.argv
print(json.dumps({"id": f"student-of-{count}"}))
"""


def test_importing_it_imports_nothing_heavy() -> None:
    code = (
        "import persona, sys; dir(persona); "
        "sys.exit(bool({'torch', 'numpy', 'PIL', 'yaml'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_is_there_and_documented() -> None:
    assert set(persona.__all__) <= set(dir(persona))
    for name in persona.__all__:
        assert getattr(persona, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        persona.lod  # noqa: B018


def test_a_photo_comes_in_any_form(loaded: persona.Model, tmp_path: Path) -> None:
    photo = drawn(1)
    file = io.BytesIO()
    photo.save(file, "PNG")
    path = tmp_path / "photo.png"
    path.write_bytes(file.getvalue())
    forms: list[PhotoLike] = [path, str(path), file.getvalue(), photo, np.asarray(photo)]
    found = [loaded.find(form) for form in forms]
    assert all(len(faces) == 1 for faces in found)
    assert len({faces[0].box for faces in found}) == 1
    face = found[0][0]
    assert face.crop.shape == (160, 160, 3) and face.crop.dtype == np.uint8
    assert face.landmarks is not None and face.landmarks.shape == (5, 2)
    assert face.probability is not None and face.probability > 0.9 and face.flaw is None


@pytest.mark.parametrize(
    ("photo", "says"),
    [
        ("/nowhere/a.jpg", "photo /nowhere/a.jpg: unreadable: no file"),
        (b"", "photo: unreadable: empty file"),
        (b"no photo", "photo: unreadable: no "),
        (3, "photo: give a path, bytes, a PIL image or an array, not int"),
        (np.zeros((8, 8), np.uint8), "must be (height, width, 3) uint8 RGB, not (8, 8) uint8"),
        (np.zeros((8, 8, 3)), "not (8, 8, 3) float64"),
    ],
)
def test_what_is_no_photo_is_said(loaded: persona.Model, photo: object, says: str) -> None:
    with pytest.raises(persona.PersonaError) as error:
        loaded.find(photo)  # type: ignore[arg-type]
    assert says in str(error.value)


def test_faces_photos_and_crops_have_the_same_embedding(loaded: persona.Model) -> None:
    photos = [drawn(1), drawn(2)]
    faces = [loaded.find(photo)[0] for photo in photos]
    embeddings = loaded.embed(faces)
    assert embeddings.shape == (2, loaded.embedding_size) and embeddings.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(loaded.embed(photos), embeddings)
    np.testing.assert_allclose(loaded.embed(faces[0].crop), embeddings[:1], atol=1e-6)
    np.testing.assert_array_equal(loaded.embed(faces[1]), embeddings[1:])
    assert loaded.embed([]).shape == (0, loaded.embedding_size)


def test_photos_without_a_face_or_with_two_are_refused(loaded: persona.Model) -> None:
    empty = Image.new("RGB", (200, 200), "grey")
    with pytest.raises(persona.PersonaError, match="photo 2 of 2: no face was found"):
        loaded.embed([drawn(1), empty])
    two = Image.new("RGB", (320, 160), "grey")
    two.paste(drawn(1), (0, 0))
    two.paste(drawn(2), (160, 0))
    with pytest.raises(persona.PersonaError, match="photo: 2 faces were found"):
        persona.verify(two, drawn(1), model=loaded, threshold=0.5)


def test_a_verdict_says_where_its_threshold_is_from(loaded: persona.Model) -> None:
    one, other = drawn(1, 1), drawn(1, 2)
    verdict = persona.verify(one, other, model=loaded)
    assert verdict.same is None and verdict.threshold is None
    assert "model.calibrate(set)" in verdict.source
    given = persona.verify(one, other, model=loaded, threshold=verdict.similarity - 0.001)
    assert given.same is True and given.far is None and given.source == "given by the caller"
    assert persona.verify(one, other, model=loaded, threshold=1.0).same is False
    assert persona.verify(one, one, model=loaded, threshold=0.99).similarity == pytest.approx(1)
    with pytest.raises(persona.PersonaError, match="threshold 2: choose -1 to 1"):
        persona.verify(one, other, model=loaded, threshold=2)


@pytest.mark.filterwarnings("ignore:.*unclosed file:ResourceWarning")  # webdataset's own
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_set_is_one_object(lfw_set: Packed, tmp_path: Path) -> None:
    faces = persona.open_set("lfw", workspace=Workspace.locate(home=tmp_path))
    assert len(faces) == 24 and faces.name == "lfw" and len(faces.identities) == 6
    batches = list(faces.loader(batch_size=5))
    assert sum(len(batch.images) for batch in batches) == 24
    assert batches[0].images.shape[1:] == (3, SIZE_PX, SIZE_PX)
    assert batches[0].images.dtype == torch.uint8
    ranks = [faces.loader(batch_size=4, training=True, rank=r, world_size=2) for r in (0, 1)]
    keys = [np.concatenate([batch.keys for batch in rank]) for rank in ranks]
    assert not set(keys[0].ravel()) & set(keys[1].ravel())
    assert len(faces.pairs()) == 12 and len(faces.metas()) == 24
    faces.verify()
    assert faces.targets("onnx:nothing") is None
    names = [sample["__key__"] for sample in faces.webdataset()]
    assert len(names) == 24 and all(name.isdigit() for name in names)
    with pytest.raises(persona.PersonaError, match="lfv"):
        persona.open_set("lfv", workspace=Workspace.locate(home=tmp_path))


def test_a_module_of_the_users_own_is_wrapped_once(lfw_set: Packed, tmp_path: Path) -> None:
    place = Workspace.locate(home=tmp_path)
    own = nn.Sequential(nn.AvgPool2d(8), nn.Flatten())
    model = persona.wrap(own, image_size=SIZE_PX, alignment="mtcnn", workspace=place)
    assert model.embedding_size == 48
    crop = np.array(drawn(1).resize((SIZE_PX, SIZE_PX)))
    wanted = nn.functional.avg_pool2d(torch.from_numpy(crop).permute(2, 0, 1)[None].float(), 8)
    wanted = nn.functional.normalize((wanted.flatten(1) - 127.5) / 128)
    np.testing.assert_allclose(model.embed(crop), wanted.numpy(), atol=1e-5)
    result = model.evaluate(persona.open_set("lfw", workspace=place))
    assert result.pairs == 12 and 0 <= (result.accuracy or 0) <= 1
    assert result.to_json()["model"] == "a wrapped network"
    assert "<th>pairs</th><td>12</td>" in result._repr_html_()
    again = persona.wrap(own, image_size=SIZE_PX, workspace=place)
    other = persona.wrap(own, image_size=SIZE_PX, mean=0, workspace=place)
    assert model.named.digest == again.named.digest != other.named.digest


def test_a_wrapped_network_has_nothing_of_the_one_whose_name_it_bears(tmp_path: Path) -> None:
    place, own = Workspace.locate(home=tmp_path), nn.Sequential(nn.AvgPool2d(8), nn.Flatten())
    for name in ("persona-xs", "mobilenet_v3_small", "a wrapped network"):
        model = persona.wrap(own, image_size=SIZE_PX, name=name, workspace=place)
        with pytest.raises(persona.PersonaError, match=f"{name} has no thresholds of its own"):
            model.calibrate(far=1e-3)
        with pytest.raises(
            persona.PersonaError, match=f"opens {name} anew by its name.*: export it"
        ):
            persona.write_report([model], NOBODY, tmp_path / "report.html")
    assert persona.load("persona-xs", workspace=place).calibrate(far=1e-3).value > 0


def test_a_report_looks_for_models_where_they_were_loaded(
    loaded: persona.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places: list[Workspace] = []

    def find(names: list[str], teacher: str | None, place: Workspace) -> None:
        places.append(place)
        raise persona.PersonaError(f"{names} are looked for")

    monkeypatch.setattr("persona.report.build.find_entries", find)
    for given in (None, loaded.workspace):
        with pytest.raises(persona.PersonaError, match="are looked for"):
            persona.write_report(
                ["persona-xs", loaded], NOBODY, tmp_path / "a.html", workspace=given
            )
    assert places == [loaded.workspace] * 2
    settings = tmp_path / "net.yaml"
    settings.write_text(settings.read_text().replace("mean: [10", "mean: [11"))
    with pytest.raises(persona.PersonaError, match=r"net\.onnx is the name of another network"):
        persona.write_report([loaded], NOBODY, tmp_path / "a.html")


@pytest.mark.parametrize(
    ("network", "options", "says"),
    [
        (nn.Identity(), {}, "it must give a (batch, numbers) tensor"),
        (nn.Linear(3, 4), {}, "the wrapped network failed on a (2, 3, 32, 32) batch"),
        (nn.Flatten(), {"std": 0}, "std: give numbers above 0"),
        (nn.Flatten(), {"mean": [1, 2]}, "mean: give one number, or three"),
        (nn.Flatten(), {"alignment": "eyes"}, "alignment"),
    ],
)
def test_a_network_that_cannot_be_wrapped_is_refused(
    network: nn.Module, options: dict[str, object], says: str
) -> None:
    with pytest.raises(persona.PersonaError) as error:
        persona.wrap(network, image_size=32, **options)  # type: ignore[arg-type]
    assert says in str(error.value)


def test_people_are_enrolled_recognised_and_forgotten(
    loaded: persona.Model, tmp_path: Path
) -> None:
    place = tmp_path / "gallery.db"
    with pytest.raises(persona.PersonaError, match="give `threshold`"):
        persona.open_gallery(place, loaded)
    with persona.open_gallery(place, loaded, threshold=0.2) as people:
        done = people.enroll("Ada", [drawn(1, 1), b"no photo"])
        assert done.added == 1 and "unreadable" in done.refused[0]
        with pytest.raises(persona.PersonaError, match="'Bob' looks like 'Ada'"):
            people.enroll("Bob", drawn(2))  # to this network everybody does
        assert people.enroll("Bob", drawn(2), force=True).added == 1
        assert [person.name for person in people.list()] == ["Ada", "Bob"]
        (seen,) = people.recognise(drawn(1, 1))
        assert seen.name == "Ada" and seen.score == pytest.approx(1, abs=1e-4)
        people.rename("Ada", "Eve")
        with pytest.raises(persona.PersonaError, match="somebody named 'Bob' already"):
            people.rename("Eve", "Bob")
        people.enroll("Cy", drawn(3), force=True)
        assert people.merge("Cy", "Eve", force=True) == 1
        assert people.forget("Eve") == 2
        assert [person.name for person in people.list()] == ["Bob"]
    untrained = persona.load("mobilenet_v3_small")
    with pytest.raises(persona.PersonaError, match="is untrained"):
        persona.open_gallery(tmp_path / "other.db", untrained, threshold=0.2)


def test_a_gallery_keeps_its_alignment(tmp_path: Path) -> None:
    """The network is the same, but its embeddings of other crops cannot be compared."""
    own, photo = nn.Sequential(nn.AvgPool2d(8), nn.Flatten()), drawn(1)
    options: dict[str, Any] = {"image_size": SIZE_PX, "workspace": Workspace.locate(home=tmp_path)}
    for alignment in ("landmarks", "mtcnn"):
        model = persona.wrap(own, alignment=alignment, **options)
        with persona.open_gallery(tmp_path / "gallery.db", model, threshold=0.2) as people:
            if alignment == "landmarks":
                people.enroll("Ada", photo)
            (seen,) = people.recognise(photo)
            assert seen.name == "Ada" and seen.score == pytest.approx(1, abs=1e-4)


def test_a_threshold_that_is_chosen_meanwhile_is_taken(
    loaded: persona.Model, tmp_path: Path
) -> None:
    place, digest = tmp_path / "gallery.db", loaded.named.digest
    persona.open_gallery(place, loaded, threshold=0.2).close()
    for given, wanted in ((None, 0.7), (0.2, 0.2)):
        with open_store(place) as store:
            store.set_threshold(Threshold(0.6, "a set"), digest)
            with persona.open_gallery(place, loaded, threshold=given) as people:
                store.set_threshold(Threshold(0.7, "a set"), digest)
                people.recognise(drawn(1))
                assert people.threshold == wanted


def test_who_is_forgotten_is_not_kept_as_unknown(loaded: persona.Model, tmp_path: Path) -> None:
    place, photo = tmp_path / "gallery.db", drawn(1, 1)
    file = tmp_path / "gallery.db.unknown"
    with UnknownFaces(file, hours=1) as unknown:
        unknown.keep(
            loaded.embed(loaded.find(photo)), [Crop(b"a crop", None, None)], loaded.named.digest
        )
    with persona.open_gallery(place, loaded, threshold=0.2) as people:
        people.enroll("Ada", photo)
        people.forget("Ada")
    with UnknownFaces(file) as unknown:
        assert unknown.faces() == []


def test_a_list_is_imported_and_the_gallery_is_audited(
    loaded: persona.Model, tmp_path: Path
) -> None:
    rows = ["name,photo"]
    for name, person, photo in (("Ada", 1, 1), ("Ada", 1, 2), ("Bob", 2, 0)):
        drawn(person, photo).save(tmp_path / f"{name}{photo}.png")
        rows.append(f"{name},{name}{photo}.png")
    (tmp_path / "people.csv").write_text("\n".join([*rows, "Cy,none.png"]))
    with persona.open_gallery(tmp_path / "gallery.db", loaded, threshold=0.2) as people:
        with pytest.raises(persona.PersonaError, match="has nobody to look at"):
            people.audit()
        for bad, line in (("people.txt", "is no list"), ("none.csv", "none.csv")):
            with pytest.raises(persona.PersonaError, match=line):
                people.import_list(tmp_path / bad)
        with pytest.raises(persona.PersonaError, match="choose 0 or more"):
            people.import_list(tmp_path / "people.csv", workers=-1)
        done = people.import_list(tmp_path / "people.csv", force=True)
        assert (done.people, done.added, list(done.failed)) == (2, 3, ["Cy"])
        assert [(one.row, one.name) for one in done.refused] == [(5, "Cy")]
        again = people.import_list(tmp_path / "people.csv", force=True)
        assert (again.added, again.already) == (0, 3)
        found = people.audit()
        assert (found.people, found.templates, found.threshold.value) == (2, 3, 0.2)
        assert [(pair.a, pair.b) for pair in found.alike] == [("Ada", "Bob")]


class Log(persona.Callback):
    """Notes what it is told, and stops the run after so many steps."""

    def __init__(self, steps: int = 1000) -> None:
        self.steps, self.told = steps, list[tuple[str, int, int]]()
        self.figures: dict[str, float] = {}

    def on_step(self, moment: persona.Moment) -> None:
        self.told.append(("step", moment.step, moment.epoch))
        assert moment.metrics["loss"] >= 0
        if moment.step == self.steps:
            moment.stop()

    def on_epoch(self, moment: persona.Moment) -> None:
        self.told.append(("epoch", moment.step, moment.epoch))

    def on_evaluation(self, moment: persona.Moment) -> None:
        self.told.append(("evaluation", moment.step, moment.epoch))
        self.figures |= moment.metrics


def test_a_student_is_distilled_from_a_wrapped_network_and_a_callback_stops_it(
    train_set: Packed, lfw_set: Packed, tmp_path: Path
) -> None:
    place = Workspace.locate(home=tmp_path)
    own = nn.Sequential(nn.AvgPool2d(8), nn.Flatten())
    teacher = persona.wrap(own, image_size=SIZE_PX, workspace=place)
    train = persona.open_set("vggface2", workspace=place)
    test = persona.open_set("lfw", workspace=place)
    log, options = Log(), {"workers": 0, "student.width": 0.35}
    student = persona.distill(
        teacher=teacher,
        train=train,
        test=test,
        epochs=2,
        batch_size=10,
        callbacks=[log],
        options=options,
    )
    assert student.embedding_size == 48 and student.name.startswith("mobilenet_v3_small-")
    steps = [("step", 1, 0), ("step", 2, 0), ("step", 3, 0), ("epoch", 3, 0), ("evaluation", 3, 1)]
    assert log.told[:5] == steps and len(log.told) == 10
    assert 0 <= log.figures["test/accuracy"] <= 1

    # With targets kept the teacher is not asked; a callback ends the run in its second step.
    targets = train.keep_targets(teacher, batch_size=5)
    assert targets.views == 2 and train.targets(teacher.name) == targets
    own.forward = None  # type: ignore[method-assign,assignment]
    stopping = Log(steps=2)
    stopped = persona.distill(
        teacher=teacher,
        train=train,
        epochs=5,
        batch_size=10,
        callbacks=[stopping],
        options=options,
    )
    assert [told for told in stopping.told if told[0] == "step"] == [("step", 1, 0), ("step", 2, 0)]
    assert persona.load(stopped.name, workspace=place).name == stopped.name
    assert stopped.export(tmp_path / "student.onnx").is_file()


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_wrapped_network_is_exported(tmp_path: Path, precision: str) -> None:
    torch.manual_seed(0)
    own = nn.Sequential(nn.AvgPool2d(16), nn.Flatten(), nn.Linear(3 * 7 * 7, 32))
    place = Workspace.locate(home=tmp_path)
    model = persona.wrap(
        own, image_size=112, alignment="landmarks", mean=[120, 110, 100], std=60, workspace=place
    )
    path = model.export(tmp_path / "own.onnx", precision=precision)
    assert own[2].weight.dtype == torch.float32  # the user's own stays as it is
    opened = persona.load(str(path), workspace=place)
    crops = np.random.default_rng(0).integers(0, 256, (5, 112, 112, 3), dtype=np.uint8)
    points = np.tile(np.vstack([template(112), (1, 1)]), (5, 1, 1))
    network: Any = opened.named.network
    found = network.embed(crops, points)
    wanted = own(torch.from_numpy((crops - [120.0, 110, 100]) / 60).float().permute(0, 3, 1, 2))
    cosines = torch.nn.functional.cosine_similarity(torch.from_numpy(found), wanted.detach())
    assert cosines.min() > (0.99999 if precision == "fp32" else 0.999)


def test_an_option_that_an_export_does_not_have_is_refused(tmp_path: Path) -> None:
    own = nn.Sequential(nn.AvgPool2d(16), nn.Flatten())
    model = persona.wrap(own, image_size=112, workspace=Workspace.locate(home=tmp_path))
    with pytest.raises(persona.PersonaError, match="'precison' in format onnx; did you mean 'prec"):
        model.export(tmp_path / "own.onnx", precison="fp16")
    assert not list(tmp_path.iterdir())


def test_curves_that_cannot_be_drawn_are_refused(tmp_path: Path) -> None:
    axes = ("step", "loss")
    wrong: list[Any] = [{}, {"loss": ([1, 2], [0.5])}, {"loss": ([], [])}]
    for lines in wrong:
        with pytest.raises(persona.PersonaError, match="give at least one, each with as many x"):
            persona.draw_lines(lines, tmp_path / "a.svg", title="loss", axes=axes)
    with pytest.raises(persona.PersonaError, match="gif"):
        persona.draw_lines({"loss": ([1], [2])}, tmp_path / "a.gif", title="loss", axes=axes)
    assert not list(tmp_path.iterdir())


@pytest.mark.heavy
def test_curves_are_drawn(tmp_path: Path) -> None:
    path = tmp_path / "a.svg"
    lines = {"student 0.90": ([1, 2], [0.7, 0.9]), "teacher": ([1, 2], [0.95, 0.95])}
    persona.draw_lines(lines, path, title="AUC", axes=("step", "AUC"), chance=0.5)
    text = path.read_text()
    assert all(word in text for word in ("student 0.90", "teacher", "chance", "0.500", "step"))


def test_options_of_a_distillation_are_checked(
    train_set: Packed, loaded: persona.Model, tmp_path: Path
) -> None:
    train = persona.open_set("vggface2", workspace=Workspace.locate(home=tmp_path))
    with pytest.raises(persona.PersonaError, match="epohs"):
        persona.distill(teacher=loaded, train=train, options={"epohs": 3})
    with pytest.raises(persona.PersonaError, match="given by `teacher`"):
        persona.distill(teacher=loaded, train=train, options={"teacher": "none"})
    with pytest.raises(persona.PersonaError, match="processes 0: choose at least 1"):
        persona.distill(teacher=loaded, train=train, processes=0)
    with pytest.raises(persona.PersonaError, match="callbacks are called in this process, and 2"):
        persona.distill(teacher=loaded, train=train, processes=2, callbacks=[Log()])
    own = persona.wrap(nn.Flatten(), image_size=SIZE_PX)
    with pytest.raises(persona.PersonaError, match="2 processes cannot open the teacher"):
        persona.distill(teacher=own, train=train, processes=2)
    place = Workspace.locate(home=tmp_path)
    with pytest.raises(persona.PersonaError, match="unknown run 'mobilenet-typo'"):
        persona.distill(teacher=loaded, train=train, resume="mobilenet-typo", workspace=place)
    assert not place.runs.exists()


@pytest.mark.parametrize(
    ("arguments", "trained"),
    [
        ({}, "mobilefacenet"),
        ({"student": "mobilenet_v3_large"}, "mobilenet_v3_large"),
        ({"recipe": None}, "mobilenet_v3_small"),
        ({"recipe": None, "options": {"student": {"width": 0.5}}}, "mobilenet_v3_small"),
    ],
)
def test_the_student_is_the_recipes_unless_another_is_given(
    train_set: Packed,
    loaded: persona.Model,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: dict[str, Any],
    trained: str,
) -> None:
    configs: list[DistillConfig] = []

    def distil(config: DistillConfig, *_: object, **__: object) -> None:
        configs.append(config)
        raise Preempted("told to end")

    monkeypatch.setattr("persona.distill.recipe.distill", distil)
    train = persona.open_set("vggface2", workspace=Workspace.locate(home=tmp_path))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("student: {architecture: mobilefacenet}\n")
    asked: dict[str, Any] = {"teacher": loaded, "train": train, "recipe": recipe, **arguments}
    with pytest.raises(Preempted):
        persona.distill(**asked)
    assert [config.student.architecture for config in configs] == [trained]


def test_a_program_that_goes_on_after_an_early_end_has_its_signals_back(
    train_set: Packed, loaded: persona.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told_to_end(*_: object, **__: object) -> None:
        with Preemption(Accelerator(cpu=True)) as preemption:
            os.kill(os.getpid(), signal.SIGTERM)
            assert preemption.agreed()
            raise Preempted("told to end")

    monkeypatch.setattr("persona.distill.recipe.distill", told_to_end)
    place = Workspace.locate(home=tmp_path)
    train = persona.open_set("vggface2", workspace=place)
    received = list[int]()
    before = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    try:
        with pytest.raises(Preempted):
            persona.distill(teacher=loaded, train=train, workspace=place)
        assert not received
        os.kill(os.getpid(), signal.SIGTERM)
        assert received == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_several_processes_are_told_apart_by_their_answer(
    train_set: Packed, loaded: persona.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "fake.py"
    script.write_text(FAKE)
    monkeypatch.setattr(apart, "python", lambda: [sys.executable, str(script)])
    place = Workspace.locate(home=tmp_path)
    train = persona.open_set("vggface2", workspace=place)
    asked: dict[str, Any] = {"teacher": loaded, "train": train, "processes": 3, "workspace": place}
    with pytest.raises(persona.PersonaError, match=r"^no such set$"):
        persona.distill(**asked, seed=7)
    monkeypatch.setattr(training, "load", lambda name, workspace: (name, workspace))
    found: Any = persona.distill(**asked, resume="auto")
    assert found == ("student-of-3", place)
    assert not list(place.runs.glob(".processes-*"))


@pytest.mark.heavy
def test_two_processes_distil_a_student(
    train_set: Packed, loaded: persona.Model, tmp_path: Path
) -> None:
    place = Workspace.locate(home=tmp_path)
    settings = Path(loaded.name.removeprefix("onnx:")).with_suffix(".yaml")
    settings.write_text(settings.read_text() + "checked: true\n")  # it tells nobody apart
    student = persona.distill(
        teacher=persona.load(loaded.name, workspace=place),
        train=persona.open_set("vggface2", workspace=place),
        epochs=1,
        batch_size=5,
        processes=2,
        options={"workers": 0, "student.width": 0.35},
        workspace=place,
    )
    (run,) = place.runs.glob("mobilenet*")
    assert run.name in student.name
    told = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert any("loss" in row for row in told)

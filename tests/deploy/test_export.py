"""Exported files: the same embeddings as the model, from a file that says what it is."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from helpers import persona_error, persona_here
from PIL import Image

import persona
from persona.cli.deploy import _print_layers
from persona.config import StudentConfig
from persona.data.align.spec import AlignSpec
from persona.data.pack import Packed
from persona.data.sets import FaceSet, of_shards
from persona.data.shards import MANIFEST
from persona.data.stream import build_loader
from persona.data.transforms import normalise
from persona.data.views import PIXEL_MEAN, PIXEL_SCALE
from persona.deploy import exporting, graph
from persona.deploy.bench import count_macs
from persona.deploy.exports import Exported, ExportOptions, base
from persona.deploy.exports.litert import Litert
from persona.deploy.exports.onnx import Onnx
from persona.deploy.faces import FACES, drawn_faces, set_faces
from persona.deploy.graph import refusing
from persona.deploy.quantise import Kept
from persona.errors import PersonaError
from persona.gallery.people import network_align
from persona.models.cards import read_card
from persona.models.onnx_graph import count_onnx
from persona.models.onnx_network import open_network
from persona.models.sources import NamedNetwork, load_network
from persona.models.store import load_model, save_model
from persona.models.student import Student, count_parameters
from persona.workspace import Workspace

SIDE = 32
ID = "small"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with one student of five identities whose batch norms have seen faces."""
    folder = tmp_path_factory.mktemp("home") / "models"
    torch.manual_seed(0)
    config = StudentConfig(embedding_size=16, norm_momentum=0.5)
    student = Student(config, 5, image_size=SIDE).train()
    with torch.no_grad():
        faces = torch.from_numpy(drawn_faces(SIDE, 16)).permute(0, 3, 1, 2)
        for _ in range(10):
            student(normalise(faces))
    scores = {"threshold_at_far": {"0.001": 0.31241}}
    facts: dict[str, Any] = {"teacher": "onnx:/home/me/net.onnx", "temperature": None, "epochs": 1}
    facts |= {"scores": scores, "train_set": "drawn", "test_set": "drawn", "score": None}
    facts["config"] = {"teacher": "onnx:/home/me/net.onnx"}
    save_model(folder, student, model_id=ID, classes=tuple("abcde"), **facts)
    return folder


@pytest.fixture(scope="module")
def faces() -> np.ndarray:
    return drawn_faces(SIDE, 12)


@pytest.fixture(scope="module")
def traced(models: Path) -> bytes:
    """Its graph with a classifier. Tracing takes as long as all else of an export together."""
    made = graph._trace(load(models)[0], ExportOptions(classifier=True))
    return bytes(made.SerializeToString())


@pytest.fixture
def trace_once(traced: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports of the student take the graph that was traced before."""
    monkeypatch.setattr(graph, "_trace", lambda *_: onnx.load_from_string(traced))


def load(models: Path) -> tuple[Student, Any]:
    card = read_card(models / ID)
    return load_model(card, models).eval(), card


@torch.inference_mode()
def embeddings(models: Path, faces: np.ndarray) -> np.ndarray:
    return load(models)[0].embed(normalise(torch.from_numpy(faces).permute(0, 3, 1, 2))).numpy()


@torch.inference_mode()
def embeddings_of_photos(models: Path, photos: np.ndarray) -> np.ndarray:
    """Embeds photos of another size, which are brought to the model's size first."""
    pixels = torch.from_numpy(photos).permute(0, 3, 1, 2).float()
    small = F.interpolate(pixels, (SIDE, SIDE), mode="bilinear", antialias=True)
    return load(models)[0].embed((small - PIXEL_MEAN) / PIXEL_SCALE).numpy()


@pytest.mark.usefixtures("trace_once")
def test_the_file_gives_the_models_embeddings_and_logits(
    models: Path, faces: np.ndarray, tmp_path: Path
) -> None:
    path = tmp_path / "a.onnx"
    done = Onnx().write(*load(models), faces, path, ExportOptions(classifier=True))
    assert (done.faces, done.bytes) == (12, path.stat().st_size)
    session = onnxruntime.InferenceSession(path.read_bytes())
    for count in (1, 5):  # the batch is free
        images = normalise(torch.from_numpy(faces[:count]).permute(0, 3, 1, 2))
        embedding, logits = session.run(["embedding", "logits"], {"images": images.numpy()})
        np.testing.assert_allclose(embedding, embeddings(models, faces[:count]), atol=1e-5)
        with torch.inference_mode():
            wanted = load(models)[0](images).logits
        np.testing.assert_allclose(logits, wanted, rtol=1e-3, atol=1e-4)
    # What bench counts without torch is what torch counts, but for batch norms folded.
    parameters, macs = count_onnx(path)
    network = load(models)[0]
    assert parameters == pytest.approx(count_parameters(network), rel=0.01)
    assert macs == pytest.approx(count_macs(network) + 16 * 5, rel=0.01)
    facts = session.get_modelmeta().custom_metadata_map
    assert facts["persona.architecture"] == "mobilenet_v3_small"
    # Rounded upwards, as below it the FAR would not hold.
    assert facts["persona.threshold"] == "0.3125, the cosine at FAR 1e-3 on drawn"
    assert facts["persona.licence"].startswith("unknown: see the terms")
    assert facts["persona.alignment"] == "unknown"
    assert facts["persona.normalisation"].startswith("(pixel - 127.5) / 128.0")
    assert json.loads(facts["persona.card"])["teacher"] == "onnx:net.onnx"
    assert json.loads(facts["persona.card"])["id"] == facts["persona.model"] == ID
    text = path.read_bytes()
    assert b"/work/" not in text and str(Path.home()).encode() not in text  # no traces of sources
    # ReduceMean, as torch writes pooling, is slower and has no form in integers.
    kinds = [node.op_type for node in onnx.load(path).graph.node]
    assert kinds.count("GlobalAveragePool") == 10 and "ReduceMean" not in kinds


@pytest.mark.heavy
def test_with_preprocessing_it_takes_photos_of_any_size(
    models: Path, faces: np.ndarray, tmp_path: Path
) -> None:
    path = tmp_path / "photos.onnx"
    options = ExportOptions("fp16", preprocessing=True)
    assert Onnx().write(*load(models), faces, path, options).worst_cosine > 0.999
    wanted = embeddings(models, faces)
    large = np.stack([np.asarray(Image.fromarray(f).resize((96, 80))) for f in faces])
    found = onnxruntime.InferenceSession(path.read_bytes()).run(None, {"images": large})[0]
    assert (found * embeddings_of_photos(models, large)).sum(axis=1).min() > 0.999
    # The same file is a network like any other, by the settings inside it.
    network = open_network(path)
    images = normalise(torch.from_numpy(faces).permute(0, 3, 1, 2))
    np.testing.assert_allclose(network.embed(images).numpy(), wanted, atol=0.02)


@pytest.mark.usefixtures("trace_once")
def test_it_says_how_faces_are_cut_for_it(models: Path, faces: np.ndarray, tmp_path: Path) -> None:
    student, card = load(models)
    for method, turned in (("landmarks", True), ("mtcnn", False)):
        align = {"method": method, "image_size": SIDE, "margin": 4}
        path = tmp_path / f"{method}.onnx"
        Onnx().write(student, replace(card, alignment=align), faces, path)
        network = open_network(path)
        assert network.uses_landmarks == turned
        assert load_network(f"onnx:{path}", models).alignment == align
        metadata = onnxruntime.InferenceSession(str(path)).get_modelmeta().custom_metadata_map
        assert ("five points" in metadata["persona.alignment"]) == turned
    assert metadata["persona.alignment"] == f"MTCNN's box with 4 px of {SIDE} around it"


def test_a_student_that_has_collapsed_is_not_written(
    models: Path, faces: np.ndarray, tmp_path: Path
) -> None:
    """Its file would be the model to the last digit, and of no use."""
    for value in (0.0, float("nan")):
        student, card = load(models)
        with torch.no_grad():
            for parameter in student.last_linear.parameters():
                parameter.fill_(value)
            student.last_bn.bias.fill_(1.0)
        with pytest.raises(
            PersonaError, match=r"model small has collapsed: .* nothing was written"
        ):
            Onnx().write(student, card, faces, tmp_path / "a.onnx")
    assert not (tmp_path / "a.onnx").exists()


def test_a_file_that_differs_is_not_written(
    models: Path, faces: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(_: Onnx, data: bytes, faces: np.ndarray, options: Any) -> np.ndarray:
        return np.random.default_rng(0).normal(size=(len(faces), 16)).astype(np.float32)

    monkeypatch.setattr(Onnx, "run", other)
    monkeypatch.setattr(base, "build_with_cost", lambda *_: (b"", None))
    path = tmp_path / "a.onnx"
    with pytest.raises(PersonaError, match=r"would differ from the model: worst cosine .* 0\.9999"):
        Onnx().write(*load(models), faces, path)
    assert not path.exists()


def test_what_cannot_be_exported_is_refused(
    models: Path, faces: np.ndarray, tmp_path: Path
) -> None:
    with pytest.raises(PersonaError, match=r"something\.onnx"):
        Onnx().write(*load(models), faces, tmp_path / "a.tflite")
    with pytest.raises(PersonaError, match="there is none"):
        Onnx().write(*load(models), faces[:0], tmp_path / "a.onnx")
    for some in (None, faces[:0]):
        with pytest.raises(PersonaError, match="int8 is calibrated on faces, and there is none"):
            Onnx().write(
                *load(models),
                faces,
                tmp_path / "a.onnx",
                ExportOptions("int8"),
                calibration_NHWC=some,
            )
    with pytest.raises(PersonaError, match="LiteRT files are fp32 or int8, without"):
        Litert().write(*load(models), faces, tmp_path / "a.tflite", ExportOptions("fp16"))
    with pytest.raises(PersonaError, match=r"something\.tflite"):
        Litert().write(*load(models), faces, tmp_path / "a.onnx")
    with pytest.raises(PersonaError, match="unknown precision 'int4'"):
        ExportOptions("int4")
    bare = Student(StudentConfig(embedding_size=16), 0, head="none", image_size=SIDE)
    with pytest.raises(PersonaError, match="no classifier"):
        Onnx().write(
            bare, load(models)[1], faces, tmp_path / "a.onnx", ExportOptions(classifier=True)
        )


def test_an_error_of_a_library_is_one_line(models: Path) -> None:
    card = read_card(models / ID)
    line = r"mobilenet_v3_small cannot become an ONNX file \('ValueError: no kernel'\): choose"
    with pytest.raises(PersonaError, match=line), refusing(card, "an ONNX file"):
        raise ValueError("no kernel\nfor this operator")
    with pytest.raises(PersonaError, match="as it was"), refusing(card, "an ONNX file"):
        raise PersonaError("as it was")


@pytest.mark.heavy
def test_photos_of_any_size_in_integers(models: Path, faces: np.ndarray, tmp_path: Path) -> None:
    options = ExportOptions("int8", preprocessing=True, classifier=True)
    path = tmp_path / "a.onnx"
    Onnx().write(*load(models), faces, path, options, calibration_NHWC=faces)
    large = np.stack([np.asarray(Image.fromarray(f).resize((96, 80))) for f in faces])
    found = onnxruntime.InferenceSession(path.read_bytes()).run(None, {"images": large})[0]
    assert (found * embeddings_of_photos(models, large)).sum(axis=1).min() > 0.98


@pytest.mark.heavy
def test_the_command(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    half = persona_here("export", ID, "--precision", "fp16", home=models.parent)
    assert half["path"] == f"{ID}-fp16.onnx" and (tmp_path / half["path"]).is_file()
    row = persona_here("export", ID, "--out", str(tmp_path / "a.onnx"), home=models.parent)
    assert row["precision"] == "fp32" and row["bytes"] == (tmp_path / "a.onnx").stat().st_size
    onnx.checker.check_model(onnx.load(tmp_path / "a.onnx"))
    assert "unknown model 'larg'" in persona_error("export", "larg", home=models.parent)
    assert "is a folder" in persona_error("export", ID, "--out", str(tmp_path), home=models.parent)
    assert "unknown format 'lite'" in persona_error(
        "export", "--format", "lite", home=models.parent
    )
    stray = persona_error("export", "--calibrate", "lfw", home=models.parent)
    assert "--calibrate is for --precision int8" in stray
    without = persona_error("export", ID, "--precision", "int8", home=models.parent)
    assert "name a packed set with --calibrate" in without
    weights = models / ID / load(models)[1].weights
    kept = weights.read_bytes()
    weights.unlink()
    try:
        assert str(weights) in persona_error("export", ID, home=models.parent)
    finally:
        weights.write_bytes(kept)


def test_the_licence_goes_into_the_card_in_the_file_too(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []

    def take(*args: Any, **_: Any) -> Any:
        given.append(args[1])
        raise PersonaError("enough")

    monkeypatch.setattr(Onnx, "export", take)
    for licence in ("mit", None):
        with pytest.raises(PersonaError, match="enough"):
            exporting.export_model(ID, Workspace.locate(home=models.parent), licence=licence)
    assert [card.licence for card in given] == ["mit", ""]


def test_a_set_without_faces_is_refused(train_set: Packed) -> None:
    none = of_shards(train_set.faces, slice(0))
    with pytest.raises(PersonaError, match="has no faces: name another set"):
        set_faces(none, 8)


@pytest.mark.usefixtures("trace_once")
def test_a_model_that_was_loaded_from_a_folder_is_exported(models: Path, tmp_path: Path) -> None:
    place = Workspace.locate(home=tmp_path)
    loaded = persona.load(str(models / ID), workspace=place)
    assert loaded.export(tmp_path / "a.onnx").is_file()


def packed_otherwise(packed: Packed, shards: Path, name: str, align: AlignSpec) -> None:
    """A set of that name whose manifest says that its crops were made in another way."""
    shutil.copytree(packed.folder, shards / name)
    manifest = json.loads((shards / name / MANIFEST).read_text())
    manifest |= {"name": name, "align": align.facts}
    (shards / name / MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("align", "used"),
    [
        (AlignSpec("landmarks", SIDE, 0), True),
        (AlignSpec("template", SIDE, 0), True),  # the same crops
        (AlignSpec("landmarks", 160), False),
        (AlignSpec("mtcnn", SIDE, 0), False),
    ],
)
def test_a_set_of_the_models_name_is_used_if_its_crops_are_the_models(
    train_set: Packed,
    models: Path,
    tmp_path: Path,
    align: AlignSpec,
    used: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    card = replace(load(models)[1], train_set="a,b*2", test_set="c")
    place = Workspace(tmp_path, tmp_path / "shards", tmp_path, models, tmp_path)
    packed_otherwise(train_set, place.shards, "b", align)
    card = replace(card, alignment=AlignSpec("landmarks", SIDE, 0).facts)
    monkeypatch.setattr(exporting, "find_model", lambda *_: card)
    seen: list[Any] = []

    def export(
        self: Any, card: Any, store: Path, faces: Any, path: Path, *_: Any, **__: Any
    ) -> Any:
        seen.append(faces)
        return Exported(path, 1, 1.0, len(faces))

    monkeypatch.setattr(Onnx, "export", export)
    exporting.export_model(None, place, out=tmp_path / "a.onnx")
    assert len(seen[0]) == (30 if used else FACES)  # else drawn ones
    integers: dict[str, Any] = {"out": tmp_path / "a.onnx", "options": {"precision": "int8"}}
    if used:
        assert exporting.export_model(None, place, **integers).calibration_faces == 10
    else:
        with pytest.raises(PersonaError, match=r"no set of this model's crops.*--calibrate"):
            exporting.export_model(None, place, **integers)


def test_the_name_of_a_long_mix_is_no_folder(models: Path, tmp_path: Path, lfw_set: Packed) -> None:
    """It is longer than a file's name may be."""
    place = Workspace.locate(home=tmp_path)
    card = replace(load(models)[1], image_size=lfw_set.manifest.align.image_size)
    assert exporting._packed((f"{'x' * 300},lfw*2",), card, place) == "lfw"
    assert exporting._packed(("x" * 300,), card, place) is None
    named = NamedNetwork("m", Student(StudentConfig(width=0.35), 0, head="none"), "x" * 300, (), 64)
    assert network_align(named, place) == AlignSpec("mtcnn", 64)


def test_a_set_that_is_named_is_refused_or_noted_if_its_crops_are_others(
    train_set: Packed, models: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    card = replace(load(models)[1], alignment=AlignSpec("landmarks", SIDE, 0).facts)
    place = Workspace(tmp_path, tmp_path / "shards", tmp_path, models, tmp_path)
    for name, align in (
        ("large", AlignSpec("landmarks", 160, 0)),
        ("boxes", AlignSpec("mtcnn", SIDE, 0)),
        ("own", AlignSpec("template", SIDE, 0)),
    ):
        packed_otherwise(train_set, place.shards, name, align)
    with pytest.raises(PersonaError, match="set large has crops of 160 px, small was trained on"):
        exporting._open(card, "large", place, verify=True)
    exporting._open(card, "own", place, verify=True)
    assert not caplog.records
    exporting._open(card, "boxes", place, verify=True)
    (note,) = caplog.records
    assert note.getMessage().startswith("note: set boxes is packed with --align mtcnn, small was")


def test_faces_are_drawn_by_seed(train_set: Packed) -> None:
    known = train_set.faces
    some, more, others = set_faces(known, 8), set_faces(known, 99), set_faces(known, 8, seed=1)
    assert some.shape == (8, *more.shape[1:]) and len(more) == train_set.manifest.samples == 30
    np.testing.assert_array_equal(more[:8], some)
    assert len({face.tobytes() for face in more}) == 30
    assert {face.tobytes() for face in others} != {face.tobytes() for face in some}


def test_a_photo_without_a_face_is_not_drawn(lfw_set: Packed) -> None:
    first = lfw_set.manifest.shards[0]
    blind = replace(lfw_set.manifest, shards=(replace(first, no_face=(first_key(lfw_set),)),))
    assert len(set_faces(FaceSet(lfw_set.folder, blind), 99)) == first.samples - 1


def first_key(packed: Packed) -> int:
    """Key of the first photo of the first shard."""
    loader = build_loader(packed.faces, batch_size=1, training=False)
    return int(next(iter(loader)).keys[0])


@pytest.mark.usefixtures("trace_once")
@pytest.mark.parametrize("checked", ["vggface2-train", "vggface2"])
def test_it_is_checked_on_other_faces_than_it_is_calibrated_on(
    models: Path,
    train_set: Packed,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    checked: str,
) -> None:
    """Also where the set has another name, which finds the same folder."""
    home = models.parent
    shutil.copytree(train_set.folder, home / "shards" / "vggface2-train", dirs_exist_ok=True)
    arguments = ["export", ID, "--precision", "int8", "--calibrate", "vggface2-train"]
    arguments += ["--set", checked, "--out", str(tmp_path / "a.onnx")]
    apart: list[tuple[Any, Any]] = []
    find = exporting._faces_apart

    def noting(*arguments: Any, **options: Any) -> Any:
        apart.append(find(*arguments, **options))
        return apart[-1]

    monkeypatch.setattr(exporting, "_faces_apart", noting)
    found = persona_here(*arguments, home=home)
    assert (found["faces"], found["calibration_faces"]) == (20, 10)
    ((checks, ranges),) = apart
    seen = [{face.tobytes() for face in faces} for faces in (checks, ranges)]
    assert len(seen[0] | seen[1]) == 30
    noted = onnx.load(tmp_path / "a.onnx").metadata_props
    assert "10 faces of vggface2-train, seed 0" in {entry.value for entry in noted}


def test_the_cost_of_a_layer_is_told_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    floats = (Kept("stem", 4.26e-5), Kept("head", -1e-8))
    done = Exported(Path("x"), 1, 0.9, 256, layers=3, floats=floats)
    _print_layers(done)
    assert capsys.readouterr().out.splitlines() == [
        "1 of 3 layers in integers",
        "  in floats: stem, whose integers alone take 4.3e-05 off the cosine",
        "  in floats: head, whose integers alone take nothing that can be measured off the cosine",
    ]

from __future__ import annotations

import http.server
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from facenet_pytorch import InceptionResnetV1

from persona.config import StudentConfig
from persona.errors import PersonaError
from persona.models import cards, store
from persona.models.backbones import BACKBONES
from persona.models.cards import find_model, list_models, read_classes, stored_card
from persona.models.manage import copy_model
from persona.models.sources import load_network
from persona.models.store import load_model, save_model
from persona.models.student import Student
from persona.models.teacher import FaceNet, load_facenet
from persona.models.weights import FACENETS, Release, download_weights, weight_places

FACTS = {
    "teacher": "none",
    "temperature": None,
    "epochs": 3,
    "score": 0.75,
    "scores": {"accuracy": 0.75},
    "train_set": "vggface2-train",
    "test_set": "lfw",
    "config": {},
}


@pytest.mark.parametrize("architecture", BACKBONES.built_in)
def test_student_gives_features_and_logits_at_once(architecture: str) -> None:
    student = Student(StudentConfig(architecture), 7, image_size=64).eval()
    images = torch.randn(2, 3, 64, 64)
    output = student(images)
    assert output.features.shape == (2, 512)
    assert output.logits.shape == (2, 7)
    torch.testing.assert_close(output.embedding.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(output.logits, student.logits(output.features))
    torch.testing.assert_close(student.embed(images), output.embedding)


def test_the_head_is_the_reference_one() -> None:
    student = Student(StudentConfig(), 8631)
    assert student.last_linear.bias is None
    assert (student.last_linear.out_features, student.last_bn.eps) == (512, 0.001)
    assert student.logits.weight.shape == (8631, 512) and student.logits.bias is not None


@pytest.fixture(scope="module")
def facenet_state() -> dict[str, torch.Tensor]:
    """A state dict of the released names and shapes, with random values."""
    torch.manual_seed(0)
    return dict(InceptionResnetV1(classify=True, num_classes=8631).state_dict())


def put_weights(models: Path, state: dict[str, torch.Tensor]) -> Path:
    path = models / "teachers" / FACENETS["facenet-vggface2"].file
    path.parent.mkdir(parents=True)
    torch.save(state, path)
    return path


def test_facenet_agrees_with_facenet_pytorch(
    facenet_state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    """One forward gives what the library gives in two modes."""
    put_weights(tmp_path, facenet_state)
    ours = load_facenet("facenet-vggface2", tmp_path).eval()
    reference = InceptionResnetV1(classify=True, num_classes=8631).eval()
    reference.load_state_dict(facenet_state)
    images = torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        output = ours(images)
        torch.testing.assert_close(output.logits, reference(images))
        reference.classify = False
        torch.testing.assert_close(output.embedding, reference(images))
        torch.testing.assert_close(
            output.logits, F.linear(output.features, reference.logits.weight, reference.logits.bias)
        )


def test_damaged_teacher_weights_say_what_to_do(
    facenet_state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    path = put_weights(tmp_path, {k: v for k, v in facenet_state.items() if "mixed_7a" not in k})
    with pytest.raises(PersonaError, match=r"does not hold the weights of .* delete it"):
        load_facenet("facenet-vggface2", tmp_path)
    path.write_bytes(b"half a file")
    with pytest.raises(PersonaError, match="does not hold the weights"):
        load_facenet("facenet-vggface2", tmp_path)


def test_a_pickle_in_teacher_weights_does_not_run(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    path = tmp_path / "teachers" / FACENETS["facenet-vggface2"].file
    path.parent.mkdir()
    torch.save({"logits.weight": Hostile()}, path)
    with pytest.raises(PersonaError, match="does not hold the weights"):
        load_facenet("facenet-vggface2", tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[str]:
    """An HTTP server on this machine that answers as `request.param` says."""
    mode = request.param

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if mode == "missing":
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(bytes(1000 if mode == "whole" else 400))

        def log_message(self, *_: object) -> None:
            """Quiet."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http_server:
        threading.Thread(target=http_server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{http_server.server_port}"
        http_server.shutdown()


RELEASE = Release("weights.pt", 10, "nobody")


@pytest.mark.parametrize("server", ["whole"], indirect=True)
def test_download_puts_the_file_where_torch_looks(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    path = download_weights(RELEASE, weight_places(RELEASE, tmp_path)[-1], base=server)
    assert path == tmp_path / "checkpoints" / "weights.pt"
    assert path.read_bytes() == bytes(1000)


@pytest.mark.parametrize("server", ["missing", "cut"], indirect=True)
def test_failed_downloads_say_where_to_put_the_file_and_leave_none(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(PersonaError) as error:
        target = weight_places(RELEASE, tmp_path)[-1]
        download_weights(RELEASE, target, base=server, rounds=1)
    assert f"{server}/weights.pt" in str(error.value)
    assert "models/teachers/weights.pt" in str(error.value)
    assert not (tmp_path / "checkpoints" / "weights.pt").exists()


def save(models: Path, model_id: str = "m1", classes: int = 3):
    torch.manual_seed(1)
    student = Student(StudentConfig(), classes, image_size=64)
    names = tuple(f"n{n}" for n in range(classes))
    return student, save_model(models, student, model_id=model_id, classes=names, **FACTS)


def test_saved_models_come_back(tmp_path: Path) -> None:
    student, card = save(tmp_path)
    again = load_model(find_model("m1", tmp_path), tmp_path).eval()
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(again(images).logits, student.eval()(images).logits)
    assert read_classes(card, tmp_path) == ("n0", "n1", "n2")
    assert card.bytes == (tmp_path / "m1" / card.weights).stat().st_size
    assert list_models(tmp_path) == [card]
    assert find_model(None, tmp_path) == card


def test_saving_again_leaves_one_weights_file(tmp_path: Path) -> None:
    _, first = save(tmp_path)
    torch.manual_seed(2)
    student = Student(StudentConfig(), 3)
    second = save_model(tmp_path, student, model_id="m1", classes=("a", "b", "c"), **FACTS)
    assert first.weights != second.weights
    assert [path.name for path in (tmp_path / "m1").glob("*.safetensors")] == [second.weights]


def test_killed_before_the_card_a_model_keeps_its_own_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    for before, now in ((3, 4), (4, 5), (5, 3)):
        save(tmp_path, classes=before)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(store, "write_json", killed)
            save(tmp_path, classes=now)
        card = stored_card("m1", tmp_path)
        assert len(read_classes(card, tmp_path)) == before
        assert load_model(card, tmp_path).num_classes == before
        _, card = save(tmp_path, classes=now)
        assert len(read_classes(card, tmp_path)) == now
        assert len(list((tmp_path / "m1").iterdir())) == 3
    copied = copy_model(card, tmp_path / "m1", "m2", tmp_path)
    assert len(read_classes(copied, tmp_path)) == 3


def test_damaged_models_are_refused(tmp_path: Path) -> None:
    _, card = save(tmp_path)
    weights = tmp_path / "m1" / card.weights
    data = weights.read_bytes()
    weights.write_bytes(data[:-1])
    with pytest.raises(PersonaError, match="does not match the checksum in its card"):
        load_model(card, tmp_path)
    weights.unlink()
    with pytest.raises(PersonaError, match="has no weights at"):
        load_model(card, tmp_path)
    path = tmp_path / "m1" / "card.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"weights": "../../etc/passwd"}))
    with pytest.raises(PersonaError, match="names weights outside its folder"):
        find_model("m1", tmp_path)
    path.write_text("{")
    with pytest.raises(PersonaError, match="is not valid JSON"):
        find_model("m1", tmp_path)


def test_unknown_models_name_the_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cards, "ZOO", tmp_path / "none")
    with pytest.raises(PersonaError, match="there is no student below"):
        find_model(None, tmp_path)
    save(tmp_path)
    with pytest.raises(PersonaError, match=r"unknown model 'm2'.*m1"):
        find_model("m2", tmp_path)
    with pytest.raises(PersonaError, match=r"unknown model 'facenet'.*facenet-vggface2"):
        load_network("facenet", tmp_path)


def test_an_architecture_is_an_untrained_student_and_always_the_same(tmp_path: Path) -> None:
    one, two = (load_network("mobilenet_v3_small", tmp_path).network.eval() for _ in range(2))
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(one.embed(images), two.embed(images))


def test_listing_needs_no_torch(tmp_path: Path) -> None:
    save(tmp_path)
    code = (
        "import sys; from pathlib import Path; from persona.models.cards import list_models; "
        f"print(len(list_models(Path({str(tmp_path)!r}))), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "False"]


def test_facenet_is_a_face_network() -> None:
    assert FaceNet(10).num_classes == 10

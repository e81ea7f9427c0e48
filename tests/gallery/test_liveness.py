"""Liveness checks: of another package, and in ONNX files with settings beside them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from fake_eyes import gallery, near, photo_of, vectors
from onnx import TensorProto, helper, numpy_helper

from persona.data.align.spec import FoundFace
from persona.errors import PersonaError
from persona.gallery.liveness import NOT_LIVE, Liveness, open_liveness
from persona.gallery.liveness.base import Pixels
from persona.gallery.unknown_faces import UnknownFaces
from persona.gallery.video import _follow, _vote
from persona.registry import LIVENESS

SIDE = 16
SETTINGS = f"input_size: {SIDE}\nmean: [0, 0, 0]\nstd: [255, 255, 255]\n"


def write_liveness(
    path: Path,
    weights: Sequence[Sequence[float]] = ((8, 0, 0), (0, 8, 0), (0, 0, 8)),
    *,
    batch: int | str = "batch",
    side: int | str = SIDE,
    settings: str | None = SETTINGS + "live: 1\n",
) -> Path:
    """A model whose outputs are weighted means of the channels: here class 1 is green."""
    weight = np.array(weights, np.float32)
    shape = [batch, 3, side, side]
    nodes = [
        helper.make_node("GlobalAveragePool", ["faces"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["out"]),
    ]
    graph = helper.make_graph(
        nodes,
        "liveness",
        [helper.make_tensor_value_info("faces", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [batch, weight.shape[1]])],
        [numpy_helper.from_array(weight, "weight")],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path
    )
    if settings is not None:
        path.with_suffix(".yaml").write_text(settings)
    return path


def photo_with(*colours: tuple[int, int, int]) -> tuple[Pixels, list[FoundFace]]:
    """Squares of 40 px in a row on black, and their boxes."""
    photo = np.zeros((60, 60 * len(colours), 3), np.uint8)
    faces = []
    for number, colour in enumerate(colours):
        x = 60 * number + 10
        photo[10:50, x : x + 40] = colour
        faces.append(FoundFace((x, 10.0, x + 40.0, 50.0)))
    return photo, faces


RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def softmax(logits: Sequence[float], place: int) -> float:
    powers = np.exp(np.array(logits) - max(logits))
    return float(powers[place] / powers.sum())


def test_softmax_of_the_live_class(tmp_path: Path) -> None:
    check = open_liveness(str(write_liveness(tmp_path / "m.onnx")))
    photo, faces = photo_with(RED, GREEN, (255, 255, 0))
    found = check.scores(photo, faces)
    assert found == pytest.approx(
        [softmax((8, 0, 0), 1), softmax((0, 8, 0), 1), softmax((8, 8, 0), 1)], abs=1e-3
    )
    assert check.scores(photo, []) == []
    assert (check.threshold, check.title) == (0.5, "m.onnx")


@pytest.mark.parametrize("batch", [1, 2, "batch"])
def test_any_batch_is_filled_up(tmp_path: Path, batch: int | str) -> None:
    path = write_liveness(tmp_path / "m.onnx", batch=batch)
    photo, faces = photo_with(RED, GREEN, GREEN)
    found = open_liveness(f"onnx:{path}").scores(photo, faces)
    assert [score > 0.9 for score in found] == [False, True, True]


def test_one_output_channels_and_the_crop(tmp_path: Path) -> None:
    # One output that is the mean of the first channel, which is blue by `bgr`.
    settings = SETTINGS + "channels: bgr\nactivation: none\nthreshold: 0.3\nscale: {}\n"
    path = write_liveness(tmp_path / "m.onnx", ((1,), (0,), (0,)), settings=settings.format(1))
    photo, faces = photo_with(BLUE, RED)
    check = open_liveness(str(path))
    assert check.scores(photo, faces) == pytest.approx([1, 0], abs=0.05)
    assert check.threshold == 0.3
    assert open_liveness(str(path), 0.7).threshold == 0.7
    # A crop of 1.5 times the box is 60 px wide: the whole photo here, of which 40 x 40 is blue.
    path.with_suffix(".yaml").write_text(settings.format(1.5))
    assert open_liveness(str(path)).scores(*photo_with(BLUE)) == pytest.approx([4 / 9], abs=0.02)
    path.with_suffix(".yaml").write_text(settings.format(8))  # moved into the photo
    assert open_liveness(str(path)).scores(*photo_with(BLUE)) == pytest.approx([4 / 9], abs=0.02)
    path.with_suffix(".yaml").write_text(SETTINGS + "activation: sigmoid\n")
    assert open_liveness(str(path)).scores(*photo_with(RED)) == pytest.approx(
        [1 / (1 + np.exp(-1))], abs=0.01
    )


def write_embedder(path: Path) -> Path:
    """A face network: the usual mistake."""
    return write_liveness(path, np.ones((3, 512)).tolist(), settings=SETTINGS + "activation: none")


def write_two_inputs(path: Path) -> Path:
    one = helper.make_tensor_value_info("a", TensorProto.FLOAT, [1, 3, SIDE, SIDE])
    other = helper.make_tensor_value_info("b", TensorProto.FLOAT, [1, 3, SIDE, SIDE])
    out = helper.make_tensor_value_info("c", TensorProto.FLOAT, [1, 3, SIDE, SIDE])
    graph = helper.make_graph(
        [helper.make_node("Add", ["a", "b"], ["c"])], "g", [one, other], [out]
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path
    )
    path.with_suffix(".yaml").write_text(SETTINGS + "live: 1")
    return path


def write_text(path: Path) -> Path:
    path.write_text("no model")
    return path


def with_settings(text: str) -> Callable[[Path], Path]:
    return lambda path: write_liveness(path, settings=text)


@pytest.mark.parametrize(
    ("write", "problem"),
    [
        (write_embedder, r"output out of shape \(2, 512\); without `live` in the settings, one"),
        (with_settings(SETTINGS + "live: 3"), r"\(2, 3\); with `live: 3` .* \(batch, 4 or more\)"),
        (write_two_inputs, "2 inputs, the first of tensor"),
        (lambda path: write_liveness(path, side=32), r"the settings say \(batch, 3, 16, 16\)"),
        (write_text, "cannot be loaded as ONNX"),
        (lambda path: path, "no ONNX file at"),
        (lambda path: write_liveness(path, settings=None), "has no settings: write m.yaml beside"),
        (with_settings(SETTINGS), "activation softmax: give `live`"),
        (with_settings("input_size: 16"), "m.yaml"),
        (with_settings("- a"), "must be a mapping"),
        (with_settings(SETTINGS + "alive: 1"), "unknown key"),
        (with_settings(SETTINGS + "live: 1\nscale: 99"), "scale 99: choose 0.5 to 8"),
        (with_settings(SETTINGS + "live: 1\nchannels: grey"), "grey"),
        (with_settings(SETTINGS + "live: 1\noutput: other"), "other"),
        (with_settings(SETTINGS.replace("255, ", "") + "live: 1"), "three numbers each"),
    ],
)
def test_a_wrong_model_is_refused_in_one_line(
    tmp_path: Path, write: Callable[[Path], Path], problem: str
) -> None:
    with pytest.raises(PersonaError, match=problem) as refused:
        open_liveness(str(write(tmp_path / "m.onnx")))
    assert "\n" not in str(refused.value)
    assert "m.onnx" in str(refused.value) or "m.yaml" in str(refused.value)


def test_an_unknown_name_and_threshold() -> None:
    with pytest.raises(PersonaError, match="unknown liveness check 'blonk'"):
        open_liveness("blonk")
    with pytest.raises(PersonaError, match="--liveness-threshold 2: choose 0 to 1"):
        open_liveness("blonk", 2)


class Given(Liveness):
    """Gives the scores that a test sets."""

    name = "given-for-tests"

    def __init__(self, *scores: float) -> None:
        self.given: list[float] = list(scores)

    def score(self, photo: Any, faces: Sequence[FoundFace]) -> list[float]:
        return self.given


def test_a_class_is_found_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "given-for-tests" in LIVENESS
    assert isinstance(open_liveness("given-for-tests"), Given)

    def broken(self: Given) -> None:
        raise OSError("no camera")

    monkeypatch.setattr(Given, "__init__", broken)
    with pytest.raises(PersonaError, match=r"'given-for-tests' cannot be opened \(OSError: no"):
        open_liveness("given-for-tests")


@pytest.mark.parametrize("scores", [(), (0.5, 0.5), (1.5,), (float("nan"),)])
def test_scores_that_are_none(scores: tuple[float, ...]) -> None:
    with pytest.raises(PersonaError, match="given-for-tests gives no score in"):
        Given(*scores).scores(*photo_with(RED))


def test_a_face_that_is_not_live_is_not_compared_and_not_kept(tmp_path: Path) -> None:
    ada, eve, stranger = vectors(3)
    unknown = UnknownFaces(tmp_path / "u", hours=1)
    with gallery(tmp_path / "g.db", 0.6, liveness=Given(0.9, 0.1, 0.2), unknown=unknown) as people:
        people.liveness, asked = None, people.liveness
        people.enroll("Ada", [photo_of(ada)])
        people.enroll("Eve", [photo_of(eve)])
        people.liveness = asked
        found = people.recognise(photo_of(near(ada, 0.9), near(eve, 0.9), stranger))
        assert [(one.name, one.refused) for one in found] == [
            ("Ada", None),
            (None, NOT_LIVE),
            (None, NOT_LIVE),
        ]
        assert [(one.nearest, one.score) for one in found[1:]] == [(None, None)] * 2
        assert unknown.faces() == []
        # A face with a flaw is not asked about.
        people.liveness = Given()
        (one,) = people.recognise(photo_of(eve, flaw="blurred"))
        assert one.refused == "blurred"


@pytest.mark.parametrize(
    ("scores", "name", "refused", "kept"),
    [((0.9, 0.2, 0.8), None, None, 1), ((0.1, 0.2, 0.9), None, NOT_LIVE, 0)],
)
def test_a_track_is_live_by_the_mean_of_its_frames(
    tmp_path: Path, scores: tuple[float, ...], name: str | None, refused: str | None, kept: int
) -> None:
    unknown = UnknownFaces(tmp_path / "u", hours=1)
    with gallery(tmp_path / "g.db", 0.6, unknown=unknown) as people:
        tracks: list[Any] = []
        for time_s, score in enumerate(scores):
            people.liveness = Given(score)
            photo: Any = photo_of(near(vectors(1)[0], 0.95, time_s))
            _follow(people, tracks, time_s / 5, photo)
        (track,) = tracks
        answer = _vote(people, track)
        assert (answer.name, answer.refused) == (name, refused)
        assert len(unknown.faces()) == kept


def test_nobody_is_asked_without_the_option(tmp_path: Path) -> None:
    with gallery(tmp_path / "g.db") as people:
        found = people.find_live(photo_of(vectors(1)[0]))
        assert [score for _, score in found] == [None]
        assert people.is_live(0.0)

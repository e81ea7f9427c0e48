"""Integers of eight bits: the same network, but for what eight bits cost."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from graphs import images, small_graph

from persona.deploy.likeness import ERROR_MARGIN, MARGIN, Tolerance, compare
from persona.deploy.quantise import (
    fewest,
    find_costs,
    find_ranges,
    lower,
    open_session,
    quantise,
    quantise_graph,
)
from persona.errors import PersonaError

BATCHES = [images(8, seed) for seed in range(3)]
LAYERS = {
    "stem",
    "stem hard-swish",
    "deep",
    "se squeeze-excite",
    "project",
    "project sum",
    "top",
    "top hard-swish",
    "all pooling",
}


@pytest.fixture(scope="module")
def model() -> Any:
    return small_graph()


@pytest.fixture(scope="module")
def ranges(model: Any) -> dict[str, tuple[float, float]]:
    return find_all(model, BATCHES)


def find_all(model: Any, batches: list[np.ndarray]) -> dict[str, tuple[float, float]]:
    return find_ranges(lower(model).model, batches) | find_ranges(model, batches)


def embed(model: Any, faces: np.ndarray) -> np.ndarray:
    return np.asarray(open_session(model).run(["embedding"], {"images": faces})[0])


def worst(model: Any, other: Any, faces: np.ndarray) -> float:
    return float((embed(model, faces) * embed(other, faces)).sum(axis=1).min())


def operators(model: Any) -> list[str]:
    return [node.op_type for node in model.graph.node]


@pytest.mark.parametrize("floats", [set(), {"stem hard-swish"}, {"se squeeze-excite"}, LAYERS])
def test_lowering_changes_no_embedding(model: Any, floats: set[str]) -> None:
    lowered = lower(model, floats)
    assert set(lowered.layers.values()) <= LAYERS
    np.testing.assert_allclose(
        embed(lowered.model, images(5)), embed(model, images(5)), rtol=1e-4, atol=1e-6
    )
    kept = operators(lowered.model).count("HardSwish") + operators(lowered.model).count(
        "HardSigmoid"
    )
    assert kept == len(floats & {"stem hard-swish", "top hard-swish", "se squeeze-excite"})


def test_every_layer_is_found_and_weights_have_eight_bits(model: Any, ranges: Any) -> None:
    assert set(lower(model).layers.values()) == LAYERS
    for floats, rounded in ((set(), True), ({"stem", "top"}, True), ({"stem", "top"}, False)):
        found = quantise(model, ranges, floats, weights=rounded)
        kinds = {i.name: i.data_type for i in found.graph.initializer if len(i.dims) >= 2}
        weights = {name for name in kinds if "weight_q" in name}
        wholes = set() if rounded else floats
        assert len(weights) == 7 - len(wholes)
        assert {kinds[name] for name in weights} == {onnx.TensorProto.INT8}
        # No copy in floats is left of those.
        assert {name for name in kinds if name.endswith("weight")} == {
            f"student.{layer}.weight" for layer in wholes
        }
        assert worst(model, found, images(16, 9)) > 0.97


def test_a_sum_of_anything_but_maps_stays_in_floats() -> None:
    """A sum of attention was given integers, and its constant made the export fail."""
    model = small_graph(extra="Erf")
    assert set(lower(model).layers.values()) == LAYERS - {"project sum"}
    found = quantise(model, find_all(model, BATCHES), set())
    assert worst(model, found, images(16, 9)) > 0.97


def test_a_clip_of_the_students_own_is_no_gate() -> None:
    """The range of a ReLU6 was [0, 1], that of a gate."""
    model = small_graph(extra="Clip")
    ranges = find_all(model, BATCHES)
    found = quantise(model, ranges, set())
    stored = {i.name: onnx.numpy_helper.to_array(i) for i in found.graph.initializer}
    assert ranges["extra"][1] != pytest.approx(1, abs=0.1)
    assert stored["extra_scale"] == pytest.approx(ranges["extra"][1] / 255)


def test_activations_take_their_range_from_the_faces(model: Any, ranges: Any) -> None:
    assert ranges["images"] == (
        pytest.approx(np.mean([batch.min() for batch in BATCHES])),
        pytest.approx(np.mean([batch.max() for batch in BATCHES])),
    )
    found = quantise(model, ranges, set())
    stored = {i.name: onnx.numpy_helper.to_array(i) for i in found.graph.initializer}
    low, high = ranges["stem"]
    assert stored["stem_scale"] == pytest.approx((high - low) / 255)
    assert int(stored["stem_zero"]) == round(-low / ((high - low) / 255))
    assert stored["gate_scale"] == pytest.approx(6 / 255)  # whatever the faces were
    assert "Relu" not in operators(found)


def test_costs_are_of_each_layer_alone(model: Any, ranges: Any) -> None:
    costs = find_costs(model, ranges, BATCHES[:1], "embedding")
    assert {kept.layer for kept in costs} == LAYERS
    assert [kept.cost for kept in costs] == sorted((kept.cost for kept in costs), reverse=True)
    alone = quantise(model, ranges, LAYERS - {costs[0].layer}, weights=False)
    cosines = (embed(alone, BATCHES[0]) * embed(model, BATCHES[0])).sum(axis=1)
    assert costs[0].cost == pytest.approx(1 - cosines.mean(), abs=1e-6)


def test_as_many_layers_stay_in_floats_as_the_cosine_wants(model: Any) -> None:
    easy = quantise_graph(model, BATCHES, "embedding", Tolerance(0.5))
    faces = np.concatenate(BATCHES)
    between = (worst(model, easy.model, faces) + 1) / 2 - MARGIN
    hard = quantise_graph(model, BATCHES, "embedding", Tolerance(between))
    assert easy.layers == hard.layers == len(LAYERS)
    assert not easy.floats and 0 < len(hard.floats) < len(LAYERS)
    assert worst(model, hard.model, faces) > between
    with pytest.raises(PersonaError, match=r"none of the 9 layers .* at least 0\.998 over"):
        quantise_graph(model, BATCHES, "embedding", Tolerance(1 - MARGIN))


def test_as_many_layers_stay_in_floats_as_the_similarities_want(model: Any) -> None:
    easy = quantise_graph(model, BATCHES, "embedding", Tolerance(0.5, 10))
    faces = np.concatenate(BATCHES)
    error = compare(embed(easy.model, faces), embed(model, faces)).error
    hard = quantise_graph(model, BATCHES, "embedding", Tolerance(0.5, error / 2 + ERROR_MARGIN))
    assert not easy.floats and 0 < len(hard.floats) < len(LAYERS)
    assert compare(embed(hard.model, faces), embed(model, faces)).error <= error / 2


def test_a_dead_squeeze_excite_has_integers_too() -> None:
    """Its bias had more steps than an int32 can hold, and became any number."""
    model = small_graph(dead=True)
    found = quantise(model, find_all(model, BATCHES), set())
    stored = {i.name: onnx.numpy_helper.to_array(i) for i in found.graph.initializer}
    step = float(stored["student.se.fc2.bias_scale"].max())
    assert step * 127 < 1  # fc2 still rounds its weights finely
    assert worst(model, found, images(16, 9)) > 0.97


def test_a_nearly_dead_tensor_leaves_the_bias_within_an_int32(model: Any) -> None:
    ranges = find_all(model, BATCHES) | {"images": (0.0, 2e-6)}
    found = quantise(model, ranges, set())
    stored = {i.name: onnx.numpy_helper.to_array(i) for i in found.graph.initializer}
    steps = stored["student.stem.bias_q"].astype(np.float64)
    wanted = next(i for i in model.graph.initializer if i.name == "student.stem.bias")
    found_bias = steps * stored["student.stem.bias_scale"].ravel()
    np.testing.assert_allclose(found_bias, onnx.numpy_helper.to_array(wanted), rtol=1e-3)


def test_what_a_hard_swish_makes_0_takes_no_part_of_the_range(model: Any) -> None:
    loud = [10 * batch for batch in BATCHES]
    ranges = find_all(model, loud)
    assert ranges["stem"][0] == ranges["top"][0] == -3
    assert ranges["stem"][1] > 3 and ranges["deep"][0] < -3  # behind deep stands a Relu
    assert ranges["swish_sum"][0] == 0


def test_faces_that_gave_no_range_keep_the_cosine_too(model: Any) -> None:
    easy = quantise_graph(model, BATCHES[:1], "embedding", Tolerance(0.97))
    others = 2 * BATCHES[1]  # beyond every range
    assert not easy.floats and worst(model, easy.model, others) < 0.97
    both = quantise_graph(model, BATCHES[:1], "embedding", Tolerance(0.97), [others])
    assert 0 < len(both.floats) < len(LAYERS)
    assert worst(model, both.model, others) > 0.97


def test_fewest() -> None:
    for enough in range(12):

        def suffices(count: int, enough: int = enough) -> bool:
            return count >= enough

        assert fewest(suffices, 10) == min(enough, 10)

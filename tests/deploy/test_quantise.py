"""Integers of eight bits: the same network, but for what eight bits cost."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from graphs import images, small_graph

from persona.deploy.quantise import (
    MARGIN,
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
    return find_ranges(lower(model).model, BATCHES) | find_ranges(model, BATCHES)


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
    easy = quantise_graph(model, BATCHES, "embedding", 0.5)
    faces = np.concatenate(BATCHES)
    between = (worst(model, easy.model, faces) + 1) / 2 - MARGIN
    hard = quantise_graph(model, BATCHES, "embedding", between)
    assert easy.layers == hard.layers == len(LAYERS)
    assert not easy.floats and 0 < len(hard.floats) < len(LAYERS)
    assert worst(model, hard.model, faces) > between
    with pytest.raises(PersonaError, match=r"none of the 9 layers .* below 1"):
        quantise_graph(model, BATCHES, "embedding", 1 - MARGIN)


def test_faces_that_gave_no_range_keep_the_cosine_too(model: Any) -> None:
    easy = quantise_graph(model, BATCHES[:1], "embedding", 0.97)
    others = 2 * BATCHES[1]  # beyond every range
    assert not easy.floats and worst(model, easy.model, others) < 0.97
    both = quantise_graph(model, BATCHES[:1], "embedding", 0.97, [others])
    assert 0 < len(both.floats) < len(LAYERS)
    assert worst(model, both.model, others) > 0.97


def test_fewest() -> None:
    for enough in range(12):

        def quality(count: int, enough: int = enough) -> float:
            return float(count >= enough)

        assert fewest(quality, 10, 1) == min(enough, 10)

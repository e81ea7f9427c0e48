"""The ONNX graph of a student."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from graphs import images, small_graph

from persona.config import StudentConfig
from persona.deploy.graph import ExportOptions, _trace, split_prelu
from persona.deploy.quantise import open_session
from persona.models.student import Student


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_no_batch_norm_is_left_behind_a_full_pooling(precision: str) -> None:
    torch.manual_seed(0)
    student = Student(
        StudentConfig(pooling="full", embedding_size=16), 0, head="none", image_size=32
    )
    with torch.no_grad():  # batch norm that does something
        for tensor in (student.last_bn.weight, student.last_bn.running_var):
            assert tensor is not None
            tensor.uniform_(0.5, 2)
        for tensor in (student.last_bn.bias, student.last_bn.running_mean):
            assert tensor is not None
            tensor.uniform_(-0.5, 0.5)
    faces = torch.rand(4, 3, 32, 32)
    wanted = student.eval().embed(faces).detach().numpy()
    model = _trace(student, ExportOptions(precision=precision))
    onnx.checker.check_model(model)
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}
    found = open_session(model).run(["embedding"], {"images": faces.numpy()})[0]
    assert (found * wanted).sum(axis=1) == pytest.approx(
        1, abs=1e-5 if precision == "fp32" else 1e-3
    )
    read = {name for node in model.graph.node for name in node.input}
    assert {initializer.name for initializer in model.graph.initializer} <= read


def test_a_prelu_is_split_to_the_same_digits() -> None:
    """onnxruntime takes nine times as long for its own kernel."""
    model = small_graph(extra="PRelu")
    split = onnx.load_from_string(split_prelu(model.SerializeToString()))
    assert "PRelu" not in {node.op_type for node in split.graph.node}
    wanted, found = (
        open_session(each).run(["embedding"], {"images": images(5)})[0] for each in (model, split)
    )
    np.testing.assert_array_equal(found, wanted)
    plain = small_graph().SerializeToString()
    assert split_prelu(plain) is plain

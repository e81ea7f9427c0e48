"""Networks' files of strangers: looked at before anything of them is run."""

from __future__ import annotations

import itertools
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_files import SETTINGS, SIDE, write_model

from persona.data.align.spec import AlignSpec
from persona.errors import PersonaError
from persona.gallery.people import open_eyes
from persona.gallery.store import Facts, OtherNetworkError, StoredPhoto, open_store
from persona.models import graphs
from persona.models.graphs import read_onnx, within_limit
from persona.models.litert import open_litert
from persona.models.onnx import digest
from persona.models.onnx_network import open_network
from persona.workspace import Workspace

FLAT = [
    helper.make_node("Flatten", ["faces"], ["flat"]),
    helper.make_node("MatMul", ["flat", "weight"], ["out"]),
]


def weight(external: str | None = None) -> TensorProto:
    tensor = numpy_helper.from_array(np.ones((3 * SIDE * SIDE, 9), np.float32), "weight")
    if external is not None:
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=external)
    return tensor


def save(
    path: Path,
    nodes: Any = FLAT,
    *,
    opset: int = 17,
    ir: int = 9,
    external: str | None = None,
    functions: Any = (),
) -> Path:
    given = helper.make_tensor_value_info("faces", TensorProto.FLOAT, ["batch", 3, SIDE, SIDE])
    wanted = helper.make_tensor_value_info("out", TensorProto.FLOAT, ["batch", 9])
    graph = helper.make_graph(list(nodes), "face", [given], [wanted], [weight(external)])
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("mine", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=ir, functions=list(functions))
    path.write_bytes(model.SerializeToString())
    path.with_suffix(".yaml").write_text(SETTINGS)
    return path


def endless() -> Any:
    """A loop of 2^63 turns, or a few fewer."""
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Neg", ["a"], ["b"])],
        "body",
        [
            value("turn", TensorProto.INT64, []),
            value("go", TensorProto.BOOL, []),
            value("a", TensorProto.FLOAT, None),
        ],
        [value("on", TensorProto.BOOL, []), value("b", TensorProto.FLOAT, None)],
    )
    turns = helper.make_tensor("turns", TensorProto.INT64, [], [2**63 - 1])
    yes = helper.make_tensor("yes", TensorProto.BOOL, [], [True])
    return [
        helper.make_node("Constant", [], ["turns"], value=turns),
        helper.make_node("Constant", [], ["yes"], value=yes),
        helper.make_node("Loop", ["turns", "yes", "flat"], ["looped"], body=body),
    ]


def looping(path: Path) -> Path:
    flat = helper.make_node("Flatten", ["faces"], ["flat"])
    last = helper.make_node("MatMul", ["looped", "weight"], ["out"])
    return save(path, [flat, *endless(), last])


def in_a_function(path: Path) -> Path:
    function = helper.make_function(
        "mine", "Spin", ["flat"], ["looped"], endless(), [helper.make_opsetid("", 17)]
    )
    nodes = [
        helper.make_node("Flatten", ["faces"], ["flat"]),
        helper.make_node("Spin", ["flat"], ["looped"], domain="mine"),
        helper.make_node("MatMul", ["looped", "weight"], ["out"]),
    ]
    return save(path, nodes, functions=[function])


@pytest.mark.parametrize("write", [looping, in_a_function])
def test_a_graph_that_never_ends_is_refused_before_it_is_run(tmp_path: Path, write: Any) -> None:
    path = write(tmp_path / "net.onnx")
    onnx.checker.check_model(str(path))
    for look in (read_onnx, open_network, digest):
        with pytest.raises(PersonaError, match=r"net\.onnx has control flow \(operator 'Loop'\)"):
            look(path)


def test_a_file_that_was_replaced_is_read_again(tmp_path: Path) -> None:
    """A file is read once; another one at its place, of the same size and time, is another file."""
    path = write_model(tmp_path / "net.onnx")
    known, first = path.stat(), read_onnx(path)
    assert read_onnx(path) is first
    model = onnx.load(path)
    model.opset_import[0].version += 1
    onnx.save(model, path)
    os.utime(path, ns=(known.st_atime_ns, known.st_mtime_ns))
    assert path.stat().st_size == known.st_size
    assert read_onnx(path).opset == first.opset + 1


def test_a_gallery_from_elsewhere_runs_no_other_file(tmp_path: Path, monkeypatch: Any) -> None:
    path = save(tmp_path / "net.onnx")
    facts = Facts(f"onnx:{path}", "d" * 64, 9, AlignSpec())
    with open_store(tmp_path / "g.db", create=True) as store:
        store.adopt(facts)
        store.add({"somebody": [StoredPhoto(np.eye(9, dtype=np.float32)[0])]}, facts.digest)
        monkeypatch.setattr("persona.models.sources.load_network", pytest.fail)
        with pytest.raises(OtherNetworkError, match="were made by another network"):
            open_eyes(store, None, Workspace.locate(home=tmp_path))


def big(path: Path) -> Path:
    """Some minutes of work for a processor, in many nodes, without a loop."""
    shape = numpy_helper.from_array(np.array([1500, 1500]), "shape")
    one = helper.make_tensor("one", TensorProto.FLOAT, [1], [1e-4])
    names = [f"m{n}" for n in range(4000)]
    nodes = [
        helper.make_node("Flatten", ["faces"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["small"]),
        helper.make_node("ReduceMean", ["small"], ["mean"], keepdims=0),
        helper.make_node("Constant", [], ["shape"], value=shape),
        helper.make_node("ConstantOfShape", ["shape"], ["ones"], value=one),
        helper.make_node("Add", ["ones", "mean"], [names[0]]),
        *(helper.make_node("MatMul", [a, a], [b]) for a, b in itertools.pairwise(names)),
        helper.make_node("ReduceMean", [names[-1]], ["end"], keepdims=0),
        helper.make_node("Add", ["small", "end"], ["out"]),
    ]
    return save(path, nodes)


def test_a_probe_that_takes_too_long_is_given_up(tmp_path: Path, monkeypatch: Any) -> None:
    path = big(tmp_path / "net.onnx")
    monkeypatch.setattr(graphs, "RUN_LIMIT_S", 1.0)
    with pytest.raises(PersonaError, match=r"net\.onnx: (a batch|loading) took over 1 s"):
        open_network(path)


def test_ctrl_c_ends_a_probe(tmp_path: Path) -> None:
    path = big(tmp_path / "net.onnx")
    code = (
        "from pathlib import Path\nfrom persona.models.onnx_network import open_network\n"
        f"print('begun', flush=True)\nopen_network(Path({str(path)!r}))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "begun\n"
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert "KeyboardInterrupt" in told


def test_what_a_limited_work_gives_or_raises() -> None:
    assert within_limit("it", lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        within_limit("it", lambda: 1 // 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"opset": 99}, r"\(.*Opset 99 .*\): it is of opset 99, and onnxruntime [\d.]+ is older"),
        ({"ir": 99}, r"IR version: 99, max supported IR version: \d+\): it is of opset 17, and"),
        (
            {"nodes": [helper.make_node("Foo", ["faces"], ["x"], domain="mine"), *FLAT]},
            r"mine:Foo.*: onnxruntime [\d.]+ does not have that operator",
        ),
        (
            {"nodes": [helper.make_node("Foo", ["faces"], ["x"]), *FLAT]},
            r"No Op registered for Foo.*does not have that operator",
        ),
        ({"nodes": FLAT[1:]}, r"Node input 'flat' is not a graph input.*: is it whole\?"),
        ({"external": "absent.bin"}, r"weights in another file, 'absent\.bin', which is not besi"),
        ({"external": "../out.bin"}, r"from outside its folder \('\.\./out\.bin'\)"),
        ({"external": "/etc/passwd"}, r"from outside its folder \('/etc/passwd'\)"),
        ({"external": "link.bin"}, r"from outside its folder \('link\.bin'\)"),
        ({"external": "*/_ORT_MEM_ADDR_/*"}, "which is not beside it"),
        ({"external": "short.bin"}, r"\(.*out of bounds.*\): is it whole\?"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (tmp_path / "out.bin").write_bytes(b"x" * 100_000)
    (folder / "link.bin").symlink_to(tmp_path / "out.bin")
    (folder / "short.bin").write_bytes(b"x")
    path = save(folder / "net.onnx", **options)
    with pytest.raises(PersonaError, match=message) as raised:
        open_network(path)
    line = str(raised.value)
    assert "onnxruntime_src" not in line and len(line) < 400 + len(str(path))


def test_weights_in_a_file_of_their_own_count(tmp_path: Path) -> None:
    path = save(tmp_path / "net.onnx", external="net.bin")
    (tmp_path / "net.bin").write_bytes(np.ones((3 * SIDE * SIDE, 9), np.float32).tobytes())
    assert open_network(path).embedding_size == 9
    before = digest(path)
    (tmp_path / "net.bin").write_bytes(np.zeros((3 * SIDE * SIDE, 9), np.float32).tobytes())
    assert digest(path) != before


def damages(data: bytes) -> Iterator[bytes]:
    rng = np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(data[: rng.integers(1, len(data))] if rng.random() < 0.3 else data)
        for place in rng.integers(0, min(len(damaged), 4000), 5):
            damaged[place] = rng.integers(256)
        yield bytes(damaged)


def test_damaged_files_are_refused_at_once(tmp_path: Path) -> None:
    data = write_model(tmp_path / "net.onnx", settings=SETTINGS).read_bytes()
    tiny = b"\x3a" + b"\x80\x80\x80\x04" + b"\x0a\x00" * 4_194_304  # 8 million empty nodes
    for damaged in (*damages(data), tiny, b"", b"\xff" * 1000):
        (tmp_path / "bad.onnx").write_bytes(damaged)
        began_s = time.process_time()
        try:
            read_onnx(tmp_path / "bad.onnx")
        except PersonaError as error:
            assert str(tmp_path / "bad.onnx") in str(error)
        assert time.process_time() - began_s < 2


@pytest.mark.parametrize(
    ("shape", "kind"),
    [
        ((1, 3, 112, 112), "FLOAT32"),  # channels first
        ((1, 48, 40, 3), "FLOAT32"),
        ((1, 1, 1, 3), "FLOAT32"),  # free sides look so
        ((1, 16, 16, 1), "FLOAT32"),
        ((1, 16, 16, 3), "UINT8"),
        ((1, 64, 64, 3), "FLOAT32"),  # 12,288 numbers
        ((1, 16, 16, 3), "FLOAT32"),
    ],
)
def test_litert_files_that_take_no_face_are_refused(
    tmp_path: Path, shape: tuple[int, ...], kind: str
) -> None:
    """The graph flattens its input."""
    pytest.importorskip("ai_edge_litert")
    from ai_edge_litert import schema_py_generated as schema
    from flatbuffers import Builder

    model, graph, flat = schema.ModelT(), schema.SubGraphT(), [1, math.prod(shape)]
    model.version, model.buffers, model.subgraphs = 3, [schema.BufferT()], [graph]
    operator, code = schema.OperatorT(), schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.RESHAPE
    model.operatorCodes, graph.operators, graph.tensors = [code], [operator], []
    for sides in (shape, flat):
        tensor = schema.TensorT()
        tensor.shape, tensor.type = list(sides), getattr(schema.TensorType, kind)
        graph.tensors.append(tensor)
    operator.opcodeIndex = 0
    graph.inputs = operator.inputs = [0]
    graph.outputs = operator.outputs = [1]
    operator.builtinOptionsType = schema.BuiltinOptions.ReshapeOptions
    operator.builtinOptions = schema.ReshapeOptionsT()
    operator.builtinOptions.newShape = flat
    builder = Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    path = tmp_path / "net.tflite"
    path.write_bytes(bytes(builder.Output()))
    if (*shape, kind) == (1, 16, 16, 3, "FLOAT32"):
        open_litert(path)
        return
    with pytest.raises(
        PersonaError, match=r"net\.tflite is no face network .*\(1, side, side, 3\)"
    ):
        open_litert(path)


def test_litert_files_with_control_flow_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert")
    from ai_edge_litert import schema_py_generated as schema
    from flatbuffers import Builder

    def write(codes: list[int], graphs: int = 1) -> Path:
        model = schema.ModelT()
        model.version = 3
        model.operatorCodes = [schema.OperatorCodeT() for _ in codes]
        for made, code in zip(model.operatorCodes, codes, strict=True):
            made.builtinCode, made.deprecatedBuiltinCode = code, min(code, 127)
        model.subgraphs = [schema.SubGraphT() for _ in range(graphs)]
        model.buffers = [schema.BufferT()]
        builder = Builder(1024)
        builder.Finish(model.Pack(builder), b"TFL3")
        (tmp_path / "net.tflite").write_bytes(bytes(builder.Output()))
        return tmp_path / "net.tflite"

    known = schema.BuiltinOperator
    for name in ("WHILE", "IF", "CALL_ONCE", "CALL", "CUSTOM", "STABLEHLO_WHILE"):
        path = write([known.CONV_2D, getattr(known, name)])
        with pytest.raises(PersonaError, match=rf"control flow or code .*\(operator {name}\)"):
            open_litert(path)
    with pytest.raises(PersonaError, match=r"\(2 graphs\)"):
        open_litert(write([known.CONV_2D], graphs=2))
    for data in (b"", b"TFL3" * 100, b"\xff" * 4 + b"TFL3" + b"\xff" * 100):
        path.write_bytes(data)
        with pytest.raises(PersonaError, match="is no LiteRT file that can be run here"):
            open_litert(path)

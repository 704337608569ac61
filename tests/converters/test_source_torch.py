"""A torch program answers as ONNX what it answers in torch; loading it runs nothing of its maker's.

What a file is refused for needs no torch. The rest runs where an interpreter has torch and
onnxscript: this one, or the one that EDGEKIT_TORCH_PYTHON names (`make test-torch`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.errors import BuildError, ModelError
from edgekit_converters import source
from edgekit_converters.normalise import normalise
from edgekit_converters.source import TORCH_PYTHON, OnnxSource
from edgekit_converters.sources import pt2

PYTHON = os.environ.get(TORCH_PYTHON, sys.executable)
TUPLE = '[1, {"type": "builtins.tuple", "context": "null", "children_spec": []}]'


def has_torch() -> bool:
    found = "import importlib.util as u; raise SystemExit(u.find_spec('torch') is None)"
    return subprocess.run([PYTHON, "-c", found], check=False).returncode == 0


def graph() -> dict[str, Any]:
    """A program as torch describes it, with what a reader looks at."""
    size = {"as_expr": {"expr_str": "Symbol('s17', positive=True, integer=True)"}}
    node = {
        "target": "torch.ops.aten.relu.default",
        "inputs": [{"name": "self", "arg": {"as_tensor": {"name": "x"}}}],
        "outputs": [{"as_tensor": {"name": "relu"}}],
        "metadata": {"stack_trace": "/home/someone/model.py", "torch_fn": "relu"},
    }
    return {
        "graph_module": {
            "graph": {"nodes": [node], "tensor_values": {"x": {"sizes": [size]}}},
            "module_call_graph": [{"signature": {"in_spec": TUPLE, "out_spec": TUPLE}}],
        },
        "range_constraints": {"s17": {"min_val": 1, "max_val": 64}},
        "guards_code": ["L['x'].size()[0] > 1"],
    }


def weight(**facts: Any) -> dict[str, Any]:
    return {"config": {"w": {"path_name": "weight_0", "use_pickle": False, **facts}}}


def write(folder: Path, changes: Mapping[str, Any] = {}) -> Path:
    """A program's archive; `changes` replace entries, or add some."""
    entries: dict[str, Any] = {
        "data/weights/weight_0": bytes(16),
        "data/weights/model_weights_config.json": weight(),
        "data/constants/model_constants_config.json": {"config": {}},
        "models/model.json": graph(),
        "data/sample_inputs/model.pt": b"\x80\x02 a pickle",
        "archive_format": b"pt2",
        "archive_version": b"0",
    }
    entries |= changes
    path = folder / "program.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            raw = content if isinstance(content, bytes) else json.dumps(content).encode()
            archive.writestr(f"program/{name}", raw)
    return path


def rewritten(path: Path) -> dict[str, bytes]:
    target = path.with_name("rewritten.pt2")
    pt2.rewrite(path, target)
    with zipfile.ZipFile(target) as archive:
        return {name.removeprefix("program/"): archive.read(name) for name in archive.namelist()}


def test_a_rewritten_program_holds_weights_and_graph_and_nothing_pickled(tmp_path: Path) -> None:
    entries = rewritten(write(tmp_path, {"extra/notes": b"of the maker"}))

    assert sorted(entries) == [
        "archive_format",
        "archive_version",
        "data/constants/model_constants_config.json",
        "data/sample_inputs/model.pt",
        "data/weights/model_weights_config.json",
        "data/weights/weight_0",
        "models/model.json",
    ]
    assert entries["data/sample_inputs/model.pt"] == b""
    program = json.loads(entries["models/model.json"])
    assert program["guards_code"] == []
    assert b"someone" not in entries["models/model.json"]


def change(keys: str, value: Any) -> dict[str, Any]:
    """The graph with one value replaced; `keys` are names and positions, joined by dots."""
    program = graph()
    part: Any = program
    *path, last = keys.split(".")
    for key in path:
        part = part[int(key) if key.isdigit() else key]
    part[last] = value
    return program


NODE = "graph_module.graph.nodes.0"
SIZE = "graph_module.graph.tensor_values.x.sizes.0.as_expr.expr_str"
CALL = "graph_module.module_call_graph.0.signature"
IMPORTING = json.dumps(
    [1, {"type": "collections.defaultdict", "context": {"default_factory_module": "os"}}]
)
ENUM = json.dumps([1, {"type": "builtins.tuple", "context": '{"__enum__": 1, "fqn": "os:x"}'}])


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (change(f"{NODE}.target", "torch.os.system"), "'torch.os.system' is not one of torch's"),
        (change(f"{NODE}.target", "torch.ops.aten.from_file.default"), "from_file"),
        (change(f"{NODE}.target", "_operator.attrgetter"), "attrgetter"),
        (change(f"{NODE}.target", "#own:op"), "#own:op"),
        (change(f"{NODE}.inputs", [{"arg": {"as_operator": "torch.hub.load"}}]), "torch.hub.load"),
        (change(f"{NODE}.inputs", [{"arg": {"as_custom_obj": {"name": "x"}}}]), "script object"),
        (change(SIZE, "__import__('os').system('true')"), "is not arithmetic"),
        (change(SIZE, "Symbol('s17').__class__"), "is not arithmetic"),
        (change(SIZE, "Symbol('__import__(1)')"), "is not arithmetic"),
        (change(SIZE, "lambda: 1"), "is not arithmetic"),
        (change(SIZE, "9**9**9"), "is not arithmetic"),
        (change(SIZE, "(" * 500), "is not arithmetic"),
        (change("range_constraints", {"exec('1')": {}}), "is not arithmetic"),
        (change(f"{CALL}.in_spec", IMPORTING), "takes or gives a collections.defaultdict"),
        (change(f"{CALL}.out_spec", ENUM), "takes or gives"),
        ([], "is no exported program"),
        (b"{" * 10_000, "is damaged"),
    ],
)
def test_a_graph_that_could_run_code_is_refused(program: Any, message: str, tmp_path: Path) -> None:
    path = write(tmp_path, {"models/model.json": program})

    with pytest.raises(ModelError, match=message) as refused:
        source.read(path)

    assert str(path) in refused.value.message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data/weights/model_weights_config.json": weight(use_pickle=True)}, "'w' is a pickled"),
        ({"data/weights/model_weights_config.json": weight(use_pickle=None)}, "'w' is a pickled"),
        (
            {"data/constants/model_constants_config.json": weight(path_name="opaque_obj_0")},
            "which is no weights file",
        ),
        (
            {"data/weights/model_weights_config.json": weight(path_name="../../x")},
            "which is no weights file",
        ),
        (
            {"data/weights/model_weights_config.json": weight(path_name="weight_7")},
            "which is not there",
        ),
        ({"data/weights/model_weights_config.json": []}, "no table of weights"),
        ({"data/aotinductor/model/model.so": b"\x7fELF"}, "compiled code, which is never run"),
        ({"models/other.json": graph()}, "holds 2 programs"),
    ],
)
def test_an_archive_with_more_than_plain_weights_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=message) as refused:
        source.read(write(tmp_path, changes))

    assert str(tmp_path) in refused.value.message


@given(
    st.recursive(
        st.one_of(st.integers(0, 99).map(str), st.sampled_from(["s17", "Symbol('u0')"])),
        lambda inner: st.one_of(
            st.tuples(inner, st.sampled_from("+-*"), inner).map(lambda t: f"({t[0]}{t[1]}{t[2]})"),
            st.tuples(st.sampled_from(["Max", "FloorDiv", "Mod"]), inner, inner).map(
                lambda t: f"{t[0]}({t[1]}, {t[2]})"
            ),
        ),
        max_leaves=8,
    )
)
def test_arithmetic_of_sizes_is_read(
    tmp_path_factory: pytest.TempPathFactory, expression: str
) -> None:
    path = write(tmp_path_factory.mktemp("sizes"), {"models/model.json": change(SIZE, expression)})

    assert (
        expression
        in json.loads(rewritten(path)["models/model.json"])["graph_module"]["graph"][
            "tensor_values"
        ]["x"]["sizes"][0]["as_expr"].values()
    )


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["m/data.pkl", "m/version", "m/data/0"], "a torch checkpoint"),
        (["m/data.pkl", "m/constants.pkl", "m/code/a.py"], "a TorchScript program"),
        (["serialized_exported_program.json", "version"], "saved by torch before 2.8"),
        (["config.json", "model.weights.h5"], "a Keras model"),
        (["input.npy"], "a numpy archive"),
        (["anything"], "a zip archive"),
    ],
)
def test_other_archives_are_named_for_what_they_are(
    names: list[str], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"")

    with pytest.raises(ModelError, match=message) as refused:
        source.read(path)

    assert refused.value.hint


def test_without_torch_the_packages_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", bare], check=True)
    monkeypatch.setenv(TORCH_PYTHON, str(bare / "bin/python"))

    with pytest.raises(BuildError, match="is not installed") as refused:
        source.read(write(tmp_path))

    assert "pip install torch" in (refused.value.hint or "")


NETWORKS = """
import sys, pickle, numpy as np, torch
from torch import nn
from torch.export import Dim, export, save

class Convolutions(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1, groups=8), nn.Hardswish())
        self.head = nn.Linear(16, 10)
    def forward(self, image):
        return self.head(self.body(image).mean((2, 3)))

class Layers(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(12, 32), nn.GELU(), nn.LayerNorm(32), nn.Linear(32, 3))
        self.register_buffer("scale", torch.arange(1., 4.))
    def forward(self, features, weight):
        return torch.softmax(self.body(features) * self.scale + weight.unsqueeze(1), 1)

torch.manual_seed(0)
batch = Dim("batch", min=1, max=64)
for name, model, inputs in (
    ("cnn", Convolutions(), {"image": torch.randn(5, 1, 8, 8)}),
    ("mlp", Layers(), {"features": torch.randn(5, 12), "weight": torch.randn(5)}),
):
    model.eval()
    program = export(model, (), inputs, dynamic_shapes={key: {0: batch} for key in inputs})
    save(program, f"{name}.pt2")
    arrays = {key: value.numpy() for key, value in inputs.items()}
    np.savez(f"{name}.npz", wanted=model(**inputs).detach().numpy(), **arrays)
torch.save(model.state_dict(), "state.pt")
"""

torch_only = pytest.mark.skipif(not has_torch(), reason=f"no torch: name one in {TORCH_PYTHON}")


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("torch")
    subprocess.run([PYTHON, "-c", NETWORKS], cwd=folder, check=True, capture_output=True)
    return folder


@torch_only
@pytest.mark.slow
@pytest.mark.parametrize("name", ["cnn", "mlp"])
def test_a_program_answers_as_onnx_what_it_answers_in_torch(name: str, programs: Path) -> None:
    read = source.read(programs / f"{name}.pt2")

    assert isinstance(read, OnnxSource)
    assert read.origin == "torch"
    assert set(read.tools) == {"torch", "onnxscript", "onnx-ir"}
    normal = normalise(read.model, shapes={}, max_opset=18, max_ir=10)
    assert all(spec.shape[0] == -1 for spec in normal.inputs)
    with np.load(programs / f"{name}.npz") as arrays:
        given = {spec.name: arrays[spec.name] for spec in normal.inputs}
        wanted = arrays["wanted"]
    session = onnxruntime.InferenceSession(
        normal.model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    for count in (1, 5):
        found = session.run(None, {key: value[:count] for key, value in given.items()})[0]
        np.testing.assert_allclose(found, wanted[:count], rtol=1e-4, atol=1e-5)


@torch_only
@pytest.mark.slow
def test_the_same_program_gives_the_same_bytes_and_names_no_machine(programs: Path) -> None:
    first, second = (source.read(programs / "mlp.pt2") for _ in range(2))

    assert isinstance(first, OnnxSource)
    assert isinstance(second, OnnxSource)
    raw = first.model.SerializeToString()
    assert raw == second.model.SerializeToString()
    assert str(programs).encode() not in raw
    assert b"site-packages" not in raw
    assert {"body.0.weight", "body.3.bias"} <= {t.name for t in first.model.graph.initializer}


@torch_only
@pytest.mark.slow
def test_a_checkpoint_of_torch_is_no_program(programs: Path) -> None:
    with pytest.raises(ModelError, match="a torch checkpoint"):
        source.read(programs / "state.pt")


@torch_only
@pytest.mark.slow
def test_a_harmful_example_input_is_not_run(programs: Path, tmp_path: Path) -> None:
    harmful = f"cos\nsystem\n(S'touch {tmp_path / 'mark'}'\ntR.".encode()
    path = tmp_path / "program.pt2"
    with zipfile.ZipFile(programs / "mlp.pt2") as read, zipfile.ZipFile(path, "w") as written:
        for name in read.namelist():
            kept = read.read(name) if not name.endswith("sample_inputs/model.pt") else harmful
            written.writestr(name, kept)

    assert source.read(path).sha256

    assert not (tmp_path / "mark").exists()


@torch_only
@pytest.mark.slow
def test_a_graph_that_torch_does_not_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is not a program that torch"):
        source.read(write(tmp_path))

"""Edge TPU: the lint of integer files, and how a compiler that does not behave is driven.

Google's compiler is in no package index. `fake_compiler` stands in for it where only the driving of
a program is tested; nothing here says what the real one takes or makes.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from edgekit import profile
from edgekit.errors import BuildError, ToolChainMissing
from edgekit_converters import tflite
from edgekit_converters.targets import Job
from edgekit_converters.targets.edgetpu import TARGET, EdgeTpu
from edgekit_converters.targets.edgetpu_lint import PARAMETER_BYTES, Plan, plan, reasons
from edgekit_converters.toolchains.driving import Limits
from tests.converters.integer_tflite_models import (
    FLOAT32,
    INT32,
    Graph,
    with_values_behind,
    write_convnet,
)
from tests.converters.target_jobs import job_of
from tests.converters.tflite_models import write_dense


def job(tmp_path: Path) -> Job:
    board = profile.find("coral-usb")
    engine = next(engine for engine in board.engines if TARGET.makes_for(engine))
    return job_of(board, engine, tmp_path)


def only(path: Path, operator: str, shape: list[int], **how: Any) -> Plan:
    """The plan of a file of one operator from `x` to `y`."""
    graph = Graph()
    x = graph.tensor("x", shape)
    constants = [
        graph.tensor(f"k{i}", data.shape, kind=INT32, data=data, scales=())
        for i, data in enumerate(how.pop("constants", []))
    ]
    y = graph.tensor("y", how.pop("made", shape))
    reads = [*constants, x] if how.pop("constants_first", False) else [x, *constants]
    graph.add(operator, reads, [y], how.pop("options", None))
    graph.write(path, inputs=[x], outputs=[y])
    return plan(path.read_bytes())


def fake_compiler(
    folder: Path, script: str, monkeypatch: pytest.MonkeyPatch, *, first: bool = True
) -> None:
    """A shell script that is called as the compiler is; it compiles nothing."""
    program = folder / "bin" / "edgetpu_compiler"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    if first:
        monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")


def test_a_full_integer_convnet_would_run_on_the_tpu_whole(tmp_path: Path) -> None:
    found = plan(write_convnet(tmp_path / "model.tflite").read_bytes())

    assert found.fallback == ()
    assert found.on_tpu == (0, 1, 2, 3)
    assert found.parameter_bytes == (9 * 4 * 8 + 9 * 8 + 8 * 2) + 4 * (8 + 8 + 2)
    assert found.streamed_bytes == 0


def test_all_behind_the_first_operator_that_is_not_taken_runs_on_the_cpu(tmp_path: Path) -> None:
    raw = write_convnet(tmp_path / "model.tflite", middle="HARD_SWISH").read_bytes()

    found = plan(raw)

    assert found.on_tpu == (0,)
    assert [finding.node for finding in found.fallback] == ["then", "deep", "scores"]
    assert found.fallback[0].reason == "it is not in the compiler's list"
    assert "needs what then makes" in found.fallback[2].reason


@pytest.mark.parametrize(
    ("operator", "shape", "how", "reason"),
    [
        ("SOFTMAX", [1, 16_001], {}, "16001 values, it takes up to 16000"),
        ("SOFTMAX", [1, 5, 7], {}, "tensor x [1, 5, 7] has more than one axis"),
        ("RELU", [2, 4, 4, 3], {}, "tensor x [2, 4, 4, 3]: only its last 3 axes"),
        (
            "MEAN",
            [1, 4, 4, 6],
            {"constants": [np.array([3], np.int32)], "made": [1, 4, 4]},
            "it reduces 6 channels, and takes multiples of 4",
        ),
        (
            "SUM",
            [2, 4, 4],
            {"constants": [np.array([0], np.int32)], "made": [4, 4]},
            "it works along the batch",
        ),
        (
            "PAD",
            [1, 4, 4, 3],
            {
                "constants": [np.array([[1, 0], [0, 0], [0, 0], [0, 0]], np.int32)],
                "made": [2, 4, 4, 3],
            },
            "tensor y [2, 4, 4, 3]: only its last 3 axes",
        ),
        (
            "SPLIT",
            [2, 4],
            {"constants": [np.array([0], np.int32)], "constants_first": True, "made": [1, 4]},
            "it splits the batch",
        ),
        ("GELU", [1, 8], {}, "it is not in the compiler's list"),
    ],
)
def test_a_documented_limit_that_is_broken_is_named(
    operator: str, shape: list[int], how: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    found = only(tmp_path / "one.tflite", operator, shape, **how)

    assert found.on_tpu == ()
    assert found.fallback[0].reason.startswith(reason)


def test_dilations_that_differ_and_fused_activations_are_named(tmp_path: Path) -> None:
    graph = Graph()
    x, a, y = (graph.tensor(name, [1, 8, 8, 4]) for name in "xay")
    graph.convolve("c", x, a, kernel=3, dilations=(1, 2))
    fused = schema.Pool2DOptionsT()
    fused.fusedActivationFunction = schema.ActivationFunctionType.RELU6
    graph.add("MAX_POOL_2D", [x], [y], fused)
    graph.write(tmp_path / "two.tflite", inputs=[x], outputs=[a, y])

    found = plan((tmp_path / "two.tflite").read_bytes())

    assert [finding.reason for finding in found.fallback] == [
        "its dilations 1 and 2 differ",
        "it has an activation function fused into it",
    ]


def test_a_tensor_in_float_and_a_dynamic_shape_are_named(tmp_path: Path) -> None:
    graph = Graph()
    x = graph.tensor("x", [1, 8], kind=FLOAT32)
    y = graph.tensor("y", [1, 8], kind=FLOAT32)
    graph.add("RELU", [x], [y])
    graph.write(tmp_path / "float.tflite", inputs=[x], outputs=[y])
    raw = (tmp_path / "float.tflite").read_bytes()
    graph = Graph()
    x, y = graph.tensor("x", [1, 8], signature=[1, -1]), graph.tensor("y", [1, 8])
    graph.add("RELU", [x], [y])
    open_file = graph.write(tmp_path / "open.tflite", inputs=[x], outputs=[y])

    in_float, dynamic = plan(raw), plan(open_file.read_bytes())

    assert in_float.fallback[0].reason == "tensor x is float32, it takes int8 or uint8"
    assert dynamic.fallback[0].reason == "tensor x has the dynamic shape [1, -1]"


def test_a_shape_that_holds_for_every_run_is_settled(tmp_path: Path) -> None:
    graph = Graph()
    x, y = graph.tensor("x", [1, 8]), graph.tensor("y", [1, 8], signature=[-1, 8])
    graph.add("RELU", [x], [y])
    raw = graph.write(tmp_path / "open.tflite", inputs=[x], outputs=[y]).read_bytes()

    assert plan(raw).on_tpu == ()
    assert plan(tflite.settled(raw)).on_tpu == (0,)


def test_values_behind_the_flatbuffer_are_counted_and_brought_inside(tmp_path: Path) -> None:
    inside = write_convnet(tmp_path / "inside.tflite")
    behind = tmp_path / "behind.tflite"
    behind.write_bytes(with_values_behind(inside.read_bytes()))

    brought = tflite.inlined(behind.read_bytes())

    assert tflite.facts(behind) == tflite.facts(inside)
    assert plan(brought) == plan(inside.read_bytes())
    assert tflite.inlined(brought) == brought


def test_parameters_beyond_the_chips_memory_are_told(tmp_path: Path) -> None:
    graph = Graph()
    x, y = graph.tensor("x", [1, 3000]), graph.tensor("y", [1, 3000])
    weights = graph.tensor("w", [3000, 3000], data=np.ones((3000, 3000), np.int8))
    graph.add("FULLY_CONNECTED", [x, weights], [y], schema.FullyConnectedOptionsT())
    graph.write(tmp_path / "big.tflite", inputs=[x], outputs=[y])

    found = plan((tmp_path / "big.tflite").read_bytes())

    assert found.streamed_bytes == 9_000_000 - PARAMETER_BYTES
    assert list(reasons(found)) == [
        "9.0 MB of parameters, the chip holds 8.4: the rest is sent at every inference"
    ]


def test_without_the_compiler_nothing_is_made_and_the_reason_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(ToolChainMissing, match="edgetpu_compiler is not on PATH") as caught:
        TARGET.compile(write_convnet(tmp_path / "model.tflite"), None, job(tmp_path))

    assert "coral.ai" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo 'Internal compiler error. Aborting!'; exit 0", "Internal compiler error. Aborting!"),
        ("echo 'Invalid model: given.tflite'; exit 1", "Invalid model: given.tflite"),
        (": > given_edgetpu.tflite", "empty model.tflite"),
        ("echo 'no model' > given_edgetpu.tflite", "wrote a model.tflite that is no .tflite file"),
        ("for last; do :; done; cp $last given_edgetpu.tflite", "put nothing on the Edge TPU"),
        ("kill -SEGV $$", "it wrote no file, and no reason"),
    ],
    ids=["exits-0", "refuses", "empty-file", "garbage", "unchanged", "crashes"],
)
def test_a_program_that_makes_nothing_of_use_is_refused_in_one_line(
    script: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_compiler(tmp_path, script, monkeypatch)

    with pytest.raises(BuildError) as caught:
        TARGET.compile(write_convnet(tmp_path / "model.tflite"), None, job(tmp_path))

    assert said in caught.value.message
    assert "\n" not in caught.value.message


def test_a_program_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_compiler(tmp_path, "sleep 60", monkeypatch)
    hasty = EdgeTpu(limits=Limits(time_s=0.5))

    with pytest.raises(BuildError, match=r"took longer than 0\.5 s; log: "):
        hasty.compile(write_convnet(tmp_path / "model.tflite"), None, job(tmp_path))


def test_a_model_of_which_nothing_would_run_there_never_reaches_the_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_compiler(tmp_path, "touch started", monkeypatch)
    graph = Graph()
    x, y = graph.tensor("x", [1, 8]), graph.tensor("y", [1, 8])
    graph.add("GELU", [x], [y])
    given = graph.write(tmp_path / "model.tflite", inputs=[x], outputs=[y])

    with pytest.raises(BuildError, match="GELU y: it is not in the compiler's list"):
        TARGET.compile(given, None, job(tmp_path))


def test_a_model_in_float_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_compiler(tmp_path, "exit 0", monkeypatch)
    write_dense(tmp_path / "model.tflite")

    with pytest.raises(BuildError, match="is in float"):
        TARGET.compile(tmp_path / "model.tflite", None, job(tmp_path))


def test_what_it_makes_counts_as_linted() -> None:
    board = profile.find("coral-usb")
    engine = next(engine for engine in board.engines if TARGET.makes_for(engine))

    assert TARGET.evidence(board, engine) == "linted"
    assert TARGET.options(engine)["delegates"] == [{"name": "libedgetpu.so.1", "options": {}}]

"""What a target cannot take is told by its operators before any tool starts, and a tool chain that
fails takes nothing along but its own board.

A script stands in for the Python of a tool chain where only this is tested: how its failure is
told, and that other boards of the same command are built.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner, Result
from onnx import ModelProto, TensorProto, helper

from edgekit import profile
from edgekit.errors import EdgekitError, GateRefused, StorageError
from edgekit.inspect import inspect
from edgekit.profile import Provider
from edgekit_converters.commands import build
from edgekit_converters.toolchains import environments, logs, toolchain
from edgekit_converters.toolchains.driving import Limits, drive
from tests.converters.building import HERE, write_data, write_model
from tests.converters.graph_models import model, noise

node = helper.make_node
MB = 1 << 20
# Boards whose accelerators compute in integers only, and whose shapes are fixed.
NPUS = ("imx93", "rv1106", "qcs6490", "coral-usb", "raspberry-pi-5-hailo8l")


def looked_at(folder: Path, source: ModelProto, *boards: str, options: Sequence[str] = ()) -> Any:
    """What `edgekit inspect` says of a model and boards, which starts no tool."""
    asked = [word for board in boards for word in ("--profile", board)]
    path = write_model(folder, source, "asked")

    run = CliRunner().invoke(inspect, [str(path), *asked, *options, "--json"])

    assert run.exception is None, run.exception
    assert not logs.home().exists()
    return {found["profile"]: found for found in json.loads(run.stdout)["profiles"]}


def told(found: Any, accelerator: str) -> str:
    """All that was found about one accelerator of a board."""
    (engine,) = [e for e in found["engines"] if e["accelerator"] == accelerator]
    return "; ".join((*engine["problems"], *engine["beside"]))


def convolved(middle: Any, *, shape: Sequence[int | str] = (1, 3, 8, 8)) -> ModelProto:
    """A convolution, a node from `a` to `b`, and another convolution."""
    nodes = [
        node("Conv", ["x", "w"], ["a"], "first", pads=[1, 1, 1, 1]),
        middle,
        node("Conv", ["b", "v"], ["y"], "last"),
    ]
    constants = {"w": noise(4, 3, 3, 3), "v": noise(2, 4, 1, 1)}
    return model(nodes, constants, shape=shape, output=[shape[0], 2, *shape[2:]])


def test_a_dynamic_shape_is_told_of_every_accelerator_with_the_option_that_fixes_it(
    tmp_path: Path,
) -> None:
    source = convolved(node("Relu", ["a"], ["b"], "middle"), shape=["n", 3, "h", "w"])

    found = looked_at(tmp_path, source, *NPUS, "rk3588", "intel-core-ultra")

    for board in found.values():
        first = board["engines"][0]
        assert "dynamic shape [-1, 3, -1, -1]" in told(board, first["accelerator"])
        assert "--input x=1x3xSIZExSIZE" in told(board, first["accelerator"])
    fixed = looked_at(tmp_path, source, *NPUS, options=["--input", "x=1x3x8x8"])
    assert {told(board, board["engines"][0]["accelerator"]) for board in fixed.values()} == {""}


def test_an_operator_that_is_not_taken_is_told_with_an_alternative(tmp_path: Path) -> None:
    source = convolved(node("Erf", ["a"], ["b"], "middle"))

    found = looked_at(tmp_path, source, *NPUS, "rk3588", "jetson")

    for name in ("coral-usb", "raspberry-pi-5-hailo8l"):
        assert "Erf 'middle'" in told(found[name], found[name]["engines"][0]["accelerator"])
        # The boards' own CPUs are an alternative.
        assert found[name]["engine"].endswith(" on cpu")


def test_operators_beside_the_accelerator_are_told_where_the_floor_allows_them(
    tmp_path: Path,
) -> None:
    source = convolved(node("Erf", ["a"], ["b"], "middle"))

    (board,) = looked_at(tmp_path, source, "rk3588").values()

    assert board["engine"] == "rknn on npu"
    assert any("Erf 'middle'" in reason for reason in board["reasons"])


# What every stand-in begins with: it is called as the frame of drivers is.
_CALLED = """\
import json, os, signal, sys, time
from pathlib import Path
_, frame, driver, request, reply = sys.argv
request = json.loads(Path(request).read_text())
def done(**said):
    Path(reply).write_text(json.dumps({"done": said}))
"""


def stand_in(name: str, body: str) -> Path:
    """A tool chain that counts as ready, whose Python is a script; its folder."""
    folder = environments.home() / name
    python = environments.python_in(folder)
    python.parent.mkdir(parents=True)
    python.write_text(f"#!{sys.executable}\n{_CALLED}{body}\n")
    python.chmod(0o755)
    digest = environments.sha256(toolchain(name).lock_file)
    (folder / environments.READY).write_text(f"{digest}\n")
    return folder


@pytest.fixture(autouse=True)
def _no_tool_chains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEKIT_TOOLCHAINS", str(tmp_path / "toolchains"))


def built(folder: Path, *boards: str, source: ModelProto | None = None) -> Result:
    """`edgekit build` of the digits, with the vendor's int8 where a board has it, else in float."""
    recipe = folder / "recipe.yaml"
    recipe.write_text("passes: [{name: rknn}]\n")
    asked = [word for board in boards for word in ("--profile", board)]
    arguments = [
        *(str(write_model(folder, source)), *asked, "--data", str(write_data(folder))),
        *("--recipe", str(recipe), "--out", str(folder / "out"), "--json"),
    ]
    return CliRunner().invoke(build, arguments)


def failure(run: Result) -> str:
    """What one board failed of, while the machine's own was built; the message of the command."""
    document = json.loads(run.stdout)
    (made,) = [found for found in document["bundles"] if found["path"] is not None]
    assert made["profile"] == HERE
    assert Path(made["path"]).is_file()
    assert [failed["profile"] for failed in document["failed"]] == ["rv1106"]
    assert isinstance(run.exception, EdgekitError)
    assert run.exception.exit_code == 3
    assert run.exception.message.startswith(("rv1106: ", "profile rv1106 "))
    assert "\n" not in run.exception.message
    return run.exception.message


_WRITES = """\
for name in ("model.model", "model.data", "model.quantization.cfg"):
    Path(request["quantised"], name).write_text("x") if request["do"] == "ranges" else None
"""


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("", "ended without a reply"),
        ("print('E build: no memory'); done()", "wrote no model.model: E build: no memory"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "died by signal 11 (SIGSEGV)"),
        ("raise SystemExit('E load: bad graph')", "refused: E load: bad graph"),
        (
            f"{_WRITES}if request.get('artifact'):\n"
            "    Path(request['artifact']).write_text('nonsense')\ndone(layers=[], kept=[])",
            "that is no .rknn file: ",
        ),
        ("time.sleep(60)", "took longer than 3 s"),
        ("held = b'x' * (300 << 20)\ntime.sleep(60)", "grew beyond 200 MB of memory"),
    ],
    ids=["nothing", "no file", "crash", "exit", "unusable file", "hang", "memory"],
)
def test_a_tool_that_fails_is_told_in_one_line_and_other_boards_are_built(
    body: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hasty = Limits(time_s=3, memory_bytes=200 * MB)
    assert drive.__kwdefaults__ is not None
    monkeypatch.setitem(drive.__kwdefaults__, "limits", hasty)
    stand_in("rknn", body)

    message = failure(built(tmp_path, "rv1106", HERE))

    assert said in message
    log = message.partition("; log: ")[2].split()[0].rstrip(";,)")
    assert Path(log).is_file()


def spoil_nothing(folder: Path) -> None:
    (folder / environments.READY).unlink()


def spoil_lock(folder: Path) -> None:
    (folder / environments.READY).write_text("of another lock\n")


def spoil_python(folder: Path) -> None:
    environments.python_in(folder).unlink()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (spoil_nothing, "was never finished"),
        (spoil_lock, "holds other versions than this edgekit wants"),
        (spoil_python, "the Python that"),
    ],
)
def test_a_tool_chain_that_is_not_whole_is_told_with_the_command_that_mends_it(
    spoil: Any, said: str, tmp_path: Path
) -> None:
    spoil(stand_in("rknn", "raise SystemExit"))

    message = failure(built(tmp_path, "rv1106", HERE))

    assert said in message
    assert "edgekit doctor --install rknn" in message
    assert not logs.home().exists()


def test_a_full_disk_is_told_as_such_and_asked_again_by_the_next_build(tmp_path: Path) -> None:
    folder = stand_in("rknn", "raise SystemExit('OSError: [Errno 28] No space left on device')")

    run = built(tmp_path, "rv1106", HERE)

    assert isinstance(run.exception, StorageError)
    assert "is on a full disk: tool chain rknn refused" in run.exception.message
    assert [found["profile"] for found in json.loads(run.stdout)["bundles"]] == [HERE]
    shutil.rmtree(folder)
    stand_in("rknn", "")
    assert "ended without a reply" in failure(built(tmp_path, "rv1106", HERE))


def test_a_python_that_does_not_run_is_told_with_what_mends_it(tmp_path: Path) -> None:
    folder = stand_in("rknn", "")
    environments.python_in(folder).chmod(0o644)

    message = failure(built(tmp_path, "rv1106", HERE))

    assert "tool chain rknn is damaged" in message
    assert "edgekit doctor --install rknn" in message


@pytest.mark.parametrize("body", ["time.sleep(60)", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_what_says_nothing_of_the_model_is_asked_again_by_the_next_build(
    body: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert drive.__kwdefaults__ is not None
    monkeypatch.setitem(drive.__kwdefaults__, "limits", Limits(time_s=3))
    folder = stand_in("rknn", body)
    failure(built(tmp_path, "rv1106", HERE))
    shutil.rmtree(folder)
    stand_in("rknn", "")

    assert "ended without a reply" in failure(built(tmp_path, "rv1106", HERE))


def test_without_samples_a_board_that_computes_in_integers_gets_no_bundle_and_the_command_fails(
    tmp_path: Path,
) -> None:
    stand_in("rknn", "raise SystemExit('it was started')")
    asked = ["--profile", "rv1106", "--out", str(tmp_path / "out"), "--json"]

    run = CliRunner().invoke(build, [str(write_model(tmp_path)), *asked])

    assert isinstance(run.exception, GateRefused)
    assert "needs calibration samples" in run.exception.message
    assert "--data" in run.exception.message
    assert list((tmp_path / "out").iterdir()) == []


def test_a_tool_chain_that_was_mended_is_used_by_the_next_build(tmp_path: Path) -> None:
    folder = stand_in("rknn", "")
    environments.python_in(folder).chmod(0o644)
    assert "damaged" in failure(built(tmp_path, "rv1106", HERE))
    environments.python_in(folder).chmod(0o755)

    assert "ended without a reply" in failure(built(tmp_path, "rv1106", HERE))


def test_what_a_driver_cannot_import_is_told_of_the_tool_chain(tmp_path: Path) -> None:
    """The environment's own Python, without the packages that it is to have."""
    folder = stand_in("rknn", "")
    environments.python_in(folder).unlink()
    environments.python_in(folder).symlink_to(sys.executable)

    message = failure(built(tmp_path, "rv1106", HERE))

    assert "tool chain rknn is damaged: No module named 'rknn'" in message
    assert "edgekit doctor --install rknn" in message


def test_a_model_that_is_not_taken_reaches_no_tool_and_other_boards_are_built(
    tmp_path: Path,
) -> None:
    stand_in("rknn", "raise SystemExit('it was started')")
    hidden = 10
    nodes = [
        node("Reshape", ["image", "steps"], ["s"], "steps"),
        node("LSTM", ["s", "W", "R"], ["", "h"], "memory", hidden_size=hidden),
        node("Squeeze", ["h", "first"], ["scores"], "squeeze"),
    ]
    constants = {
        "steps": np.array([8, -1, 8]),
        "first": np.array([0]),
        "W": noise(1, 4 * hidden, 8),
        "R": noise(1, 4 * hidden, hidden),
    }
    source = model(nodes, constants)
    source.graph.input[0].CopyFrom(
        helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 1, 8, 8])
    )
    source.graph.output[0].CopyFrom(
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", hidden])
    )

    message = failure(built(tmp_path, "rv1106", HERE, source=source))

    assert "LSTM 'memory': quantising it makes the toolkit die" in message
    assert "build for another engine" in message
    assert not logs.home().exists()


def test_inputs_of_one_sample_are_fixed_as_they_are_and_only_the_open_axes_are_asked_for(
    tmp_path: Path,
) -> None:
    """A recurrent model has its steps first: they are no batch."""
    source = model(
        [node("Relu", ["x"], ["y"], "only")], {}, shape=[20, "n", 8], output=[20, "n", 8]
    )

    (board,) = looked_at(tmp_path, source, "rv1106").values()

    assert "--input x=20xSIZEx8" in told(board, "npu")


def test_provider_options_that_name_no_chip_are_told_of_the_engine_they_are_given_to(
    tmp_path: Path,
) -> None:
    shipped = profile.find("raspberry-pi-5-hailo8l")
    engine = msgspec.structs.replace(
        next(e for e in profile.find("imx93").engines if e.accelerator == "npu"),
        providers=(Provider(name="libethosu_delegate.so", options={"accelerator_config": "u99"}),),
    )
    board = msgspec.structs.replace(shipped, engines=(engine, *shipped.engines[1:]))
    path = tmp_path / "board.yaml"
    path.write_text(json.dumps(msgspec.to_builtins(board)))

    (found,) = looked_at(tmp_path, convolved(node("Relu", ["a"], ["b"])), str(path)).values()

    assert "do not name an Ethos-U" in told(found, "npu")
    assert found["engine"] == "onnxruntime on cpu"


def test_a_device_that_openvino_does_not_open_is_told(tmp_path: Path) -> None:
    shipped = profile.find("intel-n100")
    provider = Provider(name="openvino_intel_cpu_plugin", options={"device": "TOASTER"})
    first = msgspec.structs.replace(shipped.engines[0], providers=(provider,))
    board = msgspec.structs.replace(shipped, engines=(first, *shipped.engines[1:]))
    path = tmp_path / "board.yaml"
    path.write_text(json.dumps(msgspec.to_builtins(board)))

    (found,) = looked_at(tmp_path, convolved(node("Relu", ["a"], ["b"])), str(path)).values()

    assert any("device of engine openvino is 'TOASTER'" in reason for reason in found["reasons"])
    assert found["engine"] == "onnxruntime on cpu"

"""What engines make on the device: in the background, kept whole, and made anew if need be."""

from __future__ import annotations

import hashlib
import multiprocessing
import queue
from collections.abc import Iterator
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.errors import EngineError
from edgekit.manifest import Golden, Needs, Variant
from edgekit.profile import Placement
from edgekit_runtime import compiled_run
from edgekit_runtime.compiled import MAX_STARTS, Compiled, Compiling
from edgekit_runtime.compiled_run import CompileFailed
from edgekit_runtime.compiled_store import ENTRY, Store
from edgekit_runtime.engines import ENGINES, hardware
from edgekit_runtime.engines.compiling import Usable
from edgekit_runtime.engines.onnx_compile import EngineCache, holds_context
from edgekit_runtime.engines.onnxruntime import ENGINE
from tests.runtime.onnx_models import OnnxModels

WAIT_S = 120
LIMIT_BYTES = 1 << 30
OPTIONS: dict[str, Any] = {"keep_compiled": True}

with_openvino = pytest.mark.skipif(
    util.find_spec("openvino") is None, reason="the extra openvino is not installed"
)


def variant(engine: str = "openvino", **options: Any) -> Variant:
    return Variant(
        name="fast",
        artifact="artifacts/fast.onnx",
        engine=engine,
        accelerator="npu",
        precision="fp32",
        options=options,
        needs=Needs(memory_mb=1),
        placement=Placement(),
        golden=Golden(reference_atol=1.0),
    )


class Device:
    """A cache below a folder, and who waits for it."""

    def __init__(self, folder: Path, **limits: Any) -> None:
        self.compiled = Compiled(folder, **limits)
        self.ended: queue.Queue[str] = queue.Queue()

    def prepare(self, artifact: Path, given: Variant | None = None) -> Usable | Compiling:
        return self.compiled.prepare(
            given or variant(**OPTIONS),
            artifact,
            sha256=hashlib.sha256(artifact.read_bytes()).hexdigest(),
            done=self.ended.put,
        )

    def usable(self, artifact: Path) -> Usable:
        """What to open, once it is compiled."""
        found = self.prepare(artifact)
        if isinstance(found, Compiling):
            assert self.ended.get(timeout=WAIT_S) == found.key
            found = self.prepare(artifact)
        assert isinstance(found, Usable)
        return found


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    made = Device(tmp_path / "compiled")
    yield made
    made.compiled.close()


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    return OnnxModels().relu(tmp_path)


def answers(usable: Usable) -> list[Any]:
    session = ENGINES.get("openvino").open(usable.artifact, options=usable.options)
    y = session.run({"x": np.array([[1, -1, 2, -2]], np.float32)})["y"]
    session.close()
    return list(y[0])


def entry_of(usable: Usable) -> Path:
    assert usable.entry is not None
    return usable.entry


@with_openvino
class TestCompiled:
    """With OpenVINO on the CPU, which exports what it compiled as it does on an NPU."""

    def test_what_is_compiled_once_is_found_again(self, device: Device, artifact: Path) -> None:
        first = device.prepare(artifact)
        assert isinstance(first, Compiling)

        made = device.usable(artifact)

        assert made.artifact.suffix == ".blob"
        assert answers(made) == [1, 0, 2, 0]
        assert device.prepare(artifact) == made

    def test_progress_is_told_until_it_ended(self, device: Device, artifact: Path) -> None:
        first = device.prepare(artifact)
        assert isinstance(first, Compiling)

        assert [task.key for task in device.compiled.progress()] == [first.key]
        assert "compil" in first.text
        device.ended.get(timeout=WAIT_S)
        assert device.compiled.progress() == ()

    def test_two_who_want_the_same_wait_for_one(self, device: Device, artifact: Path) -> None:
        keys = {getattr(device.prepare(artifact), "key", None) for _ in range(2)}

        assert {device.ended.get(timeout=WAIT_S) for _ in range(2)} == keys
        assert len(keys) == 1

    @pytest.mark.parametrize("changed", ["exported.blob", ENTRY])
    def test_a_damaged_entry_is_made_anew(
        self, device: Device, artifact: Path, changed: str
    ) -> None:
        file = entry_of(device.usable(artifact)) / changed
        raw = bytearray(file.read_bytes())
        raw[len(raw) // 2] ^= 1
        file.write_bytes(raw)

        assert isinstance(device.prepare(artifact), Compiling)
        device.ended.get(timeout=WAIT_S)
        assert answers(device.usable(artifact)) == [1, 0, 2, 0]

    def test_what_does_not_open_is_rejected_and_made_anew(
        self, device: Device, artifact: Path
    ) -> None:
        device.compiled.reject(device.usable(artifact))

        assert isinstance(device.prepare(artifact), Compiling)
        device.ended.get(timeout=WAIT_S)

    def test_an_entry_may_be_moved_with_its_folder(self, tmp_path: Path, artifact: Path) -> None:
        first = Device(tmp_path / "here")
        first.usable(artifact)
        first.compiled.close()
        (tmp_path / "here").rename(tmp_path / "there")

        second = Device(tmp_path / "there")

        assert answers(second.usable(artifact)) == [1, 0, 2, 0]
        assert second.ended.empty()

    def test_the_second_time_says_how_far_it_is(self, device: Device, artifact: Path) -> None:
        first = device.prepare(artifact)
        device.usable(artifact)

        again = device.prepare(artifact, variant(threads=2, **OPTIONS))

        assert isinstance(first, Compiling)
        assert isinstance(again, Compiling)
        assert first.expected_s is None
        assert again.expected_s is not None
        assert again.expected_s > 0

    def test_a_compiler_that_takes_too_long_is_ended(self, tmp_path: Path, artifact: Path) -> None:
        device = Device(tmp_path / "compiled", limit_s=0.0)
        first = device.prepare(artifact)
        assert isinstance(first, Compiling)
        device.ended.get(timeout=WAIT_S)

        with pytest.raises(CompileFailed, match="took longer than 0 s"):
            device.prepare(artifact)
        assert list((tmp_path / "compiled").glob("work-*")) == []
        device.compiled.close()

    def test_closing_ends_what_is_under_way(self, tmp_path: Path, artifact: Path) -> None:
        device = Device(tmp_path / "compiled")
        first = device.prepare(artifact)
        assert isinstance(first, Compiling)

        device.compiled.close()

        assert device.ended.empty()
        assert list((tmp_path / "compiled").glob("work-*")) == []
        # Its owner ended it: that says nothing against the compiler.
        assert Store(tmp_path / "compiled", limit_bytes=1).starts(first.key).count == 0

    def test_a_compiler_that_fails_says_why_and_is_not_started_for_ever(
        self, tmp_path: Path
    ) -> None:
        broken = tmp_path / "broken.onnx"
        broken.write_bytes(b"no model")
        for _ in range(MAX_STARTS):
            device = Device(tmp_path / "compiled")
            device.prepare(broken)
            device.ended.get(timeout=WAIT_S)
            with pytest.raises(CompileFailed, match="openvino cannot open"):
                device.prepare(broken)
            device.compiled.close()

        device = Device(tmp_path / "compiled")
        with pytest.raises(CompileFailed, match="3 times on this device and never ended well") as e:
            device.prepare(broken)
        assert "starts-" in (e.value.hint or "")

    def test_what_failed_may_be_tried_again(self, device: Device, tmp_path: Path) -> None:
        broken = tmp_path / "broken.onnx"
        broken.write_bytes(b"no model")
        first = device.prepare(broken)
        assert isinstance(first, Compiling)
        device.ended.get(timeout=WAIT_S)

        device.compiled.retry(first.key)

        assert isinstance(device.prepare(broken), Compiling)
        device.ended.get(timeout=WAIT_S)


def test_a_variant_that_compiles_nothing_is_opened_as_it_is(device: Device, artifact: Path) -> None:
    found = device.prepare(artifact, variant("onnxruntime", threads=2))

    assert found == Usable(artifact, {"threads": 2}, None)


@with_openvino
def test_what_a_killed_daemon_was_compiling_is_never_used(tmp_path: Path) -> None:
    artifact = OnnxModels().heavy(tmp_path)
    asking = multiprocessing.get_context("spawn").Process(
        target=_ask_and_hang, args=(tmp_path / "compiled", artifact)
    )
    asking.start()
    work = tmp_path / "compiled"
    while not (found := [*work.glob("work-*.log")]):
        asking.join(0.01)
        assert asking.is_alive()
    asking.kill()
    asking.join()

    Store(work, limit_bytes=LIMIT_BYTES)

    assert not found[0].exists()
    assert not [*work.glob(f"*/{ENTRY}")]
    # Nobody ended it in order: it may have been the compiler.
    assert [*work.glob("starts-*.json")]


def _ask_and_hang(folder: Path, artifact: Path) -> None:
    device = Device(folder)
    device.prepare(artifact)
    device.ended.get()


@with_openvino
def test_a_compiler_that_dies_is_told_with_its_last_words(artifact: Path, tmp_path: Path) -> None:
    with pytest.raises(CompileFailed, match=r"ended with code 1, after: FileNotFoundError"):
        compiled_run.run(
            artifact,
            engine="openvino",
            options=OPTIONS,
            folder=tmp_path / "taken away meanwhile",
            limit_s=WAIT_S,
            stopped=lambda: False,
        )


@given(st.none() | st.floats(0, 1e4), st.none() | st.floats(0.1, 1e4))
def test_what_is_under_way_is_never_all_done(elapsed: float | None, expected: float | None) -> None:
    told = Compiling(key="k", variant="v", elapsed_s=elapsed, expected_s=expected, limit_s=1800)

    assert told.share is None or 0 <= told.share < 1
    assert ("%" in told.text) == (told.share is not None)


def test_tensorrt_keeps_its_engines_in_the_entry(tmp_path: Path) -> None:
    """Only the options: no machine here has a GPU."""
    options = {
        "providers": [
            {"name": "TensorrtExecutionProvider", "options": {"trt_fp16_enable": True}},
            {"name": "CUDAExecutionProvider"},
        ]
    }
    artifact = tmp_path / "model.onnx"

    made = ENGINE.compilation(artifact, options=options)

    assert isinstance(made, EngineCache)
    tensorrt, cuda = made.usable(tmp_path / "entry").options["providers"]
    assert tensorrt["options"] == {
        "trt_fp16_enable": True,
        "trt_engine_cache_enable": True,
        "trt_engine_cache_path": str(tmp_path / "entry"),
        "trt_timing_cache_enable": True,
        "trt_timing_cache_path": str(tmp_path / "entry"),
    }
    assert cuda == {"name": "CUDAExecutionProvider"}


def test_a_plain_graph_holds_no_context(artifact: Path, tmp_path: Path) -> None:
    assert not holds_context(artifact)
    (tmp_path / "empty").touch()
    with pytest.raises(EngineError, match="empty"):
        holds_context(tmp_path / "empty")


def test_a_device_is_known_by_what_linux_tells_of_it(tmp_path: Path) -> None:
    for file, text in {
        "proc/device-tree/compatible": "radxa,rock-5b\0rockchip,rk3588\0",
        "proc/sys/kernel/osrelease": "6.1.75-rk\n",
        "sys/devices/soc0/soc_id": "0x1234\n",
        "sys/class/accel/accel0/device/vendor": "0x8086\n",
        "sys/class/accel/accel0/device/device": "0x643e\n",
    }.items():
        path = tmp_path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    found = hardware.identity(root=tmp_path)

    assert found["device_tree"] == "radxa,rock-5b rockchip,rk3588"
    assert (found["kernel"], found["soc_id"]) == ("6.1.75-rk", "0x1234")
    assert found["accelerators"] == "8086:643e"
    assert "nvidia_driver" not in found

"""Tool chains: what targets drive and edgekit does not import.

A tool chain is a locked environment of its own, made by `edgekit doctor --install NAME`, or a
program that no package index carries and that its vendor installs. Neither shares an interpreter
with edgekit: versions that contradict each other live beside each other.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec

from edgekit.errors import UsageError
from edgekit.structs import Strict

LOCKS = Path(__file__).parent / "locks"


class ToolChain(Strict, frozen=True, kw_only=True):
    """One tool chain.

    Attributes:
        title: what it is, for people.
        python: the Python of its environment, `3.11`; None for a program.
        imports: modules that an environment must be able to import, in one interpreter.
        glibc: the oldest glibc that its wheels run on.
        size_mb: what its environment takes on disk, in MB.
        onnx_only: whether a .tflite source goes without it.
        program: what must be on PATH, where no package index carries it.
        note: how to get a program.
        lock: requirements of the environment, pinned and hashed; None for `locks/NAME.txt`.
        machine: what its Python is for, as Linux calls it, where that is not this machine: it is
            emulated (`emulation.py`).
    """

    name: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9.-]{0,62}\Z")]
    title: str
    python: Annotated[str, msgspec.Meta(pattern=r"^3\.\d+\Z")] | None = None
    imports: tuple[str, ...] = ()
    glibc: Annotated[str, msgspec.Meta(pattern=r"^2\.\d+\Z")] = "2.28"
    size_mb: Annotated[int, msgspec.Meta(ge=0)] = 0
    onnx_only: bool = False
    program: str | None = None
    note: str = ""
    lock: Path | None = None
    machine: Literal["aarch64"] | None = None

    @property
    def lock_file(self) -> Path:
        """The pinned requirements of its environment."""
        return self.lock or LOCKS / f"{self.name}.txt"

    @property
    def platform(self) -> str:
        """For what its wheels are, in uv's words."""
        return f"{self.machine or 'x86_64'}-manylinux_{self.glibc.replace('.', '_')}"


TOOLCHAINS: dict[str, ToolChain] = {
    chain.name: chain
    for chain in (
        ToolChain(
            name="litert-quantizer",
            title="LiteRT quantizer 0.11",
            python="3.11",
            imports=("litert_quantizer", "ai_edge_litert.interpreter"),
            size_mb=244,
            onnx_only=True,
        ),
        ToolChain(
            name="onnx2tf",
            title="onnx2tf 2.6, ONNX to TFLite",
            python="3.12",
            imports=("onnx2tf",),
            size_mb=502,
            onnx_only=True,
        ),
        ToolChain(
            name="vela",
            title="Arm vela 5.2, for Ethos-U",
            python="3.11",
            imports=("ethosu.vela.vela",),
            size_mb=70,
        ),
        ToolChain(
            name="qnn",
            title="Qualcomm QNN 2.7, with its HTP emulation",
            python="3.11",
            imports=("onnxruntime", "onnxruntime_qnn", "onnx"),
            size_mb=432,
            glibc="2.35",
        ),
        ToolChain(
            name="openvino",
            title="OpenVINO 2026.4 with NNCF 3.4",
            python="3.11",
            imports=("openvino", "nncf", "onnx", "onnxruntime"),
            size_mb=453,
        ),
        ToolChain(
            name="rknn",
            title="RKNN toolkit 2.5, with its simulator",
            python="3.11",
            imports=("rknn", "onnx", "onnxruntime", "cv2", "pkg_resources"),
            size_mb=585,
        ),
        ToolChain(
            name="onnxruntime-1.18",
            title="onnxruntime 1.18, as boards pin it",
            python="3.11",
            imports=("onnxruntime",),
            size_mb=122,
        ),
        ToolChain(
            name="onnxruntime-1.23",
            title="onnxruntime 1.23, as boards pin it",
            python="3.11",
            imports=("onnxruntime",),
            size_mb=143,
        ),
        ToolChain(
            name="tflite-runtime",
            title="tflite-runtime 2.14, the last one, with NumPy 1",
            python="3.11",
            imports=("tflite_runtime.interpreter",),
            size_mb=75,
        ),
        ToolChain(
            name="arm64",
            title="onnxruntime and LiteRT for arm64, emulated by qemu",
            python="3.11",
            imports=("onnxruntime", "ai_edge_litert.interpreter"),
            size_mb=220,
            machine="aarch64",
        ),
        ToolChain(
            name="edgetpu",
            title="Edge TPU compiler",
            program="edgetpu_compiler",
            note="install edgetpu-compiler from Google's Debian repository,"
            " see https://coral.ai/docs/edgetpu/compiler/",
        ),
        ToolChain(
            name="hailo",
            title="Hailo Dataflow Compiler",
            program="hailo",
            note="install the Dataflow Compiler of Hailo's developer zone,"
            " see https://hailo.ai/developer-zone/",
        ),
    )
}


def toolchain(name: str) -> ToolChain:
    """The tool chain called `name`, raising `UsageError` for an unknown one."""
    try:
        return TOOLCHAINS[name]
    except KeyError:
        raise UsageError(
            f"there is no tool chain called {name!r}",
            hint=f"known: {', '.join(sorted(TOOLCHAINS))}",
        ) from None

"""Engine facts: what the engines of profiles take, and which wheels of them do not exist.

The tables hold what was read in the packages' own documents and asked of PyPI (2026-11-22); lint
holds profiles against them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgekit.profile import Accelerator, EngineName, EngineSpec

_QDQ = frozenset({"int8-qdq-u8s8", "int8-qdq-s8s8", "int8-qdq-u16s8"})
_FLOAT = frozenset({"fp32", "fp16"})
_TFLITE_INTEGER = frozenset({"int8", "int16x8"})
_TFLITE_CPU = _FLOAT | _TFLITE_INTEGER | {"int8-dynamic"}
_OPENVINO = _FLOAT | _QDQ | {"int8", "int4-weights"}


@dataclass(frozen=True)
class Place:
    """An engine on one accelerator.

    Attributes:
        precisions: what it takes.
        providers: names of the providers that bring it there; on a CPU none need be named.
    """

    precisions: frozenset[str]
    providers: frozenset[str]


def _place(precisions: frozenset[str], *providers: str) -> Place:
    return Place(precisions, frozenset(providers))


_TFLITE_TPU = _place(frozenset({"int8"}), "libedgetpu.so.1")
_TFLITE_NPU = _place(_TFLITE_INTEGER, "libethosu_delegate.so", "libvx_delegate.so")

PLACES: Mapping[EngineName, Mapping[Accelerator, Place]] = {
    "onnxruntime": {
        "cpu": _place(
            _FLOAT | _QDQ | {"int8", "int8-dynamic", "int4-weights"}, "CPUExecutionProvider"
        ),
        "gpu": _place(
            _FLOAT | {"int8-qdq-s8s8"}, "TensorrtExecutionProvider", "CUDAExecutionProvider"
        ),
        "npu": _place(_FLOAT | _QDQ, "QNNExecutionProvider"),
    },
    "litert": {"cpu": _place(_TFLITE_CPU), "npu": _TFLITE_NPU, "tpu": _TFLITE_TPU},
    "tflite-runtime": {
        "cpu": _place(_TFLITE_CPU),
        "npu": _TFLITE_NPU,
        "tpu": _TFLITE_TPU,
    },
    "tflite-micro": {
        "cpu": _place(_TFLITE_INTEGER | {"fp32"}),
        "npu": _place(_TFLITE_INTEGER, "ethos-u-core-driver"),
    },
    "openvino": {
        "cpu": _place(_OPENVINO, "openvino_intel_cpu_plugin"),
        "gpu": _place(_OPENVINO, "openvino_intel_gpu_plugin"),
        "npu": _place(_OPENVINO, "openvino_intel_npu_plugin"),
    },
    "rknn": {"npu": _place(frozenset({"int8", "fp16"}), "librknnrt.so", "librknnmrt.so")},
    "hailo": {"npu": _place(frozenset({"int8"}), "libhailort.so")},
}

PRECISIONS = frozenset().union(*(p.precisions for by in PLACES.values() for p in by.values()))

# Without these a target cannot make, or a board cannot open, an artefact.
REQUIRED_OPTIONS: Mapping[str, frozenset[str]] = {
    "QNNExecutionProvider": frozenset({"backend_path", "soc_model", "htp_arch"}),
    "libethosu_delegate.so": frozenset({"accelerator_config", "system_config", "memory_mode"}),
    "ethos-u-core-driver": frozenset({"accelerator_config", "system_config", "memory_mode"}),
    "openvino_intel_cpu_plugin": frozenset({"device"}),
    "openvino_intel_gpu_plugin": frozenset({"device"}),
    "openvino_intel_npu_plugin": frozenset({"device"}),
    "librknnrt.so": frozenset({"target_platform"}),
    "librknnmrt.so": frozenset({"target_platform"}),
    "libhailort.so": frozenset({"arch"}),
}

READS_ONNX: frozenset[EngineName] = frozenset({"onnxruntime", "openvino", "rknn"})


@dataclass(frozen=True)
class Gap:
    """Wheels that PyPI does not have.

    Attributes:
        since: first version of the engine that it is about; () for all.
        below: Pythons older than this have none.
        above: Pythons newer than this have none.
        accelerators: only there; () for everywhere.
        architectures: only on these; () for all.
    """

    engine: EngineName
    since: tuple[int, ...] = ()
    below: tuple[int, ...] | None = None
    above: tuple[int, ...] | None = None
    accelerators: tuple[Accelerator, ...] = ()
    architectures: tuple[str, ...] = ()


GAPS: tuple[Gap, ...] = (
    Gap("onnxruntime", since=(1, 24), below=(3, 11)),
    Gap("onnxruntime", since=(1, 20), below=(3, 10)),
    Gap("onnxruntime", below=(3, 11), accelerators=("gpu", "npu"), architectures=("aarch64",)),
    Gap("litert", since=(2, 2), below=(3, 10)),
    Gap("tflite-runtime", above=(3, 11)),
    Gap("tflite-runtime", since=(2, 15), below=(99,)),
    Gap("rknn", above=(3, 12)),
    Gap("rknn", below=(99,), architectures=("x86_64",)),
    Gap("hailo", below=(99,)),
    Gap("tflite-micro", below=(99,)),
)


def numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: `1.23.2` is (1, 23, 2), `any` is ()."""
    found = []
    for part in version.split("."):
        if not part.isdigit():
            break
        found.append(int(part))
    return tuple(found)


def has_wheel(engine: EngineSpec, *, python: str, architecture: str) -> bool:
    """Whether PyPI can have this engine for a Python on an architecture, as far as is known."""
    version, runs = numbers(engine.version), numbers(python)
    return not any(
        gap.engine == engine.name
        and version >= gap.since
        and (not gap.accelerators or engine.accelerator in gap.accelerators)
        and (not gap.architectures or architecture in gap.architectures)
        and (
            (gap.below is not None and runs < gap.below)
            or (gap.above is not None and runs > gap.above)
        )
        for gap in GAPS
    )

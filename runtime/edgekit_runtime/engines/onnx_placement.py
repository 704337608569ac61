"""Where an onnxruntime session runs its nodes, as onnxruntime itself says.

From 1.24 on a session records which provider took which nodes. Older ones are asked otherwise: one
run with zeros is profiled as the session opens, and the profile names each kernel's provider.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgekit.manifest import TensorSpec
from edgekit_runtime.engines.placed import Node, Placed, of_nodes
from edgekit_runtime.engines.tensors import zeros

CPU = "CPUExecutionProvider"
RECORD = "session.record_ep_graph_assignment_info"

_RECORDED = "onnxruntime's record of what each provider took"
_PROFILED = "onnxruntime's profile of one run with zeros"

MULTIPLYING = frozenset(
    (
        *("Conv", "ConvInteger", "ConvTranspose", "DeformConv", "QLinearConv", "FusedConv"),
        *("NhwcConv", "NhwcFusedConv", "QLinearConvTranspose"),
        *("Gemm", "QGemm", "FusedGemm", "MatMul", "MatMulInteger", "QLinearMatMul", "FusedMatMul"),
        *("MatMulNBits", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "MatMulFpQ4", "Einsum"),
        *("LSTM", "GRU", "RNN", "DynamicQuantizeLSTM"),
        *("Attention", "QAttention", "MultiHeadAttention", "GroupQueryAttention"),
        # What runs inside of them is not listed.
        *("If", "Loop", "Scan"),
    )
)
"""Operators with MACs that count, which an engine does not tell."""

# Copies between memories are no operators of the model.
_COPIES = ("MemcpyFromHost", "MemcpyToHost")


def can_record(ort: Any) -> bool:
    """Whether this onnxruntime records what each provider took."""
    return hasattr(ort.InferenceSession, "get_provider_graph_assignment_info")


def recorded(session: Any) -> Placed:
    """The placement of a session that was opened with `RECORD` set to 1."""
    nodes = [
        _node(node.op_type, provider=part.ep_name)
        for part in session.get_provider_graph_assignment_info()
        for node in part.get_nodes()
        if node.op_type not in _COPIES
    ]
    return of_nodes(nodes, source=_RECORDED)


class Profile:
    """A profile of one run, for a session that cannot record; prepared before it is opened."""

    def __init__(self, settings: Any) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="edgekit-placement-")
        settings.enable_profiling = True
        settings.profile_file_prefix = str(Path(self._folder.name) / "profile")

    def placed(self, session: Any, inputs: Sequence[TensorSpec]) -> Placed | None:
        """Where the kernels of a run with zeros were; None where it cannot be run so."""
        with self._folder:
            answered = _answers_zeros(session, inputs)
            profile = Path(session.end_profiling())
            return from_profile(profile.read_bytes()) if answered else None

    def discard(self) -> None:
        """The session was not opened."""
        self._folder.cleanup()


def from_profile(raw: bytes) -> Placed:
    """The placement by the kernels that a profile of onnxruntime holds."""
    return of_nodes(list(_kernels(json.loads(raw))), source=_PROFILED)


def _kernels(events: Sequence[Mapping[str, Any]]) -> Iterator[Node]:
    for event in events:
        args = event.get("args", {})
        if not str(event.get("name", "")).endswith("_kernel_time") or "provider" not in args:
            continue
        if args["op_name"] not in _COPIES:
            yield _node(args["op_name"], provider=args["provider"])


def _node(operator: str, *, provider: str) -> Node:
    macs = None if operator in MULTIPLYING else 0
    return Node(operator=operator, accelerated=provider != CPU, macs=macs)


def _answers_zeros(session: Any, inputs: Sequence[TensorSpec]) -> bool:
    try:
        session.run(None, zeros(inputs))
    except Exception:  # noqa: BLE001 - each of onnxruntime's errors is a class of its own
        return False
    return True

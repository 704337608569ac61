"""Qualcomm's HTP through onnxruntime's QNN provider: a QDQ graph, compiled into a context binary.

The provider is compiled for x86 too, where it emulates the HTP in integers: the file that ships
answers samples there, with CPU fallback disabled where nothing falls back. That proves arithmetic
and placement, and says nothing of speed, so the evidence is `simulated`.

The emulation takes seconds for a sample of a small image classifier, too long for the hundreds that
prove accuracy. So a few samples go through it and all of them through the quantised graph on the
CPU, which computes the same integers but for rounding; where the two part, nothing is made.

The HTP wants unsigned activations. It takes signed ones without a word, and answers nonsense; such
graphs are refused before anything is compiled.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from edgekit.errors import BuildError
from edgekit.profile import DeviceProfile, EngineSpec, Evidence
from edgekit_converters.data import spread
from edgekit_converters.evaluate import noise_of
from edgekit_converters.macs import macs_by_node
from edgekit_converters.normalise import serialise
from edgekit_converters.passes import Step, Style
from edgekit_converters.passes.edits import constants_of
from edgekit_converters.rows import take
from edgekit_converters.targets import Coverage, Found, Job, Product, whole
from edgekit_converters.targets.by_passes import ByPasses
from edgekit_converters.targets.coverage import coverage_of
from edgekit_converters.targets.engines import answers
from edgekit_converters.targets.lists import rules_of
from edgekit_converters.targets.onnxruntime_cpu import (
    CPU,
    cores_here,
    cpu_options,
    precision_of,
    version_lint,
)
from edgekit_converters.toolchains.driving import Limits, drive
from edgekit_runtime.engines.batches import SampleArrays

PROVIDER = "QNNExecutionProvider"
TOOLCHAIN = "qnn"

EMULATED = 12
"""Most samples of one call that go through the emulation."""

_MAX_TRIALS = 2
# The emulation is allowed a minute for each sample, on a machine that does other things too.
_LIMITS = Limits(time_s=60.0 * EMULATED)
# Power of the difference over that of the answers. EfficientNet-Lite0 has .001 (12 crops); graphs
# that the HTP does not compute as they say have more than 1.
_ALIKE = 0.05
# The provider's own default leaves quantising inputs to the CPU, which is then a fallback.
_DEFAULTS = {"offload_graph_io_quantization": "0"}
# Where the emulation finds its library is not the board's business.
_OF_THE_BOARD = frozenset({"backend_path", "backend_type"})
_RENAMED = re.compile(r"(_token_\d+)+\Z")


class Qnn(ByPasses):
    """The target."""

    name = "qnn"
    style: Style = "qnn"
    toolchains: tuple[str, ...] = (TOOLCHAIN,)
    max_trials: int | None = _MAX_TRIALS

    def makes_for(self, engine: EngineSpec) -> bool:
        return engine.name == "onnxruntime" and PROVIDER in [p.name for p in engine.providers]

    def coverage(self, model: onnx.ModelProto, engine: EngineSpec) -> Coverage:  # noqa: ARG002
        return coverage_of(model, rules_of("qnn"))

    def compile(self, model: Path, step: Step | None, job: Job) -> Product:  # noqa: ARG002
        graph = onnx.load_model(model)
        require_unsigned(graph)
        single = job.folder / f"{model.stem}.single.onnx"
        artifact = job.folder / f"{model.stem}.htp.onnx"
        single.write_bytes(serialise(whole.single(graph)))
        try:
            reply = drive(
                TOOLCHAIN,
                {
                    "task": "compile",
                    "model": str(single.absolute()),
                    "artifact": str(artifact.absolute()),
                    "provider_options": _emulated(job.engine),
                },
                driver="qnn",
                folder=job.folder,
                produces=[artifact],
            )
        finally:
            single.unlink()
        _cap(artifact, highest_ir=job.engine.max_onnx_ir)
        left: list[tuple[str, str, str]] = reply["fallback"]
        return Product(
            path=artifact,
            stand_in=model,
            placement=_placement(graph, {name: operator for name, operator, _ in left}),
            notes=(
                "accuracy on the HTP is that of the quantised graph on this machine's CPU; up to"
                f" {EMULATED} samples at a time went through the emulation, which answered alike",
                *(f"{operator} {name!r} runs on the CPU: {why}" for name, operator, why in left),
            ),
        )

    def answers(self, product: Product, inputs: SampleArrays, job: Job) -> dict[str, NDArray[Any]]:
        """The quantised graph's answers, of which the emulation must give those to a few samples.

        Raises:
            BuildError: it gives others; or it refused.
        """
        graph = product.stand_in or product.path
        options = cpu_options(threads=cores_here())
        found = answers(graph, inputs, engine="onnxruntime", options=options)
        count = len(next(iter(inputs.values())))
        which = spread(count, min(count, EMULATED))
        few = {name: take(array, which) for name, array in inputs.items()}
        emulated = self.emulated(product, few, job)
        apart = noise_of({name: array[which] for name, array in found.items()}, emulated)
        if apart is None or apart > _ALIKE:
            share = "no number" if apart is None else f"{apart:.2g} of the answers' own"
            raise BuildError(
                "the emulation of the HTP does not compute what the graph says: the power of the"
                f" difference is {share}",
                hint="quantise otherwise: 16-bit activations, or one scale for a whole weight",
            )
        return found

    def emulated(self, product: Product, inputs: SampleArrays, job: Job) -> dict[str, NDArray[Any]]:
        """What the emulation answers, a second or two for each sample of a small classifier.

        Raises:
            BuildError: it refused.
        """
        request = {
            "model": str(product.path.absolute()),
            "provider_options": _emulated(job.engine),
            "fallback": product.placement is not None and bool(product.placement.fallback_ops),
        }
        return whole.answers_in(TOOLCHAIN, request, inputs, job, driver="qnn", limits=_LIMITS)

    def source_precision(self, engine: EngineSpec, artifact: Path) -> str:  # noqa: ARG002
        # Float graphs are computed in half precision, on the architectures that take them at all.
        found = precision_of(onnx.load_model(artifact, load_external_data=False))
        return "fp16" if found == "fp32" else found

    def options(self, engine: EngineSpec) -> dict[str, Any]:
        own = next(p for p in engine.providers if p.name == PROVIDER)
        providers = [{"name": PROVIDER, "options": {**_DEFAULTS, **own.options}}, {"name": CPU}]
        return {"providers": providers, "threads": engine.threads, "spinning": False}

    def options_here(self, profile: DeviceProfile, engine: EngineSpec) -> dict[str, Any]:  # noqa: ARG002
        return cpu_options(threads=1)

    def evidence(self, profile: DeviceProfile, engine: EngineSpec) -> Evidence:  # noqa: ARG002
        return "simulated"

    def lint(self, artifact: Path, engine: EngineSpec) -> tuple[str, ...]:
        return version_lint(onnx.load_model(artifact, load_external_data=False), engine)


def require_unsigned(model: onnx.ModelProto) -> None:
    """Refuse a graph with signed activations, raising `BuildError` that names the first one."""
    constants = constants_of(model.graph)
    for node in model.graph.node:
        zero = constants.get(node.input[2]) if len(node.input) > 2 else None
        if node.op_type != "QuantizeLinear" or zero is None:
            continue
        if zero.data_type in (TensorProto.INT8, TensorProto.INT16):
            raise BuildError(
                f"QuantizeLinear {node.name!r} makes signed activations, of which the HTP answers"
                " nonsense",
                hint="use activations u8 or u16 in static-int8",
            )


def _emulated(engine: EngineSpec) -> dict[str, str]:
    own = next(p for p in engine.providers if p.name == PROVIDER)
    kept = {name: value for name, value in own.options.items() if name not in _OF_THE_BOARD}
    return {
        **_DEFAULTS,
        **{k: str(int(v)) if isinstance(v, bool) else str(v) for k, v in kept.items()},
    }


def _cap(artifact: Path, *, highest_ir: int) -> None:
    """Let older versions of onnxruntime load the file: it uses nothing of the newest format."""
    model = onnx.load_model(artifact)
    used = {node.domain for node in model.graph.node} | {""}
    opsets = [opset for opset in model.opset_import if opset.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(sorted(opsets, key=lambda opset: opset.domain))
    model.ir_version = min(model.ir_version, highest_ir)
    artifact.write_bytes(serialise(model))


def _placement(model: onnx.ModelProto, left: Mapping[str, str]) -> Found:
    """Where a graph runs, from the nodes, with their operators, that are left to the CPU."""
    macs, unknown = macs_by_node(model)
    away = {name if name in macs else _RENAMED.sub("", name) for name in left}
    on_cpu = sum(count for name, count in macs.items() if name in away)
    total = sum(macs.values())
    share = None if left and (unknown or not total) else 1 - on_cpu / max(total, 1)
    return Found(
        accelerator_macs=share,
        fallback_ops=tuple(sorted(set(left.values()))),
        evidence="simulated",
    )


TARGET = Qnn()

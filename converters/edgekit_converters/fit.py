"""Fit: whether a model fits a board, told from its graph and the board's profile before any build.

A yes needs an engine of the profile that loads the model, and memory that is known to suffice. What
cannot be told is `unknown`, with the reason; a build on the profile is what proves it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import onnx

from edgekit import profile as profiles_
from edgekit.errors import BuildError
from edgekit.profile import DeviceProfile, EngineSpec, Placement
from edgekit.structs import Strict
from edgekit_converters import placement
from edgekit_converters.inspect import ModelFacts, facts_of
from edgekit_converters.normal.graphs import graphs_in
from edgekit_converters.normalise import Constants, Shapes, normalise
from edgekit_converters.source import OnnxSource, Source, read
from edgekit_converters.targets import Target, litert, target_for
from edgekit_converters.targets.onnxruntime_cpu import precision_of
from edgekit_converters.targets.tensorrt import graph_lint
from edgekit_converters.toolchains.pins import chains_for

Answer = Literal["yes", "no", "unknown"]

# Proportional set size of a Linux process (x86-64, Python 3.11) that holds nothing but the engine,
# numpy and an open model of one node, on the CPU, in megabytes. What the driver of an accelerator
# adds was not measured.
_ENGINE_MB: Mapping[str, int] = {"onnxruntime": 50, "litert": 37}
# Kernels keep a packed copy of most weights beside those of the file.
_WEIGHT_COPIES = 2
_SAFE_SHARE = 0.75
_DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})


class EngineFit(Strict, frozen=True, kw_only=True):
    """Whether one engine of a profile takes the model.

    Attributes:
        problems: why it does not; empty where it does.
        beside: operators that would run on the CPU beside the accelerator, and why.
    """

    engine: str
    accelerator: str
    problems: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()


class ProfileFit(Strict, frozen=True, kw_only=True):
    """Whether a model fits a board.

    Attributes:
        engine: the first engine of the profile that takes the model; None where none does.
        memory_mb: estimate of what the model and its engine take; None where it is not known.
        available_mb: what the board has in all; None where the profile does not say.
        reasons: why the answer is what it is, what would run beside the accelerator, and why
            engines that the profile prefers do not take the model.
    """

    profile: str
    fits: Answer
    engine: str | None
    memory_mb: int | None
    available_mb: int | None
    reasons: tuple[str, ...]
    engines: tuple[EngineFit, ...]


def inspect_for(
    path: Path,
    *,
    profiles: Sequence[str],
    shapes: Shapes,
    constants: Constants,
    trust_pickle: bool = False,
) -> tuple[ModelFacts, tuple[ProfileFit, ...]]:
    """Facts about a model file, and whether it fits each of some boards.

    Args:
        profiles: boards by name or file.
        shapes, constants: what is fixed of the model's inputs.
        trust_pickle: load pickles, which can run any code of their maker's.

    Raises:
        ProfileError: a profile cannot be found or read.
        UsageError: a shape or constant does not fit the model.
        ModelError: the file cannot be read, or is no model that can be served.
    """
    boards = [profiles_.find(name) for name in profiles]
    source = read(path, trust_pickle=trust_pickle)
    facts = facts_of(source, shapes=shapes, constants=constants)
    return facts, tuple(
        fit(source, board, facts=facts, shapes=shapes, constants=constants) for board in boards
    )


def rows(fits: Sequence[ProfileFit]) -> Sequence[tuple[str, str]]:
    """What a person wants to read of boards, line by line."""
    return [
        (f"fits {found.profile}", line)
        for found in fits
        for line in (f"{found.fits}{_with(found)}: {found.reasons[0]}", *found.reasons[1:])
    ]


def _with(found: ProfileFit) -> str:
    return f", with {found.engine}" if found.engine else ""


def fit(
    source: Source,
    profile: DeviceProfile,
    *,
    facts: ModelFacts,
    shapes: Shapes,
    constants: Constants,
) -> ProfileFit:
    """Whether the source, of which these are the facts, fits a board."""
    engines = tuple(
        _engine_fit(
            source,
            engine,
            asked=placement.floor_of(profile, engine),
            shapes=shapes,
            constants=constants,
        )
        for engine in profile.engines
    )
    taker = next((found for found in engines if not found.problems), None)
    memory_mb = None if taker is None else _memory_mb(facts, taker)
    # Engines behind the one that takes the model are not asked for.
    passed = engines if taker is None else engines[: engines.index(taker)]
    problems = [f"{_place(e)}: {p}" for e in passed for p in e.problems]
    beside = [] if taker is None else [f"{_place(taker)}: {told}" for told in taker.beside]
    fits, reason = judge(
        taken=taker is not None, memory_mb=memory_mb, available_mb=profile.memory_mb
    )
    if taker is not None and facts.peak_activation_bytes is not None and memory_mb is None:
        reason = f"the memory that {taker.engine} needs on the {taker.accelerator} is not known"
    return ProfileFit(
        profile=profile.name,
        fits=fits,
        engine=None if taker is None else _place(taker),
        memory_mb=memory_mb,
        available_mb=profile.memory_mb,
        reasons=(reason, *beside, *problems),
        engines=engines,
    )


def _place(found: EngineFit) -> str:
    return f"{found.engine} on {found.accelerator}"


def judge(*, taken: bool, memory_mb: int | None, available_mb: int | None) -> tuple[Answer, str]:
    """The answer and why; a quarter of the memory is left to the system and other programs.

    Args:
        taken: whether an engine of the profile takes the model.
        memory_mb: what engine and model take; None where it is not known.
        available_mb: what the board has; None where its profile does not say.
    """
    if not taken:
        return "no", "no engine of the profile takes the model as it is"
    if memory_mb is None:
        return "unknown", "its memory is not known: fix the sizes of its inputs with --input"
    if available_mb is None:
        return "unknown", f"it takes about {memory_mb} MB, the profile states no memory"
    said = f"it takes about {memory_mb} MB of {available_mb} MB"
    if memory_mb > available_mb:
        return "no", said
    if memory_mb > _SAFE_SHARE * available_mb:
        return "unknown", f"{said}, which leaves the system less than a quarter"
    return "yes", said


def _memory_mb(facts: ModelFacts, taker: EngineFit) -> int | None:
    """What a process with engine and model takes; None where a part of it is not known."""
    if facts.weight_bytes is None or facts.peak_activation_bytes is None:
        return None
    if taker.accelerator != "cpu" or taker.engine not in _ENGINE_MB:
        return None
    model_bytes = _WEIGHT_COPIES * facts.weight_bytes + facts.peak_activation_bytes
    return _ENGINE_MB[taker.engine] + -(-model_bytes // 1_000_000)


def _engine_fit(
    source: Source,
    engine: EngineSpec,
    *,
    asked: Placement,
    shapes: Shapes,
    constants: Constants,
) -> EngineFit:
    target = target_for(engine)
    beside: tuple[str, ...] = ()
    if target is None:
        problems: tuple[str, ...] = ("no target makes artefacts for it",)
    elif target.format != source.format and not (source.format == "onnx" and target.toolchains):
        problems = (f"it takes {target.format} models, this is {source.format}",)
    elif isinstance(source, OnnxSource):
        problems, beside = _of_onnx(
            source, engine, target, asked=asked, shapes=shapes, constants=constants
        )
    else:
        made_of = litert.precision_of(source.path)
        problems = _precision_problems(made_of, engine)
        if not chains_for(target.toolchains, source.format):
            problems = target.lint(source.path, engine) or problems
    return EngineFit(
        engine=engine.name,
        accelerator=engine.accelerator,
        problems=problems,
        beside=() if problems else beside,
    )


def _of_onnx(
    source: OnnxSource,
    engine: EngineSpec,
    target: Target,
    *,
    asked: Placement,
    shapes: Shapes,
    constants: Constants,
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Why an engine does not take a model, and what of it would run beside its accelerator."""
    try:
        model = normalise(
            source.model,
            shapes=shapes,
            constants=constants,
            max_opset=engine.max_opset,
            max_ir=engine.max_onnx_ir,
            fold=False,
        ).model
        found = target.coverage(model, engine)
    except BuildError as e:
        return (e.with_hint,), ()
    problems = (*_foreign_operators(model), *placement.coverage_problems(found, asked, engine))
    if target.style == "tensorrt":
        problems += graph_lint(model)
    elif not target.toolchains:
        problems += _precision_problems(precision_of(model), engine)
    return problems, placement.beside(found)


def _foreign_operators(model: onnx.ModelProto) -> tuple[str, ...]:
    """Operators of domains that no engine knows, each once."""
    found = {
        f"operator {node.domain}.{node.op_type} is in no engine (export the model with standard"
        " operators in its place, or leave it out)"
        for graph in graphs_in(model.graph)
        for node in graph.node
        if node.domain not in _DOMAINS
    }
    return tuple(sorted(found))


def _precision_problems(precision: str, engine: EngineSpec) -> tuple[str, ...]:
    """A quantised or half-precision source stays what it is: the engine must list it."""
    if any(p == precision or p.startswith(f"{precision}-") for p in engine.precisions):
        return ()
    return (f"the model is {precision}, the profile lists {', '.join(engine.precisions)}",)

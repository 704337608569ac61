"""Study: what leaving each block of a model in float did, read from the probes of a search.

A probe is one scheme with one block in float; where the scheme had lost all sense, with all blocks
but one. The names of schemes tell which, as a pass labels the nodes that it leaves in float.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgekit.structs import Strict
from edgekit_converters.blocks import Block
from edgekit_converters.passes import KEEP, Scheme
from edgekit_converters.passes.edits import kept_label
from edgekit_converters.report import BlockEffect, Study, Tried


class _Probe(Strict, frozen=True, kw_only=True):
    base: str
    position: int
    alone: bool
    noise: float | None


def studies(
    tried: Sequence[Tried],
    blocks: Sequence[Block],
    *,
    engine: str,
    chosen: Mapping[str, Scheme],
) -> tuple[Study, ...]:
    """One for each scheme of an engine that was probed, in the order in which they were.

    Args:
        tried: everything that was tried.
        blocks: of the engine's normal form of the model, in running order.
        chosen: schemes of this engine that ship, by name of their variant.
    """
    own = [entry for entry in tried if entry.engine == engine]
    noises = {entry.scheme: entry.noise for entry in own if not entry.probe}
    probes = [found for entry in own if entry.probe and (found := _read(entry, blocks))]
    bases = dict.fromkeys((probe.base, probe.alone) for probe in probes)
    return tuple(
        Study(
            engine=engine,
            scheme=base,
            noise=noises.get(base),
            alone=alone,
            blocks=tuple(
                BlockEffect(
                    share=block.share,
                    nodes=len(block.nodes),
                    first=block.nodes[0],
                    last=block.nodes[-1],
                    noise=_noise(probes, base, alone, position),
                    kept_by=_keepers(block, chosen),
                )
                for position, block in enumerate(blocks)
            ),
        )
        for base, alone in bases
    )


def _read(entry: Tried, blocks: Sequence[Block]) -> _Probe | None:
    """Which block of which scheme a probe was about."""
    base, _, label = entry.scheme.rpartition("/")
    for position, block in enumerate(blocks):
        others = [name for other in blocks if other is not block for name in other.nodes]
        for names, alone in ((block.nodes, False), (others, True)):
            if label == kept_label(names):
                return _Probe(base=base, position=position, alone=alone, noise=entry.noise)
    return None


def _noise(probes: Sequence[_Probe], base: str, alone: bool, position: int) -> float | None:
    found = (p.noise for p in probes if (p.base, p.alone, p.position) == (base, alone, position))
    return next(found, None)


def _keepers(block: Block, chosen: Mapping[str, Scheme]) -> tuple[str, ...]:
    """Variants that leave all of a block in float."""
    kept = {
        name: option
        for name, scheme in chosen.items()
        if scheme.steps and isinstance(option := scheme.steps[-1].options.get(KEEP, ()), tuple)
    }
    return tuple(name for name, nodes in kept.items() if nodes and set(block.nodes) <= set(nodes))

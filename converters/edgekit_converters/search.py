"""Search: which scheme to make and measure next, and which to ship. Pure rules over what was found.

A scheme is judged by its headroom, how far its answers stay inside the budget on the selection
samples, and by its cost, its time as a share of the float model's. The search asks, in this order:

1. what each family (a pass that changes precision) gives at its best guess;
2. other ways of running the families that promise more speed than anything accepted so far;
3. the same after rewrites that prepare a model for them (equalisation);
4. which blocks hurt, by leaving each one in float and measuring the answers, then how few of them
   must stay in float (bisection over the blocks in order of what they hurt for the work they are);
5. what the accepted schemes still gain from rewrites that cost accuracy (pruning).

Nothing here knows a clock or a model; the same measurements give the same next step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from edgekit.structs import Strict
from edgekit_converters.blocks import Block
from edgekit_converters.passes import KEEP, Scheme, Step
from edgekit_converters.targets import step_of

NEAR_TIE = 0.05
"""Costs that differ by less than this share are equal: a machine does not tell them apart."""

CLEARLY_SMALLER = 0.25
"""The share of a file that another one must save to be taken for its size."""

ALIKE = 0.1
"""The most headroom that is given up for a smaller file, whatever the samples leave open: few
samples leave much open, and that is no reason to spend the budget on a file's size."""

_WORTH = 0.95
# Below this headroom a model has lost its sense, and what one block more in float does to it says
# nothing; then each block is quantised alone instead.
_LOST = -5.0


class Trial(Strict, frozen=True, kw_only=True):
    """One scheme that was made and measured on the selection samples.

    Attributes:
        headroom: 1 where every answer is the float model's, 0 at the budget, less below it; None
            where nothing could be evaluated.
        noise: power of the output's error over the output's own; finer than `headroom`.
        doubt: how far the samples leave open what `headroom` is, in its unit; 0 where they do not
            say.
        cost: time as a share of the float model's; where the board is not at hand, a rank in the
            same sense, from the profile's order of precisions and the work left in float.
        size_bytes: of the file; 0 where none was made.
        probe: made to see what its blocks do, not to ship.
        reasons: why it may not ship; empty where it may.
    """

    scheme: Scheme
    headroom: float | None = None
    noise: float | None = None
    doubt: float = 0.0
    cost: float | None = None
    size_bytes: int = 0
    probe: bool = False
    reasons: tuple[str, ...] = ()

    @property
    def accepted(self) -> bool:
        return not self.reasons and not self.probe

    @property
    def is_close(self) -> bool:
        """Whether its answers keep within the budget, whatever else speaks against it."""
        return self.headroom is not None and self.headroom >= 0


class Proposal(Strict, frozen=True, kw_only=True):
    """What to make next. A probe is not timed."""

    scheme: Scheme
    probe: bool = False


class Space(Strict, frozen=True, kw_only=True):
    """What may be composed for one model and one engine.

    Attributes:
        prefix: steps that every scheme begins with, as the recipe says.
        families: each the steps of one pass that are as fast as each other, best guess first.
        preparations: by pass, steps that help a family and gain nothing alone.
        rewrites: by pass, steps that gain alone or before a family, least loss first.
        blocks: of the model, in running order.
    """

    prefix: tuple[Step, ...] = ()
    families: tuple[tuple[Step, ...], ...] = ()
    preparations: tuple[tuple[Step, ...], ...] = ()
    rewrites: tuple[tuple[Step, ...], ...] = ()
    blocks: tuple[Block, ...] = ()


def propose(space: Space, history: Sequence[Trial]) -> Proposal | None:
    """The next scheme to make; None where nothing more is worth it."""
    known = {trial.scheme.name: trial for trial in history}
    for stage in (_openers, _variations, _preparations, _probes, _mixtures, _rewrites):
        for proposal in stage(space, known):
            trial = known.get(proposal.scheme.name)
            # A probe that turns out to be worth shipping has still to be timed.
            if trial is None or (trial.probe and not proposal.probe):
                return proposal
    return None


def choose(trials: Sequence[Trial]) -> int | None:
    """The position of the trial to ship: of those nearly as fast as the fastest, the closest.

    Those that the samples do not tell from it in accuracy are as good, and of them files that are
    clearly larger than the smallest are left out. Then, in this fixed order, the closest, the one
    with fewest steps, and the first by name.
    """
    accepted = [i for i, trial in enumerate(trials) if trial.accepted]
    if not accepted:
        return None
    fastest = min(_cost(trials[i]) for i in accepted)
    near = [i for i in accepted if _cost(trials[i]) <= fastest * (1 + NEAR_TIE)]
    closest = min((trials[i] for i in near), key=_order)
    alike = [i for i in near if _are_alike(trials[i], closest)]
    smallest = min(trials[i].size_bytes for i in alike)
    small = [i for i in alike if trials[i].size_bytes * (1 - CLEARLY_SMALLER) <= smallest]
    return min(small, key=lambda i: _order(trials[i]))


def ladder(trials: Sequence[Trial], *, most: int) -> tuple[int, ...]:
    """Positions of what ships beside float, fastest first: the choice, then closer and slower ones.

    A further rung must be clearly slower than the one before it (else nobody would take that one),
    clearly closer to the float model, and clearly faster than float.
    """
    first = choose(trials)
    if first is None:
        return ()
    rungs = [first]
    rest = sorted(
        (i for i, trial in enumerate(trials) if trial.accepted),
        key=lambda i: (_cost(trials[i]), _order(trials[i])),
    )
    for i in rest:
        last = trials[rungs[-1]]
        slower = _cost(trials[i]) >= _cost(last) * 1.15
        closer = _missing(trials[i]) <= 0.6 * _missing(last)
        if len(rungs) < most and slower and closer and _cost(trials[i]) <= 0.87:
            rungs.append(i)
    return tuple(rungs)


def pareto(points: Sequence[tuple[float, float]]) -> tuple[bool, ...]:
    """Which of the points (cost, loss) no other one is as good as in both, and better in one."""
    return tuple(
        not any(
            other != point and other[0] <= point[0] and other[1] <= point[1] for other in points
        )
        for point in points
    )


def _openers(space: Space, known: dict[str, Trial]) -> Iterator[Proposal]:  # noqa: ARG001
    if space.prefix and not space.families:
        yield Proposal(scheme=_after(space))
    for family in space.families:
        yield Proposal(scheme=_after(space, family[0]))


def _variations(space: Space, known: dict[str, Trial]) -> Iterator[Proposal]:
    for family in _promising(space, known):
        for step in family[1:]:
            if _is_settled(space, known, family):
                break
            yield Proposal(scheme=_after(space, step))


def _preparations(space: Space, known: dict[str, Trial]) -> Iterator[Proposal]:
    for family in _promising(space, known):
        best = _closest(space, known, family)
        if best is None or _is_settled(space, known, family):
            continue
        for steps in space.preparations:
            for step in steps:
                yield Proposal(scheme=_after(space, step, best))


def _probes(space: Space, known: dict[str, Trial]) -> Iterator[Proposal]:
    base = _to_mix(space, known)
    if base is not None:
        for block in space.blocks:
            yield Proposal(scheme=_probe(space, base, block), probe=True)


def _mixtures(space: Space, known: dict[str, Trial]) -> Iterator[Proposal]:
    base = _to_mix(space, known)
    if base is None:
        return
    order = _by_harm(space, known, base)
    few, many = 0, len(order)
    while many - few > 1:
        middle = (few + many) // 2
        scheme = _keeping(base.scheme, [order[i] for i in range(middle)])
        yield Proposal(scheme=scheme)
        trial = known[scheme.name]
        # One that is right and still refused is too slow: more in float would not mend that.
        enough = trial.is_close or trial.headroom is None
        few, many = (few, middle) if enough else (middle, many)


def _rewrites(space: Space, known: dict[str, Trial]) -> Iterator[Proposal]:
    base = _base_of_rewrites(space, known)
    start = len(space.prefix)
    for steps in space.rewrites:
        for step in steps:
            scheme = Scheme(steps=(*space.prefix, step, *base.steps[start:]))
            yield Proposal(scheme=scheme)
            if not known[scheme.name].accepted:
                break


def _base_of_rewrites(space: Space, known: dict[str, Trial]) -> Scheme:
    """The choice among schemes without a rewrite; the prefix alone where none is accepted."""
    plain = [trial for trial in known.values() if not _rewritten(space, trial)]
    best = choose(plain)
    return Scheme(steps=space.prefix) if best is None else plain[best].scheme


def _promising(space: Space, known: dict[str, Trial]) -> Iterator[tuple[Step, ...]]:
    """Families that are clearly faster than everything accepted outside them, fastest first."""
    found = []
    for family in space.families:
        opener = known.get(_after(space, family[0]).name)
        if opener is None or opener.headroom is None or opener.cost is None or opener.cost >= 1:
            continue
        own = {_after(space, step).name for step in family}
        others = [t.cost for t in known.values() if t.accepted and t.scheme.name not in own]
        if opener.cost <= _WORTH * min((c for c in others if c is not None), default=1.0):
            found.append((opener.cost, family))
    yield from (family for _, family in sorted(found, key=lambda item: item[0]))


def _is_settled(space: Space, known: dict[str, Trial], family: Sequence[Step]) -> bool:
    """Whether a step of the family answers well enough: others would gain nothing."""
    trials = (known.get(_after(space, step).name) for step in family)
    return any(trial is not None and trial.is_close for trial in trials)


def _closest(space: Space, known: dict[str, Trial], family: Sequence[Step]) -> Step | None:
    """The step of a family whose answers were closest, among those as fast as its opener."""
    trials = {step.label: known.get(_after(space, step).name) for step in family}
    opener = trials[family[0].label]
    if opener is None or opener.cost is None:
        return None
    near = [
        (trial.headroom, -position, step)
        for position, step in enumerate(family)
        if (trial := trials[step.label]) is not None
        and trial.headroom is not None
        and trial.cost is not None
        and trial.cost <= opener.cost * (1 + 2 * NEAR_TIE)
    ]
    return max(near, key=lambda item: item[:2])[2] if near else None


def _to_mix(space: Space, known: dict[str, Trial]) -> Trial | None:
    """The scheme to take blocks out of: too far from float, and of those that are clearly faster
    than what is accepted the closest.

    Only schemes whose last step can leave nodes in float, and does not yet.
    """
    plain = [trial for trial in known.values() if not _rewritten(space, trial)]
    best = min((_cost(t) for t in plain if t.accepted and not _mixed(t)), default=1.0)
    refused = [
        trial
        for trial in plain
        if not trial.probe
        and not _mixed(trial)
        and trial.headroom is not None
        and not trial.is_close
        and trial.cost is not None
        and trial.cost <= _WORTH * best
        and KEEP in trial.scheme.steps[-1].options
    ]
    if not refused or len(space.blocks) < 2:
        return None
    return max(refused, key=lambda t: (t.headroom or 0.0, -(t.noise or 0.0), t.scheme.name))


def _rewritten(space: Space, trial: Trial) -> bool:
    names = {step.name for steps in space.rewrites for step in steps}
    return any(step.name in names for step in trial.scheme.steps[len(space.prefix) :])


def _mixed(trial: Trial) -> bool:
    return bool(trial.scheme.steps and trial.scheme.steps[-1].options.get(KEEP))


def _probe(space: Space, base: Trial, block: Block) -> Scheme:
    """The base with one block in float; where the base has lost all sense, with all but one."""
    if (base.headroom or 0.0) > _LOST:
        return _keeping(base.scheme, [block])
    return _keeping(base.scheme, [other for other in space.blocks if other is not block])


def _by_harm(space: Space, known: dict[str, Trial], base: Trial) -> list[Block]:
    """Blocks by the error that each one causes for the work it would lose in float, worst first."""
    alone = (base.headroom or 0.0) <= _LOST
    harms = []
    for position, block in enumerate(space.blocks):
        noise = known[_probe(space, base, block).name].noise
        gain = 0.0 if noise is None else (base.noise or 0.0) - noise
        harm = noise or 0.0 if alone else max(gain, 0.0)
        harms.append((-harm / (block.share + 0.01), position))
    return [space.blocks[position] for _, position in sorted(harms)]


def _keeping(scheme: Scheme, blocks: Sequence[Block]) -> Scheme:
    """The scheme with these blocks left in float by its last step."""
    nodes = tuple(sorted({name for block in blocks for name in block.nodes}))
    last = scheme.steps[-1]
    mixed = step_of(last.name, {**last.options, KEEP: nodes})
    return Scheme(steps=(*scheme.steps[:-1], mixed))


def _after(space: Space, *steps: Step) -> Scheme:
    return Scheme(steps=(*space.prefix, *steps))


def _cost(trial: Trial) -> float:
    return float("inf") if trial.cost is None else trial.cost


def _missing(trial: Trial) -> float:
    """How far from the float model, 0 for one that answers the same."""
    return 1.0 - (trial.headroom or 0.0)


def _are_alike(one: Trial, other: Trial) -> bool:
    """Whether the samples leave open which of two is closer to the float model, and it matters
    little."""
    gap = abs(_missing(one) - _missing(other))
    return gap <= min(one.doubt, other.doubt, ALIKE)


def _order(trial: Trial) -> tuple[float, int, str]:
    return round(_missing(trial), 3), len(trial.scheme.steps), trial.scheme.name

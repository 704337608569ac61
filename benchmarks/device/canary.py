"""How often a canary is wrong, how long it takes, and what it costs live requests.

    python -m benchmarks.device.canary [--trials 200] [--seed 5] [--json FILE] [--keep FILE]
        [--rates-only]

Real networks and real changes to them (`canary_cases`): each pair was run once on every sample by
the bench that a device uses; what came of it is then dealt out as many streams, and the rules of a
device judge each. Two kinds of streams: `alone`, where each sample is drawn anew, and `scenes`,
where 10 to 20 crops of one photograph follow each other, as frames of a camera do.

`at the limit` is where the stated rates are tested: limits are set to exactly what the new version
is over the whole data, the hardest case there is, and every other measure is out of the way.
`defaults` are the limits that a device has. Then a handful of versions is tried in a real server,
and requests are timed with and without a canary beside them, in turns (`canary_live`).
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import msgspec
import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from benchmarks.device import canary_live
from benchmarks.device.canary_cases import Case, digits, photographs
from benchmarks.process import tell
from edgekit_runtime.canary.rules import Finding, judge
from edgekit_runtime.canary.samples import Sample, Samples
from edgekit_runtime.canary.settings import CanarySection
from edgekit_runtime.canary.trial import later

MOST = 4000
"""Samples after which a trial ends undecided; 33 minutes at the default spacing."""
HOLD = 10, 20
STATED = 0.05
OUT_OF_THE_WAY = CanarySection(
    false_promotion=STATED,
    false_rollback=STATED,
    agreement_good=0.02,
    agreement_bad=0.01,
    confidence_drop_good=0.9,
    confidence_drop_bad=0.95,
    latency_ratio_good=50,
    latency_ratio_bad=100,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--keep", type=Path, help="runs of both versions; read where it is there")
    parser.add_argument("--rates-only", action="store_true", help="leave out the server")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        samples, small = digits(Path(name))
        large = kept(given.keep, Path(name))
        rng = np.random.default_rng(given.seed)
        figures: dict[str, Any] = {
            **{f"version: {which}, {c.name}": about(c) for which, c in named(small, large)},
            **at_the_limit(small, large, given.trials, rng),
            **by_default(small, large, given.trials, rng),
            **unguarded(large, given.trials, np.random.default_rng(given.seed)),
        }
        if not given.rates_only:
            figures |= canary_live.tried(Path(name), samples, small)
            figures |= canary_live.costs(Path(name))
    tell(figures, file=given.json)


def kept(file: Path | None, folder: Path) -> list[Case]:
    """The photographs' cases, which take minutes, out of a file if there is one."""
    if file is not None and file.is_file():
        return msgspec.msgpack.decode(file.read_bytes(), type=list[Case])
    found = photographs(folder)
    if file is not None:
        file.write_bytes(msgspec.msgpack.encode(found))
    return found


def named(small: Sequence[Case], large: Sequence[Case]) -> Iterator[tuple[str, Case]]:
    yield from (("digits", case) for case in small)
    yield from (("photographs", case) for case in large)


def about(case: Case) -> dict[str, float]:
    """What a new version is over the whole data, and how often both are right."""
    agreement, drop, ratio = (column(case, name) for name in ("agreement", "drop", "ratio"))
    return {
        "agreement": round(float(agreement.mean()), 3),
        "confidence_drop": round(float(np.nanmean(drop)), 3),
        "latency_ratio": round(float(np.nanmedian(ratio)), 2),
        "accuracy_old": round(case.accuracy[0], 3),
        "accuracy_new": round(case.accuracy[1], 3),
    }


def column(case: Case, name: str) -> NDArray[np.float64]:
    return np.array([getattr(sample, name) for sample in case.pool], np.float64)


def at_the_limit(
    small: Sequence[Case], large: Sequence[Case], trials: int, rng: np.random.Generator
) -> dict[str, Any]:
    """False promotions of versions just bad enough, false rollbacks of those just good enough."""
    few, many = {c.name: c for c in small}, {c.name: c for c in large}
    two_bits, other = few["weights of 2 bits"], many["inputs as for another network"]
    tensor, twice = many["int8, a scale for each tensor"], many["everything twice"]
    three_bits, again = few["weights of 3 bits"], many["the same again"]
    cases = [
        ("digits, 2 bits", two_bits, "agreement", "bad", False),
        ("photographs, other inputs", other, "agreement", "bad", False),
        ("photographs, other inputs", other, "agreement", "bad", True),
        ("digits, 2 bits", two_bits, "confidence_drop", "bad", False),
        ("photographs, other inputs", other, "confidence_drop", "bad", True),
        ("photographs, everything twice", twice, "latency_ratio", "bad", True),
        ("digits, 3 bits", three_bits, "agreement", "good", False),
        ("photographs, int8 by tensor", tensor, "agreement", "good", False),
        ("photographs, int8 by tensor", tensor, "agreement", "good", True),
        ("photographs, int8 by tensor", tensor, "confidence_drop", "good", True),
        ("photographs, the same again", again, "latency_ratio", "good", True),
    ]
    figures: dict[str, Any] = {}
    for name, case, measure, side, in_scenes in cases:
        settings = just(case, measure, side)
        wrong = "promote" if side == "bad" else "roll_back"
        found = replayed(case, settings, trials, rng, in_scenes=in_scenes)
        key = f"at the limit: {name}, {measure} {side}, {'scenes' if in_scenes else 'alone'}"
        figures[key] = {"false": wrong, "stated": STATED, **shares(found, wrong)}
        print(key, figures[key], file=sys.stderr)
    return figures


def unguarded(large: Sequence[Case], trials: int, rng: np.random.Generator) -> dict[str, Any]:
    """What scenes do to the rates without blocks, and without the time that scenes take."""
    case = {c.name: c for c in large}["inputs as for another network"]
    settings = just(case, "agreement", "bad")
    # What tells alike inputs from others is drawn at random: each sample counts for itself.
    alone = [sample._replace(signal=float(rng.random())) for sample in case.pool]
    figures = {}
    for name, one, limits in (
        ("without blocks", msgspec.structs.replace(case, pool=alone), settings),
        ("without min_s", case, replace(settings, min_s=0.0)),
        (
            "without either",
            msgspec.structs.replace(case, pool=alone),
            replace(settings, min_s=0.0),
        ),
    ):
        found = replayed(one, limits, trials, rng, in_scenes=True)
        key = f"unguarded: photographs, other inputs, agreement bad, scenes, {name}"
        figures[key] = {"false": "promote", "stated": STATED, **shares(found, "promote")}
        print(key, figures[key], file=sys.stderr)
    return figures


def just(case: Case, measure: str, side: str) -> CanarySection:
    """Limits of one measure of which one is exactly what the version is."""
    about_it = {
        "agreement": float(column(case, "agreement").mean()),
        "confidence_drop": float(np.nanmean(column(case, "drop"))),
        "latency_ratio": float(np.nanmedian(column(case, "ratio"))),
    }[measure]
    # How far the other limit is away, to the better or to the worse side.
    away = {"agreement": -0.1, "confidence_drop": 0.1, "latency_ratio": 0.4 * about_it}[measure]
    good, bad = (about_it, about_it + away) if side == "good" else (about_it - away, about_it)
    if measure == "agreement":
        good = min(good, 0.99999)
    return replace(OUT_OF_THE_WAY, **{f"{measure}_good": good, f"{measure}_bad": bad})


def by_default(
    small: Sequence[Case], large: Sequence[Case], trials: int, rng: np.random.Generator
) -> dict[str, Any]:
    """What a device decides about each version, and after how many samples."""
    figures: dict[str, Any] = {}
    for which, case in named(small, large):
        for in_scenes in (False, True) if which == "photographs" else (False,):
            found = replayed(case, CanarySection(), trials, rng, in_scenes=in_scenes)
            decisions = Counter(
                one.decision if one.reason is None else f"{one.decision}: {one.reason.value}"
                for one, _ in found
            )
            counts = [count for _, count in found]
            key = f"defaults: {which}, {case.name}, {'scenes' if in_scenes else 'alone'}"
            figures[key] = {
                **dict(decisions),
                "samples_median": int(median(counts)),
                "samples_p90": int(quantiles(counts, n=10)[-1]),
            }
            print(key, figures[key], file=sys.stderr)
    return figures


def replayed(
    case: Case,
    settings: CanarySection,
    trials: int,
    rng: np.random.Generator,
    *,
    in_scenes: bool,
) -> list[tuple[Finding, int]]:
    """Findings of as many trials, each with the samples that it took."""
    first = max(settings.min_samples, math.ceil(settings.min_s / settings.spacing_s))
    return [decided(stream(case, rng, in_scenes=in_scenes), settings, first) for _ in range(trials)]


def stream(case: Case, rng: np.random.Generator, *, in_scenes: bool) -> Iterator[Sample]:
    """Samples without end: each drawn anew, or so many of one scene in a row."""
    while True:
        if not in_scenes:
            yield case.pool[int(rng.integers(len(case.pool)))]
            continue
        scene = case.scenes[int(rng.integers(len(case.scenes)))]
        count = int(rng.integers(HOLD[0], HOLD[1] + 1))
        start = int(rng.integers(len(scene) - count + 1))
        yield from (case.pool[at] for at in scene[start : start + count])


def decided(stream: Iterator[Sample], settings: CanarySection, first: int) -> tuple[Finding, int]:
    """What the rules of a device find, looking as often as a trial does."""
    samples = Samples()
    next_look = first
    found = Finding(decision="undecided")
    for sample in stream:
        samples.add(sample)
        if len(samples) >= next_look:
            found = judge(samples, settings)
            if found.decision != "undecided":
                break
            next_look = later(len(samples))
        if len(samples) >= MOST:
            break
    return found, len(samples)


def shares(found: Sequence[tuple[Finding, int]], wrong: str) -> dict[str, Any]:
    """The share of wrong decisions with its 95 % interval (Wilson), and of those undecided."""
    n, z = len(found), 1.96
    rate = sum(one.decision == wrong for one, _ in found) / n
    middle = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return {
        "rate": round(rate, 4),
        "low": round(max(0.0, middle - half), 4),
        "high": round(middle + half, 4),
        "undecided": round(sum(one.decision == "undecided" for one, _ in found) / n, 3),
        "trials": n,
    }


if __name__ == "__main__":
    main()

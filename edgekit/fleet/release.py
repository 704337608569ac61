"""Release: the weights of a series become a bundle by the same build as any other, and a gate.

The build runs as a subprocess, `edgekit build … --weights W`, so the coordinator needs no engine
and no converter. What it made is compared with the base bundle by the metric in their reports; a
candidate that is worse is never published.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from edgekit import storage
from edgekit.bundle import Bundle
from edgekit.errors import BuildError, BundleError, FleetError
from edgekit.manifest import Version

REPORT = "reports/report.json"
BUILD_TIMEOUT_S = 1800.0
_POLL_S = 0.2
_HIGHER_IS_BETTER = frozenset({"top1", "cosine", "iou"})
_LOWER_IS_BETTER = frozenset({"mse"})


class Metric(msgspec.Struct, frozen=True, kw_only=True):
    """A figure of a variant on the evaluation data."""

    name: str
    value: float | None = None


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """The metric of a bundle's default variant, and over how many samples."""

    name: str
    value: float
    samples: int


class VariantReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a report says of one variant, as far as the gate needs it."""

    name: str
    metric: Metric | None = None


class DataReport(msgspec.Struct, frozen=True, kw_only=True):
    """How many samples of the given data the metric is over."""

    evaluation: int = 0


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """`reports/report.json` of a bundle, as far as the gate needs it."""

    variants: tuple[VariantReport, ...] = ()
    data: DataReport = DataReport()


class Built(msgspec.Struct, frozen=True, kw_only=True):
    """One element of `bundles` that `edgekit build --json` prints."""

    path: str


class BuildOutput(msgspec.Struct, frozen=True, kw_only=True):
    """What `edgekit build --json` prints."""

    bundles: tuple[Built, ...] = ()


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What to build."""

    source: Path
    data: Path
    recipe: Path | None
    weights: Path
    profile: str
    name: str
    version: str


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """How a candidate fared against its base; `metric` is of each bundle's default variant.

    Attributes:
        accepted: whether it may be published.
        reason: why, with the figures.
    """

    version: str
    digest: str
    accepted: bool
    reason: str
    metric: Measured | None
    base_metric: Measured | None


class Builder:
    """Runs builds.

    Args:
        key: file of the signing key; without one a series of rounds cannot begin.
        state: folder where each series keeps its weights, its log and its bundle.
    """

    def __init__(self, *, key: Path | None, state: Path) -> None:
        self._key = key
        self._state = state

    def require_key(self) -> Path:
        """The signing key, raising `FleetError` where the coordinator has none."""
        if self._key is None:
            raise FleetError(
                "this coordinator has no key to sign the result of a round",
                hint="start it with --key FILE; edgekit keys new DIR makes one",
            )
        return self._key

    def folder(self, series: int) -> Path:
        """Where a series keeps its files."""
        folder = self._state / str(series)
        storage.make_folder(folder)
        return folder

    def build(self, order: Order, *, folder: Path, closing: threading.Event) -> Path:
        """Build and sign, and return the bundle's path.

        Raises:
            BuildError: the build refused, failed or took longer than `BUILD_TIMEOUT_S`; the
                message has its last line, the whole is in `folder/build.log`.
        """
        log = folder / "build.log"
        command = _command(order, key=self.require_key(), out=folder)
        try:
            with log.open("wb") as stderr:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=stderr,
                    start_new_session=True,
                )
                output = _await(process, closing=closing)
        except OSError as e:
            raise BuildError(f"the build could not be run, with its log {log}: {e}") from e
        if process.returncode != 0:
            raise BuildError(
                f"the build ended with code {process.returncode}: {_last_line(log)}",
                hint=f"its log is {log}",
            )
        try:
            bundles = msgspec.json.decode(output, type=BuildOutput).bundles
            return Path(bundles[0].path)
        except (msgspec.MsgspecError, IndexError) as e:
            raise BuildError(f"the build printed no bundle: {e}", hint=f"its log is {log}") from e


def compare(candidate: Bundle, base: Bundle) -> Candidate:
    """Hold a candidate against its base, each by the metric of its default variant."""
    ours, theirs = measured(candidate), measured(base)
    accepted, reason = judge(ours, theirs)
    return Candidate(
        version=candidate.manifest.version,
        digest=candidate.digest,
        accepted=accepted,
        reason=reason,
        metric=ours,
        base_metric=theirs,
    )


def judge(candidate: Measured | None, base: Measured | None) -> tuple[bool, str]:
    """Whether a candidate is at least as good as its base, and why."""
    if base is None:
        return False, "the base bundle has no measured metric to compare with"
    if candidate is None:
        return False, "the candidate has no measured metric"
    if (candidate.name, candidate.samples) != (base.name, base.samples):
        return False, (
            f"the candidate has {candidate.name} over {candidate.samples} samples, the base "
            f"{base.name} over {base.samples}: build both on the same data"
        )
    figures = f"{base.name} {base.value:.4f} before, {candidate.value:.4f} after"
    if base.name in _HIGHER_IS_BETTER:
        return candidate.value >= base.value, figures
    if base.name in _LOWER_IS_BETTER:
        return candidate.value <= base.value, figures
    return False, f"{base.name} does not say which of two models is better: labels are needed"


def next_version(published: Sequence[str]) -> str:
    """The next minor version after the highest one."""
    highest = max(published, key=Version)
    major, minor, _ = highest.split("+")[0].split("-")[0].split(".")
    return f"{major}.{int(minor) + 1}.0"


def measured(bundle: Bundle) -> Measured | None:
    """The metric of the default variant, from the bundle's signed report; `None` without one."""
    if REPORT not in bundle.names():
        return None
    try:
        report = msgspec.json.decode(bundle.read(REPORT), type=Report)
    except msgspec.MsgspecError as e:
        raise BundleError(f"{bundle.path}: {REPORT} is not a report: {e}") from e
    default = bundle.manifest.variants[0].name
    for variant in report.variants:
        metric = variant.metric
        if variant.name == default and metric is not None and metric.value is not None:
            return Measured(name=metric.name, value=metric.value, samples=report.data.evaluation)
    return None


def _command(order: Order, *, key: Path, out: Path) -> list[str]:
    recipe = ["--recipe", str(order.recipe)] if order.recipe else []
    return [
        *(sys.executable, "-m", "edgekit", "build", str(order.source)),
        *("--weights", str(order.weights)),
        *("--profile", order.profile),
        *("--data", str(order.data)),
        *recipe,
        *("--name", order.name),
        *("--version", order.version),
        *("--key", str(key)),
        *("--out", str(out)),
        "--json",
    ]


def _await(process: subprocess.Popen[bytes], *, closing: threading.Event) -> bytes:
    """The output of a build; ends it when its time is over or the coordinator closes."""
    deadline = time.monotonic() + BUILD_TIMEOUT_S
    while (output := _output(process)) is None:
        late = time.monotonic() > deadline
        if late or closing.is_set():
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            why = f"it took more than {BUILD_TIMEOUT_S:.0f} s" if late else "the coordinator closed"
            raise BuildError(f"the build was ended: {why}")
    return output


def _output(process: subprocess.Popen[bytes]) -> bytes | None:
    try:
        return process.communicate(timeout=_POLL_S)[0]
    except subprocess.TimeoutExpired:
        return None


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    return (errors or lines or ["it wrote nothing"])[-1].removeprefix("error: ")

"""Figures: what a bench on a board brings back, and the document that is written of it.

`docs/bench.md` is the reference of this format. A figure that was not obtained is null.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from edgekit.profile import DeviceProfile, Evidence
from edgekit.structs import Strict
from edgekit_runtime.bench import Measured, Skipped
from edgekit_runtime.board.conditions import Conditions

FORMAT: Literal[1] = 1


class Board(Strict, frozen=True, kw_only=True):
    """The machine on the other side, as its own Python sees it.

    Attributes:
        architecture: as `uname -m` says.
        bits: of its Python; a 64-bit kernel may run a 32-bit system.
        python: version, such as `3.10.12`.
        glibc: version of the C library; None on a system with another one.
        device_tree_model: what the firmware calls the board; None on most PCs.
        memory_mb: in all.
    """

    architecture: str
    bits: int
    python: str
    implementation: str
    glibc: str | None
    device_tree_model: str | None
    processor: str | None
    cores: int
    memory_mb: int | None
    system: str | None
    kernel: str

    @property
    def title(self) -> str:
        """The board in one line."""
        name = self.device_tree_model or self.processor or "unknown processor"
        return f"{name}, {self.architecture}, {self.cores} cores, {self.system or self.kernel}"


class Reproduced(Strict, frozen=True, kw_only=True):
    """Golden inputs that a variant answered on the board as it must.

    Attributes:
        own_error: largest difference from the variant's own golden outputs, by output; None where
            the bundle holds none.
        reference_error: the same from the source model's outputs.
    """

    label: str
    samples: int
    own_error: dict[str, float] | None
    reference_error: dict[str, float]


class Outcome(Strict, frozen=True, kw_only=True):
    """What the benchmark on the board says.

    Attributes:
        engines: version of each engine that ran.
    """

    results: tuple[Measured, ...]
    skipped: tuple[Skipped, ...]
    golden: tuple[Reproduced, ...]
    conditions: Conditions
    engines: dict[str, str]


class BoardBench(Strict, frozen=True, kw_only=True):
    """One bench on a board, whole.

    Attributes:
        at: when it ended, UTC, by the workstation's clock.
        device: the board as the user named it.
        profile: of the bundle; None where only models ran.
        digests: sha256 of each file that ran, by its name.
        packages: what was carried to the board, name to version; empty with `--remote-python`.
        mismatches: in what the board differs from the profile.
        void: why these are not the board's figures; empty where they are.
    """

    format: Literal[1] = FORMAT
    at: Annotated[str, msgspec.Meta(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ\Z")]
    edgekit: str
    device: str
    board: Board
    profile: str | None
    digests: dict[str, str]
    evidence: Evidence = "executed"
    engines: dict[str, str]
    packages: dict[str, str]
    results: tuple[Measured, ...]
    skipped: tuple[Skipped, ...]
    golden: tuple[Reproduced, ...]
    conditions: Conditions
    mismatches: tuple[str, ...]
    void: tuple[str, ...]


def mismatches(profile: DeviceProfile, board: Board, engines: dict[str, str]) -> tuple[str, ...]:
    """In what a board is not the one that a profile describes."""
    found = []
    if board.architecture != profile.architecture:
        found.append(
            f"profile {profile.name} is for {profile.architecture}, the board is"
            f" {board.architecture}"
        )
    wanted = profile.identify.device_tree_model
    if wanted is not None and wanted not in (board.device_tree_model or ""):
        found.append(
            f"profile {profile.name} is for a {wanted}, the board calls itself"
            f" {board.device_tree_model or 'nothing'}"
        )
    for engine in profile.engines:
        version = engines.get(engine.name)
        if version is not None and not fits(version, engine.version):
            found.append(
                f"profile {profile.name} has {engine.name} {engine.version}, the board ran"
                f" {version}"
            )
    return tuple(dict.fromkeys(found))


def fits(version: str, prefix: str) -> bool:
    """Whether a version begins with the numbers of a prefix: `1.23.2` fits `1.23`, not `1.2`."""
    return version == prefix or version.startswith(f"{prefix}.")

"""Founding: a fleet is made whole or is told to be none, whenever its making is cut off."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgekit.clock import SystemClock
from edgekit.errors import FleetError
from edgekit.fleet.folder import Facts, FleetFolder
from edgekit.fleet.founding import found
from edgekit.fleet.tuf.refresh import refresh
from tests.kills import killed_after

FACTS = Facts(
    name="test",
    sites=("berlin",),
    broker="mqtts://127.0.0.1:1",
    repositories=("http://127.0.0.1:1/repository/",),
    coordinator="http://127.0.0.1:1",
)
_MEMORY = Path("/dev/shm")
_STRIDE = 29


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder in memory where there is such: a disk makes many kills wait."""
    with tempfile.TemporaryDirectory(
        prefix="edgekit-founding-", dir=_MEMORY if _MEMORY.is_dir() else None
    ) as folder:
        yield Path(folder)


def make(path: Path) -> FleetFolder:
    folder = FleetFolder(path)
    found(folder, FACTS, clock=SystemClock())
    return folder


def files(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob("*") if path.suffix != ".tmp"}


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_a_kill_at_any_moment_leaves_a_whole_fleet_or_none(memory: Path) -> None:
    whole = files(make(memory / "whole").path)

    def kill_at(step: int) -> bool:
        """Whether it ended before so many changes on disk; what is left is what it says."""
        folder = FleetFolder(memory / "cut")
        ended = killed_after(step, lambda: make(folder.path))
        if folder.facts_file.exists():
            assert files(folder.path) == whole
            refresh(folder, clock=SystemClock())
        else:
            assert not ended
            with pytest.raises(FleetError, match="holds no fleet"):
                folder.facts()
        if folder.path.exists() and any(folder.path.iterdir()):
            with pytest.raises(FleetError, match=r"is there|holds a fleet|no whole fleet"):
                make(folder.path)
            shutil.rmtree(folder.path)
        return ended

    last = 0
    while not kill_at(last):
        last += _STRIDE
    assert last > 10 * _STRIDE
    # Near the end each: what was written before is no fleet yet, what is written last makes it one.
    assert {kill_at(step) for step in range(last - 2 * _STRIDE, last + 1)} == {False, True}

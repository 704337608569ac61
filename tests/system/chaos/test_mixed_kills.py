"""Daemon, broker and coordinator are killed in turn: no acknowledged message is lost or doubled."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.system.chaos import mixed

pytestmark = [pytest.mark.system, pytest.mark.slow]


def test_what_was_acknowledged_is_stored_once_whoever_was_killed(tmp_path: Path) -> None:
    found = mixed.run(
        tmp_path,
        kills=6,
        at_least=5000,
        daemons=2,
        interval_s=0.008,
        pause_s=2.0,
        seed=11,
        tell=print,
    )

    assert found.killed == {"daemon": 2, "broker": 2, "coordinator": 2}
    assert found.messages >= 5000
    assert found.acknowledged > 0
    assert (found.lost, found.gaps, found.twice) == (0, 0, 0)
    assert found.counted == found.requests > 0

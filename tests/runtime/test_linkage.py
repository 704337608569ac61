"""Linkage: why there is no link, as a code, on disk and as an event."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from edgekit_runtime import linkage
from edgekit_runtime.linkage import Linkage, Trouble, trouble_of
from edgekit_runtime.telemetry import Level
from tests.clock import ManualClock


@dataclass
class Line:
    """A link as it can be asked."""

    connected: bool = False
    refused: str | None = None


@pytest.mark.parametrize(
    ("said", "trouble"),
    [
        ("[SSL: SSLV3_ALERT_CERTIFICATE_EXPIRED] sslv3 alert certificate expired",
         Trouble.CERTIFICATE_EXPIRED),
        ("[SSL: TLSV1_ALERT_UNKNOWN_CA] tlsv1 alert unknown ca", Trouble.CERTIFICATE_REFUSED),
        ("certificate verify failed: certificate is not yet valid", Trouble.CLOCK_WRONG),
        ("certificate verify failed: certificate has expired", Trouble.CLOCK_WRONG),
        ("certificate verify failed: self-signed certificate", Trouble.BROKER_UNTRUSTED),
        ("the broker says: Not authorized", Trouble.BROKER_REFUSED),
        ("[Errno 111] Connection refused", Trouble.BROKER_UNREACHABLE),
        ("", Trouble.BROKER_UNREACHABLE),
    ],
)  # fmt: skip
def test_what_the_network_says_has_a_code(said: str, trouble: Trouble) -> None:
    assert trouble_of(said) is trouble


def test_a_change_is_told_once_and_lies_on_disk(tmp_path: Path) -> None:
    told: list[object] = []
    line = Line()

    def tell(kind: str, message: str, *, level: Level = "info", **facts: object) -> None:
        told.append((kind, facts["reason"]))

    watched = Linkage(tmp_path, line, events=tell, clock=ManualClock())
    watched.look()
    assert linkage.read(tmp_path) is None

    line.refused = "the broker says: Not authorized"
    watched.look()
    watched.look()
    down = linkage.read(tmp_path)
    assert down is not None
    assert (down.up, down.reason) == (False, Trouble.BROKER_REFUSED)
    assert told == [("link_refused", "broker_refused")]

    line.connected, line.refused = True, None
    watched.look()
    up = linkage.read(tmp_path)
    assert up is not None
    assert (up.up, up.reason) == (True, None)


def test_a_broker_that_takes_and_refuses_in_turns_fills_neither_disk_nor_outbox(
    tmp_path: Path,
) -> None:
    told: list[str] = []
    line, clock = Line(), ManualClock()

    def tell(kind: str, message: str, *, level: Level = "info", **facts: object) -> None:
        told.append(kind)

    watched = Linkage(tmp_path, line, events=tell, clock=clock)
    for second in range(86_400):
        line.connected = second % 2 == 0
        line.refused = None if line.connected else "the broker says: Not authorized"
        watched.look()
        clock.advance(1)
    assert len(told) < 150

    line.connected, line.refused = True, None
    for _ in range(1200):
        watched.look()
        clock.advance(1)
    status = linkage.read(tmp_path)
    assert status is not None
    assert status.up


def test_a_file_that_is_none_says_nothing(tmp_path: Path) -> None:
    (tmp_path / linkage.FILE).write_bytes(b"{")

    assert linkage.read(tmp_path) is None

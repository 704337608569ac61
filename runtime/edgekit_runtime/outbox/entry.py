"""Entry: a message as the outbox holds it, and how important it is."""

from __future__ import annotations

from typing import Literal, NamedTuple

from edgekit.messages import IMPORTANCES, Event, Importance, Telemetry

Kind = Literal["telemetry", "event"]
KINDS: dict[Kind, type[Telemetry] | type[Event]] = {"telemetry": Telemetry, "event": Event}


class Entry(NamedTuple):
    """A message that is held.

    Attributes:
        position: orders messages of all boots.
        rank: index into `IMPORTANCES`.
        lived_ms: how long the outbox had lived when the message was put in.
        payload: its JSON text, with `floor` and `sent` as they were when it was made.
    """

    position: int
    boot: str
    seq: int
    kind: Kind
    rank: int
    lived_ms: int
    payload: bytes


class Pending(NamedTuple):
    """A message that is not acknowledged, as it is sent now."""

    position: int
    boot: str
    seq: int
    kind: Kind
    payload: bytes


class Limits(NamedTuple):
    """What may be held: rows, bytes of payloads, and their age in milliseconds of lived time."""

    rows: int
    size_bytes: int
    age_ms: int


class Loss(dict[int, tuple[int, int]]):
    """What was given up: rank to messages and bytes."""

    def note(self, rank: int, size_bytes: int, *, count: int = 1) -> None:
        messages, total = self.get(rank, (0, 0))
        self[rank] = (messages + count, total + size_bytes)

    @property
    def count(self) -> int:
        return sum(messages for messages, _ in self.values())

    @property
    def size_bytes(self) -> int:
        return sum(size for _, size in self.values())


def rank_of(message: Telemetry | Event) -> int:
    """How important a message is: errors before events before telemetry."""
    importance: Importance = "telemetry"
    if isinstance(message, Event):
        importance = "error" if message.level == "error" else "event"
    return IMPORTANCES.index(importance)

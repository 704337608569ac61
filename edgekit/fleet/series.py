"""Series: rounds as rows. What was planned, what each round and each answer came to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
import sqlalchemy as sa

from edgekit.errors import FleetError
from edgekit.fleet import repository, store
from edgekit.fleet.open_round import Answer
from edgekit.fleet.release import Candidate
from edgekit.fleet.repository import SUFFIX, Published
from edgekit.fleet.store import UnknownId
from edgekit.manifest import ModelName
from edgekit.messages import Id, RoundOpen
from edgekit.structs import Strict

State = Literal["training", "building", "done", "refused", "failed"]
RoundState = Literal["open", "closed", "failed"]
RUNNING: tuple[State, ...] = ("training", "building")


class Request(Strict, frozen=True, kw_only=True):
    """What an operator asks for.

    Attributes:
        source: the float model the base was built from, as a file the coordinator keeps.
        data: held-out samples with labels, likewise.
        recipe: the recipe the base was built with, likewise.
        min_updates: fewer good updates than this fail a round.
        timeout_s: how long a round stays open.
        rollout: whether the result is rolled out when it is good.
    """

    model: ModelName
    profile: str
    site: Id
    source: str
    data: str
    recipe: str | None = None
    count: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 5
    epochs: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 1
    batch_size: Annotated[int, msgspec.Meta(ge=1, le=65536)] = 32
    learning_rate: Annotated[float, msgspec.Meta(gt=0, le=100)] = 0.05
    min_updates: Annotated[int, msgspec.Meta(ge=1)] = 2
    timeout_s: Annotated[float, msgspec.Meta(gt=0, le=86400)] = 120.0
    rollout: bool = False


class Plan(Request, frozen=True, kw_only=True):
    """A request, with the bundle it starts from.

    Attributes:
        base: digest of that bundle.
        base_file: its file in the repository.
    """

    base: str
    base_version: str
    base_file: str


class RoundView(msgspec.Struct, frozen=True, kw_only=True):
    """One round, for people. Losses are means over samples, as the devices measured them."""

    number: int
    round: str
    state: RoundState
    reason: str
    participants: tuple[str, ...]
    accepted: int
    refused: dict[str, str]
    samples: int
    loss_before: float | None
    loss_after: float | None
    up_bytes: int
    seconds: float | None


class SeriesView(msgspec.Struct, frozen=True, kw_only=True):
    """A series, for people."""

    id: int
    model: str
    profile: str
    site: str
    base_version: str
    count: int
    state: State
    reason: str
    created_ms: int
    updated_ms: int
    rounds: tuple[RoundView, ...]
    candidate: Candidate | None
    rollout: int | None


def base_of(connection: sa.Connection, request: Request) -> Published:
    """The newest published bundle that the request can train from."""
    known = repository.versions(connection, name=request.model, profile=request.profile)
    for item in known:
        if item.trainable:
            return item
    raise FleetError(
        f"no trainable bundle of {request.model} for {request.profile} is published",
        hint="build it with `training:` in the recipe, then edgekit publish",
    )


def plan_of(request: Request, base: Published) -> Plan:
    """The plan of a request on a base."""
    return Plan(
        **msgspec.structs.asdict(request),
        base=base.digest,
        base_version=base.version,
        base_file=f"{base.file_sha256}{SUFFIX}",
    )


def check_free(connection: sa.Connection) -> None:
    """Refuse a second series beside one that runs."""
    query = sa.select(store.series.c.id).where(store.series.c.state.in_(RUNNING))
    running = connection.scalar(query)
    if running is not None:
        raise FleetError(
            f"series {running} is running", hint=f"edgekit round show {running} says how far it is"
        )


def insert(connection: sa.Connection, plan: Plan, *, now_ms: int) -> int:
    """Write a new series down and return its id."""
    inserted = connection.execute(
        store.series.insert().values(
            plan=store.to_json(plan),
            state="training",
            reason="",
            created_ms=now_ms,
            updated_ms=now_ms,
        )
    )
    assert inserted.inserted_primary_key is not None
    number: int = inserted.inserted_primary_key[0]
    _log(connection, "start series", number, plan, now_ms=now_ms)
    return number


def plan(connection: sa.Connection, number: int) -> Plan:
    """The plan of a series."""
    return store.from_json(_row(connection, number)["plan"], Plan)


def set_state(
    connection: sa.Connection,
    number: int,
    state: State,
    reason: str,
    *,
    candidate: Candidate | None,
    rollout: int | None,
    now_ms: int,
) -> None:
    """Move a series on."""
    change = store.series.update().where(store.series.c.id == number)
    connection.execute(
        change.values(
            state=state,
            reason=reason,
            candidate=store.to_json(candidate) if candidate else None,
            rollout=rollout,
            updated_ms=now_ms,
        )
    )
    _log(connection, f"series {state}", number, reason, now_ms=now_ms)


def open_round(
    connection: sa.Connection, number: int, turn: int, opened: RoundOpen, *, now_ms: int
) -> None:
    """Write a round down before devices hear of it."""
    connection.execute(
        store.rounds.insert().values(
            series=number,
            number=turn,
            round=opened.round,
            state="open",
            reason="",
            participants=store.to_json(opened.participants),
            opened_ms=now_ms,
            closes_ms=opened.closes_at,
        )
    )


def note_answer(connection: sa.Connection, round_id: str, answer: Answer) -> None:
    """Write down what a device's answer came to."""
    connection.execute(
        store.updates.insert().values(
            round=round_id,
            device=answer.device,
            accepted=answer.accepted,
            reason=": ".join(part for part in (answer.reason, answer.detail) if part),
            size_bytes=answer.size_bytes,
            samples=answer.samples,
            loss_before=answer.loss_before,
            loss_after=answer.loss_after,
            seconds=answer.seconds,
        )
    )


def close_round(
    connection: sa.Connection, round_id: str, *, state: RoundState, reason: str, now_ms: int
) -> None:
    """Write down how a round ended."""
    change = store.rounds.update().where(store.rounds.c.round == round_id)
    connection.execute(change.values(state=state, reason=reason, closed_ms=now_ms))


def end_interrupted(
    connection: sa.Connection, *, reason: str, now_ms: int
) -> list[tuple[str, str]]:
    """Mark series and rounds that a stop cut off; site and id of the rounds that were open."""
    query = sa.select(store.series).where(store.series.c.state.in_(RUNNING))
    cut = connection.execute(query).mappings().all()
    left: list[tuple[str, str]] = []
    for row in cut:
        site = store.from_json(row["plan"], Plan).site
        rounds = store.rounds
        open_ones = sa.select(rounds.c.round).where(
            rounds.c.series == row["id"], rounds.c.state == "open"
        )
        for round_id in connection.scalars(open_ones).all():
            close_round(connection, round_id, state="failed", reason=reason, now_ms=now_ms)
            left.append((site, round_id))
        set_state(
            connection, row["id"], "failed", reason, candidate=None, rollout=None, now_ms=now_ms
        )
    return left


def view(connection: sa.Connection, number: int) -> SeriesView:
    """One series, with its rounds."""
    row = _row(connection, number)
    planned = store.from_json(row["plan"], Plan)
    table = store.rounds
    query = sa.select(table).where(table.c.series == number).order_by(table.c.number)
    return SeriesView(
        id=number,
        model=planned.model,
        profile=planned.profile,
        site=planned.site,
        base_version=planned.base_version,
        count=planned.count,
        state=row["state"],
        reason=row["reason"],
        created_ms=row["created_ms"],
        updated_ms=row["updated_ms"],
        rounds=tuple(
            _round_view(connection, found) for found in connection.execute(query).mappings().all()
        ),
        candidate=store.from_json(row["candidate"], Candidate) if row["candidate"] else None,
        rollout=row["rollout"],
    )


def latest(connection: sa.Connection, *, limit: int) -> list[SeriesView]:
    """The latest series, the newest first."""
    table = store.series
    numbers = connection.scalars(sa.select(table.c.id).order_by(table.c.id.desc()).limit(limit))
    return [view(connection, number) for number in numbers.all()]


def _round_view(connection: sa.Connection, found: store.Row) -> RoundView:
    table = store.updates
    query = sa.select(table).where(table.c.round == found["round"]).order_by(table.c.id)
    answers = connection.execute(query).mappings().all()
    good = [answer for answer in answers if answer["accepted"]]
    closed_ms = found["closed_ms"]
    return RoundView(
        number=found["number"],
        round=found["round"],
        state=found["state"],
        reason=found["reason"],
        participants=store.from_json(found["participants"], tuple[str, ...]),
        accepted=len(good),
        refused={a["device"]: a["reason"] for a in answers if not a["accepted"]},
        samples=sum(answer["samples"] for answer in good),
        loss_before=_mean(good, "loss_before"),
        loss_after=_mean(good, "loss_after"),
        up_bytes=sum(answer["size_bytes"] for answer in answers),
        seconds=(closed_ms - found["opened_ms"]) / 1000 if closed_ms else None,
    )


def _mean(answers: Sequence[store.Row], column: str) -> float | None:
    samples: int = sum(answer["samples"] for answer in answers)
    total: float = sum(answer["samples"] * answer[column] for answer in answers)
    return total / samples if samples else None


def _row(connection: sa.Connection, number: int) -> store.Row:
    query = sa.select(store.series).where(store.series.c.id == number)
    row = connection.execute(query).mappings().first()
    if row is None:
        raise UnknownId(f"there is no series {number}", hint="edgekit round list shows them")
    return row


def _log(
    connection: sa.Connection, action: str, number: int, detail: object, *, now_ms: int
) -> None:
    store.log_action(
        connection, at_ms=now_ms, action=action, subject=f"series {number}", detail=detail
    )

"""Belonging: whether this board is who its configuration says, whom it trusts, and who hears it.

Read from files alone: the daemon may run or not, and nothing is asked over the network.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

from edgekit.errors import ConfigError
from edgekit.signing import PublicKey
from edgekit_runtime import linkage
from edgekit_runtime.config import Config
from edgekit_runtime.doctor.findings import Finding
from edgekit_runtime.identity import Identity
from edgekit_runtime.identity.validity import standing


def findings(config: Config, *, now_ms: int) -> Iterator[Finding]:
    """What is found of keys, identity and link; nothing of the latter two without `[fleet]`.

    Args:
        config: of this board.
        now_ms: by its clock, milliseconds since 1970 UTC.
    """
    yield from _keys(config)
    if config.fleet is None:
        return
    if config.fleet.identity is None:
        yield Finding(
            area="fleet",
            subject="identity",
            status="note",
            detail="insecure: nothing that this board is told is signed",
        )
    else:
        yield _identity(config, now_ms=now_ms)
    yield from _link(config)


def _keys(config: Config) -> Iterator[Finding]:
    yield from (_key(path) for path in config.trust.keys)
    if not config.trust.keys and (config.fleet is None or config.fleet.insecure):
        yield Finding(
            area="trust",
            subject="[trust] keys",
            status="note",
            detail="no key is named, so no bundle can be installed here",
        )


def _key(path: Path) -> Finding:
    try:
        key = PublicKey.read(path)
    except ConfigError as e:
        return Finding(area="trust", subject=str(path), status="wrong", detail=e.message)
    return Finding(area="trust", subject=str(path), status="ok", found=key.id[:16])


def _identity(config: Config, *, now_ms: int) -> Finding:
    assert config.fleet is not None
    assert config.fleet.identity is not None
    folder = config.fleet.identity
    try:
        identity = Identity.read(folder)
    except ConfigError as e:
        return Finding(
            area="fleet", subject="identity", status="wrong", detail=e.message, command=e.hint
        )
    own = f"{config.device.site}/{config.device.id}"
    detail = f"certificate valid until {_day(identity.expires_at_ms)}"
    is_valid = standing(identity.validity, now_ms=now_ms) == "valid"
    if identity.name != own:
        detail = f"the configuration says that this is {own}"
    elif not is_valid:
        detail += f"; this board's clock says {_day(now_ms)}"
    return Finding(
        area="fleet",
        subject="identity",
        status="ok" if is_valid and identity.name == own else "wrong",
        found=identity.name,
        detail=detail,
    )


def _link(config: Config) -> Iterator[Finding]:
    link = linkage.read(config.state.folder)
    if link is None:
        yield Finding(
            area="fleet", subject="link", status="unknown", detail="no daemon has told of it yet"
        )
        return
    since = f"since {_day(link.since_ms)}"
    if link.up:
        yield Finding(area="fleet", subject="link", status="ok", found="up", detail=since)
        return
    reason = link.reason.value if link.reason is not None else "down"
    # A broker that is away comes back; what a person must mend is wrong.
    away = link.reason in (None, linkage.Trouble.BROKER_UNREACHABLE)
    yield Finding(
        area="fleet",
        subject="link",
        status="note" if away else "wrong",
        found=reason,
        detail=f"{since}: {link.detail}",
    )


def _day(at_ms: int) -> str:
    at = datetime.fromtimestamp(at_ms / 1000, timezone.utc)
    return at.strftime("%Y-%m-%d %H:%M UTC")

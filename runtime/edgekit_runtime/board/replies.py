"""Replies of a board: one line of JSON each, from a machine that is not trusted more than needed.

An error travels by the name of its class, so that a board's refusal has the exit code and the hint
that the same refusal has here.
"""

from __future__ import annotations

from typing import Any

import msgspec

from edgekit import errors
from edgekit.errors import EdgekitError, LinkError
from edgekit.terminal import plain

# What may be wrong on a board; anything else is an error of the link between two programs.
_KINDS: dict[str, type[EdgekitError]] = {
    kind.__name__: kind
    for kind in (
        errors.UsageError,
        errors.DataError,
        errors.StorageError,
        errors.BundleError,
        errors.ManifestError,
        errors.IntegrityError,
        errors.EngineError,
        errors.EngineNotInstalled,
        errors.GoldenMismatch,
        errors.LinkError,
    )
}


def encode_error(error: EdgekitError) -> dict[str, Any]:
    """The reply that carries an error to the workstation, as its nearest known class."""
    kind = next((base.__name__ for base in type(error).__mro__ if base.__name__ in _KINDS), "")
    return {"error": {"kind": kind or "EngineError", "message": error.message, "hint": error.hint}}


def decode(line: bytes) -> dict[str, Any]:
    """A reply as plain data.

    Raises:
        EdgekitError: the reply is an error; the class that the board named.
        LinkError: this is not a reply.
    """
    try:
        reply = msgspec.json.decode(line, type=dict[str, Any])
        error = msgspec.convert(reply.get("error"), _Error | None)
    except (msgspec.MsgspecError, UnicodeDecodeError) as e:
        raise LinkError(f"the board answered with what is no reply: {line[:200]!r}") from e
    if error is None:
        return reply
    kind = _KINDS.get(error.kind, LinkError)
    raise kind(f"on the board: {plain(error.message)}", hint=error.hint and plain(error.hint))


class _Error(msgspec.Struct, frozen=True):
    kind: str
    message: str
    hint: str | None = None

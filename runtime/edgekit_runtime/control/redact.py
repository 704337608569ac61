"""Redact: what leaves the board in logs and diagnostics holds no secret, however it got there.

Secrets of edgekit are files that are named and never shown. This is the second line of defence:
values whose name tells that they are secret, private keys in PEM, passwords within URLs, and
bearer tokens are replaced. It may hide too much. Every expression takes time in proportion to the
text, which strangers may have written.
"""

from __future__ import annotations

import re
from typing import Any

HIDDEN = "(hidden)"

_WORDS = r"pass(?:word|wd|phrase)|secret|token|authorization|api_?key|private_?key|credential"
_NAME = re.compile(rf"(?i)(?:^|[_.\s-])(?:{_WORDS})s?\Z")
_PEM = re.compile(
    r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----.*?(?:-----END [A-Z ]{0,40}PRIVATE KEY-----|\Z)", re.S
)
_USERINFO = re.compile(r"(?<=://)[^/@:\s\"']*:[^/@\s\"']*(?=@)")
_BEARER = re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}")
_PAIR = re.compile(rf"(?i)((?:{_WORDS})s?\"?\s{{0,4}}[=:]\s{{0,4}})(\"[^\"]*\"|[^\s,;&\"']+)")


def text(value: str) -> str:
    """A text without what looks like a secret within it, and that UTF-8 can hold."""
    value = _PEM.sub(HIDDEN, value)
    value = _USERINFO.sub(HIDDEN, value)
    value = _BEARER.sub(rf"\1 {HIDDEN}", value)
    value = _PAIR.sub(rf"\1{HIDDEN}", value)
    return value.encode("utf-8", "replace").decode("utf-8")


def tree(value: Any) -> Any:
    """The same JSON value, without secrets in its texts or under names that tell of secrets."""
    if isinstance(value, dict):
        return {name: _named(str(name), held) for name, held in value.items()}
    if isinstance(value, (list, tuple)):
        return [tree(item) for item in value]
    return text(value) if isinstance(value, str) else value


def is_secret(name: str) -> bool:
    """Whether a field of this name holds a secret."""
    return _NAME.search(name) is not None


def _named(name: str, value: Any) -> Any:
    return HIDDEN if value and is_secret(name) else tree(value)

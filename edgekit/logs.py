"""Logs: an event and its facts. JSON lines on a board, text on a terminal, always to stderr.

Use the stdlib: `log.info("bundle activated", extra={"bundle": digest, "slot": "a"})`.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


def configure(*, json_lines: bool, level: int = logging.INFO) -> None:
    """Send every logger to stderr, as JSON lines or as text."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if json_lines else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: `at`, `level`, `logger`, `event`, `traceback`, then the facts.

    A fact that bears one of these names gets a `_` behind it.
    """

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "at": _timestamp(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        for key, value in _facts(record).items():
            line[key if key not in line else f"{key}_"] = value
        return json.dumps(line, default=str, ensure_ascii=False)


class TextFormatter(logging.Formatter):
    """`12:00:01 info event key=value …`, with the traceback below where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        facts = "".join(f" {key}={_plain(value)}" for key, value in _facts(record).items())
        line = f"{clock} {record.levelname.lower()} {record.getMessage()}{facts}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def _facts(record: logging.LogRecord) -> dict[str, Any]:
    return {key: value for key, value in record.__dict__.items() if key not in _STANDARD}


def _plain(value: object) -> str:
    """A value on one line, quoted where it would run into the next fact or forge a line."""
    text = str(value)
    return text if text.isprintable() and " " not in text else json.dumps(text)


def _timestamp(seconds: float) -> str:
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{whole}.{int(seconds % 1 * 1000):03d}Z"

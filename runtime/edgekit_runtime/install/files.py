"""Files that an installation writes, and that stay their owner's once somebody edits them.

Each carries the digest of its own text in its first line. A file whose digest still holds is
replaced; one that was edited is kept, and what would stand there is put beside it as `NAME.new`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from edgekit import storage
from edgekit.errors import StorageError
from edgekit.structs import Strict

Outcome = Literal["written", "replaced", "unchanged", "kept"]

_STAMP = "# Written by `edgekit device install`, which keeps what you edit. sha256 {}\n"
_LINE = re.compile(r"# Written by `edgekit device install`, [^\n]* sha256 ([0-9a-f]{64})\n")


class Planned(Strict, frozen=True, kw_only=True):
    """A file to write.

    Attributes:
        path: on the board, absolute.
        text: what it holds, without the stamp.
        has_stamp: whether its format knows comments; one without is always replaced.
    """

    path: Path
    text: str
    has_stamp: bool = True

    @property
    def content(self) -> str:
        """What stands in the file."""
        return stamped(self.text) if self.has_stamp else self.text


class Written(Strict, frozen=True, kw_only=True):
    """What became of a planned file; `beside` is where the new text went if it was kept."""

    path: str
    outcome: Outcome
    beside: str | None = None


def stamped(text: str) -> str:
    """A text under a line that tells whether it was edited since."""
    return _STAMP.format(hashlib.sha256(text.encode()).hexdigest()) + text


def is_edited(content: str) -> bool:
    """Whether somebody else had a hand in this; true of whatever bears no stamp."""
    found = _LINE.match(content)
    rest = content[found.end() :] if found else ""
    return found is None or hashlib.sha256(rest.encode()).hexdigest() != found[1]


def decide(planned: Planned, standing: str | None) -> Outcome:
    """What becomes of a planned file where `standing` is there now; None for nothing."""
    if standing is None:
        return "written"
    if standing == planned.content:
        return "unchanged"
    return "kept" if planned.has_stamp and is_edited(standing) else "replaced"


def write(plan: Iterable[Planned], *, root: Path, dry_run: bool) -> tuple[Written, ...]:
    """Write what is planned below `root`, each file whole or not at all.

    Args:
        root: of the system that is installed to; `/` for this one.
        dry_run: only say what would be done.

    Raises:
        StorageError: a file cannot be read or written.
    """
    return tuple(_write(planned, root=root, dry_run=dry_run) for planned in plan)


def below(root: Path, path: Path) -> Path:
    """Where an absolute path of a board lies in a system below `root`."""
    return root / path.relative_to("/")


def read(path: Path) -> str | None:
    """The text of a file; None where there is none.

    Raises:
        StorageError: it cannot be read, or is no text.
    """
    try:
        return path.read_text("utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as e:
        raise StorageError(f"{path} cannot be read: {e}", hint="move it away") from e


def _write(planned: Planned, *, root: Path, dry_run: bool) -> Written:
    target = below(root, planned.path)
    outcome = decide(planned, read(target))
    beside = planned.path.with_name(f"{planned.path.name}.new") if outcome == "kept" else None
    if not dry_run and outcome != "unchanged":
        place = below(root, beside) if beside else target
        storage.write(place, planned.content.encode())
    return Written(path=str(planned.path), outcome=outcome, beside=str(beside) if beside else None)

"""Remote: a bench on a board, from the link to the figures.

The path, top down: find a Python, find out what the board is, carry what it lacks, run, and judge
what came back. A run that ends early in whatever way leaves no process on the board, and what was
carried stays for the next one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from edgekit import __version__
from edgekit.clock import Clock, SystemClock
from edgekit.errors import EngineNotInstalled, LinkError, UsageError
from edgekit.manifest import Manifest
from edgekit.structs import Strict
from edgekit.terminal import plain
from edgekit_runtime.board import ship, ssh
from edgekit_runtime.board.conditions import reasons_void
from edgekit_runtime.board.figures import Board, BoardBench, Outcome, mismatches
from edgekit_runtime.board.ship import Piece
from edgekit_runtime.board.ssh import Link
from edgekit_runtime.board.there import Task

MAX_CLOCK_DROP = 0.1
LEAST_PYTHON = (3, 10)
PYTHONS = ("python3", "python3.13", "python3.12", "python3.11", "python3.10")
_CHUNK = 1 << 18

Say = Callable[[str], None]
T = TypeVar("T")


class Request(Strict, frozen=True, kw_only=True):
    """What to bench, and how.

    Attributes:
        bundles: trusted `.edge` files, each with its manifest and the sha256 of the file.
        models: model files, each with its engine.
        seconds: how long to measure in all.
        runs: most runs of each.
        max_clock_drop: share by which a clock may fall before the run is void.
        python: a Python there that has the packages; None carries them.
        wheels: the user's own wheels to carry.
        root: where conditions are read from on the board.
    """

    bundles: tuple[tuple[Piece, Manifest], ...] = ()
    models: tuple[tuple[Piece, str], ...] = ()
    seconds: float
    runs: int
    max_clock_drop: float = MAX_CLOCK_DROP
    python: str | None = None
    wheels: tuple[Path, ...] = ()
    root: str = "/"

    @property
    def files(self) -> dict[str, Piece]:
        """Everything that is to run, by the name that it has in figures."""
        pieces = [piece for piece, _ in (*self.bundles, *self.models)]
        found = {piece.title: piece for piece in pieces}
        if len(found) != len(pieces):
            raise UsageError("two files to bench have one name", hint="rename one of them")
        return found


def bench(
    device: str,
    request: Request,
    *,
    say: Say,
    ssh_config: Path | None = None,
    clock: Clock | None = None,
) -> BoardBench:
    """Run a bench on a board.

    Args:
        device: `[user@]host[:port]`.
        request: what to run.
        say: is told each step.
        ssh_config: another configuration of ssh than the user's.
        clock: tells when it was.

    Raises:
        LinkError: the board cannot be reached, or the link was cut.
        EngineNotInstalled: the board has no fitting Python, or there are no wheels for it.
        GoldenMismatch: a variant does not answer its golden inputs there as it must.
        EngineError: nothing of this can run there, or an engine crashed.
        StorageError: the board has no room.
    """
    files = request.files
    destination = ssh.parse(device)
    with Link(destination, config=ssh_config) as link:
        python, board = find_python(link, request.python)
        say(f"{destination.host}: {board.title}, Python {board.python}")
        trees, versions = _trees(request, board, say=say)
        _carry(link, python, [*files.values(), *trees], say=say)
        task = Task(
            bundles=tuple(piece.title for piece, _ in request.bundles),
            models={piece.title: engine for piece, engine in request.models},
            seconds=request.seconds,
            runs=request.runs,
            root=request.root,
        )
        asked = {
            "do": "run",
            "trees": [tree.sha256 for tree in trees],
            "files": {name: piece.sha256 for name, piece in files.items()},
            "task": msgspec.to_builtins(task),
        }
        outcome = _run(link, python, asked, isolated=request.python is None, say=say)
    profile = request.bundles[0][1].profile if request.bundles else None
    unlike = [mismatches(m.profile, board, outcome.engines) for _, m in request.bundles]
    now_s = (clock or SystemClock()).now_ms() // 1000
    return BoardBench(
        at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now_s)),
        edgekit=__version__,
        device=device,
        board=board,
        profile=profile.name if profile else None,
        digests={name: piece.sha256 for name, piece in files.items()},
        engines=outcome.engines,
        packages=versions,
        results=outcome.results,
        skipped=outcome.skipped,
        golden=outcome.golden,
        conditions=outcome.conditions,
        mismatches=tuple(dict.fromkeys(text for found in unlike for text in found)),
        void=reasons_void(outcome.conditions, max_clock_drop=request.max_clock_drop),
    )


def find_python(link: Link, wanted: str | None) -> tuple[str, Board]:
    """A Python on the board that is new enough, and what it says of the board.

    Raises:
        EngineNotInstalled: there is none.
    """
    too_old: list[str] = []
    missing: EngineNotInstalled | None = None
    for python in (wanted,) if wanted else PYTHONS:
        try:
            reply = link.ask(python, {"do": "facts"}, isolated=wanted is None)
        except EngineNotInstalled as e:
            missing = missing or e
            continue
        board = _convert(reply, Board)
        if tuple(map(_number, board.python.split(".")[:2])) >= LEAST_PYTHON:
            return python, board
        too_old.append(f"{python} is {board.python}")
    if not too_old and missing is not None:
        raise missing
    raise EngineNotInstalled(
        f"{link.destination.host} has no Python 3.10 or newer: {', '.join(too_old)}",
        hint="install one there, or name one with --remote-python; docs/bench.md tells more",
    )


def _trees(request: Request, board: Board, *, say: Say) -> tuple[list[Piece], dict[str, str]]:
    """Folders of modules that the run imports from, first the code of edgekit."""
    if request.python is not None:
        return [ship.code()], {}
    engines = ship.engines_of(manifest for _, manifest in request.bundles)
    for _, engine in request.models:
        engines.setdefault(engine, None)
    wanted = ship.requirements(engines, wheels=request.wheels)
    say(f"wheels for {ship.platform_of(board)}, Python {board.python}")
    found = ship.packages(board, wanted)
    return [ship.code(), found.piece], found.versions


def _carry(link: Link, python: str, pieces: Sequence[Piece], *, say: Say) -> None:
    """Send what the board lacks, each from where an earlier attempt ended."""
    wanted = [{"kind": piece.kind, "sha256": piece.sha256} for piece in pieces]
    reply = link.ask(python, {"do": "missing", "wanted": wanted})
    lacking = {entry.sha256 for entry in _convert(reply, _Missing).missing}
    for piece in pieces:
        if piece.sha256 in lacking:
            _put(link, python, piece, say=say)
            lacking.remove(piece.sha256)


def _put(link: Link, python: str, piece: Piece, *, say: Say) -> None:
    request = {
        "do": "put",
        "kind": piece.kind,
        "sha256": piece.sha256,
        "size_bytes": piece.size_bytes,
        "unpacked_bytes": piece.unpacked_bytes,
    }
    with link.exchange(python, request) as exchange, piece.path.open("rb") as file:
        offset = _convert(exchange.reply(), _Offset).offset
        resumed = f", {offset / 1e6:.1f} MB are there" if offset else ""
        say(f"carrying {piece.title}: {piece.size_bytes / 1e6:.1f} MB{resumed}")
        file.seek(offset)
        left = piece.size_bytes - offset
        while left:
            data = file.read(min(_CHUNK, left))
            if not data:
                raise UsageError(f"{piece.path} became shorter while it was carried")
            exchange.write(data)
            left -= len(data)
        exchange.reply()


def _run(link: Link, python: str, asked: Mapping[str, Any], *, isolated: bool, say: Say) -> Outcome:
    step = "starting"
    try:
        with link.exchange(python, asked, isolated=isolated) as exchange:
            while "say" in (reply := exchange.reply()):
                step = plain(str(reply["say"]))
                say(step)
        return _convert(reply.get("outcome"), Outcome)
    except LinkError as e:
        raise LinkError(f"{e.message}, while {step}", hint=e.hint) from e


class _Missing(msgspec.Struct, frozen=True):
    missing: list[_Wanted]


class _Wanted(msgspec.Struct, frozen=True):
    sha256: str


class _Offset(msgspec.Struct, frozen=True):
    offset: int


def _convert(value: object, kind: type[T]) -> T:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as e:
        raise LinkError(f"the board answered in another form than expected: {e}") from e


def _number(text: str) -> int:
    return int(text) if text.isdigit() else 0

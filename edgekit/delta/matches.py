"""Matches: stretches of new bytes that stand in the old ones too, and stretches that are akin.

Runs of `WINDOW` equal bytes whose content is unique in the old data are found by hashing every
window, as numpy arrays, and grow in both directions. What lies between two runs with the same shift
is taken to be a changed form of what lies between them in the old data (weights after a
fine-tune, numbers in a report); elsewhere a run grows over changed bytes while most are equal, as
in C. Percival, "Naive Differences of Executable Code", 2003.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

WINDOW = 16
_MULTIPLIERS = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)
_CHUNK = 1 << 20
Bytes = NDArray[np.uint8]


class Match(NamedTuple):
    """`length` bytes from `new` on in the new data, akin to those from `old` on in the old."""

    new: int
    old: int
    length: int


class Index:
    """The windows of the old data that occur once in it.

    Args:
        old: all of it; about thirty times its size is taken while it is indexed.
    """

    def __init__(self, old: Bytes) -> None:
        self._old = old
        hashes = _windows(old)
        order = np.argsort(hashes, kind="stable")
        hashes = hashes[order]
        differs = hashes[1:] != hashes[:-1]
        once = np.ones(len(hashes), bool)
        once[1:] &= differs
        once[:-1] &= differs
        self._hashes = hashes[once]
        self._places = order[once]

    def matches(self, new: Bytes) -> list[Match]:
        """Stretches that are akin, in the order of the new data, without overlap."""
        return _widened(_runs(self._seeds(new), new, self._old), new, self._old)

    def _seeds(self, new: Bytes) -> NDArray[np.int64]:
        """Pairs of positions, new and old, where windows are equal: [n, 2]."""
        hashes = _windows(new)
        if not len(hashes) or not len(self._hashes):
            return np.empty((0, 2), np.int64)
        at = np.searchsorted(self._hashes, hashes)
        at[at == len(self._hashes)] = 0
        found = np.flatnonzero(self._hashes[at] == hashes)
        return np.stack((found, self._places[at[found]]), axis=1).astype(np.int64)


def _windows(data: Bytes) -> NDArray[np.uint64]:
    """A hash of the window that begins at each position: [len - WINDOW + 1]."""
    count = max(len(data) - WINDOW + 1, 0)
    hashes = np.empty(count, np.uint64)
    for start in range(0, count, _CHUNK):
        end = min(start + _CHUNK, count)
        # The eight bytes from each position on, as one number.
        words = np.lib.stride_tricks.sliding_window_view(data[start : end + WINDOW - 1], 8)
        numbers = np.ascontiguousarray(words).view("<u8").reshape(-1)
        mixed = numbers[:-8] * _MULTIPLIERS[0] ^ numbers[8:] * _MULTIPLIERS[1]
        hashes[start:end] = mixed ^ mixed >> np.uint64(29)
    return hashes


def _runs(seeds: NDArray[np.int64], new: Bytes, old: Bytes) -> list[Match]:
    """Equal stretches around seeds, each seed in one of them at most."""
    runs: list[Match] = []
    if not len(seeds):
        return runs
    shifts = seeds[:, 1] - seeds[:, 0]
    breaks = np.flatnonzero((np.diff(shifts) != 0) | (np.diff(seeds[:, 0]) != 1)) + 1
    end = 0
    for first in (0, *breaks.tolist()):
        start, place = (int(number) for number in seeds[first])
        if start < end:
            skipped = end - start
            start, place = start + skipped, place + skipped
        back = equal_before(new, old, start, place, limit=start - end)
        start, place = start - back, place - back
        length = equal_after(new, old, start, place)
        if length < WINDOW:
            continue
        runs.append(Match(start, place, length))
        end = start + length
    return runs


def equal_after(new: Bytes, old: Bytes, start: int, place: int) -> int:
    """How many bytes from these positions on are equal."""
    most = min(len(new) - start, len(old) - place)
    done, step = 0, 64
    while done < most:
        count = min(step, most - done)
        differs = (
            new[start + done : start + done + count] != old[place + done : place + done + count]
        )
        first = int(differs.argmax())
        if differs[first]:
            return done + first
        done, step = done + count, min(step * 4, 1 << 20)
    return most


def equal_before(new: Bytes, old: Bytes, start: int, place: int, *, limit: int) -> int:
    """How many bytes before these positions are equal, at most `limit`."""
    most = min(start, place, limit)
    done, step = 0, 64
    while done < most:
        count = min(step, most - done)
        left, right = start - done, place - done
        differs = (new[left - count : left] != old[right - count : right])[::-1]
        first = int(differs.argmax())
        if differs[first]:
            return done + first
        done, step = done + count, min(step * 4, 1 << 20)
    return most


def _widened(runs: list[Match], new: Bytes, old: Bytes) -> list[Match]:
    """Runs joined over what changed between them, and grown into what did not."""
    wide: list[Match] = []
    for index, run in enumerate(runs):
        start = run.new - _akin_before(runs, index, wide, new, old)
        moved = run.new - start
        stop = run.new + run.length
        if index + 1 < len(runs):
            following = runs[index + 1]
            if following.old - following.new == run.old - run.new:
                stop = following.new
            else:
                stop += _akin(new[stop : following.new], old[run.old + run.length :])
        else:
            stop += _akin(new[stop:], old[run.old + run.length :])
        match = Match(start, run.old - moved, stop - start)
        if wide and _goes_on(wide[-1], match):
            match = Match(wide[-1].new, wide[-1].old, wide.pop().length + match.length)
        wide.append(match)
    return wide


def _akin_before(runs: list[Match], index: int, wide: list[Match], new: Bytes, old: Bytes) -> int:
    """How far a run reaches back beyond its first byte."""
    run = runs[index]
    end = wide[-1].new + wide[-1].length if wide else 0
    room = min(run.new - end, run.old)
    return _akin(new[run.new - room : run.new][::-1], old[run.old - room : run.old][::-1])


def _akin(new: Bytes, old: Bytes) -> int:
    """How many bytes of these are akin: where twice the equal ones most exceed all of them."""
    most = min(len(new), len(old))
    if not most:
        return 0
    score = np.cumsum(np.where(new[:most] == old[:most], 1, -1))
    best = int(score.argmax())
    return best + 1 if score[best] > 0 else 0


def _goes_on(first: Match, second: Match) -> bool:
    ends = first.new + first.length, first.old + first.length
    return ends == (second.new, second.old)

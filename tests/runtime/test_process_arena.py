"""What parent and child share is given to one alone, and free when nobody looks at it any more."""

from __future__ import annotations

import os

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgekit_runtime.serving.process.arena import Arena, Block
from edgekit_runtime.serving.process.layouts import NUMBERS, Numbered, Told
from edgekit_runtime.serving.process.space import Space


@given(st.lists(st.one_of(st.integers(1, 300), st.integers(-20, -1)), max_size=60))
def test_ranges_never_overlap_and_are_all_free_again(steps: list[int]) -> None:
    space = Space(1000)
    taken: dict[int, int] = {}
    for step in steps:
        if step < 0:
            for given in list(taken)[-step % 7 :: 3]:
                space.give(given, taken.pop(given))
            continue
        start = space.take(step)
        gaps = [end - begin for begin, end in space.free()]
        if start is None:
            assert all(gap < step for gap in gaps)
            continue
        assert 0 <= start <= 1000 - step
        assert all(start + step <= s or s + size <= start for s, size in taken.items())
        taken[start] = step
        assert space.free_bytes == sum(gaps) == 1000 - sum(taken.values())
    for given, size in taken.items():
        space.give(given, size)
    assert list(space.free()) == [(0, 1000)]


@given(st.lists(st.tuples(st.integers(1, 5000), st.booleans(), st.integers(0, 3)), max_size=40))
def test_a_block_is_free_when_its_last_view_is_gone(asked: list[tuple[int, bool, int]]) -> None:
    arena = Arena(1 << 16)
    held: list[tuple[int, NDArray[np.uint8] | memoryview]] = []
    for number, (size, as_bytes, forgotten) in enumerate(asked):
        block = arena.take(size)
        if block is not None:
            block[:] = number
            part = block.data[: size // 2 + 1] if as_bytes else views_of_views(block)
            held.append((number, part))
            del part
        del block
        for _ in range(min(forgotten - 1, len(held))):
            held.pop(number % len(held))

    for number, part in held:
        assert set(bytes(part)) == {number}, "nobody else was given this memory"
    assert all(arena.find(part) is not None for _, part in held if isinstance(part, np.ndarray))
    if held:
        del part
    held.clear()
    assert arena.free_bytes == 1 << 16
    assert arena.take((1 << 16) - 64) is not None
    arena.close()


def views_of_views(block: Block) -> NDArray[np.uint8]:
    """As outputs are made, split and reshaped."""
    whole: NDArray[np.uint8] = np.ndarray(block.shape, np.uint8, block.data, 0)
    return whole[: len(whole) // 2 + 1][np.newaxis].reshape(-1)


def test_a_slice_of_a_block_owns_nothing() -> None:
    arena = Arena(1 << 20)
    block = arena.take(1000)
    assert block is not None
    part = block[10:20]
    del part

    assert arena.free_bytes == (1 << 20) - 1024
    assert arena.find(np.zeros(4)) is None
    arena.close()


def test_pages_of_what_is_free_go_back_to_the_system() -> None:
    arena = Arena(64 << 20)
    kept, block = arena.take(4096), arena.take(32 << 20)
    assert kept is not None
    assert block is not None
    kept[:] = 7
    block[:] = 1
    before = os.fstat(arena.descriptor).st_blocks
    del block
    arena.trim()

    assert os.fstat(arena.descriptor).st_blocks * 512 <= 8192 < before * 512
    assert set(bytes(kept)) == {7}
    arena.close()


@given(st.lists(st.integers(0, 600), max_size=700))
def test_both_ends_mean_the_same_layout_by_a_number(columns: list[int]) -> None:
    ours, theirs, memory = Numbered(), Told(), memoryview(bytes(3000))
    for column in columns:
        layout = (("x", "<f4", (1, column)),)
        number, fresh = ours.number(layout)
        array = theirs.frame(number, fresh).read(memory, [0], [])["x"]

        assert number < NUMBERS
        assert array.shape == (1, column)

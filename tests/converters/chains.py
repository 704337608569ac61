"""Tool chains that a test drives: without them it is skipped, and in CI it has failed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import pytest

from edgekit_converters.toolchains.environments import state

Test = TypeVar("Test", bound=Callable[..., Any])


def needs(*names: str) -> Callable[[Test], Test]:
    """Mark a test that drives these tool chains."""
    missing = [name for name in names if state(name).status != "ready"]
    skip = pytest.mark.skipif(
        bool(missing), reason=f"`make toolchains` installs {', '.join(missing)}"
    )

    def marked(test: Test) -> Test:
        both: Test = pytest.mark.toolchain(skip(test))
        return both

    return marked

"""What all tests share: hypothesis without deadlines, skips that CI does not forgive, an order."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator
from typing import cast

import pytest
from hypothesis import HealthCheck, settings

from edgekit import storage

# A shell that starts the tests in the background has them ignore SIGINT, and so would the programs
# that they start and interrupt; an ignored signal is the one thing that outlives exec.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Tool chains take gigabytes and minutes: tests use those that are installed, read-only.
os.environ.setdefault("EDGEKIT_TOOLCHAINS", str(storage.data_home() / "toolchains"))

# Machines are shared and noisy: a slow example is no failure.
settings.register_profile(
    "edgekit", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("edgekit")


@pytest.fixture(autouse=True)
def _home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep keys, caches and fleets of a test out of the home of whoever runs it."""
    home = tmp_path_factory.mktemp("home")
    for variable in ("XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME"):
        monkeypatch.setenv(variable, str(home / variable.lower()))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with the files that have slow tests, where several workers share the tests out.

    A worker that began with one of them at the end would be at it alone.
    """
    if not hasattr(config, "workerinput"):
        return
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, object, object]:
    """With CI=true a test that skips for want of what a `make` target installs has failed."""
    report = cast("pytest.TestReport", (yield))
    reason = str(report.longrepr)
    if report.skipped and os.environ.get("CI") == "true" and "`make " in reason:
        report.outcome = "failed"
        report.longrepr = f"skipped in CI, where everything must be installed: {reason}"
    return report

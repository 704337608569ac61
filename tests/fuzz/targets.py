"""Targets: what is fuzzed, from which seeds, and what must hold of each input.

A target reads any bytes. What the functions that it calls are documented to raise is no failure;
what they give must be as they promise, which is asserted. Any other exception is a failure.

Imported both by the tests, which try the seeds and what lies near them, and by a fuzzer in an
environment of its own: so it needs nothing but the runtime.
"""

from __future__ import annotations

from tests.fuzz import bundles, commands, desired, enrolment, heads, memory, requests
from tests.fuzz.target import Target

TARGETS: dict[str, Target] = {
    **bundles.TARGETS,
    **commands.TARGETS,
    **desired.TARGETS,
    **enrolment.TARGETS,
    **heads.TARGETS,
    **requests.TARGETS,
    **memory.TARGETS,
}

"""Reasons: the codes by which a fleet learns why an update did not come to serve."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from enum import Enum

from edgekit.errors import FleetError, StorageError

_SHUT = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})


class Reason(Enum):
    """Why an update failed or was rolled back; `MEANING` says it in a line."""

    BAD_URL = "bad_url"
    REPOSITORY_UNREACHABLE = "repository_unreachable"
    REPOSITORY_UNTRUSTED = "repository_untrusted"
    REPOSITORY_STALE = "repository_stale"
    REPOSITORY_REFUSED = "repository_refused"
    NOT_IN_REPOSITORY = "not_in_repository"
    FETCH_REFUSED = "fetch_refused"
    FETCH_TIMEOUT = "fetch_timeout"
    WRONG_SIZE = "wrong_size"
    WRONG_SHA256 = "wrong_sha256"
    FETCH_EXHAUSTED = "fetch_exhausted"
    DELTA_BROKEN = "delta_broken"
    NO_ROOM = "no_room"
    DISK_FULL = "disk_full"
    READ_ONLY = "read_only"
    VERIFY_TIMEOUT = "verify_timeout"
    VERIFY_CRASHED = "verify_crashed"
    DAMAGED = "damaged"
    WRONG_DIGEST = "wrong_digest"
    UNTRUSTED = "untrusted"
    WRONG_PROFILE = "wrong_profile"
    WRONG_MODEL = "wrong_model"
    NO_ENGINE = "no_engine"
    ENGINE_ERROR = "engine_error"
    GOLDEN_MISMATCH = "golden_mismatch"
    PLACEMENT_BROKEN = "placement_broken"
    PROBE_LATENCY = "probe_latency"
    PROBE_MEMORY = "probe_memory"
    PROBE_TIMEOUT = "probe_timeout"
    PROBE_CRASHED = "probe_crashed"
    CANARY_AGREEMENT = "canary_agreement"
    CANARY_CONFIDENCE = "canary_confidence"
    CANARY_LATENCY = "canary_latency"
    CANARY_ERRORS = "canary_errors"
    CANARY_TIMEOUT = "canary_timeout"
    CANARY_CRASHED = "canary_crashed"
    ENGINE_FAILURES = "engine_failures"
    CRASH_LOOP = "crash_loop"
    SLOT_DAMAGED = "slot_damaged"
    CLOCK_WRONG = "clock_wrong"
    CANCELLED = "cancelled"
    ASKED = "asked"
    INTERNAL = "internal"


MEANING: Mapping[Reason, str] = {
    Reason.BAD_URL: "the bundle's address is not http or https",
    Reason.REPOSITORY_UNREACHABLE: "the repository does not answer, or with an error of its own",
    Reason.REPOSITORY_UNTRUSTED: "the repository's metadata is not signed by the keys of its root",
    Reason.REPOSITORY_STALE: "the repository's metadata has expired, or is older than one seen",
    Reason.REPOSITORY_REFUSED: "the repository answers with what no repository of a fleet answers",
    Reason.NOT_IN_REPOSITORY: "the signed repository does not hold the bundle as it was announced",
    Reason.FETCH_REFUSED: "the repository answered with an error or a redirect",
    Reason.FETCH_TIMEOUT: "the download did not end within its time limit",
    Reason.WRONG_SIZE: "the repository offers another number of bytes than was announced",
    Reason.WRONG_SHA256: "the downloaded file is not the one that was announced",
    Reason.FETCH_EXHAUSTED: "every server sent what it may for a bundle, and none the right file",
    Reason.DELTA_BROKEN: "a delta did not give the announced file; the whole one is fetched",
    Reason.NO_ROOM: "there is no room for the download and a second slot beside what serves",
    Reason.DISK_FULL: (
        "the disk took no more while the bundle was written, or a start of it could not be counted"
    ),
    Reason.READ_ONLY: (
        "the state folder cannot be written, so that neither bundles nor starts can be kept"
    ),
    Reason.VERIFY_TIMEOUT: "checking and unpacking did not end within the time limit",
    Reason.VERIFY_CRASHED: "the daemon ended several times while it checked or unpacked the bundle",
    Reason.DAMAGED: "the file breaks a rule of the bundle format",
    Reason.WRONG_DIGEST: "the bundle has another digest than was announced",
    Reason.UNTRUSTED: "no key that this device trusts signed the bundle",
    Reason.WRONG_PROFILE: "the bundle was built for another device profile",
    Reason.WRONG_MODEL: "the bundle holds another model or version than was announced",
    Reason.NO_ENGINE: "no variant of the bundle has its engine on this device",
    Reason.ENGINE_ERROR: "the engine could not open or run the model",
    Reason.GOLDEN_MISMATCH: "the device does not reproduce the golden outputs",
    Reason.PLACEMENT_BROKEN: "the engine does not run the model where its manifest says",
    Reason.PROBE_LATENCY: "a golden input takes longer here than the manifest allows",
    Reason.PROBE_MEMORY: "the model needs more memory than its manifest or the board allows",
    Reason.PROBE_TIMEOUT: "opening and probing did not end within the time limit",
    Reason.PROBE_CRASHED: "the daemon ended several times while it probed the bundle",
    Reason.CANARY_AGREEMENT: "on live inputs the version agrees too rarely with the one before",
    Reason.CANARY_CONFIDENCE: "on live inputs the version is less sure than the one before",
    Reason.CANARY_LATENCY: "on live inputs the version is slower than the one before",
    Reason.CANARY_ERRORS: "the version fails on live inputs that the one before answers",
    Reason.CANARY_TIMEOUT: "live inputs did not decide within the time limit",
    Reason.CANARY_CRASHED: "the daemon ended several times while both versions ran side by side",
    Reason.ENGINE_FAILURES: "the engine failed too often before the version was confirmed",
    Reason.CRASH_LOOP: "the daemon ended several times before the version was confirmed",
    Reason.SLOT_DAMAGED: "the installed files can no longer be opened",
    Reason.CLOCK_WRONG: "the device's clock cannot be right, so that no expiry can be judged",
    Reason.CANCELLED: "somebody cancelled the update",
    Reason.ASKED: "somebody asked this device to go back",
    Reason.INTERNAL: "an error in edgekit itself; the daemon's log has the traceback",
}


class UpdateFailed(FleetError):
    """An update cannot go on.

    Args:
        reason: the code that the fleet sees.
    """

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def disk_reason(error: StorageError) -> Reason:
    """Why a disk did not take something: it is full, or it cannot be written at all."""
    cause = error.__cause__
    is_shut = isinstance(cause, OSError) and cause.errno in _SHUT
    return Reason.READ_ONLY if is_shut else Reason.DISK_FULL

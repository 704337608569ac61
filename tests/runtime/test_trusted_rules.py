"""Rules of a device's trust: what must not go back, and what an error of a repository means."""

from __future__ import annotations

import ssl
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tuf.api.exceptions import DownloadError

from edgekit_runtime.trusted import proven, verdicts
from edgekit_runtime.trusted.proven import Proven
from edgekit_runtime.trusted.target import Failed, Passing
from edgekit_runtime.update import Reason

versions = st.integers(1, 5)
marks = st.builds(
    Proven,
    at_ms=st.integers(0, 10),
    root=versions,
    timestamp=versions,
    snapshot=versions,
    keys=st.sampled_from([("a",), ("b",)]),
)


@given(marks, marks)
def test_a_mark_never_goes_back(before: Proven, seen: Proven) -> None:
    if before.older(seen) is not None:
        return
    after = before.and_(seen)

    assert after.root >= before.root
    if before.keys == seen.keys:
        assert after.at_ms >= before.at_ms
        assert after.timestamp >= before.timestamp
        assert after.snapshot >= before.snapshot
    assert after.older(after) is None


@given(marks, st.binary(max_size=300))
def test_a_mark_is_read_as_it_was_written_or_not_at_all(
    tmp_path_factory: pytest.TempPathFactory, mark: Proven, noise: bytes
) -> None:
    folder = tmp_path_factory.mktemp("mark")
    proven.write(folder, mark)
    assert proven.read(folder) == mark

    raw = bytearray((folder / proven.FILE).read_bytes())
    raw[: len(noise)] = noise
    (folder / proven.FILE).write_bytes(raw)

    assert proven.read(folder) in (mark, Proven())


@given(
    st.lists(
        st.one_of(
            st.builds(Failed, reason=st.sampled_from(["a", "b"]), detail=st.text(max_size=3)),
            st.builds(Passing, detail=st.text(max_size=3)),
        )
    )
)
def test_a_verdict_is_final_only_where_every_repository_gave_one(
    found: list[Failed | Passing],
) -> None:
    together = verdicts.together(found)

    assert isinstance(together, Failed) == (
        bool(found) and all(isinstance(verdict, Failed) for verdict in found)
    )


@pytest.mark.parametrize(("behind", "is_the_clock"), [(400, True), (0, False)])
def test_a_certificate_that_is_not_valid_yet_is_the_clocks_where_that_is_proven(
    behind: int, is_the_clock: bool
) -> None:
    refused = ssl.SSLCertVerificationError(1, "certificate is not yet valid")
    refused.verify_code = 9
    error = DownloadError("https://repository/metadata/timestamp.json")
    error.__cause__ = refused
    now = datetime.now(timezone.utc)

    verdict = verdicts.of(
        error, url="", wall=now - timedelta(days=behind), reference=now, server=None
    )

    if is_the_clock:
        assert isinstance(verdict, Failed)
        assert verdict.reason == Reason.CLOCK_WRONG.value
    else:
        assert isinstance(verdict, Passing)

"""Hypothesis strategies for the values that cross edges: names, versions, entries, messages."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgekit import messages, topics
from edgekit.manifest import ENTRY
from edgekit.profile import Placement

ids = st.from_regex(topics.ID, fullmatch=True).filter(lambda text: text != topics.ROUNDS)
hex64 = st.text("0123456789abcdef", min_size=64, max_size=64)
digests = hex64.map(lambda text: f"sha256:{text}")
boots = st.text("0123456789abcdef", min_size=16, max_size=16)
counts = st.integers(0, 1 << 53)
seqs = st.integers(1, 1 << 53)
model_names = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,20}", fullmatch=True)
finite = st.floats(allow_nan=False, allow_infinity=False)
shares = st.floats(0, 1)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)

_parts = st.text("abcXYZ019._-", min_size=1, max_size=12)
entry_names = (
    st.lists(_parts, min_size=1, max_size=4)
    .map("/".join)
    .filter(lambda name: re.match(ENTRY, name) is not None)
)

_identifiers = st.one_of(
    st.integers(0, 99).map(str), st.from_regex(r"[0-9]{0,2}[a-z-][0-9a-z-]{0,2}", fullmatch=True)
)
_dotted = st.lists(_identifiers, min_size=1, max_size=3).map(".".join)


@st.composite
def versions(draw: st.DrawFn) -> str:
    """A semantic version, with and without pre-release and build metadata."""
    text = ".".join(str(draw(st.integers(0, 3))) for _ in range(3))
    if draw(st.booleans()):
        text += f"-{draw(_dotted)}"
    if draw(st.booleans()):
        text += f"+{draw(st.text('0123abc-', min_size=1, max_size=4))}"
    return text


_dtypes = st.sampled_from(
    ["?", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8"],
).map(np.dtype)
arrays = st.dictionaries(
    st.text("abc/._é", min_size=1, max_size=8),
    _dtypes.flatmap(
        lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0))
    ),
    max_size=4,
)

placements = st.builds(
    Placement,
    min_accelerator_macs=shares,
    fallback_ops=st.lists(st.sampled_from(["Softmax", "Resize"]), max_size=2).map(tuple),
    on_fallback=st.sampled_from([msgspec.UNSET, "refuse", "alarm"]),
)

_figures = st.builds(
    messages.ModelFigures,
    model=model_names,
    version=versions(),
    variant=texts,
    requests=counts,
    errors=counts,
    rejected=counts,
    engine_us=counts,
    latency_us=st.dictionaries(st.integers(0, 89), counts, max_size=3),
)
_resources = st.builds(
    messages.Resources,
    cpu_s=finite,
    rss_bytes=counts,
    memory_free_bytes=st.none() | counts,
    disk_free_bytes=st.none() | counts,
    temperature_c=st.none() | finite,
)
_counted: dict[str, Any] = {
    "v": st.just(1),
    "boot": boots,
    "seq": seqs,
    "floor": seqs,
    "at": counts,
    "up": counts,
    "sent": counts,
}
_wanted = st.builds(
    messages.Wanted,
    version=versions(),
    digest=digests,
    url=texts,
    sha256=hex64,
    size_bytes=st.integers(1, 8 << 30),
)
_model_states = st.builds(
    messages.ModelState,
    version=st.none() | versions(),
    digest=st.none() | digests,
    state=st.sampled_from(["idle", "fetching", "staged", "confirmed", "rolled_back", "failed"]),
    target=st.none() | versions(),
    target_digest=st.none() | digests,
    reason=st.none() | texts,
    detail=st.none() | texts,
    progress=st.none() | shares,
)
_reasons = st.from_regex(r"[a-z_]{1,40}", fullmatch=True)
_v1 = st.just(1)

payloads: st.SearchStrategy[messages.Message] = st.one_of(
    st.builds(
        messages.Status, v=_v1, online=st.booleans(), boot=boots, profile=texts, version=texts
    ),
    st.builds(
        messages.Telemetry,
        **_counted,
        period_s=finite,
        models=st.lists(_figures, max_size=2).map(tuple),
        resources=_resources,
        told=st.dictionaries(st.sampled_from(["about", "slots", "drift"]), seqs, max_size=3),
        slots=st.none() | st.dictionaries(model_names, _model_states, max_size=2),
        outbox=st.builds(messages.OutboxFigures, waiting=counts, dropped_bytes=counts),
    ),
    st.builds(
        messages.Event,
        **_counted,
        kind=_reasons,
        level=st.sampled_from(["info", "warning", "error"]),
        message=texts,
        facts=st.dictionaries(texts, st.none() | st.booleans() | texts | counts, max_size=3),
    ),
    st.builds(messages.Ack, v=_v1, boot=boots, seq=seqs),
    st.builds(
        messages.Desired,
        v=_v1,
        serial=seqs,
        models=st.dictionaries(model_names, _wanted, max_size=2),
    ),
    st.builds(
        messages.Reported,
        v=_v1,
        boot=boots,
        at=counts,
        serial=counts,
        models=st.dictionaries(model_names, _model_states, max_size=2),
        trains=st.lists(model_names, max_size=2).map(tuple),
    ),
    st.builds(
        messages.RoundOpen,
        v=_v1,
        round=ids,
        site=ids,
        model=model_names,
        base=digests,
        parameters_sha256=hex64,
        participants=st.lists(ids, max_size=3).map(tuple),
        answered=st.lists(ids, max_size=3).map(tuple),
        epochs=st.integers(1, 1000),
        batch_size=st.integers(1, 65536),
        learning_rate=st.floats(1e-9, 100),
        closes_at=counts,
    ),
    st.builds(messages.Refusal, v=_v1, round=ids, device=ids, reason=_reasons, detail=texts),
)

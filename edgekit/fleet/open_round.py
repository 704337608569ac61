"""OpenRound: what comes in while a round is open, judged and summed; it neither sends nor stores.

Every participant is heard once; what it says again is nothing new. An answer that is not counted
has a reason code, and the round is complete when each participant has answered, well or badly.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import msgspec

from edgekit import messages, signed_frame, tensors
from edgekit.errors import MessageError, UntrustedError
from edgekit.fleet import aggregate
from edgekit.fleet.aggregate import Average
from edgekit.messages import Refusal, RoundOpen, UpdateHeader
from edgekit.signing import PublicKey
from edgekit.tensors import Arrays

log = logging.getLogger(__name__)

Keys = Callable[[str, str], Sequence[PublicKey]]

_SLACK_BYTES = 1 << 20


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What a device's message in a round came to.

    Attributes:
        reason: code of why it was not counted; empty where it was.
        detail: the same for people.
        loss_before: mean loss on the device's samples before training, as it says.
    """

    device: str
    accepted: bool
    reason: str = ""
    detail: str = ""
    size_bytes: int
    samples: int | None = None
    loss_before: float | None = None
    loss_after: float | None = None
    seconds: float | None = None


class OpenRound:
    """One round while it is open.

    Args:
        opened: what the devices were told.
        parameters: the weights they start from.
        keys: of a device, by site and id: what it did not sign is not its answer. `None` where
            nothing is signed.
    """

    def __init__(self, opened: RoundOpen, parameters: Arrays, *, keys: Keys | None = None) -> None:
        self.opened = opened
        self._keys = keys
        self._parameters = parameters
        self._average = Average(parameters)
        self._answered: set[str] = set()
        self._accepted = 0
        self._max_bytes = sum(a.nbytes for a in parameters.values()) + _SLACK_BYTES

    @property
    def complete(self) -> bool:
        """Whether every participant has answered."""
        return len(self._answered) == len(self.opened.participants)

    @property
    def missing(self) -> list[str]:
        """The participants that have not answered."""
        return sorted(set(self.opened.participants) - self._answered)

    @property
    def announcement(self) -> RoundOpen:
        """What the devices are told now: the round, and who need not answer any more."""
        return msgspec.structs.replace(self.opened, answered=tuple(sorted(self._answered)))

    @property
    def accepted(self) -> int:
        """How many updates are in the average."""
        return self._accepted

    def result(self) -> Arrays:
        """The weights after the round."""
        return self._average.result()

    def take(self, device: str, payload: bytes, *, now_ms: int) -> Answer | None:
        """Judge a message that came on the topic of `device`, and count it if it is good.

        Returns:
            what it came to; `None` where it is nothing new, or not the device's own word.
        """
        if device in self._answered:
            log.info("update came again", extra={"device": device})
            return None
        try:
            payload = self._opened(device, payload)
        except (MessageError, UntrustedError) as e:
            log.warning("update dropped", extra={"device": device, "error": e.message})
            return None
        refused = self._standing(device, now_ms=now_ms)
        if refused is not None:
            return _refused(device, payload, *refused)
        self._answered.add(device)
        if payload[:1] == b"{":
            return self._take_refusal(device, payload)
        try:
            header, update = tensors.unpack(
                payload, UpdateHeader, max_bytes=self._max_bytes, what=f"update of {device}"
            )
        except MessageError as e:
            return _refused(device, payload, "malformed", e.message)
        refused = self._mismatch(device, header) or aggregate.fault(update, self._parameters)
        if refused is not None:
            return _refused(device, payload, *refused)
        self._average.add(update, samples=header.samples)
        self._accepted += 1
        return Answer(
            device=device,
            accepted=True,
            size_bytes=len(payload),
            samples=header.samples,
            loss_before=header.loss_before,
            loss_after=header.loss_after,
            seconds=header.seconds,
        )

    def _opened(self, device: str, payload: bytes) -> bytes:
        """What the device signed; the payload as it came where nothing is signed."""
        if self._keys is None:
            return payload
        keys = self._keys(self.opened.site, device)
        what = f"update of {device}"
        return signed_frame.open_(payload, kind=signed_frame.UPDATE, trusted=keys, what=what)

    def _standing(self, device: str, *, now_ms: int) -> tuple[str, str] | None:
        if device not in self.opened.participants:
            return "not_participant", "the device was not asked"
        if now_ms > self.opened.closes_at:
            return "late", "the round had closed"
        return None

    def _take_refusal(self, device: str, payload: bytes) -> Answer:
        try:
            refusal = messages.decode(payload, Refusal, topic=f"update of {device}")
        except MessageError as e:
            return _refused(device, payload, "malformed", e.message)
        if (refusal.round, refusal.device) != (self.opened.round, device):
            return _refused(device, payload, "wrong_round", "the refusal names another round")
        return _refused(device, payload, refusal.reason, refusal.detail)

    def _mismatch(self, device: str, header: UpdateHeader) -> tuple[str, str] | None:
        if header.round != self.opened.round:
            return "wrong_round", f"the update is of round {header.round}"
        if header.device != device:
            return "wrong_device", f"the update says that it is of {header.device}"
        if header.parameters_sha256 != self.opened.parameters_sha256:
            return "wrong_parameters", "the update starts from other parameters"
        return None


def _refused(device: str, payload: bytes, reason: str, detail: str) -> Answer:
    return Answer(
        device=device, accepted=False, reason=reason, detail=detail, size_bytes=len(payload)
    )

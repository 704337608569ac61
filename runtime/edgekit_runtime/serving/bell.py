"""Bell: the socket where local programs ask for inference through memory that they share.

What HTTP over a Unix socket costs, a request does not pay here: nothing is parsed, and tensors are
not sent. Who may write to the socket's file may ask; the user is logged. docs/client.md describes
the protocol, `edgekit_runtime.client` is the program's side.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edgekit.errors import DeadlineMissed, Overloaded
from edgekit_runtime.serving import peer
from edgekit_runtime.serving.address import Unix
from edgekit_runtime.serving.caller import Caller
from edgekit_runtime.serving.listen import SOCKET_MODE, cannot_listen, clear

if TYPE_CHECKING:
    from edgekit_runtime.serving.infer import Inference
    from edgekit_runtime.serving.models import Models

log = logging.getLogger(__name__)

_BACKLOG = 64
_RETRY_S = 1.0


class BellLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What programs may take.

    Attributes:
        callers: models that are open at a time, by all programs together.
        memory_bytes: that one of them may share.
        introduction_s: until it has shared its memory.
    """

    callers: int = 64
    memory_bytes: int = 256 << 20
    introduction_s: float = 10.0


class Bell:
    """Listens for programs that share memory.

    Args:
        path: of the socket; a file of a server that is gone is replaced.
        models: what is served.
        inference: runs the requests.
        others: how many connections other listeners have.
        limits: what programs may take.
    """

    def __init__(
        self,
        path: Path,
        *,
        models: Models,
        inference: Inference,
        others: Callable[[], int],
        limits: BellLimits | None = None,
    ) -> None:
        self._path = path
        self._models = models
        self._inference = inference
        self._others = others
        self._limits = limits or BellLimits()
        self._socket: socket.socket | None = None
        self._callers: set[Caller] = set()

    @property
    def callers(self) -> int:
        """Programs that are connected."""
        return len(self._callers)

    def start(self) -> None:
        """Listen, on the running loop; raises `ServingError` where that cannot be."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        try:
            clear(self._path)
            listener.bind(str(self._path))
            os.chmod(self._path, SOCKET_MODE)
            listener.listen(_BACKLOG)
        except OSError as e:
            listener.close()
            raise cannot_listen(Unix(self._path), e) from e
        self._socket = listener
        self._watch()
        log.info("bell hangs", extra={"at": str(self._path)})

    def retire(self) -> None:
        """Take no more programs and no more requests, and leave each after its last answer."""
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._socket = None
            self._path.unlink(missing_ok=True)
        for caller in list(self._callers):
            caller.retire()

    def close(self) -> None:
        """Leave every program now."""
        self.retire()
        for caller in list(self._callers):
            caller.close()

    def _watch(self) -> None:
        if self._socket is not None:
            asyncio.get_running_loop().add_reader(self._socket, self._accept)

    def _accept(self) -> None:
        assert self._socket is not None
        loop = asyncio.get_running_loop()
        try:
            end, _ = self._socket.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as e:
            # No descriptor is left. The program waits; it must not keep the loop busy meanwhile.
            log.warning("program not accepted", extra={"reason": str(e)})
            loop.remove_reader(self._socket)
            loop.call_later(_RETRY_S, self._watch)
            return
        end.setblocking(False)
        caller = Caller(
            end,
            models=self._models,
            inference=self._inference,
            alone=self._is_alone,
            max_bytes=self._limits.memory_bytes,
            closed=self._callers.discard,
        )
        self._callers.add(caller)
        if len(self._callers) > self._limits.callers:
            caller.dismiss(
                Overloaded(
                    f"{self._limits.callers} models are open by way of {self._path} already",
                    retry_after_s=_RETRY_S,
                )
            )
            return
        loop.call_later(self._limits.introduction_s, self._check, caller)
        log.info("program rings", extra={"uid": peer.of(end).uid, "programs": len(self._callers)})

    def _check(self, caller: Caller) -> None:
        """A program that does not say what it wants takes the place of one that does."""
        if caller in self._callers and not caller.is_ready:
            limit_s = self._limits.introduction_s
            caller.dismiss(DeadlineMissed(f"no memory was shared within {limit_s:g} s"))

    def _is_alone(self) -> bool:
        return len(self._callers) == 1 and self._others() == 0

"""Access: what whoever reaches a listener may ask there.

Programs on this machine come over a Unix socket or the loopback interface and need no credentials:
file permissions and the machine's own borders keep strangers out. Everybody else proves who they
are, by a token or by a certificate, and changes what is served only with an admin's token.
"""

from __future__ import annotations

import enum
import logging
from pathlib import Path

from edgekit.errors import AccessDenied, ConfigError, UsageError
from edgekit_runtime.serving.address import Address, Tcp
from edgekit_runtime.serving.tls import Tls, context, load
from edgekit_runtime.serving.tokens import Token, TokenFile
from edgekit_runtime.serving.watch import Watch

log = logging.getLogger(__name__)


class Unauthenticated(AccessDenied):
    """Who asks did not prove who they are."""


class Demand(enum.Enum):
    """What a client must show before it is answered."""

    NOTHING = "nothing"
    CERTIFICATE = "certificate"
    TOKEN = "token"  # noqa: S105 - a kind of credential


def demand(address: Address, *, has_tokens: bool, tls: Tls | None, insecure: bool) -> Demand:
    """What clients of a listener must show.

    A client authority makes the TLS handshake the proof, and tokens then only tell administrators.

    Args:
        address: where it listens.
        has_tokens: whether there is a token file.
        tls: spoken there.
        insecure: lets strangers ask, and tokens travel in the clear, for who says so by name.

    Raises:
        UsageError: other machines can reach it, and nothing would tell friends from strangers.
    """
    if is_local(address):
        return Demand.NOTHING
    if tls is not None and tls.client_ca is not None:
        return Demand.CERTIFICATE
    if has_tokens:
        if tls is None and not insecure:
            raise UsageError(
                f"{address} can be reached by other machines, and tokens would travel there in the"
                " clear",
                hint="give it a certificate with --tls-cert and --tls-key ([serve.tls]), or allow"
                " it with --insecure",
            )
        return Demand.TOKEN
    if not insecure:
        raise UsageError(
            f"{address} can be reached by other machines, and nobody would have to prove who they"
            " are",
            hint="listen on 127.0.0.1 or a Unix socket; or give it --token-file or --tls-client-ca"
            " ([serve] tokens, [serve.tls] client_ca); or allow it with --insecure",
        )
    return Demand.NOTHING


def is_local(address: Address) -> bool:
    """Whether only this machine can reach a listener."""
    return not isinstance(address, Tcp) or address.is_loopback


class Access:
    """The rule of one listener; HTTP and gRPC hold it alike.

    Args:
        listener: where clients come in.
        demand: what they must show; a certificate was checked before anything is asked here.
        tokens: the valid ones.
    """

    def __init__(
        self, listener: Address, *, demand: Demand = Demand.NOTHING, tokens: TokenFile | None = None
    ) -> None:
        self.listener = listener
        self.demand = demand
        self._tokens = tokens

    def admit(self, token: bytes | None) -> None:
        """Let a request pass, raising `Unauthenticated`.

        Args:
            token: digest of the bearer token that came with it (`tokens.presented`).
        """
        if self.demand is not Demand.TOKEN or self._find(token) is not None:
            return
        if token is None:
            raise Unauthenticated(
                "a token is needed here", hint="send the header Authorization: Bearer TOKEN"
            )
        raise Unauthenticated("the token is not valid here")

    def admit_admin(self, token: bytes | None) -> None:
        """Let a request change what is served, raising `AccessDenied`."""
        if is_local(self.listener):
            return
        found = self._find(token)
        if found is None or not found.is_admin:
            raise AccessDenied(
                "models are loaded and unloaded by programs on this machine or with an admin's"
                " token"
            )

    def _find(self, token: bytes | None) -> Token | None:
        return None if self._tokens is None else self._tokens.find(token)


class Credentials:
    """What the listeners of a server prove, and demand.

    Args:
        tokens: file of tokens.
        tls: files for TLS, spoken on every TCP address then.
        insecure: see `demand`.

    Raises:
        ConfigError: a file cannot be read, can be read by others, or is wrong.
    """

    def __init__(
        self, *, tokens: Path | None = None, tls: Tls | None = None, insecure: bool = False
    ) -> None:
        self.tls = tls
        self.context = None if tls is None else context(tls)
        self._tokens = None if tokens is None else TokenFile(tokens)
        self._insecure = insecure
        self._certificates = None if tls is None else Watch(*tls.files)

    def access(self, listener: Address) -> Access:
        """The rule of a listener, raising `UsageError` where strangers could ask there."""
        found = demand(
            listener, has_tokens=self._tokens is not None, tls=self.tls, insecure=self._insecure
        )
        return Access(listener, demand=found, tokens=self._tokens)

    def refresh(self) -> bool:
        """Read again what changed on disk; whether who may pass has changed.

        New certificates count for new connections. Where they are wrong the old ones stay, since
        they are what clients know.
        """
        if self._certificates is not None and self._certificates.changed():
            self._renew()
        return self._tokens is not None and self._tokens.refresh()

    def _renew(self) -> None:
        assert self.tls is not None
        assert self.context is not None
        try:
            # On its own first: a pair that does not fit would spoil the context that is in use.
            context(self.tls)
            load(self.tls, self.context)
        except ConfigError as e:
            log.error("the certificates of before stay: %s", e.with_hint)
        else:
            log.info("certificates were read again")

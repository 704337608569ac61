"""Connection: one HTTP request whose every step has a time limit and can be ended."""

from __future__ import annotations

import socket
import ssl
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from urllib.parse import SplitResult

from edgekit.errors import ConfigError
from edgekit_runtime.fetch import address
from edgekit_runtime.fetch.watch import Watch


class Connection(HTTPConnection):
    """A connection to the server of an address.

    Args:
        url: whose server.
        timeout_s: how long the connection may be silent.
        tls: whom to trust, for `https`.
        window_bytes: most that the kernel takes in ahead of the reader; `None` leaves it to the
            kernel. Without a bound a download that is read slowly is not fetched slowly.
        watch: ends its waits.
    """

    def __init__(
        self,
        url: SplitResult,
        *,
        timeout_s: float,
        tls: ssl.SSLContext | None,
        window_bytes: int | None,
        watch: Watch,
    ) -> None:
        # Decides what `Host` says. The base class that knows TLS knows no window.
        self.default_port = 80 if url.scheme == "http" else 443
        super().__init__(url.hostname or "", url.port, timeout=timeout_s)
        self._timeout_s = timeout_s
        self._tls = tls if url.scheme == "https" else None
        self._window_bytes = window_bytes
        self._watch = watch

    def connect(self) -> None:
        """Reach the server, and agree on TLS with it."""
        self.sock = self._reach()
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._tls is not None:
            self.sock = self._tls.wrap_socket(
                self.sock, server_hostname=self.host, do_handshake_on_connect=False
            )
            self.sock.do_handshake()

    def ask(self, url: SplitResult, headers: dict[str, str]) -> HTTPResponse:
        """Send a request and read the head of its answer."""
        self.request("GET", address.target(url), headers=headers)
        response = self.getresponse()
        try:
            self._watch.begun()
        except BaseException:
            response.close()
            raise
        return response

    def _reach(self) -> socket.socket:
        failure = OSError(f"{self.host} has no address")
        for family, kind, protocol, _, place in socket.getaddrinfo(
            self.host, self.port, type=socket.SOCK_STREAM
        ):
            self._watch.look()
            sock = socket.socket(family, kind, protocol)
            sock.settimeout(self._timeout_s)
            if self._window_bytes is not None:
                # Before it connects: the window is agreed on then.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._window_bytes)
            try:
                self._watch.hold(sock)
                sock.connect(place)
            except OSError as e:
                sock.close()
                failure = e
            else:
                return sock
        raise failure


def tls_context(ca: Path | None) -> ssl.SSLContext:
    """Whom to trust as a repository: the system's authorities, and those in the file `ca`.

    Raises:
        ConfigError: the file cannot be read as certificates.
    """
    context = ssl.create_default_context()
    if ca is not None:
        try:
            context.load_verify_locations(ca)
        except (OSError, ssl.SSLError) as e:
            raise ConfigError(
                f"{ca} is not a file of certificates: {e}",
                hint="it holds certificates in PEM; edgekit device enroll writes one",
            ) from e
    return context

"""Membership: a device's part in a fleet: its identity, its link, and what comes over both.

An enrolled device believes nothing that its fleet did not sign. An insecure one, for demonstrations
on one machine, says so at each start.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import AsyncExitStack
from random import Random
from typing import TYPE_CHECKING

from edgekit import signed_frame
from edgekit.clock import Clock
from edgekit.errors import ConfigError
from edgekit.messages import Reported
from edgekit_runtime.config import Config, FleetSection
from edgekit_runtime.control.control import Control
from edgekit_runtime.control.hands import Hands
from edgekit_runtime.fetch import Fetcher
from edgekit_runtime.linkage import Linkage
from edgekit_runtime.serving.models import Models
from edgekit_runtime.serving.served import Served
from edgekit_runtime.source import Source
from edgekit_runtime.telemetry import Events
from edgekit_runtime.trainer import Trainer
from edgekit_runtime.trusted.repository import Repository
from edgekit_runtime.updater import Updater
from edgekit_runtime.uplink import Uplink

if TYPE_CHECKING:
    from edgekit_runtime.identity import Identity

log = logging.getLogger(__name__)


class Membership:
    """What a daemon has where its configuration has a `[fleet]`.

    Args:
        config: of this device.
        fleet: its `[fleet]` section.
        identity: of an enrolled device.
        boot: of this start of the daemon.
        models: what serves; its figures are reported.
        clock: for time stamps and time limits.
        rng: spreads the repetitions of many devices.
    """

    def __init__(
        self,
        config: Config,
        fleet: FleetSection,
        *,
        identity: Identity | None,
        boot: str,
        models: Models,
        clock: Clock,
        rng: Random,
    ) -> None:
        self._config = config
        self._identity = identity
        self._boot = boot
        self._clock = clock
        self._rng = rng
        self.uplink = Uplink(
            config,
            fleet,
            identity=identity,
            boot=boot,
            figures=models.figures,
            drifts=lambda: [drift.figures() for drift in models.drifts()],
            clock=clock,
            rng=rng,
        )
        self.source = self._make_source(fleet)

    @property
    def events(self) -> Events:
        """Where the fleet hears of what happens."""
        return self.uplink.events

    def sign_update(self, payload: bytes) -> bytes:
        """An answer in a round as it travels: with this device's signature where it has a key."""
        if self._identity is None:
            return payload
        return self._identity.sign(payload, kind=signed_frame.UPDATE)

    def start(
        self,
        ending: AsyncExitStack,
        *,
        report: Callable[[], Reported],
        updater: Updater[Served],
        trainer: Trainer | None,
        hands: Hands,
    ) -> None:
        """Connect, obey and renew until `ending` unwinds; on the daemon's loop.

        Args:
            ending: what must end, in the reverse order.
            report: what the device has now.
            updater: takes wishes.
            trainer: takes part in rounds, where this device does.
            hands: what commands can reach.
        """
        control = self._make_control(hands)
        self.uplink.start(report=report, want=updater.want, trainer=trainer, control=control)
        ending.callback(self.uplink.close)
        self.events("started", f"boot {self._boot}", boot=self._boot)
        control.start()
        ending.callback(control.close)
        state = self._config.state.folder
        linkage = Linkage(state, self.uplink.link, events=self.events, clock=self._clock)
        ending.callback(asyncio.create_task(linkage.watch()).cancel)
        if self._identity is not None:
            # Imported here, as below: what reads certificates costs memory that others save.
            from edgekit_runtime.identity import Renewal

            renewal = Renewal(
                self._identity.folder,
                clock=self._clock,
                rng=self._rng,
                events=self.events,
                reconnect=self.uplink.link.reconnect,
            )
            renewal.start()
            ending.callback(renewal.close)

    def _make_source(self, fleet: FleetSection) -> Source:
        state, identity = self._config.state.folder, self._identity
        bases = repositories(fleet, identity)
        fetcher = Fetcher(
            state / "fetch",
            repository=bases[0],
            mirrors=bases[1:],
            reserve_bytes=self._config.update.reserve_bytes,
            bandwidth_bytes_s=self._config.update.bandwidth_bytes_s,
            window=self._config.update.window,
            ca=identity.https_ca if identity else None,
            clock=self._clock,
            rng=self._rng,
        )
        repository = None
        if identity is not None:
            repository = Repository(
                urls=bases, root=identity.root, state=state / "trusted", ca=identity.https_ca
            )
        return Source(
            fetcher,
            repository=repository,
            events=self.events,
            clock=self._clock,
            rng=self._rng,
        )

    def _make_control(self, hands: Hands) -> Control:
        device = self._config.device
        return Control(
            state=self._config.state.folder,
            device=f"{device.site}/{device.id}",
            boot=self._boot,
            keys=self._identity.control_keys if self._identity else None,
            settings=self._config.commands,
            hands=hands,
            publish=self.uplink.answer,
            clock=self._clock,
        )


def read_identity(config: Config) -> Identity | None:
    """The identity that the configuration names, which must be this device's.

    Raises:
        ConfigError: it cannot be read, or is another device's.
    """
    if config.fleet is None:
        return None
    if config.fleet.identity is None:
        log.warning("insecure fleet: nothing that this device is told is signed")
        return None
    from edgekit_runtime.identity import Identity

    identity = Identity.read(config.fleet.identity)
    if (identity.site, identity.device) != (config.device.site, config.device.id):
        raise ConfigError(
            f"{config.fleet.identity} is of {identity.name}, the configuration is of"
            f" {config.device.site}/{config.device.id}",
            hint="set site and id of [device] to those of the enrolment",
        )
    return identity


def repositories(fleet: FleetSection, identity: Identity | None) -> list[str]:
    """Bases of bundle addresses, in the order in which they are tried."""
    enrolled = list(identity.repositories) if identity else []
    first = [fleet.repository] if fleet.repository else enrolled
    return list(dict.fromkeys([*first, *fleet.mirrors]))

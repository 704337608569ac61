"""Daemon: wiring, start-up and shutdown of `edgekitd`; no rules.

Threads: the event loop with all sockets (main), `update`, `training`, `outbox`, `control`,
`identity`, and paho's for the link. Order of start-up: what is in the slots serves first, then the
server listens, then the fleet is told. A board whose broker is gone, whose certificate has expired
or whose disk takes nothing any more serves all the same.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import signal
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, closing
from functools import partial
from pathlib import Path
from random import Random

import numpy as np

from edgekit import storage
from edgekit.clock import Clock, SystemClock
from edgekit.errors import StorageError
from edgekit.messages import Reported
from edgekit.signing import PublicKey
from edgekit_runtime import bounded
from edgekit_runtime.answers import Answers
from edgekit_runtime.canary.trial import Past, Trial
from edgekit_runtime.compiled import Compiled
from edgekit_runtime.config import Config, read
from edgekit_runtime.control.hands import Hands
from edgekit_runtime.control.logring import LogRing
from edgekit_runtime.desired import DesiredState
from edgekit_runtime.drift_watch import Watch
from edgekit_runtime.live import Live, public_keys
from edgekit_runtime.lock import StateLock
from edgekit_runtime.membership import Membership, read_identity
from edgekit_runtime.notify import Notifier, keep_alive, summary
from edgekit_runtime.opening import open_trusted
from edgekit_runtime.serving import address
from edgekit_runtime.serving.address import Address, Unix
from edgekit_runtime.serving.application import Limits
from edgekit_runtime.serving.models import Models
from edgekit_runtime.serving.repository import Installed
from edgekit_runtime.serving.repository import Source as Installable
from edgekit_runtime.serving.served import Served
from edgekit_runtime.serving.server import Server, new_event_loop
from edgekit_runtime.slots import Slots
from edgekit_runtime.telemetry import log_event
from edgekit_runtime.trainer import Trainer
from edgekit_runtime.updater import Updater
from edgekit_runtime.uplink import Uplink

log = logging.getLogger(__name__)

STOP_LIMIT_S = 10.0


class Daemon:
    """Everything that runs on a board.

    Args:
        config: checked.
        path: its file, which a command can have read again.
        clock: for everything that takes or tells time.
        rng: for spreading repetitions; not for secrets.

    Raises:
        ConfigError: a key cannot be read.
        StorageError: the state folder cannot be written, or another daemon uses it.
    """

    def __init__(
        self, config: Config, *, path: Path | None = None, clock: Clock, rng: Random
    ) -> None:
        state = config.state.folder
        self._lock = StateLock(state)
        self._config = config
        self._path = path
        self._rng = rng
        self._ring = LogRing(lines=config.commands.log_lines)
        self._ring.attach()
        self._clock = clock
        self._boot = secrets.token_hex(8)
        self._identity = read_identity(config)
        keys = [PublicKey.read(path) for path in config.trust.keys]
        if self._identity is not None:
            # For what was installed before the signed repository named whose a bundle is.
            keys += self._identity.release_keys
        self._compiled = Compiled(state / "compiled")
        self._models = Models(config.serve.settings, compiled=self._compiled)
        self._slots = Slots(state)
        self._installed = Installed(self._models, lambda: self._sources(keys))
        self._server = self._make_server()
        self._member = self._make_member()
        events = self._member.events if self._member else log_event
        self._watch = Watch(self._models.drifts, events=events)
        self._desired = DesiredState(state)
        self._live: Live[Served] = Live(
            self._models,
            keys=keys,
            engine_failures=engine_failures,
            compare=self._compare if config.canary.enabled else None,
            clock=clock,
        )
        self._updater = Updater(
            self._slots,
            self._live,
            self._desired,
            profile=config.device.profile,
            keys=keys,
            limits=config.update,
            source=self._member.source if self._member else None,
            events=events,
            changed=self._changed,
            clock=clock,
        )
        self._trainer = self._make_trainer()

    async def run(self, stop: asyncio.Event, *, notifier: Notifier) -> None:
        """Serve until `stop` is set, then end in good order.

        Args:
            stop: set by a signal.
            notifier: tells the service manager.

        Raises:
            ServingError: an address is taken.
        """
        with closing(self._lock):
            await self._run(stop, notifier)
            self._note_stop()

    async def _run(self, stop: asyncio.Event, notifier: Notifier) -> None:
        async with AsyncExitStack() as ending:
            ending.callback(self._compiled.close)
            ending.callback(self._models.close)
            ending.callback(self._ring.detach)
            # Off the loop, which hears a signal meanwhile.
            await asyncio.to_thread(self._updater.restore)
            await self._server.start()
            self._watch.start()
            ending.callback(self._watch.close)
            if self._member is not None:
                self._member.start(
                    ending,
                    report=self._report,
                    updater=self._updater,
                    trainer=self._trainer,
                    hands=self._hands(self._member.uplink),
                )
            if self._trainer is not None:
                self._trainer.start()
                ending.callback(self._trainer.close, timeout_s=STOP_LIMIT_S)
            self._updater.start()
            ending.push_async_callback(self._end_updates)
            # First to end: joining the threads above blocks the loop.
            ending.push_async_callback(self._server.close, timeout_s=STOP_LIMIT_S)
            notifier.status(self._standing())
            notifier.ready()
            alive = asyncio.create_task(keep_alive(notifier, self._parts(), says=self._standing))
            ending.callback(alive.cancel)
            await stop.wait()
            notifier.stopping()
            log.info("daemon stops")

    def _standing(self) -> str:
        """For whoever asks the service manager."""
        serving = [(served.name, served.version) for served in self._models.served()]
        return summary(serving, self._updater.states())

    def _parts(self) -> dict[str, Callable[[], bool]]:
        """What must live for the daemon to be well."""
        parts = {
            "update": lambda: self._updater.is_alive,
            # What made room for an engine that hangs answers again only after the next start.
            "models": lambda: self._models.are_ready or not self._updater.is_overdue,
        }
        if (member := self._member) is not None:
            parts["outbox"] = lambda: member.uplink.is_alive
        return parts

    def _note_stop(self) -> None:
        """Only now, when nothing is left that a kill could still be the fault of."""
        try:
            self._slots.note_stop()
        except StorageError as e:
            log.warning("this stop will count as a crash", extra={"error": str(e)})

    async def _end_updates(self) -> None:
        """Off the loop: what the update thread is about may still need it."""
        await asyncio.to_thread(self._updater.close, timeout_s=STOP_LIMIT_S)

    def _changed(self) -> None:
        if self._member is not None:
            self._member.uplink.changed()

    def _report(self) -> Reported:
        training = self._config.training
        offered = training.models if training else ()
        active = {model: self._live.active(model) for model in offered}
        return Reported(
            boot=self._boot,
            at=self._clock.now_ms(),
            serial=self._desired.serial,
            models=self._updater.states(),
            trains=tuple(model for model, held in active.items() if held and held.is_trainable),
        )

    def _make_server(self) -> Server:
        serve = self._config.serve
        grpc = None
        if serve.grpc is not None:
            grpc = address.parse(serve.grpc)
        return Server(
            self._models,
            listen=_addresses(self._config),
            grpc=grpc,
            bell=serve.bell,
            tokens=serve.tokens,
            tls=serve.tls,
            limits=Limits(connections=serve.connections),
            repository=self._installed,
        )

    def _sources(self, keys: Sequence[PublicKey]) -> list[Installable]:
        """The bundles in the active slots, for loading a model that was unloaded."""
        found: list[Installable] = []
        for model in self._slots.names():
            record = self._slots.read(model)
            if record.active is None:
                continue
            open_again = partial(
                open_trusted,
                self._slots.folder(model, record.active),
                trusted=[*keys, *public_keys(record.slots[record.active].keys)],
                insecure=False,
                cache=self._config.state.folder,
            )
            found.append(Installable(model, record.slots[record.active].version, open_again))
        return found

    def _compare(self, old: Served, new: Served, spent_s: float) -> Trial:
        rng = np.random.default_rng(self._rng.getrandbits(64))
        past = Past(spent_s=spent_s)
        settings = self._config.canary
        return Trial(old, new, settings=settings, clock=self._clock, rng=rng, past=past)

    def _make_member(self) -> Membership | None:
        fleet = self._config.fleet
        if fleet is None:
            return None
        return Membership(
            self._config,
            fleet,
            identity=self._identity,
            boot=self._boot,
            models=self._models,
            clock=self._clock,
            rng=self._rng,
        )

    def _hands(self, uplink: Uplink) -> Hands:
        """What commands can reach."""
        return Hands(
            config=self._config,
            reread=self._reread,
            boot=self._boot,
            ring=self._ring,
            models=self._models,
            repository=self._installed,
            updates=self._updater,
            set_interval=uplink.set_interval,
            is_linked=lambda: uplink.link.connected,
            certificate_expires_ms=self._certificate_expires_ms,
            on_loop=asyncio.get_running_loop().call_soon_threadsafe,
            clock=self._clock,
        )

    def _certificate_expires_ms(self) -> int | None:
        """Of the certificate as it is now: it is renewed while the daemon runs."""
        again = read_identity(self._config) if self._identity else None
        return again.expires_at_ms if again else None

    def _reread(self) -> Config | None:
        return None if self._path is None else read(self._path)

    def _make_trainer(self) -> Trainer | None:
        training = self._config.training
        if training is None or self._member is None:
            return None
        return Trainer(
            site=self._config.device.site,
            device=self._config.device.id,
            settings=training,
            answers=Answers(self._config.state.folder / "rounds"),
            active=self._live.active,
            link=self._member.uplink.link,
            events=self._member.events,
            sign=self._member.sign_update,
            clock=self._clock,
        )


def serve(config: Config, *, notifier: Notifier, path: Path | None = None) -> None:
    """Run the daemon until SIGTERM or SIGINT.

    Args:
        config: checked.
        notifier: tells the service manager; the caller closes it.
        path: its file.
    """
    rng = Random()  # noqa: S311 - spreads repetitions
    daemon = Daemon(config, path=path, clock=SystemClock(), rng=rng)
    loop = new_event_loop()
    try:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        loop.run_until_complete(daemon.run(stop, notifier=notifier))
    finally:
        loop.close()
    if bounded.is_any_left():
        # An engine that still runs when its libraries are taken down ends the process by a signal.
        logging.shutdown()
        os._exit(0)


def engine_failures(served: Served) -> int:
    """How often the engine itself failed in a version; wrong requests do not count."""
    errors = served.snapshot().errors
    return errors.get("engine", 0) + errors.get("internal", 0) + errors.get("lost", 0)


def _addresses(config: Config) -> Sequence[Address]:
    found: list[Address] = []
    if config.serve.listen:
        found.append(address.parse(config.serve.listen))
    if config.serve.unix is not None:
        storage.make_folder(config.serve.unix.parent)
        found.append(Unix(config.serve.unix))
    return found

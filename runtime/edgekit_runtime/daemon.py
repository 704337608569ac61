"""Daemon: wiring, start-up and shutdown of `edgekitd`; no rules.

Threads: the event loop with all sockets (main), `update`, `training`, `outbox`, and paho's for the
link. Order of start-up: what is in the slots serves first, then the server listens, then the fleet
is told. A board whose broker is gone serves all the same.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import signal
from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import partial
from random import Random

from edgekit import storage
from edgekit.clock import Clock, SystemClock
from edgekit.messages import Reported
from edgekit.signing import PublicKey
from edgekit_runtime.answers import Answers
from edgekit_runtime.compiled import Compiled
from edgekit_runtime.config import Config
from edgekit_runtime.desired import DesiredState
from edgekit_runtime.drift_watch import Watch
from edgekit_runtime.fetch import Fetcher
from edgekit_runtime.live import Live
from edgekit_runtime.lock import StateLock
from edgekit_runtime.opening import open_trusted
from edgekit_runtime.serving import address
from edgekit_runtime.serving.address import Address, Unix
from edgekit_runtime.serving.application import Limits
from edgekit_runtime.serving.models import Models
from edgekit_runtime.serving.repository import Installed, Source
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
        clock: for everything that takes or tells time.
        rng: for spreading repetitions; not for secrets.

    Raises:
        ConfigError: a key cannot be read.
        StorageError: the state folder cannot be written, or another daemon uses it.
    """

    def __init__(self, config: Config, *, clock: Clock, rng: Random) -> None:
        state = config.state.folder
        self._lock = StateLock(state)
        self._config = config
        self._clock = clock
        self._boot = secrets.token_hex(8)
        keys = [PublicKey.read(path) for path in config.trust.keys]
        self._compiled = Compiled(state / "compiled")
        self._models = Models(config.serve.settings, compiled=self._compiled)
        self._slots = Slots(state)
        self._server = self._make_server(keys)
        self._uplink = self._make_uplink(rng)
        events = self._uplink.events if self._uplink else log_event
        self._watch = Watch(self._models.drifts, events=events)
        self._desired = DesiredState(state)
        self._live: Live[Served] = Live(
            self._models, keys=keys, engine_failures=engine_failures, clock=clock
        )
        self._updater = Updater(
            self._slots,
            self._live,
            self._desired,
            profile=config.device.profile,
            keys=keys,
            limits=config.update,
            fetcher=self._make_fetcher(rng),
            events=events,
            changed=self._changed,
        )
        self._trainer = self._make_trainer()

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set, then end in good order.

        Raises:
            ServingError: an address is taken.
        """
        async with AsyncExitStack() as ending:
            ending.callback(self._lock.close)
            ending.callback(self._compiled.close)
            ending.callback(self._models.close)
            self._updater.restore()
            await self._server.start()
            self._watch.start()
            ending.callback(self._watch.close)
            if self._uplink is not None:
                self._uplink.start(
                    report=self._report, want=self._updater.want, trainer=self._trainer
                )
                ending.callback(self._uplink.close)
                self._uplink.events("started", f"boot {self._boot}", boot=self._boot)
            if self._trainer is not None:
                self._trainer.start()
                ending.callback(self._trainer.close, timeout_s=STOP_LIMIT_S)
            self._updater.start()
            ending.callback(self._updater.close, timeout_s=STOP_LIMIT_S)
            # First to end: joining the threads above blocks the loop.
            ending.push_async_callback(self._server.close, timeout_s=STOP_LIMIT_S)
            await stop.wait()
            log.info("daemon stops")

    def _changed(self) -> None:
        if self._uplink is not None:
            self._uplink.changed()

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

    def _make_server(self, keys: Sequence[PublicKey]) -> Server:
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
            repository=Installed(self._models, lambda: self._sources(keys)),
        )

    def _sources(self, keys: Sequence[PublicKey]) -> list[Source]:
        """The bundles in the active slots, for loading a model that was unloaded."""
        found: list[Source] = []
        for model in self._slots.names():
            record = self._slots.read(model)
            if record.active is None:
                continue
            open_again = partial(
                open_trusted,
                self._slots.folder(model, record.active),
                trusted=keys,
                insecure=False,
                cache=self._config.state.folder,
            )
            found.append(Source(model, record.slots[record.active].version, open_again))
        return found

    def _make_uplink(self, rng: Random) -> Uplink | None:
        fleet = self._config.fleet
        if fleet is None:
            return None
        return Uplink(
            self._config,
            fleet,
            boot=self._boot,
            figures=self._models.figures,
            drifts=lambda: [drift.figures() for drift in self._models.drifts()],
            clock=self._clock,
            rng=rng,
        )

    def _make_fetcher(self, rng: Random) -> Fetcher | None:
        fleet = self._config.fleet
        if fleet is None:
            return None
        return Fetcher(
            self._config.state.folder / "fetch",
            repository=fleet.repository,
            reserve_bytes=self._config.update.reserve_bytes,
            clock=self._clock,
            rng=rng,
        )

    def _make_trainer(self) -> Trainer | None:
        training = self._config.training
        if training is None or self._uplink is None:
            return None
        return Trainer(
            site=self._config.device.site,
            device=self._config.device.id,
            settings=training,
            answers=Answers(self._config.state.folder / "rounds"),
            active=self._live.active,
            link=self._uplink.link,
            events=self._uplink.events,
            clock=self._clock,
        )


def serve(config: Config) -> None:
    """Run the daemon until SIGTERM or SIGINT."""
    daemon = Daemon(config, clock=SystemClock(), rng=Random())  # noqa: S311 - spreads repetitions
    loop = new_event_loop()
    try:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        loop.run_until_complete(daemon.run(stop))
    finally:
        loop.close()


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

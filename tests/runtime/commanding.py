"""A device that takes commands: the real `Control`, and a link that remembers what it got."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from edgekit import control, messages
from edgekit.control import Command, CommandResult, Kind
from edgekit.errors import UsageError
from edgekit.messages import ModelState
from edgekit.signing import SigningKey
from edgekit_runtime.config import Config, DeviceSection, FleetSection, StateSection
from edgekit_runtime.control import kinds
from edgekit_runtime.control.control import Control
from edgekit_runtime.control.hands import Hands
from edgekit_runtime.control.kinds import Work
from edgekit_runtime.control.logring import LogRing
from edgekit_runtime.control.settings import CommandsSection
from edgekit_runtime.serving.models import Models
from edgekit_runtime.serving.repository import Installed
from edgekit_runtime.slots import Request
from tests.clock import ManualClock
from tests.runtime.served import until

DEVICE = "berlin/gate-1"
KEY = SigningKey.generate()
STRANGER = SigningKey.generate()


class Shelf:
    """Models by name, as an updater shows them; it does at once what is asked."""

    def __init__(self, **models: ModelState) -> None:
        self.models = models
        self.answers = True
        self.has_begun = False
        self.withdrawn: list[tuple[str, Request]] = []

    def states(self) -> dict[str, ModelState]:
        return dict(self.models)

    def withdraw(self, model: str, request: Request) -> bool:
        self.withdrawn.append((model, request))
        return not self.has_begun

    def rollback(self, model: str) -> None:
        if model not in self.models:
            raise UsageError(f"{model!r} has no version to go back to")
        if self.answers:
            self.models[model] = ModelState(version="1.0.0", state="rolled_back", reason="asked")

    def cancel(self, model: str) -> None:
        if self.models[model].state != "fetching":
            raise UsageError(f"no update of {model!r} is under way")
        self.models[model] = ModelState(version="1.0.0", state="failed", reason="cancelled")


def config(state: Path, **sections: Any) -> Config:
    """Of an insecure fleet on this machine."""
    fleet = FleetSection(
        insecure=True, broker="mqtt://127.0.0.1:1", repository="http://127.0.0.1:1/"
    )
    device = DeviceSection(site="berlin", id="gate-1", profile="generic-x86_64")
    given = {"fleet": fleet, "state": StateSection(folder=state), **sections}
    return Config(device=device, **given)


def hands(state: Path, **given: Any) -> Hands:
    """What commands may reach, with nothing served."""
    models = given.pop("models", None) or Models()
    values: dict[str, Any] = {
        "config": config(state),
        "reread": lambda: None,
        "boot": "0" * 16,
        "ring": LogRing(lines=100),
        "models": models,
        "repository": Installed(models, list),
        "updates": Shelf(),
        "set_interval": lambda _: None,
        "is_linked": lambda: True,
        "certificate_expires_ms": lambda: None,
        "on_loop": lambda call: call(),
        "clock": ManualClock(),
    }
    return Hands(**{**values, **given})


class Rig:
    """A device and the commands that it gets.

    Args:
        state: its state folder.
        table: what kinds do, in place of what they do on a board.
    """

    def __init__(
        self,
        state: Path,
        *,
        table: Mapping[Kind, Work] | None = None,
        insecure: bool = False,
        settings: CommandsSection | None = None,
        boot: str = "00000000000000aa",
        device: str = DEVICE,
        clock: ManualClock | None = None,
        **given: Any,
    ) -> None:
        self.state = state
        self.boot = boot
        self.clock = clock or ManualClock()
        self.published: list[CommandResult] = []
        self.is_linked = True
        self.counter = 0
        self._draws = 0
        self.control = Control(
            state=state,
            device=device,
            boot=boot,
            keys=None if insecure else [KEY.public],
            settings=settings or CommandsSection(),
            hands=hands(state, **given),
            publish=self._publish,
            clock=self.clock,
            draw=self._draw,
            table={**kinds.TABLE, **(table or {})},
        )
        self.control.start()

    def __enter__(self) -> Rig:
        return self

    def __exit__(self, *_: object) -> None:
        self.control.close(timeout_s=10)

    def command(self, kind: str = "logs", **given: Any) -> Command:
        """A command that counts here and now, unless it is told otherwise."""
        self.counter += 1
        now_ms = self.clock.now_ms()
        values: dict[str, Any] = {
            "id": f"c{self.counter}",
            "device": DEVICE,
            "counter": self.counter,
            "boot": self.boot,
            "issued_at": now_ms,
            "expires_at": now_ms + 60_000,
            "kind": kind,
            "by": "ada@desk",
        }
        return Command(**{**values, **given})

    def send(self, command: Command, *, key: SigningKey | None = KEY, id_: str = "") -> None:
        self.control.received(id_ or command.id, control.encode(command, key=key))

    def ask(self, command: Command, **how: Any) -> CommandResult:
        """Send a command and wait for its last word."""
        seen = len(self.published)
        self.send(command, **how)
        until(lambda: any(found.state != "running" for found in self.published[seen:]))
        return self.published[-1]

    def audit(self) -> list[dict[str, Any]]:
        path = self.state / "commands" / "audit.jsonl"
        lines = path.read_bytes().splitlines() if path.exists() else []
        return [msgspec.json.decode(line) for line in lines]

    def _publish(self, leaf: str, payload: bytes) -> bool:
        assert len(payload) <= messages.MAX_PAYLOAD_BYTES
        if self.is_linked:
            result = messages.decode(payload, CommandResult, topic=leaf)
            assert leaf == control.result_leaf(result.id)
            self.published.append(result)
        return self.is_linked

    def _draw(self) -> str:
        self._draws += 1
        return f"{self._draws:016x}"


def counted(done: list[str]) -> Work:
    """Work that says that it ran."""

    def run(args: Any, _: Hands, __: Any) -> dict[str, Any]:
        done.append(type(args).__name__)
        return {"ran": len(done)}

    return run


def held(gate: threading.Event, begun: Callable[[], None] = lambda: None) -> Work:
    """Work that asks nobody and ends when the gate opens."""

    def run(_: Any, __: Hands, ___: Any) -> dict[str, Any]:
        begun()
        gate.wait(30)
        return {}

    return run

"""Repository: the models that may serve here, and taking one in or out while the server runs.

Only bundles that are installed can be loaded: those named on the command line, or those in the
slots of a daemon. Each load opens the bundle anew, checks every byte and its signature, and probes
its golden inputs; no request brings a model, a file or a configuration with it. A model that was
unloaded stays listed, with the reason, and can be loaded again.

Source: Triton's model repository extension of Open Inference Protocol v2.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import msgspec

from edgekit.errors import EdgekitError, NotServed, RequestError, UsageError
from edgekit.manifest import Version
from edgekit_runtime.opening import Opened
from edgekit_runtime.serving.models import Models
from edgekit_runtime.serving.served import Served

log = logging.getLogger(__name__)
T = TypeVar("T")

UNLOADED = "unloaded by request"
DRAIN_LIMIT_S = 60.0

State = Literal["READY", "LOADING", "UNLOADING", "UNAVAILABLE"]


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A line of the index.

    Attributes:
        reason: why the model is in this state; empty where it serves.
    """

    name: str
    version: str
    state: State
    reason: str = ""


class Repository(Protocol):
    """What can be loaded. `load` and `unload` take their time, and are not called on the loop."""

    def index(self) -> list[Entry]:
        """Every model that serves or could, by name and version."""
        ...

    def load(self, name: str) -> None:
        """Let a model serve, from its bundle as it is now; what serves until then stays till then.

        Raises:
            NotServed: no bundle of this name is installed.
            EdgekitError: it cannot be opened, is not trusted, or cannot run here.
        """
        ...

    def reload(self, name: str) -> None:
        """Open a model's bundle anew, and only then let that serve in place of what serves now.

        Raises:
            NotServed: no bundle of this name is installed.
            EdgekitError: it cannot be opened, is not trusted, or cannot run here; what served
                serves on.
        """
        ...

    def unload(self, name: str) -> None:
        """Serve a model no more, having answered what it was asked.

        Raises:
            NotServed: it does not serve, or is not installed.
        """
        ...


class Source(NamedTuple):
    """An installed bundle: what it held when it was installed, and the way to open it."""

    name: str
    version: str
    open: Callable[[], Opened]


class Installed:
    """The repository of a server: what `sources` lists, served by `models`.

    Safe to use from several threads; one load or unload runs at a time.

    Args:
        models: what serves.
        sources: the bundles that are installed now.
    """

    def __init__(self, models: Models, sources: Callable[[], Sequence[Source]]) -> None:
        self._models = models
        self._sources = sources
        self._turn = threading.Lock()
        # What became of those that do not serve; replaced whole, so that it is read without a lock.
        self._states: dict[tuple[str, str], tuple[State, str]] = {}

    def index(self) -> list[Entry]:
        """See `Repository.index`."""
        serving = {served.key: served for served in self._models.served()}
        keys = serving.keys() | self._installed()
        entries = []
        for name, version in sorted(keys, key=lambda key: (key[0], Version(key[1]))):
            served = serving.get((name, version))
            state, reason = self._states.get((name, version), ("UNAVAILABLE", "not loaded"))
            if served is not None:
                state, reason = _state(served)
            entries.append(Entry(name=name, version=version, state=state, reason=reason))
        return entries

    def load(self, name: str) -> None:
        """See `Repository.load`. Of several versions that are installed, all are loaded."""
        with self._turn:
            self._load_all(self._of(name), anew=False)

    def reload(self, name: str) -> None:
        """See `Repository.reload`. Raises `UsageError` for several versions of a model."""
        with self._turn:
            sources = self._of(name)
            if len(sources) > 1:
                raise UsageError(
                    f"{len(sources)} versions of {name} serve side by side",
                    hint="unload and load them",
                )
            self._load_all(sources, anew=True)

    def unload(self, name: str) -> None:
        """See `Repository.unload`. All versions of the model are unloaded."""
        with self._turn:
            self._of(name)
            found = [served for served in self._models.served() if served.name == name]
            if not found:
                raise NotServed(f"{name} is not served here")
            for served in found:
                self._tell(served.key, "UNLOADING", "")
                self._models.remove(*served.key)
            for served in found:
                is_closed = served.wait_closed(DRAIN_LIMIT_S)
                self._tell(served.key, "UNAVAILABLE", UNLOADED if is_closed else "still closing")
                log.info("model unloaded", extra={"model": name, "version": served.version})

    def _installed(self) -> set[tuple[str, str]]:
        return {(source.name, source.version) for source in self._sources()}

    def _of(self, name: str) -> list[Source]:
        sources = self._sources()
        found = [source for source in sources if source.name == name]
        if not found:
            known = ", ".join(sorted({source.name for source in sources})) or "nothing"
            raise NotServed(f"no bundle of {name!r} is installed here", hint=f"installed: {known}")
        return found

    def _load_all(self, sources: Sequence[Source], *, anew: bool) -> None:
        for source in sources:
            key = source.name, source.version
            self._tell(key, "LOADING", "")
            try:
                version = self._load(source, alone=len(sources) == 1, anew=anew)
            except EdgekitError as e:
                self._tell(key, "UNAVAILABLE", e.with_hint)
                raise
            except BaseException:
                self._tell(key, "UNAVAILABLE", "internal error; see the log")
                raise
            # Shown once it serves no more, or where the bundle holds another version by now.
            self._tell(key, "UNAVAILABLE", f"{version} was loaded in its place")

    def _load(self, source: Source, *, alone: bool, anew: bool) -> str:
        """Let a bundle serve; the version that it holds."""
        opened = source.open()
        with opened.bundle as bundle:
            manifest = bundle.manifest
            if manifest.name != source.name:
                raise UsageError(
                    f"the bundle of {source.name} holds {manifest.name} by now",
                    hint="start the server anew to serve another model",
                )
            serving = self._serving(manifest.name, manifest.version)
            is_same = serving is not None and serving.digest == bundle.digest
            if is_same and not anew:
                log.info("model serves already", extra={"model": source.name})
                return manifest.version
            served = self._models.load(bundle, verified_by=opened.verified_by, proven=is_same)
        if (source.name, source.version) not in self._installed():
            self._models.discard(served)
            raise UsageError(
                f"{source.name} {source.version} was replaced while it was loaded",
                hint="load it again",
            )
        # The only version of a model takes the place of what it served until now.
        try:
            self._models.activate(served, replace=alone)
        except UsageError:
            self._models.discard(served)
            raise
        log.info("model loaded", extra={"model": served.name, "version": served.version})
        return served.version

    def _serving(self, name: str, version: str) -> Served | None:
        try:
            return self._models.find(name, version)
        except NotServed:
            return None

    def _tell(self, key: tuple[str, str], state: State, reason: str) -> None:
        self._states = {**self._states, key: (state, reason)}


def _state(served: Served) -> tuple[State, str]:
    return ("READY", "") if served.is_ready else ("UNAVAILABLE", served.unready)


class _Options(msgspec.Struct):
    parameters: dict[str, Any] = {}


class _Filter(msgspec.Struct):
    ready: bool = False


def wants_ready_only(body: bytes) -> bool:
    """Read the body of an index request, which may be empty, raising `RequestError`."""
    return _read(body, _Filter).ready


def check_options(body: bytes) -> None:
    """Read the body of a load or unload request, raising `RequestError` for what is not taken.

    `config` and `file:` would put something that nobody signed in a bundle's place.
    """
    refuse_overrides(_read(body, _Options).parameters)


def refuse_overrides(parameters: Iterable[str]) -> None:
    """Refuse parameters that would put something else in a bundle's place; see `check_options`."""
    for name in parameters:
        if name == "config" or name.startswith("file:"):
            raise RequestError(
                f"parameter {name!r} is not taken: a bundle serves as it was signed",
                hint="build a bundle with other options instead",
            )


def _read(body: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(body or b"{}", type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
        raise RequestError(f"the request is not valid: {e}") from e

"""The one error tree: the class carries the exit code, the instance carries the hint.

Three places catch `EdgekitError`: the command line, the daemon's loop and the server. Everything
else raises the narrowest class, `from` its cause. An error nobody foresaw keeps its traceback.
"""

from __future__ import annotations

from typing import ClassVar


class EdgekitError(Exception):
    """Base of every foreseen error.

    Args:
        message: what is wrong and where (file, field, topic, tensor).
        hint: what to do next, in one line.
    """

    exit_code: ClassVar[int] = 2

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message

    @property
    def with_hint(self) -> str:
        """Message and hint in one line, as a reason among others."""
        return f"{self.message} ({self.hint})" if self.hint else self.message


class UsageError(EdgekitError):
    """The command line, a configuration, a profile or a recipe is not valid."""


class ConfigError(UsageError):
    """A configuration file has a wrong or unknown field."""


class ProfileError(UsageError):
    """A device profile cannot be found, read or resolved."""


class RecipeError(UsageError):
    """A recipe has a wrong or unknown field."""


class DataError(UsageError):
    """Samples do not fit the model: names, shapes, datatypes, labels or their number."""


class StorageError(UsageError):
    """A file could not be read or written: a full disk, a missing folder, no permission."""


class BuildError(EdgekitError):
    """A build could not make what was asked for."""

    exit_code = 3


class ToolChainMissing(BuildError):
    """A tool chain that a build needs is not on this machine, or not as its lock says."""


class ModelError(BuildError):
    """The source model is missing, damaged, foreign or not supported."""


class GateRefused(BuildError):
    """The artefact was made, and measured too bad to ship."""


class BundleError(EdgekitError):
    """A bundle is not valid."""

    exit_code = 4


class ManifestError(BundleError):
    """The manifest has a wrong or unknown field."""


class IntegrityError(BundleError):
    """Bytes differ from what the manifest or the signature says."""


class UntrustedError(BundleError):
    """No trusted key signed this bundle."""


class EngineError(EdgekitError):
    """An engine could not open or run an artefact."""

    exit_code = 5


class EngineNotInstalled(EngineError):
    """The engine that an artefact needs is not on this machine."""


class GoldenMismatch(EngineError):
    """An engine does not reproduce the golden outputs of a bundle."""


class PlacementBroken(EngineError):
    """An engine does not run a variant where its manifest says that it runs."""


class LatencyExceeded(EngineError):
    """A variant runs slower on this board than its manifest allows."""


class MemoryExceeded(EngineError):
    """A variant holds more memory on this board than its manifest allows."""


class WorkerLost(EngineError):
    """What ran a model died, hung or grew too large, and the requests it had with it."""


class ServingError(EdgekitError):
    """The server could not start or answer."""

    exit_code = 6


class Overloaded(ServingError):
    """A bounded queue is full.

    Args:
        retry_after_s: when it makes sense to ask again, in seconds.
    """

    def __init__(self, message: str, *, retry_after_s: float, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.retry_after_s = retry_after_s


class Unavailable(ServingError):
    """A model is known here and cannot answer now.

    Args:
        retry_after_s: when it makes sense to ask again, in seconds.
    """

    def __init__(self, message: str, *, retry_after_s: float, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.retry_after_s = retry_after_s


class AccessDenied(ServingError):
    """Who asks may not have this."""


class DeadlineMissed(ServingError):
    """A request could not be answered within its timeout."""


class RequestError(ServingError):
    """A request is not valid; the message names the tensor or field."""


class NotServed(ServingError):
    """No such model, version or variant is served here."""


class LinkError(EdgekitError):
    """The broker or the repository cannot be reached, or refuses us."""

    exit_code = 7


class MessageError(LinkError):
    """An MQTT payload or topic is not valid."""


class FleetError(EdgekitError):
    """The coordinator, a rollout or a round cannot do what was asked."""

    exit_code = 8

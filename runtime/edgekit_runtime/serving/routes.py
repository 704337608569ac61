"""Routes: which path is answered by what, apart from inference.

A page is a function of a call and gives the response, or `None` where it answers later. What a page
may be asked by whom is decided here: shared memory is for local users, each with his own regions,
and loading and unloading for those whom the listener lets administer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from edgekit.errors import RequestError
from edgekit_runtime.serving import http, metrics, pages, repository
from edgekit_runtime.serving.access import Access
from edgekit_runtime.serving.application import Request
from edgekit_runtime.serving.connection import Connection
from edgekit_runtime.serving.http import Response
from edgekit_runtime.serving.models import Models
from edgekit_runtime.serving.shm import Regions, Registration

if TYPE_CHECKING:
    from edgekit_runtime.serving.app import Service


class Call(NamedTuple):
    """A request to a page.

    Attributes:
        regions: the shared memory of this client, raising `AccessDenied` where it may have none.
    """

    service: Service
    access: Access
    request: Request
    connection: Connection
    regions: Callable[[], Regions]


Page = Callable[[Call], Response | None]


class Route(NamedTuple):
    """A page and the method that asks for it."""

    method: str
    page: Page


def find(segments: tuple[str, ...]) -> Route | None:
    """What answers a path."""
    match segments:
        case ("v2",):
            return Route("GET", lambda call: _json(pages.server(call.service.models)))
        case ("v2", "health", "live"):
            return Route("GET", lambda _: http.response(200))
        case ("v2", "health", "ready"):
            return Route("GET", _ready)
        case ("v2", "models", "stats"):
            return Route("GET", lambda call: _json(pages.statistics(call.service.models.served())))
        case ("v2", "repository", *rest):
            return _repository(rest)
        case ("v2", "systemsharedmemory", *rest):
            return _system_memory(rest)
        case ("v2", "cudasharedmemory", *rest):
            return _cuda_memory(rest)
        case ("v2", "models", name, "versions", version, *rest):
            return _model(name, version, rest)
        case ("v2", "models", name, *rest):
            return _model(name, None, rest)
        case ("metrics",):
            return Route("GET", _metrics)
        case _:
            return None


def _json(value: object) -> Response:
    return http.json_response(200, value)


def _ready(call: Call) -> Response:
    """Whether every model can answer."""
    waiting = [served for served in call.service.models.served() if not served.is_ready]
    if not waiting:
        return http.response(200)
    return http.error(503, "; ".join(f"{m.name} {m.version}: {m.unready}" for m in waiting))


def _metrics(call: Call) -> Response:
    return http.response(200, call.service.metrics(), content_type=metrics.CONTENT_TYPE)


# One model.


def _model(name: str, version: str | None, rest: list[str]) -> Route | None:
    def metadata(call: Call) -> Response:
        models = call.service.models
        return _json(pages.metadata(models.find(name, version), models.versions(name)))

    def ready(call: Call) -> Response:
        served = call.service.models.find(name, version)
        return http.response(200) if served.is_ready else http.error(503, served.unready)

    def config(call: Call) -> Response:
        return _json(pages.config(call.service.models.find(name, version)))

    def stats(call: Call) -> Response:
        return _json(statistics(call.service.models, name, version))

    match rest:
        case []:
            return Route("GET", metadata)
        case ["ready"]:
            return Route("GET", ready)
        case ["config"]:
            return Route("GET", config)
        case ["stats"]:
            return Route("GET", stats)
        case _:
            return None


def statistics(models: Models, name: str, version: str | None) -> dict[str, Any]:
    """What one version of a model did, or each of them.

    Asked for all, the last entry repeats the version that answers by default under its major
    number: perf_analyzer takes versions for whole numbers, and stops where it does not find one.
    """
    found = models.find(name, version)
    if version is not None:
        return pages.statistics([found])
    page = pages.statistics([served for served in models.served() if served.name == name])
    default = next(one for one in page["model_stats"] if one["version"] == found.version)
    page["model_stats"].append({**default, "version": found.version.partition(".")[0]})
    return page


# The repository. It may be named in the path; there is one.


def _repository(rest: list[str]) -> Route | None:
    match rest:
        case ["index"] | [_, "index"]:
            return Route("POST", _index)
        case ["models", name, "load"] | [_, "models", name, "load"]:
            return Route("POST", lambda call: _change(call, call.service.repository.load, name))
        case ["models", name, "unload"] | [_, "models", name, "unload"]:
            return Route("POST", lambda call: _change(call, call.service.repository.unload, name))
        case _:
            return None


def _index(call: Call) -> Response:
    entries = call.service.repository.index()
    if repository.wants_ready_only(call.request.json):
        entries = [entry for entry in entries if entry.state == "READY"]
    return _json(entries)


def _change(call: Call, change: Callable[[str], None], name: str) -> None:
    """Load or unload away from the loop, and answer when it is done."""
    call.access.admit_admin(call.request.head.token)
    repository.check_options(call.request.json)
    call.service.later(lambda: change(name), call.connection)


# Shared memory.


def _system_memory(rest: list[str]) -> Route | None:
    def status(call: Call, name: str | None = None) -> Response:
        return _json(call.regions().status(name))

    def register(call: Call, name: str) -> Response:
        try:
            wanted = msgspec.json.decode(call.request.json, type=Registration)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
            raise RequestError(f"the request is not valid: {e}") from e
        call.regions().register(name, wanted)
        return http.response(200)

    def unregister(call: Call, name: str | None = None) -> Response:
        call.regions().unregister(name)
        return http.response(200)

    match rest:
        case ["status"]:
            return Route("GET", status)
        case ["region", name, "status"]:
            return Route("GET", lambda call: status(call, name))
        case ["region", name, "register"]:
            return Route("POST", lambda call: register(call, name))
        case ["unregister"]:
            return Route("POST", unregister)
        case ["region", name, "unregister"]:
            return Route("POST", lambda call: unregister(call, name))
        case _:
            return None


def no_cuda_memory() -> RequestError:
    """Why CUDA memory is not registered."""
    return RequestError(
        "CUDA shared memory is not served here", hint="register system shared memory"
    )


def no_cuda_region(name: str) -> RequestError:
    """Why a region of CUDA memory has no status."""
    return RequestError(f"no CUDA memory is registered as region {name!r}")


def _cuda_memory(rest: list[str]) -> Route | None:
    """Nothing can be registered, so that nothing is and everything is unregistered."""

    def missing(_: Call, name: str) -> Response:
        raise no_cuda_region(name)

    def refuse(_: Call) -> Response:
        raise no_cuda_memory()

    match rest:
        case ["status"]:
            return Route("GET", lambda _: _json([]))
        case ["region", name, "status"]:
            return Route("GET", lambda call: missing(call, name))
        case ["region", _, "register"]:
            return Route("POST", refuse)
        case ["unregister"] | ["region", _, "unregister"]:
            return Route("POST", lambda _: http.response(200))
        case _:
            return None

"""Routes of the repository: what devices fetch, whole or by range.

A file whose name carries its sha256 or its version never changes; `timestamp.json` does, and a
root that is not there today may be there tomorrow.
"""

from __future__ import annotations

import re

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from edgekit.fleet.repository import Repository

_SHA256 = re.compile(r"(?:.*/)?([0-9a-f]{64})\.[^/]*\Z")
_FOR_EVER = "public, max-age=31536000, immutable"


def routes(repository: Repository) -> list[Route]:
    """`/repository/…`."""

    async def file(request: Request) -> Response:
        """One file; the ETag of a bundle or a delta is its sha256."""
        name = request.path_params["name"]
        path = await run_in_threadpool(repository.served, name)
        known = _SHA256.match(name)
        if known is None:
            headers = {"cache-control": "no-cache"}
        else:
            headers = {"etag": f'"{known[1]}"', "cache-control": _FOR_EVER}
        return FileResponse(path, media_type="application/octet-stream", headers=headers)

    return [Route("/repository/{name:path}", file)]

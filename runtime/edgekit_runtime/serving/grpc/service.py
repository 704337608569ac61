"""Service: GRPCInferenceService, each method from what HTTP's pages and requests are made of."""

from __future__ import annotations

import ipaddress
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any
from urllib.parse import unquote

from edgekit_runtime.serving import pages, peer, repository, routes, tokens
from edgekit_runtime.serving.access import Access
from edgekit_runtime.serving.address import Tcp
from edgekit_runtime.serving.app import Service
from edgekit_runtime.serving.grpc import calls, convert, status
from edgekit_runtime.serving.grpc import inference_pb2 as pb
from edgekit_runtime.serving.peer import STRANGER, Peer
from edgekit_runtime.serving.shm import Region, Regions, Registration

Context = Any  # grpc.aio.ServicerContext[request, response]


class InferenceService:
    """Answers the methods of one listener.

    A method gets its message and the call's context and returns a message, or raises what
    `status.of` has a code for.

    Args:
        service: what all listeners of the server share.
        access: the listener's rule; it has admitted who calls a method.
        here: where it listens.
    """

    def __init__(self, service: Service, access: Access, *, here: Tcp) -> None:
        self._service = service
        self._access = access
        self._here = here

    # Health and metadata.

    async def server_live(self, _: pb.ServerLiveRequest, __: Context) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=True)

    async def server_ready(self, _: pb.ServerReadyRequest, __: Context) -> pb.ServerReadyResponse:
        ready = all(served.is_ready for served in self._service.models.served())
        return pb.ServerReadyResponse(ready=ready)

    async def model_ready(self, message: pb.ModelReadyRequest, _: Context) -> pb.ModelReadyResponse:
        served = self._service.models.find(message.name, message.version or None)
        return pb.ModelReadyResponse(ready=served.is_ready)

    async def server_metadata(
        self, _: pb.ServerMetadataRequest, __: Context
    ) -> pb.ServerMetadataResponse:
        return convert.page(pb.ServerMetadataResponse, pages.server(self._service.models))

    async def model_metadata(
        self, message: pb.ModelMetadataRequest, _: Context
    ) -> pb.ModelMetadataResponse:
        models = self._service.models
        served = models.find(message.name, message.version or None)
        page = pages.metadata(served, models.versions(message.name))
        return convert.page(pb.ModelMetadataResponse, page)

    async def model_config(
        self, message: pb.ModelConfigRequest, _: Context
    ) -> pb.ModelConfigResponse:
        served = self._service.models.find(message.name, message.version or None)
        return convert.page(pb.ModelConfigResponse, {"config": pages.config(served)})

    async def model_statistics(
        self, message: pb.ModelStatisticsRequest, _: Context
    ) -> pb.ModelStatisticsResponse:
        models = self._service.models
        if message.name:
            page = routes.statistics(models, message.name, message.version or None)
        else:
            page = pages.statistics(models.served())
        return convert.page(pb.ModelStatisticsResponse, page)

    # Inference.

    async def model_infer(
        self, message: pb.ModelInferRequest, context: Context
    ) -> pb.ModelInferResponse:
        return await calls.infer(
            self._service,
            message,
            remaining_s=context.time_remaining(),
            regions=lambda: self._regions(context),
        )

    async def model_stream_infer(
        self, messages: AsyncIterator[pb.ModelInferRequest], context: Context
    ) -> AsyncIterator[pb.ModelStreamInferResponse]:
        token = token_of(context.invocation_metadata())
        async for message in messages:
            try:
                # A stream may be older than the tokens that are valid.
                self._access.admit(token)
                found = await self.model_infer(message, context)
            except Exception as e:  # noqa: BLE001 - one bad request must not end the stream
                said = pb.ModelStreamInferResponse(error_message=status.of(e)[1])
                said.infer_response.id = message.id
                yield said
            else:
                yield pb.ModelStreamInferResponse(infer_response=found)

    # Repository.

    async def repository_index(
        self, message: pb.RepositoryIndexRequest, _: Context
    ) -> pb.RepositoryIndexResponse:
        entries = self._service.repository.index()
        return pb.RepositoryIndexResponse(
            models=[
                pb.RepositoryIndexResponse.ModelIndex(
                    name=entry.name, version=entry.version, state=entry.state, reason=entry.reason
                )
                for entry in entries
                if entry.state == "READY" or not message.ready
            ]
        )

    async def repository_model_load(
        self, message: pb.RepositoryModelLoadRequest, context: Context
    ) -> pb.RepositoryModelLoadResponse:
        await self._change(message, context, self._service.repository.load)
        return pb.RepositoryModelLoadResponse()

    async def repository_model_unload(
        self, message: pb.RepositoryModelUnloadRequest, context: Context
    ) -> pb.RepositoryModelUnloadResponse:
        await self._change(message, context, self._service.repository.unload)
        return pb.RepositoryModelUnloadResponse()

    async def _change(
        self,
        message: pb.RepositoryModelLoadRequest | pb.RepositoryModelUnloadRequest,
        context: Context,
        change: Callable[[str], None],
    ) -> None:
        self._access.admit_admin(token_of(context.invocation_metadata()))
        repository.refuse_overrides(message.parameters)
        name = message.model_name
        await self._service.change(lambda: change(name))

    # Shared memory.

    async def system_shared_memory_status(
        self, message: pb.SystemSharedMemoryStatusRequest, context: Context
    ) -> pb.SystemSharedMemoryStatusResponse:
        said = pb.SystemSharedMemoryStatusResponse()
        for region in self._regions(context).status(message.name or None):
            said.regions[region.name].CopyFrom(_status(region))
        return said

    async def system_shared_memory_register(
        self, message: pb.SystemSharedMemoryRegisterRequest, context: Context
    ) -> pb.SystemSharedMemoryRegisterResponse:
        wanted = Registration(key=message.key, offset=message.offset, byte_size=message.byte_size)
        self._regions(context).register(message.name, wanted)
        return pb.SystemSharedMemoryRegisterResponse()

    async def system_shared_memory_unregister(
        self, message: pb.SystemSharedMemoryUnregisterRequest, context: Context
    ) -> pb.SystemSharedMemoryUnregisterResponse:
        self._regions(context).unregister(message.name or None)
        return pb.SystemSharedMemoryUnregisterResponse()

    async def cuda_shared_memory_status(
        self, message: pb.CudaSharedMemoryStatusRequest, _: Context
    ) -> pb.CudaSharedMemoryStatusResponse:
        if message.name:
            raise routes.no_cuda_region(message.name)
        return pb.CudaSharedMemoryStatusResponse()

    async def cuda_shared_memory_register(
        self, _: pb.CudaSharedMemoryRegisterRequest, __: Context
    ) -> pb.CudaSharedMemoryRegisterResponse:
        raise routes.no_cuda_memory()

    async def cuda_shared_memory_unregister(
        self, _: pb.CudaSharedMemoryUnregisterRequest, __: Context
    ) -> pb.CudaSharedMemoryUnregisterResponse:
        return pb.CudaSharedMemoryUnregisterResponse()

    def _regions(self, context: Context) -> Regions:
        """The shared memory of a client, raising `AccessDenied` where it may have none."""
        return self._service.regions_of(client_of(context.peer(), self._here))


def token_of(metadata: Any) -> bytes | None:
    """Digest of the bearer token in a call's metadata."""
    said: Mapping[str, Any] = dict(metadata or ())
    found = said.get("authorization", "")
    return tokens.presented(found) if isinstance(found, str) else None


def client_of(there: str, here: Tcp) -> Peer:
    """Which local user calls, from gRPC's name of the other end: `ipv4:127.0.0.1:50000`.

    Asked anew for each call, because gRPC does not tell when a connection ends and its port may be
    another user's then.
    """
    kind, _, end = unquote(there).partition(":")
    host, _, port = end.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if kind not in ("ipv4", "ipv6") or not port.isdigit():
        return STRANGER
    # A listener for every address has its end of a local connection where the client's is.
    ours = here.host if _is_loopback_address(here.host) else host
    return peer.of_tcp((host, int(port)), (ours, here.port))


def _is_loopback_address(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _status(region: Region) -> pb.SystemSharedMemoryStatusResponse.RegionStatus:
    return pb.SystemSharedMemoryStatusResponse.RegionStatus(
        name=region.name, key=region.key, offset=region.offset, byte_size=region.byte_size
    )

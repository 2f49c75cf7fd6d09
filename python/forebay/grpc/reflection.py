"""Server reflection, so that `grpcurl` and its like need no protos.

Two versions with the same messages under two names: v1, and v1alpha for older tools.
Source: https://github.com/grpc/grpc/blob/master/doc/server-reflection.md
"""

from collections.abc import AsyncIterator, Iterable

import grpc
from google.protobuf import descriptor_pool
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_reflection.v1alpha import reflection_pb2  # type: ignore[import-untyped]
from grpc_reflection.v1alpha.reflection import aio  # type: ignore[import-untyped]

from forebay.grpc.call import Handler

ALPHA = "grpc.reflection.v1alpha.ServerReflection"
STABLE = "grpc.reflection.v1.ServerReflection"


def handlers(services: Iterable[str]) -> dict[str, Handler]:
    """The methods of both versions, which tell of `services` and of themselves."""
    _describe_stable()
    servicer = aio.ReflectionServicer((*services, ALPHA, STABLE))
    request = reflection_pb2.ServerReflectionRequest
    answer = reflection_pb2.ServerReflectionResponse

    async def serve(
        requests: AsyncIterator[reflection_pb2.ServerReflectionRequest], context: object
    ) -> AsyncIterator[reflection_pb2.ServerReflectionResponse]:
        async for found in servicer.ServerReflectionInfo(requests, context):
            yield found

    handler = grpc.stream_stream_rpc_method_handler(
        serve, request.FromString, answer.SerializeToString
    )
    return {f"/{name}/ServerReflectionInfo": handler for name in (ALPHA, STABLE)}


def _describe_stable() -> None:
    """Have v1 known to the pool of descriptors: it is v1alpha under another name."""
    pool = descriptor_pool.Default()
    file = FileDescriptorProto()
    reflection_pb2.DESCRIPTOR.CopyToProto(file)
    old, new = file.package, STABLE.rpartition(".")[0]
    file.name = "grpc/reflection/v1/reflection.proto"
    file.package = new
    for message in file.message_type:
        for field in message.field:
            if field.type_name:
                field.type_name = field.type_name.replace(f".{old}.", f".{new}.")
    for service in file.service:
        for method in service.method:
            method.input_type = method.input_type.replace(f".{old}.", f".{new}.")
            method.output_type = method.output_type.replace(f".{old}.", f".{new}.")
    pool.AddSerializedFile(file.SerializeToString())

"""Health and reflection."""

import grpc
import pytest
from forebay.grpc.v1 import inference_pb2 as pb
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2  # type: ignore[import-untyped]

from tests.support.grpc_calls import ADMIN, INFERENCE

SERVING = health_pb2.HealthCheckResponse.SERVING
HEALTH = "grpc.health.v1.Health"


@pytest.mark.parametrize("service", ["", INFERENCE, ADMIN])
def test_each_service_says_how_it_is(opened: grpc.Channel, service: str) -> None:
    stub = health_pb2_grpc.HealthStub(opened)
    request = health_pb2.HealthCheckRequest(service=service)
    assert stub.Check(request, timeout=5).status == SERVING
    watch = stub.Watch(request, timeout=10)
    assert next(watch).status == SERVING
    watch.cancel()


def test_a_service_that_nobody_knows(opened: grpc.Channel) -> None:
    stub = health_pb2_grpc.HealthStub(opened)
    request = health_pb2.HealthCheckRequest(service="nope")
    with pytest.raises(grpc.RpcError) as caught:
        stub.Check(request, timeout=5)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    watch = stub.Watch(request, timeout=10)
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    watch.cancel()


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_reflection(opened: grpc.Channel, version: str) -> None:
    reflect = opened.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        reflection_pb2.ServerReflectionRequest.SerializeToString,
        reflection_pb2.ServerReflectionResponse.FromString,
    )

    def ask(**wanted: str) -> reflection_pb2.ServerReflectionResponse:
        request = reflection_pb2.ServerReflectionRequest(**wanted)
        (answer,) = reflect(iter([request]), timeout=5)
        return answer

    listed = {s.name for s in ask(list_services="").list_services_response.service}
    assert {INFERENCE, ADMIN, HEALTH} <= listed
    # grpcurl describes every service that is listed.
    for name in listed:
        found = ask(file_containing_symbol=name).file_descriptor_response
        files = [FileDescriptorProto.FromString(data) for data in found.file_descriptor_proto]
        known = {f"{file.package}.{service.name}" for file in files for service in file.service}
        assert name in known
    own = ask(file_by_filename=pb.DESCRIPTOR.name).file_descriptor_response
    assert pb.DESCRIPTOR.serialized_pb in own.file_descriptor_proto
    assert ask(file_containing_symbol="no.Such").error_response.error_code == 5

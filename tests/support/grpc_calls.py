"""A gRPC client that shows exactly what came: message, metadata, status and its details."""

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from forebay.grpc.v1 import inference_pb2 as pb
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

INFERENCE = "forebay.v1.InferenceService"
ADMIN = "forebay.v1.AdminService"
TIMEOUT_S = 20.0

Pairs = Sequence[tuple[str, str]]


@dataclass
class Told:
    """What a call came to. messages: the answer's, as far as they came."""

    code: grpc.StatusCode
    message: str
    initial: dict[str, Any] = field(default_factory=dict)
    trailing: dict[str, Any] = field(default_factory=dict)
    messages: list[Any] = field(default_factory=list)

    @property
    def only(self) -> Any:
        """The one message of a call that went well."""
        assert self.code is grpc.StatusCode.OK, (self.code, self.message)
        assert len(self.messages) == 1
        return self.messages[0]

    def detail(self, name: str) -> Any:
        """The one detail of that kind, such as ``ErrorInfo``; None without one."""
        status = status_pb2.Status.FromString(self.trailing["grpc-status-details-bin"])
        assert status.code == self.code.value[0]
        assert status.message == self.message
        kind = getattr(error_details_pb2, name)
        found = [kind.FromString(d.value) for d in status.details if d.Is(kind.DESCRIPTOR)]
        assert len(found) <= 1
        return found[0] if found else None

    @property
    def brief(self) -> tuple[str, str, str | None]:
        """Status, reason and, where there is one, OpenAI's code of an error."""
        info = self.detail("ErrorInfo")
        return self.code.name, info.reason, info.metadata.get("code")


def chat(model: str = "tiny", content: str = "hi", **fields: Any) -> pb.ChatCompletionRequest:
    """A chat request."""
    message = pb.ChatMessage(role=pb.ROLE_USER, content=content)
    return pb.ChatCompletionRequest(model=model, messages=[message], **fields)


@contextmanager
def channel(
    address: str, credentials: grpc.ChannelCredentials | None = None, **options: Any
) -> Iterator[grpc.Channel]:
    """A channel that tries nothing again."""
    arguments = [("grpc.enable_retries", 0), *options.items()]
    if credentials is None:
        opened = grpc.insecure_channel(address, arguments)
    else:
        opened = grpc.secure_channel(address, credentials, arguments)
    try:
        yield opened
    finally:
        opened.close()


def method(name: str, service: str = INFERENCE) -> Any:
    """The descriptor of a method."""
    from forebay.grpc.v1 import admin_pb2

    files = {INFERENCE: pb, ADMIN: admin_pb2}
    found = files[service].DESCRIPTOR.services_by_name[service.rpartition(".")[2]]
    return found.methods_by_name[name]


def begin(
    opened: grpc.Channel,
    name: str,
    request: Message | bytes,
    *,
    key: str | None = None,
    metadata: Pairs = (),
    service: str = INFERENCE,
    timeout_s: float | None = TIMEOUT_S,
) -> Any:
    """A call whose messages are read one by one."""
    found = method(name, service)
    data = request if isinstance(request, bytes) else request.SerializeToString()
    read = GetMessageClass(found.output_type).FromString  # type: ignore[attr-defined]
    carried = list(metadata)
    if key is not None:
        carried.append(("authorization", f"Bearer {key}"))
    start = opened.unary_stream(f"/{service}/{name}", response_deserializer=read)
    return start(data, timeout=timeout_s, metadata=carried)


def finish(call: Any) -> Told:
    """Read a call to its end."""
    messages: list[Any] = []
    with contextlib.suppress(grpc.RpcError):
        for message in call:
            messages.append(message)
    return Told(
        call.code(),
        call.details(),
        dict(call.initial_metadata()),
        dict(call.trailing_metadata()),
        messages,
    )


def ask(opened: grpc.Channel, name: str, request: Message | bytes, **options: Any) -> Told:
    """A whole call; options as `begin` takes them."""
    return finish(begin(opened, name, request, **options))

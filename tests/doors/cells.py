"""Which cells the matrix has, and why it lacks the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.support.doors.door import Api, Door
from tests.support.doors.grpc_door import Grpc, GrpcStream
from tests.support.doors.messages import Messages, MessagesStream
from tests.support.doors.openai_http import Http, HttpStream
from tests.support.doors.responses import Responses, ResponsesStream
from tests.support.doors.websocket import ResponsesWebSocket, WebSocket, WebSocketWhole

if TYPE_CHECKING:
    from tests.doors.conftest import Stage

DOORS: dict[type[Door], Callable[[Stage], Door]] = {
    Http: lambda stage: Http(stage.gateway.port),
    HttpStream: lambda stage: HttpStream(stage.gateway.port),
    WebSocket: lambda stage: WebSocket(stage.gateway.port),
    WebSocketWhole: lambda stage: WebSocketWhole(stage.gateway.port),
    Grpc: lambda stage: Grpc(stage.grpc_port),
    GrpcStream: lambda stage: GrpcStream(stage.grpc_port),
    Responses: lambda stage: Responses(stage.gateway.port),
    ResponsesStream: lambda stage: ResponsesStream(stage.gateway.port),
    ResponsesWebSocket: lambda stage: ResponsesWebSocket(stage.gateway.port),
    Messages: lambda stage: Messages(stage.gateway.port),
    MessagesStream: lambda stage: MessagesStream(stage.gateway.port),
}
"""Every door, and how it is found."""

ONE_PIECE = "a vector is one answer: no API has a stream of it"
CHATS = "an API of conversations: it has no way to ask for anything else"
SOCKETS = "on a socket are chats alone: completions and vectors have no events to wait for there"
ABSENT: dict[tuple[type[Door], Api], str] = {
    (HttpStream, Api.EMBEDDING): ONE_PIECE,
    (GrpcStream, Api.EMBEDDING): ONE_PIECE,
    **{
        (door, api): SOCKETS
        for door in (WebSocket, WebSocketWhole)
        for api in (Api.COMPLETION, Api.EMBEDDING)
    },
    **{
        (door, api): CHATS
        for door in (Responses, ResponsesStream, ResponsesWebSocket, Messages, MessagesStream)
        for api in (Api.COMPLETION, Api.EMBEDDING)
    },
}
"""Cells that there are not, and why."""


@dataclass(frozen=True)
class Cell:
    """A door and what it is asked for."""

    door: type[Door]
    api: Api

    def __str__(self) -> str:
        return f"{self.door.name}-{self.api}"


CELLS = [Cell(door, api) for door in DOORS for api in door.apis]


def door_of(stage: Stage, cell: Cell) -> Door:
    """A cell's door at this gateway."""
    return DOORS[cell.door](stage)

"""The gRPC front end. The contract is `protos/forebay/v1`, its Python in `forebay.grpc.v1`.

`GrpcServer` is imported late: clients take the generated code alone.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from forebay.grpc.server import GrpcServer

__all__ = ["GrpcServer"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from forebay.grpc.server import GrpcServer

    return GrpcServer

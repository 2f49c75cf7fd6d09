"""The gRPC front end. So far it answers health checks (`grpc.health.v1`) and nothing else."""

from forebay.grpc.server import GrpcServer

__all__ = ["GrpcServer"]

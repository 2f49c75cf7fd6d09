"""The messages of `forebay.v1`, for those who prefer them to plain values."""

from forebay.grpc.v1.inference_pb2 import *  # noqa: F403  # generated, and all of it is meant

"""KEDA's external scaler: `forebay-engine autoscale --keda HOST:PORT`.

A ScaledObject's trigger names the model in its metadata (`model`; without it, the only one of the
configuration). Our number is exact, and the HPA is to divide it by 1: one metric, target 1, value
the desired replicas. Push (`external-push`) tells changes of zero and one at once.
"""

import logging
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

import grpc

from forebay_engine.autoscale.board import Board, Decision
from forebay_engine.autoscale.kedapb import externalscaler_pb2 as pb
from forebay_engine.autoscale.kedapb import externalscaler_pb2_grpc as pb_grpc

log = logging.getLogger(__name__)

METRIC = "forebay-desired-replicas"
TARGET = 1.0

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]


class ExternalScaler(pb_grpc.ExternalScalerServicer):
    """Answers from the board. models: those of the configuration."""

    def __init__(self, board: Board, models: list[str]) -> None:
        self._board = board
        self._models = models

    async def IsActive(
        self, request: pb.ScaledObjectRef, context: "Context"
    ) -> pb.IsActiveResponse:
        """Whether there is to be a replica."""
        decision = await self._decision(request, context)
        return pb.IsActiveResponse(result=decision.wanted.replicas > 0)

    async def StreamIsActive(
        self, request: pb.ScaledObjectRef, context: "Context"
    ) -> AsyncIterator[pb.IsActiveResponse]:
        """At once, and whenever it changes. What readings say that are stale is no change."""
        model = await self._model(request, context)
        told: bool | None = None
        while True:
            # What is put while a message is sent is seen in the next round.
            seen = self._board.version
            decision = self._board.decisions.get(model)
            if decision is not None and decision.wanted.reason != "stale":
                active = decision.wanted.replicas > 0
                if active != told:
                    told = active
                    yield pb.IsActiveResponse(result=active)
            await self._board.after(seen)

    async def GetMetricSpec(
        self, request: pb.ScaledObjectRef, context: "Context"
    ) -> pb.GetMetricSpecResponse:
        """The one metric; its value is the number of replicas."""
        await self._model(request, context)
        return _spec()

    async def StreamMetricSpec(
        self, request: pb.ScaledObjectRef, context: "Context"
    ) -> AsyncIterator[pb.GetMetricSpecResponse]:
        """Once: it never changes. The stream stays open, as KEDA would call again."""
        await self._model(request, context)
        yield _spec()
        while True:
            await self._board.after(self._board.version)

    async def GetMetrics(
        self, request: pb.GetMetricsRequest, context: "Context"
    ) -> pb.GetMetricsResponse:
        """The desired replicas."""
        if request.metricName != METRIC:
            await context.abort(
                grpc.StatusCode.NOT_FOUND, f"no metric {request.metricName!r}; there is {METRIC}"
            )
        decision = await self._decision(request.scaledObjectRef, context)
        replicas = decision.wanted.replicas
        value = pb.MetricValue(
            metricName=METRIC, metricValue=replicas, metricValueFloat=float(replicas)
        )
        return pb.GetMetricsResponse(metricValues=[value])

    async def _model(self, ref: pb.ScaledObjectRef, context: "Context") -> str:
        named = ref.scalerMetadata.get("model")
        if named is None and len(self._models) == 1:
            return self._models[0]
        if named not in self._models:
            which = "metadata.model is missing" if named is None else f"no model {named!r}"
            await context.abort(
                grpc.StatusCode.INVALID_ARGUMENT, f"{which}; there are {', '.join(self._models)}"
            )
        assert named is not None
        return named

    async def _decision(self, ref: pb.ScaledObjectRef, context: "Context") -> Decision:
        """Raises, by the call: UNAVAILABLE until something was decided or while readings are stale,
        so
        that KEDA uses its fallback rather than an old number."""
        model = await self._model(ref, context)
        decision = self._board.decisions.get(model)
        if decision is None or decision.wanted.reason == "stale":
            await context.abort(grpc.StatusCode.UNAVAILABLE, f"{model}: no reading is fresh enough")
        assert decision is not None
        return decision


def _spec() -> pb.GetMetricSpecResponse:
    spec = pb.MetricSpec(metricName=METRIC, targetSize=int(TARGET), targetSizeFloat=TARGET)
    return pb.GetMetricSpecResponse(metricSpecs=[spec])


async def serve(
    board: Board, models: list[str], address: str, bound: Callable[[int], None] | None = None
) -> grpc.aio.Server:
    """Serve at `HOST:PORT`. bound: told the port. Raises: OSError where it is taken."""
    server = grpc.aio.server()
    register: Any = pb_grpc.add_ExternalScalerServicer_to_server
    register(ExternalScaler(board, models), server)
    try:
        port = server.add_insecure_port(address)
    except RuntimeError as error:
        raise OSError(f"{address}: {error}") from None
    if not port:
        raise OSError(f"{address}: cannot be bound")
    await server.start()
    if bound is not None:
        bound(port)
    return server

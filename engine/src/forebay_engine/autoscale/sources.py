"""Asks gateways, engines and agents; what does not answer is left out, and its age is told."""

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from forebay_engine.autoscale.config import Config, Engine, Model
from forebay_engine.autoscale.metrics_text import Samples, read
from forebay_engine.autoscale.readings import EngineReading, Snapshot, of_engine
from forebay_engine.autoscale.summed import Summed

if TYPE_CHECKING:
    import httpx

log = logging.getLogger(__name__)


class _Load(msgspec.Struct):
    running: float = 0.0
    queued: float = 0.0
    kv_used: float | None = None
    age_s: float = 0.0


class _State(msgspec.Struct):
    """An agent's `/state`, so far as it is used; more fields may come."""

    state: str
    load: _Load | None = None
    """None while it is unknown: nothing is up that could say it."""
    parked: bool = False


class Sources:
    """Reads all models' snapshots. One `http` client for all, whose time-out is the caller's."""

    def __init__(
        self, config: Config, http: "httpx.AsyncClient", clock: Callable[[], float]
    ) -> None:
        self._config = config
        self._http = http
        self._clock = clock
        self._heard: dict[str, float] = {}
        self._summed = Summed()

    async def read(self) -> dict[str, Snapshot]:
        """A snapshot of each model, by its name."""
        gateways, age = await self._all_gateways()
        models = self._config.models
        engines = await asyncio.gather(*(self._engines(model) for model in models.values()))
        now = self._clock()
        return {
            name: Snapshot(now, gateways, [one for one in of if one is not None], age)
            for name, of in zip(models, engines, strict=True)
        }

    async def _all_gateways(self) -> tuple[Samples | None, float]:
        """The sum of what all gateways say; one that is silent counts with what it said last."""
        urls = self._config.gateways
        key = self._config.gateway_key
        texts = await asyncio.gather(
            *(self._text(f"{url.rstrip('/')}/metrics", key) for url in urls)
        )
        now = self._clock()
        for url, text in zip(urls, texts, strict=True):
            samples = None if text is None else _parsed(text, url)
            if samples is not None:
                self._heard[url] = now
                self._summed.put(url, samples)
        if not self._heard:
            return None, 0.0
        return self._summed.total(), now - min(self._heard.values())

    async def _engines(self, model: Model) -> list[EngineReading | None]:
        return list(await asyncio.gather(*(self._engine(engine) for engine in model.engines)))

    async def _engine(self, engine: Engine) -> EngineReading | None:
        """What an engine says; None where neither it nor its agent answers: it is not there."""
        state: _State | None = None
        if engine.agent is not None:
            text = await self._text(f"{engine.agent.rstrip('/')}/state", engine.key)
            try:
                state = None if text is None else msgspec.json.decode(text, type=_State)
            except msgspec.DecodeError as error:
                log.warning("%s/state: %s", engine.agent, error)
        found: EngineReading | None = None
        if engine.metrics is not None:
            text = await self._text(engine.metrics, engine.key)
            samples = None if text is None else _parsed(text, engine.metrics)
            found = None if samples is None else of_engine(samples)
        if state is None:
            return found
        if found is None:
            load = state.load or _Load()
            return EngineReading(state.state, load.running, load.queued, load.kv_used)
        return EngineReading(state.state, found.running, found.queued, found.kv_used)

    async def _text(self, url: str, key: str | None) -> str | None:
        import httpx

        headers = {"authorization": f"Bearer {key}"} if key else {}
        try:
            answer = await self._http.get(url, headers=headers)
            answer.raise_for_status()
        except httpx.HTTPStatusError as error:
            log.warning("%s: answered %d", url, error.response.status_code)
            return None
        except httpx.HTTPError as error:
            log.warning("%s: %s", url, type(error).__name__)
            return None
        return answer.text


def _parsed(text: str, url: str) -> Samples | None:
    try:
        return read(text)
    except ValueError:
        log.warning("%s: what it answers is not in Prometheus' text format", url)
        return None

"""The members of a pool: their profiles, the GPUs that they have, and what their agent may say."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from forebay_engine.serve.engines import EngineKind
from forebay_engine.serve.gpu import Gpu
from forebay_engine.serve.http import Http, Unanswered
from forebay_engine.serve.profile import Profile
from forebay_engine.serve.supervisor import Supervisor

_FLAGS = {
    ("sglang", "memory"): "--enable-memory-saver",
    ("sglang", "gate"): "--gated-launch-port",
    ("vllm", "memory"): "--enable-sleep-mode",
}
"""What an engine has to be started with so that it can be parked so."""


class PoolMember(Supervisor):
    """A supervisor whose words from outside are wishes: the pool starts it when it may.

    on_word: called with `wake`, `park` or `drain` when somebody says that to the agent.
    """

    def __init__(
        self, profile: Profile, kind: EngineKind, *, on_word: Callable[[str], None], **rest: Any
    ) -> None:
        super().__init__(profile, kind, **rest)
        self._on_word = on_word

    async def wake(self) -> None:
        self._on_word("wake")

    async def park(self) -> None:
        self._on_word("park")
        await super().park()

    async def drain(self, grace_s: float) -> None:
        self._on_word("drain")
        # One that had crashed is down by that word from now on, so the pool leaves it alone.
        self.error = ""
        await super().drain(grace_s)

    async def start(self) -> None:
        """Wake it now."""
        await super().wake()

    async def put_by(self) -> None:
        """Park it, by the pool's own plan."""
        await super().park()

    async def put(self) -> bool:
        """`put_by`, and wait until it is parked or ended. Whether its memory was kept after all."""
        await self.put_by()
        if (parking := self._parking) is not None:
            await asyncio.wait((parking,))
        return self.state == "cold" and not self.parked

    async def rest(self, grace_s: float) -> None:
        """Stop admitting, let requests finish, end the process: → cold."""
        await self._end(grace_s, "cold")

    @property
    def starting(self) -> bool:
        """It is on its way to its gate."""
        return self.state == "cold" and not self.parked and self._life is not None

    @property
    def parking(self) -> bool:
        """It drains, to be parked."""
        return self.state == "draining" and self._parking is not None

    @property
    def http(self) -> Http:
        """How the engine is asked."""
        return self._client.http


def profiles(profile: Profile, count: int, gpus: Sequence[Gpu]) -> list[tuple[Profile, int]]:
    """Each member's profile, and its place: the number of the GPUs that it has.

    Raises ValueError: there are too few GPUs, or ports.
    """
    check_park(profile, gpus)
    if not gpus:
        return [(profile.member(index), index) for index in range(count)]
    size = profile.tensor_parallel or (len(gpus) if count == 1 else 1)
    groups = len(gpus) // size
    if groups == 0:
        raise ValueError(f"tensor_parallel: {size} GPUs a member, and there are {len(gpus)}")
    if groups < count and profile.park == "memory":
        raise ValueError(
            f"park: memory needs GPUs for each member: {count} members of {size}, and there are "
            f"{len(gpus)}; park: gate lets members share them"
        )
    found = []
    for index in range(count):
        place = index % groups
        own = gpus[place * size : (place + 1) * size]
        env = {**profile.env, "CUDA_VISIBLE_DEVICES": ",".join(str(gpu.index) for gpu in own)}
        member = profile.member(index)
        found.append((msgspec.structs.replace(member, env=env, tensor_parallel=size), place))
    return found


def check_park(profile: Profile, gpus: Sequence[Gpu]) -> None:
    """Refuse a way to park that cannot work. Raises ValueError, which names the field.

    An SGLang that was started without its memory saver answers the calls with 200 and keeps its
    memory, so that nobody would notice.
    """
    if profile.park == "stop":
        return
    flag = _FLAGS.get((profile.kind, profile.park))
    if flag is None:
        raise ValueError(f"park: {profile.kind} has no {profile.park}")
    if profile.command:
        if not any(word == flag or word.startswith(f"{flag}=") for word in profile.command):
            raise ValueError(f"park: {profile.park} needs {flag} in command")
    elif profile.park == "memory" and not gpus:
        raise ValueError("park: memory needs CUDA, and no GPU is seen")


async def saves_memory(http: Http, profile: Profile) -> bool | None:
    """Whether a running SGLang says that it has its memory saver; None: it does not say.

    Other kinds refuse the call themselves when they cannot, so they are not asked: True.
    """
    if profile.kind != "sglang":
        return True
    key = profile.api_key
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    try:
        status, body = await http.request("GET", f"{profile.url}/server_info", headers=headers)
        said = msgspec.json.decode(body, type=_ServerInfo) if status == 200 else None
    except (Unanswered, msgspec.MsgspecError):
        return None
    return None if said is None else said.enable_memory_saver


class _ServerInfo(msgspec.Struct):
    enable_memory_saver: bool | None = None

"""What is asked of an engine before it counts as warm."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING

from forebay_engine.serve.client import Client, NotWarm
from forebay_engine.serve.engines import EngineKind
from forebay_engine.serve.http import Unanswered

if TYPE_CHECKING:
    from forebay_engine.serve.profile import Profile


async def warm_up(
    client: Client, profile: Profile, kind: EngineKind, on_first_token: Callable[[], None]
) -> None:
    """Send the profile's prompts one after another. Raises NotWarm: one was not answered."""
    if not kind.chat:
        return
    for number, prompt in enumerate(profile.warmup.prompts, 1):
        body = {
            "model": profile.served_name,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": profile.warmup.max_tokens,
            "temperature": 0,
            "stream": True,
        }
        try:
            status, answer = await client.http.stream(
                f"{profile.url}/v1/chat/completions",
                json.dumps(body).encode(),
                on_token=on_first_token,
                headers=client.authorization,
                timeout_s=profile.warmup.timeout_s,
            )
        except Unanswered as error:
            raise NotWarm(f"warm-up prompt {number} was not answered: {error}") from None
        if status != 200:
            text = answer[:300].decode("utf-8", "replace")
            raise NotWarm(f"warm-up prompt {number} was answered with {status}: {text}")

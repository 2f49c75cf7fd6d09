"""The command and environment that a profile comes to. Pure."""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from forebay_engine.serve.engines import EngineKind
from forebay_engine.serve.gpu import Gpu

if TYPE_CHECKING:
    from forebay_engine.serve.profile import Profile

MASK = "********"
_SECRET = re.compile(r"SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|APIKEY", re.IGNORECASE)
_SECRET_WORDS = {"KEY", "KEYS", "TOKEN", "PASS", "PWD", "AUTH", "AUTHORIZATION", "COOKIE"}
"""Whole words of a name: `--tokenizer` and `--max-num-batched-tokens` are no secrets."""
_USERINFO = re.compile(r"(?<=://)[^/?#\s@]*(?:@[^/?#\s@]*)*(?=@)")
_PLACE = re.compile(r"\{(host|port|model|name|gate)\}")


@dataclass(frozen=True)
class Plan:
    """argv, what is added to the environment, and files to be written first (path, text)."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    files: Mapping[str, str]


def plan(profile: Profile, kind: EngineKind, gpus: Sequence[Gpu]) -> Plan:
    """Put it together. Raises ValueError: these GPUs cannot do what the profile asks."""
    if profile.command:
        values = {
            "host": profile.host,
            "port": str(profile.port),
            "model": profile.model,
            "name": profile.served_name,
        }
        gate = kind.gate(profile)
        if gate is not None and gate.port is not None:
            values["gate"] = str(gate.port)
        argv = [
            _PLACE.sub(lambda found: values.get(found[1], found[0]), word)
            for word in profile.command
        ]
    else:
        argv = kind.argv(profile, gpus)
    # Python holds back what it prints to a pipe, and the log would be told too late.
    env = {"PYTHONUNBUFFERED": "1", **caches(profile), **kind.env(profile, gpus), **profile.env}
    return Plan(tuple(argv), env, {} if profile.command else kind.files(profile, gpus))


def write(planned: Plan) -> None:
    """Write the plan's files. Blocks. Raises OSError."""
    for path, text in planned.files.items():
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(text)


def caches(profile: Profile) -> dict[str, str]:
    """Where compiled kernels and graphs are kept between starts, one folder a kind of engine.

    They are keyed by versions and GPU in themselves; what cannot be used is compiled anew.
    """
    if not profile.cache_dir:
        return {}
    root = f"{profile.cache_dir}/{profile.kind}"
    return {
        "TORCHINDUCTOR_CACHE_DIR": f"{root}/inductor",
        "TRITON_CACHE_DIR": f"{root}/triton",
        "FLASHINFER_WORKSPACE_BASE": f"{root}/flashinfer",
        "CUDA_CACHE_PATH": f"{root}/cuda",
    }


def secret(name: str) -> bool:
    """Whether a variable or a flag of that name holds a secret."""
    words = re.split(r"[^A-Z0-9]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).upper())
    return bool(_SECRET.search(name)) or not _SECRET_WORDS.isdisjoint(words)


def shown(planned: Plan, profile: Profile) -> str:
    """As lines of a shell, without secrets."""
    lines = [
        f"{name}={MASK if secret(name) else shlex.quote(_without_user(value))}"
        for name, value in sorted(planned.env.items())
    ]
    said = " \\\n".join([*lines, shlex.join(masked(planned.argv, profile))])
    files = [f"# {path}:\n{textwrap.indent(text, '#   ')}" for path, text in planned.files.items()]
    return "\n".join([said, *files]).rstrip()


def masked(argv: Sequence[str], profile: Profile) -> list[str]:
    """Arguments without the values of flags that name secrets, and without the API key."""
    words: list[str] = []
    for word in argv:
        after_flag = bool(words) and words[-1].startswith("--") and "=" not in words[-1]
        flag, mark, _ = word.partition("=")
        if after_flag and secret(words[-1]) and not word.startswith("--"):
            word = MASK
        elif mark and flag.startswith("--") and secret(flag):
            word = f"{flag}={MASK}"
        words.append(conceal(_without_user(word), profile))
    return words


def _without_user(text: str) -> str:
    """Without the user and password of a URL in it."""
    return _USERINFO.sub(MASK, text)


def conceal(text: str, profile: Profile) -> str:
    """Without the API key."""
    return text.replace(profile.api_key, MASK) if profile.api_key else text

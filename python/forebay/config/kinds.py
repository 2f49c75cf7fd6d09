"""Kinds of upstream as the configuration knows them: their names, and what each has to be told.

What a kind does on the wire is in `forebay.upstreams`, a file a kind of the same name.
"""

from typing import Literal, NamedTuple

UpstreamKind = Literal[
    "sglang",
    "vllm",
    "tgi",
    "trtllm",
    "modal",
    "baseten",
    "runpod",
    "together",
    "fireworks",
    "anyscale",
    "openai",
    "anthropic",
    "gemini",
    "bedrock",
    "vertex",
    "azure",
    "openrouter",
    "litellm",
    "openai_compatible",
]

PARTS = ("region", "project", "location", "api_version", "deployments", "api")
"""Fields of an upstream that only some kinds have."""


class Login(NamedTuple):
    """One set of ``credentials`` that works by itself: what has to be there, and what may."""

    needs: tuple[str, ...]
    may: tuple[str, ...] = ()


class Extra(NamedTuple):
    """A package that is installed apart (``forebay[name]``).

    module: what it is imported as. unless: fields, dotted, any of which makes do without it.
    """

    name: str
    module: str
    unless: tuple[str, ...] = ()


class Form(NamedTuple):
    """What the section of one kind looks like.

    url: has to be given: there is no address for all.
    needs, may: of `PARTS`, what has to be there and what may.
    key: takes an ``api_key``. needs_key: has to have one at the kind's own address.
    logins: sets of ``credentials``, of which one is chosen.
    both: ``credentials`` may stand beside ``api_key``.
    lists: its models can be asked for, so that ``discover`` works.
    responses: may have OpenAI's Responses beside chat.
    extra: a package that it cannot do without.
    agent: is an engine that an ``agent`` may stand beside.
    """

    url: bool = True
    needs: tuple[str, ...] = ()
    may: tuple[str, ...] = ()
    key: bool = True
    needs_key: bool = False
    logins: tuple[Login, ...] = ()
    both: bool = False
    lists: bool = True
    responses: bool = False
    extra: Extra | None = None
    agent: bool = False


_OWN = Form()
_ENGINE = Form(agent=True)
_BOTH = Form(responses=True)
_ENGINE_BOTH = Form(responses=True, agent=True)
_MANAGED = Form(url=False, needs_key=True)
_MANAGED_BOTH = Form(url=False, needs_key=True, responses=True)
_CLIENT = ("tenant_id", "client_id", "client_secret")

FORMS: dict[UpstreamKind, Form] = {
    "sglang": _ENGINE_BOTH,
    "vllm": _ENGINE_BOTH,
    "tgi": _ENGINE,
    "trtllm": _ENGINE_BOTH,
    "modal": Form(logins=(Login(("key", "secret")),), both=True),
    "baseten": _MANAGED,
    "runpod": Form(),
    "together": _MANAGED,
    "fireworks": _MANAGED_BOTH,
    "anyscale": _OWN,
    "openai": _MANAGED_BOTH,
    "anthropic": Form(url=False, needs_key=True, may=("api_version",)),
    "gemini": Form(url=False, needs_key=True, may=("api",)),
    "bedrock": Form(
        url=False,
        needs=("region",),
        may=("api",),
        logins=(
            Login(("access_key_id", "secret_access_key"), ("session_token",)),
            Login(("profile",)),
        ),
        lists=False,
        responses=True,
        extra=Extra("bedrock", "botocore", ("api_key", "credentials.access_key_id")),
    ),
    "vertex": Form(
        url=False,
        needs=("project", "location"),
        may=("api",),
        key=False,
        logins=(Login(("file",)),),
        lists=False,
        extra=Extra("vertex", "google.auth"),
    ),
    "azure": Form(
        may=("api_version", "deployments"),
        logins=(Login(_CLIENT, ("authority",)), Login((), ("client_id", "authority"))),
        lists=False,
        responses=True,
        extra=Extra("azure", "azure.identity", ("api_key",)),
    ),
    "openrouter": _MANAGED_BOTH,
    "litellm": _BOTH,
    "openai_compatible": _ENGINE_BOTH,
}
"""Every kind's form."""

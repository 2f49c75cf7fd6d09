"""File and environment to one checked, frozen `Config`."""

import difflib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

import msgspec

from forebay.config.check_model import check_references, checked_model
from forebay.config.check_upstream import checked_upstream
from forebay.config.document import Document
from forebay.config.document import Path as FieldPath
from forebay.config.errors import ConfigError
from forebay.config.kinds import UpstreamKind
from forebay.config.schema import (
    Api,
    Config,
    LogFormat,
    LogLevel,
    Model,
    OnDisconnect,
    Policy,
    PromptLogs,
    Server,
    StickyBy,
    Upstream,
    check_database_url,
    check_otlp_endpoint,
    check_redis_url,
    decode_log_key,
    normal_url,
    parse_address,
)

ENVIRONMENT_UPSTREAM = "engine"
"""Name of the upstream that ``INFERENCE_URL`` makes."""

_MAX_FILE_BYTES = 4 * 1024 * 1024
_T = TypeVar("_T")
_AT = re.compile(r"^(?P<reason>.*?)(?: - at `(?P<path>\$.*)`)?$", re.DOTALL)
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<name>.*)`", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(?P<name>.*)`", re.DOTALL)
_STEP = re.compile(r"\.(?P<name>[A-Za-z_][A-Za-z0-9_]*)|\[(?P<index>\d+)\]")
_CHOICES: dict[str | int, Any] = {
    "server": Server,
    "kind": UpstreamKind,
    "policy": Policy,
    "api": Api,
    "on_disconnect": OnDisconnect,
    "by": StickyBy,
    "level": LogLevel,
    "format": LogFormat,
}
# Environment variable -> field. Unknown FOREBAY_* variables are ignored on purpose: Kubernetes
# injects FOREBAY_SERVICE_HOST, FOREBAY_PORT and more for a service of that name.
_OVERRIDES: dict[str, tuple[str, str]] = {
    "FOREBAY_HTTP": ("listen", "http"),
    "FOREBAY_GRPC": ("listen", "grpc"),
    "FOREBAY_SERVER": ("listen", "server"),
    "FOREBAY_LOG_LEVEL": ("log", "level"),
    "FOREBAY_LOG_FORMAT": ("log", "format"),
}


Judge = Callable[[list[str]], tuple[int | None, str] | None]
"""Looks at ``prompt_logs.patterns``: which one will not do, None for all together, and why."""


def load(path: Path | None, env: Mapping[str, str], *, bad_pattern: Judge | None = None) -> Config:
    """Read a configuration.

    path: YAML file; None takes ``FOREBAY_CONFIG``, and without that the environment alone.
    env: ``FOREBAY_HTTP``, ``FOREBAY_GRPC``, ``FOREBAY_SERVER``, ``FOREBAY_LOG_LEVEL`` and
        ``FOREBAY_LOG_FORMAT``
        win over the file; ``DATABASE_URL`` and ``REDIS_URL`` fill in where the file has no
        ``database_url`` and ``redis_url``;
        ``INFERENCE_URL`` (and ``INFERENCE_API_KEY``) make one SGLang upstream named ``engine``
        that serves every model it lists, where the file names no upstream.
    bad_pattern: the core's, which alone knows its syntax; None leaves that to the core.

    Raises: ConfigError.
    """
    if path is None and env.get("FOREBAY_CONFIG"):
        path = Path(env["FOREBAY_CONFIG"])
    document = Document(_read(path), source=str(path or "environment"), env=env, exact=_is_money)
    config = _from_environment(_to_config(document), document, env)
    check_references(config, document)
    if bad_pattern is not None and config.prompt_logs.patterns:
        _check_patterns(document, config.prompt_logs, bad_pattern)
    return config


def _is_money(path: FieldPath) -> bool:
    if not path or path[0] != "models":
        return False
    return (len(path) == 4 and path[2] == "price") or (len(path) == 5 and path[4] == "max_cost")


def _read(path: Path | None) -> str:
    if path is None:
        return ""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read: {error.strerror}", source=str(path)) from None
    if len(data) > _MAX_FILE_BYTES:
        raise ConfigError("larger than 4 MiB", source=str(path))
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError("not UTF-8 text", source=str(path), line=line) from None


def _to_config(document: Document) -> Config:
    # Entries of the two mappings are converted one by one: msgspec names no mapping key in its
    # errors, and the name is what the user needs.
    rest = {k: v for k, v in document.data.items() if k not in ("upstreams", "models")}
    config = _convert(document, rest, Config, ())
    upstreams = {
        name: checked_upstream(document, name, _convert(document, value, Upstream, path))
        for name, value, path in _entries(document, "upstreams")
    }
    models = {
        name: checked_model(document, path, _convert(document, value, Model, path))
        for name, value, path in _entries(document, "models")
    }
    _check_prompt_logs(document, config.prompt_logs)
    urls = {"database_url": check_database_url, "redis_url": check_redis_url}
    stores = {field: getattr(config, field) or None for field in urls}
    for field, check in urls.items():
        try:
            if (url := stores[field]) is not None:
                check(url)
        except ValueError as error:
            raise document.error((field,), str(error)) from None
    try:
        if (url := config.telemetry.otlp_endpoint) is not None:
            check_otlp_endpoint(url)
    except ValueError as error:
        raise document.error(("telemetry", "otlp_endpoint"), str(error)) from None
    for field in ("http", "grpc"):
        try:
            if (address := getattr(config.listen, field)) is not None:
                parse_address(address)
        except ValueError as error:
            raise document.error(("listen", field), str(error)) from None
    return msgspec.structs.replace(config, upstreams=upstreams, models=models, **stores)


def _entries(document: Document, section: str) -> list[tuple[str, Any, FieldPath]]:
    value = document.data.get(section)
    if value is None:
        return []
    if not isinstance(value, dict):
        raise document.error((section,), "expected a mapping of names")
    for name in value:
        if not 1 <= len(name) <= 200 or any(c.isspace() for c in name):
            raise document.error((section, name), "a name has 1 to 200 characters and no spaces")
    return [(name, item, (section, name)) for name, item in value.items()]


def _check_prompt_logs(document: Document, settings: PromptLogs) -> None:
    for name, key in settings.keys.items():
        if not 1 <= len(name) <= 200 or any(c.isspace() for c in name):
            raise document.error(
                ("prompt_logs", "keys", name), "a name has 1 to 200 characters and no spaces"
            )
        try:
            decode_log_key(key)
        except ValueError as error:
            raise document.error(("prompt_logs", "keys", name), str(error)) from None
    if settings.active is not None and settings.active not in settings.keys:
        known = ", ".join(settings.keys) or "none is defined"
        raise document.error(
            ("prompt_logs", "active"), f"no key named {settings.active!r} (known: {known})"
        )


def _check_patterns(document: Document, settings: PromptLogs, bad_pattern: Judge) -> None:
    found = bad_pattern(list(settings.patterns))
    if found is not None:
        at, reason = found
        path: FieldPath = ("prompt_logs", "patterns")
        raise document.error(path if at is None else (*path, at), reason)


def _convert(document: Document, value: Any, kind: type[_T], path: FieldPath) -> _T:
    try:
        # Not strict, so that a number may come from a variable, which is always text.
        return msgspec.convert(value, kind, strict=False)
    except msgspec.ValidationError as error:
        where, reason = _explain(str(error), kind)
        raise document.error((*path, *where), reason) from None


def _explain(message: str, kind: type) -> tuple[FieldPath, str]:
    match = _AT.match(message)
    reason = match["reason"] if match else message
    where: list[str | int] = [
        int(step["index"]) if step["index"] else step["name"]
        for step in _STEP.finditer(match["path"] or "" if match else "")
    ]
    if unknown := _UNKNOWN.fullmatch(reason):
        name = unknown["name"]
        close = difflib.get_close_matches(name, _fields(kind, where), n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        return (*where, name), f"unknown field{hint}"
    if missing := _MISSING.fullmatch(reason):
        return (*where, missing["name"]), "required, but not given"
    if reason.startswith("Invalid enum value") and where and where[-1] in _CHOICES:
        reason += f"; choose from {', '.join(get_args(_CHOICES[where[-1]]))}"
    return tuple(where), reason[:1].lower() + reason[1:]


def _fields(kind: Any, where: list[str | int]) -> list[str]:
    """Field names of the section at `where` below `kind`."""
    for step in where:
        if isinstance(step, int):
            continue
        field = next(f for f in msgspec.structs.fields(kind) if f.encode_name == step)
        info: Any = msgspec.inspect.type_info(field.type)
        while not isinstance(info, msgspec.inspect.StructType):
            if isinstance(info, msgspec.inspect.UnionType):
                structs = (t for t in info.types if isinstance(t, msgspec.inspect.StructType))
                info = next(structs, None)
            else:
                info = getattr(info, "item_type", None) or getattr(info, "type", None)
            if info is None:
                return []
        kind = info.cls
    return [field.encode_name for field in msgspec.structs.fields(kind)]


def _from_environment(config: Config, document: Document, env: Mapping[str, str]) -> Config:
    changes: dict[str, Any] = {}
    overridden: dict[str, dict[str, str]] = {}
    for variable, (section, field) in _OVERRIDES.items():
        if value := env.get(variable):
            allowed = get_args(_CHOICES[field]) if field in _CHOICES else ()
            if allowed and value not in allowed:
                raise _environment_error(variable, f"choose from {', '.join(allowed)}")
            if not allowed:
                _checked(variable, parse_address, value)
            overridden.setdefault(section, {})[field] = value
    for section, fields in overridden.items():
        changes[section] = msgspec.structs.replace(getattr(config, section), **fields)
    if config.database_url is None and (url := env.get("DATABASE_URL")):
        _checked("DATABASE_URL", check_database_url, url)
        changes["database_url"] = url
    if config.redis_url is None and (url := env.get("REDIS_URL")):
        _checked("REDIS_URL", check_redis_url, url)
        changes["redis_url"] = url
    if not config.upstreams and (url := env.get("INFERENCE_URL")):
        engine = Upstream(
            kind="sglang",
            url=_checked("INFERENCE_URL", normal_url, url),
            api_key=env.get("INFERENCE_API_KEY") or None,
            discover=True,
        )
        changes["upstreams"] = {ENVIRONMENT_UPSTREAM: engine}
    return msgspec.structs.replace(config, **changes)


def _environment_error(variable: str, reason: str) -> ConfigError:
    return ConfigError(reason, source="environment", field=variable)


def _checked(variable: str, check: Any, value: str) -> Any:
    try:
        return check(value)
    except ValueError as error:
        raise _environment_error(variable, str(error)) from None

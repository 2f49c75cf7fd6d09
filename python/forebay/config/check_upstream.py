"""What an upstream's section has to hold beyond its types: by kind, and among its fields."""

from importlib.util import find_spec
from typing import Any

import msgspec

from forebay.config.document import Document
from forebay.config.document import Path as FieldPath
from forebay.config.kinds import FORMS, PARTS, Form
from forebay.config.schema import Agent, Credentials, Queue, Upstream, check_header, normal_url

_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.:")
"""Characters of a part of an address; a colon for Google's domain-scoped projects."""


def checked_upstream(document: Document, name: str, upstream: Upstream) -> Upstream:
    """The upstream with its URL normal and empty texts left out.

    Raises: ConfigError at the field that will not do.
    """
    path: FieldPath = ("upstreams", name)
    form = FORMS[upstream.kind]
    url = _url(document, path, upstream, form)
    upstream = _without_empty(upstream, url)
    _parts(document, path, upstream, form)
    _login(document, path, upstream, form)
    _extra(document, path, upstream, form)
    _headers(document, path, upstream)
    if upstream.discover and not form.lists:
        raise document.error(
            (*path, "discover"), f"kind {upstream.kind} does not list models: put them under models"
        )
    if upstream.responses == "native" and not _has_responses(upstream, form):
        raise document.error(
            (*path, "responses"), f"there are no Responses at this {upstream.kind}: bridge them"
        )
    _bounds(document, path, upstream)
    agent = _agent(document, path, upstream, form)
    return msgspec.structs.replace(upstream, agent=agent)


def _has_responses(upstream: Upstream, form: Form) -> bool:
    if upstream.kind == "azure":
        return not upstream.deployments
    if upstream.kind == "bedrock":
        return upstream.api == "openai"
    return form.responses


def _url(document: Document, path: FieldPath, upstream: Upstream, form: Form) -> str | None:
    if not upstream.url:
        if form.url:
            raise document.error((*path, "url"), "required, but not given")
        return None
    try:
        return normal_url(upstream.url)
    except ValueError as error:
        raise document.error((*path, "url"), str(error)) from None


def _agent(document: Document, path: FieldPath, upstream: Upstream, form: Form) -> Agent | None:
    """The agent with its URL normal; an empty key is none."""
    agent = upstream.agent
    if agent is None:
        return None
    if not form.agent:
        raise document.error((*path, "agent"), f"kind {upstream.kind} has none")
    if upstream.cold is not None and upstream.cold.wake is not None:
        raise document.error((*path, "cold", "wake"), "not beside agent, which starts it")
    if agent.key:
        _printable(document, (*path, "agent", "key"), agent.key)
    try:
        url = normal_url(agent.url, "key")
    except ValueError as error:
        raise document.error((*path, "agent", "url"), str(error)) from None
    return msgspec.structs.replace(agent, url=url, key=agent.key or None)


def _without_empty(upstream: Upstream, url: str | None) -> Upstream:
    """An empty variable leaves its field out."""
    texts = ("api_key", "region", "project", "location", "api_version")
    changes: dict[str, Any] = {field: getattr(upstream, field) or None for field in texts}
    if upstream.credentials is not None:
        given = _given(upstream.credentials)
        changes["credentials"] = Credentials(**given) if given else None
    return msgspec.structs.replace(upstream, url=url, **changes)


def _given(credentials: Credentials) -> dict[str, str]:
    return {
        field: value
        for field in credentials.__struct_fields__
        if (value := getattr(credentials, field))
    }


def _parts(document: Document, path: FieldPath, upstream: Upstream, form: Form) -> None:
    kind = upstream.kind
    for field in PARTS:
        value = getattr(upstream, field)
        if field in form.needs and not value:
            raise document.error((*path, field), f"required for kind {kind}, but not given")
        if value and field not in form.needs and field not in form.may:
            raise document.error((*path, field), f"kind {kind} has none")
        if isinstance(value, str) and not set(value) <= _PLAIN:
            raise document.error((*path, field), "must be letters, digits and any of -_.:")
    if upstream.deployments and upstream.api_version is None:
        raise document.error(
            (*path, "api_version"), "required with deployments: true, but not given"
        )


def _login(document: Document, path: FieldPath, upstream: Upstream, form: Form) -> None:
    kind, key, credentials = upstream.kind, upstream.api_key, upstream.credentials
    if key is not None:
        if not form.key:
            raise document.error((*path, "api_key"), f"kind {kind} has none; see credentials")
        _printable(document, (*path, "api_key"), key)
    elif form.needs_key and upstream.url is None:
        raise document.error((*path, "api_key"), f"required for kind {kind}, but not given")
    if credentials is None:
        return
    if not form.logins:
        raise document.error((*path, "credentials"), f"kind {kind} has none; see api_key")
    if key is not None and not form.both:
        raise document.error((*path, "credentials"), "not beside api_key: give one of the two")
    given = _given(credentials)
    for field, value in given.items():
        if field not in ("file", "profile"):
            _printable(document, (*path, "credentials", field), value)
    if any(set(login.needs) <= set(given) <= {*login.needs, *login.may} for login in form.logins):
        return
    known = {field for login in form.logins for field in (*login.needs, *login.may)}
    for field in given:
        if field not in known:
            raise document.error((*path, "credentials", field), f"kind {kind} has none")
    for login in form.logins:
        missing = [field for field in login.needs if field not in given]
        if missing and set(given) & set(login.needs):
            raise document.error(
                (*path, "credentials", missing[0]),
                f"required beside {', '.join(f for f in login.needs if f in given)}",
            )
    sets = " or ".join(", ".join(login.needs) for login in form.logins if login.needs)
    raise document.error((*path, "credentials"), f"for kind {kind}: {sets}")


def _printable(document: Document, path: FieldPath, value: str) -> None:
    if not all("!" <= c <= "~" for c in value):
        raise document.error(path, "must be printable ASCII without spaces")


def _extra(document: Document, path: FieldPath, upstream: Upstream, form: Form) -> None:
    extra = form.extra
    if extra is None or any(_has(upstream, field) for field in extra.unless):
        return
    try:
        found = find_spec(extra.module) is not None
    except ModuleNotFoundError:
        found = False
    if not found:
        instead = f", or give {' or '.join(extra.unless)}" if extra.unless else ""
        raise document.error(
            (*path, "kind"),
            f"needs a package that is not installed: pip install 'forebay[{extra.name}]'{instead}",
        )


def _has(upstream: Upstream, field: str) -> bool:
    value: Any = upstream
    for step in field.split("."):
        value = None if value is None else getattr(value, step)
    return value is not None


def _headers(document: Document, path: FieldPath, upstream: Upstream) -> None:
    seen: set[str] = set()
    for name, value in upstream.headers.items():
        try:
            check_header(name, value)
        except ValueError as error:
            raise document.error((*path, "headers", name), str(error)) from None
        if name.lower() in seen:
            raise document.error((*path, "headers", name), "given twice")
        if name.lower() == "authorization" and upstream.api_key is not None:
            raise document.error(
                (*path, "headers", name), "not beside api_key: give one of the two"
            )
        seen.add(name.lower())


def _bounds(document: Document, path: FieldPath, upstream: Upstream) -> None:
    _concurrency(document, path, upstream)
    outlier = upstream.outlier
    if outlier is not None and outlier.max_ejection < outlier.base_ejection:
        raise document.error(
            (*path, "outlier", "max_ejection"),
            f"must be at least base_ejection, {outlier.base_ejection:g}",
        )


def _concurrency(document: Document, path: FieldPath, upstream: Upstream) -> None:
    adaptive = upstream.adaptive
    if adaptive is not None and upstream.max_concurrency is not None:
        raise document.error(
            (*path, "adaptive"), "not beside max_concurrency: its max is the bound"
        )
    if adaptive is not None and adaptive.min > adaptive.max:
        raise document.error((*path, "adaptive", "min"), f"must be at most max, {adaptive.max}")
    if upstream.queue != Queue() and adaptive is None and upstream.max_concurrency is None:
        raise document.error(
            (*path, "queue"), "nothing waits without a bound: set max_concurrency or adaptive"
        )

"""What a model's section has to hold beyond its types, and which names it may name."""

from collections.abc import Iterator, Mapping
from decimal import Decimal

from forebay.config.document import Document
from forebay.config.document import Path as FieldPath
from forebay.config.schema import Config, Model, check_cost, check_price

_CHAINS = ("fallbacks", "context_fallback", "content_filter_fallback")


def checked_model(document: Document, path: FieldPath, model: Model) -> Model:
    """The model, seen to be sound by itself.

    Raises: ConfigError at the field that will not do.
    """
    for field in model.price.__struct_fields__ if model.price is not None else ():
        price = getattr(model.price, field)
        try:
            if price is not None:
                check_price(price)
        except ValueError as error:
            raise document.error((*path, "price", field), str(error)) from None
    for index, target in enumerate(model.targets):
        try:
            if target.max_cost is not None:
                check_cost(target.max_cost)
        except ValueError as error:
            raise document.error((*path, "targets", index, "max_cost"), str(error)) from None
    _check_shares(document, path, model)
    if model.retry.max_backoff < model.retry.backoff:
        raise document.error(
            (*path, "retry", "max_backoff"), f"must be at least backoff, {model.retry.backoff:g}"
        )
    return model


def _check_shares(document: Document, path: FieldPath, model: Model) -> None:
    if all(target.tier > 0 for target in model.targets):
        raise document.error((*path, "targets"), "no target of tier 0, which comes first")
    total = Decimal(0)
    for index, target in enumerate(model.targets):
        if target.canary_percent is not None:
            total += Decimal(repr(target.canary_percent))
            if total > 100:
                raise document.error(
                    (*path, "targets", index, "canary_percent"),
                    f"canaries take {total:f} % together, more than 100",
                )


def check_references(config: Config, document: Document) -> None:
    """See that every name that is named exists.

    Raises: ConfigError at the field that names something else.
    """
    owners = _owners(config, document)
    for name, model in config.models.items():
        for field, upstream in _upstreams(model):
            if upstream not in config.upstreams:
                known = ", ".join(config.upstreams) or "none is defined"
                raise document.error(
                    ("models", name, *field), f"no upstream named {upstream!r} (known: {known})"
                )
    _check_files(config, document)
    for chain in _CHAINS:
        _check_chain(config, document, chain, owners)
    if not config.upstreams:
        raise document.error((), "no upstream: set INFERENCE_URL, or upstreams in a file")
    if not config.models and not any(u.discover for u in config.upstreams.values()):
        raise document.error(
            ("models",), "no model: list models, or set discover: true on an upstream"
        )


def _check_files(config: Config, document: Document) -> None:
    if config.files is not None and config.files.upstream not in config.upstreams:
        known = ", ".join(config.upstreams) or "none is defined"
        raise document.error(
            ("files", "upstream"), f"no upstream named {config.files.upstream!r} (known: {known})"
        )


def _owners(config: Config, document: Document) -> dict[str, str]:
    """The model that each name and alias stands for."""
    owners = {name: name for name in config.models}
    for name, model in config.models.items():
        for index, alias in enumerate(model.aliases):
            if alias in owners:
                taken = "a model" if alias in config.models else f"an alias of {owners[alias]}"
                raise document.error(
                    ("models", name, "aliases", index), f"{alias!r} is already {taken}"
                )
            owners[alias] = name
    return owners


def _upstreams(model: Model) -> Iterator[tuple[FieldPath, str]]:
    for index, target in enumerate(model.targets):
        yield ("targets", index, "upstream"), target.upstream
    if model.shadow is not None:
        yield ("shadow", "upstream"), model.shadow.upstream


def _check_chain(config: Config, document: Document, chain: str, owners: Mapping[str, str]) -> None:
    """Every model of a chain is known, and no way along it leads back."""
    ways: dict[str, list[tuple[FieldPath, str]]] = {}
    for name, model in config.models.items():
        ways[name] = []
        value = getattr(model, chain)
        if chain == "fallbacks":
            steps: list[tuple[FieldPath, str]] = [
                ((chain, index), step) for index, step in enumerate(value)
            ]
        else:
            steps = [] if value is None else [((chain,), value)]
        for field, step in steps:
            path: FieldPath = ("models", name, *field)
            if step not in owners:
                known = ", ".join(config.models)
                raise document.error(path, f"no model named {step!r} (known: {known})")
            ways[name].append((path, owners[step]))
    done: set[str] = set()
    for start in ways:
        _walk(document, ways, start, [], done)


def _walk(
    document: Document,
    ways: Mapping[str, list[tuple[FieldPath, str]]],
    name: str,
    trail: list[str],
    done: set[str],
) -> None:
    if name in done:
        return
    for path, following in ways[name]:
        if following == name or following in trail:
            loop = [*trail, name, following]
            raise document.error(path, f"leads back: {' -> '.join(loop[loop.index(following) :])}")
        _walk(document, ways, following, [*trail, name], done)
    done.add(name)

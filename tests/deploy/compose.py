"""The compose files, read and laid over each other as Compose does it."""

import re
from pathlib import Path
from typing import Any

import yaml

from tests.deploy.chart import DEPLOY

FILE, CPU = DEPLOY / "compose.yaml", DEPLOY / "compose.cpu.yaml"
_VARIABLE = re.compile(r"\$\{(\w+)(?::[-?]([^}]*))?\}")


class Override(list[Any]):
    """`!override`: takes the place of what is under it. Holds that one value."""


class _Loader(yaml.SafeLoader):
    pass


def _override(loader: yaml.SafeLoader, node: yaml.Node) -> Override:
    if isinstance(node, yaml.MappingNode):
        return Override([loader.construct_mapping(node, deep=True)])
    assert isinstance(node, yaml.SequenceNode)
    return Override([loader.construct_sequence(node, deep=True)])


_Loader.add_constructor("!override", _override)


def read(path: Path) -> dict[str, Any]:
    """A file as it stands."""
    return dict(yaml.load(path.read_text(), _Loader))


def merged(under: Any, over: Any) -> Any:
    """Mappings are joined, lists are put together, all else is replaced."""
    if isinstance(over, Override):
        return over[0]
    if isinstance(under, dict) and isinstance(over, dict):
        keys = {**under, **over}
        return {k: merged(under.get(k), over[k]) if k in over else under[k] for k in keys}
    # Commands and checks are replaced, unlike the rest; none of ours has a list under a list.
    return over


def variables(text: str) -> set[str]:
    """The variables that a text names."""
    return {match[1] for match in _VARIABLE.finditer(text)}

"""YAML text to plain data, with the line of every field and ``${VAR}`` filled in."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import yaml

from forebay.config.errors import ConfigError

Path = tuple[str | int, ...]
_MAX_DEPTH = 32
_MAX_NODES = 200_000
_VARIABLE = re.compile(r"\$\$|\$\{(?P<body>[^}]*)\}|(?P<open>\$\{)")
_BODY = re.compile(r"(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>.*))?", re.DOTALL)
_BaseLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Number(float):
    """A number with a fraction, and the text that it was read from."""

    text: str


class _Loader(_BaseLoader):  # type: ignore[misc]
    def construct_yaml_float(self, node: yaml.ScalarNode) -> _Number:
        number = _Number(super().construct_yaml_float(node))
        number.text = node.value
        return number

    def construct_yaml_timestamp(self, node: yaml.ScalarNode) -> str:
        """A date is text: the only ones in a file are versions of APIs."""
        return str(node.value)


_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_yaml_float)
_Loader.add_constructor("tag:yaml.org,2002:timestamp", _Loader.construct_yaml_timestamp)


def dotted(path: Path) -> str:
    """``("models", "a", "targets", 0)`` as ``models.a.targets[0]``."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += f".{part}" if text else part
    return text


class Document:
    """One parsed file.

    data: plain data with variables filled in; {} for an empty file.
    """

    def __init__(
        self,
        text: str,
        *,
        source: str,
        env: Mapping[str, str],
        exact: Callable[[Path], bool] = lambda _: False,
    ):
        """Parse.

        exact: says of a path whether its number is wanted as the text that stands in the file,
            where a float would not be exact.

        Raises: ConfigError on YAML that does not parse, a repeated key, a key that is no
        string, nesting deeper than 32, or a variable that is not set.
        """
        self.source = source
        self._env = env
        self._exact = exact
        self._lines: dict[Path, int] = {}
        self._nodes = 0
        try:
            loader = _Loader(text)
            try:
                node = loader.get_single_node()
                if node is not None:
                    self._walk(node, (), 0)
                raw = {} if node is None else loader.construct_document(node)
            finally:
                loader.dispose()
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = None if mark is None else mark.line + 1
            reason = f"not valid YAML: {error.problem or error.context}"
            raise ConfigError(reason, source=source, line=line) from None
        except (yaml.YAMLError, ValueError) as error:
            reason = f"not valid YAML: {str(error).splitlines()[0]}"
            raise ConfigError(reason, source=source) from None
        if raw is None:
            raw = {}
        if not isinstance(raw, dict):
            raise ConfigError("the file must hold a mapping", source=source, line=1)
        self.data: dict[str, Any] = self._fill(raw, ())

    def line(self, path: Path) -> int | None:
        """The line of a field, or of the nearest section around it that has one."""
        while path:
            if path in self._lines:
                return self._lines[path]
            path = path[:-1]
        return None

    def error(self, path: Path, reason: str) -> ConfigError:
        """A `ConfigError` at a field."""
        return ConfigError(reason, source=self.source, field=dotted(path), line=self.line(path))

    def _walk(self, node: yaml.Node, path: Path, depth: int) -> None:
        # Anchors may make a small text a huge or endless tree, so both are bounded.
        self._nodes += 1
        if depth > _MAX_DEPTH or self._nodes > _MAX_NODES:
            raise self.error(path, "nested too deeply or too large")
        self._lines.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key, value in node.value:
                line = key.start_mark.line + 1
                if key.tag == "tag:yaml.org,2002:merge":
                    continue
                if not isinstance(key, yaml.ScalarNode) or not key.tag.endswith(":str"):
                    name = getattr(key, "value", "?")
                    field = dotted((*path, str(name)))
                    raise ConfigError(
                        "a key must be a string; put it in quotes",
                        source=self.source,
                        field=field,
                        line=line,
                    )
                child = (*path, key.value)
                if key.value in seen:
                    raise ConfigError(
                        "given twice", source=self.source, field=dotted(child), line=line
                    )
                seen.add(key.value)
                self._lines[child] = line
                self._walk(value, child, depth + 1)
        elif isinstance(node, yaml.SequenceNode):
            for index, value in enumerate(node.value):
                self._walk(value, (*path, index), depth + 1)

    def _fill(self, value: Any, path: Path) -> Any:
        if isinstance(value, dict):
            return {key: self._fill(item, (*path, key)) for key, item in value.items()}
        if isinstance(value, list):
            return [self._fill(item, (*path, index)) for index, item in enumerate(value)]
        if isinstance(value, str) and "$" in value:
            return self._interpolate(value, path)
        if isinstance(value, _Number):
            return value.text if self._exact(path) else float(value)
        return value

    def _interpolate(self, text: str, path: Path) -> str:
        def replace(match: re.Match[str]) -> str:
            if match.group() == "$$":
                return "$"
            body = _BODY.fullmatch(match["body"] or "")
            if body is None:
                raise self.error(path, "bad variable: write ${NAME} or ${NAME:-default}")
            value = self._env.get(body["name"])
            default = body["default"]
            # As in a shell, ``:-`` also replaces a variable that is set but empty.
            if value or (value is not None and default is None):
                return value
            if default is None:
                raise self.error(path, f"environment variable {body['name']} is not set")
            return default

        return _VARIABLE.sub(replace, text)

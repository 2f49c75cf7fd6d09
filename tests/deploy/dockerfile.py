"""Reads Dockerfiles, as far as the tests need it."""

import json
import re
import shlex
from pathlib import Path
from typing import NamedTuple


class Instruction(NamedTuple):
    """A line, its continuations joined."""

    word: str
    rest: str


class Stage(NamedTuple):
    """From one FROM to the next."""

    image: str
    instructions: list[Instruction]

    def all(self, word: str) -> list[str]:
        """What follows a word, each time."""
        return [i.rest for i in self.instructions if i.word == word]

    def last(self, word: str) -> str:
        """What follows it the last time: that holds."""
        return self.all(word)[-1]

    def environment(self) -> dict[str, str]:
        """What its ENV lines set."""
        return dict(pair.split("=", 1) for line in self.all("ENV") for pair in shlex.split(line))


def read(path: Path) -> tuple[dict[str, str], list[Stage]]:
    """The arguments before the first FROM, and the stages."""
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    text = re.sub(r"\\\n", " ", "\n".join(lines))
    arguments: dict[str, str] = {}
    stages: list[Stage] = []
    for line in filter(str.strip, text.splitlines()):
        word, rest = line.split(maxsplit=1)
        if word == "FROM":
            for name, value in arguments.items():
                rest = rest.replace(f"${{{name}}}", value)
            stages.append(Stage(rest, []))
        elif not stages:
            name, _, value = rest.partition("=")
            arguments[name] = value
        else:
            stages[-1].instructions.append(Instruction(word, " ".join(rest.split())))
    return arguments, stages


def words(value: str) -> list[str]:
    """An instruction in its JSON form."""
    return [str(word) for word in json.loads(value)]

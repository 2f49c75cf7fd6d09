"""`forebay config`: check a file, show what it amounts to, print its schema."""

import os
from typing import Annotated, Any

import typer

from forebay.cli.common import ConfigOption, JsonOption, bad_pattern, config_path, print_json

app = typer.Typer(help="Check and show the configuration.", no_args_is_help=True)

FileArgument = Annotated[
    str | None, typer.Argument(metavar="[FILE]", help="Same as --config FILE.", show_default=False)
]


def _load(file: str | None, option: Any) -> Any:
    from pathlib import Path

    from forebay.config import load

    return load(config_path(Path(file) if file else option), os.environ, bad_pattern=bad_pattern)


@app.command()
def check(file: FileArgument = None, config: ConfigOption = None, json: JsonOption = False) -> None:
    """Read file and environment; exit 2, with file, line and field, if they will not do."""
    loaded = _load(file, config)
    if json:
        print_json({"ok": True, "upstreams": len(loaded.upstreams), "models": len(loaded.models)})
    else:
        typer.echo(f"ok: {len(loaded.upstreams)} upstreams, {len(loaded.models)} models")


@app.command()
def show(file: FileArgument = None, config: ConfigOption = None, json: JsonOption = False) -> None:
    """Print the configuration in force, defaults included and secrets masked."""
    from forebay.config import to_public

    public = to_public(_load(file, config))
    if json:
        print_json(public)
        return
    import msgspec
    import yaml

    plain = msgspec.json.decode(msgspec.json.encode(public))  # tuples to lists
    typer.echo(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True), nl=False)


@app.command()
def schema(json: JsonOption = False) -> None:
    """Print the JSON Schema of the file, for editors; always JSON."""
    from forebay.config import json_schema

    print_json(json_schema())

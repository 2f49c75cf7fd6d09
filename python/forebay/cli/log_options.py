"""Options about prompt logs that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

from forebay.cli.common import prompt_log_settings

SampleOption = Annotated[
    float | None,
    typer.Option(
        "--log-sample", min=0, max=1, help="The part of the requests that is logged, 0 to 1."
    ),
]


def allow_level(level: str | None, config: Path | None) -> None:
    """Refuse ``full`` where the configuration that is known here has no key to encrypt with.

    Raises: BadValue; ConfigError.
    """
    if level == "full":
        from forebay.store.log_settings import check_level

        check_level(level, prompt_log_settings(config))


def described_logs(level: str | None, sample: float | None) -> str:
    """The settings for people."""
    spelled = "as its account" if level is None else level
    part = "" if sample is None or sample == 1 else f", {sample * 100:g} % of the requests"
    return spelled + part

"""Options and output for limits, which several commands take and show."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from forebay.store.limits import LimitChanges, Period

RpsOption = Annotated[int | None, typer.Option("--rps", min=1, help="Requests a second.")]
RpsBurstOption = Annotated[
    int | None, typer.Option("--rps-burst", min=1, help="Requests at once; default RPS.")
]
RpmOption = Annotated[int | None, typer.Option("--rpm", min=1, help="Requests a minute.")]
RpmBurstOption = Annotated[
    int | None, typer.Option("--rpm-burst", min=1, help="Requests at once; default RPM/6.")
]
TpmOption = Annotated[int | None, typer.Option("--tpm", min=1, help="Tokens a minute.")]
TpmBurstOption = Annotated[
    int | None, typer.Option("--tpm-burst", min=1, help="Tokens at once; default TPM.")
]
ConcurrencyOption = Annotated[
    int | None, typer.Option("--concurrency", min=1, help="Requests in flight.")
]
BudgetOption = Annotated[
    str | None,
    typer.Option(
        "--budget", metavar="USD/PERIOD", help="Such as 25.00/month; each day, month, or total."
    ),
]
StoreLossOption = Annotated[
    Literal["share", "deny"] | None,
    typer.Option(
        "--on-store-loss",
        help="While the nodes' shared store is away: this node's share of the limits, or nothing.",
    ),
]
PriorityOption = Annotated[
    Literal["interactive", "batch"] | None,
    typer.Option("--priority", help="Who goes first where requests have to wait."),
]


def budget(given: str) -> "tuple[str, Period]":
    """Read ``25.00/month`` as dollars and period.

    Raises: typer.BadParameter.
    """
    from typing import get_args

    from forebay.store.limits import Period
    from forebay.store.money import nano

    usd, slash, period = given.strip().partition("/")
    try:
        nano(usd)
    except ValueError:
        slash = ""
    if not slash or period not in get_args(Period):
        raise typer.BadParameter(
            f"{given!r} is no budget such as 25.00/month (day, month or total)"
        )
    return usd, period  # type: ignore[return-value]


def given_limits(
    *,
    rps: int | None,
    rps_burst: int | None,
    rpm: int | None,
    rpm_burst: int | None,
    tpm: int | None,
    tpm_burst: int | None,
    concurrency: int | None,
    budget_text: str | None,
    on_store_loss: str | None,
) -> dict[str, Any]:
    """The limits that were given as options, by the names that the store has for them."""
    given: dict[str, Any] = {
        "rps": rps,
        "rps_burst": rps_burst,
        "rpm": rpm,
        "rpm_burst": rpm_burst,
        "tpm": tpm,
        "tpm_burst": tpm_burst,
        "concurrency": concurrency,
        "on_store_loss": on_store_loss,
    }
    if budget_text is not None:
        given["budget"], given["budget_period"] = budget(budget_text)
    return {name: value for name, value in given.items() if value is not None}


def changes_of(given: dict[str, Any]) -> "LimitChanges":
    """The options that were given as changes.

    Raises: typer.BadParameter when there are none.
    """
    from forebay.store.limits import LimitChanges

    if not given:
        raise typer.BadParameter("give at least one limit")
    return LimitChanges(**given)


def described(limits: Any) -> list[tuple[str, str]]:
    """Limits for people: what is limited, and to how much."""
    lines = [
        ("requests", _rate(limits.rps, limits.rps_burst, "a second")),
        ("requests", _rate(limits.rpm, limits.rpm_burst, "a minute")),
        ("tokens", _rate(limits.tpm, limits.tpm_burst, "a minute")),
        ("in flight", None if limits.concurrency is None else str(limits.concurrency)),
        ("budget", spelled_budget(limits)),
        ("store lost", "nothing is admitted" if limits.on_store_loss == "deny" else None),
    ]
    return [(label, value) for label, value in lines if value is not None] or [
        ("limits", "no limit")
    ]


def _rate(rate: int | None, burst: int | None, period: str) -> str | None:
    return None if rate is None else f"{rate} {period}, {burst} at once"


def spelled_budget(limits: Any) -> str | None:
    """A budget as the option takes it."""
    return None if limits.budget is None else f"{limits.budget}/{limits.budget_period}"

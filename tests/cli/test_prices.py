"""The price book on the command line."""

from pathlib import Path

import pytest

from tests.cli.test_commands import Forebay, elsewhere, forebay, with_url

__all__ = ["elsewhere", "forebay", "with_url"]

PRICE = ("--input", "0.15", "--output", "0.6")


def test_a_price_is_set_shown_listed_and_corrected(with_url: Forebay) -> None:
    made = with_url("prices", "set", "m", *PRICE, "--from", "2026-01-01", "--json").json()
    assert (made["model"], made["input"], made["cached"]) == ("m", "0.15", "0.15")
    assert (made["effective_from"], made["effective_to"]) == (1_767_225_600.0, None)
    number = str(made["id"])
    assert with_url("prices", "show", number, "--json").json() == made
    shown = with_url("prices", "show", number).out
    assert "2026-01-01T00:00:00Z" in shown
    assert "superseded" not in shown
    changed = with_url(
        *("prices", "correct", number, "--output", "0.5", "--json"),
        *("--from", "2026-02-01T01:00+01:00", "--until", "2026-03-01"),
    ).json()
    assert [piece["output"] for piece in changed] == ["0.60", "0.50", "0.60"]
    assert changed[1]["effective_from"] == 1_769_904_000.0
    assert "superseded_at" in with_url("prices", "show", number).out
    listed = with_url("prices", "list", "--at", "2026-02-15", "--json").json()
    assert listed == [changed[1]]
    assert len(with_url("prices", "list", "--json").json()) == 1, "what holds now or will"
    assert len(with_url("prices", "list", "--all", "--json").json()) == 4
    table = with_url("prices", "list", "--all").out
    for text in ("CACHE WRITE", "0.50", "2026-03-01T00:00:00Z"):
        assert text in table


def test_prices_of_accounts_and_upstreams(with_url: Forebay) -> None:
    with_url("accounts", "create", "acme")
    made = with_url(
        *("prices", "set", "m", *PRICE, "--account", "acme", "--upstream", "gpu", "--json"),
        *("--cached", "0.01", "--cache-write", "0.2", "--reasoning", "0.7", "--request", "0.001"),
        *("--second", "0.002", "--currency", "EUR", "--until", "2190-01-01"),
    ).json()
    kept = ("account", "upstream", "currency", "cached", "cache_write", "reasoning", "request")
    assert [made[name] for name in kept] == [
        *("acme", "gpu", "EUR", "0.01", "0.20", "0.70", "0.001"),
    ]
    assert made["second"] == "0.002"
    with_url("prices", "set", "m", *PRICE)
    assert len(with_url("prices", "list", "--json").json()) == 2
    for option in (("--account", "acme"), ("--upstream", "gpu")):
        assert with_url("prices", "list", *option, "--json").json() == [made]
    assert with_url("prices", "list", "--model", "n", "--json").json() == []


def test_a_price_is_ended(with_url: Forebay) -> None:
    made = with_url("prices", "set", "m", *PRICE, "--from", "2026-01-01", "--json").json()
    number = str(made["id"])
    ended = with_url("prices", "end", number, "--at", "2026-02-01", "--json").json()
    assert ended == {**made, "effective_to": 1_769_904_000.0}
    assert with_url("prices", "list", "--json").json() == []
    assert "ends at 2026-02-01" in with_url("prices", "end", number).err


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("set", "m", "--input", "1"), 2, "--output"),
        (("set", "m", "--output", "1"), 2, "--input"),
        (("set", "m", "--input", "-1", "--output", "1"), 1, "input must not be negative"),
        (("set", "m", "--input", "a", "--output", "1"), 1, "input is no amount of money"),
        (("set", "m", "--input", "0.1234567", "--output", "1"), 1, "input must not have more"),
        (("set", "m", *PRICE, "--account", "nobody"), 1, "account is unknown: 'nobody'"),
        (("set", "m", *PRICE, "--currency", "EUR"), 1, "currency must be USD"),
        (("set", "m", *PRICE, "--from", "soon"), 2, "'soon' is no time"),
        (("set", "m", *PRICE, "--from", "2026-02-01", "--until", "2026-01-01"), 1, "effective_to"),
        (("show", "99"), 1, "no price has the id 99"),
        (("correct", "99", "--input", "1"), 1, "no price has the id 99"),
        (("import", "nowhere.csv"), 1, "nowhere.csv: cannot be read"),
    ],
)
def test_mistakes_are_told_in_one_line(
    with_url: Forebay, arguments: tuple[str, ...], code: int, told: str
) -> None:
    result = with_url("prices", *arguments)
    assert result.code == code
    assert told in result.err
    assert result.out == ""


def test_overlapping_prices_name_the_other(with_url: Forebay) -> None:
    made = with_url("prices", "set", "m", *PRICE, "--from", "2026-01-01", "--json").json()
    result = with_url("prices", "set", "m", *PRICE, "--from", "2025-01-01")
    assert result.code == 1
    assert f"effective_from overlaps price {made['id']}, which holds from 2026-01-01" in result.err
    assert len(with_url("prices", "list", "--all", "--json").json()) == 1


CSV = """\
model,upstream,input,output,effective_from
m,,0.15,0.60,2026-01-01
m,gpu,0.10,0.50,
n,,1,2,2026-01-01T00:00:00Z
"""


def test_a_csv_file_is_imported(with_url: Forebay, tmp_path: Path) -> None:
    path = tmp_path / "prices.csv"
    path.write_text(CSV)
    assert with_url("prices", "import", str(path)).out == "3 prices set\n"
    found = with_url("prices", "list", "--json").json()
    assert [(p["model"], p["upstream"], p["input"]) for p in found] == [
        ("m", None, "0.15"),
        ("n", None, "1.00"),
        ("m", "gpu", "0.10"),
    ]
    again = with_url("prices", "import", str(path))
    assert again.code == 1
    assert f"{path}: row 1: effective_from overlaps price" in again.err
    assert len(with_url("prices", "list", "--all", "--json").json()) == 3


def test_a_json_file_is_imported_exactly(with_url: Forebay, tmp_path: Path) -> None:
    path = tmp_path / "prices.json"
    text = '[{"model": "m", "input": 999999.999999, "output": "0.1", "cached": null}]'
    path.write_text(text)
    (made,) = with_url("prices", "import", str(path), "--json").json()
    assert (made["input"], made["cached"]) == ("999999.999999", "999999.999999")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (CSV.replace("n,,1,", "n,,-1,"), "row 3: input must not be negative"),
        (CSV.replace("n,,1,", "n,,,"), "row 3: input is required"),
        (CSV.replace("input", "inptu"), "row 1: unknown field 'inptu'"),
        (CSV.replace("2026-01-01\n", "tomorrow\n"), "row 1: effective_from: 'tomorrow' is no time"),
        (CSV + "n\n", "row 4: has not as many cells as the header"),
        (CSV + "n,,1,2,2026-01-01\n", "row 4: effective_from overlaps price"),
        ("", "has no prices"),
        ("[]", "has no prices"),
        ("[1]", "row 1: must be an object"),
        ('{"model": "m"}', "must be a list of prices"),
        ("[{", "is no JSON"),
        ('[{"model": "m", "input": [1], "output": "1"}]', "row 1: input must be text or a number"),
        ('[{"model": "m", "input": NaN, "output": "1"}]', "row 1: input is no amount of money"),
    ],
)
def test_a_bad_file_changes_nothing(
    with_url: Forebay, tmp_path: Path, text: str, told: str
) -> None:
    path = tmp_path / "prices"
    path.write_text(text)
    result = with_url("prices", "import", str(path))
    assert result.code == 1
    assert f"{path}: {told}" in result.err, result.err
    assert with_url("prices", "list", "--all", "--json").json() == []

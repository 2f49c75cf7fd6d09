"""When requests come and how long they are: made from a seed, or read from a trace."""

import csv
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple


class Request(NamedTuple):
    """One request. at: seconds from the beginning; prompt, output: tokens."""

    at: float
    prompt: int
    output: int


@dataclass(frozen=True, slots=True)
class Shape:
    """How long requests are: log-normal lengths with these means, tokens."""

    prompt: float = 500.0
    output: float = 400.0
    spread: float = 0.6
    """Standard deviation of a length's logarithm."""

    def draw(self, mean: float, random_: random.Random) -> int:
        """A length of this mean, at least 1."""
        centre = math.log(mean) - self.spread**2 / 2
        return max(1, round(random_.lognormvariate(centre, self.spread)))


@dataclass(frozen=True, slots=True)
class Rate:
    """Requests a second over time.

    at: the rate at a moment; peak: never above; spans: its bursts.
    """

    at: Callable[[float], float]
    peak: float
    horizon_s: float
    spans: tuple[tuple[float, float], ...] = ()


def bursts(
    base: float,
    seed: int,
    *,
    factor: float = 10.0,
    horizon_s: float = 10_800.0,
    length_s: tuple[float, float] = (120.0, 300.0),
    gap_s: tuple[float, float] = (480.0, 1_200.0),
) -> Rate:
    """`base` requests a second, and `factor` times that in bursts of random length and distance."""
    random_ = random.Random(f"bursts {seed}")
    spans = []
    at = random_.uniform(*gap_s)
    while at < horizon_s:
        end = min(at + random_.uniform(*length_s), horizon_s)
        spans.append((at, end))
        at = end + random_.uniform(*gap_s)

    def rate(at: float) -> float:
        return base * factor if any(start <= at < end for start, end in spans) else base

    return Rate(rate, base * factor, horizon_s, tuple(spans))


def diurnal(base: float, *, factor: float = 4.0, period_s: float = 7_200.0) -> Rate:
    """A day, shortened: from `base` up to `factor` times that and back, as a sine, twice."""

    def rate(at: float) -> float:
        return base * (1 + (factor - 1) * (1 - math.cos(2 * math.pi * at / period_s)) / 2)

    return Rate(rate, base * factor, 2 * period_s)


def ramp(base: float, *, factor: float = 10.0, horizon_s: float = 5_400.0) -> Rate:
    """From `base` straight up to `factor` times that at two thirds, then at once back."""

    def rate(at: float) -> float:
        part = at / (horizon_s * 2 / 3)
        return base * (1 + (factor - 1) * part) if part < 1 else base

    return Rate(rate, base * factor, horizon_s)


def poisson(rate: Rate, shape: Shape, seed: int) -> Iterator[Request]:
    """Requests of a Poisson process with this rate, by thinning (Lewis and Shedler 1979)."""
    random_ = random.Random(f"arrivals {seed}")
    at = 0.0
    while True:
        at += random_.expovariate(rate.peak)
        if at >= rate.horizon_s:
            return
        if random_.random() * rate.peak < rate.at(at):
            prompt = shape.draw(shape.prompt, random_)
            yield Request(at, prompt, shape.draw(shape.output, random_))


def read(path: Path) -> list[Request]:
    """A trace: CSV with the columns `at_s`, `prompt_tokens` and `output_tokens`, in any order of
    rows.

    Raises: ValueError naming the line for what is no request, OSError where the file is not there.
    """
    with path.open(newline="") as file:
        rows = csv.DictReader(file)
        wanted = {"at_s", "prompt_tokens", "output_tokens"}
        if missing := wanted - set(rows.fieldnames or ()):
            raise ValueError(f"{path}: no column {sorted(missing)[0]}")
        requests = [_row(row, f"{path}:{rows.line_num}") for row in rows]
    if not requests:
        raise ValueError(f"{path}: no requests")
    return sorted(requests)


def _row(row: dict[str, str], where: str) -> Request:
    try:
        at = float(row["at_s"])
        request = Request(at, int(row["prompt_tokens"]), int(row["output_tokens"]))
    except (TypeError, ValueError):
        raise ValueError(f"{where}: at_s is a number, the tokens are whole numbers") from None
    if not (math.isfinite(at) and at >= 0 and request.prompt >= 1 and request.output >= 1):
        raise ValueError(f"{where}: at_s is at least 0, the tokens at least 1")
    return request

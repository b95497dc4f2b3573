"""What an annotation run may spend and how fast it may go: prices, budget, rate window, back-off.

Arithmetic only: `scheduler` brings the clock and the calls. Money is counted in whole billionths of the
currency, so that what is reserved and what is given back cancel exactly.
"""

from __future__ import annotations

import math
import operator
import random
from collections import deque
from dataclasses import dataclass, fields
from datetime import date
from typing import NamedTuple

from refinevla_kit.errors import KitError
from refinevla_kit.teacher.schema import Usage

NANO = 10**9
WINDOW = 61.0  # s: a minute, and a second for calls that overtake each other on the way to the server
FIRST_DELAY, LONGEST_DELAY = 1.0, 60.0  # s, of the back-off


@dataclass(frozen=True)
class Prices:
    """What the user pays for a million tokens. There is no default: prices change; `as_of` is the day
    (YYYY-MM-DD) on which these were looked up.
    """

    input_per_million: float
    output_per_million: float
    currency: str
    as_of: str

    def __post_init__(self) -> None:
        for price in (self.input_per_million, self.output_per_million):
            if not (math.isfinite(price) and price >= 0):
                raise KitError(f"a price is {price}", "give two numbers of 0 or more")
        try:
            date.fromisoformat(self.as_of)
        except (TypeError, ValueError):
            remedy = "say when they were looked up, as YYYY-MM-DD"
            raise KitError(f"prices are dated {self.as_of!r}", remedy) from None

    def money(self, input_tokens: int, output_tokens: int) -> int:
        """Billionths of the currency, rounded up."""
        millionths = input_tokens * self.input_per_million + output_tokens * self.output_per_million
        return math.ceil(1000 * millionths)


def parse_prices(text: str) -> Prices:
    """Prices from "INPUT,OUTPUT,CURRENCY,DATE", as a command line has them."""
    try:
        of_input, of_output, currency, as_of = (word.strip() for word in text.split(","))
        return Prices(float(of_input), float(of_output), currency, as_of)
    except ValueError:
        remedy = "write INPUT,OUTPUT,CURRENCY,DATE, such as 0.30,2.50,USD,2026-11-24"
        raise KitError(f"prices are {text!r}", remedy) from None


@dataclass(frozen=True)
class Limits:
    """How fast a run may go and what it may spend; None: no limit.

    Budgets are of everything that the output has cost, earlier runs included. A call that failed counts as a
    call without tokens. A call whose fate is unknown (cut off, killed) counts at its worst case, one that did
    not reach the server not at all.

    Attributes:
        concurrency: calls in flight.
        requests_per_minute: in any minute.
        tokens_per_minute: input and output, in any minute.
        budget_calls: calls.
        budget_tokens: input and output.
        budget_money: in the currency of `prices`, which it needs.
        prices: what tokens cost.
        max_attempts: calls about one request before it is given up.
        seed: of the back-off's jitter.
    """

    concurrency: int = 8
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    budget_calls: int | None = None
    budget_tokens: int | None = None
    budget_money: float | None = None
    prices: Prices | None = None
    max_attempts: int = 6
    seed: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name.startswith("budget") else 1
            if field.name not in ("prices", "seed") and value is not None and not value >= least:
                raise KitError(f"{field.name} is {value}", f"give {least} or more, or None for no limit")
        if self.budget_money is not None and self.prices is None:
            remedy = "give prices=Prices(input_per_million, output_per_million, currency, as_of)"
            raise KitError("budget_money is set without prices", remedy)


class Spent(NamedTuple):
    """Calls, tokens and money (billionths of the currency); a difference of two may be negative."""

    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    money: int = 0

    @property
    def tokens(self) -> int:
        """Input and output."""
        return self.input_tokens + self.output_tokens

    @property
    def paid(self) -> bool:
        """Whether there is anything to pay for."""
        return self.tokens > 0

    def plus(self, other: Spent) -> Spent:
        return Spent(*map(operator.add, self, other))

    def minus(self, other: Spent) -> Spent:
        return Spent(*map(operator.sub, self, other))


class Budget:
    """Reserves each call at its worst case before it is made and settles it with what it used: `total` never
    exceeds the limits.

    That holds as long as no call uses more than `Teacher.worst_case` said.
    """

    def __init__(self, limits: Limits, spent: Spent = Spent()) -> None:
        self.limits, self.total = limits, spent

    def of(self, usage: Usage, calls: int = 1) -> Spent:
        """Calls that use so much in all, at the user's prices."""
        prices, asked, answered = self.limits.prices, usage.input_tokens, usage.output_tokens
        return Spent(calls, asked, answered, prices.money(asked, answered) if prices else 0)

    def reserve(self, worst: Spent) -> str | None:
        """Set `worst` aside; where it does not fit nothing changes and the limit that it would exceed is
        named.
        """
        total, limits = self.total.plus(worst), self.limits
        for name, amount, most, unit in (
            ("budget_calls", total.calls, limits.budget_calls, 1),
            ("budget_tokens", total.tokens, limits.budget_tokens, 1),
            ("budget_money", total.money, limits.budget_money, NANO),
        ):
            if most is not None and amount > most * unit:
                return name
        self.total = total
        return None

    def settle(self, worst: Spent, used: Spent) -> None:
        """A reserved call is over."""
        self.total = self.total.plus(used.minus(worst))


class Rate:
    """Requests and tokens of the last minute, and how long the next call has to wait. `now` is any clock's
    seconds.
    """

    def __init__(self, limits: Limits) -> None:
        self.requests, self.tokens = limits.requests_per_minute, limits.tokens_per_minute
        self.sent: deque[list[float]] = deque()  # [when, tokens], oldest first; settled in place
        self.paused_until = -math.inf

    def wait(self, now: float, tokens: int) -> float:
        """Seconds until a call of at most `tokens` may be made, 0 for now. Raises `KitError` when it never
        may.
        """
        if self.tokens is not None and tokens > self.tokens:
            what = f"one request may take {tokens} tokens, tokens_per_minute is {self.tokens}"
            raise KitError(what, "raise the limit, or show fewer keyframes")
        while self.sent and self.sent[0][0] + WINDOW <= now:
            self.sent.popleft()
        until, used = self.paused_until, sum(entry[1] for entry in self.sent)
        for place, (when, size) in enumerate(self.sent):
            over = self.requests is not None and len(self.sent) - place >= self.requests
            if not over and (self.tokens is None or used + tokens <= self.tokens):
                break
            until, used = max(until, when + WINDOW), used - size
        return until - now if until - now > 1e-6 else 0.0

    def add(self, now: float, tokens: int) -> list[float]:
        """A call is made; its entry's second number may be corrected when its tokens are known."""
        entry = [now, float(tokens)]
        if self.requests is not None or self.tokens is not None:
            self.sent.append(entry)
        return entry


def backoff(attempt: int, retry_after: float | None, random_source: random.Random) -> float:
    """Seconds before the next attempt after `attempt` failed ones: what the server asked for, and full jitter
    under a doubling ceiling.
    """
    ceiling = min(LONGEST_DELAY, FIRST_DELAY * 2 ** (attempt - 1))
    return (retry_after or 0.0) + random_source.uniform(0, ceiling)

"""What an annotation run is going to take, before it makes a call: from real requests, the teacher's bounds
and the user's prices.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from refinevla_kit.errors import KitError
from refinevla_kit.teacher.limits import NANO, Budget, Limits, Prices, Spent
from refinevla_kit.teacher.requests import count_requests, requests, sampled
from refinevla_kit.teacher.schema import Teacher

if TYPE_CHECKING:
    from refinevla_kit.episodes import EpisodeDataset

OUTPUT_TOKENS = 300  # of a rationale in the four parts, as long as nothing is measured
MEASURED = 20  # calls made before their average replaces the assumption


@dataclass(frozen=True)
class Estimate:
    """Requests still to be made and what they take; money in the currency of `prices`, None without.

    Attributes:
        requests: to be answered, of `total`;
        episodes: how many they were counted on.
        typical: one call each, the input at its bound and the output as measured so far or, before that,
            `OUTPUT_TOKENS` long.
        worst: every reply as
            long as it may be and followed up once.
        hours: of the typical case, with calls of `latency` seconds and the limits given.
    """

    requests: int
    total: int
    episodes: int
    typical: Spent
    worst: Spent
    hours: float
    latency: float
    limits: Limits

    @property
    def money(self) -> float | None:
        return self.typical.money / NANO if self.limits.prices else None

    @property
    def worst_money(self) -> float | None:
        return self.worst.money / NANO if self.limits.prices else None

    @property
    def free(self) -> bool:
        """Nothing to pay: no tokens, or prices of 0."""
        return not self.worst.paid or self.worst_money == 0

    def __str__(self) -> str:
        prices: Prices | None = self.limits.prices
        set_budgets = {name: getattr(self.limits, f"budget_{name}") for name in ("calls", "tokens", "money")}
        budgets = [f"{name} {value:g}" for name, value in set_budgets.items() if value is not None]
        time = f"{self.hours:.1f} h" if self.hours >= 1 else f"{60 * self.hours:.0f} min"
        lines = [
            f"requests  {self.requests:,} of {self.total:,} (by {self.episodes} episodes), a call "
            f"each; up to {self.worst.calls:,} with follow-ups",
            f"tokens    {self.typical.input_tokens:,} in, {self.typical.output_tokens:,} out; "
            f"up to {self.worst.input_tokens:,} in, {self.worst.output_tokens:,} out",
            f"money     {self.money:.2f} {prices.currency}, up to {self.worst_money:.2f} "
            f"{prices.currency} (prices of {prices.as_of}, yours to check)"
            if prices
            else "money     unknown: no prices were given"
            if self.worst.paid
            else "money     none: this teacher costs nothing",
            f"time      {time}, {self.limits.concurrency} calls at a time of {self.latency:g} s "
            "each, within the limits",
        ]
        return "\n".join(
            [*lines, f"budget    {', '.join(budgets)}: the run stops there"] if budgets else lines
        )


def estimate_calls(
    dataset: EpisodeDataset,
    teacher: Teacher,
    granularity: str,
    keyframes: int,
    limits: Limits,
    done: int = 0,
    spent: Spent = Spent(),
    latency: float = 5.0,
    sample: int = 16,
) -> Estimate:
    """Estimate a run without making a call.

    Args:
        dataset, teacher, granularity, keyframes, limits: as for `annotate_dataset`.
        done, spent: requests that an earlier run has answered and what they took.
        latency: seconds a call.
        sample: episodes whose requests are made.
    """
    total, chosen, budget = count_requests(dataset, granularity), sampled(dataset, sample), Budget(limits)
    bounds = [teacher.worst_case(request) for request in requests(dataset, granularity, keyframes, chosen)]
    left, count = max(0, total - done), max(1, len(bounds))
    bound_in, bound_out = (
        sum(each.input_tokens for each in bounds) / count,
        sum(each.output_tokens for each in bounds) / count,
    )
    mean_in, mean_out = bound_in, min(bound_out, OUTPUT_TOKENS)
    if done and spent.calls >= MEASURED:
        mean_in, mean_out = (
            min(bound_in, spent.input_tokens / done),
            min(bound_out, spent.output_tokens / done),
        )
    typical = budget.of_many(left, round(left * mean_in), round(left * mean_out))
    worst = budget.of_many(2 * left, round(2 * left * bound_in), round(2 * left * bound_out))
    hours = left * latency / limits.concurrency / 3600
    for rate, amount in (
        (limits.requests_per_minute, left),
        (limits.tokens_per_minute, typical.input_tokens + typical.output_tokens),
    ):
        hours = max(hours, amount / rate / 60 if rate else 0)
    return Estimate(left, total, len(chosen), typical, worst, hours, latency, limits)


def attended() -> bool:
    """Whether a person may be there to answer a question: at a terminal, or before a notebook in a
    browser.
    """
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if kernel := getattr(shell, "kernel", None):
        return bool(getattr(kernel, "_allow_stdin", True))  # papermill allows none
    return sys.stdin is not None and sys.stdin.isatty()


def confirm(expected: Estimate, confirmed: bool | None = None) -> None:
    """Show what a run is going to take and go on only when it is free or somebody agrees.

    Args:
        confirmed: True agrees; None asks, where somebody can answer (a terminal, a notebook in a browser; not
            papermill, not a pipe).
    Raises: `KitError` when nobody agreed, with the estimate.
    """
    if expected.free or confirmed or not expected.requests:
        return
    print(expected, flush=True)
    answer = ""
    if confirmed is None:
        with suppress(EOFError, OSError, NotImplementedError):  # nobody there
            answer = input("Make these calls? [y/N] ")
    if answer.strip().lower() not in ("y", "yes"):
        prices = expected.limits.prices
        money = f"{expected.money:.2f} {prices.currency}" if prices else "an unknown sum"
        what = f"the run would make about {expected.requests:,} calls for {money} and was not confirmed"
        raise KitError(what, "pass confirm=True (on a command line --yes) to go on")

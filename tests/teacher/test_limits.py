"""What a run may spend and how fast: the budget is never overshot, no minute holds more than it may, a
server's wish to wait is kept.
"""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refinevla_kit.errors import KitError
from refinevla_kit.teacher import Limits, Prices, Usage, parse_prices
from refinevla_kit.teacher.limits import LONGEST_DELAY, NANO, Budget, Rate, Spent, backoff

PRICES = Prices(0.3, 2.5, "EUR", "2026-11-24")
TOKENS = st.integers(0, 10_000)


@st.composite
def calls(draw: st.DrawFn) -> tuple[Usage, Usage]:
    """(worst case, what is used), the latter no more than the former."""
    worst = Usage(draw(TOKENS), draw(TOKENS))
    return worst, Usage(draw(st.integers(0, worst.input_tokens)), draw(st.integers(0, worst.output_tokens)))


@given(
    st.lists(calls(), max_size=60),
    st.integers(1, 9),
    st.tuples(st.integers(0, 40), st.integers(0, 200_000), st.floats(0, 0.3)),
    st.randoms(use_true_random=False),
)
def test_a_budget_is_never_overshot(
    made, concurrency: int, most: tuple[int, int, float], order: random.Random
) -> None:
    most_calls, most_tokens, most_money = most
    limits = Limits(
        concurrency,
        budget_calls=most_calls,
        budget_tokens=most_tokens,
        budget_money=most_money,
        prices=PRICES,
    )
    budget, flying, paid = Budget(limits), [], Spent()
    for worst, used in made:
        if budget.reserve(budget.of(worst)) is None:
            flying.append((budget.of(worst), budget.of(used)))
        while len(flying) == concurrency or (flying and order.random() < 0.3):  # replies come in any order
            reserved, settled = flying.pop(order.randrange(len(flying)))
            budget.settle(reserved, settled)
            paid = paid.plus(settled)
            assert paid.calls <= most_calls
            assert paid.input_tokens + paid.output_tokens <= most_tokens
            assert paid.money <= most_money * NANO
    for reserved, settled in flying:
        budget.settle(reserved, settled)
        paid = paid.plus(settled)
    assert budget.total == paid  # nothing stays reserved, nothing is given back twice
    assert paid.calls <= most_calls
    assert paid.input_tokens + paid.output_tokens <= most_tokens
    assert paid.money <= most_money * NANO


def test_a_budget_is_spent_to_the_last_call() -> None:
    budget = Budget(Limits(budget_money=1.0, prices=Prices(0.1, 0.0, "EUR", "2026-11-24")))
    each = budget.of(Usage(1_000_000, 0))  # 0.1, of which floats make 0.9999999999999999 in ten
    assert [budget.reserve(each) for _ in range(11)] == [None] * 10 + ["budget_money"]
    budget.settle(each, Spent(1))
    assert budget.reserve(each) is None


@given(
    st.lists(st.tuples(st.floats(0, 40), st.integers(0, 500)), min_size=1, max_size=80),
    st.integers(1, 12),
    st.integers(500, 3000),
)
def test_no_minute_holds_more_than_it_may(made, most_requests: int, most_tokens: int) -> None:
    rate, now, sent = Rate(Limits(requests_per_minute=most_requests, tokens_per_minute=most_tokens)), 0.0, []
    for pause, tokens in made:
        now += pause
        while wait := rate.wait(now, tokens):
            assert wait <= 62
            now += wait
        rate.add(now, tokens)
        sent.append((now, tokens))
    for start, _ in sent:
        minute = [tokens for when, tokens in sent if start <= when < start + 60]
        assert len(minute) <= most_requests
        assert sum(minute) <= most_tokens


def test_the_rate_waits_no_longer_than_it_must() -> None:
    rate = Rate(Limits(requests_per_minute=2))
    rate.add(0.0, 1)
    rate.add(10.0, 1)
    assert rate.wait(20.0, 1) == pytest.approx(41.0)
    rate = Rate(Limits(tokens_per_minute=100))
    entry = rate.add(0.0, 100)
    assert rate.wait(20.0, 60) > 0
    entry[1] = 40  # it used less than was reserved
    assert rate.wait(20.0, 60) == 0
    with pytest.raises(KitError, match="tokens_per_minute is 100"):
        rate.wait(20.0, 101)


def test_back_off_is_jittered_grows_and_keeps_the_servers_delay() -> None:
    delays = [
        [backoff(attempt, None, random.Random(seed)) for seed in range(200)] for attempt in range(1, 12)
    ]
    assert [
        max(each) <= min(LONGEST_DELAY, 2 ** (attempt - 1)) for attempt, each in enumerate(delays, 1)
    ] == [True] * 11
    assert (
        min(max(each) / min(LONGEST_DELAY, 2 ** (attempt - 1)) for attempt, each in enumerate(delays, 1))
        > 0.9
    )  # full jitter: all of the range
    assert max(min(each) for each in delays) < 2
    asked = [backoff(attempt, 7.5, random.Random(attempt)) for attempt in range(1, 12)]
    assert all(7.5 <= each <= 7.5 + LONGEST_DELAY for each in asked)
    assert len(set(asked)) == 11
    assert backoff(3, None, random.Random(5)) == backoff(3, None, random.Random(5))


def test_prices_are_the_users_and_dated() -> None:
    assert parse_prices("0.3, 2.5, EUR, 2026-11-24") == PRICES
    assert PRICES.money(1_000_000, 2_000_000) == 5.3 * NANO
    for wrong in (
        "1,2,EUR",
        "x,2,EUR,2026-11-24",
        "1,2,EUR,yesterday",
        "-1,2,EUR,2026-11-24",
        "nan,2,EUR,2026-11-24",
    ):
        with pytest.raises(KitError):
            parse_prices(wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {"concurrency": 0},
        {"requests_per_minute": 0},
        {"budget_calls": -1},
        {"budget_money": 1.0},
        {"max_attempts": 0},
    ],
)
def test_limits_that_make_no_sense_are_one_line(wrong: dict[str, float]) -> None:
    with pytest.raises(KitError, match=next(iter(wrong))):
        Limits(**wrong)

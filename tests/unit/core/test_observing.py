"""The strategies that run in workers decide as the rules that are replayed in simulations do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from scheduler.core.beliefs import belief_of_one
from scheduler.core.evidence import NO_ANSWER, Samples, see
from scheduler.core.observing import believed_after, chance_of_leader, observed
from scheduler.core.policies import PEERS, WINDOW_PEERS
from scheduler.core.policies.base import Mode, Rule, Workload
from scheduler.core.policies.priced import WhileWorthIt
from scheduler.core.policies.voting import WhileAVoteIsWorthIt
from scheduler.core.said import FEATURES, said
from scheduler.core.strategies import STRATEGIES, Generate
from scheduler.core.strategies.self_consistency import elect_weighed
from scheduler.types import COUNTS_ONLY, Arm, Lessons, Outcome, Plan, Query, Sample, Verdict, VerifierSpec

QUERY = Query(
    id=1,
    model="small",
    messages=(),
    prompt_tokens=9,
    prompt_tokens_max=73,
    verifier=VerifierSpec(kind=Verdict.EXACT, reference="right"),
)
TAUGHT = Lessons(
    logprob_usual=-0.3,
    worth_log=-0.2,
    failing=(0.3, 0.4, -0.5, -0.6, 0.4, -0.2),
    leading=(-1.0, *np.linspace(-0.5, 1.5, 12)),
)
TOKENS_MEAN = 40.0

samples = st.lists(
    st.builds(
        Sample,
        text=st.just(""),
        tokens=st.integers(1, 200),
        answer=st.sampled_from(["a", "b", "c", "d", None]),
        logprob_mean=st.one_of(st.none(), st.floats(-3.0, 0.0)),
        finish_reason=st.sampled_from(["stop", "length"]),
    ),
    min_size=12,
    max_size=12,
)
shapes = st.floats(0.05, 20.0)


def plan(strategy: str, price: float, alpha: float, beta: float, lessons: Lessons = TAUGHT) -> Plan:
    """A plan whose prompts are free, as they are where policies are compared by completion tokens."""
    return Plan(
        query_id=1,
        arm=Arm(model="small", strategy=strategy),
        samples_max=12,
        tokens_max=200,
        ceiling_nanousd=None,
        price=price,
        alpha=alpha,
        beta=beta,
        sample_nanousd=TOKENS_MEAN,
        tokens_mean=TOKENS_MEAN,
        lessons=lessons,
    )


def run(given_plan: Plan, lane: Sequence[Sample]) -> tuple[int, Outcome]:
    """How many samples the strategy draws of those that are all refused, and what it makes of them."""
    steps = STRATEGIES[given_plan.arm.kind](QUERY, given_plan)
    drawn, want = 0, next(steps)
    while True:
        try:
            if isinstance(want, Generate):
                wave = tuple(lane[drawn : drawn + want.n])
                drawn += want.n
                want = steps.send(wave)
            else:
                want = steps.send((0.0,) * len(want.samples))
        except StopIteration as end:
            return drawn, end.value


def drawn_by_rule(rule: Rule, lane: Sequence[Sample], *, judged: bool) -> int:
    """How many samples the rule draws, asked again after each wave; one at least, as for a strategy."""
    drawn = 0
    while drawn < len(lane):
        more = int(rule.more(observed(lane[:drawn], [False] * drawn if judged else None))[0])
        if drawn and not more:
            break
        drawn += max(1, more)
    return drawn


@given(
    lane=samples, alpha=shapes, beta=shapes, price=st.floats(1e-5, 0.02), lessons=st.sampled_from([COUNTS_ONLY, TAUGHT])
)
def test_best_of_n_draws_what_the_replayed_rule_draws(
    lane: list[Sample], alpha: float, beta: float, price: float, lessons: Lessons
) -> None:
    rule = WhileWorthIt(
        beliefs=belief_of_one(alpha, beta, TOKENS_MEAN), lessons=lessons, samples_max=np.array([12]), price=price
    )

    drawn, _ = run(plan("best_of_n", price, alpha, beta, lessons), lane)

    assert drawn == drawn_by_rule(rule, lane, judged=True)


@given(
    lane=samples,
    alpha=shapes,
    beta=shapes,
    price=st.one_of(st.just(0.0), st.floats(1e-6, 0.02)),
    settled_at=st.sampled_from([0.8, 0.9, 0.95, 0.99]),
)
def test_a_vote_draws_what_the_replayed_rule_draws(
    lane: list[Sample], alpha: float, beta: float, price: float, settled_at: float
) -> None:
    worth = np.array([alpha / (alpha + beta) / TOKENS_MEAN])
    rule = WhileAVoteIsWorthIt(worth=worth, price=price, settled_at=settled_at, samples_max=np.array([12]))

    drawn, _ = run(plan(f"self_consistency@{settled_at}", price, alpha, beta), lane)

    assert drawn == drawn_by_rule(rule, lane, judged=False)


@given(lane=samples, alpha=shapes, beta=shapes)
def test_without_lessons_failures_are_counted(lane: list[Sample], alpha: float, beta: float) -> None:
    counted = plan("best_of_n", 0.0, alpha, beta, COUNTS_ONLY)

    assert believed_after(counted, lane) == (alpha, beta + 12)
    assert believed_after(replace(counted, lessons=TAUGHT, tokens_mean=None), lane) == (alpha, beta + 12)
    assert chance_of_leader(counted, lane) is None


def test_a_long_unsure_failure_lowers_the_chance_more_than_a_short_sure_one() -> None:
    one = plan("best_of_n", 0.0, 1.0, 1.0, Lessons(failing=(-0.5, 0.5, 0.0, 0.0, 0.0, 0.0)))
    short = Sample(text="", tokens=10, answer="a", logprob_mean=-0.1)
    long = Sample(text="", tokens=90, answer="a", logprob_mean=-0.9)

    after_short, after_long = (believed_after(one, [failure]) for failure in (short, long))

    assert after_short[0] / sum(after_short) > after_long[0] / sum(after_long)


def test_the_confidence_of_a_vote_is_the_learned_chance_that_its_leader_is_right() -> None:
    agreed = [Sample(text="", tokens=40, answer="a")] * 12
    settled = plan("self_consistency", 0.0, 1.0, 1.0)

    drawn, outcome = run(settled, agreed)

    assert outcome.confidence == chance_of_leader(settled, agreed[:drawn])


@given(lane=samples, name=st.sampled_from(sorted({**PEERS, **WINDOW_PEERS})), data=st.data())
def test_a_peers_strategy_draws_what_its_replayed_rule_draws(
    lane: list[Sample], name: str, data: st.DataObject
) -> None:
    peer = {**PEERS, **WINDOW_PEERS}[name]
    low, high = peer.allowed
    setting = data.draw(st.floats(low, min(high, 16.0)))
    judged = Mode.VERIFIER in peer.modes
    workload = Workload(
        mode=Mode.VERIFIER if judged else Mode.VOTE,
        beliefs=belief_of_one(2.0, 3.0, TOKENS_MEAN),
        samples_max=np.array([12]),
    )

    drawn, outcome = run(plan(f"{name}@{setting}", 0.0, 2.0, 3.0), lane)

    assert drawn == drawn_by_rule(peer.rule(workload, setting), lane, judged=judged)
    assert outcome.chosen is not None


def test_a_peers_vote_goes_by_count_as_its_authors_do() -> None:
    unsure = [Sample(text="", tokens=9, answer="a", logprob_mean=-3.0)] * 2
    sure = [Sample(text="", tokens=9, answer="b", logprob_mean=-0.01)]
    lane = [*unsure, *sure, *[Sample(text="", tokens=9, answer=None)] * 9]

    _, counted = run(plan("asc@0.999", 0.0, 2.0, 3.0), lane)
    _, weighed = run(plan("self_consistency@0.999", 0.0, 2.0, 3.0, COUNTS_ONLY), lane)

    assert (counted.chosen, weighed.chosen) == (unsure[0], sure[0])


@given(lane=samples, weights=st.lists(st.floats(-2.0, 2.0), min_size=len(FEATURES), max_size=len(FEATURES)))
def test_a_vote_elects_what_the_replay_elects(lane: list[Sample], weights: list[float]) -> None:
    lessons = Lessons(voting=tuple(weights))
    query = replace(QUERY, messages=({"role": "user", "content": "of 3 and 8"},))
    numbers = {"a": "3", "b": "-4", "c": "10", "d": "2.5", None: None}
    lane = [replace(one, answer=numbers[one.answer]) for one in lane]
    known: dict[str, int] = {}
    codes = [NO_ANSWER if one.answer is None else known.setdefault(one.answer, len(known)) for one in lane]
    cut = [one.finish_reason == "length" for one in lane]
    logprobs = [one.logprob_mean for one in lane]
    replayed = Samples(
        answers=np.array([codes]),
        tokens=np.array([[one.tokens for one in lane]]),
        logprob=np.array([[np.nan if one is None else one for one in logprobs]]),
        truncated=np.array([cut]),
        accepted=np.zeros((1, len(lane)), bool),
        said=said("of 3 and 8", [one.answer for one in lane], [one.tokens for one in lane], logprobs, cut)[None],
    )
    code = see(replayed, judged=False, lessons=lessons).elected_code[0, -1]

    outcome = elect_weighed(query, plan("self_consistency", 0.0, 1.0, 1.0, lessons), tuple(lane), because="")

    assert outcome.chosen is lane[0 if code == NO_ANSWER else codes.index(code)]

"""What votes are expected to take, against votes that the strategy holds."""

from __future__ import annotations

import numpy as np
import pytest

from scheduler.core.strategies import STRATEGIES, Generate
from scheduler.core.votes import EXACT_MAX, RIVAL_SHARE, vote_costs, vote_curve
from scheduler.types import Arm, Plan, Query, Sample

QUERY = Query(id=1, model="small", messages=(), prompt_tokens=9, prompt_tokens_max=73)
VOTES = 3000


def held(rate: float, samples_max: int, rng: np.random.Generator) -> tuple[int, int, bool]:
    """The samples and waves of one vote, and whether it elected the right answer."""
    arm = Arm(model="small", strategy="self_consistency")
    plan = Plan(query_id=1, arm=arm, samples_max=samples_max, tokens_max=64, ceiling_nanousd=None)
    steps = STRATEGIES["self_consistency"](QUERY, plan)
    want, drawn, waves = next(steps), 0, 0
    while True:
        assert isinstance(want, Generate)
        drawn, waves = drawn + want.n, waves + 1
        said = rng.choice(3, want.n, p=[rate, (1 - rate) * RIVAL_SHARE, (1 - rate) * (1 - RIVAL_SHARE)])
        answers = ["right" if one == 0 else "rival" if one == 1 else f"other {rng.random()}" for one in said]
        try:
            want = steps.send(tuple(Sample(text="", tokens=1, answer=answer) for answer in answers))
        except StopIteration as end:
            return drawn, waves, end.value.chosen.answer == "right"


@pytest.mark.parametrize(("alpha", "beta"), [(9.0, 1.0), (2.0, 3.0), (0.5, 8.0)])
@pytest.mark.parametrize("samples_max", [3, 4, 5, 8, 16, 32, 48])
def test_a_vote_takes_the_samples_and_waves_that_are_expected_of_it(
    alpha: float, beta: float, samples_max: int
) -> None:
    rng = np.random.default_rng(3)
    votes = np.array([held(rate, samples_max, rng) for rate in rng.beta(alpha, beta, VOTES)], np.float64)
    one, none = np.ones(1), np.zeros(1)

    samples = vote_costs(np.array([alpha]), np.array([beta]), none, one, samples_max)[0, samples_max]
    waves = vote_costs(np.array([alpha]), np.array([beta]), one, none, samples_max)[0, samples_max]

    assert samples == pytest.approx(votes[:, 0].mean(), rel=0.05)
    assert waves == pytest.approx(votes[:, 1].mean(), rel=0.05 if samples_max <= EXACT_MAX else 0.2)
    gain = vote_curve(np.array([alpha]), np.array([beta]), samples_max)[0, samples_max]
    assert gain == pytest.approx(votes[:, 2].mean(), abs=0.03)


def test_the_right_to_draw_more_never_costs_less_and_no_vote_more_than_all_of_its_samples() -> None:
    alpha, beta = np.array([0.3, 2.0, 20.0]), np.array([3.0, 2.0, 0.5])

    costs = vote_costs(alpha, beta, np.zeros(3), np.ones(3), 100)

    assert (np.diff(costs, axis=1) >= 0).all()
    assert (costs <= np.arange(101) + 1e-9).all()
    assert costs[:, 0].tolist() == [0, 0, 0]


def test_a_votes_cost_does_not_depend_on_how_many_samples_others_may_have() -> None:
    alpha, beta, prompt, sample = np.ones(1), np.ones(1), np.ones(1), np.full(1, 0.05)

    alone, beside = (vote_costs(alpha, beta, prompt, sample, most)[0, :5] for most in (4, 32))

    assert alone == pytest.approx(beside)

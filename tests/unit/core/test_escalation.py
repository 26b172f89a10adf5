"""The next model is asked where what it is expected to add is worth its cost."""

from __future__ import annotations

from functools import cache

import numpy as np

from scheduler.core.escalation import STOP, ArmsModel, Standing, answered, fit_arms, next_arm, refused
from scheduler.core.evidence import NO_ANSWER

SMALL, LARGE = 0, 1


def world(queries: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A small and a large model, both better on easy queries; what is hard takes longer."""
    rng = np.random.default_rng(seed)
    difficulty = rng.normal(size=queries)
    chances = 1 / (1 + np.exp(-(np.array([-0.5, 1.5]) - 2.0 * difficulty[:, None])))
    right = rng.random((queries, 2)) < chances
    costs = np.exp(0.4 * difficulty[:, None] + rng.normal(scale=0.2, size=(queries, 2))) * np.array([1.0, 30.0])
    answers = np.where(right, 0, 1 + rng.integers(0, 10, (queries, 2)))
    return right, costs, answers


@cache
def model() -> ArmsModel:
    return fit_arms(*world(500))


def test_the_fitted_model_says_how_often_arms_are_right_alone_and_together() -> None:
    right, costs, answers = world(1500, seed=1)

    fitted = fit_arms(right, costs, answers)

    assert np.allclose(fitted.weight @ fitted.right, right.mean(axis=0), atol=0.03)
    both = fitted.weight @ (fitted.right[:, SMALL] * fitted.right[:, LARGE])
    assert abs(both - (right[:, SMALL] & right[:, LARGE]).mean()) < 0.04
    assert np.allclose(fitted.weight @ fitted.cost, costs.mean(axis=0), rtol=0.05)


def test_a_refusal_makes_the_query_look_harder() -> None:
    fitted = model()
    fresh = Standing.fresh(fitted, 1)

    after = refused(fitted, fresh, SMALL)

    before, now = (float((s.joint @ fitted.right[:, LARGE]).sum() / s.joint.sum()) for s in (fresh, after))
    assert now < before - 0.05


def test_agreement_is_worth_more_than_one_answer() -> None:
    fitted = model()
    one = answered(fitted, Standing.fresh(fitted, 1), SMALL, 0)

    same, other = (answered(fitted, one, LARGE, group) for group in (0, 1))

    sure = [float(s.best[0] / s.joint.sum()) for s in (one, same, other)]
    assert sure[1] > sure[0] > sure[2] - 0.5
    assert sure[1] > 0.9
    assert other.leading[0] == 1, "of two answers the large model's is more likely right"


def test_a_lower_price_never_asks_less() -> None:
    fitted = model()
    fresh = Standing.fresh(fitted, 1)

    for judged in (True, False):
        choices = [int(next_arm(fitted, fresh, price, judged=judged, depth=2)[0]) for price in (10.0, 0.1, 1e-4)]
        assert choices[0] == STOP
        assert STOP not in choices[1:]


def test_with_a_verifier_the_cheap_model_is_tried_first() -> None:
    fitted = model()

    assert next_arm(fitted, Standing.fresh(fitted, 1), 1e-3, judged=True, depth=2)[0] == SMALL


def test_an_unreadable_answer_counts_as_a_wrong_one() -> None:
    fitted = model()

    standing = answered(fitted, Standing.fresh(fitted, 1), SMALL, NO_ANSWER)

    assert np.array_equal(standing.joint, refused(fitted, Standing.fresh(fitted, 1), SMALL).joint)

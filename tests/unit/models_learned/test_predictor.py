"""What the predictor learns from synthetic queries whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from models.learned.facts import Examples, Facts
from models.learned.predictor import DifficultyPredictor
from scheduler.core.beliefs import Evidence
from scheduler.core.evidence import see
from scheduler.core.judging import Judged, reliability
from scheduler.core.lessons import leader_right, next_right
from scheduler.types import COUNTS_ONLY
from tests.unit.models_learned.synthetic import synthetic

Known = tuple[DifficultyPredictor, Examples, NDArray[np.float64]]


@pytest.fixture(scope="module")
def known() -> Known:
    taught, _ = synthetic(240, seed=1)
    left, rates = synthetic(400, seed=2)
    return DifficultyPredictor().fit(taught), left, rates


def test_predicted_rates_follow_the_true_ones_of_queries_not_seen(known: Known) -> None:
    predictor, left, rates = known

    believed = predictor.beliefs(left.facts)

    assert np.corrcoef(believed.rate, rates)[0, 1] > 0.8
    assert predictor.uses_features_


def test_what_is_predicted_happens_that_often(known: Known) -> None:
    predictor, left, _ = known

    believed = predictor.beliefs(left.facts)
    judged = Judged(
        alpha=believed.alpha, beta=believed.beta, right=left.right.astype(np.int64), judged=left.samples_max
    )

    assert max(abs(one.predicted - one.right) for one in reliability(judged)) < 0.12


def test_the_beta_is_as_wide_as_the_truth_scatters_about_it(known: Known) -> None:
    predictor, left, rates = known
    believed = predictor.beliefs(left.facts)
    draws = np.random.default_rng(0).beta(believed.alpha[:, None], believed.beta[:, None], (len(left), 400))

    rank = (draws < rates[:, None]).mean(axis=1)

    # uniform ranks: as many truths in the lowest and highest quarter of their Beta as in the middle half
    assert 0.35 < ((rank < 0.25) | (rank > 0.75)).mean() < 0.65


def test_after_failures_the_next_sample_is_right_as_often_as_said(known: Known) -> None:
    predictor, left, rates = known
    believed = predictor.beliefs(left.facts)
    seen = see(left.samples, judged=True)
    failed = seen.evidence.failures[:, 4] == 4
    after_four = seen.evidence.take((failed, slice(4, 5)))

    said = next_right(predictor.lessons, believed.take(failed), after_four)[:, 0]

    assert said.mean() == pytest.approx(rates[failed].mean(), abs=0.04)
    plain = next_right(COUNTS_ONLY, believed.take(failed), after_four)[:, 0]
    assert np.abs(said - rates[failed]).mean() <= np.abs(plain - rates[failed]).mean() + 0.01


def test_without_evidence_the_posterior_is_the_prior(known: Known) -> None:
    predictor, left, _ = known
    believed = predictor.beliefs(left.facts)

    said = next_right(predictor.lessons, believed, Evidence.none(len(left)))

    assert said == pytest.approx(np.clip(believed.rate, 0.01, 0.99))


def test_the_leader_is_right_as_often_as_said(known: Known) -> None:
    predictor, left, _ = known
    seen = see(left.samples, judged=False)
    voted = seen.evidence.leader[:, 5] > 0
    right = left.samples.accepted & (left.samples.answers == seen.leader_code[:, 5:6])

    said = leader_right(
        predictor.lessons, predictor.beliefs(left.facts).take(voted), seen.evidence.take((voted, slice(5, 6)))
    )

    assert said.mean() == pytest.approx(right.any(axis=1)[voted].mean(), abs=0.06)


def test_lengths_are_predicted_with_quantiles_that_hold(known: Known) -> None:
    predictor, left, _ = known

    believed = predictor.beliefs(left.facts)

    longest = believed.tokens_quantiles[:, believed.levels.index(0.9)]
    assert (left.samples.tokens <= longest[:, None]).mean() == pytest.approx(0.9, abs=0.03)
    assert believed.tokens_mean.mean() == pytest.approx(left.samples.tokens.mean(), rel=0.1)


def test_features_that_say_nothing_are_left_aside() -> None:
    taught, _ = synthetic(120, seed=3)
    rng = np.random.default_rng(0)
    shuffled = tuple(taught.facts[row] for row in rng.permutation(len(taught)))
    blind = Examples(facts=shuffled, samples=taught.samples, samples_max=taught.samples_max)

    predictor = DifficultyPredictor().fit(blind)

    assert not predictor.uses_features_
    assert np.ptp(predictor.beliefs(blind.facts).rate) < 0.2


@pytest.mark.parametrize("queries", [1, 2, 19])
def test_thin_data_give_the_rates_of_tasks(queries: int) -> None:
    taught, _ = synthetic(queries, seed=4)

    believed = DifficultyPredictor().fit(taught).beliefs(taught.facts)

    assert np.isfinite(believed.alpha).all()
    assert (believed.alpha > 0).all()
    assert (believed.beta > 0).all()


def test_a_task_and_tenant_never_seen_get_the_rate_of_all() -> None:
    taught, _ = synthetic(10, seed=5)
    strange = Facts(text="What?", prompt_tokens=3, task="never seen", tenant="nobody", probe=taught.facts[0].probe)

    believed = DifficultyPredictor().fit(taught).beliefs([strange])

    assert believed.rate[0] == pytest.approx((taught.right / taught.samples_max).mean(), abs=0.2)


def test_a_query_unlike_all_others_stays_within_bounds(known: Known) -> None:
    predictor, left, _ = known
    probe = left.facts[0].probe
    assert probe is not None
    far = np.full_like(probe, 1e6)

    strange = Facts(text="9" * 100_000, prompt_tokens=10**9, probe=far)
    empty = Facts(text="", prompt_tokens=0, probe=probe)

    believed = predictor.beliefs([strange, empty])

    assert ((believed.rate > 0) & (believed.rate < 1)).all()
    assert (believed.tokens_mean < 2 * left.samples.tokens.max()).all()


def test_without_probes_the_rest_carries_on() -> None:
    examples, _ = synthetic(60, seed=7)
    facts = tuple(Facts(text=f.text, prompt_tokens=f.prompt_tokens, task=f.task) for f in examples.facts)
    unprobed = Examples(facts=facts, samples=examples.samples, samples_max=examples.samples_max)

    predictor = DifficultyPredictor().fit(unprobed)

    assert not predictor.featuriser_.with_probe
    assert len(predictor.beliefs(facts)) == 60

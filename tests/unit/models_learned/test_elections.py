"""Votes weigh what earlier elections taught."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from models.learned.elections import Elections, VoteWeights, hold_elections
from models.learned.facts import Examples
from models.learned.predictor import DifficultyPredictor
from scheduler.core.evidence import NO_ANSWER, Samples
from scheduler.core.said import FEATURES, PLAIN
from tests.unit.models_learned.synthetic import synthetic

NEGATIVE = FEATURES.index("negative")


def telling(queries: int, seed: int, *, tells: float) -> Examples:
    """Examples whose wrong answers agree, and of which the share `tells` is negative."""
    examples, _ = synthetic(queries, seed)
    rng = np.random.default_rng(seed)
    right = examples.samples.accepted
    shown = np.zeros_like(examples.samples.said)
    shown[..., NEGATIVE] = ~right & (rng.random(right.shape[:1]) < tells)[:, None]
    samples = replace(examples.samples, answers=np.where(right, 0, 1), said=shown)
    return replace(examples, samples=samples)


def elections_of(examples: Examples) -> Elections:
    samples = Samples(**{name: getattr(examples.samples, name)[:, None] for name in Samples.__dataclass_fields__})
    return hold_elections(samples, examples.samples_max)


def test_an_answer_shaped_as_wrong_ones_are_weighs_less() -> None:
    learned = VoteWeights().fit(elections_of(telling(200, 1, tells=0.8))).lessons.voting

    assert learned[NEGATIVE] < -1
    assert len(learned) == len(FEATURES)


def test_without_an_election_to_learn_from_the_plain_rule_stays() -> None:
    examples = telling(20, 1, tells=0.5)
    alike = replace(examples, samples=replace(examples.samples, answers=np.zeros_like(examples.samples.answers)))

    assert len(elections_of(alike)) == 0
    assert VoteWeights().fit(elections_of(alike)).lessons.voting == PLAIN


def test_elections_are_held_where_right_and_wrong_answers_stand() -> None:
    examples = telling(60, 2, tells=0.5)
    held = elections_of(examples)

    assert held.right.sum() == len(held)  # of two answers one is right
    assert set(held.query) <= set(np.flatnonzero((examples.right > 0) & (examples.right < 12)))
    assert np.add.reduceat(np.ones(len(held.answer_of)), held.votes_at).min() >= 1


def test_those_of_some_queries_are_what_would_have_been_held_of_them_alone() -> None:
    examples = telling(40, 3, tells=0.5)
    some = np.arange(40) % 3 == 0
    ours, alone = elections_of(examples).of(some), elections_of(examples.take(np.flatnonzero(some)))

    for name in ("shown", "votes_at", "answers_at", "answer_of", "election_of", "right"):
        assert np.array_equal(getattr(ours, name), getattr(alone, name)), name
    assert np.array_equal(ours.query, np.flatnonzero(some)[alone.query])


def test_samples_without_an_answer_have_no_vote() -> None:
    examples = telling(30, 4, tells=0.5)
    mute = np.where(np.arange(12) % 2 == 0, NO_ANSWER, examples.samples.answers)
    held = elections_of(replace(examples, samples=replace(examples.samples, answers=mute)))

    assert len(held.shown) <= 6 * len(held)


@pytest.mark.parametrize(("tells", "used"), [(0.9, True), (0.0, False)])
def test_weights_are_used_only_where_they_elect_more_right_answers(tells: float, used: bool) -> None:
    predictor = DifficultyPredictor().fit(telling(120, 5, tells=tells))

    assert bool(predictor.lessons.voting) is used


def test_the_slope_of_the_loss_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def remember(loss: object, start: NDArray[np.float64], **_options: object) -> object:
        seen["loss"], seen["start"] = loss, start
        raise StopIteration

    monkeypatch.setattr("models.learned.elections.minimize", remember)
    with pytest.raises(StopIteration):
        VoteWeights().fit(elections_of(telling(40, 6, tells=0.5)))
    at = seen["start"] + np.linspace(-0.3, 0.3, len(seen["start"]))
    value, slope = seen["loss"](at)
    steps = np.eye(len(at)) * 1e-6
    measured = [(seen["loss"](at + step)[0] - value) / 1e-6 for step in steps]

    assert slope == pytest.approx(measured, rel=1e-3, abs=1e-3)

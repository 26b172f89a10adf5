"""Thinking ends when the answer looks settled, or at the cap."""

from __future__ import annotations

import numpy as np

from scheduler.core.thinking import NEVER, ThinkingRule, Thoughts, concave, schedule, think


def thoughts() -> Thoughts:
    """Three thinkings looked at every 10 tokens: settled early, settled late, never right."""
    right = np.array([[0, 1, 1, 1], [0, 0, 0, 1], [0, 0, 0, 0]], bool)
    return Thoughts(
        tokens=np.array([10, 20, 30, 40]),
        asking=2,
        answers=right.astype(np.int64),
        right=right,
        confidence=np.where(right, 0.9, 0.4),
        entropy=np.where(right, 0.1, 1.0),
        count=np.array([4, 4, 4]),
        final_tokens=np.array([45, 48, 400]),
        final_right=np.array([True, True, False]),
    )


def test_a_cap_alone_takes_the_answer_at_its_end() -> None:
    right, tokens = think(thoughts(), ThinkingRule(schedule=(), threshold=NEVER, cap=25), np.zeros((3, 0)))

    assert right.tolist() == [True, False, False]
    assert tokens.tolist() == [27, 27, 27], "the cap and one look"


def test_without_a_cap_thinking_ends_by_itself() -> None:
    right, tokens = think(thoughts(), ThinkingRule(schedule=(), threshold=NEVER, cap=1000), np.zeros((3, 0)))

    assert right.tolist() == [True, True, False]
    assert tokens.tolist() == [45, 48, 400]


def test_a_settled_answer_ends_the_thinking_and_every_look_is_paid() -> None:
    rule = ThinkingRule(schedule=(1, 3), threshold=0.8, cap=1000)
    chances = np.array([[0.9, 0.9], [0.1, 0.9], [0.1, 0.1]])

    right, tokens = think(thoughts(), rule, chances)

    assert right.tolist() == [True, True, False]
    assert tokens.tolist() == [22, 44, 404]


def test_looks_become_rarer() -> None:
    points = np.arange(1, 41) * 10

    assert schedule(points, 40, 1.0)[:3] == (3, 4, 5)
    assert schedule(points, 40, 2.0) == (3, 7, 15, 31)


def test_only_settings_on_the_concave_envelope_are_kept() -> None:
    costs, accuracies = np.array([10.0, 20.0, 30.0, 25.0, 40.0]), np.array([0.5, 0.55, 0.8, 0.3, 0.8])

    assert concave(accuracies, costs).tolist() == [0, 2]

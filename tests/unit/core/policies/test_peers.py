"""The peers' rules stop where their originals stop."""

from __future__ import annotations

import numpy as np
import pytest

from scheduler.core.beliefs import uniform_beliefs
from scheduler.core.evidence import NO_ANSWER, Ints, Samples, Seen, see
from scheduler.core.policies import POLICIES
from scheduler.core.policies.adaptive_consistency import UntilBetaHolds, UntilDirichletHolds, leader_is_most_likely
from scheduler.core.policies.bandit import WhileOpen
from scheduler.core.policies.base import Mode, Rule, Workload
from scheduler.core.policies.esc import UntilUnanimous
from scheduler.core.policies.its_hub import UntilEnoughAgree
from scheduler.core.policies.strategies import StrategyRule
from scheduler.core.said import FEATURES

ANSWERS = (
    "aaaaaaaaaaaa",
    "abababababab",
    "aabacaaaaaaa",
    "abcdefabcdef",
    "aaabbbaaaaaa",
    "abbbbbbbbbbb",
    "abcaaaaabaaa",
)


def seen(answers: str, accepted: str = "") -> Seen:
    codes = np.array([[ord(a) - ord("a") if a != "-" else NO_ANSWER for a in answers]])
    given = np.array([[v == "1" for v in accepted or "0" * len(answers)]])
    samples = Samples(
        answers=codes,
        tokens=np.full_like(codes, 100),
        logprob=np.full(codes.shape, np.nan),
        truncated=np.zeros(codes.shape, bool),
        accepted=given,
        said=np.zeros((*codes.shape, len(FEATURES))),
    )
    return see(samples, judged=bool(accepted))


def drawn_by(rule: Rule, shown: Seen) -> int:
    wanted = rule.more(shown)[0]
    drawn = 0
    while drawn < len(wanted) - 1 and wanted[drawn]:
        drawn += int(wanted[drawn])
    return drawn


def limit(n: int) -> Ints:
    return np.array([n])


@pytest.mark.parametrize(
    ("threshold", "stops"),
    [(0.8, (2, 12, 2, 12, 2, 4, 5)), (0.95, (4, 12, 8, 12, 12, 7, 8)), (0.99, (6, 12, 11, 12, 12, 10, 12))],
)
def test_adaptive_consistency_stops_where_its_package_stops(threshold: float, stops: tuple[int, ...]) -> None:
    """Figures from AdaptiveConsistency 1.0.0 (PyPI), BetaStoppingCriteria asked after each answer."""
    rule = UntilBetaHolds(threshold=threshold, samples_max=limit(12))

    assert tuple(drawn_by(rule, seen(answers)) for answers in ANSWERS) == stops


@pytest.mark.parametrize(
    ("answers", "chance"),
    [
        ("abc", 0.3333),
        ("aabc", 0.5354),
        ("aaabc", 0.6976),
        ("aaaabbc", 0.7184),
        ("aaaaaaabbcc", 0.9018),
        ("aaaabbccd", 0.6116),
    ],
)
def test_the_dirichlet_rule_gives_the_chances_of_its_package(answers: str, chance: float) -> None:
    """Figures from AdaptiveConsistency 1.0.0 (PyPI), DirichletStoppingCriteria(use_markov=False)."""
    assert leader_is_most_likely(seen(answers).top_votes[0, -1:])[0] == pytest.approx(chance, abs=2e-4)


def test_the_dirichlet_rule_is_the_beta_rule_for_two_answers() -> None:
    beta, dirichlet = (r(threshold=0.95, samples_max=limit(12)) for r in (UntilBetaHolds, UntilDirichletHolds))

    assert [drawn_by(beta, seen(a)) for a in ANSWERS[:2]] == [drawn_by(dirichlet, seen(a)) for a in ANSWERS[:2]]


@pytest.mark.parametrize(
    ("threshold", "stops"),
    [(0.6, (2, 12, 2, 12, 2, 4, 8)), (0.75, (2, 12, 2, 12, 2, 4, 8)), (0.9, (2, 12, 2, 12, 2, 12, 12))],
)
def test_its_hub_stops_where_its_package_stops(threshold: float, stops: tuple[int, ...]) -> None:
    """Figures from its-hub 1.2.0 (PyPI), AdaptiveSelfConsistency with a budget of 12 and these answers in turn."""
    rule = UntilEnoughAgree(threshold=threshold, samples_max=limit(12))

    assert tuple(drawn_by(rule, seen(answers)) for answers in ANSWERS) == stops


def test_early_stopping_ends_at_the_first_unanimous_window() -> None:
    rule = UntilUnanimous(window=3, samples_max=limit(12))

    assert [drawn_by(rule, seen(a)) for a in ("aaaaaaaaaaaa", "abaaaaaaaaaa", "aabbbabababa")] == [3, 6, 12]


def test_elimination_drops_what_is_solved_and_in_the_end_what_is_hopeless() -> None:
    rule = WhileOpen(bound=0.4, samples_max=limit(12))

    assert drawn_by(rule, seen("aaaaaaaaaaaa", accepted="000100000000")) == 4
    assert drawn_by(rule, seen("aaaaaaaaaaaa", accepted="000000000000")) == 6  # 1 - 0.05^(1/6) = 0.39


@pytest.mark.parametrize("name", sorted(POLICIES))
@pytest.mark.parametrize("mode", list(Mode))
def test_no_policy_asks_for_more_than_a_query_may_have(name: str, mode: Mode) -> None:
    policy = POLICIES[name]
    shown = seen("abcabcabcabc", accepted="000000000000" if mode is Mode.VERIFIER else "")
    workload = Workload(
        mode=mode,
        beliefs=uniform_beliefs(1, 100.0, (50.0, 80.0, 100.0, 120.0, 150.0, 200.0)),
        samples_max=limit(7),
    )

    settings = policy.settings(workload, [0.5, 1.0, 4.0, 7.0]) if mode in policy.modes else []

    rules = [setting.rule for setting in settings if not isinstance(setting.rule, StrategyRule)]
    assert all(drawn_by(rule, shown) <= 7 for rule in rules)

"""When one more sample is not worth asking for: rules over the votes cast so far."""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaln, gammaln

SETTLED_AT = 0.95
"""The confidence at which a vote is settled; the threshold of Adaptive-Consistency's published figures."""


def leader_holds(leader: int, runner_up: int) -> float:
    """The chance that the leading answer is the more frequent one of the first two.

    P(p > 1/2) for p ~ Beta(leader + 1, runner_up + 1), exactly: 2^-n * sum_{k=0..leader} C(n, k) with
    n = leader + runner_up + 1 (Adaptive-Consistency, arXiv 2305.11860, the Beta criterion).
    """
    n = leader + runner_up + 1
    ways = total = 1
    for k in range(leader):
        ways = ways * (n - k) // (k + 1)  # C(n, k + 1) from C(n, k); math.comb anew for each k takes n times longer
        total += ways
    return total / (1 << n)


def is_settled(leader: int, runner_up: int, settled_at: float = SETTLED_AT) -> bool:
    """Whether the vote is decided at the given confidence."""
    return leader > runner_up and leader_holds(leader, runner_up) >= settled_at


def is_decided(leader: int, runner_up: int, votes_left: int) -> bool:
    """Whether the votes left could not change the winner, not even if all of them went to the runner-up."""
    return leader - runner_up > votes_left


@cache
def leader_survives(leader: int, runner_up: int, others: int, left: int) -> float:
    """The chance that `left` more samples do not let the runner-up overtake the leader.

    The next samples vote for the leader, the runner-up or neither (`others` did so) as a Dirichlet-multinomial with the
    votes so far; unlike `leader_holds` it knows how few samples are left to change anything.
    """
    votes, splits = np.arange(left + 1)[:, None], np.arange(left + 1)[None, :]
    # first how many of the next samples vote for either of the two, then how many of those for the leader
    either = _log_beta_binomial(votes, left, leader + runner_up + 1.0, others + 1.0)
    for_leader = _log_beta_binomial(splits, votes, leader + 0.5, runner_up + 0.5)
    stays = (splits <= votes) & (leader + splits >= runner_up + votes - splits)
    return float(np.exp(either + for_leader, where=stays, out=np.zeros(stays.shape)).sum())


def votes_to_settle(leader: int, runner_up: int, votes_max: int, settled_at: float = SETTLED_AT) -> int:
    """The fewest further votes after which the vote could be settled or decided, if all of them went to the leader.

    Asking for fewer could not end the vote, so a wave of this size wastes none. `votes_max` is how many can be had.
    """
    to_decide = (votes_max - leader + runner_up) // 2 + 1
    return max(1, min(votes_max, to_decide, _more_to_settle(leader, runner_up, settled_at)))


@lru_cache(maxsize=1 << 16)
def _more_to_settle(leader: int, runner_up: int, settled_at: float) -> int:
    more = 1
    while not is_settled(leader + more, runner_up, settled_at):
        more += 1
    return more


def is_vote_worth(votes: tuple[int, int, int], left: int, rate: float, price: float) -> bool:
    """Whether one more sample of a vote is worth its price, in right answers per sample.

    `votes` are those of the leader, of the runner-up, and of all others together with what could not be read. What
    `left` more samples may gain is at most the chance that the leader falls times the chance that a sample is right.
    """
    leader = votes[0]
    falls = 1.0 if not leader else 1.0 - leader_survives(*votes, left)
    return price <= 0 or falls * rate >= price


def _log_beta_binomial(k: NDArray[Any], n: NDArray[Any] | int, a: float, b: float) -> NDArray[np.float64]:
    """log P(k of n) under a Beta-binomial with parameters a and b; what it says of k > n means nothing."""
    rest = np.maximum(n - k, 0)
    ways = gammaln(n + 1.0) - gammaln(k + 1.0) - gammaln(rest + 1.0)
    return np.asarray(ways + betaln(k + a, rest + b) - betaln(a, b))

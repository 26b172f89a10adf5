"""What prefixes of samples show."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.core.evidence import NO_ANSWER, Samples, see
from tests.shown import shown_by


def samples(answers: list[list[int]], accepted: list[list[int]] | None = None) -> Samples:
    codes = np.array(answers)
    tokens, logprob, truncated = 10 * (codes + 2), np.where(codes == 0, -0.5, np.nan), codes == NO_ANSWER
    return Samples(
        answers=codes,
        tokens=tokens,
        logprob=logprob,
        truncated=truncated,
        said=shown_by(tokens, logprob, truncated),
        accepted=np.array(accepted, bool) if accepted is not None else np.zeros(codes.shape, bool),
    )


def test_votes_are_counted_as_they_come() -> None:
    seen = see(samples([[1, 0, 0, NO_ANSWER, 0, 1]]), judged=False)

    assert seen.evidence.leader[0].tolist() == [0, 1, 1, 2, 2, 3, 3]
    assert seen.evidence.runner_up[0].tolist() == [0, 0, 1, 1, 1, 1, 2]
    assert seen.leader_code[0].tolist() == [NO_ANSWER, 1, 1, 0, 0, 0, 0]
    assert seen.streak[0].tolist() == [0, 1, 1, 2, 0, 1, 1]
    assert seen.evidence.unreadable[0].tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert seen.evidence.leader_tokens[0].tolist() == [0, 30, 30, 40, 40, 60, 60]
    assert seen.evidence.leader_logprob_known[0].tolist() == [0, 0, 0, 2, 2, 3, 3]


def test_of_answers_with_as_many_votes_the_surer_one_is_elected() -> None:
    seen = see(samples([[0, 1, 1, 0]]), judged=False)

    assert seen.elected_code[0].tolist() == [NO_ANSWER, 0, 1, 1, 1]  # a vote for 0 weighs exp(-0.5), one for 1 weighs 1
    assert seen.leader_code[0].tolist() == [NO_ANSWER, 0, 0, 1, 0]


def test_failures_are_counted_only_where_something_judges() -> None:
    drawn = samples([[0, 1, 2]], accepted=[[0, 1, 0]])

    assert see(drawn, judged=True).evidence.failures[0].tolist() == [0, 1, 1, 2]
    assert see(drawn, judged=False).evidence.failures[0].tolist() == [0, 0, 0, 0]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-1, 5), min_size=2, max_size=12), st.data())
def test_what_is_seen_never_depends_on_what_comes_later(answers: list[int], data: st.DataObject) -> None:
    k = data.draw(st.integers(0, len(answers)))
    other = answers[:k] + data.draw(st.lists(st.integers(-1, 5), min_size=len(answers) - k, max_size=len(answers) - k))

    one, two = (see(samples([drawn]), judged=False) for drawn in (answers, other))

    cells = np.s_[:, : k + 1]
    for name in one.evidence.__dataclass_fields__:
        assert np.array_equal(getattr(one.evidence, name)[cells], getattr(two.evidence, name)[cells])
    for name in ("drawn", "accepted", "streak", "top_votes", "leader_code", "elected_code"):
        assert np.array_equal(getattr(one, name)[cells], getattr(two, name)[cells])

"""The predictor that reads the text of the ledger's queries: what it learns, and that its file gives back the same."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from scheduler import predictor_files, retuning
from scheduler.core.judging import gain_over
from scheduler.core.observing import chance_of_leader
from scheduler.learned import TextLearner, as_examples
from scheduler.learning import Drawn, Example, Remembers
from scheduler.probes import packed
from scheduler.retuning import beliefs_of
from scheduler.types import Arm, Plan, Probe, Query, Sample
from tests.factories import MODEL
from tests.unit.test_champion import BELIEVED

SAMPLES_MAX = 4


def settled(number: int, seed: int = 1, model: str = MODEL) -> list[Example]:
    """Sums of which the longer ones are harder, each sampled until the first right answer, as the daemon does."""
    dice = random.Random(seed)
    found = []
    for i in range(number):
        digits = dice.randint(1, 6)
        rate = 1 / digits - 0.1
        question = " + ".join(str(dice.randint(1, 9)) * digits for _ in range(2))
        drawn: list[Drawn] = []
        while len(drawn) < SAMPLES_MAX and not any(one.right for one in drawn):
            right = dice.random() < rate
            answer = "right" if right else str(dice.randint(0, 3))
            drawn.append(Drawn(tokens=10 * digits, right=right, answer=answer, logprob_mean=-0.3))
        query = Query(
            id=i,
            model=model,
            messages=({"role": "user", "content": f"What is {question}?"},),
            prompt_tokens=8 + digits,
            prompt_tokens_max=20,
            task="sums",
        )
        found.append(Example(query=query, drawn=tuple(drawn), believed=BELIEVED))
    return found


def arms(examples: list[Example]) -> list[Arm]:
    return [Arm(model=example.query.model, strategy="best_of_n") for example in examples]


def test_it_learns_from_stopped_samples_which_queries_are_hard_and_how_long_answers_get() -> None:
    learned = TextLearner().fit(settled(300), "v1")
    left = settled(200, seed=2)

    believed = learned.predict([one.query for one in left], arms(left))

    digits = np.array([one.drawn[0].tokens / 10 for one in left])
    rates = np.array([one.success_rate for one in believed])
    assert np.corrcoef(rates, 1 / digits)[0, 1] > 0.8
    assert rates.mean() == pytest.approx((1 / digits - 0.1).mean(), abs=0.1)
    assert np.corrcoef([one.tokens_expected for one in believed], digits)[0, 1] > 0.8


def test_it_is_promoted_where_the_text_tells_and_its_card_says_what_it_uses() -> None:
    verdict = retuning.judge(settled(500), None, "v1", examples_min=200)

    assert verdict.is_better, verdict.because
    assert verdict.card["kind"] == "text"
    assert verdict.card["about"]["models"][MODEL]["uses_text"]
    assert verdict.card["about"]["models"][MODEL]["uses_probe"] is None
    assert set(verdict.card["versions"]) == {"numpy", "scikit-learn", "skops"}


def test_a_model_it_has_seen_little_of_gets_plain_priors() -> None:
    learned = TextLearner().fit([*settled(60), *settled(5, model="other")], "v1")
    query = settled(1)[0].query

    believed = learned.predict(
        [query, replace(query, model="other")], [Arm(model=m, strategy="auto") for m in (MODEL, "other")]
    )

    assert set(learned.content()["models"]) == {MODEL}
    assert [one.version for one in believed] == ["v1", "v1"]


def test_its_file_gives_back_the_same_beliefs(tmp_path: Path) -> None:
    learned = TextLearner().fit(settled(60), "v1")
    left = settled(20, seed=3)
    queries = [one.query for one in left]

    path, sha256 = predictor_files.save(tmp_path, "v1", learned.content())
    restored = predictor_files.load(path, sha256)

    assert restored.predict(queries, arms(left)) == learned.predict(queries, arms(left))


def test_it_remembers_earlier_queries_one_by_one_also_out_of_its_file(tmp_path: Path) -> None:
    examples = settled(60)
    learned = TextLearner().fit(examples, "v1")

    path, sha256 = predictor_files.save(tmp_path, "v1", learned.content())
    restored = predictor_files.load(path, sha256)

    assert isinstance(restored, Remembers)
    past = restored.past(MODEL)
    assert past is not None
    assert past.right.tolist() == [one.right for one in examples]
    assert past.judged.tolist() == [one.judged for one in examples]
    assert (past.alpha > 0).all()
    assert restored.past("other") is None
    assert learned.about()["remembers"] == [MODEL]


def test_a_file_whose_model_is_none_of_ours_is_refused(tmp_path: Path) -> None:
    content = dict(TextLearner().fit(settled(30), "v1").content()) | {"models": {MODEL: 3}}
    path, sha256 = predictor_files.save(tmp_path, "v1", content)

    with pytest.raises(predictor_files.PredictorUnusable, match="not ours"):
        predictor_files.load(path, sha256)


def test_only_judged_samples_teach_rates() -> None:
    one = settled(1)[0]
    mixed = replace(one, drawn=(Drawn(tokens=5, right=None), Drawn(tokens=9, right=True, answer="3")))

    examples = as_examples([mixed])

    assert examples.samples_max.tolist() == [1]
    assert examples.right.tolist() == [1.0]


def test_the_text_of_a_conversation_is_that_of_its_messages() -> None:
    parts = [{"type": "text", "text": "b"}, {"type": "refusal", "refusal": "c"}]

    messages = ({"role": "system", "content": "a"}, {"role": "user", "content": parts}, {"role": "tool"})
    query = Query(id=1, model="m", messages=messages, prompt_tokens=1, prompt_tokens_max=1)

    assert query.text == "a\nb\n"


def test_samples_that_ended_at_the_first_right_one_teach_nothing_of_votes() -> None:
    learned = TextLearner().fit(settled(200), "v1")

    assert learned.lessons()[MODEL].leading == ()


def test_votes_teach_how_often_a_leader_is_right_where_the_beta_test_is_wrong() -> None:
    learned = TextLearner().fit(elected(400), "v1")
    [query] = [one.query for one in elected(1)]
    [believed] = learned.predict([query], [Arm(model=MODEL, strategy="self_consistency")])
    agreed = [Sample(text="", tokens=20, answer="right", logprob_mean=-0.3)] * 4
    plan = Plan(
        query_id=1,
        arm=Arm(model=MODEL, strategy="self_consistency"),
        samples_max=8,
        tokens_max=64,
        ceiling_nanousd=None,
        alpha=believed.alpha,
        beta=believed.beta,
        tokens_mean=believed.tokens_mean,
        lessons=learned.lessons()[MODEL],
    )

    sure = chance_of_leader(plan, agreed)

    # four equal votes are right seven times of ten here; the Beta test of the first two answers says 0.97 for each
    assert sure == pytest.approx(0.7, abs=0.1)


def elected(number: int) -> list[Example]:
    """Votes that ended when four of four agreed: on the right answer for seven queries of ten, else on one wrong."""
    dice = random.Random(5)
    found = []
    for one in settled(number):
        is_right = dice.random() < 0.7
        vote = Drawn(tokens=20, right=is_right, answer="right" if is_right else "wrong", logprob_mean=-0.3)
        found.append(replace(one, drawn=(vote,) * 4, judged_early=False))
    return found


def seeing(examples: list[Example], view: str = "small-layer2", *, tells: bool = True, seed: int = 5) -> list[Example]:
    """The examples with a probe that tells how many digits the numbers have, or nothing; their text tells nothing."""
    dice = np.random.default_rng(seed)
    found = []
    for one in examples:
        noise = dice.normal(size=24)
        vector = packed([*(noise + (one.drawn[0].tokens / 10 if tells else 0.0) * np.linspace(-1, 1, 24))])
        messages = ({"role": "user", "content": "How much is it?"},)
        probe = Probe(view=view, vector=vector)
        query = replace(one.query, messages=messages, prompt_tokens=9, probe=probe)
        found.append(replace(one, query=query))
    return found


def test_queries_with_a_probe_are_predicted_by_it_also_out_of_the_predictors_file(tmp_path: Path) -> None:
    learned = TextLearner().fit(seeing(settled(300)), "v1")
    path, sha256 = predictor_files.save(tmp_path, "v1", learned.content())
    left = seeing(settled(200, seed=2), seed=6)
    queries = [one.query for one in left]

    believed = predictor_files.load(path, sha256).predict(queries, arms(left))

    rates = [one.success_rate for one in believed]
    assert np.corrcoef(rates, [10 / one.drawn[0].tokens for one in left])[0, 1] > 0.8
    assert learned.about()["models"][MODEL]["uses_probe"] == "small-layer2"
    assert believed == learned.predict(queries, arms(left))


@pytest.mark.parametrize(
    "probe",
    [None, Probe(view="other-layer2", vector=packed([9.0] * 24)), Probe(view="small-layer2", vector=packed([9.0] * 8))],
    ids=["no probe", "another view", "another width"],
)
def test_a_query_without_a_probe_that_can_be_read_is_predicted_by_its_text(probe: Probe | None) -> None:
    examples = seeing(settled(300))
    both = TextLearner().fit(examples, "v1")
    by_text = TextLearner().fit([replace(one, query=replace(one.query, probe=None)) for one in examples], "v1")
    queries = [replace(one.query, probe=probe) for one in settled(20, seed=2)]

    assert both.predict(queries, arms(examples[:20])) == by_text.predict(queries, arms(examples[:20]))


def test_probes_that_tell_nothing_cost_next_to_nothing() -> None:
    lost = []
    for seed in range(4):
        taught = seeing(settled(200, seed), tells=False, seed=seed)
        left = seeing(settled(300, 100 + seed), tells=False, seed=100 + seed)
        by_text = TextLearner().fit([replace(one, query=replace(one.query, probe=None)) for one in taught], "v1")
        lost.append(gain_over(beliefs_of(TextLearner().fit(taught, "v1"), left), beliefs_of(by_text, left)).mean)

    assert np.mean(lost) < 0.01


def test_of_probes_of_two_views_the_newest_are_read() -> None:
    old, new = seeing(settled(150), "old"), seeing(settled(150, seed=3), "new")

    learned = TextLearner().fit([*old, *new], "v1")

    assert learned.about()["models"][MODEL]["uses_probe"] == "new"


def test_it_is_promoted_against_one_that_reads_no_probes_where_those_tell_more() -> None:
    verdict = retuning.judge(seeing(settled(500)), None, "v1", examples_min=200)

    assert verdict.is_better, verdict.because
    assert verdict.card["about"]["models"][MODEL]["uses_probe"] == "small-layer2"

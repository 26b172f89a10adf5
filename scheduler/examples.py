"""Examples out of the ledger: what settled queries say of how hard they were."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from models.tables import PlanRow, QueryRow, SampleRow, Wave
from scheduler.core.strategies.named import draws_all, is_vote, kind_of
from scheduler.drafts import as_query
from scheduler.learning import Drawn, Example
from scheduler.probes import probes_of
from scheduler.states import QUERY_FINAL, USABLE
from scheduler.types import Prediction, Probe

EXAMPLES_MAX = 20_000
"""The newest settled queries that are learned from."""
AT_ONCE = 500
HELD_OUT_SHARE = 0.3


def read_examples(session: Session, limit: int = EXAMPLES_MAX) -> list[Example]:
    """The newest settled queries of which at least one sample is known to be right or wrong, oldest first.

    One that several models were asked is an example for each of them.
    """
    settled = QueryRow.state.in_(sorted(QUERY_FINAL)), QueryRow.samples_drawn > 0, QueryRow.model.is_not(None)
    ids = session.scalars(select(QueryRow.id).where(*settled).order_by(QueryRow.id.desc()).limit(limit)).all()
    found: list[Example] = []
    for start in range(0, len(ids), AT_ONCE):
        found += _examples(session, ids[start : start + AT_ONCE])
    return sorted(found, key=lambda example: example.query.id)


def is_held_out(query_id: int) -> bool:
    """Whether a query judges predictors instead of training them; the same for every predictor."""
    digest = hashlib.sha256(f"held out:{query_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < HELD_OUT_SHARE


def verdicts(row: QueryRow | Any, samples: Sequence[SampleRow | Any]) -> list[bool | None]:
    """Whether each sample of a query is right; None where nobody knows.

    What the verifier said of each sample counts, unless somebody labelled the answer otherwise. Such a label is the
    word on every sample with the same answer; where it says that the answer is right, others are wrong.
    """
    chosen = next((sample for sample in samples if sample.id == row.chosen_sample_id), None)
    if row.correct is None or chosen is None or chosen.correct == row.correct:
        return [sample.correct for sample in samples]
    return [_by_label(sample, chosen, label=row.correct) for sample in samples]


def _by_label(sample: Any, chosen: Any, *, label: bool) -> bool | None:
    if sample is chosen or (sample.answer is not None and sample.answer == chosen.answer):
        return label
    return False if label and sample.answer is not None else None


def _examples(session: Session, ids: Sequence[int]) -> list[Example]:
    rows = session.scalars(select(QueryRow).where(QueryRow.id.in_(ids))).all()
    latest = select(func.max(PlanRow.id)).where(PlanRow.query_id.in_(ids)).group_by(PlanRow.query_id, PlanRow.model)
    plans = {
        (plan.query_id, plan.model): plan for plan in session.scalars(select(PlanRow).where(PlanRow.id.in_(latest)))
    }
    samples: dict[int, list[Any]] = defaultdict(list)
    columns = (
        SampleRow.id,
        SampleRow.query_id,
        SampleRow.answer,
        SampleRow.correct,
        SampleRow.tokens,
        SampleRow.logprob_mean,
        SampleRow.finish_reason,
        Wave.model,
    )
    wanted = select(*columns).join(Wave, Wave.id == SampleRow.wave_id)
    wanted = wanted.where(SampleRow.query_id.in_(ids), SampleRow.finish_reason.in_(USABLE))
    for sample in session.execute(wanted.order_by(SampleRow.id)):
        samples[sample.query_id].append(sample)
    probes = probes_of(session, ids)
    found = []
    for row in rows:
        found_right = list(zip(samples[row.id], verdicts(row, samples[row.id]), strict=True))
        for model in dict.fromkeys(sample.model for sample in samples[row.id]):
            drawn = [(sample, right) for sample, right in found_right if sample.model == model]
            plan = plans.get((row.id, model))
            if plan is not None and any(right is not None for _, right in drawn):
                found.append(_example(row, plan, drawn, probes.get(row.id)))
    return found


def _example(row: QueryRow, plan: PlanRow, drawn: Sequence[tuple[Any, bool | None]], probe: Probe | None) -> Example:
    query = as_query(row, None, plan.model, probe)
    can_judge = query.verifier is not None and query.verifier.can_judge
    kind = kind_of(plan.strategy)
    return Example(
        query=query,
        judged_early=not (is_vote(kind, can_judge=can_judge) or draws_all(kind, can_judge=can_judge)),
        drawn=tuple(
            Drawn(
                tokens=sample.tokens,
                right=right,
                answer=sample.answer,
                logprob_mean=sample.logprob_mean,
                truncated=sample.finish_reason == "length",
            )
            for sample, right in drawn
        ),
        believed=Prediction(
            alpha=plan.alpha,
            beta=plan.beta,
            tokens_p50=plan.tokens_p50,
            tokens_p90=plan.tokens_p90,
            version=plan.predictor_version,
        ),
        explored=plan.explored,
        settled_at=row.finished_at,
    )

"""What a file would do and cost if it were submitted now; nothing is written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import numpy as np
from sqlalchemy import select
from sqlalchemy.orm import Session

from models.tables import LlmRow, QueryRow, Tenant
from scheduler.arms import models_of
from scheduler.budgets import FIXED, with_policy
from scheduler.choices import curves_of, plain_arms
from scheduler.core.evidence import Ints
from scheduler.core.pricing import Price
from scheduler.drafts import Draft, draft_for, is_drawn_at_once, with_beliefs
from scheduler.errors import InvalidRequest, TooLarge
from scheduler.forecast import Prospects, Reach, reaches
from scheduler.intake import REASONS_MAX
from scheduler.jsonlines import BYTE_ORDER_MARK, foreign_start, split_lines
from scheduler.learning import Remembers
from scheduler.ledger import price_at
from scheduler.line_rows import known_limits, parse_one, queued_columns, without_duplicates
from scheduler.peers import share_out
from scheduler.prediction import Predictor
from scheduler.requests import Defaults, ParsedQuery, Rejection, batch_options
from scheduler.settings import Settings

AT_ONCE = 1000
"""Lines that are predicted together."""
COSTS = ("low", "expected", "worst")


@dataclass(frozen=True, kw_only=True, slots=True)
class DryRun:
    """What a file would do and cost, in nano-dollars, if it were submitted now; `bad` holds the first rejections."""

    lines: int
    runnable: int
    bad: tuple[Rejection, ...]
    low_nanousd: int
    expected_nanousd: int
    worst_nanousd: int
    reaches: tuple[Reach, ...] = ()


def dry_run(
    session: Session,
    chunks: Iterable[bytes],
    settings: Settings,
    tenant_id: str,
    now: datetime,
    predictor: Predictor,
    strategy: str | None = None,
    what_if_nanousd: Sequence[int] = (),
) -> DryRun:
    """What a file would do and cost, and what it would reach for each of the amounts. Writes nothing.

    Raises InvalidRequest for what would fail the batch as a whole, TooLarge for a file over the limits.
    """
    session.get_one(Tenant, tenant_id)
    limits = known_limits(session, now, settings.samples_limit)
    options, _ = batch_options({"strategy": strategy} if strategy is not None else {})
    defaults = Defaults(options=options)
    llms = {llm.name: llm for llm in session.scalars(select(LlmRow))}
    prices: dict[str, Price] = {}
    seen: dict[str, int] = {}
    bad: list[Rejection] = []
    prospects = Prospects()
    asked: list[Draft] = []
    costs = np.zeros(len(COSTS), np.int64)
    total = runnable = 0
    for line in split_lines(_checked_start(chunks, settings.file_bytes_max), settings.line_bytes_max):
        total += 1
        if total > settings.lines_max:
            raise TooLarge(f"The file has more than {settings.lines_max} lines; split it into several batches.")
        parsed = without_duplicates(parse_one(line, settings.line_bytes_max, defaults, limits), seen)
        if isinstance(parsed, Rejection):
            if len(bad) < REASONS_MAX:
                bad.append(parsed)
            continue
        runnable += 1
        for model in parsed.models or (parsed.model,):
            if model not in prices:
                prices[model] = price_at(session, model, now)
        asked.append(draft_of(parsed, tenant_id, llms, prices, settings))
        if len(asked) == AT_ONCE:
            costs += weigh(asked, predictor, prospects)
            asked.clear()
    if not total:
        raise InvalidRequest("The file has no lines; write one request per line.", code="empty_file")
    low, expected, worst = costs + weigh(asked, predictor, prospects)
    return DryRun(
        lines=total,
        runnable=runnable,
        bad=tuple(bad),
        low_nanousd=round(low),
        expected_nanousd=round(expected),
        worst_nanousd=round(worst),
        reaches=reaches(prospects, what_if_nanousd),
    )


def draft_of(
    parsed: ParsedQuery, tenant_id: str, llms: Mapping[str, LlmRow], prices: Mapping[str, Price], settings: Settings
) -> Draft:
    """The plan of a query that is not yet a row, where money is not scarce; what is believed of it comes later."""
    row = QueryRow(id=0, batch_id="", line=parsed.line, tenant_id=tenant_id, samples_drawn=0, **queued_columns(parsed))
    first, *others = [draft_for(row, llms[model], model, prices[model], settings) for model in models_of(row)]
    return replace(first, others=tuple(others))


def weigh(drafts: Sequence[Draft], predictor: Predictor, prospects: Prospects) -> Ints:
    """The sums of low, expected and worst nano-dollars (COSTS); what the lines promise joins `prospects`.

    Low is one sample of median length (all of them where they are drawn at once); expected what the plan's strategy
    draws by what is believed of the query; worst every sample in a wave of its own at full length. Of the models that
    may answer a line, low takes the cheapest and worst the dearest, or all where one is asked after the other. A line's
    own limit bounds each.
    """
    if not drafts:
        return np.zeros(len(COSTS), np.int64)
    drafts = share_out(
        with_beliefs(drafts, predictor), predictor.past if isinstance(predictor, Remembers) else _nothing
    )
    curves = curves_of(drafts)
    rows, plain = np.arange(len(drafts)), plain_arms(drafts, curves)
    gains, costs = curves.gains[rows, plain], curves.costs[rows, plain]
    named = np.array([with_policy(draft, explore_share=0.0).policy == FIXED for draft in drafts])
    prospects.add_named(gains[named], costs[named])
    if not named.all():
        prospects.add(curves.take(rows[~named]))
    sums = np.zeros(len(COSTS), np.int64)
    for draft, expected in zip(drafts, costs, strict=True):
        low = min(_least_nanousd(variant) for variant in draft.variants)
        worsts = [_most_nanousd(variant) for variant in draft.variants]
        worst = sum(worsts) if draft.plan.arm.kind == "best_of_n" else max(worsts)
        bound = worst if draft.plan.ceiling_nanousd is None else min(worst, draft.plan.ceiling_nanousd)
        sums += np.minimum((low, max(low, round(expected)), worst), bound)
    return sums


def _least_nanousd(draft: Draft) -> int:
    samples = draft.plan.samples_max if is_drawn_at_once(draft.query, draft.plan) else 1
    tokens = min(draft.plan.tokens_max, draft.prediction.tokens_p50)
    return draft.price.most_nanousd(draft.query.prompt_tokens, samples, tokens)


def _most_nanousd(draft: Draft) -> int:
    wave = draft.price.most_nanousd(draft.query.prompt_tokens_max, 1, draft.plan.tokens_max)
    return wave * draft.plan.samples_max


def _nothing(_model: str) -> None:
    """What plain priors remember of single queries."""


def _checked_start(chunks: Iterable[bytes], bytes_max: int) -> Iterator[bytes]:
    """The same bytes without a byte order mark. Raises InvalidRequest for what is no UTF-8, TooLarge for too many."""
    total = 0
    for i, chunk in enumerate(_no_short_start(chunks)):
        total += len(chunk)
        if total > bytes_max:
            raise TooLarge(f"The file is larger than {bytes_max} bytes; split it into several batches.")
        if i == 0 and (wrong := foreign_start(chunk)) is not None:
            raise InvalidRequest(wrong, code="invalid_encoding")
        yield chunk.removeprefix(BYTE_ORDER_MARK) if i == 0 else chunk


def _no_short_start(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes, where the first chunk is long enough to tell what kind of file it is."""
    rest = iter(chunks)
    start = b""
    for chunk in rest:
        start += chunk
        if len(start) >= 8:
            break
    yield start
    yield from rest

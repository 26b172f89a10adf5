"""What a file would do and cost if it were submitted now; nothing is written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import numpy as np
from sqlalchemy import select
from sqlalchemy.orm import Session

from models.tables import LlmRow, QueryRow, Tenant
from scheduler.choices import curves_of, plain_arms, prompt_nanousd, sample_nanousd
from scheduler.core.evidence import Ints
from scheduler.core.pricing import Price
from scheduler.drafts import Draft, allot, as_query, choose_strategy, is_drawn_at_once, is_voted
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
from scheduler.types import Arm, Prediction

AT_ONCE = 1000
"""Lines that are predicted together."""
COSTS = ("low", "expected", "worst")
UNKNOWN = Prediction(alpha=1.0, beta=1.0, tokens_p50=1, tokens_p90=1, version="")
"""Before a line is predicted, together with others."""


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
        price = prices.get(parsed.model) or prices.setdefault(parsed.model, price_at(session, parsed.model, now))
        asked.append(draft_of(parsed, tenant_id, llms[parsed.model], price, settings))
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


def draft_of(parsed: ParsedQuery, tenant_id: str, llm: LlmRow, price: Price, settings: Settings) -> Draft:
    """The plan of a query that is not yet a row, where money is not scarce; what is believed of it comes later."""
    row = QueryRow(id=0, line=parsed.line, tenant_id=tenant_id, **queued_columns(parsed))
    query = as_query(row, llm)
    strategy = choose_strategy(parsed.strategy, query.verifier, parsed.samples_max, query.temperature)
    plan = allot(row, query, Arm(model=parsed.model, strategy=strategy), llm, settings)
    return Draft(query=query, tenant_id=tenant_id, batch_id="", plan=plan, prediction=UNKNOWN, price=price)


def weigh(drafts: Sequence[Draft], predictor: Predictor, prospects: Prospects) -> Ints:
    """The sums of low, expected and worst nano-dollars (COSTS); what the lines promise joins `prospects`.

    Low is one sample of median length (all of them where they are drawn at once); expected what the plan's strategy
    draws by what is believed of the query; worst every sample in a wave of its own at full length. A line's own limit
    bounds each.
    """
    if not drafts:
        return np.zeros(len(COSTS), np.int64)
    told = predictor.predict([draft.query for draft in drafts], [draft.plan.arm for draft in drafts])
    believed = [replace(draft, prediction=one) for draft, one in zip(drafts, told, strict=True)]
    believed = share_out(believed, predictor.past if isinstance(predictor, Remembers) else _nothing)
    costs = curves_of(believed).costs[np.arange(len(believed)), plain_arms(believed)]
    sums = np.zeros(len(COSTS), np.int64)
    for draft, expected in zip(believed, costs, strict=True):
        plan, query, price = draft.plan, draft.query, draft.price
        least = plan.samples_max if is_drawn_at_once(query, plan) else 1
        low = price.most_nanousd(query.prompt_tokens, least, min(plan.tokens_max, draft.prediction.tokens_p50))
        worst = price.most_nanousd(query.prompt_tokens_max, 1, plan.tokens_max) * plan.samples_max
        bound = worst if plan.ceiling_nanousd is None else min(worst, plan.ceiling_nanousd)
        sums += np.minimum((low, max(low, round(expected)), worst), bound)
        prospects.add(
            draft.prediction,
            prompt_nanousd=prompt_nanousd(draft),
            sample_nanousd=sample_nanousd(draft),
            samples_max=plan.samples_max,
            is_voted=is_voted(query, plan),
        )
    return sums


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

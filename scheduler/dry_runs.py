"""What a file would do and cost if it were submitted now; nothing is written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from models.tables import LlmRow, QueryRow, Tenant
from scheduler.core.pricing import Price
from scheduler.errors import InvalidRequest, TooLarge
from scheduler.forecast import Prospects, Reach, reaches
from scheduler.intake import REASONS_MAX
from scheduler.jsonlines import BYTE_ORDER_MARK, foreign_start, split_lines
from scheduler.ledger import price_at
from scheduler.line_rows import known_limits, parse_one, queued_columns, without_duplicates
from scheduler.planning import allot, as_query, choose_strategy, estimate_nanousd, is_voted
from scheduler.prediction import FixedPriors
from scheduler.requests import Defaults, ParsedQuery, Rejection, batch_options
from scheduler.settings import Settings
from scheduler.types import Arm


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
    total = runnable = low = expected = worst = 0
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
        costs = budget_for(parsed, llms[parsed.model], price, settings, prospects)
        low, expected, worst = low + costs[0], expected + costs[1], worst + costs[2]
    if not total:
        raise InvalidRequest("The file has no lines; write one request per line.", code="empty_file")
    return DryRun(
        lines=total,
        runnable=runnable,
        bad=tuple(bad),
        low_nanousd=low,
        expected_nanousd=expected,
        worst_nanousd=worst,
        reaches=reaches(prospects, what_if_nanousd),
    )


def budget_for(
    parsed: ParsedQuery, llm: LlmRow, price: Price, settings: Settings, prospects: Prospects
) -> tuple[int, int, int]:
    """The (low, expected, worst) nano-dollars of a query that is not yet a row; what it promises joins `prospects`."""
    row = QueryRow(id=0, line=parsed.line, **queued_columns(parsed))
    query = as_query(row, llm)
    strategy = choose_strategy(parsed.strategy, query.verifier, parsed.samples_max, query.temperature)
    arm = Arm(model=parsed.model, strategy=strategy)
    plan = allot(row, query, arm, llm, settings)
    [prediction] = FixedPriors().predict([query], [arm])
    low, expected, worst = estimate_nanousd(plan, query, prediction, price)
    prospects.add(
        prediction,
        prompt_nanousd=query.prompt_tokens * price.prompt_nanousd,
        sample_nanousd=min(plan.tokens_max, prediction.tokens_p50) * price.completion_nanousd,
        samples_max=plan.samples_max,
        is_voted=is_voted(query, plan),
    )
    if parsed.limit_nanousd is None:
        return low, expected, worst
    return min(low, parsed.limit_nanousd), min(expected, parsed.limit_nanousd), min(worst, parsed.limit_nanousd)


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

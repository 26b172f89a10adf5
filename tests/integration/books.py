"""A small ledger with some of everything in it, on either database."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update
from sqlalchemy.orm import Session, sessionmaker

from models.tables import Wave
from scheduler import caps, ledger
from scheduler.core.periods import Period
from scheduler.ledger import Funded, Settlement, WaveRequest
from scheduler.types import Sample, Usage
from tests.factories import MODEL, NOW, add_batch, add_query, add_tenant, fund, new_sessions
from tests.services import PostgresServer

PROMPT = 10


@contextmanager
def books(request: pytest.FixtureRequest, directory: Path) -> Iterator[sessionmaker[Session]]:
    """An empty database of the kind that the fixture's parameter names."""
    if request.param == "sqlite":
        with new_sessions(f"sqlite:///{directory / 'allotd.db'}") as made:
            yield made
        return
    postgres: PostgresServer = request.getfixturevalue("postgres")
    url = postgres.new_database()
    with new_sessions(url) as made:
        yield made
    postgres.drop_database(url)


def live(session: Session) -> list[Funded]:
    """Two tenants, caps of two kinds, three attempts with two settled waves each; one more is held, one expired."""
    tenant, other = add_tenant(session), add_tenant(session, "other")
    for period, model in ((Period.DAY, None), (Period.TOTAL, MODEL)):
        caps.set_cap(session, tenant, limit_nanousd=10**6, period=period, model=model, now=NOW)
    batch = add_batch(session, tenant, limit_nanousd=10**6)
    attempts = [fund(session, add_query(session, batch)) for _ in range(2)]
    attempts.append(fund(session, add_query(session, add_batch(session, other))))
    for funded in attempts:
        buy(session, funded, 20, 30)
        buy(session, funded, 40)
    hold(session, attempts[0])
    dead = hold(session, attempts[1])
    session.execute(update(Wave).where(Wave.id == dead).values(prompt_tokens=PROMPT, completion_tokens=7))
    ledger.expire(session, dead, NOW)
    return attempts


def hold(session: Session, funded: Funded, now: datetime = NOW) -> int:
    """Hold a wave of two samples of 50 tokens; gives its id."""
    wave = WaveRequest(funded=funded, samples=2, tokens_max=50, tokens_floor=50, prompt_tokens=PROMPT)
    return ledger.reserve(session, wave, now).wave_id


def buy(session: Session, funded: Funded, *tokens: int, now: datetime = NOW) -> int:
    """Hold a wave and settle it with samples of so many tokens; gives its id."""
    wave_id = hold(session, funded, now)
    samples = tuple(Sample(text="21", tokens=count) for count in tokens)
    usage = Usage(prompt=PROMPT, cached=4, completion=sum(tokens))
    settlement = Settlement(funded=funded, wave_id=wave_id, usage=usage, latency_s=0.1, samples=samples)
    ledger.settle(session, settlement, now)
    return wave_id


def first(session: Session, table: Any, *conditions: Any) -> Any:
    """The oldest row that fits."""
    found = session.query(table).filter(*conditions).order_by(table.id).first()
    assert found is not None
    return found

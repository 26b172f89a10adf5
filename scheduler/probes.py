"""Probes of queries: whose are wanted next, where they are kept, and who waits for one."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

import numpy as np
from sqlalchemy import ColumnElement, delete, or_, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from models.tables import Batch, ProbeRow, QueryRow, Tenant
from scheduler.states import QUERY_FINAL, QueryState
from scheduler.types import Probe, text_of
from scheduler.waiting import WANTED_FIRST, waiting_groups, waits_in

AHEAD = 1024
"""Queries that are probed before their turn comes, of all tenants: what is wanted later may yet be called off."""
KEPT = 50_000
"""Probes of settled queries that are kept: more than predictors are taught by."""
PROBE_TYPE = "<f4"
"""The numbers of a kept vector."""
CHARACTERS_MAX = 20_000
"""Of a longer prompt only the end is read: that is where the question stands."""


NO_TURN = frozenset({QueryState.QUEUED, QueryState.CANCELLED, QueryState.EXPIRED})
"""What has not been planned since it was queued."""
ROUND_CHARACTERS = 2 * CHARACTERS_MAX


Group = tuple[str, str]
"""A tenant and a model: a queue of its own."""


class Unread(NamedTuple):
    """A query that waits without a probe: its queue, and its text."""

    group: Group
    text: str


def wanted(session: Session, limit: int, skipped: Mapping[Group, int] | None = None) -> dict[int, Unread]:
    """The queries, by id, that wait without a probe: those whose turn comes first.

    So many are `skipped` at the head of a queue that has more: their turn comes before they could be read. A round of
    long prompts has fewer of them.
    """
    places = skipped or {}
    disabled = set(session.scalars(select(Tenant.id).where(Tenant.disabled_at.is_not(None))))
    groups = [group for group in waiting_groups(session, QueryState.QUEUED) if group[0] not in disabled]
    each = max(1, AHEAD // len(groups)) if groups else 0
    turns: list[tuple[int, int]] = []  # place in its group, query
    group_of: dict[int, Group] = {}
    for tenant_id, model in groups:
        first = select(QueryRow.id).where(waits_in(QueryState.QUEUED, tenant_id, model))
        mine = first.order_by(*WANTED_FIRST).limit(each)
        left_out = places.get((tenant_id, model), 0)
        found = session.scalars(mine.offset(left_out)).all() or (session.scalars(mine).all() if left_out else [])
        turns += enumerate(found)
        group_of.update(dict.fromkeys(found, (tenant_id, model)))
    probed = set(_among(session, [query_id for _, query_id in turns]))
    ids = [query_id for _, query_id in sorted(turns) if query_id not in probed][:limit]
    rows = session.execute(select(QueryRow.id, QueryRow.body_json).where(QueryRow.id.in_(ids)))
    bodies = {row.id: row.body_json for row in rows}
    unread: dict[int, Unread] = {}
    room = ROUND_CHARACTERS
    for query_id in ids:
        text = text_of(json.loads(bodies[query_id] or "{}")["messages"])[-CHARACTERS_MAX:]
        unread[query_id] = Unread(group=group_of[query_id], text=text)
        room -= len(text)
        if room <= 0:
            break
    return unread


def late(session: Session, read: Mapping[int, Unread]) -> dict[Group, int]:
    """How many of the queries had their turn already, in each queue that they were of."""
    counts = dict.fromkeys((each.group for each in read.values()), 0)
    for row in session.execute(select(QueryRow.id, QueryRow.state).where(QueryRow.id.in_(read))):
        counts[read[row.id].group] += row.state not in NO_TURN
    return counts


def keep(session: Session, view: str, vectors: Mapping[int, Sequence[float] | None]) -> None:
    """Keep the vector of each query; None where its prompt was refused, so that it is not asked for again."""
    known = set(session.scalars(select(QueryRow.id).where(QueryRow.id.in_(vectors))))
    rows = [
        {"query_id": query_id, "view": view, "vector": None if vector is None else packed(vector)}
        for query_id, vector in vectors.items()
        if query_id in known
    ]
    if rows:
        dialect = sqlite if session.get_bind().dialect.name == "sqlite" else postgresql
        session.execute(dialect.insert(ProbeRow).on_conflict_do_nothing(), rows)  # of two daemons one was first


def packed(vector: Sequence[float]) -> bytes:
    """A vector as it is kept."""
    return np.asarray(vector, PROBE_TYPE).tobytes()


def probes_of(session: Session, query_ids: Collection[int]) -> dict[int, Probe]:
    """The probes of those queries that have one."""
    rows = session.execute(
        select(ProbeRow.query_id, ProbeRow.view, ProbeRow.vector).where(
            ProbeRow.query_id.in_(query_ids), ProbeRow.vector.is_not(None)
        )
    )
    return {row.query_id: Probe(view=row.view, vector=row.vector) for row in rows}


def is_ready(now: datetime, patience_s: float) -> ColumnElement[bool]:
    """Whether a query has been probed, has waited for it long enough, or has a client that waits for its answer."""
    probed = select(ProbeRow.query_id).where(ProbeRow.query_id == QueryRow.id).correlate(QueryRow).scalar_subquery()
    interactive = select(Batch.interactive).where(Batch.id == QueryRow.batch_id).correlate(QueryRow).scalar_subquery()
    since = now - timedelta(seconds=patience_s)
    return or_(QueryRow.created_at <= since, probed.is_not(None), interactive)


def forget(session: Session) -> int:
    """Delete the probes of settled queries that are too old to teach anything; returns how many that were."""
    oldest = session.scalar(select(ProbeRow.query_id).order_by(ProbeRow.query_id.desc()).offset(KEPT).limit(1))
    if oldest is None:
        return 0
    state = select(QueryRow.state).where(QueryRow.id == ProbeRow.query_id).correlate(ProbeRow).scalar_subquery()
    gone = delete(ProbeRow).where(ProbeRow.query_id <= oldest, state.in_(sorted(QUERY_FINAL)))
    return len(session.scalars(gone.returning(ProbeRow.query_id)).all())


def _among(session: Session, query_ids: Sequence[int]) -> Sequence[int]:
    """Those of the queries that were probed."""
    if not query_ids:
        return ()
    return session.scalars(select(ProbeRow.query_id).where(ProbeRow.query_id.in_(query_ids))).all()
